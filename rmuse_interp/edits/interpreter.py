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

from rmuse_interp import RMuseError
from rmuse_interp.edits.sentence import Clause, Sentence, Verb
from rmuse_interp.edits.state import Call, Decision, Query, QueryState, Reading, State
from rmuse_interp.edits.trace import Recorder
from rmuse_interp.models.layout import Vocabulary
from rmuse_interp.parts.gates import Gate


class Interpreter:
    """A plan, ready to run on a model with `n_layers` blocks and a given vocabulary.

    Args:
        plan: the plan.
        n_layers: number of decoder blocks of the model.
        vocabulary: image and special token ids.

    Raises:
        RMuseError: an edit or a gate at a layer the model does not have.
    """

    def __init__(self, plan: Sentence, n_layers: int, vocabulary: Vocabulary):
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
        carries = previous is not None and (
            previous.announced is announced and (announced is not None or cached(inputs) > 0)
        )
        if carries and previous is not None:
            call, past = read_call(inputs, self.vocabulary, announced, previous.width)
            batch = len(call.position)
            if batch % len(previous.query.prompt_end) == 0:
                return self._carried(previous, call, past, previous.query.repeated(batch))
        call, past = read_call(inputs, self.vocabulary, announced)
        batch = len(call.position)
        if announced is None:
            prompt_end = torch.where(call.real, call.position, -1).amax(dim=1)
            image_end = call.image_end
            width = past + call.position.shape[1]
        else:
            self._require_whole(announced)
            given = announced.repeated(batch)
            prompt_end, image_end = given.prompt_end.to(call.position), given.image_end.to(call.position)
            width = announced.width
        start = self._start(decision, batch, prompt_end.device, scoring)
        query = QueryState(prompt_end, image_end >= 0, start, image_end)
        call = _of_prompt(call, prompt_end)
        return State(query, call, announced, width, {}, {}, {}, self._acts(query), past >= width)

    def _carried(self, previous: State, call: Call, past: int, query: QueryState) -> State:
        """The state of a further call about the same queries."""
        acts = previous.acts
        behind = past >= previous.width
        if not behind:
            call = _of_prompt(call, query.prompt_end)
            image_end = torch.maximum(query.image_end, call.image_end)
            query = replace(query, has_image=image_end >= 0, image_end=image_end)
            acts = self._acts(query)
        # Without a cache each step repeats the prompt: its states are read again from the start.
        readings = previous.readings if past > 0 else {}
        calls = previous.calls + 1
        return State(query, call, previous.announced, previous.width, readings, {}, {}, acts, behind, calls)

    def _acts(self, query: QueryState) -> tuple[bool | None, ...]:
        """Per edit, whether it acts on any row; None while undecided. Waits for the device: asked at prefill only."""
        found: list[bool | None] = []
        for index, edit in enumerate(self.plan):
            rows = torch.ones_like(query.has_image)
            if edit.modality is not None:
                rows = query.has_image == (edit.modality == "image")
            if edit.gate is not None and edit.per == "query":
                if not bool(query.decision.known[:, index].all()):
                    found.append(None)
                    continue
                rows = rows & query.decision.fired[:, index]
            found.append(bool(rows.any()))
        return tuple(found)

    def require_single_pass(self) -> None:
        """Raise unless every gate can decide during the steered pass."""
        if not self.plan.single_pass:
            raise RMuseError(
                "this plan is two-pass (a gate reads above the lowest edited layer, a prefixed prompt, or a draft) and "
                "needs a decision here: decision = plan.decide(lens, prompts, images), then pass decision=decision; "
                "lens.respond, lens.generate and lens.trace decide by themselves"
            )

    def _require_whole(self, announced: Query) -> None:
        images = any(edit.modality is not None or edit.tokens == "prompt" for edit in self.plan)
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
        self, layer: int, h: Float[Tensor, "batch tokens d"], state: State, recorder: Recorder | None = None
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
            chosen, before = self._chosen(index, edit, state, step), out
            if chosen is not None:
                out = steer(operator, before, chosen, step, gather=not state.behind)
            if recorder is not None:
                recorder.keep(index, layer, before, out, chosen, state)
            if chosen is not None and edit.per == "token" and edit.gate is not None:
                state = _acted(state, index, chosen.any(dim=1))
        return out, state

    def read(self, layer: int, h: Float[Tensor, "batch tokens d"], state: State) -> State:
        """The state after the gates of `layer` have read h, before any edit there."""
        for index, edit in enumerate(self.plan):
            gate = edit.gate
            if gate is None or gate.layer != layer:
                continue
            if edit.per == "token":
                scores = {**state.token_score, index: gate.score(h)}
                fired = {**state.token_fired, index: scores[index] > gate.threshold}
                state = replace(state, token_fired=fired, token_score=scores)
            elif state.acts[index] is None:
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
        if state.announced is not None and gate.readout != "draft":
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
        query = replace(query, decision=decision)
        return replace(
            state, query=query, readings={**state.readings, index: reading}, acts=self._acts(query)
        )

    def _chosen(
        self, index: int, edit: Clause, state: State, step: Tensor
    ) -> Bool[Tensor, "batch tokens"] | None:
        """The tokens on which the edit acts; None where there are none.

        Behind the prompts nothing is asked of the device: a mask without a true entry comes back as it is.
        """
        call, query = state.call, state.query
        if state.acts[index] is False or (state.behind and edit.tokens in ("prompt_end", "prompt")):
            return None
        chosen = call.real
        if not state.behind:
            asked = ~call.special & (call.position > query.image_end.unsqueeze(-1))
            chosen = (
                chosen
                & {
                    "generated": step >= 0,
                    "prompt_end": step == 0,
                    "prompt": (step == 0) | (step < 0) & asked,
                    "response": step > 0,
                    "all": ~call.image,
                }[edit.tokens]
            )
        if edit.modality is not None:
            chosen = chosen & (query.has_image == (edit.modality == "image")).unsqueeze(-1)
        if edit.gate is not None and edit.per == "token":
            chosen = chosen & state.token_fired[index]
        elif edit.gate is not None:
            if state.acts[index] is None and bool((chosen & ~query.decision.known[:, [index]]).any()):
                raise RMuseError(
                    "an edit on the prompt's tokens met a chunk of them before its gate could decide; "
                    "decide first with plan.decide(...), or prefill in one piece"
                )
            chosen = chosen & query.decision.fired[:, [index]]
        return chosen if state.behind or bool(chosen.any()) else None


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
    operator: Verb,
    h: Float[Tensor, "batch tokens d"],
    chosen: Bool[Tensor, "batch tokens"],
    step: Int[Tensor, "batch tokens"],
    *,
    gather: bool = True,
) -> Float[Tensor, "batch tokens d"]:
    """h with the operator applied to the chosen tokens; all others come back bit for bit.

    Args:
        operator: what is applied.
        h: states; not written to.
        chosen: which tokens.
        step: position − prompt_end of each.
        gather: compute the chosen tokens only (long prefills), instead of all and choosing afterwards (decode steps).
    """
    if not gather:
        return torch.where(chosen.unsqueeze(-1), operator(h, step).to(h.dtype), h)
    out = h.clone()
    out[chosen] = operator(h[chosen], step[chosen]).to(h.dtype)
    return out


def covered(readout: str, call: Call, prompt_end: Int[Tensor, " batch"]) -> Bool[Tensor, "batch tokens"]:
    """The tokens of this call that a read-out averages: of the prompt, or for `draft` from its last one on."""
    if readout == "draft":
        return call.real & (call.position >= prompt_end.unsqueeze(-1))
    if readout == "last":
        return call.real & (call.position == prompt_end.unsqueeze(-1))
    prompt = call.real & (call.position <= prompt_end.unsqueeze(-1))
    if readout == "image":
        return prompt & call.image
    # Text after the last image token: no image token may follow within the prompt.
    ahead = (prompt & call.image).flip(1).cumsum(dim=1).flip(1)
    return prompt & ~call.special & (ahead == 0)


def cached(inputs: Mapping[str, Any]) -> int:
    """How many tokens are in the cache already."""
    cache = inputs.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


def read_call(
    inputs: Mapping[str, Any],
    vocabulary: Vocabulary,
    announced: Query | None = None,
    width: int | None = None,
) -> tuple[Call, int]:
    """The tokens of a forward call and how many came before it (in the cache).

    Positions come from the attention mask (cumulative sum), else from the cache's length and the announced padding,
    else from `position_ids`. Tokens from column `width` on are generated: neither image nor special to anyone.
    """
    ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
    tokens = ids if ids is not None else embeds
    if tokens is None:
        raise RMuseError("the model was called without input_ids or inputs_embeds; a plan needs one of them")
    batch, length = tokens.shape[:2]
    past, mask, device = cached(inputs), inputs.get("attention_mask"), tokens.device
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
    if ids is None or (width is not None and past >= width):
        return Call(position, real, none, none), past
    image = none if vocabulary.image is None else ids == vocabulary.image
    special = torch.isin(ids, torch.tensor(sorted(vocabulary.special), dtype=ids.dtype, device=device))
    return Call(position, real, image, special | image), past


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
    if end.shape != last.shape or bool(((end < 0) & (last >= 0) | (end > last)).any()):
        raise RMuseError(
            f"one prompt_end per row was required, counting its {(last + 1).tolist()} unmasked tokens from 0, got "
            f"{end.tolist()}; lens.encode(...).prompt_end has them"
        )
    padding = (counted == 0).sum(dim=1)
    if mask.shape[1] != input_ids.shape[1]:
        unseen = torch.zeros_like(last)
        return Query(end, unseen.bool(), padding, {"last": unseen + 1}, mask.shape[1], False, unseen - 1)
    call, _ = read_call({"input_ids": input_ids, "attention_mask": mask}, vocabulary)
    call = _of_prompt(call, end)
    readable = {name: covered(name, call, end).sum(dim=1) for name in ("last", "question", "image")}
    return Query(end, call.image_end >= 0, padding, readable, mask.shape[1], True, call.image_end)
