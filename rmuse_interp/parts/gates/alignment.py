"""The literal gate: alignment of the query with the reasoning retain subspace (eq. 4.7)."""

from jaxtyping import Float
from torch import Tensor

from rmuse_interp.maths.linalg import working
from rmuse_interp.maths.sphere import norm, unit
from rmuse_interp.parts.gates.gate import Scorer
from rmuse_interp.parts.subspace import Subspace


class RRSAlignment(Scorer):
    """The score of the literal gate (eq. 4.7), which steers iff `s_gate = ‖P_rrs h‖/‖h‖ < τ`, that is, `−s_gate > −τ`.

    It hardly depends on the query (defect D2): for a random state `s_gate` is about `sqrt(r/d)`, so with τ =
    0.85 the gate fires almost always. The zero state has `s_gate = 0`.

    Args:
        rrs: the reasoning retain subspace. The gate's threshold is −τ; the paper reads the last token of `g ⊕ q`.
    """

    below = True

    def __init__(self, rrs: Subspace):
        super().__init__()
        self.rrs = rrs

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """`−‖P_rrs h‖/‖h‖`, in [−1, 0]."""
        direction = unit(working(h))
        return -norm(direction @ self.rrs.basis.to(direction.dtype)).squeeze(-1).clamp(max=1.0)

    def describe(self) -> str:
        return "‖P_rrs h‖/‖h‖"
