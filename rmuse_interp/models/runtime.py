"""The one interpreter of plans that all places share: from the inputs of a forward call to edited block outputs.

Nothing here hooks anything. A place (an nnsight edit, hooks on the plain model) calls `Interpreter.begin` once per
forward call of the model and `Interpreter.apply` once per decoder block, and keeps the `State` between them.
States are values: every step returns a new one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rmuse_interp.edits import Edit, Plan
from rmuse_interp.errors import RMuseError
from rmuse_interp.gates import Gate
from rmuse_interp.models.state import Call, Decision, Query, QueryState, Reading, State, Vocabulary
from rmuse_interp.operators import Operator


class Interpreter:
    """A plan, ready to run on a model with `n_layers` blocks and a given vocabulary.

    Args:
        plan: the plan.
        n_layers: number of decoder blocks of the model.
        vocabulary: image and special token ids.

    Raises:
        RMuseError: an edit or a gate at a layer the model does not have.
    """

    def __init__(self, plan: Plan, n_layers: int, vocabulary: Vocabulary):
        self.plan = plan
        self.vocabulary = vocabulary
        self.n_layers = n_layers
        for what, layers in (("edited layers", plan.layers), ("gates' layers", plan.reads)):
            outside = [layer for layer in layers if layer >= n_layers]
            if outside:
                raise RMuseError(
                    f"{what} must lie in 0..{n_layers - 1}, got {outside}; choose them with .at(layers=…)"
                )
        self.touched = sorted({*plan.layers, *plan.reads})

    def begin(
        self,
        previous: State | None,
        inputs: Mapping[str, Any],
        announced: Query | None = None,
        decision: Decision | None = None,
        *,
        scoring: bool = False,
    ) -> State:
        """The state at the start of a forward call.

        A call without a cache starts new queries, unless the same ones are announced (generation without a cache).

        Args:
            previous: the state after the call before, or None.
            inputs: keyword arguments of the model's forward.
            announced: what was said about these queries, if anything was.
            decision: what the gates said in a pass of their own, if they have been asked.
            scoring: this is such a pass: gates read, edits do not act.

        Raises:
            RMuseError: a two-pass plan without a decision, an announcement or decision that does not fit the batch.
        """
        call, past = read_call(inputs, self.vocabulary, announced)
        batch = len(call.position)
        carries = previous is not None and (
            past > 0 if announced is None else previous.announced is announced
        )
        if carries and previous is not None and batch % len(previous.query.prompt_end) == 0:
            query = previous.query.repeated(batch)
            call = _of_prompt(call, query.prompt_end)
            query = replace(query, has_image=query.has_image | (call.image & call.real).any(dim=1))
            # Without a cache each step repeats the prompt: its states are read again from the start.
            return State(query, call, previous.readings if past > 0 else {}, {}, announced)
        if announced is None:
            prompt_end = torch.where(call.real, call.position, -1).amax(dim=1)
            has_image = (call.image & call.real).any(dim=1)
        else:
            self._require_whole(announced)
            given = announced.repeated(batch)
            prompt_end, has_image = given.prompt_end.to(call.position), given.has_image.to(call.real.device)
        call = _of_prompt(call, prompt_end)
        start = self._start(decision, batch, prompt_end.device, scoring)
        return State(QueryState(prompt_end, has_image, start), call, {}, {}, announced)

    def require_single_pass(self) -> None:
        """Nothing, or the error that this plan's gates have to be asked first."""
        if not self.plan.single_pass:
            raise RMuseError(
                "this plan is two-pass (a gate reads above the lowest edited layer, or scores a prefixed prompt) and "
                "needs a decision: decision = plan.decide(lens, prompts, images), then pass decision=decision"
            )

    def _require_whole(self, announced: Query) -> None:
        images = any(edit.modality is not None for edit in self.plan)
        if not announced.whole and (images or any(gate.readout != "last" for gate in self.plan.gates)):
            raise RMuseError(
                "a plan that looks at images or at the question needs the whole conversation, part of it is in the "
                "cache only: pass all input_ids, without past_key_values"
            )

    def _start(self, given: Decision | None, batch: int, device: torch.device, scoring: bool) -> Decision:
        edits = list(self.plan)
        if given is not None:
            if given.fired.shape[1] != len(edits):
                raise RMuseError(
                    f"a decision for {len(edits)} edits was required, got one for {given.fired.shape[1]}; "
                    "use plan.decide(...) of this very plan"
                )
            given = given.repeated(batch)
            return Decision(given.fired.to(device), given.score.to(device), given.known.to(device))
        if not scoring:
            self.require_single_pass()
        gated = torch.tensor([edit.gate is not None for edit in edits], device=device).expand(batch, -1)
        asked = torch.tensor([edit.gate is not None and edit.per == "query" for edit in edits], device=device)
        score = torch.full((batch, len(edits)), torch.nan, device=device)
        return Decision(~gated, score, ~asked.expand(batch, -1))

    def apply(
        self, layer: int, h: Float[Tensor, "batch tokens d"], state: State
    ) -> tuple[Float[Tensor, "batch tokens d"], State]:
        """The output of decoder block `layer` after gates have read it and edits have acted, and the new state."""
        if h.shape[:2] != state.call.position.shape:
            raise RMuseError(
                f"states of shape {tuple(state.call.position.shape)} were announced by the model's inputs, block {layer} "
                f"gave {tuple(h.shape[:2])}: call the model itself, not a part of it"
            )
        state = self.read(layer, h, state)
        out = h
        step = state.call.position - state.query.prompt_end.unsqueeze(-1)
        for index, edit in enumerate(self.plan):
            operator = edit.operator_at(layer)
            if operator is None:
                continue
            chosen = self._chosen(index, edit, state, step)
            if chosen is None:
                continue
            out = steer(operator, out, chosen, step)
            if edit.per == "token" and edit.gate is not None:
                state = _acted(state, index, chosen.any(dim=1))
        return out, state

    def read(self, layer: int, h: Float[Tensor, "batch tokens d"], state: State) -> State:
        """The state after the gates of `layer` have read h, before any edit there."""
        for index, edit in enumerate(self.plan):
            gate = edit.gate
            if gate is None or gate.layer != layer:
                continue
            if edit.per == "token":
                fired = {**state.token_fired, index: gate.fires(h)}
                state = replace(state, token_fired=fired)
            elif not bool(state.query.decision.known[:, index].all()):
                state = self._decided(index, gate, h, state)
        return state

    def _decided(self, index: int, gate: Gate, h: Tensor, state: State) -> State:
        """The state after `gate` has read this call's share of its read-out, and decided the rows that are complete."""
        query, call = state.query, state.call
        cover = covered(gate.readout, call, query.prompt_end)
        share = torch.where(cover.unsqueeze(-1), h.float(), 0.0).sum(dim=1)
        before = state.readings.get(index)
        restart = torch.zeros_like(query.has_image)
        if gate.readout == "question" and before is not None:
            restart = (call.image & call.real).any(dim=1)
        if before is None:
            reading = Reading(share, cover.sum(dim=1))
        else:
            keep = ~restart
            reading = Reading(
                before.total * keep.unsqueeze(-1) + share, before.count * keep + cover.sum(dim=1)
            )
        ended = (call.real & (call.position >= query.prompt_end.unsqueeze(-1))).any(dim=1)
        ready = ended & ~query.decision.known[:, index]
        if state.announced is not None:
            expected = state.announced.repeated(len(ready)).readable[gate.readout].to(ready.device)
            if bool((ready & (reading.count != expected)).any()):
                raise RMuseError(
                    f"the gate reads {gate.readout!r} tokens that an earlier call has put into the cache: pass the whole "
                    "conversation without a cache, or decide first with plan.decide(...)"
                )
        mean = reading.total / reading.count.clamp_min(1).unsqueeze(-1)
        score = gate.score(mean).float()
        # Nothing to read (an image read-out of a text query): the gate stays closed.
        score = torch.where(reading.count > 0, score, -torch.inf)
        old = query.decision
        column = torch.zeros_like(old.known)
        column[:, index] = ready
        fires = (gate.fires(mean) & (reading.count > 0)).unsqueeze(-1)
        decision = Decision(
            torch.where(column, fires, old.fired),
            torch.where(column, score.unsqueeze(-1), old.score),
            old.known | column,
        )
        return replace(
            state, query=replace(query, decision=decision), readings={**state.readings, index: reading}
        )

    def _chosen(
        self, index: int, edit: Edit, state: State, step: Tensor
    ) -> Bool[Tensor, "batch tokens"] | None:
        """The tokens on which the edit acts; None where there are none."""
        call, query = state.call, state.query
        if edit.tokens == "generated":
            chosen = step >= 0
        elif edit.tokens == "prompt_end":
            chosen = step == 0
        elif edit.tokens == "response":
            chosen = step > 0
        else:
            chosen = ~call.image
        chosen = chosen & call.real
        if edit.modality is not None:
            chosen = chosen & (query.has_image == (edit.modality == "image")).unsqueeze(-1)
        if edit.gate is not None and edit.per == "token":
            chosen = chosen & state.token_fired[index]
        elif edit.gate is not None:
            early = chosen & ~query.decision.known[:, index].unsqueeze(-1)
            if bool(early.any()):
                raise RMuseError(
                    "an edit on all tokens met a chunk of the prompt before its gate could decide; "
                    "decide first with plan.decide(...), or prefill in one piece"
                )
            chosen = chosen & query.decision.fired[:, index].unsqueeze(-1)
        return chosen if bool(chosen.any()) else None


def _of_prompt(call: Call, prompt_end: Int[Tensor, " batch"]) -> Call:
    """The call without image tokens behind the prompt: a placeholder that was generated shows no image."""
    return replace(call, image=call.image & (call.position <= prompt_end.unsqueeze(-1)))


def _acted(state: State, index: int, rows: Tensor) -> State:
    """The state in which a per-token edit has acted on some rows."""
    old = state.query.decision
    fired = old.fired.clone()
    fired[:, index] |= rows
    return replace(state, query=replace(state.query, decision=replace(old, fired=fired)))


def steer(
    operator: Operator,
    h: Float[Tensor, "batch tokens d"],
    chosen: Bool[Tensor, "batch tokens"],
    step: Int[Tensor, "batch tokens"],
) -> Float[Tensor, "batch tokens d"]:
    """h with the operator applied to the chosen tokens; all others come back bit for bit."""
    out = h.clone()
    out[chosen] = operator(h[chosen], step[chosen]).to(h.dtype)
    return out


def covered(readout: str, call: Call, prompt_end: Int[Tensor, " batch"]) -> Bool[Tensor, "batch tokens"]:
    """The tokens of this call that a read-out averages: `last`, `question` or `image` tokens of the prompt."""
    if readout == "last":
        return call.real & (call.position == prompt_end.unsqueeze(-1))
    prompt = call.real & (call.position <= prompt_end.unsqueeze(-1))
    if readout == "image":
        return prompt & call.image
    # Text after the last image token: no image token may follow within the prompt.
    ahead = (prompt & call.image).flip(1).cumsum(dim=1).flip(1)
    return prompt & ~call.special & (ahead == 0)


def read_call(
    inputs: Mapping[str, Any], vocabulary: Vocabulary, announced: Query | None = None
) -> tuple[Call, int]:
    """The tokens of a forward call and how many came before it (in the cache).

    Positions come from the attention mask (cumulative sum), else from the cache's length and the announced padding,
    else from `position_ids`.
    """
    ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
    tokens = ids if ids is not None else embeds
    if tokens is None:
        raise RMuseError("the model was called without input_ids or inputs_embeds; a plan needs one of them")
    batch, length = tokens.shape[:2]
    cache = inputs.get("past_key_values")
    past = 0 if cache is None else int(cache.get_seq_length())
    mask = inputs.get("attention_mask")
    device = tokens.device
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= past + length:
        counted = mask.to(device).long().cumsum(dim=1) - 1
        position, real = counted[:, past : past + length], mask[:, past : past + length].to(device).bool()
    else:
        column = torch.arange(past, past + length, device=device).expand(batch, -1)
        given = inputs.get("position_ids")
        if announced is not None:
            column = column - announced.repeated(batch).padding.to(device).unsqueeze(-1)
        elif isinstance(given, Tensor) and given.ndim == 2 and given.shape[1] == length:
            column = given.to(device).expand(batch, -1)
        position, real = column, column >= 0
    none = torch.zeros(batch, length, dtype=torch.bool, device=device)
    if ids is None:
        return Call(position, real, none, none), past
    image = none if vocabulary.image is None else ids == vocabulary.image
    special = (
        torch.isin(ids, torch.tensor(sorted(vocabulary.special), dtype=ids.dtype, device=device)) | image
    )
    return Call(position, real, image, special), past


def announce(
    input_ids: Int[Tensor, "batch tokens"],
    attention_mask: Int[Tensor, "batch all"] | None,
    vocabulary: Vocabulary,
    prompt_end: Int[Tensor, " batch"] | Sequence[int] | None = None,
) -> Query:
    """What an encoded prompt says about its queries, for prefills that come in chunks or continue a cache.

    Args:
        input_ids: the whole conversation, or its new part where the mask is longer.
        attention_mask: of the whole conversation; all ones where absent.
        vocabulary: image and special token ids.
        prompt_end: position of each row's last prompt token; the last unmasked one where absent.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    counted = mask.long().cumsum(dim=1)
    last = counted[:, -1] - 1
    end = last if prompt_end is None else torch.as_tensor(prompt_end, device=last.device).to(last)
    padding = (counted == 0).sum(dim=1)
    if mask.shape[1] != input_ids.shape[1]:
        unseen = torch.zeros_like(last)
        return Query(end, unseen.bool(), padding, {"last": unseen + 1}, whole=False)
    call, _ = read_call({"input_ids": input_ids, "attention_mask": mask}, vocabulary)
    call = _of_prompt(call, end)
    readable = {name: covered(name, call, end).sum(dim=1) for name in ("last", "question", "image")}
    return Query(end, (call.image & call.real).any(dim=1), padding, readable)
