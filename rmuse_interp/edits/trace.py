"""Steering traces: what gate and operator did to every token at every steered block, and their recorder.

    recorder = Recorder()
    with torch.no_grad(), lens.generate(prompts, images, plan=plan, recorder=recorder, max_new_tokens=40) as tracer:
        result = tracer.result.save()
    trace = recorder.trace()                 # natively: plan.attach(lens.hf, recorder=recorder), lens.respond(...)
    trace.angle[row, site, : trace.lengths[row]]

During a forward pass the recorder only copies the states before and after each edit. They are measured `CHUNK` calls
at a time, so that the many small geometric operations run once per chunk.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.measures import Seen, protection, quantities
from rmuse_interp.edits.sentence import Sentence
from rmuse_interp.edits.state import QueryState, State
from rmuse_interp.models.site import Site
from rmuse_interp.parts.retain import Subspaces

CHUNK: Final = 16
"""Number of forward calls measured together; their states at the steered blocks are held until then."""


@dataclass(frozen=True)
class TraceSite:
    """One edit at one block.

    Attributes:
        edit: its name, or `edit0` by its index in the plan.
        layer: 0-based decoder block.
        hook: hook point in the block.
    """

    edit: str
    layer: int
    hook: str = "resid_post"


@dataclass(frozen=True, eq=False)
class SteeringTrace:
    """What steering did along each sequence; token t is the state at step t, from which generated token t was predicted.

    Step 0 is the last prompt token. Values are NaN (−1, False) if the row has ended, if the edit is for the other kind
    of query, or if the operator has no such quantity or did not act.

    Attributes:
        sites: the edits and blocks, in the order of the plan.
        valid: whether the row was still being generated.
        ids: id of the token at this step; −1 if the model was given embeddings.
        score: the gate's score (larger = steer), the same for the whole query unless per token; NaN without a gate.
        margin: `(score − threshold)/scale` of the gate: positive where it fires, comparable; NaN as `score`.
        fired: the gate's decision; True without a gate.
        acted: whether the operator was applied (gate fired and token chosen); it may still leave the state unchanged.
        theta_tar: see `Explanation`.
        theta_dir: see `Explanation`.
        fraction: λ, see `Explanation`.
        prototype: index of the chosen refusal prototype, see `Explanation`.
        rrs_share: `‖P_rrs(h̃ − h)‖²/‖h̃ − h‖²`; NaN without an RRS or an update.
        norm_before: ‖h‖ before the edit.
        norm_after: ‖h̃‖.
        angle: `∠(h, h̃)` in radians; 0 where the edit did not act.
    """

    sites: tuple[TraceSite, ...]
    valid: Bool[Tensor, "rows tokens"]
    ids: Int[Tensor, "rows tokens"]
    score: Float[Tensor, "rows sites tokens"]
    margin: Float[Tensor, "rows sites tokens"]
    fired: Bool[Tensor, "rows sites tokens"]
    acted: Bool[Tensor, "rows sites tokens"]
    theta_tar: Float[Tensor, "rows sites tokens"]
    theta_dir: Float[Tensor, "rows sites tokens"]
    fraction: Float[Tensor, "rows sites tokens"]
    prototype: Int[Tensor, "rows sites tokens"]
    rrs_share: Float[Tensor, "rows sites tokens"]
    norm_before: Float[Tensor, "rows sites tokens"]
    norm_after: Float[Tensor, "rows sites tokens"]
    angle: Float[Tensor, "rows sites tokens"]

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each row before its end."""
        return [int(n) for n in self.valid.sum(dim=1)]

    def site(self, layer: int, edit: str | None = None) -> int:
        """Index of a site on the axis `sites`; the edit's name may be omitted if only one edit is at the block.

        Raises:
            RMuseError: no such site, or several.
        """
        found = [i for i, s in enumerate(self.sites) if s.layer == layer and edit in (None, s.edit)]
        if len(found) != 1:
            there = ", ".join(f"{s.edit} at block {s.layer}" for s in self.sites)
            raise RMuseError(
                f"one site was required, {len(found)} are at block {layer}, edit {edit}; there are {there}"
            )
        return found[0]

    def row(self, row: int) -> "SteeringTrace":
        """A single row, cut at its end, with the sites that apply to its kind of query."""
        n = self.lengths[row]
        mine = [i for i in range(len(self.sites)) if n and not math.isnan(self.norm_before[row, i, 0])]
        parts = {name: getattr(self, name)[row : row + 1, mine, :n].clone() for name in SITE_COLUMNS}
        return SteeringTrace(
            tuple(self.sites[i] for i in mine),
            self.valid[row : row + 1, :n].clone(),
            self.ids[row : row + 1, :n].clone(),
            **parts,
        )

    def records(self) -> list[dict[str, str | float | int | bool]]:
        """One record per row, site and token (`row`, `edit`, `layer`, `hook`, `step`, and the quantities)."""
        found = []
        for row, n in enumerate(self.lengths):
            for i, site in enumerate(self.sites):
                columns = {name: getattr(self, name)[row, i, :n].tolist() for name in SITE_COLUMNS}
                columns |= {"id": self.ids[row, :n].tolist(), "step": list(range(n))}
                for values in zip(*columns.values(), strict=True):
                    record = dict(zip(columns, values, strict=True))
                    found.append(
                        {"row": row, "edit": site.edit, "layer": site.layer, "hook": site.hook, **record}
                    )
        return found


SITE_COLUMNS: Final = tuple(f.name for f in fields(SteeringTrace) if f.name not in ("sites", "valid", "ids"))
"""The quantities that a trace holds per row, site and token."""


@dataclass(frozen=True, eq=False)
class _Call:
    """The tokens of one call from the last prompt token on; `columns` is None if that is all of them."""

    columns: Tensor | None
    step: Tensor
    real: Tensor
    ids: Tensor
    given: bool
    kept: dict[tuple[int, Site], Seen] = field(default_factory=dict)

    def take(self, x: Tensor) -> Tensor:
        """Copy the call's columns of x [rows, tokens, …]; a copy, because other code may write to x."""
        return x.detach().clone() if self.columns is None else x.detach()[:, self.columns.to(x.device)]


class Recorder:
    """Records the trace of the latest batch that a plan ran on; use each recorder in one place only.

    Args:
        subspaces: the bundle's subspaces, for `rrs_share` of operators that do not hold an RRS themselves.
    """

    def __init__(self, subspaces: Subspaces | None = None):
        self._subspaces = subspaces
        self._forget()

    def _forget(self) -> None:
        self._plan: Sentence | None = None
        self._query: QueryState | None = None
        self._stop: frozenset[int] = frozenset()
        self._calls: list[_Call] = []
        self._measured: list[tuple[list[_Call], dict[str, Tensor]]] = []
        self._last = -1

    def begin(self, plan: Sentence, state: State, ids: Tensor | None, stop: frozenset[int]) -> None:
        """Start recording a forward call; a call about new queries discards the earlier record."""
        if state.calls == 0:
            self._forget()
            self._plan, self._stop = plan, stop
        call, query = state.call, state.query
        step, columns = call.position - query.prompt_end.unsqueeze(-1), None
        if not state.behind:
            highest = torch.where(call.real, step, -1).amax(dim=0)
            columns = (highest > self._last).nonzero().flatten()  # without a cache, old tokens are repeated
            self._last = int(highest.amax().clamp_min(self._last))
            step = step[:, columns]
        real = call.real if columns is None else call.real[:, columns]
        if ids is None:
            ids = torch.full_like(step, -1)
        elif columns is not None:
            ids = ids[:, columns]
        if len(self._calls) >= CHUNK or (self._calls and len(self._calls[0].step) != len(step)):
            self._measure()
        self._query = query
        self._calls.append(_Call(columns, step, real, ids, not state.behind))

    def keep(
        self,
        edit: int,
        site: Site,
        before: Float[Tensor, "batch tokens d"],
        after: Float[Tensor, "batch tokens d"],
        chosen: Bool[Tensor, "batch tokens"] | None,
        state: State,
    ) -> None:
        """Record one edit at one block: states before and after, and the tokens it acted on (None for no tokens)."""
        call = self._calls[-1]
        states = call.take(before)
        score, fired = (x.get(edit) for x in (state.token_score, state.token_fired))
        acted, scored, open_ = (None if x is None else call.take(x) for x in (chosen, score, fired))
        changed = states if after is before else call.take(after)
        call.kept[edit, site] = Seen(states, changed, acted, scored, open_, state.held.get(edit))
        self._query = state.query

    def trace(self, *, beam_indices: Int[Tensor, "rows tokens"] | None = None) -> SteeringTrace:
        """The trace of the latest batch, on the CPU.

        Args:
            beam_indices: `beam_indices` from `generate(..., return_dict_in_generate=True)` with beam search; the trace
                then follows the winning beams back through every step.

        Raises:
            RMuseError: nothing was recorded.
        """
        self._measure()
        if self._plan is None or self._query is None or not self._measured:
            raise RMuseError(
                "a generation or forward pass under a plan with edits was required, none was recorded yet; run one "
                "with recorder=… first"
            )
        calls = [call for group, _ in self._measured for call in group]
        rows = len(calls[-1].step)
        step, real, ids = (
            torch.cat([_grown(getattr(c, name), rows) for c in calls], dim=1).cpu()
            for name in ("step", "real", "ids")
        )
        there = real & (step >= 0)
        row, column = there.nonzero(as_tuple=True)
        at = step[row, column]
        width = int(at.max()) + 1 if len(at) else 0
        present = torch.zeros(rows, width, dtype=torch.bool)
        present[row, at] = True
        placed = torch.full((rows, width), -1, dtype=torch.int64)
        placed[row, at] = ids[row, column].long()
        columns: dict[str, Tensor] = {}
        for name in self._measured[0][1]:
            values = torch.cat([_grown(found[name], rows) for _, found in self._measured], dim=2).cpu()
            columns[name] = torch.full((rows, len(self._sites), width), _EMPTY[name]).to(values.dtype)
            columns[name][row, :, at] = values[row, :, column]
        columns |= self._decided(columns, rows, width)
        if beam_indices is not None:
            first = [_grown(torch.where(c.real, c.step, 0).amax(dim=1), rows) for c in calls if c.given]
            taken, alive = _along(beam_indices.cpu(), torch.stack(first).amax(dim=0).cpu(), width)
            present = present.gather(0, taken) & alive
            placed = placed.gather(0, taken)
            columns = {
                name: values.gather(0, taken.unsqueeze(1).expand(-1, len(self._sites), -1))
                for name, values in columns.items()
            }
        ends = torch.isin(placed[:, 1:], torch.tensor(sorted(self._stop), dtype=placed.dtype))
        present[:, 1:] &= ends.cumsum(dim=1) == 0
        for name, values in columns.items():
            shown = present.unsqueeze(1)
            if name not in ("fired", "acted"):
                shown = shown & ~columns["norm_before"].isnan()
            columns[name] = torch.where(shown, values, torch.tensor(_EMPTY[name], dtype=values.dtype))
        names = tuple(
            TraceSite(self._query.decision.names[i], site.layer, site.hook) for i, site in self._sites
        )
        return SteeringTrace(names, present, torch.where(present, placed, -1), **columns)

    @property
    def _sites(self) -> list[tuple[int, Site]]:
        assert self._plan is not None
        return [(i, site) for i, edit in enumerate(self._plan) for site in edit.sites]

    def _decided(self, found: Mapping[str, Tensor], rows: int, width: int) -> dict[str, Tensor]:
        """Combine scores and decisions per query with those per token; clear rows that an edit does not apply to."""
        assert self._plan is not None
        assert self._query is not None
        query = self._query.repeated(rows)
        score, fired, length = (found[name].clone() for name in ("score", "fired", "norm_before"))
        margin = torch.full_like(score, torch.nan)
        for place, (index, _) in enumerate(self._sites):
            edit = self._plan[index]
            if edit.gate is None or edit.per == "query":
                score[:, place] = query.decision.score[:, index].float().cpu().unsqueeze(1)
                fired[:, place] = query.decision.fired[:, index].cpu().unsqueeze(1)
            if edit.gate is not None:
                margin[:, place] = (score[:, place] - edit.gate.threshold) / edit.gate.scale
            if edit.modality is not None:
                other = (query.has_image != (edit.modality == "image")).cpu()
                length[other, place] = torch.nan
                fired[other, place] = False
        return {"score": score, "margin": margin, "fired": fired, "norm_before": length}

    def _measure(self) -> None:
        """Measure the held states and release them."""
        if self._plan is None:
            return
        # An interrupted pass has not seen all sites and is not counted.
        whole = [c for c in self._calls if len(c.kept) == len(self._sites) and c.step.shape[1]]
        self._calls = []
        if not whole or not self._sites:
            return
        step = torch.cat([c.step for c in whole], dim=1)
        parts = []
        for index, site in self._sites:
            edit = self._plan[index]
            operator = edit.operator_at(site)
            assert operator is not None
            rrs = protection(edit, site, operator, self._subspaces)
            found = quantities(operator, rrs, [c.kept[index, site] for c in whole], step)
            parts.append({name: values.to(step.device) for name, values in found.items()})
        found = {name: torch.stack([part[name] for part in parts], dim=1) for name in parts[0]}
        self._measured.append(([_Call(None, c.step, c.real, c.ids, c.given) for c in whole], found))


_EMPTY: Final[dict[str, float | int | bool]] = {
    name: {"prototype": -1, "fired": False, "acted": False}.get(name, math.nan) for name in SITE_COLUMNS
}
"""The value that means "none", by quantity."""


def _grown(x: Tensor, rows: int) -> Tensor:
    """Repeat each row for its beams or samples, which are adjacent, up to `rows` rows."""
    return x if len(x) == rows else x.repeat_interleave(rows // len(x), dim=0)


def _along(
    beams: Int[Tensor, "out steps"], first: Int[Tensor, " rows"], width: int
) -> tuple[Int[Tensor, "out tokens"], Bool[Tensor, "out tokens"]]:
    """The row in which each token of the winning beams was predicted, and whether there is such a token.

    Args:
        beams: beam indices from transformers, −1 after the end.
        first: step of the last given token of each row, from which the first new token is predicted.
        width: number of tokens in the trace.
    """
    ahead = torch.arange(width).unsqueeze(0) - first[beams[:, 0]].unsqueeze(1)
    known = ahead < beams.shape[1]
    row = beams.gather(1, ahead.clamp(0, beams.shape[1] - 1))
    return row.clamp_min(0), known & (row >= 0)
