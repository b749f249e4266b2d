"""Does steering leave reasoning unchanged? Overlaps of directions, subspaces and updates with the RRS, against chance.

Everything is compared with random subspaces of the same rank (Haar-distributed, the null of TransformerLens'
`projection_kernel`). This is a yardstick, not a significance test: states of a trained model fill the residual
stream unevenly, and for this reason alone two subspaces fitted on them may overlap more than random ones.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import principal_angles
from rmuse_interp.maths.sphere import unit
from rmuse_interp.maths.statistics import Estimate, clustered
from rmuse_interp.parts.subspace import Subspace

_NOTHING: Final = 1e-12
"""Share of the states' energy below which an update counts as none: a closed gate returns its rows bit for bit."""


@dataclass(frozen=True)
class Null:
    """Mean and standard deviation of a quantity over random subspaces."""

    mean: float
    sd: float

    def z(self, value: float) -> float | None:
        """How many standard deviations a value lies above the mean; None where chance has no spread."""
        return (value - self.mean) / self.sd if self.sd > 0 else None


def random_kernel(d: int, first: int, second: int) -> Null:
    """Moments of the projection kernel `‖AᵀB‖²_F` of independent random subspaces of ranks a and b.

    Mean `ab/d`, variance `2ab(d−a)(d−b) / (d²(d−1)(d+2))`. For a = b these are the moments of TransformerLens'
    `random_projection_kernel_moments`, which knows equal ranks only.

    >>> random_kernel(100, 1, 10).mean
    0.1
    """
    if not (0 <= first <= d and 0 <= second <= d and d > 1):
        raise RMuseError(f"ranks within 0..d and d > 1 were required, got {first} and {second} in {d}")
    spread = 2 * first * second * (d - first) * (d - second) / (d**2 * (d - 1) * (d + 2))
    return Null(first * second / d, math.sqrt(spread))


def random_share(d: int, rank: int, participation: float = 1.0) -> Null:
    """Moments of the share of a fixed set of vectors that falls into a random subspace of a given rank.

    Mean `r/d`. The more directions the vectors fill, the less the share varies: with `p = Σ w²` over the
    normalised eigenvalues w of their second moment, the variance is `(dp − 1)/(d − 1)` times that of one line.

    Args:
        d: width of the residual stream.
        rank: of the random subspace.
        participation: p, 1 for vectors on one line, 1/d for vectors that fill all directions evenly.
    """
    line = random_kernel(d, 1, rank)
    return Null(line.mean, line.sd * math.sqrt(max(0.0, (d * participation - 1) / (d - 1))))


@dataclass(frozen=True, eq=False)
class SubspaceOverlap:
    """The relative position of two subspaces.

    Attributes:
        angles: principal angles in radians, ascending.
        kernel: `‖AᵀB‖²_F`, the sum of their squared cosines, in [0, min(a, b)].
        normalised: `kernel/√(ab)`, the cosine of the two projections, in [0, 1].
        null: of the kernel, for random subspaces of these ranks.
    """

    angles: Float[Tensor, " k"]
    kernel: float
    normalised: float
    null: Null


def subspace_overlap(first: Subspace, second: Subspace) -> SubspaceOverlap:
    """Principal angles and projection kernel of two subspaces, `U_un` and `U_rrs` above all.

    Raises:
        RMuseError: subspaces of residual streams of different widths.
    """
    if first.d != second.d:
        raise RMuseError(
            f"subspaces of one residual stream were required, got widths {first.d} and {second.d}"
        )
    null = random_kernel(first.d, first.rank, second.rank)
    if not first.rank or not second.rank:
        return SubspaceOverlap(torch.zeros(0, dtype=torch.float64), 0.0, 0.0, null)
    from transformer_lens.tools.analysis.projection_kernel import orthonormal_subspace, projection_kernel

    bases = [orthonormal_subspace(s.basis.to(torch.float64)) for s in (first, second)]
    found = projection_kernel(*bases)
    # Its angles come from arccos, which loses half of the digits near 0.
    angles = principal_angles(first.basis, second.basis)
    return SubspaceOverlap(angles, float(found.score), float(found.normalized), null)


@dataclass(frozen=True, eq=False)
class DirectionOverlap:
    """The relative position of a direction and a subspace.

    Attributes:
        dots: dot product of the unit direction with every basis vector.
        share: `‖P v̂‖²`, the sum of their squares.
        null: of the share. A single dot product with a random unit vector has mean 0 and variance 1/d.
    """

    dots: Float[Tensor, " k"]
    share: float
    null: Null


def direction_overlap(direction: Float[Tensor, " d"], subspace: Subspace) -> DirectionOverlap:
    """Dot products of a direction, of any length but 0, with every basis vector of a subspace."""
    exact = direction.to(torch.float64)
    if not bool(exact.norm() > 0):
        raise RMuseError(
            "a direction was required, got the zero vector; an update that is none has no direction"
        )
    dots = subspace.basis.to(torch.float64).mT @ unit(exact)
    return DirectionOverlap(dots, float(dots.square().sum()), random_share(subspace.d, subspace.rank))


@dataclass(frozen=True, eq=False)
class UpdateShare:
    """How much of the updates `h̃ − h` lies in a subspace, over queries.

    Attributes:
        share: `Σ‖P(h̃ − h)‖² / Σ‖h̃ − h‖²` over all tokens of all queries, with its interval over queries; None where
            nothing was updated.
        change: `Σ‖P(h̃ − h)‖² / Σ‖P h‖²`: how much of what h has in the subspace was altered, 0 where gates were
            closed; None where h has nothing there.
        n: number of queries.
        updated: number of queries that were updated at all.
        null: of the share, for random subspaces of that rank and these very updates.
        per_example: share of each updated query, by id.
    """

    share: Estimate | None
    change: Estimate | None
    n: int
    updated: int
    null: Null
    per_example: dict[str, float]


def update_share(
    before: Mapping[str, Float[Tensor, "_ d"]],
    after: Mapping[str, Float[Tensor, "_ d"]],
    subspace: Subspace,
    seed: int = 0,
) -> UpdateShare:
    """The share of updates that falls into a subspace (repair D5 makes it 0).

    Args:
        before: h of each query's tokens, by id: [tokens, d].
        after: h̃ of the same.
        subspace: what was to be kept, `U_rrs`.
        seed: of the bootstrap.

    Raises:
        RMuseError: no queries, other ids or shapes on one side than on the other.
    """
    if not before:
        raise RMuseError("states of at least one query were required, got none; check the reasoning split")
    if before.keys() != after.keys() or any(before[i].shape != after[i].shape for i in before):
        raise RMuseError(
            "states of the same tokens before and after an edit were required, ids or shapes differ"
        )
    rows, updates = [], []
    for name, h in before.items():
        exact = h.to(torch.float64)
        update = after[name].to(torch.float64) - exact
        inside = _energy(update @ subspace.basis.to(torch.float64))
        total, kept = _energy(update), _energy(exact @ subspace.basis.to(torch.float64))
        moved = total > _NOTHING * _energy(exact)
        rows.append((inside if moved else 0.0, total if moved else 0.0, kept))
        if moved:
            updates.append(update)
    inside_, total_, kept_ = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    ids = [name for name, (_, total, _) in zip(before, rows, strict=True) if total > 0]
    moving = total_ > 0
    participation = _participation(torch.cat(updates)) if updates else 1.0
    return UpdateShare(
        _over(inside_[moving], total_[moving], seed),
        _over(inside_, kept_, seed),
        len(rows),
        len(ids),
        random_share(subspace.d, subspace.rank, participation),
        {name: float(part) for name, part in zip(ids, inside_[moving] / total_[moving], strict=True)},
    )


def _over(
    parts: Float[np.ndarray, " examples"], wholes: Float[np.ndarray, " examples"], seed: int
) -> Estimate | None:
    """`Σ parts / Σ wholes`, examples resampled; None where the wholes are 0."""
    return clustered(parts, range(len(parts)), over=wholes, seed=seed) if wholes.sum() > 0 else None


def _energy(vectors: Tensor) -> float:
    return float(vectors.square().sum())


def _participation(vectors: Float[Tensor, "tokens d"]) -> float:
    """`Σ w²` over the normalised eigenvalues of the second moment, from the smaller of the two Gram matrices."""
    n, d = vectors.shape
    gram = vectors @ vectors.mT if n < d else vectors.mT @ vectors
    return float(gram.square().sum() / gram.diagonal().sum().square())
