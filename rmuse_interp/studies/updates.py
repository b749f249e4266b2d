"""Steering updates of the states of given responses, and their share inside the RRS: rows of `updates`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

import rmuse_interp.operators as op
from rmuse_interp.diagnostics import Null, UpdateShare, update_share
from rmuse_interp.diagnostics.steered import States, Steered, steered
from rmuse_interp.edits.plan import Edit, Modality, Plan, Tokens
from rmuse_interp.fitting.collect import Query, trajectories
from rmuse_interp.maths.statistics import Estimate
from rmuse_interp.method.rmuse import RMuse
from rmuse_interp.operators import Follow, Operator, SlerpToward, Transport
from rmuse_interp.parts.part import same
from rmuse_interp.parts.subspace import Subspace
from rmuse_interp.studies.common import Record, places, short, steering
from rmuse_interp.studies.fits import World


@dataclass(frozen=True, eq=False)
class Case:
    """One method, fitted twice: `everywhere` for the geometry of every block, and at its own blocks for its updates."""

    preset: str
    everywhere: RMuse
    fitted: RMuse


def unsteered(world: World, queries: Sequence[Query]) -> States:
    """The unsteered states of the same responses."""
    runs = trajectories(
        world.lens,
        queries,
        delimiters=world.benchmark.delimiters,
        batch_size=world.given.batch_size,
        progress=world.progress,
        label="unsteered",
    )
    return {layer: {t.id: t.states[:, layer] for t in runs} for layer in range(world.lens.n_layers)}


def updates_of(
    world: World, case: Case, modality: Modality, queries: Sequence[Query], plain: States
) -> list[Record]:
    """Shares of the updates on reasoning queries of one kind; empty if the case does not steer that kind."""

    def run_plan(plan: Plan, label: str) -> Steered:
        label = f"{case.preset}, {modality}: {label}"
        size = world.given.batch_size
        return steered(world.lens, plan, queries, batch_size=size, progress=world.progress, label=label)

    shares = Shares(case, modality, world.given.seed)
    if shares.layers:
        fired = together(shares, plain, run_plan)
        alone(shares, plain, fired)
    return shares.rows


@dataclass(frozen=True, eq=False)
class Shares:
    """Rows of `updates` for one case and kind of query."""

    case: Case
    modality: Modality
    seed: int
    rows: list[Record] = field(default_factory=list)

    @property
    def layers(self) -> list[int]:
        """The blocks whose RRS was fitted for this kind of query."""
        return sorted(layer for kind, layer in places(self.case.everywhere) if kind == self.modality)

    def rrs(self, layer: int) -> Subspace:
        """The RRS of a block."""
        return self.case.everywhere.subspaces.at(self.modality, layer)[1].subspace

    def edit_of(self, plan: Plan) -> Edit:
        """The plan's edit for this kind of query."""
        return next(edit for edit in plan if edit.modality in (None, self.modality))

    def add(
        self, before: Mapping[str, Tensor], after: Mapping[str, Tensor], layer: int, **labels: object
    ) -> None:
        """Measure one set of updates and keep the row."""
        found = update_share(before, after, self.rrs(layer), self.seed)
        row = {
            "preset": self.case.preset,
            "modality": self.modality,
            "layer": layer,
            **labels,
            **as_row(found),
        }
        if (labels["run"], labels["measure"]) == ("plan", "update"):
            row["per_example"] = {name: short(value) for name, value in found.per_example.items()}
        self.rows.append(row)


def together(
    shares: Shares, plain: States, run_plan: Callable[[Plan, str], Steered]
) -> dict[str, bool | None]:
    """Measure the plan in each form of protection, gates forced open and deciding; return id → their decision."""
    plan = shares.case.fitted.plan
    edit = shares.edit_of(plan)
    first = min(edit.layers)
    forms, own = in_forms(steering(edit)[first], shares.rrs(first))
    fired: dict[str, bool | None] = {}
    for protection in forms:
        for gate in ("open", "gated"):
            found = run_plan(variant_of(edit, shares, protection, gate == "open"), f"{protection}, {gate}")
            labels = {"run": "plan", "protection": protection, "own": protection == own, "gate": gate}
            fired = found.fired if gate == "gated" else fired
            for layer in shares.layers:
                after = found.after[layer]
                if layer in edit.layers:
                    shares.add(found.before[layer], after, layer, measure="update", **labels)
                if layer >= min(edit.layers):
                    shares.add(plain[layer], after, layer, measure="arrived", **labels)
    return fired


def alone(shares: Shares, plain: States, fired: Mapping[str, bool | None]) -> None:
    """Measure each block steered alone: its input states are unsteered, so the operator is applied directly."""
    edit = shares.edit_of(shares.case.everywhere.plan)
    for layer, operator in steering(edit).items():
        before = plain[layer]
        forms, own = in_forms(operator, shares.rrs(layer))
        for protection, form in forms.items():
            moved = {name: applied(form, edit.tokens, h) for name, h in before.items()}
            labels: Record = {"run": "alone", "measure": "update"}
            labels |= {"protection": protection, "own": protection == own}
            shares.add(before, moved, layer, gate="open", **labels)
            if edit.per == "query":
                gated = {name: h if fired[name] is False else moved[name] for name, h in before.items()}
                shares.add(before, gated, layer, gate="gated", **labels)


def variant_of(edit: Edit, shares: Shares, protection: str, forced: bool) -> Plan:
    """The plan of one edit with another protection, its gate kept or forced open."""
    operators = {
        layer: in_forms(operator, shares.rrs(layer))[0][protection]
        for layer, operator in steering(edit).items()
    }
    gate = None if forced else edit.gate
    changed = op.layerwise(operators).on(edit.tokens).given(edit.modality).when(gate, edit.per)
    return Plan([changed], shares.case.fitted.plan.fingerprint)


def in_forms(operator: Operator, rrs: Subspace) -> tuple[dict[str, Operator], str]:
    """An operator in every form of protection that it can have, and the name of its own form.

    `none`; `direction`: v̂ has its RRS part removed while the whole h is rotated (eq. 4.10); `rotation`: everything
    inside the RRS complement (D5). Its own form is the operator itself; `room` keeps a part of the RRS only.
    """
    bare: Operator = operator
    own = "none"
    if isinstance(operator, SlerpToward | Transport | Follow) and operator.rrs is not None:
        kept = "rotation" if isinstance(operator, Follow) else operator.kept
        bare, own = operator.changed(rrs=None), kept if same(operator.rrs, rrs) else "room"
    forms = {"none": bare}
    if isinstance(operator, SlerpToward):
        forms["direction"] = bare.keeping(rrs, "direction")
    forms["rotation"] = bare.keeping(rrs, "rotation")
    return forms | {own: operator}, own


def applied(operator: Operator, tokens: Tokens, h: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Teacher-forced states of one query after an operator, applied to the tokens that an edit takes; row t is step t.

    Args:
        operator: the operator to apply.
        tokens: the edit's choice of tokens; `all` and `generated` are equal here, as the prompt is not included.
        h: states from the last prompt token on, shape (n, d).
    """
    step = torch.arange(len(h), device=h.device)
    taken = {"prompt_end": step == 0, "prompt": step == 0, "response": step > 0}.get(tokens, step >= 0)
    row = operator(h.unsqueeze(0), step.unsqueeze(0)).squeeze(
        0
    )  # a whole row: some operators choose at its start
    return torch.where(taken.unsqueeze(1), row, h)


def as_row(found: UpdateShare) -> Record:
    """The measured part of one row."""
    share, low, high = ends(found.share)
    change, change_low, change_high = ends(found.change)
    return {
        "n": found.n,
        "n_updated": found.updated,
        "share": share,
        "low": low,
        "high": high,
        "null": pair(found.null),
        "z": None if found.share is None else short(found.null.z(found.share.value)),
        "change": change,
        "change_low": change_low,
        "change_high": change_high,
    }


def ends(found: Estimate | None) -> tuple[float | None, float | None, float | None]:
    """A value and the two ends of its interval, for JSON."""
    return (None, None, None) if found is None else (short(found.value), short(found.low), short(found.high))


def pair(null: Null) -> dict[str, float | None]:
    """A null distribution as JSON."""
    return {"mean": short(null.mean), "sd": short(null.sd)}
