"""Linear and affine operators, which change the norm: addition and ablation."""

from jaxtyping import Float, Int
from torch import Tensor

from rmuse_interp.maths.linalg import working
from rmuse_interp.operators.operator import Operator
from rmuse_interp.subspace import Subspace


class Add(Operator):
    """`h̃ = h + scale · v`: the classical steering vector. It does not keep the norm.

    Args:
        vector: [d] what is added.
        scale: its factor.
    """

    vector: Tensor

    def __init__(self, vector: Float[Tensor, " d"], scale: float = 1.0):
        super().__init__()
        self.hold(vector=vector)
        self.scale = scale

    def protecting(self, rrs: Subspace) -> "Add":
        """The same addition with its part inside the RRS left out."""
        return Add(rrs.remove(self.vector), self.scale)

    def forward(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        states = working(h)
        return (states + self.scale * self.vector.to(states.dtype)).to(h.dtype)

    def describe(self) -> str:
        return f"add {self.scale:g} × a vector of length {float(self.vector.norm()):.3g}"


class Ablate(Operator):
    """`h̃ = (I − P_U) h`: directional ablation. It shrinks the norm by what it removes.

    Args:
        subspace: U, what is removed.
    """

    def __init__(self, subspace: Subspace):
        super().__init__()
        self.subspace = subspace

    def protecting(self, rrs: Subspace) -> "Ablate":
        """The ablation of what U has outside the RRS."""
        return Ablate(self.subspace.minus(rrs))

    def forward(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        return self.subspace.remove(h)

    def describe(self) -> str:
        return f"remove {self.subspace.describe()}"
