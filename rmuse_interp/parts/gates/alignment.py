"""The literal gate: alignment of the query with the reasoning retain subspace (eq. 4.7)."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rmuse_interp.maths.linalg import working
from rmuse_interp.maths.sphere import norm, unit
from rmuse_interp.parts.gates.gate import Gate, Readout
from rmuse_interp.parts.subspace import Subspace


class RRSAlignmentGate(Gate):
    """The literal gate (eq. 4.7): steer iff `s_gate = ‖P_rrs h‖/‖h‖ < τ`, that is `−s_gate > −τ`.

    It barely depends on the query (defect D2): for a random state `s_gate` is about `sqrt(r/d)`, so τ =
    0.85 is close to always on. The zero state has `s_gate = 0`.

    Args:
        rrs: the reasoning retain subspace.
        layer: see `Gate`.
        readout: see `Gate`; the paper reads the last prompt token.
        threshold: −τ.
        prefix: the refusal prefix g of the paper's `g ⊕ q`.
        scale: see `Gate`.
        expected: see `Gate`.
    """

    def __init__(
        self,
        rrs: Subspace,
        layer: int,
        readout: Readout = "last",
        threshold: float | int = -0.85,
        prefix: str | None = None,
        scale: float | int = 1.0,
        expected: Mapping[str, Any] | None = None,
    ):
        super().__init__(layer, readout, threshold, prefix, scale, expected)
        self.rrs = rrs

    @property
    def tau(self) -> float:
        """The paper's τ."""
        return -self.threshold

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """`−‖P_rrs h‖/‖h‖`, in [−1, 0]."""
        direction = unit(working(h))
        return -norm(direction @ self.rrs.basis.to(direction.dtype)).squeeze(-1).clamp(max=1.0)

    def _condition(self) -> str:
        query = "g ⊕ q" if self.prefix is not None else "q"
        return f"‖P_rrs h({query})‖/‖h‖ at block {self.layer}, {self.readout} < {self.tau:.4g}"
