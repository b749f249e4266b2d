"""How well a gate's score tells queries to steer from queries to leave alone: operating curve and its intervals.

Intervals resample people, since questions about one person are not independent. A bootstrap cannot show errors that
the sample lacks: if both sides are separated perfectly, so they are in every resample, and the interval has no width.
Each interval is therefore the hull of the bootstrap's and of a closed form that has width there: Newcombe's for the
area under the curve (Statistics in Medicine 25, 2006, method 5), Wilson's for a rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq

from rmuse_interp import RMuseError
from rmuse_interp.maths.statistics import Rate, interval, resampled, wilson

TPR: Final = 0.99
"""True-positive rate at which the false-positive rate is read off."""
_Z: Final = 1.959963984540054
Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Curve:
    """The operating curve of a score.

    Attributes:
        fpr: share of the queries to leave alone above each threshold, ascending from 0 to 1.
        tpr: share of the queries to steer above the same thresholds.
        auroc: area under the curve, ties counting half.
        auroc_interval: 95 %.
        grid: false-positive rates at which the band is given.
        band: lowest and highest TPR there, 95 % pointwise.
        fpr_at_tpr: the lowest FPR at which the TPR is at least `TPR`, with its interval and n of queries to leave alone.
        n: queries to steer and to leave alone.
        people: clusters on either side.
    """

    fpr: Float[np.ndarray, " cuts"]
    tpr: Float[np.ndarray, " cuts"]
    auroc: float
    auroc_interval: Interval
    grid: Float[np.ndarray, " grid"]
    band: Float[np.ndarray, "2 grid"]
    fpr_at_tpr: Rate
    n: tuple[int, int]
    people: tuple[int, int]


def operating_curve(
    hits: Sequence[float],
    rest: Sequence[float],
    hit_people: Sequence[str],
    rest_people: Sequence[str],
    *,
    grid: Sequence[float] = tuple(np.linspace(0, 1, 101).tolist()),
    seed: int = 0,
) -> Curve:
    """Compute the operating curve of scores; larger scores mean steer.

    Args:
        hits: scores of queries to steer.
        rest: scores of queries to leave alone.
        hit_people: person of each of `hits`; a person's queries are resampled together.
        rest_people: the same for `rest`; a query about nobody has its own name.
        grid: false-positive rates for the band.
        seed: seed of the bootstrap.

    Raises:
        RMuseError: no scores on a side, scores that are not finite, people of another number.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (hits, rest)]
    for name, side, people in zip(
        ("to steer", "to leave alone"), sides, (hit_people, rest_people), strict=True
    ):
        if not len(side) or len(side) != len(people) or not np.isfinite(side).all():
            raise RMuseError(
                f"finite scores of queries {name} with a person each were required, at least one, got {len(side)} scores "
                f"and {len(people)} people"
            )
    order = np.argsort(-np.concatenate(sides), kind="stable")
    scores = np.concatenate(sides)[order]
    positive = (np.arange(len(scores)) < len(sides[0]))[order]
    # Equal scores share a threshold: a cut stands after the last of them.
    last = np.append(scores[1:] != scores[:-1], True)
    apart = [place for place, one in enumerate(sides) for _ in one]
    drawn_again = resampled([*hit_people, *rest_people], seed, apart=apart)
    weights = np.vstack([np.ones((1, len(scores))), drawn_again])[:, order]
    tpr, fpr = (_shares(weights * kind, last) for kind in (positive, ~positive))
    area = (np.diff(fpr) * (tpr[:, 1:] + tpr[:, :-1]) / 2).sum(axis=1)
    at = np.asarray(grid, dtype=np.float64)
    drawn = np.stack([_read(at, *row) for row in zip(fpr[1:], tpr[1:], strict=True)])
    there = _read(at, fpr[0], tpr[0])
    closed = np.array([_span(wilson(round(float(v) * len(sides[0])), len(sides[0]))) for v in there])
    spread = np.array([interval(column) for column in drawn.T])
    band = np.stack([np.minimum(spread, closed)[:, 0], np.maximum(spread, closed)[:, 1]])
    strict = np.array([f[np.argmax(t >= TPR - 1e-12)] for f, t in zip(fpr, tpr, strict=True)])
    exact = wilson(round(float(strict[0]) * len(sides[1])), len(sides[1]))
    low, high = _hull(strict[1:], _span(exact))
    return Curve(
        fpr[0],
        tpr[0],
        float(area[0]),
        _hull(area[1:], newcombe(float(area[0]), len(sides[0]), len(sides[1]))),
        at,
        band,
        Rate(exact.value, low, high, exact.n),
        (len(sides[0]), len(sides[1])),
        (len(set(hit_people)), len(set(rest_people))),
    )


def newcombe(area: float, first: int, second: int) -> Interval:
    """Newcombe's 95 % interval of an area under the curve: it ends 1.96 Hanley-McNeil standard errors away.

    >>> newcombe(1.0, 20, 20)[1], round(newcombe(1.0, 20, 20)[0], 2)
    (1.0, 0.9)
    """
    half = (first + second) / 2 - 1

    def off(θ: float) -> float:
        variance = θ * (1 - θ) * (1 + half * (1 - θ) / (2 - θ) + half * θ / (1 + θ)) / (first * second)
        return abs(θ - area) - _Z * math.sqrt(max(0.0, variance))

    edge = 1e-9  # at 0 and 1 themselves the variance is 0, which is a root of no interest
    low = 0.0 if area <= 0 else float(brentq(off, 0.0, min(area, 1 - edge)))
    high = 1.0 if area >= 1 else float(brentq(off, max(area, edge), 1.0))
    return low, high


def _shares(weights: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Share of the weight above each cut, per resample, from 0 to 1."""
    sums = weights.cumsum(axis=1)[:, last]
    return np.concatenate([np.zeros((len(sums), 1)), sums / sums[:, -1:]], axis=1)


def _read(at: np.ndarray, fpr: np.ndarray, tpr: np.ndarray) -> np.ndarray:
    """Return the highest TPR reached at each of these false-positive rates."""
    return tpr[np.searchsorted(fpr, at + 1e-12, side="right") - 1]


def _span(rate: Rate) -> Interval:
    return rate.low, rate.high


def _hull(drawn: np.ndarray, closed: Interval) -> Interval:
    low, high = interval(drawn)
    return min(low, closed[0]), max(high, closed[1])
