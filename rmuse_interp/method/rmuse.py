"""R-MUSE (arXiv 2512.17911) as one expression over edits, assembled from arrays: this room never sees a model.

`paper` is the method as written; `calibrated` is the repaired one and the default. Both are built from the same
`Evidence`, so that what differs between them is the expression alone:

* `paper`: z-scored subspaces, RRS and gate on `g ⊕ q`, `steer iff ‖P_rrs h‖/‖h‖ < τ`, rotation toward the signed
  protected direction by the adaptive angle (eqs. 4.1 to 4.18).
* `calibrated`: scaled differences mapped back, a contrastive gate chosen by cross-validation, transport to
  refusal states of the same step, inside the complement of the RRS (repairs D1 to D5).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Final, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.data.sealed import read_sealed, write_sealed
from rmuse_interp.data.store import JSON, atomic_files, newest, read_tensors, write_tensors
from rmuse_interp.edits import bundle
from rmuse_interp.edits.plan import Edit, Modality, Plan
from rmuse_interp.maths.statistics import auroc
from rmuse_interp.models.loaded import LoadedModel
from rmuse_interp.parts.angle import ACS
from rmuse_interp.parts.gates import (
    GATE_KINDS,
    Gate,
    GateKind,
    GateSelection,
    GateStates,
    Read,
    Readout,
    RRSAlignment,
    select_gate,
)
from rmuse_interp.parts.part import from_record, to_record
from rmuse_interp.parts.pooled import Pooled
from rmuse_interp.parts.prototypes import Prototypes
from rmuse_interp.parts.retain import RetainSubspace, Subspaces, fit_retain
from rmuse_interp.parts.subspace import Subspace
from rmuse_interp.parts.unlearning import Standardise, UnlearningSubspace, fit_unlearning

PresetName = Literal["paper", "calibrated"]
PRESETS: Final[tuple[PresetName, ...]] = get_args(PresetName)
SCHEMA: Final = "rmuse-bundle/3"
RECORD: Final = "rmuse.json"
"""The file of a bundle with the report, and the hashes of the others."""
TENSORS: Final = "subspaces.safetensors"

_OTHERS: Final = (bundle.RECORD, bundle.TENSORS, TENSORS)

ENERGY: Final = 0.8
"""η of eq. 4.4, the paper's."""
CAP: Final = 64
"""The most directions of a subspace; the paper states none."""
TAU: Final = 0.85
"""τ of eq. 4.7, the paper's."""
SPANS: Final = ("cot", "answer")
"""The spans of a response that the unlearning direction is a hybrid of (eq. 4.2)."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """All data collected for one kind of query (with an image, or without).

    Attributes:
        own: x⁻, pooled `cot` and `answer` states of the model's own responses to forget queries.
        refusal: x⁺, the same for ideal refusals to `g ⊕ q`, with the same ids.
        refused_with: id → which refusal of the pool is used in x⁺.
        step, direct: pooled states of stepwise and direct responses to retain and reasoning queries q.
        step_prefixed, direct_prefixed: the same for `g ⊕ q`.
        groups: retain id → group it is balanced by (`people`, `reasoning`).
        tokens: states along the refusals, all blocks.
        position: step of each of those tokens, 0 at the last prompt token.
        template: which of the distinct refusals each of those tokens belongs to.
        readouts: prompt states by read-out, of forget and other queries alike.
        prefixed: last-token states of `g ⊕ q`, one fixed g, of forget and other queries.
        forget: id in `readouts` that must be steered → its cross-validation group.
        others: id that must not be steered → its group.
        people: id of either kind → the person it is about (hashed); the clusters of gates that have them.
        refusals: the distinct refusals that `template` numbers, in words.
        run: which followed refusal each token of `tokens` belongs to, counted from 0.
        run_own: whether the model itself said each followed refusal.
        run_stepwise: whether each was asked for reasoning; a model without a template refuses all questions alike: True.
        starts: last-token states of the questions q that were put to the model so that it refuses.
        start_text: which of `refusals` each of them drew; −1 for one that was imposed, or none.
        start_stepwise: whether each asks for reasoning, as in `run_stepwise`.
    """

    own: Mapping[str, Pooled]
    refusal: Mapping[str, Pooled]
    refused_with: Mapping[str, int]
    step: Mapping[str, Pooled]
    direct: Mapping[str, Pooled]
    step_prefixed: Mapping[str, Pooled]
    direct_prefixed: Mapping[str, Pooled]
    groups: Mapping[str, str]
    tokens: Float[Tensor, "tokens layers d"]
    position: Int[Tensor, " tokens"]
    template: Int[Tensor, " tokens"]
    readouts: Mapping[Readout, Pooled]
    prefixed: Pooled
    forget: Mapping[str, str]
    others: Mapping[str, str]
    people: Mapping[str, str] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    run: Int[Tensor, " tokens"] | None = None
    run_own: tuple[bool, ...] = ()
    run_stepwise: tuple[bool, ...] = ()
    starts: Pooled | None = None
    start_text: tuple[int, ...] = ()
    start_stepwise: tuple[bool, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        """The collected blocks."""
        return self.prefixed.layers


@dataclass(frozen=True, eq=False)
class RMuse:
    """A fitted R-MUSE: the plan to run, the subspaces it was built from and a report of the fit (plain JSON)."""

    plan: Plan
    subspaces: Subspaces
    report: JSON = field(default_factory=dict)

    def __repr__(self) -> str:
        lines = [f"RMuse {self.preset}, {len(self.report.get('people', ()))} people to forget"]
        for edit in self.plan:
            layers = ", ".join(str(layer) for layer in edit.layers)
            gate = "" if edit.gate is None else f", if {edit.gate.describe()}"
            lines.append(f"{edit.modality or 'all'} queries: steered at blocks {layers}{gate}")
        return "\n".join(lines)

    @property
    def preset(self) -> str:
        """`paper` or `calibrated`."""
        return str(self.report.get("preset", "custom"))

    @property
    def gates(self) -> dict[str, Gate]:
        """The gate of each kind of query."""
        return {e.modality or "any": e.gate for e in self.plan if e.gate is not None}

    @property
    def gate(self) -> Gate:
        """The gate of image queries (of text queries where the benchmark has no images).

        Raises:
            RMuseError: a plan without gates.
        """
        gates = self.gates
        if not gates:
            raise RMuseError("this plan has no gate; fit one with rmuse_interp.fit(model, benchmark)")
        return gates.get("image", next(iter(gates.values())))

    def save(self, folder: str | Path) -> Path:
        """Write the bundle, as safetensors and JSON: plan, subspaces and report, each with a hash that `load` checks.

        An interruption leaves the earlier bundle of the folder or the new one, whole.
        """
        path = Path(folder)
        tree, tensors = to_record(self.subspaces)
        with atomic_files(path, last=RECORD) as draft:
            self.plan.save(draft)
            write_tensors(draft / TENSORS, tensors)
            record = {"schema": SCHEMA, "report": self.report, "subspaces": tree}
            write_sealed(draft / RECORD, record, _OTHERS)
        return path

    @classmethod
    def load(
        cls, folder: str | Path, model: LoadedModel | None = None, allow: str | Sequence[str] = ()
    ) -> "RMuse":
        """The bundle that `save` wrote, checked against `model` if given.

        Args:
            folder: the bundle.
            model: the `LensModel` to run it on.
            allow: modules whose own parts may be loaded; see `Plan.load`.

        Raises:
            RMuseError: no bundle there, another schema, a damaged one, files of different savings, or one fitted on
                another model (says what differs).
        """
        path = Path(folder)
        if not newest(path, RECORD).is_file():
            raise RMuseError(
                f"required a bundle with {RECORD} in {path}, got none; write one with `rmuse fit`"
            )
        record = read_sealed(path, RECORD, SCHEMA, _OTHERS, f"fit it again, with `rmuse fit --out {path}`")
        subspaces = from_record(record.get("subspaces"), read_tensors(newest(path, TENSORS))[0], allow)
        report = record.get("report")
        if not isinstance(subspaces, Subspaces) or not isinstance(report, dict):
            raise RMuseError(
                f"subspaces and a report were required in {path / RECORD}, got a {type(subspaces).__name__} and a "
                f"{type(report).__name__}: fit it again"
            )
        return cls(Plan.load(path, model, allow), subspaces, report)


def middle_third(n_layers: int) -> list[int]:
    """The paper's layers: blocks 10 to 20 of LLaVA-1.5-7B's 32.

    >>> middle_third(32) == list(range(10, 21)), middle_third(8)
    (True, [2, 3, 4])
    """
    return list(range(n_layers // 3, 2 * n_layers // 3))


def subspaces_at(
    evidence: Evidence, layer: int, literal: bool, spans: Sequence[str] = SPANS, energy: float = ENERGY
) -> tuple[UnlearningSubspace, RetainSubspace]:
    """`U_un` and `U_rrs` of one block; `literal` is the paper's z-scored form on `g ⊕ q`, else D1 repaired.

    A span that is left out of `spans` counts as no difference in `U_un` (`Z(0) = 0` in eq. 4.2); `U_rrs` keeps both,
    and is of the rank that holds the share `energy`.

    Raises:
        RMuseError: no span, or one that is none of `SPANS`.
    """
    if not spans or not set(spans) <= set(SPANS):
        raise RMuseError(f"spans out of {', '.join(SPANS)} were required, at least one, got {list(spans)}")
    own, refusal = evidence.own, evidence.refusal
    standardise: Standardise = "zscore" if literal else "scale"
    ids = refusal["answer"].ids
    unlearning = fit_unlearning(
        *(
            side[span].select(ids).at(layer) * (span in spans)
            for span in ("answer", "cot")
            for side in (refusal, own)
        ),
        standardise=standardise,
        energy=ENERGY,
        cap=CAP,
        map_back=not literal,
        oriented=not literal,
        ids=ids,
    )
    step = evidence.step_prefixed if literal else evidence.step
    direct = evidence.direct_prefixed if literal else evidence.direct
    kept = step["answer"].ids
    retain = fit_retain(
        step["answer"].at(layer),
        direct["answer"].select(kept).at(layer),
        step["cot"].select(kept).at(layer),
        direct["answer"].select(kept).at(layer),
        groups=[evidence.groups[i] for i in kept],
        ids=kept,
        standardise=standardise,
        energy=energy,
        cap=CAP,
        map_back=not literal,
    )
    return unlearning, retain


def paper_gate(evidence: Evidence, retain: Mapping[int, RetainSubspace], prefix: str) -> Gate:
    """The literal gate (eq. 4.7) at the block of best AUROC on the fitting queries; τ stays the paper's."""

    def separation(layer: int) -> float:
        scores = RRSAlignment(retain[layer].subspace).score(evidence.prefixed.at(layer))
        rows = {name: i for i, name in enumerate(evidence.prefixed.ids)}
        return auroc(
            scores[[rows[i] for i in evidence.forget if i in rows]],
            scores[[rows[i] for i in evidence.others if i in rows]],
        )

    best = max(retain, key=separation)
    return Gate(RRSAlignment(retain[best].subspace), Read(best, "last", prefix), -TAU)


def paper_edit(
    evidence: Evidence, modality: Modality, layers: Sequence[int], prefix: str, spans: Sequence[str] = SPANS
) -> tuple[Edit, Subspaces]:
    """The paper's edit for one kind of query (eqs. 4.7 to 4.18), steering the blocks given.

    Direction and prototypes are fitted on `spans` alone (both, unless one is to be ablated).
    """
    fitted = {layer: subspaces_at(evidence, layer, literal=True, spans=spans) for layer in evidence.layers}
    steer: dict[int, op.Operator] = {}
    for layer in layers:
        unlearning, retain = fitted[layer]
        states, groups = [], []
        for span in spans:
            states.append(evidence.refusal[span].at(layer))
            groups += [f"{span}-{evidence.refused_with[i]}" for i in evidence.refusal[span].ids]
        prototypes = Prototypes.pooled(torch.cat(states), groups)
        turn = op.SlerpToward(unlearning.direction, ACS(prototypes, "frechet"), signed=True)
        steer[layer] = turn.keeping(retain.subspace, "direction")
    gate = paper_gate(evidence, {layer: pair[1] for layer, pair in fitted.items()}, prefix)
    edit = op.layerwise(steer).on("generated").given(modality).when(gate).named(modality)
    return edit, _kept(modality, {layer: fitted[layer] for layer in layers})


def gate_candidates(evidence: Evidence) -> dict[tuple[int, Readout], GateStates]:
    """States of both sides by block and read-out, with groups and people: what a gate is chosen from."""
    candidates: dict[tuple[int, Readout], GateStates] = {}
    for readout, pooled in evidence.readouts.items():
        rows = {name: i for i, name in enumerate(pooled.ids)}
        forget = [i for i in evidence.forget if i in rows]
        others = [i for i in evidence.others if i in rows]
        for layer in evidence.layers:
            states = pooled.at(layer)
            candidates[layer, readout] = GateStates(
                states[[rows[i] for i in forget]],
                states[[rows[i] for i in others]],
                [evidence.forget[i] for i in forget],
                [evidence.others[i] for i in others],
                [evidence.people[i] for i in forget] if evidence.people else None,
                [evidence.people[i] for i in others] if evidence.people else None,
            )
    return candidates


def calibrated_gate(evidence: Evidence, kinds: Sequence[GateKind] = GATE_KINDS) -> GateSelection:
    """The gate of `calibrated`: kind, block, read-out and threshold by grouped cross-validation on fitting data."""
    return select_gate(gate_candidates(evidence), kinds=kinds)


Protection = Callable[[Subspace, Evidence, int], Subspace | None]
"""What of the RRS of a block is kept as it is while steering; None for nothing."""


def whole(rrs: Subspace, evidence: Evidence, layer: int) -> Subspace | None:
    """The RRS itself."""
    return rrs


Target = Callable[[Evidence, int, UnlearningSubspace], op.Operator]
"""Steering target: builds an operator, not yet protected, from the evidence, a block and its `U_un`."""


def nearest_in_step(evidence: Evidence, layer: int, unlearning: UnlearningSubspace) -> op.Operator:
    """Transport to the nearest refusal state of the same step: the target of `calibrated`."""
    states = evidence.tokens[:, evidence.layers.index(layer)]
    prototypes = Prototypes.token_level(states, evidence.position, evidence.template)
    return op.Transport(prototypes.points, prototypes.positions)


def calibrated_edit(
    evidence: Evidence,
    modality: Modality,
    layers: Sequence[int],
    gate: Gate | None,
    target: Target = nearest_in_step,
    energy: float = ENERGY,
    protect: Protection = whole,
    strength: float = 1.0,
) -> tuple[Edit, Subspaces]:
    """The repaired edit for one kind of query: steered to refusals, inside the complement of the RRS.

    Args:
        evidence: of this kind of query.
        modality: which kind it is.
        layers: 0-based blocks to steer.
        gate: decides what is steered; None steers all.
        target: what is steered to.
        energy: share of the variance that the RRS holds.
        protect: what of the RRS is kept.
        strength: share of the way to the target; other than 1 only for operators with a `fraction`.
    """
    fitted = {layer: subspaces_at(evidence, layer, literal=False, energy=energy) for layer in layers}
    steer: dict[int, op.Operator] = {}
    for layer, (unlearning, retain) in fitted.items():
        operator = target(evidence, layer, unlearning)
        if strength != 1.0:
            operator = operator.changed(fraction=strength)
        kept = protect(retain.subspace, evidence, layer)
        steer[layer] = operator if kept is None else operator.keeping(kept, "rotation")
    edit = op.layerwise(steer).on("generated").given(modality).when(gate).named(modality)
    return edit, _kept(modality, fitted)


def together(parts: Sequence[tuple[Edit, Subspaces]], report: JSON) -> RMuse:
    """One R-MUSE out of the edits of all kinds of query."""
    if not parts:
        raise RMuseError("nothing was fitted: the forget set has neither image nor text questions")
    plan = reduce(lambda left, right: left >> right, [edit for edit, _ in parts[1:]], Plan([parts[0][0]]))
    unlearning: dict[str, UnlearningSubspace] = {}
    retain: dict[str, RetainSubspace] = {}
    for _, subspaces in parts:
        unlearning |= dict(subspaces.unlearning.items())
        retain |= dict(subspaces.retain.items())
    return RMuse(plan, Subspaces(unlearning, retain), report)


def _kept(modality: str, fitted: Mapping[int, tuple[UnlearningSubspace, RetainSubspace]]) -> Subspaces:
    return Subspaces(
        {f"{modality}-{layer}": pair[0] for layer, pair in fitted.items()},
        {f"{modality}-{layer}": pair[1] for layer, pair in fitted.items()},
    )
