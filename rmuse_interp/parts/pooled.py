"""`Pooled`: span-pooled states of a set of examples, the only thing that fitting sees of a model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError


def require_finite(
    states: Float[Tensor, "examples *rest"], name: str, ids: Sequence[str] | None = None
) -> Float[Tensor, "examples *rest"]:
    """Return the states; raise unless they are all finite.

    Args:
        states: one row per example.
        name: name of the states, for the message.
        ids: ids of the examples, for the message; row numbers by default.

    Raises:
        RMuseError: naming the first examples that are not finite.
    """
    bad = (
        (~torch.isfinite(states).flatten(1).all(dim=1)).nonzero().flatten().tolist() if states.numel() else []
    )
    if bad:
        named = ", ".join(str(ids[i]) if ids is not None else f"row {i}" for i in bad[:3])
        raise RMuseError(
            f"finite activations were required, {name} has NaN or infinity in {len(bad)} of {len(states)}"
            f" examples ({named}{', …' if len(bad) > 3 else ''}): load the model with dtype float32 or bfloat16"
        )
    return states


@dataclass(frozen=True, eq=False)
class Pooled:
    """`φ_l(x; S) = mean_{t ∈ S} h[l, t]` (eq. 4.1) for a set of examples at a list of blocks.

    Values are keyed by id, never by position alone: `select` puts two records in one order before they are
    subtracted.

    Args:
        states: one pooled state per example and block.
        ids: of the examples, distinct.
        layers: the 0-based blocks, in the order of the second axis.
        span: what was pooled over, in a word (``answer``, ``cot``, ``question`` …).

    Raises:
        RMuseError: lengths that disagree, ids given twice, states that are not finite.
    """

    states: Float[Tensor, "examples layers d"]
    ids: tuple[str, ...]
    layers: tuple[int, ...]
    span: str

    def __post_init__(self) -> None:
        found = tuple(self.states.shape[:2])
        if found != (len(self.ids), len(self.layers)):
            raise RMuseError(
                f"pooled states need one row per id and block, got {found} for {len(self.ids)} ids and "
                f"{len(self.layers)} blocks"
            )
        if len(set(self.ids)) != len(self.ids):
            twice = next(name for name in self.ids if self.ids.count(name) > 1)
            raise RMuseError(f"pooled states need distinct ids, got {twice!r} twice")
        require_finite(self.states, f"the pooled {self.span}", self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def d(self) -> int:
        """Width of the residual stream."""
        return int(self.states.shape[2])

    def at(self, layer: int) -> Float[Tensor, "examples d"]:
        """States at one block.

        Raises:
            RMuseError: a block that was not collected.
        """
        if layer not in self.layers:
            raise RMuseError(f"block {layer} was not collected, only {list(self.layers)}; collect it first")
        return self.states[:, self.layers.index(layer)]

    def select(self, ids: Iterable[str]) -> "Pooled":
        """The same record for these examples, in this order.

        Raises:
            RMuseError: an id that is not in the record.
        """
        row = {name: i for i, name in enumerate(self.ids)}
        wanted = tuple(ids)
        missing = [name for name in wanted if name not in row]
        if missing:
            raise RMuseError(
                f"pooled {self.span} states of {missing[0]!r} were required, none were collected"
            )
        rows = torch.tensor([row[name] for name in wanted], dtype=torch.long, device=self.states.device)
        return Pooled(self.states[rows], wanted, self.layers, self.span)
