"""`Operator`, the face that all operators share, and `layerwise`, which places them."""

import importlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float, Int
from torch import Tensor

from rmuse_interp.errors import RMuseError
from rmuse_interp.parts import Part
from rmuse_interp.subspace import Subspace

if TYPE_CHECKING:
    from rmuse_interp.edits import Edit


@dataclass(frozen=True, eq=False)
class Explanation:
    """What an operator decides about each state before it edits it; None where it has no such quantity.

    Attributes:
        theta_tar: `∠(u(h), ẑ*)`, radians: how far the refusal target is away; NaN where the operator leaves the state.
        theta_dir: `∠(u(h), v̂)`, radians: how far the direction is away; likewise.
        fraction: λ, the share of the angle that h is rotated by; 0 where the operator leaves the state.
        prototype: index of the chosen refusal prototype among the operator's own, −1 where none was.
    """

    theta_tar: Float[Tensor, "*tokens"] | None = None
    theta_dir: Float[Tensor, "*tokens"] | None = None
    fraction: Float[Tensor, "*tokens"] | None = None
    prototype: Int[Tensor, "*tokens"] | None = None


class Operator(Part):
    """`h ↦ h̃` for states of the residual stream, row by row: no state looks at another one."""

    @abstractmethod
    def forward(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        """The edited states.

        Args:
            h: [*tokens, d] states; not written to.
            step: position − prompt_end of each state (0 at the last prompt token); only operators that know
                the position read it.
        """

    def explain(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Explanation:
        """What `forward` decides about the same states, by the same functions; nothing, where it decides nothing."""
        return Explanation()

    def at(self, layers: Sequence[int]) -> "Edit":
        """The edit that applies this operator to the outputs of decoder blocks `layers` (0-based)."""
        return layerwise(dict.fromkeys(layers, self))

    def protecting(self, rrs: Subspace) -> "Operator":
        """The same operator acting only inside the complement of the RRS: `P_rrs h` is kept (repair D5)."""
        raise RMuseError(f"{type(self).__name__} has no protected form; steer with SlerpToward or Transport")


def layerwise(operators: Mapping[int, Operator]) -> "Edit":
    """The edit with one operator per decoder block, as ``{layer: operator}``; an operator may serve several.

    Raises:
        RMuseError: no layers, or a negative one.
    """
    # Edits live one floor up: this is the one call from the lower floor, made when an edit is asked for.
    return importlib.import_module("rmuse_interp.edits").Edit.from_layers(operators)
