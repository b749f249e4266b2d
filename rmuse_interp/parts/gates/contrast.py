"""The contrast gate: nearer to what is forgotten than to anything else."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import working
from rmuse_interp.maths.sphere import unit
from rmuse_interp.maths.transport import k_medoids
from rmuse_interp.parts.gates.gate import Gate, Readout, require_both


class ContrastGate(Gate):
    """Nearest-neighbour contrast: the highest cosine to a forget state minus the highest to another state.

    `score(h) = mean of the top m of ⟨u(h − c), u(f − c)⟩ − the same over other states`, with c the stored
    centre. In [−2, 2]; a state at the centre scores 0.

    Args:
        forget: [examples, d], `u(f − c)` of forget queries.
        others: [others, d], the same of all queries that must not be steered.
        center: [d], c.
        layer: see `Gate`.
        readout: see `Gate`.
        threshold: see `Gate`.
        top: m, how many neighbours are averaged on either side; 1 is the maximum.
        prefix: see `Gate`.
        scale: see `Gate`.
        expected: see `Gate`.
    """

    forget: Tensor
    others: Tensor
    center: Tensor

    def __init__(
        self,
        forget: Float[Tensor, "examples d"],
        others: Float[Tensor, "others d"],
        center: Float[Tensor, " d"],
        layer: int,
        readout: Readout,
        threshold: float | int = 0.0,
        top: int = 1,
        prefix: str | None = None,
        scale: float | int = 1.0,
        expected: Mapping[str, Any] | None = None,
    ):
        super().__init__(layer, readout, threshold, prefix, scale, expected)
        if not len(forget) or not len(others) or top < 1:
            raise RMuseError(
                f"a contrast needs states on both sides and top ≥ 1, got {len(forget)}, {len(others)} and top={top}"
            )
        self.hold(forget=forget, others=others, center=center)
        self.top = top

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Contrast of cosines per state."""
        exact = working(h)
        direction = unit(exact - self.center.to(exact.dtype))
        near, far = (self._nearness(direction, side.to(exact.dtype)) for side in (self.forget, self.others))
        return near - far

    def _nearness(self, direction: Tensor, side: Tensor) -> Tensor:
        cosines = direction @ side.mT
        return cosines.topk(min(self.top, len(side)), dim=-1).values.mean(dim=-1)

    def _name(self) -> str:
        return f"contrast of {len(self.forget)} forget with {len(self.others)} other states"


def fit_contrast(
    forget: Float[Tensor, "examples d"],
    others: Float[Tensor, "others d"],
    *,
    layer: int,
    readout: Readout,
    threshold: float | int = 0.0,
    top: int = 1,
    cap: int | None = None,
    scale: float | int = 1.0,
) -> ContrastGate:
    """The contrast gate of two sets of states, centred by the mean of the two sides' means.

    Args:
        forget: states of forget queries.
        others: states of the queries that must not be steered.
        layer: where they were read.
        readout: how they were read.
        threshold: set by `choose_threshold` on held-out scores.
        top: neighbours averaged on either side.
        cap: the most states kept on either side (k-medoids), None keeps all.
        scale: see `Gate`.

    Raises:
        RMuseError: an empty side, states that are not finite.
    """
    sides = []
    require_both(forget, others)
    center = (forget.to(torch.float64).mean(dim=0) + others.to(torch.float64).mean(dim=0)) / 2
    for side in (forget, others):
        directions = unit(side.to(torch.float64) - center)
        sides.append(directions if cap is None else directions[k_medoids(directions, cap)])
    return ContrastGate(sides[0], sides[1], center, layer, readout, threshold, top, None, scale)
