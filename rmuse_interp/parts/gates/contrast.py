"""The contrast gate: fires on states nearer to forget states than to any other state."""

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import working
from rmuse_interp.maths.sphere import unit
from rmuse_interp.parts.gates.gate import Gate, Read, Readout, Scorer, require_both


class Contrast(Scorer):
    """Nearest-neighbour contrast: the highest cosine to a forget state minus the highest cosine to an other state.

    `score(h) = mean of the top m of ⟨u(h − c), u(f − c)⟩ − the same over other states`, with c the stored
    centre. In [−2, 2]; a state at the centre scores 0.

    Args:
        forget: [examples, d], `u(f − c)` for states f of forget queries.
        others: [others, d], the same for queries that must not be steered.
        center: [d], c.
        top: m, the number of neighbours averaged on each side; 1 takes the maximum.
    """

    forget: Tensor
    others: Tensor
    center: Tensor

    def __init__(
        self,
        forget: Float[Tensor, "examples d"],
        others: Float[Tensor, "others d"],
        center: Float[Tensor, " d"],
        top: int = 1,
    ):
        super().__init__()
        if not len(forget) or not len(others) or top < 1:
            raise RMuseError(
                f"a contrast needs states on both sides and top ≥ 1, got {len(forget)}, {len(others)} and top={top}"
            )
        self.hold(forget=forget, others=others, center=center)
        self.top = top

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Contrast of cosines, one per state."""
        exact = working(h)
        direction = unit(exact - self.center.to(exact.dtype))
        near, far = (self._nearness(direction, side.to(exact.dtype)) for side in (self.forget, self.others))
        return near - far

    def _nearness(self, direction: Tensor, side: Tensor) -> Tensor:
        cosines = direction @ side.mT
        return cosines.topk(min(self.top, len(side)), dim=-1).values.mean(dim=-1)

    def describe(self) -> str:
        return f"contrast of {len(self.forget)} forget with {len(self.others)} other states"


def fit_contrast(
    forget: Float[Tensor, "examples d"],
    others: Float[Tensor, "others d"],
    *,
    layer: int,
    readout: Readout,
    top: int = 1,
) -> Gate:
    """Fit the contrast gate to two sets of states, centred at the midpoint of the two sides' means.

    Args:
        forget: [examples, d] states of forget queries.
        others: [others, d] states of queries that must not be steered.
        layer: 0-based block where the states were read.
        readout: tokens over which they were read.
        top: number of neighbours averaged on each side.

    Raises:
        RMuseError: an empty side, states that are not finite.
    """
    require_both(forget, others)
    center = (forget.to(torch.float64).mean(dim=0) + others.to(torch.float64).mean(dim=0)) / 2
    near, far = (unit(side.to(torch.float64) - center) for side in (forget, others))
    return Gate(Contrast(near, far, center, top), Read(layer, readout))
