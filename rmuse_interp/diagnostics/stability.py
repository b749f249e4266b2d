"""How far do `U_un` and `U_rrs` depend on which people are in the fitting data? Refits on bootstrap resamples.

People, not questions, are resampled: questions about one person are not independent examples. A refit on a resample is
a weighted fit on the examples drawn, so that no model is run and every Gram matrix stays small.

This is not a confidence interval of an overlap in the population. A resample holds fewer distinct people than the
fitting data, so that its ranks are lower and its subspaces noisier: read the range as possible fits on data of the same
kind, and a wide range as "the data do not determine this subspace".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import energy_rank
from rmuse_interp.maths.sphere import unit
from rmuse_interp.maths.statistics import resampled
from rmuse_interp.method.rmuse import Evidence
from rmuse_interp.parts.retain import RetainSubspace
from rmuse_interp.parts.unlearning import UnlearningSubspace, span_hybrid

RESAMPLES: Final = 100


@dataclass(frozen=True, eq=False)
class Side:
    """The differences that one subspace is fitted on, at one block.

    Args:
        ans: `Δ_ans` of each example.
        cot: `Δ_cot` of each example.
        clusters: person of each example; a person's examples are resampled together.
        groups: group of each example (`people`, `reasoning`); groups are resampled separately and weigh the same. None
            for one group.

    Raises:
        RMuseError: lengths that disagree, fewer than two clusters.
    """

    ans: Float[Tensor, "examples d"]
    cot: Float[Tensor, "examples d"]
    clusters: Sequence[str]
    groups: Sequence[str] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.ans), len(self.cot), len(self.clusters), len(self.groups or self.clusters)}
        if len(lengths) > 1:
            raise RMuseError(
                f"one cluster and one group per example were required, got {sorted(lengths)} of them"
            )
        if len(set(self.clusters)) < 2:
            raise RMuseError(
                f"at least 2 clusters of examples were required to resample them, got {len(set(self.clusters))}; "
                "fit on more people, or give each example a cluster of its own"
            )


@dataclass(frozen=True, eq=False)
class Refit:
    """Both subspaces of one resample, float64.

    Attributes:
        unlearning: orthonormal basis of `U_un`.
        direction: `v_un`, of length 1, its sign by the fit on all data.
        retain: orthonormal basis of `U_rrs`.
    """

    unlearning: Float[Tensor, "d k"]
    direction: Float[Tensor, " d"]
    retain: Float[Tensor, "d j"]


@dataclass(frozen=True, eq=False)
class Stability:
    """Both subspaces of one block over the resamples; arrays have one entry per resample.

    Attributes:
        angles: principal angles between `U_un` and `U_rrs`, radians, ascending; one row per resample, NaN where a
            resample has fewer angles.
        kernel: their projection kernel over the geometric mean of the ranks, in [0, 1].
        share: `‖P_rrs v_un‖²` before any protection.
        ranks: of `U_un` and of `U_rrs`.
        unlearning_angle: between the `U_un` of the resample and that of all data, radians: the angle whose squared
            cosine is the mean over their principal angles. 0 where one contains the other.
        direction_angle: between their `v_un`, radians in [0, π/2].
        retain_angle: as `unlearning_angle`, of `U_rrs`.
        chance: `unlearning_angle` and `retain_angle` of random subspaces of the ranks fitted.
    """

    angles: Float[Tensor, "resamples k"]
    kernel: Float[Tensor, " resamples"]
    share: Float[Tensor, " resamples"]
    ranks: Float[Tensor, "resamples 2"]
    unlearning_angle: Float[Tensor, " resamples"]
    direction_angle: Float[Tensor, " resamples"]
    retain_angle: Float[Tensor, " resamples"]
    chance: tuple[float, float]


def sides_at(evidence: Evidence, layer: int, literal: bool) -> tuple[Side, Side]:
    """Return the differences on which `subspaces_at` fits `U_un` and `U_rrs` of a block, clustered by person.

    If all forget examples are about one person, each example is its own cluster.
    """
    people = {name.rpartition("@")[0]: who for name, who in evidence.people.items()}

    def clusters(ids: Sequence[str]) -> list[str]:
        found = [people.get(name, name) for name in ids]
        return found if len(set(found)) > 1 else list(ids)

    ids = evidence.refusal["answer"].ids
    ans, cot = (
        (evidence.refusal[s].select(ids).at(layer).double() - evidence.own[s].select(ids).at(layer).double())
        for s in ("answer", "cot")
    )
    step = evidence.step_prefixed if literal else evidence.step
    direct = (evidence.direct_prefixed if literal else evidence.direct)["answer"]
    kept = step["answer"].ids
    whole = direct.select(kept).at(layer).double()
    first, second = (step[span].select(kept).at(layer).double() - whole for span in ("answer", "cot"))
    groups = [evidence.groups[name] for name in kept]
    return Side(ans, cot, clusters(ids)), Side(first, second, clusters(kept), groups)


def stability(
    unlearning: UnlearningSubspace,
    retain: RetainSubspace,
    forget: Side,
    kept: Side,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Stability:
    """Refit both subspaces on resamples of their examples; compare them with each other and the fit on all data.

    Args:
        unlearning: fitted on all of `forget`; its settings (standardisation, energy, cap) are those of the refits.
        retain: fitted on all of `kept`, likewise.
        forget: differences that `unlearning` was fitted on.
        kept: differences that `retain` was fitted on.
        resamples: number of resamples.
        seed: seed of the drawing.

    Raises:
        RMuseError: no resamples.
    """
    if resamples < 1:
        raise RMuseError(f"at least 1 resample was required, got {resamples}")
    whole = Refit(
        unlearning.subspace.basis.double(), unlearning.direction.double(), retain.subspace.basis.double()
    )
    drawn = zip(*drawn_again(forget, kept, resamples, seed), strict=True)
    rows = [_compared(refit(unlearning, retain, forget, kept, counts), whole) for counts in drawn]
    most = max(len(row["angles"]) for row in rows)
    angles = torch.full((resamples, most), math.nan, dtype=torch.float64)
    for place, row in enumerate(rows):
        angles[place, : len(row["angles"])] = row["angles"]
    d = whole.retain.shape[0]
    unlearning_chance, retain_chance = (
        math.acos(math.sqrt(basis.shape[1] / d)) for basis in (whole.unlearning, whole.retain)
    )

    def column(name: str) -> Tensor:
        return torch.tensor([row[name] for row in rows], dtype=torch.float64)

    return Stability(
        angles=angles,
        kernel=column("kernel"),
        share=column("share"),
        ranks=column("ranks"),
        unlearning_angle=column("unlearning_angle"),
        direction_angle=column("direction_angle"),
        retain_angle=column("retain_angle"),
        chance=(unlearning_chance, retain_chance),
    )


def refit(
    unlearning: UnlearningSubspace,
    retain: RetainSubspace,
    forget: Side,
    kept: Side,
    counts: tuple[Float[Tensor, " examples"], Float[Tensor, " kept"]] | None = None,
) -> Refit:
    """Fit both subspaces on one resample, with the settings of the given fits.

    Args:
        unlearning: fit with the settings for `U_un`.
        retain: fit with the settings for `U_rrs`.
        forget: the examples of `U_un`.
        kept: the examples of `U_rrs`.
        counts: number of times that each example of either side is in the resample; None for once each.
    """
    often, kept_often = counts or (torch.ones(len(side.ans), dtype=torch.float64) for side in (forget, kept))
    un = _directions(forget, unlearning, often)
    first = un[:, 0]
    sign = -1.0 if bool(first @ unlearning.direction.double() < 0) else 1.0
    return Refit(_basis(un), sign * unit(first), _basis(_directions(kept, retain, kept_often)))


def _directions(
    side: Side, fitted: UnlearningSubspace | RetainSubspace, counts: Float[Tensor, " examples"]
) -> Float[Tensor, "d k"]:
    """The leading directions of a resample in the coordinates of the states, the principal one first."""
    there = counts > 0
    weights = counts.clone()
    if side.groups is not None:
        for group in set(side.groups):
            mine = torch.tensor([one == group for one in side.groups])
            weights[mine] /= weights[mine].sum()
    weights = weights[there] * int(there.sum()) / weights.sum()
    hybrid = span_hybrid(
        side.ans[there], side.cot[there], fitted.standardise, shared_scale=fitted.map_back, weights=weights
    )
    found = _leading(hybrid.rows, fitted.energy, fitted.cap)
    return hybrid.scale.unsqueeze(1) * found if fitted.map_back else found


def _leading(rows: Float[Tensor, "examples d"], energy: float, cap: int | None) -> Float[Tensor, "d k"]:
    """`leading_directions` from the smaller Gram matrix alone: those that hold most of the energy are accurate there."""
    wide = rows.shape[0] < rows.shape[1]
    values, vectors = torch.linalg.eigh(rows @ rows.mT if wide else rows.mT @ rows)
    s, vectors = values.flip(0).clamp_min(0.0).sqrt(), vectors.flip(1)
    rank = max(1, min(energy_rank(s, energy), cap or len(s)))
    return rows.mT @ vectors[:, :rank] / s[:rank].clamp_min(1e-300) if wide else vectors[:, :rank]


def drawn_again(
    forget: Side, kept: Side, resamples: int, seed: int
) -> tuple[Float[Tensor, "resamples examples"], Float[Tensor, "resamples kept"]]:
    """Count each example of either side in each resample; clusters are drawn with replacement within their group.

    A group of one cluster stays as it is and contributes no spread.
    """
    sides = (("forget", forget), ("kept", kept))
    apart = [(name, group) for name, side in sides for group in side.groups or [""] * len(side.clusters)]
    people = [*forget.clusters, *kept.clusters]
    counts = torch.from_numpy(resampled(people, seed, apart=apart, resamples=resamples))
    first, second = counts.split([len(forget.clusters), len(kept.clusters)], dim=1)
    return first, second


def _basis(directions: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
    return torch.linalg.qr(directions).Q


def _compared(mine: Refit, whole: Refit) -> dict[str, Any]:
    cosines = torch.linalg.svdvals(mine.unlearning.mT @ mine.retain).clamp(0.0, 1.0)
    ranks = (mine.unlearning.shape[1], mine.retain.shape[1])
    return {
        "angles": cosines.arccos().sort().values,
        "kernel": float(cosines.square().sum()) / math.sqrt(ranks[0] * ranks[1]),
        "share": float((mine.retain.mT @ mine.direction).square().sum()),
        "ranks": ranks,
        "unlearning_angle": mean_angle(mine.unlearning, whole.unlearning),
        "direction_angle": math.acos(min(1.0, abs(float(mine.direction @ whole.direction)))),
        "retain_angle": mean_angle(mine.retain, whole.retain),
    }


def mean_angle(first: Float[Tensor, "d k"], second: Float[Tensor, "d j"]) -> float:
    """Return the angle (radians) whose squared cosine is the mean over the principal angles of two orthonormal bases.

    >>> eye = torch.eye(4, dtype=torch.float64)
    >>> mean_angle(eye[:, :1], eye[:, :2]), round(math.degrees(mean_angle(eye[:, :2], eye[:, 1:3])))
    (0.0, 45)
    """
    shared = float((first.mT @ second).square().sum()) / min(first.shape[1], second.shape[1])
    return math.acos(math.sqrt(min(1.0, shared)))
