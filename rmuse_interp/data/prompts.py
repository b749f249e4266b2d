"""Prompts of the three tasks, word for word as in MLLMU-Bench."""

from collections.abc import Mapping

CLASSIFICATION_INSTRUCTION = "Just give ONE letter representing the answer directly."
CLOZE_INSTRUCTION = "Please **ONLY** provide the correct answer that should replace the [Blank]."

GENERATION_INSTRUCTION = (
    "Answer the question based on your trained knowledge in one sentence accurately in ENGLISH."
)


def classification_prompt(question: str, options: Mapping[str, str]) -> str:
    """The question, its options one per line as ``A: …``, and the request for one letter.

    Options that are ``None`` (a parquet struct's filler for keys a question lacks) are left out.

    >>> print(classification_prompt("Where does she live?", {"A": "Oslo", "B": "Rome"}))
    Where does she live?
    A: Oslo
    B: Rome
    Just give ONE letter representing the answer directly.
    """
    lines = [f"{letter}: {text}" for letter, text in options.items() if text is not None]
    return "\n".join([question, *lines, CLASSIFICATION_INSTRUCTION])


def cloze_prompt(question: str) -> str:
    """The sentence with every ``__`` turned into ``[Blank]``, and the request for the missing words alone.

    >>> print(cloze_prompt("She lives in __."))
    She lives in [Blank].
    Please **ONLY** provide the correct answer that should replace the [Blank].
    """
    return f"{question.replace('__', '[Blank]')}\n{CLOZE_INSTRUCTION}"


def generation_prompt(question: str) -> str:
    """The question and the request for one sentence; for measuring ROUGE-L, not for eliciting reasoning.

    >>> print(generation_prompt("Where does she live?"))
    Where does she live?
    Answer the question based on your trained knowledge in one sentence accurately in ENGLISH.
    """
    return f"{question}\n{GENERATION_INSTRUCTION}"
