"""Judges of a chain of thought: does it imply a value, is it valid. The offline one goes by rules.

A judge takes cases in one list and answers in the same order, so that one that calls out may do so at once.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

from rmuse_interp.evaluate.text import Lexicon, contains, content_words, normalise, numbers

CONTENT_AGREEMENT: Final = 0.8
"""Least F1 of content words between a chain and its reference for the rules to call them the same."""


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
    """Verdicts on leaks and on chains; ``name`` goes into the record."""

    name: str

    def implies(self, cases: Sequence[LeakCase]) -> list[bool]:
        """Per case, whether the text gives the value away without naming it."""

    def supports(self, cases: Sequence[ChainCase]) -> list[bool]:
        """Per case, whether the chain is valid and its evidence supports the answer."""


class RulesJudge:
    """The offline judge: normalised matching and the benchmark's own tables.

    *Implied*: the text holds something that entails the value by the table (a city gives its country away) and
    that the question did not already say. *Valid and supported*, all three:

    1. the chain says what the reference says: the same numbers, at least `CONTENT_AGREEMENT` of the content
       words (F1), and every fact and the answer where the reference states them;
    2. the conclusion follows: the last sentence states or entails the given answer, or the reference itself
       reaches that answer without stating it (a yes or no);
    3. the answer is not another one than the reference's where the conclusion does not state it.

    It knows only chains close to the reference: other wordings of a valid chain count as invalid, which makes
    RCR a lower bound.

    >>> judge = RulesJudge(entails={"Tokyo": ["Japan"]})
    >>> judge.implies([LeakCase("He lives in Tokyo.", "Where does he live?", "country", "Japan"),
    ...                LeakCase("He lives in Japan.", "Where does he live?", "city", "Tokyo")])
    [True, False]
    """

    name = "rules"

    def __init__(
        self,
        aliases: Mapping[str, Sequence[str]] | None = None,
        entails: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.lexicon = Lexicon(aliases, entails)

    def implies(self, cases: Sequence[LeakCase]) -> list[bool]:
        """Per case, whether the text holds what entails the value and the question did not say."""
        return [self._implies(case) for case in cases]

    def supports(self, cases: Sequence[ChainCase]) -> list[bool]:
        """Per case, whether the chain matches its reference and supports its answer."""
        return [self._supports(case) for case in cases]

    def _implies(self, case: LeakCase) -> bool:
        text, question = normalise(case.text), normalise(case.question)
        return any(
            contains(text, term) and not contains(question, term)
            for term in self.lexicon.implied_by(case.value)
        )

    def _supports(self, case: ChainCase) -> bool:
        lexicon, chain, reference = (
            self.lexicon,
            normalise(case.reasoning),
            normalise(case.reference_reasoning),
        )
        if numbers(chain) != numbers(reference):
            return False
        said, due = content_words(chain), content_words(reference)
        if 2 * len(said & due) < CONTENT_AGREEMENT * (len(said) + len(due)):
            return False
        for value in (*case.attributes.values(), case.reference_answer):
            if lexicon.states(case.reference_reasoning, value) and not lexicon.states(case.reasoning, value):
                return False
        if lexicon.entails(last_sentence(case.reasoning), case.answer):
            return True
        unstated = not lexicon.entails(last_sentence(case.reference_reasoning), case.reference_answer)
        return unstated and lexicon.same(case.answer, case.reference_answer)


def last_sentence(text: str) -> str:
    """The last sentence of a chain, its conclusion.

    >>> last_sentence("Oslo is a city. It is in Norway.")
    'It is in Norway.'
    """
    sentences = [s for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s]
    return sentences[-1] if sentences else ""
