"""How far do `U_un` and `U_rrs` depend on which people are in the fitting data? Refits on bootstrap resamples.

People, not questions, are resampled: questions about one person are not independent examples. A refit on a resample is
a weighted fit on the examples drawn, so that no model is run and every Gram matrix stays small.

This is not a confidence interval of an overlap in the population. A resample holds fewer distinct people than the
fitting data, so that its ranks are lower and its subspaces noisier: read the range as possible fits on data of the same
kind, and a wide range as "the data do not determine this subspace".
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.statistics import resampled
from rmuse_interp.method.refits import Refit, Side, refit
from rmuse_interp.parts.retain import RetainSubspace
from rmuse_interp.parts.unlearning import UnlearningSubspace

RESAMPLES: Final = 100


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
        unlearning.subspace.basis.double(),
        unlearning.direction.double(),
        retain.subspace.basis.double(),
        retain.singular_values[: retain.rank].double().square(),
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
