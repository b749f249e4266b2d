"""Operators for a laboratory: states put in from a cache (activation patching), and a plain function."""

import inspect
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Operator
from rmuse_interp.edits.state import Slice


class Set(Operator):
    """`h̃ = s`: states from elsewhere in the place of those found, such as the cache of another run has them.

        _, clean = lens.run_with_cache(prompt, image)
        op.Set(clean["resid_post", 12]).at(12).on(positions=[5])

    Three axes are of a batch: the state of each row and column of the padded batch, as `run_with_cache` gives them.
    Two axes are of one sequence: the state of each position, counting a row's unmasked tokens from 0, for all rows.
    Tokens behind the last state stay as they are.

    Args:
        states: [batch, tokens, d] or [tokens, d].

    Raises:
        RMuseError: another number of axes, or no states.
    """

    states: Tensor

    def __init__(self, states: Float[Tensor, "*batch tokens d"]):
        super().__init__()
        if not isinstance(states, Tensor) or states.ndim not in (2, 3) or not states.numel():
            shape = list(states.shape) if isinstance(states, Tensor) else type(states).__name__
            raise RMuseError(
                f"states [batch, tokens, d] or [tokens, d] were required, got {shape}; take them from run_with_cache"
            )
        self.hold(states=states)

    @property
    def of_batch(self) -> bool:
        """Whether the states are those of one padded batch."""
        return self.states.ndim == 3

    def forward(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        raise RMuseError(
            "op.Set needs to know which tokens it is given: place it with .at(…) and run the plan"
        )

    def given(
        self, chosen: Bool[Tensor, "batch tokens"], call: Slice, width: int
    ) -> tuple[Bool[Tensor, "batch tokens"], Float[Tensor, "batch tokens d"]]:
        """Where a state is put, and which.

        Raises:
            RMuseError: states of another batch, or too few for the prompt.
        """
        count, batch = self.states.shape[-2], len(chosen)
        if self.states.ndim == 3:
            rows = len(self.states)
            if batch % rows or count < width:
                raise RMuseError(
                    f"states of the {batch} × {width} tokens of this batch were required, got {rows} × {count}: take "
                    "them from the same padded batch, or of one sequence, [tokens, d], by position"
                )
            index = call.column.expand_as(chosen)
            row = torch.arange(batch, device=index.device).unsqueeze(-1) // (batch // rows)
            return chosen & (index < count), self.states[row, index.clamp(0, count - 1)]
        index = call.position
        if call.past < width and bool((chosen & (index >= count)).any()):
            raise RMuseError(
                f"a state for position {int(index[chosen].max())} was required, op.Set has {count}: choose "
                "others with .on(positions=…)"
            )
        return chosen & (index < count), self.states[index.clamp(0, count - 1)]

    def describe(self) -> str:
        return f"put in {' × '.join(map(str, self.states.shape[:-1]))} given states"


class Call(Operator):
    """`h̃ = f(h, step)`, f a plain function: for trying things out. It is equal to itself alone, and cannot be saved.

    Args:
        function: gets [*tokens, d] states, a copy of its own, and the step (position − prompt_end) of each; gives back
            states of the same shape. No state may look at another one: which of them come together is not fixed.

    Raises:
        RMuseError: no function of two arguments; when it runs, a result of another shape.
    """

    function: Callable[[Tensor, Tensor | None], Tensor]

    def __init__(self, function: Callable[[Tensor, Tensor | None], Tensor]):
        super().__init__()
        try:
            inspect.signature(function).bind(None, None)
        except (TypeError, ValueError) as error:
            raise RMuseError(
                f"a function of the states and their steps was required (lambda h, step: …), got {function!r}: {error}"
            ) from error
        # Past nn.Module, which would take a module with its parameters as a part of this one.
        object.__setattr__(self, "function", function)

    def forward(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        found = self.function(h.clone(), step)
        if not isinstance(found, Tensor) or found.shape != h.shape:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise RMuseError(
                f"{self.describe()} had to give states of shape {list(h.shape)}, it gave {shape}"
            )
        return found.to(h.dtype)

    def require_storable(self) -> None:
        raise RMuseError(
            f"a plain function cannot be saved, hashed or resumed, for its code has no record ({self.describe()}): write "
            "an Operator class in a module of your own, or leave the edit out with plan.without(op.Call)"
        )

    def describe(self) -> str:
        return f"call {getattr(self.function, '__qualname__', type(self.function).__name__)}"
