"""Refusal prototypes: unit vectors of refusing states, the support of the target measure μ (eq. 4.16)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.sphere import unit
from rmuse_interp.maths.transport import barycentric_projection, k_medoids
from rmuse_interp.parts.part import Part
from rmuse_interp.parts.pooled import require_finite
from rmuse_interp.parts.subspace import Subspace


class Prototypes(Part):
    """Unit vectors of states along refusals x⁺, at one block; equal weights unless said otherwise.

    Args:
        points: [prototypes, d], of length 1 (to 1e-4).
        positions: [prototypes], where on its refusal each state stood: 0 the last prompt token, 1 the first
            token of the response; None where states were pooled.
        trajectory: [prototypes], which refusal it came from; None where states were pooled.

    Raises:
        RMuseError: no points, points that are not of length 1, labels of another length.
    """

    points: Tensor
    positions: Tensor | None
    trajectory: Tensor | None

    def __init__(
        self,
        points: Float[Tensor, "prototypes d"],
        positions: Int[Tensor, " prototypes"] | None = None,
        trajectory: Int[Tensor, " prototypes"] | None = None,
    ):
        super().__init__()
        lengths = points.to(torch.float32).norm(dim=1)
        if not len(points) or not bool(((lengths - 1.0).abs() <= 1e-4).all()):
            raise RMuseError(
                f"prototypes must be unit vectors, at least one: got {len(points)}; "
                "use Prototypes.token_level(states, …) or Prototypes.pooled(states, …)"
            )
        for name, labels in (("positions", positions), ("trajectory", trajectory)):
            if labels is not None and len(labels) != len(points):
                raise RMuseError(
                    f"one label per prototype was required, got {len(labels)} {name} for {len(points)}"
                )
        self.hold(points=points, positions=positions, trajectory=trajectory)

    @classmethod
    def pooled(cls, states: Float[Tensor, "examples d"], groups: Sequence[str]) -> "Prototypes":
        """One prototype per group: `u(mean φ(x⁺; S))` over the examples of one span and template (`paper`).

        Args:
            states: pooled states of refusals.
            groups: span and template of each, in a word; prototypes come in the order of first appearance.

        Raises:
            RMuseError: no states, states that are not finite, a group whose mean is zero.
        """
        if len(groups) != len(states) or not len(states):
            raise RMuseError(f"one group per state was required, got {len(groups)} for {len(states)}")
        require_finite(states, "refusal states", groups)
        names = list(dict.fromkeys(groups))
        rows = torch.tensor([names.index(name) for name in groups], device=states.device)
        means = torch.stack([states[rows == j].to(torch.float64).mean(dim=0) for j in range(len(names))])
        return cls(_units(means))

    @classmethod
    def token_level(
        cls,
        states: Float[Tensor, "tokens d"],
        positions: Int[Tensor, " tokens"],
        trajectory: Int[Tensor, " tokens"],
    ) -> "Prototypes":
        """One prototype per token of the refusals, last prompt token to end of answer (`calibrated`).

        Args:
            states: block outputs at the tokens of all refusals.
            positions: step of each token, 0 at the last prompt token.
            trajectory: which refusal each belongs to.

        Raises:
            RMuseError: no states, states that are not finite or zero.
        """
        require_finite(states, "refusal states")
        return cls(_units(states.to(torch.float64)), positions, trajectory)

    def __len__(self) -> int:
        return int(self.points.shape[0])

    @property
    def d(self) -> int:
        """Width of the residual stream."""
        return int(self.points.shape[1])

    def outside(self, subspace: Subspace) -> "Prototypes":
        """The prototypes seen from the complement of a subspace: `u((I − P) p)`; those inside it are left out.

        Raises:
            RMuseError: all of them lie inside.
        """
        left = subspace.remove(self.points.to(torch.float64))
        kept = left.norm(dim=1) > 1e-5  # what is shorter is the rounding of float32
        if not bool(kept.any()):
            raise RMuseError("prototypes outside the protected subspace are needed, all are inside")
        labels = [None if x is None else x[kept] for x in (self.positions, self.trajectory)]
        return Prototypes(unit(left[kept]), labels[0], labels[1])

    def transported(
        self, states: Float[Tensor, "n d"], *, entropy: float = 0.0, relaxation: float | None = None
    ) -> "Prototypes":
        """The targets that an optimal transport plan assigns to some states, as prototypes of their own (POT).

        Give `op.Transport(found.points)` or `ACS(found)` the result: a state then goes where the plan sent the fitted
        state whose target is nearest. The plan keeps the prototypes' weights unless they are relaxed, so that no part of
        μ is left out as it can be where every state takes its nearest prototype.

        Args:
            states: of any length but 0, such as the model's own answers at the same block.
            entropy: ε of `barycentric_projection`, in radians²; 0 for the exact plan.
            relaxation: ρ of it, in radians²: unbalanced transport; None keeps the weights.

        Raises:
            RMuseError: no states or zeros, or what `barycentric_projection` refuses.
        """
        exact = _units(states.to(torch.float64))
        plan = barycentric_projection(exact, self.points, entropy=entropy, relaxation=relaxation)
        return Prototypes(plan.targets)

    def describe(self) -> str:
        kind = "pooled" if self.positions is None else "token-level"
        return f"{len(self)} {kind} refusal prototypes"


def _units(vectors: Tensor) -> Tensor:
    if not len(vectors) or bool((vectors.norm(dim=1) == 0).any()):
        raise RMuseError(f"nonzero states were required, got none or zeros ({len(vectors)} states)")
    return unit(vectors)


def thinned(
    points: Float[Tensor, "prototypes d"],
    positions: Int[Tensor, " prototypes"] | None,
    cap: int,
    seed: int = 0,
) -> Int[Tensor, " kept"]:
    """Rows of at most `cap` prototypes, ascending: the medoids of as many clusters under the angle.

    With positions they are thinned step by step, each step's share in proportion to its prototypes and at least one,
    as far as the cap allows one of each: a step without a prototype cannot be steered.

    Args:
        points: unit vectors.
        positions: step of each; None where they have none.
        cap: the most to keep.
        seed: of the k-medoids.
    """
    if len(points) <= cap:
        return torch.arange(len(points), device=points.device)
    if positions is None or cap < len(positions.unique()):
        return k_medoids(points, cap, seed)
    steps, counts = positions.unique(return_counts=True)
    exact = counts.double() * (cap - len(steps)) / counts.sum()
    quota = 1 + exact.floor().long()
    # Largest remainders first, so that the whole cap is used.
    for i in (exact.floor() - exact).argsort(stable=True)[: cap - int(quota.sum())].tolist():
        quota[i] += 1
    found = []
    for step, most in zip(steps, quota.tolist(), strict=True):
        rows = (positions == step).nonzero().squeeze(1)
        found.append(rows[k_medoids(points[rows], most, seed)])
    return torch.cat(found).sort().values
