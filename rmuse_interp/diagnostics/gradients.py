"""Integrated gradients of a leaked token's log-probability over the embeddings that enter the language model.

    IG_i = (x_i − x'_i) · ∫₀¹ ∂F(x' + α (x − x'))/∂x_i dα        (Sundararajan et al. 2017, arXiv 1703.01365)

x are the leak's embeddings, image features included, x' those of the average query (`reference`), F the log-probability
in nats. Summed over all tokens they give F(x) − F(x') (completeness).

Along that path, F of a trained transformer is not smooth: attention switches within thousandths of it, and a fixed
number of nodes can miss the sum by more than its size, or hit it by luck. So the path is cut into intervals, each
integrated by captum with a few Gauss-Legendre nodes. Completeness holds on each of them too, and the intervals with the
largest errors are halved until the sum of absolute errors is small.

Running plans are hooks made of differentiable operations, so gradients pass through them. Their piecewise-constant
parts, gates and the choice of the nearest prototype, must be `frozen` first: where these change, F jumps, and gradients
do not see jumps. Halving stops at a finest width; the error left there is `jumps`.
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
"""Tolerated error of the sum, as a share of the difference."""
ROUGHNESS: Final = 0.1
"""Tolerated sum of the intervals' absolute errors, as a share of the difference; rules out lucky cancellation."""
NODES: Final = 4
"""Number of nodes per interval."""
INTERVALS: Final = 8
"""Number of intervals at first."""
FINEST: Final = 2.0**-14
"""Width at which an interval is no longer halved."""
BUDGET: Final = 1024
"""Maximum number of nodes for one leak."""
_LEAST: Final = 0.05
"""Smallest difference, in nats, used as a divisor, so that noise does not count as an error."""
_TOKENS: Final = 4096
"""Maximum number of tokens in one pass, over all nodes."""

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Gradients:
    """Integrated gradients of one leak.

    Attributes:
        tokens: attribution of each token, nats.
        difference: F(x) − F(x'), nats, to which they should add up.
        error: error of their sum, as a share of the difference (of at least `_LEAST` nats).
        roughness: sum of the intervals' absolute errors, as such a share.
        jumps: error in intervals of the finest width, nats: F jumps there.
        nodes: number of nodes at which gradients were taken.
    """

    tokens: Float[Tensor, " tokens"]
    difference: float
    error: float
    roughness: float
    jumps: float
    nodes: int

    @property
    def complete(self) -> bool:
        """Whether the sum is correct within `TOLERANCE`."""
        return self.error <= TOLERANCE


def integrated_gradients(
    lens: LensModel, leak: Leak, own: Float[Tensor, "1 tokens d"], baseline: Float[Tensor, "1 tokens d"]
) -> Gradients:
    """Compute integrated gradients from the average query to the leak; plans attached to the model act.

    Args:
        lens: the model.
        leak: the leak to explain.
        own: its embeddings.
        baseline: embeddings of the average query at the same places.

    Raises:
        RMuseError: captum is not installed.
    """
    return along_path(lambda embeddings: log_prob(lens, leak, embeddings), own, baseline)


def require_captum() -> None:
    """Raise unless captum is installed.

    Raises:
        RMuseError: captum is not installed.
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
    """Compute integrated gradients of a function of rows, [rows, tokens, d] → [rows], along the straight path.

    Args:
        function: F.
        own: end of the path.
        baseline: start of the path.
        budget: maximum number of nodes; the result reached by then is returned.
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
    """Halve the intervals with the largest errors until these cover the excess, within the room left."""
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
        """Return F at a point of the path that `integrate` has evaluated."""
        return self._values[alpha]

    def tokens(self) -> Float[Tensor, " tokens"]:
        """Return the attributions, summed over all intervals."""
        return torch.stack(list(self._parts.values())).sum(dim=0).float()

    def errors(self) -> dict[Interval, float]:
        """Return, per interval, by how much its attributions exceed its own difference, nats."""
        return {(a, b): float(part.sum()) - (self.at(b) - self.at(a)) for (a, b), part in self._parts.items()}

    def integrate(self, intervals: Sequence[Interval]) -> None:
        """Take the gradients of intervals, and discard those of the intervals they halve."""
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
