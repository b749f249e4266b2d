"""What runs a plan sees of it: a `Sentence` of `Clause`s with `Verb`s. Plan, Edit and Operator are these.

The places (hooks, bridge, bundle) are called by a plan's own methods, so they know these protocols and not the classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rmuse_interp.data.example import Modality
from rmuse_interp.edits.spoken import Delimiters
from rmuse_interp.edits.state import Slice
from rmuse_interp.models.site import Site
from rmuse_interp.parts.gates import Gate

Tokens = Literal[
    "generated",
    "prompt_end",
    "prompt",
    "response",
    "all",
    "image",
    "chain",
    "answer",
    "positions",
    "mask",
]
"""`generated`: positions ≥ prompt_end; `response`: > it; `prompt`: ≤ it, behind images, special tokens before it aside;
`all`: all but image tokens and padding; `image`: the prompt's image tokens; `chain`, `answer`: the response between its
delimiters and behind them; `positions`, `mask`: those that the edit lists."""
Kept = Literal["direction", "rotation"]
"""What an operator that keeps the RRS is cleared of it: the direction it steers to, or the rotation of the state."""
Per = Literal["query", "token"]
"""A gate decides once per query, from its read-out, or for each token from that token's own state."""


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


@runtime_checkable
class Verb(Protocol):
    """An operator, as what runs it sees it."""

    def __call__(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        """The edited states."""

    def explain(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Explanation:
        """What it decides about each state."""

    @property
    def of_batch(self) -> bool: ...

    def given(
        self, chosen: Bool[Tensor, "batch tokens"], call: Slice, width: int
    ) -> tuple[Bool[Tensor, "batch tokens"], Float[Tensor, "batch tokens d"]] | None:
        """Where it puts states whatever was there, and which; None for verbs that edit what they find."""


@runtime_checkable
class Clause(Protocol):
    """An edit, as what runs it sees it."""

    @property
    def tokens(self) -> Tokens: ...

    @property
    def positions(self) -> Sequence[int] | None: ...

    @property
    def mask(self) -> Bool[Tensor, "rows columns"] | None: ...

    @property
    def delimiters(self) -> Delimiters: ...

    @property
    def modality(self) -> Modality | None: ...

    @property
    def gate(self) -> Gate | None: ...

    @property
    def per(self) -> Per: ...

    @property
    def name(self) -> str | None: ...

    @property
    def sites(self) -> list[Site]: ...

    def operator_at(self, site: Site) -> Verb | None:
        """The operator there, or None."""


@runtime_checkable
class Sentence(Protocol):
    """A plan, as what runs it sees it."""

    @property
    def fingerprint(self) -> Mapping[str, object] | None: ...

    @property
    def gates(self) -> list[Gate]: ...

    @property
    def single_pass(self) -> bool: ...

    def __iter__(self) -> Iterator[Clause]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Clause: ...

    def to(self, device: torch.device) -> "Sentence":
        """The same plan on a device."""
