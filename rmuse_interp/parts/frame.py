"""`Frame`: coordinates in which every dimension of the residual stream counts alike."""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import working
from rmuse_interp.parts.part import Part
from rmuse_interp.parts.pooled import require_finite
from rmuse_interp.parts.subspace import Subspace

FLOOR: Final = 0.01
"""The least spread of a dimension, as a share of the median one: what varies less is as good as constant."""


class Frame(Part):
    """`z = (h − c) ⊘ s`: centred, scaled coordinates of the residual stream of one block.

    In a pretrained model a few *massive* dimensions hold most of the energy of every state, whatever it says; angles and
    nearest neighbours then see little else. Here each dimension counts by how much it varies. Defining property:
    `restore(z(h)) = h`, and the states that the frame was fitted on have mean 0 and spread 1 (or less) in each dimension.
    It is not a whitening: dimensions stay correlated.

    Args:
        center: [d] c.
        scale: [d] s, positive.

    Raises:
        RMuseError: two lengths, or a scale that is not positive.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, center: Float[Tensor, " d"], scale: Float[Tensor, " d"]):
        super().__init__()
        if center.shape != scale.shape or not bool((scale > 0).all()):
            raise RMuseError(
                f"a centre and a positive scale of one width were required, got {tuple(center.shape)} and "
                f"{tuple(scale.shape)}, least {float(scale.min()):.3g}: use Frame.of(states)"
            )
        self.hold(center=center, scale=scale)

    @classmethod
    def of(cls, states: Float[Tensor, "examples d"]) -> "Frame":
        """The frame of some states: c their mean, s their standard deviation, at least `FLOOR` of the median one.

        Raises:
            RMuseError: fewer than two states, states that are not finite or that do not vary.
        """
        require_finite(states, "states of a frame")
        if len(states) < 2:
            raise RMuseError(f"two states or more were required for a frame, got {len(states)}")
        exact = states.to(torch.float64)
        spread = exact.std(dim=0, correction=0)
        typical = spread.median() if bool(spread.median() > 0) else spread.max()
        if not bool(typical > 0):
            raise RMuseError("states that vary were required for a frame, got equal ones")
        return cls(exact.mean(dim=0), spread.clamp_min(FLOOR * float(typical)))

    def __call__(self, h: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens d"]:
        """z, in the precision of the geometry."""
        states = working(h)
        return (states - self.center.to(states.dtype)) / self.scale.to(states.dtype)

    def restore(self, z: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens d"]:
        """`h = c + s ⊙ z`."""
        exact = working(z)
        return self.center.to(exact.dtype) + self.scale.to(exact.dtype) * exact

    def seen(self, subspace: Subspace) -> Subspace:
        """The subspace of z whose complement changes nothing in a subspace of h: `span(s ⊙ U)`.

        `Uᵀ Δh = (s ⊙ U)ᵀ Δz`, so that a change Δz orthogonal to it keeps `P_U h`.
        """
        return Subspace.span(self.scale.unsqueeze(1) * subspace.basis)

    def describe(self) -> str:
        return "centred, scaled coordinates"
