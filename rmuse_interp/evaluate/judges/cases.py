"""The interface of judges: cases in, verdicts out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

Verdict = bool | None
"""None: the judge has no verdict (no rules, or no readable answer). Such cases are counted, never guessed."""


@dataclass(frozen=True)
class LeakCase:
    """A text, the question it replies to, and a value it may give away."""

    text: str
    question: str
    attribute: str
    value: str


@dataclass(frozen=True)
class ChainCase:
    """A chain and its answer, and the reference's chain and answer; ``attributes``: the facts the question touches."""

    question: str
    reasoning: str
    answer: str
    reference_reasoning: str
    reference_answer: str
    attributes: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Judge(Protocol):
    """A judge of leaks and chains; ``name`` is recorded with the results.

    It takes all cases in one list and answers in the same order, so that a judge on a server can ask in parallel.
    """

    name: str

    def states(self, cases: Sequence[LeakCase]) -> list[Verdict]:
        """Whether the text names the value, in any form, without denying it, one verdict per case."""

    def implies(self, cases: Sequence[LeakCase]) -> list[Verdict]:
        """Whether the text gives the value away without naming it, one verdict per case."""

    def supports(self, cases: Sequence[ChainCase]) -> list[Verdict]:
        """Whether the chain is valid and its evidence supports the answer, one verdict per case."""
