"""Calibration: how far to rotate (adaptive calibration steering, eq. 4.16) and where a gate's threshold stands."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import working
from rmuse_interp.maths.sphere import frechet_mean, geodesic, unit
from rmuse_interp.maths.transport import semi_relaxed_nearest
from rmuse_interp.parts.part import Part
from rmuse_interp.parts.prototypes import Prototypes
from rmuse_interp.parts.subspace import Subspace

Target = Literal["nearest", "frechet"]
"""ẑ*: the nearest prototype (semi-relaxed transport), or the Fréchet mean of all (balanced, from one state)."""

ThresholdRule = Literal["midpoint", "youden", "target_tpr", "target_fpr"]
"""How a gate's threshold is set on fitting data; see `choose_threshold`."""

_RULES: Final[tuple[str, ...]] = get_args(ThresholdRule)
FALSE_ALARM: Final = 4.0
"""What a false alarm weighs against a miss where ``midpoint`` finds the two sides to overlap: held-out forget scores come
from gates that know a photograph or a wording less than the one that is kept, and overstate its misses; nothing
overstates its false alarms."""


class Angle(Part):
    """How far along the geodesic to a direction a state is rotated: a fraction λ in [0, 1] per token. Abstract."""

    def fraction(
        self, h: Float[Tensor, "*tokens d"], direction: Float[Tensor, "... d"]
    ) -> Float[Tensor, "*tokens"]:
        """λ per token, in the precision of the geometry.

        Args:
            h: states, of any length.
            direction: v̂, one for all tokens or one per token.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how far to rotate")

    def protecting(self, rrs: Subspace) -> "Angle":
        """The same rule on the sphere of the RRS complement, for the protected rotation (defect D5)."""
        raise NotImplementedError(f"{type(self).__name__} cannot protect a subspace")


class FixedFraction(Angle):
    """The same λ for every token: 1 replaces the direction of the state, 0 leaves it.

    Args:
        value: λ in [0, 1].

    Raises:
        RMuseError: λ outside [0, 1].
    """

    def __init__(self, value: float | int):
        super().__init__()
        if not 0.0 <= value <= 1.0:
            raise RMuseError(f"a fraction of the way must lie in [0, 1], got {value}")
        self.value = float(value)

    def fraction(
        self, h: Float[Tensor, "*tokens d"], direction: Float[Tensor, "... d"]
    ) -> Float[Tensor, "*tokens"]:
        """λ, once per token."""
        return torch.full_like(working(h[..., 0]), self.value)

    def protecting(self, rrs: Subspace) -> "FixedFraction":
        """Itself: a fixed fraction knows no sphere."""
        return self

    def describe(self) -> str:
        return f"λ = {self.value:g}"


@dataclass(frozen=True, eq=False)
class ACSAngles:
    """What ACS decides per token (eq. 4.16), exposed for inspection.

    Attributes:
        target: ẑ*, unit vectors.
        theta_tar: `∠(u(h), ẑ*)`, radians.
        theta_dir: `∠(u(h), v̂)`, radians.
        fraction: `λ = min(1, θ_tar/θ_dir)`, 0 where θ_dir = 0 or h = 0.
        nearest: index of ẑ* among the prototypes; None where it is the Fréchet mean of all.
    """

    target: Float[Tensor, "*tokens d"]
    theta_tar: Float[Tensor, "*tokens"]
    theta_dir: Float[Tensor, "*tokens"]
    fraction: Float[Tensor, "*tokens"]
    nearest: Int[Tensor, "*tokens"] | None

    @property
    def rotation(self) -> Float[Tensor, "*tokens"]:
        """The angle the state is turned by, `min(θ_tar, θ_dir)`, in radians."""
        return self.fraction * self.theta_dir


class ACS(Angle):
    """Adaptive calibration steering: rotate by as much as separates the state from refusal (eq. 4.16).

    `λ = min(1, θ_tar/θ_dir)`, so that slerp turns h by `min(θ_tar, θ_dir)`: towards v̂, as far as ẑ* is
    away. It does not turn h *to* ẑ*, which may lie elsewhere. From one state balanced transport is trivial
    (its plan is μ), so the target is either the nearest prototype or the Fréchet mean of all, and both are
    closed forms here.

    Args:
        prototypes: the support of μ.
        target: which of the two.
    """

    mean: Tensor | None

    def __init__(self, prototypes: Prototypes, target: Target = "nearest"):
        super().__init__()
        if target not in get_args(Target):
            raise RMuseError(f"the target of ACS is one of {', '.join(get_args(Target))}, got {target!r}")
        self.prototypes = prototypes
        self.target = target
        # Derived from the prototypes: kept for speed, not a part of the record.
        self.hold(mean=frechet_mean(prototypes.points) if target == "frechet" else None)

    def angles(self, h: Float[Tensor, "*tokens d"], direction: Float[Tensor, "... d"]) -> ACSAngles:
        """Targets, both angles and λ per token; the direction is one for all tokens or one per token."""
        exact = working(h)
        point, aim = unit(exact), unit(working(direction).to(exact.dtype))
        nearest = None
        if self.mean is not None:
            target = self.mean.to(exact.dtype).expand_as(point)
        else:
            points = self.prototypes.points.to(exact.dtype)
            nearest = semi_relaxed_nearest(point, points)
            target = points[nearest]
        theta_tar, theta_dir = geodesic(point, target), geodesic(point, aim)
        turns = (theta_dir > 0) & (exact != 0).any(dim=-1)
        ratio = theta_tar / torch.where(turns, theta_dir, torch.ones_like(theta_dir))
        fraction = torch.where(turns, ratio.clamp(max=1.0), torch.zeros_like(ratio))
        return ACSAngles(target, theta_tar, theta_dir, fraction, nearest)

    def fraction(
        self, h: Float[Tensor, "*tokens d"], direction: Float[Tensor, "... d"]
    ) -> Float[Tensor, "*tokens"]:
        """λ per token (eq. 4.16)."""
        return self.angles(h, direction).fraction

    def protecting(self, rrs: Subspace) -> "ACS":
        """ACS on the sphere of the RRS complement: prototypes without their part in it, of length 1 again.

        Give it states and directions outside the RRS, of any length; both angles are then
        those of the protected rotation (defect D5).
        """
        return ACS(self.prototypes.outside(rrs), self.target)

    def describe(self) -> str:
        to = "the nearest of" if self.target == "nearest" else "the Fréchet mean of"
        return f"ACS to {to} {self.prototypes.describe()}"


@dataclass(frozen=True)
class Rate:
    """A share of cases and its 95 % Wilson interval.

    Attributes:
        value: the share, in [0, 1]; NaN where there were no cases.
        low: lower end.
        high: upper end.
        n: number of cases.
    """

    value: float
    low: float
    high: float
    n: int


def wilson(hits: int, n: int, z: float = 1.959964) -> Rate:
    """Share `hits/n` with its Wilson score interval; the whole of [0, 1] where n = 0.

    Examples:
        >>> rate = wilson(0, 10)
        >>> rate.low, round(rate.high, 3)
        (0.0, 0.278)
    """
    if n == 0:
        return Rate(math.nan, 0.0, 1.0, 0)
    share, square = hits / n, z * z / n
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return Rate(
        share, max(0.0, centre - half) if hits else 0.0, min(1.0, centre + half) if hits < n else 1.0, n
    )


@dataclass(frozen=True)
class Threshold:
    """Where a gate opens (score > value), with the rates the scores given make one expect.

    Attributes:
        value: the threshold, in units of the score.
        tpr: share of forget scores above it.
        fpr: share of the other scores above it.
        rule: how it was set.
    """

    value: float
    tpr: Rate
    fpr: Rate
    rule: str


def choose_threshold(
    scores_forget: Float[Tensor, " n"] | Sequence[float],
    scores_other: Float[Tensor, " m"] | Sequence[float],
    rule: ThresholdRule = "midpoint",
    level: float | int | None = None,
) -> Threshold:
    """The threshold that a rule asks for; a gate fires where score > threshold.

    * ``midpoint``: halfway between the lowest forget and the highest other score where those do not overlap; where
      they do, the largest TPR − `FALSE_ALARM` · FPR.
    * ``youden``: the largest TPR − FPR.
    * ``target_tpr``: the highest threshold with TPR ≥ level (0.99 unless given).
    * ``target_fpr``: the lowest threshold with FPR ≤ level (0.01 unless given).

    Thresholds stand halfway between neighbouring scores, so that neither side sits on the edge. Give scores
    that were held out from fitting: those of fitted examples flatter every gate that remembers them.

    Raises:
        RMuseError: no scores on a side, scores that are not finite, an unknown rule, a level outside [0, 1].

    Examples:
        >>> choose_threshold([2.0, 3.0], [0.0, 1.0]).value
        1.5
        >>> choose_threshold([0.0, 2.0, 3.0], [1.0, -1.0], "target_fpr", 0.0).value
        1.5
    """
    forget, other = _scores(scores_forget, "forget"), _scores(scores_other, "other")
    if rule not in _RULES:
        raise RMuseError(f"a threshold rule is one of {', '.join(_RULES)}, got {rule!r}")
    if level is not None and not 0.0 <= level <= 1.0:
        raise RMuseError(f"the level of a threshold rule is a share in [0, 1], got {level}")
    if rule == "midpoint" and forget[0] > other[-1]:
        return _threshold(float((forget[0] + other[-1]) / 2), forget, other, rule)
    distinct = torch.cat([forget, other]).unique()
    edge = distinct.new_tensor([1.0]) * max(1.0, float(distinct.abs().max())) * 1e-6
    cuts = torch.cat([distinct[:1] - edge, (distinct[1:] + distinct[:-1]) / 2, distinct[-1:] + edge])
    tpr = 1.0 - torch.searchsorted(forget, cuts, right=True).double() / len(forget)
    fpr = 1.0 - torch.searchsorted(other, cuts, right=True).double() / len(other)
    if rule == "target_tpr":
        best = int((tpr >= (0.99 if level is None else level) - 1e-12).nonzero().max())
    elif rule == "target_fpr":
        best = int((fpr <= (0.01 if level is None else level) + 1e-12).nonzero().min())
    else:
        gain = tpr - (FALSE_ALARM if rule == "midpoint" else 1.0) * fpr
        best = int((gain >= gain.max() - 1e-12).nonzero().flatten().median())
    return _threshold(float(cuts[best]), forget, other, rule)


def auroc(
    scores_forget: Float[Tensor, " n"] | Sequence[float], scores_other: Float[Tensor, " m"] | Sequence[float]
) -> float:
    """Probability that a forget score exceeds another one, ties counting half (Mann–Whitney).

    Examples:
        >>> auroc([1.0, 2.0], [0.0, 1.0])
        0.875
    """
    forget, other = _scores(scores_forget, "forget"), _scores(scores_other, "other")
    below = torch.searchsorted(other, forget).sum()
    up_to = torch.searchsorted(other, forget, right=True).sum()
    return int(below + up_to) / (2 * len(forget) * len(other))


def auroc_interval(
    scores_forget: Float[Tensor, " n"] | Sequence[float],
    scores_other: Float[Tensor, " m"] | Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % bootstrap interval of the AUROC, resampling both sides; deterministic for a seed."""
    forget, other = _scores(scores_forget, "forget"), _scores(scores_other, "other")
    draw = torch.Generator().manual_seed(seed)
    found = [auroc(_resample(forget, draw), _resample(other, draw)) for _ in range(resamples)]
    spread = torch.tensor(found, dtype=torch.float64)
    return float(spread.quantile(0.025)), float(spread.quantile(0.975))


def _resample(scores: Tensor, draw: torch.Generator) -> Tensor:
    return scores[torch.randint(len(scores), (len(scores),), generator=draw)]


def _threshold(value: float, forget: Tensor, other: Tensor, rule: str) -> Threshold:
    tpr, fpr = (wilson(int((side > value).sum()), len(side)) for side in (forget, other))
    return Threshold(value, tpr, fpr, rule)


def _scores(scores: Tensor | Sequence[float], name: str) -> Tensor:
    values = torch.as_tensor(scores, dtype=torch.float64).detach().cpu().flatten()
    if not len(values) or not bool(torch.isfinite(values).all()):
        raise RMuseError(f"finite {name} scores were required, at least one, got {len(values)}")
    return values.sort().values
