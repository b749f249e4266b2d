"""The linear discriminant gate: log odds of the forget side under one shrunk covariance."""

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp.maths.linalg import solve_shrunk, working
from rmuse_interp.parts.gates.gate import Gate, Read, Readout, Scorer, require_both


class LinearDiscriminant(Scorer):
    """Shrinkage linear discriminant `score(h) = ⟨w, h⟩ + b`: the log odds of forget under equal priors.

    Args:
        weight: [d], w.
        bias: b.
    """

    weight: Tensor

    def __init__(
        self,
        weight: Float[Tensor, " d"],
        bias: float | int,
    ):
        super().__init__()
        self.hold(weight=weight)
        self.bias = float(bias)

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Log odds in nats, one per state."""
        exact = working(h)
        return exact @ self.weight.to(exact.dtype) + self.bias

    def describe(self) -> str:
        return "linear discriminant"


def fit_discriminant(
    forget: Float[Tensor, "examples d"],
    others: Float[Tensor, "others d"],
    *,
    layer: int,
    readout: Readout,
    shrinkage: float | None = None,
) -> Gate:
    """Fit Fisher's discriminant with equal priors: `w = Σ⁻¹(m₁ − m₀)`, `b = −⟨w, m₁ + m₀⟩/2`.

    Σ is the covariance within the sides, pooled over all states and shrunk towards a multiple of the
    identity. It is not the average of one covariance per side, in which a small forget set would have as
    much weight as all others.

    Args:
        forget: [examples, d] states of forget queries.
        others: [others, d] states of queries that must not be steered.
        layer: 0-based block where the states were read.
        readout: tokens over which they were read.
        shrinkage: weight of the identity in [0, 1]; Ledoit and Wolf's (2004) by default.

    Raises:
        RMuseError: an empty side, states that are not finite.
    """
    require_both(forget, others)
    means, residuals = [], []
    for side in (forget.to(torch.float64), others.to(torch.float64)):
        means.append(side.mean(dim=0))
        residuals.append(side - means[-1])
    weight = solve_shrunk(torch.cat(residuals), means[0] - means[1], shrinkage)
    bias = -float(weight @ (means[0] + means[1])) / 2
    return Gate(LinearDiscriminant(weight, bias), Read(layer, readout))
