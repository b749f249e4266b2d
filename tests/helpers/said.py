"""Transcripts of given responses, and the metrics that they have."""

from rmuse_interp.data import Example
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.evaluate.scores import transcribe

THINK = ("<think>", "</think>")
METRICS = {
    "ril",
    "ril_explicit",
    "ril_implicit",
    "rcr",
    "choice",
    "classification",
    "rouge_l",
    "cloze",
    "exact",
    "stated",
    "refusal_rate",
    "repetition_rate",
    "malformed_rate",
    "garbled_rate",
    "unended_rate",
    "other_language_rate",
    "step_recall",
    "distinct_bigrams",
    "n",
}
"""What every split of ``scores.json`` has."""


def said(response: str, number: int = 0, **fields) -> Transcript:
    """A transcript of a response; fields of the example may be given."""
    given = {"question": "Where does this person live?", "answer": "Oslo", "kind": "generation", **fields}
    if given["kind"] == "classification":
        given.setdefault("options", {"A": "Oslo", "B": "Rome"})
    example = Example(
        f"forget_5/p/{given['kind']}/{number}", given.pop("split", "forget"), modality="image", **given
    )
    return transcribe(example, "m", response, THINK)
