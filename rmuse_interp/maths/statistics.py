"""Rates, thresholds, areas under the curve, and the one bootstrap behind every interval that resamples people.

Questions about one person go right or wrong together, so intervals draw people again, never questions alone. A resample
is a row of weights: how often each example is in it. Whatever is a function of weighted examples has an interval then.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rmuse_interp import RMuseError

ThresholdRule = Literal["midpoint", "youden", "target_tpr", "target_fpr"]
"""How a gate's threshold is set on fitting data; see `choose_threshold`."""

_RULES: Final[tuple[str, ...]] = get_args(ThresholdRule)
FALSE_ALARM: Final = 4.0
"""What a false alarm weighs against a miss where ``midpoint`` finds the two sides to overlap: held-out forget scores come
from gates that know a photograph or a wording less than the one that is kept, and overstate its misses; nothing
overstates its false alarms."""
_Z: Final = 1.959964
"""Standard errors on either side of a 95 % interval."""
RESAMPLES: Final = 1000
"""Resamples of every bootstrap interval."""


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


def wilson(hits: int, n: int) -> Rate:
    """Share `hits/n` with its 95 % Wilson score interval; the whole of [0, 1] where n = 0.

    Examples:
        >>> rate = wilson(0, 10)
        >>> rate.low, round(rate.high, 3)
        (0.0, 0.278)
    """
    if n == 0:
        return Rate(math.nan, 0.0, 1.0, 0)
    share, square = hits / n, _Z * _Z / n
    centre = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(share * (1 - share) / n + square / (4 * n))
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


@dataclass(frozen=True)
class Estimate:
    """A statistic of examples with its 95 % bootstrap interval over clusters of them.

    Attributes:
        value: of all examples.
        low: lower end.
        high: upper end; equal to `low` where there is one cluster.
        n: number of examples.
        clusters: number of clusters (people) they belong to.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int


def resampled(
    people: Sequence[Hashable],
    seed: int = 0,
    *,
    apart: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
) -> Float[np.ndarray, "resamples n"]:
    """How often each example is in each resample, people drawn with replacement with all of their examples.

    Args:
        people: whom each example is about. Who comes first is drawn first: give examples in an order that means
            nothing, such as that of their ids.
        seed: of the drawing.
        apart: the side (group, stratum) of each example; each side is drawn by itself and keeps its number of people,
            and one person on two sides is two clusters. None for one side.
        resamples: how many.

    Raises:
        RMuseError: no examples, or sides of another number.

    Examples:
        >>> weights = resampled(["ann", "ann", "bob"])
        >>> weights.shape, bool((weights[:, 0] == weights[:, 1]).all()), set(weights[:, [0, 2]].sum(axis=1))
        ((1000, 3), True, {np.float64(2.0)})
    """
    sides = ["all"] * len(people) if apart is None else list(apart)
    if not people or len(sides) != len(people):
        raise RMuseError(
            f"at least one example, each with a person and a side, was required, got {len(people)} people and "
            f"{len(sides)} sides"
        )
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(people)))
    for side in dict.fromkeys(sides):
        rows = [row for row, mine in enumerate(sides) if mine == side]
        number = _numbered([people[row] for row in rows])
        size = max(number) + 1
        draws = rng.integers(size, size=(resamples, size))
        often = np.zeros((resamples, size))
        np.add.at(often, (np.arange(resamples)[:, None], draws), 1.0)
        weights[:, rows] = often[:, number]
    return weights


def bootstrap(
    statistic: Callable[[Float[np.ndarray, "resamples n"]], Float[np.ndarray, " resamples"]],
    people: Sequence[Hashable],
    seed: int = 0,
    *,
    apart: Sequence[Hashable] | None = None,
) -> Estimate:
    """Any statistic of weighted examples, with the interval of its values over `resampled` people.

    Args:
        statistic: weights of the examples, one row per resample → one value per row; NaN where a resample leaves it
            undefined, which does not count.
        people: whom each example is about.
        seed: of the drawing.
        apart: as in `resampled`.
    """
    found = statistic(np.vstack([np.ones((1, len(people))), resampled(people, seed, apart=apart)]))
    clusters = len(set(people if apart is None else zip(people, apart, strict=True)))
    return Estimate(float(found[0]), *interval(found[1:]), len(people), clusters)


def interval(drawn: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % percentiles of a statistic over resamples (or over other draws), NaN left out."""
    low, high = np.percentile(drawn[~np.isnan(drawn)], [2.5, 97.5])
    return float(low), float(high)


def clustered(
    values: Sequence[float] | Float[np.ndarray, " n"],
    people: Sequence[Hashable],
    *,
    over: Sequence[float | int] | Float[np.ndarray, " n"] | None = None,
    seed: int = 0,
) -> Estimate:
    """The mean of some values, or `Σ values / Σ over`, with its 95 % interval over people.

    Args:
        values: one per example.
        people: whom each example is about; their order is that of `resampled`.
        over: what the sum is divided by, one per example; None for the number of examples.
        seed: of the drawing.

    Raises:
        RMuseError: no values, people of another number.

    Examples:
        >>> clustered([1.0, 3.0, 2.0], ["ann", "bob", "bob"])
        Estimate(value=2.0, low=1.0, high=2.5, n=3, clusters=2)
    """
    if not len(values) or len(values) != len(people):
        raise RMuseError(
            f"at least one value, each with a person, was required, got {len(values)} and {len(people)}"
        )
    number = _numbered(people)
    totals = np.bincount(number, weights=np.asarray(values, dtype=np.float64))
    counts = np.bincount(number, weights=None if over is None else np.asarray(over, dtype=np.float64))

    def ratio(weights: np.ndarray) -> np.ndarray:
        below = weights @ counts.astype(np.float64)
        return np.divide(weights @ totals, below, out=np.full(len(weights), np.nan), where=below != 0)

    return replace(bootstrap(ratio, range(len(totals)), seed), n=len(values))


def auroc_clustered(
    scores_forget: Float[Tensor, " n"] | Sequence[float],
    scores_other: Float[Tensor, " m"] | Sequence[float],
    forget_people: Sequence[Hashable],
    other_people: Sequence[Hashable],
    *,
    together: bool = False,
    seed: int = 0,
) -> Estimate:
    """The `auroc` with its 95 % interval over people.

    Args:
        scores_forget: scores that should be large.
        scores_other: scores that should be small.
        forget_people: whom each of the first is about.
        other_people: likewise of the others.
        together: draw a person with the examples of both sides, where both are about the same people; else each side
            is drawn by itself.
        seed: of the drawing.

    Raises:
        RMuseError: a side without scores, scores that are not finite, people of another number.
    """
    sides = [
        torch.as_tensor(scores, dtype=torch.float64).cpu().flatten()
        for scores in (scores_forget, scores_other)
    ]
    whole = auroc(*sides)
    positive = np.repeat([True, False], [len(side) for side in sides])
    scores = torch.cat(sides).numpy()
    people = [*forget_people, *other_people]
    if len(forget_people) != len(sides[0]) or len(people) != len(scores):
        raise RMuseError(
            f"one person per score was required, got {len(forget_people)} and {len(other_people)} people for "
            f"{len(sides[0])} and {len(sides[1])} scores"
        )
    found = bootstrap(
        lambda weights: _areas(scores, positive, weights),
        people,
        seed,
        apart=None if together else positive.tolist(),
    )
    return replace(found, value=whole)


def _areas(
    scores: Float[np.ndarray, " n"],
    positive: Bool[np.ndarray, " n"],
    weights: Float[np.ndarray, "resamples n"],
) -> Float[np.ndarray, " resamples"]:
    """The area under the curve of weighted examples, per row; NaN where a side has no weight."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))  # equal scores are one step
    hits, rest = (
        np.add.reduceat((weights * side)[:, order], starts, axis=1) for side in (positive, ~positive)
    )
    wins = (hits * (rest.cumsum(axis=1) - rest / 2)).sum(axis=1)
    pairs = hits.sum(axis=1) * rest.sum(axis=1)
    return np.divide(wins, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def _numbered(people: Sequence[Hashable]) -> list[int]:
    """The number of each example's cluster, in the order in which people first appear."""
    number = {name: place for place, name in enumerate(dict.fromkeys(people))}
    return [number[name] for name in people]


def _threshold(value: float, forget: Tensor, other: Tensor, rule: str) -> Threshold:
    tpr, fpr = (wilson(int((side > value).sum()), len(side)) for side in (forget, other))
    return Threshold(value, tpr, fpr, rule)


def _scores(scores: Tensor | Sequence[float], name: str) -> Tensor:
    values = torch.as_tensor(scores, dtype=torch.float64).detach().cpu().flatten()
    if not len(values) or not bool(torch.isfinite(values).all()):
        raise RMuseError(f"finite {name} scores were required, at least one, got {len(values)}")
    return values.sort().values
