"""Choosing a gate on fitting data: kind, block, read-out and threshold, by grouped cross-validation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp.calibration import Threshold, ThresholdRule, auroc, choose_threshold
from rmuse_interp.errors import RMuseError
from rmuse_interp.gates.contrast import fit_contrast
from rmuse_interp.gates.discriminant import fit_discriminant
from rmuse_interp.gates.gate import Gate, Readout

GateKind = Literal["contrast", "discriminant"]
"""Nearest-neighbour contrast, or shrinkage linear discriminant."""

GATE_KINDS: Final[tuple[GateKind, ...]] = get_args(GateKind)
_FITS: Final[dict[str, Callable[..., Gate]]] = {"contrast": fit_contrast, "discriminant": fit_discriminant}


@dataclass(frozen=True, eq=False)
class GateStates:
    """States of both sides at one block and read-out, with the groups that are held out together.

    A group is whatever fresh data will differ in: the rendering or wording where the same people come back,
    the person where other people come. Labels are shared between the sides (a wording is held out on both
    at once).

    Args:
        forget: states of forget queries.
        others: states of the queries that must not be steered.
        forget_groups: one label per forget state.
        other_groups: one label per other state.
    """

    forget: Float[Tensor, "examples d"]
    others: Float[Tensor, "others d"]
    forget_groups: Sequence[str]
    other_groups: Sequence[str]

    def __post_init__(self) -> None:
        for side, states, groups in (
            ("forget", self.forget, self.forget_groups),
            ("other", self.others, self.other_groups),
        ):
            if len(states) != len(groups) or not len(states):
                raise RMuseError(
                    f"one group per {side} state was required, at least one, got {len(groups)} for {len(states)}"
                )


@dataclass(frozen=True)
class GateRow:
    """One candidate and what cross-validation says of it.

    Attributes:
        kind: of gate.
        layer: 0-based block read.
        readout: which tokens are read.
        auroc: of held-out scores.
        fpr_at_99_tpr: share of other queries that fire when 99 % of the forget ones do.
        separation: gap between the 1 % quantile of forget and the 99 % quantile of other scores, in units
            of their
            pooled standard deviation; negative where they overlap.
        threshold: chosen on held-out scores, with expected rates.
        held_out: whether forget scores were held out; a single forget state cannot be.
    """

    kind: GateKind
    layer: int
    readout: Readout
    auroc: float
    fpr_at_99_tpr: float
    separation: float
    threshold: Threshold
    held_out: bool


@dataclass(frozen=True, eq=False)
class GateSelection:
    """The gate chosen, fitted on all the states, and the table it was chosen from (best first)."""

    gate: Gate
    table: tuple[GateRow, ...]

    @property
    def row(self) -> GateRow:
        """The row of the gate chosen."""
        return self.table[0]


def select_gate(
    candidates: Mapping[tuple[int, Readout], GateStates],
    *,
    kinds: Sequence[GateKind] = GATE_KINDS,
    folds: int = 5,
    rule: ThresholdRule = "midpoint",
    level: float | None = None,
    seed: int = 0,
) -> GateSelection:
    """The best gate over blocks, read-outs and kinds, judged by scores of groups it was not fitted on.

    Every candidate is fitted on all groups but one fold's and scores that fold. Candidates are ranked by
    AUROC to three digits, then by separation, then by the lower block (which more often spares the second
    pass). The threshold is that of the held-out scores; the gate returned is fitted on everything.

    Args:
        candidates: states by block and read-out; no scoring data belongs here.
        kinds: of gate to try.
        folds: the most folds; never more than there are groups on the smaller side.
        rule: see `choose_threshold`.
        level: see `choose_threshold`.
        seed: of the order in which groups are dealt to folds.

    Raises:
        RMuseError: no candidates, or states that are not finite.
    """
    if not candidates or not kinds:
        raise RMuseError("at least one (block, read-out) and one kind of gate are needed")
    found = []
    for (layer, readout), states in candidates.items():
        for kind in kinds:
            forget, others, held_out = held_out_scores(states, kind, layer, readout, folds=folds, seed=seed)
            found.append(_row(kind, layer, readout, forget, others, rule, level, held_out))
    order = sorted(range(len(found)), key=lambda i: _rank(found[i]))
    best = found[order[0]]
    states = candidates[best.layer, best.readout]
    gate = _FITS[best.kind](
        states.forget,
        states.others,
        layer=best.layer,
        readout=best.readout,
        threshold=best.threshold.value,
    )
    return GateSelection(gate, tuple(found[i] for i in order))


def held_out_scores(
    states: GateStates, kind: GateKind, layer: int, readout: Readout, *, folds: int = 5, seed: int = 0
) -> tuple[Float[Tensor, " examples"], Float[Tensor, " others"], bool]:
    """Scores of the forget and of the other states, each by a gate that was not fitted on its group.

    A side with a single group is split by rows, and a side with a single row is never held out; its scores
    are then those of a gate that remembers it.

    Returns:
        Forget scores, other scores, and whether the forget ones were held out.
    """
    forget_fold, other_fold = _deal(states.forget_groups, states.other_groups, folds, seed)
    forget = torch.full((len(states.forget),), torch.nan, dtype=torch.float64)
    others = torch.full((len(states.others),), torch.nan, dtype=torch.float64)
    for fold in sorted({*forget_fold.tolist(), *other_fold.tolist()}):
        out_f, out_o = forget_fold == fold, other_fold == fold
        keep_f = ~out_f if bool((~out_f).any()) else torch.ones_like(out_f)
        keep_o = ~out_o if bool((~out_o).any()) else torch.ones_like(out_o)
        gate = _FITS[kind](states.forget[keep_f], states.others[keep_o], layer=layer, readout=readout)
        forget[out_f] = gate.score(states.forget[out_f]).double().cpu()
        others[out_o] = gate.score(states.others[out_o]).double().cpu()
    return forget, others, len(states.forget) > 1


def _deal(
    forget_groups: Sequence[str], other_groups: Sequence[str], folds: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Fold of each state: labels are dealt in turn, those of forget states first, so that every fold has some."""
    sides = []
    for name, groups in (("forget", forget_groups), ("other", other_groups)):
        # One group alone cannot be held out: then rows are.
        sides.append(
            [f"{name} row {i}" for i in range(len(groups))] if len(set(groups)) < 2 else list(groups)
        )
    count = max(2, min(folds, len(set(sides[0])), len(set(sides[1]))))
    draw = torch.Generator().manual_seed(seed)
    fold: dict[str, int] = {}
    for side in sides:
        fresh = sorted(set(side) - set(fold))
        for turn, i in enumerate(torch.randperm(len(fresh), generator=draw).tolist()):
            fold[fresh[i]] = turn % count
    return torch.tensor([fold[g] for g in sides[0]]), torch.tensor([fold[g] for g in sides[1]])


def _row(
    kind: GateKind,
    layer: int,
    readout: Readout,
    forget: Tensor,
    others: Tensor,
    rule: ThresholdRule,
    level: float | None,
    held_out: bool,
) -> GateRow:
    strict = choose_threshold(forget, others, "target_tpr", 0.99)
    spread = float(torch.cat([forget - forget.mean(), others - others.mean()]).std(correction=0))
    gap = float(forget.quantile(0.01) - others.quantile(0.99))
    return GateRow(
        kind,
        layer,
        readout,
        auroc(forget, others),
        strict.fpr.value,
        gap / spread if spread > 0 else 0.0,
        choose_threshold(forget, others, rule, level),
        held_out,
    )


def _rank(row: GateRow) -> tuple[float, float, int]:
    return (-round(row.auroc, 3), -row.separation, row.layer)
