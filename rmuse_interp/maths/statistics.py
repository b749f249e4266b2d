"""Rates, thresholds, areas under the curve, and the bootstrap over people behind all bootstrap intervals.

Errors on questions about one person are correlated, so the bootstrap resamples people, never single questions. A
resample is a row of weights: how often it contains each example. Any function of weighted examples can be bootstrapped.
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
"""Weight of a false alarm relative to a miss in rule ``midpoint`` when the sides overlap. Above 1 because held-out
forget scores come from gates fitted without a photograph or a wording that the final gate has seen, and so overstate
its misses; nothing overstates its false alarms."""
_Z: Final = 1.959964
"""Half-width of a 95 % interval, in standard errors."""
RESAMPLES: Final = 1000
"""Number of resamples per bootstrap interval."""


@dataclass(frozen=True)
class Rate:
    """A proportion and its 95 % Wilson interval.

    Attributes:
        value: the proportion, in [0, 1]; NaN if there were no cases.
        low: lower end.
        high: upper end.
        n: number of cases.
    """

    value: float
    low: float
    high: float
    n: int


def wilson(hits: int, n: int) -> Rate:
    """Proportion `hits/n` with its 95 % Wilson score interval; the interval is [0, 1] if n = 0.

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


def upper_bound(hits: int, n: int, level: float = 0.95) -> float:
    """One-sided Clopper–Pearson upper bound of a proportion, 0–1; exact, so it holds for no hits too.

    >>> round(upper_bound(0, 1000), 5), upper_bound(3, 3)
    (0.00299, 1.0)
    """
    from scipy.stats import beta

    return 1.0 if hits >= n else float(beta.ppf(level, hits + 1, n - hits))


@dataclass(frozen=True)
class Threshold:
    """A gate's threshold (it fires where score > value) and its rates on the scores it was chosen from.

    Attributes:
        value: the threshold, in units of the score.
        tpr: fraction of forget scores above it.
        fpr: fraction of other scores above it.
        rule: the rule that set it, see `choose_threshold`.
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
    """Choose a threshold from scores by a rule; a gate fires where score > threshold.

    * ``midpoint``: halfway between the lowest forget and the highest other score if those do not overlap; otherwise
      the maximum of TPR − `FALSE_ALARM` · FPR.
    * ``youden``: the maximum of TPR − FPR.
    * ``target_tpr``: the highest threshold with TPR ≥ level (0.99 unless given).
    * ``target_fpr``: the lowest threshold with FPR ≤ level (0.01 unless given).

    Thresholds lie halfway between neighbouring scores. Pass held-out scores: scores of the examples that a gate
    was fitted on make it look better than it is.

    Raises:
        RMuseError: a side has no scores, scores are not finite, the rule is unknown, or level is outside [0, 1].

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
    """Probability that a forget score exceeds an other score, ties counting half (Mann–Whitney).

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
    """A statistic with its 95 % bootstrap interval over clusters of examples.

    Attributes:
        value: the statistic on all examples.
        low: lower end.
        high: upper end; equal to `low` if there is only one cluster.
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
    """Count how often each resample contains each example; people are drawn with all of their examples.

    Args:
        people: the person each example is about, [n]. Draws depend on the order in which people first appear, so use
            an arbitrary order, such as that of the ids.
        seed: seed of the random draws.
        apart: the side (group, stratum) of each example, [n]; each side is resampled separately and keeps its number
            of people, and a person on two sides counts as two clusters. None for one side.
        resamples: number of resamples.

    Raises:
        RMuseError: no examples, or `apart` of another length.

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
    """A statistic of weighted examples with its bootstrap interval over people (see `resampled`).

    Args:
        statistic: function from weights [resamples, n] to one value per resample; NaN where it is undefined, which is
            left out of the interval.
        people: the person each example is about, [n].
        seed: seed of the random draws.
        apart: as in `resampled`.
    """
    found = statistic(np.vstack([np.ones((1, len(people))), resampled(people, seed, apart=apart)]))
    clusters = len(set(people if apart is None else zip(people, apart, strict=True)))
    return Estimate(float(found[0]), *interval(found[1:]), len(people), clusters)


def interval(drawn: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % percentiles of a statistic over resamples or other draws, ignoring NaN."""
    low, high = np.percentile(drawn[~np.isnan(drawn)], [2.5, 97.5])
    return float(low), float(high)


def clustered(
    values: Sequence[float] | Float[np.ndarray, " n"],
    people: Sequence[Hashable],
    *,
    over: Sequence[float | int] | Float[np.ndarray, " n"] | None = None,
    seed: int = 0,
) -> Estimate:
    """The mean of values, or the ratio `Σ values / Σ over`, with its 95 % interval over people.

    Args:
        values: one value per example, [n].
        people: the person each example is about, [n]; see `resampled` about their order.
        over: denominators, one per example; None for the mean.
        seed: seed of the random draws.

    Raises:
        RMuseError: no values, or `people` of another length.

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
        scores_forget: [n] scores that should be large.
        scores_other: [m] scores that should be small.
        forget_people: the person each forget score is about, [n].
        other_people: the person each other score is about, [m].
        together: draw each person with their examples on both sides, for sides about the same people; otherwise the
            sides are resampled separately.
        seed: seed of the random draws.

    Raises:
        RMuseError: a side without scores, scores that are not finite, or people of another length.
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
    """The area under the ROC curve for each row of weights; NaN where a side has no weight."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))  # equal scores form one step
    hits, rest = (
        np.add.reduceat((weights * side)[:, order], starts, axis=1) for side in (positive, ~positive)
    )
    wins = (hits * (rest.cumsum(axis=1) - rest / 2)).sum(axis=1)
    pairs = hits.sum(axis=1) * rest.sum(axis=1)
    return np.divide(wins, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def _numbered(people: Sequence[Hashable]) -> list[int]:
    """The cluster number of each example; clusters are numbered in order of first appearance."""
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
