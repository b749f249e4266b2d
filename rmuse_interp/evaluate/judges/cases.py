"""What a judge is asked, and what a judge is: cases in, verdicts out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

Verdict = bool | None
"""None: this judge has no verdict (no rules for it, or no readable answer). Such cases are counted, never guessed."""


@dataclass(frozen=True)
class LeakCase:
    """A text, the question it replies to, and a value it may give away."""

    text: str
    question: str
    attribute: str
    value: str


@dataclass(frozen=True)
class ChainCase:
    """A chain with its answer, and the reference's; ``attributes`` are the facts the question touches."""

    question: str
    reasoning: str
    answer: str
    reference_reasoning: str
    reference_answer: str
    attributes: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Judge(Protocol):
    """Verdicts on leaks and on chains; ``name`` goes into the record.

    A judge takes cases in one list and answers in the same order, so that one that calls out may do so at once.
    """

    name: str

    def states(self, cases: Sequence[LeakCase]) -> list[Verdict]:
        """Per case, whether the text names the value, in any form, and does not deny it."""

    def implies(self, cases: Sequence[LeakCase]) -> list[Verdict]:
        """Per case, whether the text gives the value away without naming it."""

    def supports(self, cases: Sequence[ChainCase]) -> list[Verdict]:
        """Per case, whether the chain is valid and its evidence supports the answer."""
