"""The linear discriminant gate: log odds of forget under one shrunk covariance."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp.gates.gate import Gate, Readout, require_both
from rmuse_interp.maths.linalg import working


class LinearDiscriminantGate(Gate):
    """`score(h) = ⟨w, h⟩ + b`: a shrinkage linear discriminant, the log odds of forget under equal priors.

    Args:
        weight: [d], w.
        bias: b.
        layer: see `Gate`.
        readout: see `Gate`.
        threshold: see `Gate`.
        prefix: see `Gate`.
        scale: see `Gate`.
    """

    weight: Tensor

    def __init__(
        self,
        weight: Float[Tensor, " d"],
        bias: float | int,
        layer: int,
        readout: Readout,
        threshold: float | int = 0.0,
        prefix: str | None = None,
        scale: float | int = 1.0,
    ):
        super().__init__(layer, readout, threshold, prefix, scale)
        self.hold(weight=weight)
        self.bias = float(bias)

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Log odds, in nats, per state."""
        exact = working(h)
        return exact @ self.weight.to(exact.dtype) + self.bias

    def _name(self) -> str:
        return "linear discriminant"


def fit_discriminant(
    forget: Float[Tensor, "examples d"],
    others: Float[Tensor, "others d"],
    *,
    layer: int,
    readout: Readout,
    threshold: float | int = 0.0,
    shrinkage: float | Literal["auto"] = "auto",
    scale: float | int = 1.0,
) -> LinearDiscriminantGate:
    """The linear discriminant of two sets of states: shared covariance shrunk by Ledoit and Wolf, equal priors.

    Args:
        forget: states of forget queries.
        others: states of the queries that must not be steered.
        layer: where they were read.
        readout: how they were read.
        threshold: set by `choose_threshold` on held-out scores.
        shrinkage: towards the diagonal, in [0, 1], or "auto".
        scale: see `Gate`.

    Raises:
        RMuseError: an empty side, states that are not finite.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # here: costly to import

    require_both(forget, others)
    states = torch.cat([forget, others]).to(torch.float64).cpu()
    labels = [1] * len(forget) + [0] * len(others)
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=[0.5, 0.5])
    fitted.fit(states.numpy(), labels)
    weight = torch.as_tensor(fitted.coef_[0]).to(forget.device)
    return LinearDiscriminantGate(weight, float(fitted.intercept_[0]), layer, readout, threshold, None, scale)
