"""Operators for experiments: states set from a cache (activation patching), and a plain function."""

import inspect
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Operator
from rmuse_interp.edits.state import Slice


class Set(Operator):
    """`h̃ = s`: replace states by given ones, for example from the cache of another run.

        _, clean = lens.run_with_cache(prompt, image)
        op.Set(clean["resid_post", 12]).at(12).on(positions=[5])

    With three axes, states belong to the rows and columns of a padded batch, as `run_with_cache` returns them. With two
    axes, they belong to the positions of one sequence (a row's unmasked tokens, counted from 0) and apply to all rows.
    Tokens after the last state stay unchanged.

    Args:
        states: [batch, tokens, d] or [tokens, d].

    Raises:
        RMuseError: not two or three axes, or no states.
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
        """Whether the states belong to one padded batch (three axes)."""
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
        """The tokens to replace, and the states to put there.

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
    """`h̃ = f(h, step)`, f a plain function: for experiments. It equals only itself and cannot be saved.

    Args:
        function: takes a copy of the [*tokens, d] states and the step (position − prompt_end) of each; returns states
            of the same shape. It must treat each state independently: how states are grouped into calls is not fixed.

    Raises:
        RMuseError: not a function of two arguments; when it runs, a result of another shape.
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
        # Bypass nn.Module, which would register a module and its parameters as a child.
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
