"""Rotation inside one plane."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Operator
from rmuse_interp.maths.linalg import working
from rmuse_interp.maths.sphere import norm, unit


class RotateInPlane(Operator):
    """`h̃ = h − P h + ‖P h‖ (cos θ b₁ + sin θ b₂)`, P the projection onto the plane of b₁ and b₂.

    Defining property: ‖h̃‖ = ‖h‖, the component outside the plane stays, and the component inside it ends at angle θ
    from b₁, wherever it was before. θ is the target angle, not the amount of rotation.

    Args:
        first: [d] the feature direction; b₁ is its unit vector.
        second: [d] second vector in the plane; b₂ is its unit component orthogonal to b₁.
        degrees: θ, in degrees.
        adaptive: rotate only states with ⟨h, b₁⟩ > 0.

    Raises:
        RMuseError: directions that span no plane.
    """

    first: Tensor
    second: Tensor
    axes: Tensor
    goal: Tensor

    def __init__(
        self,
        first: Float[Tensor, " d"],
        second: Float[Tensor, " d"],
        degrees: float,
        adaptive: bool = True,
    ):
        super().__init__()
        self.hold(first=first, second=second)
        b1, b2 = unit(self.first.double()), unit(self.second.double())
        b2 = b2 - (b2 @ b1) * b1
        # 1e-5, not 0: a vector minus itself leaves float32 noise, which must not be normalised.
        if not float(b1.norm()) > 0 or not float(b2.norm()) > 1e-5:
            raise RMuseError(
                "two directions that span a plane were required, got parallel ones (or one of length 0)"
            )
        b2 = unit(b2)
        b2 = unit(b2 - (b2 @ b1) * b1)
        angle = math.radians(degrees)
        self.hold(axes=torch.stack([b1, b2]), goal=math.cos(angle) * b1 + math.sin(angle) * b2)
        self.degrees = degrees
        self.adaptive = adaptive

    def forward(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        states = working(h)
        axes = self.axes.to(states.dtype)
        inside = states @ axes.mT
        turned = states - inside @ axes + norm(inside) * self.goal.to(states.dtype)
        return (torch.where(inside[..., :1] > 0, turned, states) if self.adaptive else turned).to(h.dtype)

    def describe(self) -> str:
        which = " where h leans to b₁" if self.adaptive else ""
        return f"turn the part in the plane of b₁ and b₂ to {self.degrees:g}° from b₁{which}"
