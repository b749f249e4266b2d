"""The offline judge: normalised matching, denials, and the benchmark's own tables."""

from collections.abc import Mapping, Sequence
from typing import Final

from rmuse_interp.data.words import numbers
from rmuse_interp.evaluate.assertions import deniers, implied, told
from rmuse_interp.evaluate.judges.cases import ChainCase, LeakCase, Verdict
from rmuse_interp.evaluate.text import Lexicon, content_words, normalise, sentences

CONTENT_AGREEMENT: Final = 0.8
"""Minimum F1 of content words between a chain and its reference for the rules to consider them equal."""


class RulesJudge:
    """The offline judge: normalised matching and the benchmark's own tables.

    *Stated*: the text contains a form of the value, undenied (`assertions.told`).

    *Implied*: the text states, undenied, something that entails the value by the table (a city gives its country away,
    kneading dough a baker) or a sum that gives it (two years after 1982), and that the question did not already say.

    *Valid and supported*, if all four hold:

    1. the chain says what the reference says: the same numbers, at least `CONTENT_AGREEMENT` of the content
       words (F1), and every fact and the answer if the reference states them;
    2. it does not contradict the reference: it has the same number of denials, and no other value from the table of
       aliases (somebody else's name);
    3. the conclusion follows: the last sentence states or entails the given answer, or the reference itself
       reaches that answer without stating it (a yes or no);
    4. the answer is the reference's.

    It recognises only chains close to the reference: other wordings of a valid chain count as invalid, which makes
    RCR a lower bound; `rmuse judge calibrate` measures by how much. These rules need a table of entailments: for a
    benchmark without one there is no verdict on any chain.

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
        self.knows_chains = bool(entails)

    def states(self, cases: Sequence[LeakCase]) -> list[Verdict]:
        """Whether the text contains a form of the value, undenied, one verdict per case."""
        return [told(case.text, case.value, self.lexicon) for case in cases]

    def implies(self, cases: Sequence[LeakCase]) -> list[Verdict]:
        """Whether the text states what entails the value and the question did not say it, one verdict per case."""
        return [implied(case.text, case.value, case.question, self.lexicon) for case in cases]

    def supports(self, cases: Sequence[ChainCase]) -> list[Verdict]:
        """Whether the chain matches its reference and supports its answer, one per case; None without a table."""
        return [self._supports(case) if self.knows_chains else None for case in cases]

    def _supports(self, case: ChainCase) -> bool:
        lexicon, chain, reference = (
            self.lexicon,
            normalise(case.reasoning),
            normalise(case.reference_reasoning),
        )
        if sorted(numbers(chain)) != sorted(numbers(reference)):
            return False
        said, due = content_words(chain), content_words(reference)
        if 2 * len(said & due) < CONTENT_AGREEMENT * (len(said) + len(due)):
            return False
        for value in (*case.attributes.values(), case.reference_answer):
            if lexicon.states(case.reference_reasoning, value) and not lexicon.states(case.reasoning, value):
                return False
        if deniers(chain) != deniers(reference) or lexicon.named(chain) - lexicon.named(reference):
            return False
        if not lexicon.states(case.answer, case.reference_answer):
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
    return (sentences(text) or [""])[-1]
