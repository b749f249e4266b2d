"""The interpreter of plans, shared by all places: from the inputs of a forward call to edited states.

It installs no hooks. A place (an nnsight edit, hooks on the plain model) calls `Interpreter.begin` once per
forward call of the model and `Interpreter.apply` once per tap, and keeps the `State` between them.
States are immutable: every step returns a new one.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.fits import (
    require_columns,
    require_fit,
    require_ours,
    require_single_pass,
    require_whole,
)
from rmuse_interp.edits.inputs import Inputs, cached, covered, largest_over, mean_over, of_prompt, read_call
from rmuse_interp.edits.sentence import Clause, Sentence, Verb
from rmuse_interp.edits.spoken import Delimiters, Said, Spoken, listen
from rmuse_interp.edits.state import Decision, Query, QueryState, Reading, Slice, State, beside, times_of
from rmuse_interp.edits.steering import acted, holding, steer
from rmuse_interp.edits.trace import Recorder
from rmuse_interp.models.layout import Layout
from rmuse_interp.models.site import Site
from rmuse_interp.parts.gates import Gate


class Interpreter:
    """A plan, ready to run on a model.

    Args:
        plan: the plan.
        layout: paths of the model's blocks, its width and its vocabulary.

    Attributes:
        taps: the sites whose states must be passed to `apply`, in forward order. An edit at `resid_mid` has no tap of
            its own: it edits the sum `resid_pre + attn_out` by changing attention's output, so later readers of
            attention's output see the change.

    Raises:
        RMuseError: layers or widths that do not match the model.
    """

    def __init__(self, plan: Sentence, layout: Layout):
        require_fit(plan, layout)
        self.plan = plan
        self.vocabulary = layout.vocabulary
        self._acting: dict[Site, list[tuple[int, Clause, Verb]]] = {}
        self._reading: dict[Site, list[tuple[int, Clause, Gate]]] = {}
        for index, edit in enumerate(plan):
            if edit.gate is not None:
                self._reading.setdefault(Site(edit.gate.layer), []).append((index, edit, edit.gate))
            for site in edit.sites:
                operator = edit.operator_at(site)
                assert operator is not None
                self._acting.setdefault(site, []).append((index, edit, operator))
        self._middles = {site.layer for site in self._acting if site.hook == "resid_mid"}
        taps = {*self._reading, *(site for site in self._acting if site.hook != "resid_mid")}
        taps |= {Site(layer, hook) for layer in self._middles for hook in ("resid_pre", "attn_out")}
        self.taps = sorted(taps)
        spans = [edit for edit in plan if edit.tokens in ("chain", "answer")]
        self._delimiters = list(dict.fromkeys(edit.delimiters for edit in spans))

    def begin(
        self,
        previous: State | None,
        inputs: Inputs,
        announced: Query | None = None,
        decision: Decision | None = None,
        *,
        scoring: bool = False,
        copies: int | None = 1,
    ) -> State:
        """The state at the start of a forward call.

        A call without a cache starts new queries, unless the same queries are announced (generation without a cache).

        Args:
            previous: the state after the previous call, or None.
            inputs: keyword arguments of the model's forward.
            announced: description of these queries given in advance, if any.
            decision: the gates' decision from a separate pass, if any.
            scoring: whether this is such a separate pass: gates read, edits do not act.
            copies: number of adjacent rows per query, beams or samples; None for any number.

        Raises:
            RMuseError: a two-pass plan without a decision, an announcement or decision about other rows, or tokens in
                a cache that were not seen on their way there.
        """
        carries = previous is not None and (
            previous.announced is announced and (announced is not None or cached(inputs) > 0)
        )
        if carries and previous is not None:
            call = read_call(inputs, self.vocabulary, announced, previous.width)
            if len(call.position) == len(previous.query.prompt_end):
                previous = previous.beside(call.position)
                return self._carried(previous, call, previous.query)
        call = read_call(inputs, self.vocabulary, announced)
        batch = len(call.position)
        if announced is None:
            if call.past > 0:
                raise RMuseError(
                    f"the whole conversation was required, {call.past} of its tokens are in a cache that this plan has "
                    "not seen filled: announce it, handle.expecting(input_ids, attention_mask)"
                )
            prompt_end = torch.where(call.real, call.position, -1).amax(dim=1)
            image_end = call.image_end
            width = call.position.shape[1]
            times = copies or 1
        else:
            times = times_of(len(announced.prompt_end), batch, copies)
            given = announced.repeated(batch)
            prompt_end, image_end = given.prompt_end.to(call.position), given.image_end.to(call.position)
            width = announced.width
        require_whole(self.plan, announced, call, self.vocabulary)
        if decision is not None:
            require_ours(self.plan, decision, announced, inputs, batch // times)
        start = self._start(decision, batch, prompt_end.device, scoring)
        query = QueryState(prompt_end, image_end >= 0, start, image_end)
        if not scoring:
            require_columns(self.plan, batch, width)
        call = of_prompt(call, prompt_end)
        own = batch if announced is None else len(announced.prompt_end)
        spoken = self._listen(call, prompt_end, {}, own)
        behind = call.past >= width
        return State(query, call, announced, width, {}, {}, {}, self._acts(query), behind, spoken)

    def _carried(self, previous: State, call: Slice, query: QueryState) -> State:
        """The state of a further call about the same queries."""
        acts = previous.acts
        behind = call.past >= previous.width
        if not behind:
            call = of_prompt(call, query.prompt_end)
            image_end = torch.maximum(query.image_end, call.image_end)
            query = replace(query, has_image=image_end >= 0, image_end=image_end)
            acts = self._acts(query)
        # Without a cache each step repeats the prompt, so its states are read again from the start.
        readings, said = (previous.readings, previous.spoken) if call.past > 0 else ({}, {})
        spoken = self._listen(call, query.prompt_end, said, len(previous.query.prompt_end))
        told, width, calls = previous.announced, previous.width, previous.calls + 1
        rows = len(query.prompt_end)
        held = {i: kept.repeat_interleave(rows // len(kept)) for i, kept in previous.held.items()}
        return State(query, call, told, width, readings, {}, {}, acts, behind, spoken, held=held, calls=calls)

    def _listen(
        self, call: Slice, prompt_end: Tensor, before: Mapping[Delimiters, Spoken], rows: int
    ) -> dict[Delimiters, Spoken]:
        """The span of the response that each token belongs to, for edits on such spans."""
        found: dict[Delimiters, Spoken] = {}
        if not self._delimiters:
            return found
        batch, piece = len(call.position), self.vocabulary.piece
        if call.ids is None or batch != rows:
            raise RMuseError(
                f"chain and answer are told by each row's own token ids, got {batch} rows for {rows} prompts"
                f"{' as embeddings' if call.ids is None else ''}: pass input_ids, and decode without beams or several "
                "sequences per prompt (repeat the prompt instead)"
            )
        assert piece is not None
        response = call.real & (call.position > prompt_end.unsqueeze(-1))
        for delimiters in self._delimiters:
            said = before[delimiters].said if delimiters in before else (Said(),) * batch
            found[delimiters] = listen(said, call.ids, response, delimiters, piece, self.vocabulary.special)
        return found

    def _acts(self, query: QueryState) -> tuple[bool | None, ...]:
        """Whether each edit acts on any row; None while undecided. Synchronises the device, so only at prefill."""
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

    def _start(self, given: Decision | None, batch: int, device: torch.device, scoring: bool) -> Decision:
        edits = list(self.plan)
        names = tuple(edit.name or f"edit{i}" for i, edit in enumerate(edits))
        gates = tuple(edit.gate for edit in edits)
        if given is not None:
            fired, score, known = (x.to(device) for x in (given.fired, given.score, given.known))
            return Decision(fired, score, known, names, gates).repeated(batch)
        if not scoring:
            require_single_pass(self.plan)
        gated = torch.tensor([edit.gate is not None for edit in edits], device=device).expand(batch, -1)
        asked = torch.tensor([edit.gate is not None and edit.per == "query" for edit in edits], device=device)
        score = torch.full((batch, len(edits)), torch.nan, device=device)
        return Decision(~gated, score, ~asked.expand(batch, -1), names, gates)

    def apply(
        self, tap: Site, h: Float[Tensor, "batch tokens d"], state: State, recorder: Recorder | None = None
    ) -> tuple[Float[Tensor, "batch tokens d"], State]:
        """The states at a tap after gates have read and edits have changed them (or h itself), and the new `State`."""
        if h.shape[:2] != state.call.position.shape:
            raise RMuseError(
                f"states of shape {tuple(state.call.position.shape)} were announced by the model's inputs, {tap} "
                f"gave {tuple(h.shape[:2])}: call the model itself, not a part of it"
            )
        state = self.read(tap, h, state.beside(h))
        out, state = self._act(tap, h, state, recorder)
        if tap.layer in self._middles and tap.hook == "resid_pre":
            state = replace(state, before=out)
        elif tap.layer in self._middles and tap.hook == "attn_out":
            before = state.before
            assert before is not None
            middle = before + out
            edited, state = self._act(Site(tap.layer, "resid_mid"), middle, state, recorder)
            if edited is not middle:
                out = (edited.float() - before.float()).to(h.dtype)
        return out, state

    def _act(self, site: Site, h: Tensor, state: State, recorder: Recorder | None) -> tuple[Tensor, State]:
        """The states at a site after its edits, applied in the order of the plan, and the new `State`."""
        acting = self._acting.get(site)
        if acting is None:
            return h, state
        out = h
        step = state.call.position - state.query.prompt_end.unsqueeze(-1)
        for index, edit, operator in acting:
            chosen, before = self._chosen(index, edit, state, step), out
            verb = beside(operator, h)
            if verb.remembers and not state.behind:
                state = holding(state, index, site == edit.sites[0], verb, before, step)
            if chosen is not None:
                out = steer(verb, before, chosen, step, state, state.held.get(index))
            if recorder is not None:
                recorder.keep(index, site, before, out, chosen, state)
            if chosen is not None and edit.per == "token" and edit.gate is not None:
                state = acted(state, index, chosen.any(dim=1))
        return out, state

    def read(self, tap: Site, h: Float[Tensor, "batch tokens d"], state: State) -> State:
        """The `State` after the gates at a tap have read h, before any edit there."""
        state = state.beside(h)
        for index, edit, gate in self._reading.get(tap, ()):
            if edit.per == "token":
                score = beside(gate, h).score(h)
                scores = {**state.token_score, index: score}
                fired = {**state.token_fired, index: gate.fires_at(score)}
                state = replace(state, token_fired=fired, token_score=scores)
            elif state.acts[index] is None:
                state = self._decided(index, gate, h, state)
        return state

    def _decided(self, index: int, gate: Gate, h: Tensor, state: State) -> State:
        """The `State` after `gate` has read this call's part of its read-out and decided the complete rows."""
        query, call = state.query, state.call
        cover = covered(gate.readout, call, query.prompt_end)
        count = cover.sum(dim=1)
        expected = None
        if state.announced is not None and gate.readout != "draft":
            expected = state.announced.repeated(len(count)).readable[gate.readout].to(count.device)
        peak = gate.readout == "peak"
        share = (
            largest_over(h, cover) if peak else mean_over(h, cover, count if expected is None else expected)
        )
        before = state.readings.get(index)
        restart = torch.zeros_like(query.has_image)
        if gate.readout in ("question", "peak") and before is not None:
            restart = (call.image & call.real).any(dim=1)
        if before is None:
            reading = Reading(share, count)
        else:
            keep = ~restart
            earlier = torch.where(keep.unsqueeze(-1), before.mean, -torch.inf if peak else 0.0)
            mean = torch.maximum(earlier, share) if peak else earlier + share
            reading = Reading(mean, before.count * keep + count)
        ended = (call.real & (call.position >= query.prompt_end.unsqueeze(-1))).any(dim=1)
        ready = ended & ~query.decision.known[:, index]
        if expected is not None and bool((ready & (reading.count != expected)).any()):
            raise RMuseError(
                f"the gate reads {gate.readout!r} tokens that an earlier call has put into the cache: pass the whole "
                "conversation without a cache, or decide first with plan.decide(...)"
            )
        score = beside(gate, h).score(reading.mean)
        fires = (gate.fires_at(score) & (reading.count > 0)).unsqueeze(-1)
        # Nothing to read (an image read-out of a text query): the gate stays closed.
        score = torch.where(reading.count > 0, score.float(), -torch.inf)
        old = query.decision
        column = torch.zeros_like(old.known)
        column[:, index] = ready
        decision = replace(
            old,
            fired=torch.where(column, fires, old.fired),
            score=torch.where(column, score.unsqueeze(-1), old.score),
            known=old.known | column,
        )
        query = replace(query, decision=decision)
        return replace(
            state, query=query, readings={**state.readings, index: reading}, acts=self._acts(query)
        )

    def _chosen(
        self, index: int, edit: Clause, state: State, step: Tensor
    ) -> Bool[Tensor, "batch tokens"] | None:
        """The tokens on which the edit acts; None if there are none.

        After the prompts the device is not synchronised: a mask may then be returned that is False everywhere.
        """
        call, query = state.call, state.query
        if state.acts[index] is False or (state.behind and edit.tokens in ("prompt_end", "prompt", "image")):
            return None
        chosen = call.real
        if edit.tokens in ("positions", "mask", "chain", "answer"):
            chosen = chosen & self._listed(edit, state)
        elif not state.behind:
            asked = ~call.special & (call.position > query.image_end.unsqueeze(-1))
            chosen = (
                chosen
                & {
                    "generated": step >= 0,
                    "prompt_end": step == 0,
                    "prompt": (step == 0) | (step < 0) & asked,
                    "response": step > 0,
                    "all": ~call.image & ~self._framing(call, step),
                    "image": call.image,
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

    def _framing(self, call: Slice, step: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
        """The prompt's tokens around and between the pieces of its pictures: starts, ends, breaks, rows, tiles."""
        if call.ids is None or not self.vocabulary.frame:
            return torch.zeros_like(call.image)
        ids = torch.tensor(sorted(self.vocabulary.frame), dtype=call.ids.dtype, device=call.ids.device)
        return torch.isin(call.ids, ids) & (step < 0)

    def _listed(self, edit: Clause, state: State) -> Bool[Tensor, "batch tokens"]:
        """The tokens of this call that an edit lists, or that belong to its span of the response."""
        call = state.call
        if edit.tokens in ("chain", "answer"):
            return state.spoken[edit.delimiters].masks[edit.tokens]
        if edit.mask is None:
            wanted = torch.tensor(edit.positions, device=call.position.device)
            return torch.isin(call.position, wanted)
        batch, length = call.position.shape
        shown = edit.mask.to(call.position.device)[:, call.past : call.past + length]
        shown = torch.nn.functional.pad(shown, (0, length - shown.shape[1]))
        return shown.repeat_interleave(batch // len(shown), dim=0)
