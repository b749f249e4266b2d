"""How far to rotate: a fixed fraction, by the angle to refusal (ACS, eq. 4.16), or by the state's doubt."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import working
from rmuse_interp.maths.sphere import frechet_mean, geodesic, unit
from rmuse_interp.maths.transport import entropic_targets, semi_relaxed_nearest
from rmuse_interp.parts.part import Part
from rmuse_interp.parts.prototypes import Prototypes
from rmuse_interp.parts.subspace import Subspace

Target = Literal["nearest", "frechet", "entropic"]
"""ẑ*: the nearest prototype (semi-relaxed transport), the Fréchet mean of all (balanced transport of one state), or the
Fréchet mean with weights that decrease with the angle (entropic or unbalanced transport of one state)."""


class Angle(Part):
    """Abstract rule for the fraction λ in [0, 1] by which each token's state is rotated toward a direction."""

    def fraction(
        self, h: Float[Tensor, "*tokens d"], direction: Float[Tensor, "... d"]
    ) -> Float[Tensor, "*tokens"]:
        """λ per token, in the precision of the geometry.

        Args:
            h: [*tokens, d] states, of any length.
            direction: v̂, [d] for all tokens or [*tokens, d].
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how far to rotate")

    def outside(self, rrs: Subspace) -> "Angle":
        """The same rule on the unit sphere of the RRS complement, for the protected rotation (defect D5)."""
        raise NotImplementedError(f"{type(self).__name__} cannot protect a subspace")


class FixedFraction(Angle):
    """The same λ for every token: 1 replaces the direction of the state, 0 leaves it unchanged.

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
        """λ for each token, [*tokens]."""
        return torch.full_like(working(h[..., 0]), self.value)

    def outside(self, rrs: Subspace) -> "FixedFraction":
        """Itself: a fixed fraction does not depend on the sphere."""
        return self

    def describe(self) -> str:
        return f"λ = {self.value:g}"


@dataclass(frozen=True, eq=False)
class ACSAngles:
    """Targets, angles and fractions of ACS per token (eq. 4.16), for inspection.

    Attributes:
        target: ẑ*, unit vectors.
        theta_tar: `∠(u(h), ẑ*)`, radians.
        theta_dir: `∠(u(h), v̂)`, radians.
        fraction: `λ = min(1, θ_tar/θ_dir)`, 0 where θ_dir = 0 or h = 0.
        nearest: index of ẑ* among the prototypes; None if it is a mean of them.
    """

    target: Float[Tensor, "*tokens d"]
    theta_tar: Float[Tensor, "*tokens"]
    theta_dir: Float[Tensor, "*tokens"]
    fraction: Float[Tensor, "*tokens"]
    nearest: Int[Tensor, "*tokens"] | None


class ACS(Angle):
    """Adaptive calibration steering: rotate by the angle between the state and refusal (eq. 4.16).

    `λ = min(1, θ_tar/θ_dir)`, so slerp turns h towards v̂ by `min(θ_tar, θ_dir)`. It does not turn h *to* ẑ*,
    which may lie elsewhere. Balanced transport of a single state is trivial (its plan is μ), so the target is the
    nearest prototype, the Fréchet mean of all, or a point between them (`entropic_targets`). For targets from one
    plan for many states, pass `Prototypes.transported`.

    Args:
        prototypes: the support of μ.
        target: `nearest`, `frechet` or `entropic`.
        entropy: ε > 0 of the `entropic` target, in radians²; ε + ρ for unbalanced transport with relaxation ρ.

    Raises:
        RMuseError: an unknown target, an entropy that is missing or not positive, or one given for another target.
    """

    mean: Tensor | None

    def __init__(
        self, prototypes: Prototypes, target: Target = "nearest", entropy: float | int | None = None
    ):
        super().__init__()
        if target not in get_args(Target):
            raise RMuseError(f"the target of ACS is one of {', '.join(get_args(Target))}, got {target!r}")
        if (target == "entropic") != (entropy is not None) or (entropy is not None and not entropy > 0):
            raise RMuseError(
                f'an entropy > 0 was required with the target "entropic" and none with any other, got {entropy}'
            )
        self.entropy = entropy
        self.prototypes = prototypes
        self.target = target
        # Derived from the prototypes: kept for speed, not part of the record.
        self.hold(mean=frechet_mean(prototypes.points) if target == "frechet" else None)

    def angles(self, h: Float[Tensor, "*tokens d"], direction: Float[Tensor, "... d"]) -> ACSAngles:
        """Target, both angles and λ for each token; `direction` is [d] for all tokens or [*tokens, d]."""
        exact = working(h)
        point, aim = unit(exact), unit(working(direction).to(exact.dtype))
        nearest = None
        if self.mean is not None:
            target = self.mean.to(exact.dtype).expand_as(point)
        elif self.entropy is not None:
            target = entropic_targets(point, self.prototypes.points, self.entropy)
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

    def outside(self, rrs: Subspace) -> "ACS":
        """ACS on the unit sphere of the RRS complement, with prototypes projected out of the RRS and normalised.

        Pass it states and directions outside the RRS, of any length; both angles are then
        those of the protected rotation (defect D5).
        """
        return ACS(self.prototypes.outside(rrs), self.target, self.entropy)

    def describe(self) -> str:
        if self.entropy is not None:
            return f"ACS to the entropic mean (ε = {self.entropy:g}) of {self.prototypes.describe()}"
        to = "the nearest of" if self.target == "nearest" else "the Fréchet mean of"
        return f"ACS to {to} {self.prototypes.describe()}"


class Confidence(Angle):
    """A fraction that grows with the doubt δ: `λ = clip(α (δ − β)/(1 − β), 0, 1)`, 0 where δ ≤ β.

    `δ = p(−v̂) − p(v̂)`, the difference of the two posteriors of a von Mises–Fisher mixture of concentration κ around
    the direction v̂ and its antipode: `softmax(κ⟨u(h), −v̂⟩, κ⟨u(h), v̂⟩)`, hence `δ = −tanh(κ⟨u(h), v̂⟩)`. In [−1, 1].

    Args:
        strength: α ≥ 0.
        margin: β < 1; only states with δ > β are turned.
        concentration: κ > 0; 20 in Spherical Steering.

    Raises:
        RMuseError: a setting outside its range.
    """

    def __init__(self, strength: float, margin: float = 0.0, concentration: float = 20.0):
        super().__init__()
        if strength < 0 or not margin < 1 or not concentration > 0:
            raise RMuseError(
                f"strength ≥ 0, margin < 1 and concentration > 0 were required, got {strength}, {margin} and "
                f"{concentration}"
            )
        self.strength = strength
        self.margin = margin
        self.concentration = concentration

    def fraction(
        self, h: Float[Tensor, "*tokens d"], direction: Float[Tensor, "... d"]
    ) -> Float[Tensor, "*tokens"]:
        """λ per token."""
        heading = unit(working(h))
        cosine = (heading * unit(working(direction)).to(heading.dtype)).sum(dim=-1)
        doubt = -torch.tanh(self.concentration * cosine)
        share = self.strength * (doubt - self.margin) / (1.0 - self.margin)
        return share.clamp(0.0, 1.0)

    def outside(self, rrs: Subspace) -> "Confidence":
        """Itself: the cosine is taken of the states it is given."""
        return self

    def describe(self) -> str:
        return f"λ = {self.strength:g} × the doubt beyond {self.margin:g} (κ = {self.concentration:g})"
