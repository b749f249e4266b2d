"""Protocols through which a plan is run: `Sentence` (Plan), `Clause` (Edit) and `Verb` (Operator).

The places (hooks, bridge, bundle) are called by a plan's own methods, so they depend on these protocols, not on the
classes.
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
"""`generated`: positions ≥ prompt_end; `response`: positions > prompt_end; `prompt`: positions ≤ prompt_end, after the
images, without special tokens before prompt_end; `all`: all but padding, image tokens and what frames them; `image`: the
prompt's image tokens; `chain`, `answer`: the response between its delimiters and after them; `positions`, `mask`: listed
tokens."""
Kept = Literal["direction", "rotation"]
"""What the RRS is removed from: the direction steered to, or the rotation of the state."""
Per = Literal["query", "token"]
"""Whether a gate decides once per query, from its read-out, or for each token, from that token's state."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Quantities that an operator computes for each state before editing it; None for those it does not have.

    Attributes:
        theta_tar: `∠(u(h), ẑ*)`, the angle to the refusal target in radians; NaN where the state is not edited.
        theta_dir: `∠(u(h), v̂)`, the angle to the direction in radians; NaN where the state is not edited.
        fraction: λ, the fraction of the angle that h is rotated by; 0 where the state is not edited.
        prototype: index of the chosen refusal prototype of the operator, −1 for none.
    """

    theta_tar: Float[Tensor, "*tokens"] | None = None
    theta_dir: Float[Tensor, "*tokens"] | None = None
    fraction: Float[Tensor, "*tokens"] | None = None
    prototype: Int[Tensor, "*tokens"] | None = None


@runtime_checkable
class Verb(Protocol):
    """The interface of an operator to the code that runs it."""

    def __call__(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        """The edited states."""

    def explain(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Explanation:
        """The quantities it computes for each state."""

    @property
    def of_batch(self) -> bool: ...

    @property
    def remembers(self) -> bool: ...

    def starting(self, h: Float[Tensor, "rows d"]) -> Int[Tensor, " rows"]:
        """The choice that each answer keeps to, by the state at its last prompt token."""

    def along(self, choice: Int[Tensor, "*tokens"]) -> "Verb":
        """The same verb with each state's choice made."""

    def given(
        self, chosen: Bool[Tensor, "batch tokens"], call: Slice, width: int
    ) -> tuple[Bool[Tensor, "batch tokens"], Float[Tensor, "batch tokens d"]] | None:
        """The tokens it overwrites and its states there; None for verbs that edit the states they find."""


class Momentary:
    """What a verb is that keeps to nothing from token to token: these members of `Verb`."""

    @property
    def remembers(self) -> bool:
        """Whether it chooses something at the last prompt token and keeps to it for the whole answer."""
        return False

    def starting(self, h: Float[Tensor, "rows d"]) -> Int[Tensor, " rows"]:
        """The choice that each answer keeps to, by the state at its last prompt token; 0 where there is none to make."""
        return torch.zeros(h.shape[:-1], dtype=torch.long, device=h.device)

    def along(self, choice: Int[Tensor, "*tokens"]) -> Verb:
        """The same verb with each state's choice made; itself if it chooses nothing."""
        assert isinstance(self, Verb)
        return self


@runtime_checkable
class Clause(Protocol):
    """The interface of an edit to the code that runs it."""

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
        """The operator at a site, or None."""


@runtime_checkable
class Sentence(Protocol):
    """The interface of a plan to the code that runs it."""

    @property
    def fingerprint(self) -> Mapping[str, object] | None: ...

    @property
    def gates(self) -> list[Gate]: ...

    @property
    def single_pass(self) -> bool: ...

    def __iter__(self) -> Iterator[Clause]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Clause: ...
