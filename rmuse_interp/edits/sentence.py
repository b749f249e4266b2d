"""What runs a plan sees of it: a `Sentence` of `Clause`s. Edits and plans are these; nothing below needs to know more."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rmuse_interp.parts.gates import Gate


@runtime_checkable
class Verb(Protocol):
    """An operator, as what runs it sees it."""

    def __call__(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        """The edited states."""

    def explain(self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None) -> Any:
        """What it decides about each state."""


@runtime_checkable
class Clause(Protocol):
    """An edit, as what runs it sees it."""

    tokens: Any
    modality: Any
    gate: Any
    per: Any
    name: str | None

    def operator_at(self, layer: int) -> Any:
        """The operator there, or None."""


@runtime_checkable
class Sentence(Protocol):
    """A plan, as what runs it sees it."""

    fingerprint: dict[str, Any] | None

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def to(self, device: torch.device) -> "Sentence":
        """The same plan on a device."""

    @property
    def layers(self) -> list[int]:
        """Edited blocks."""

    @property
    def gates(self) -> list[Gate]:
        """The distinct gates."""

    @property
    def reads(self) -> list[int]:
        """Blocks at which a gate reads."""

    @property
    def single_pass(self) -> bool:
        """Whether all gates can decide while the steered pass runs."""
