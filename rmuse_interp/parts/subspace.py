"""`Subspace`: a linear subspace of the residual stream, held as an orthonormal basis."""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import orthonormal, working
from rmuse_interp.parts.part import Part

TOLERANCE: Final = 1e-4
"""Largest entry of |UᵀU − I| that a basis may show."""


class Subspace(Part):
    """`span(U)` with `P_U = U Uᵀ`, U: [d, k] orthonormal; idempotent, and `project(h) + remove(h) = h`.

    It is not an operator of the edit algebra: it knows neither layer nor tokens. Geometry is done in float32
    (float64 for a float64 basis or float64 states) and the result has the dtype of the states.

    Args:
        basis: [d, k] orthonormal columns to 1e-4, kept in float64 if given so; k = 0 is the subspace {0}.

    Raises:
        RMuseError: columns that are not orthonormal, or not finite.

    Examples:
        >>> plane = Subspace(torch.eye(3)[:, :2])
        >>> plane.project(torch.tensor([1.0, 2.0, 3.0])).tolist()
        [1.0, 2.0, 0.0]
        >>> plane.remove(torch.tensor([1.0, 2.0, 3.0])).tolist()
        [0.0, 0.0, 3.0]
    """

    basis: Tensor

    def __init__(self, basis: Float[Tensor, "d k"]):
        super().__init__()
        gram = working(basis).mT @ working(basis)
        error = (gram - torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)).abs()
        if not bool(torch.isfinite(gram).all()) or (error.numel() and float(error.max()) > TOLERANCE):
            worst = float(error.max())
            raise RMuseError(
                f"a subspace needs orthonormal columns (|UᵀU − I| ≤ {TOLERANCE}), got {worst:.3g}; "
                "use Subspace.span(vectors) for any other vectors"
            )
        self.hold(as_given=True, basis=basis)

    @classmethod
    def span(cls, vectors: Float[Tensor, "d n"]) -> "Subspace":
        """The subspace spanned by any columns; dependent and zero ones are left out."""
        return cls(orthonormal(vectors))

    @classmethod
    def zero(cls, d: int) -> "Subspace":
        """The subspace {0} of a residual stream of width d."""
        return cls(torch.zeros(d, 0))

    @property
    def rank(self) -> int:
        """Number of dimensions, k."""
        return int(self.basis.shape[1])

    @property
    def d(self) -> int:
        """Width of the residual stream."""
        return int(self.basis.shape[0])

    def project(self, h: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens d"]:
        """`P_U h = U Uᵀ h`, in the dtype of h."""
        states, basis = self._exact(h)
        return ((states @ basis) @ basis.mT).to(h.dtype)

    def remove(self, h: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens d"]:
        """`(I − P_U) h`, in the dtype of h."""
        states, basis = self._exact(h)
        return (states - (states @ basis) @ basis.mT).to(h.dtype)

    def minus(self, other: "Subspace") -> "Subspace":
        """`span((I − P_other) U)`: what is left of this subspace once `other` is removed from every vector.

        Its vectors are orthogonal to `other`. It is not the intersection with the complement of `other`,
        which is smaller wherever the two subspaces meet at an angle between 0 and π/2.
        """
        if other.d != self.d:
            raise RMuseError(
                f"subspaces of one residual stream were required, got widths {self.d} and {other.d}"
            )
        left = other.remove(self.basis.mT.to(torch.float64)).mT
        # The columns were of length 1: what is shorter than 1e-5 is the rounding of float32.
        return Subspace(orthonormal(left, tol=1e-5, scale=1.0).to(self.basis.dtype))

    def describe(self) -> str:
        return f"span[{self.rank} of {self.d}]"

    def _exact(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The states and the basis in the higher of their precisions."""
        if h.shape[-1] != self.d:
            raise RMuseError(f"states of width {self.d} were required, got shape {tuple(h.shape)}")
        states = working(h).to(torch.promote_types(working(h).dtype, self.basis.dtype))
        return states, self.basis.to(states.dtype)
