"""Where steering moves states: the plane of unsteered states, and whether forget states move and retain states stay.

As in the paper's figure 4. The plane is fitted on unsteered states alone, so that steering cannot influence its axes;
displacements are measured in all d dimensions, not in the plane.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import compact_svd
from rmuse_interp.maths.sphere import geodesic, unit
from rmuse_interp.maths.statistics import bootstrap
from rmuse_interp.maths.transport import semi_relaxed_nearest

PERMUTATIONS: Final = 2000


@dataclass(frozen=True, eq=False)
class StatePlane:
    """The two principal axes of a set of states.

    Attributes:
        mean: [d] mean of the states.
        axes: [2, d] orthonormal rows, the larger variance first.
        explained: share of the states' variance along each axis.
    """

    mean: Float[Tensor, " d"]
    axes: Float[Tensor, "2 d"]
    explained: tuple[float, float]

    def place(self, states: Float[Tensor, "examples d"]) -> Float[Tensor, "examples 2"]:
        """Return the coordinates of states in the plane, whether it was fitted on them or not."""
        return (states.double() - self.mean) @ self.axes.mT


def state_plane(states: Float[Tensor, "examples d"]) -> StatePlane:
    """Fit two axes by principal component analysis.

    Args:
        states: unsteered states, one per query.

    Raises:
        RMuseError: states that do not span a plane.
    """
    exact = states.double()
    mean = exact.mean(dim=0)
    axes, s = compact_svd(exact - mean)
    if len(s) < 2:
        raise RMuseError(
            f"states that span a plane were required, at least 3 different ones, got {len(states)}; raise --limit"
        )
    share = s.square() / s.square().sum()
    return StatePlane(mean, axes[:, :2].mT, (float(share[0]), float(share[1])))


def displacement(before: Float[Tensor, "_ d"], after: Float[Tensor, "_ d"]) -> float:
    """Compute `√(Σ‖h̃ − h‖² / Σ‖h‖²)` over the tokens of one query; exactly 0 if nothing was edited.

    Raises:
        RMuseError: states of different tokens before and after.
    """
    if before.shape != after.shape:
        raise RMuseError(
            f"states of the same tokens were required, got {tuple(before.shape)} and {tuple(after.shape)}"
        )
    moved, whole = (after.double() - before.double()).norm(), before.double().norm()
    return float(moved / whole) if float(moved) > 0 else 0.0


def along(
    before: Float[Tensor, "tokens d"], after: Float[Tensor, "tokens d"], direction: Float[Tensor, " d"]
) -> float | None:
    """Compute the cosine of a query's mean displacement with a direction; None if nothing moved."""
    mean = (after.double() - before.double()).mean(dim=0)
    length = float(mean.norm())
    return float(mean @ unit(direction.double())) / length if length > 0 else None


def approach(
    before: Float[Tensor, "tokens d"],
    after: Float[Tensor, "tokens d"],
    prototypes: Float[Tensor, "prototypes d"],
) -> float:
    """Compute how much closer a query's tokens come to refusal, in radians; negative if they move away.

    This is the mean angle to the nearest prototype before steering, minus that after.

    Args:
        before: states of one query.
        after: the same, steered.
        prototypes: refusal prototypes, of any norm.
    """
    points = unit(prototypes.double())

    def away(states: Tensor) -> float:
        exact = unit(states.double())
        return float(geodesic(exact, points[semi_relaxed_nearest(exact, points)]).mean())

    return away(before) - away(after)


@dataclass(frozen=True)
class SideTest:
    """Result of a test whether a quantity is larger on the forget side than on the other.

    Attributes:
        difference: mean over forget queries minus mean over the others.
        interval: its 95 % bootstrap interval, people resampled on each side.
        p: share of the permutations, the observed labelling included, whose difference is as large or larger.
        people: numbers of people on the forget side and on the other.
        least: the smallest p possible with this number of people and permutations.
    """

    difference: float
    interval: tuple[float, float]
    p: float
    people: tuple[int, int]
    least: float


def side_test(
    values: Mapping[str, float],
    forget: Collection[str],
    people: Mapping[str, str],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> SideTest:
    """Run a one-sided permutation test of "larger on the forget side"; people are exchanged with all their queries.

    Args:
        values: value of each query, by id.
        forget: ids of the forget queries among them.
        people: person of each query, by id; nobody may be on both sides.
        permutations: number of permutations to draw.
        seed: seed of the drawing.

    Raises:
        RMuseError: fewer than two people on a side, a person on both, no permutations.
    """
    sides = [[i for i in values if (i in forget) is mine] for mine in (True, False)]
    mine, rest = ({people[i] for i in side} for side in sides)
    if mine & rest or min(len(mine), len(rest)) < 2:
        raise RMuseError(
            f"at least 2 people on each side and none on both were required, got {len(mine)} to forget and {len(rest)} "
            f"others, {len(mine & rest)} on both; raise --limit"
        )
    if permutations < 1:
        raise RMuseError(f"at least 1 permutation was required, got {permutations}")
    rng = np.random.default_rng(seed)
    names = [*sorted(mine), *sorted(rest)]
    number = {name: place for place, name in enumerate(names)}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for name, value in values.items():
        sums[number[people[name]]] += value
        counts[number[people[name]]] += 1

    def difference(weights: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the difference for each row of weights of the people on the two sides."""
        return (weights @ sums) / (weights @ counts) - (others @ sums) / (others @ counts)

    label = np.zeros(len(names))
    label[: len(mine)] = 1.0
    observed = float(difference(label[None], 1 - label[None])[0])
    drawn = rng.permuted(np.tile(label, (permutations, 1)), axis=1)
    # Rounding must not make the observed labelling smaller than itself when it is drawn again.
    as_large = difference(drawn, 1 - drawn) >= observed - 1e-9 * max(1.0, abs(observed))
    between = bootstrap(
        lambda often: difference(often * label, often * (1 - label)), names, seed, apart=label.tolist()
    )
    least = max(1 / math.comb(len(names), len(mine)), 1 / (permutations + 1))
    return SideTest(
        observed,
        (between.low, between.high),
        float((1 + as_large.sum()) / (1 + permutations)),
        (len(mine), len(rest)),
        least,
    )


def shuffled(people: Mapping[str, str], forget: Collection[str], seed: int = 0) -> set[str]:
    """Return the negative control of `side_test`: query ids of equally many people, drawn from both sides."""
    mine = {people[i] for i in people if i in forget}
    drawn = np.random.default_rng(seed).permutation(sorted(set(people.values())))[: len(mine)]
    return {i for i, who in people.items() if who in set(drawn.tolist())}
