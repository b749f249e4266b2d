"""Integrated gradients of a leaked token's log-probability over the embeddings that enter the language model.

    IG_i = (x_i − x'_i) · ∫₀¹ ∂F(x' + α (x − x'))/∂x_i dα        (Sundararajan et al. 2017, arXiv 1703.01365)

x are the leak's embeddings, image features included, x' those of the average query (`reference`), F the log-probability
in nats. Summed over all tokens they give F(x) − F(x') (completeness).

Along that path F of a trained transformer is no gentle curve: attention switches within thousandths of it, and a fixed
number of nodes can miss the sum by more than its size, or hit it by luck. So the path is cut into intervals, each
integrated by captum with a few Gauss-Legendre nodes; completeness holds on each of them too, and those that miss their
own difference most are halved until their errors are small in sum, signs aside.

Plans that run are hooks made of differentiable operations, and gradients pass through them. What is piecewise constant in
them, gates and the choice of the nearest prototype, is to be `frozen` first: where it changes F jumps, and no gradient
sees a jump. Intervals are not halved for ever: what is missed in the finest is `jumps`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.diagnostics.leaks import Leak, log_prob
from rmuse_interp.lens.lens import LensModel

TOLERANCE: Final = 0.02
"""Share of the difference by which the sum may miss it."""
ROUGHNESS: Final = 0.1
"""Share of the difference that the intervals' errors may have in sum, signs aside: no luck by cancellation."""
NODES: Final = 4
"""Per interval."""
INTERVALS: Final = 8
"""At first."""
FINEST: Final = 2.0**-14
"""Width of an interval that is halved no more."""
BUDGET: Final = 1024
"""The most nodes for one leak."""
_LEAST: Final = 0.05
"""Nats: a smaller difference is not divided by, so that noise is not called an error."""
_TOKENS: Final = 4096
"""The most tokens of one pass, over all nodes."""

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Gradients:
    """Integrated gradients of one leak.

    Attributes:
        tokens: attribution of each token, nats.
        difference: F(x) − F(x'), nats: what they should add up to.
        error: how far their sum is from it, as a share of it (of at least `_LEAST` nats).
        roughness: the intervals' errors in sum, signs aside, as such a share.
        jumps: what was missed in intervals of the finest width, nats: F jumps there.
        nodes: at which gradients were taken.
    """

    tokens: Float[Tensor, " tokens"]
    difference: float
    error: float
    roughness: float
    jumps: float
    nodes: int

    @property
    def complete(self) -> bool:
        """Whether the sum is right within `TOLERANCE`."""
        return self.error <= TOLERANCE


def integrated_gradients(
    lens: LensModel, leak: Leak, own: Float[Tensor, "1 tokens d"], baseline: Float[Tensor, "1 tokens d"]
) -> Gradients:
    """Integrated gradients from the average query to the leak; plans attached to the model act.

    Args:
        lens: the model.
        leak: what is explained.
        own: its embeddings.
        baseline: those of the average query at the same places.

    Raises:
        RMuseError: captum is not installed.
    """
    return along_path(lambda embeddings: log_prob(lens, leak, embeddings), own, baseline)


def require_captum() -> None:
    """Nothing, or the error that captum is not installed.

    Raises:
        RMuseError: as it says.
    """
    try:
        import captum.attr  # noqa: F401
    except ImportError as error:
        raise RMuseError(
            "integrated gradients need captum, which is not installed: pip install 'rmuse-interp[attribution]'"
        ) from error


def along_path(
    function: Callable[[Tensor], Tensor],
    own: Float[Tensor, "1 tokens d"],
    baseline: Float[Tensor, "1 tokens d"],
    *,
    budget: int = BUDGET,
) -> Gradients:
    """Integrated gradients of a function of rows, [rows, tokens, d] → [rows], along the straight path.

    Args:
        function: F.
        own: where the path ends.
        baseline: where it begins.
        budget: the most nodes; what was reached by then is given back.
    """
    require_captum()
    path = _Path(function, own, baseline)
    edges = torch.linspace(0, 1, INTERVALS + 1, dtype=torch.float64).tolist()
    todo = list(pairwise(edges))
    while True:
        path.integrate(todo)
        difference = path.at(1.0) - path.at(0.0)
        scale = max(abs(difference), _LEAST)
        missed = path.errors()
        rough = sum(map(abs, missed.values()))
        error = abs(sum(missed.values()))
        done = error <= TOLERANCE * scale and rough <= ROUGHNESS * scale
        todo = [] if done else _halved(missed, rough - ROUGHNESS * scale / 2, (budget - path.nodes) // NODES)
        if not todo:
            break
    jumps = -sum((e for (a, b), e in missed.items() if b - a <= FINEST), start=0.0)
    return Gradients(path.tokens(), difference, error / scale, rough / scale, jumps, path.nodes)


def _halved(missed: dict[Interval, float], excess: float, room: int) -> list[Interval]:
    """Halves of the intervals that missed most, until they are an excess in sum; no more than there is room for."""
    found: list[Interval] = []
    for a, b in sorted(missed, key=lambda interval: -abs(missed[interval])):
        if len(found) + 2 > room or (found and excess <= 0):
            break
        excess -= abs(missed[a, b])
        if b - a > FINEST:
            found += [(a, (a + b) / 2), ((a + b) / 2, b)]
    return found


class _Path:
    """The straight path and what is known along it."""

    def __init__(self, function: Callable[[Tensor], Tensor], own: Tensor, baseline: Tensor):
        from captum.attr import IntegratedGradients

        self._function, self._own, self._baseline = function, own, baseline
        self._gradients = IntegratedGradients(function)
        self._rows = max(NODES, _TOKENS // own.shape[1])
        self._values: dict[float, float] = {}
        self._parts: dict[Interval, Tensor] = {}
        self.nodes = 0

    def at(self, alpha: float) -> float:
        """F at one point of the path that `integrate` has reached."""
        return self._values[alpha]

    def tokens(self) -> Float[Tensor, " tokens"]:
        """The attributions, summed over all intervals."""
        return torch.stack(list(self._parts.values())).sum(dim=0).float()

    def errors(self) -> dict[Interval, float]:
        """Of every interval, by how much its attributions exceed its own difference, nats."""
        return {(a, b): float(part.sum()) - (self.at(b) - self.at(a)) for (a, b), part in self._parts.items()}

    def integrate(self, intervals: Sequence[Interval]) -> None:
        """Take the gradients of intervals; those of the interval they are a half of are given up."""
        self._evaluate(sorted({edge for interval in intervals for edge in interval} - set(self._values)))
        for a, b in intervals:
            for whole in ((a, 2 * b - a), (2 * a - b, b)):
                self._parts.pop(whole, None)
        size = self._rows // NODES
        for start in range(0, len(intervals), size):
            some = intervals[start : start + size]
            begin, end = (self._points([interval[side] for interval in some]) for side in (0, 1))
            # One row per interval: its own straight path is a piece of the whole one.
            found = self._gradients.attribute(end, baselines=begin, n_steps=NODES).detach().sum(dim=-1)
            self._parts |= {interval: row.double().cpu() for interval, row in zip(some, found, strict=True)}
            self.nodes += NODES * len(some)

    def _evaluate(self, alphas: list[float]) -> None:
        with torch.no_grad():
            for start in range(0, len(alphas), self._rows):
                some = alphas[start : start + self._rows]
                values = self._function(self._points(some)).double().tolist()
                self._values |= dict(zip(some, values, strict=True))

    def _points(self, alphas: Sequence[float]) -> Float[Tensor, "rows tokens d"]:
        weights = torch.tensor(alphas, dtype=self._own.dtype, device=self._own.device)[:, None, None]
        return self._baseline + weights * (self._own - self._baseline)
