"""The condition gate: how well a state aligns with the condition vector of CAST (arXiv 2409.05907)."""

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp.maths.linalg import compact_svd, working
from rmuse_interp.maths.sphere import unit
from rmuse_interp.maths.statistics import auroc
from rmuse_interp.parts.gates.gate import Gate, Read, Readout, Scorer, require_both


class Condition(Scorer):
    """`sim(h, proj_c h) > θ` with `proj_c h = (c cᵀ/cᵀc) h` and sim the cosine (CAST, section 3.1).

    The similarity is in [0, 1]: it equals `|⟨c, h⟩|/(‖c‖‖h‖)`, so the sign of `⟨c, h⟩` is lost. The zero
    state has similarity 0.

    As in the paper: the formula, uncentred states at scoring time, and the direction of the comparison,
    `>` or `<`, as part of the gate. Changed: no tanh around the projection, which the paper applies in
    practice and which depends on the units of the residual stream; one pooled state per read-out, where the
    paper averages all tokens of the prompt; one decision per query.

    Args:
        direction: [d], c, of any nonzero length.
        above: whether the gate fires above θ; otherwise the score is the negated similarity.
    """

    direction: Tensor

    def __init__(
        self,
        direction: Float[Tensor, " d"],
        above: bool = True,
    ):
        super().__init__()
        self.hold(direction=direction)
        self.above = above

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """The similarity of each state, in [0, 1]; negated if the gate fires below θ."""
        exact = working(h)
        similarity = (unit(exact) @ unit(self.direction.to(exact.dtype))).abs().clamp(max=1.0)
        return similarity if self.above else -similarity

    def describe(self) -> str:
        return "sim(h, proj_c h)"

    @property
    def below(self) -> bool:
        """Whether the score is the negated similarity."""
        return not self.above


def fit_condition(
    forget: Float[Tensor, "examples d"],
    others: Float[Tensor, "others d"],
    *,
    layer: int,
    readout: Readout,
) -> Gate:
    """Fit the condition gate to two sets of states: `c = PCA(H⁺ − μ, H⁻ − μ)` with `μ = (H⁺ + H⁻)/2`.

    c is the first principal component of the states of both sides about the midpoint of the sides' means.
    The paper has equally many examples on both sides; here each side has the same total weight whatever its
    size. The paper finds the direction of the comparison in its grid search over θ; here it is the one that
    ranks the fitting states better.

    Args:
        forget: [examples, d] states that meet the condition.
        others: [others, d] states that do not.
        layer: 0-based block where the states were read.
        readout: tokens over which they were read.

    Raises:
        RMuseError: an empty side, states that are not finite.
    """
    require_both(forget, others)
    sides = (forget.double(), others.double())
    center = (sides[0].mean(dim=0) + sides[1].mean(dim=0)) / 2
    rows = torch.cat([(side - center) / len(side) ** 0.5 for side in sides])
    vectors, _ = compact_svd(rows)
    # All states coincide: there is nothing to separate, so any direction will do.
    direction = vectors[:, 0] if vectors.shape[1] else torch.ones_like(center)
    gate = Gate(Condition(direction), Read(layer, readout))
    if auroc(gate.score(forget), gate.score(others)) >= 0.5:
        return gate
    return gate.changed(scorer=Condition(direction, above=False))
