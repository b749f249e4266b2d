"""What RMLLMU-Bench adds to MLLMU-Bench: questions with reasoning, and files of single questions.

Questions in person rows may have ``Reasoning``, ``Forget_Attributes``, ``Direct_Question`` and ``Direct_Answer``.
``Reasoning/``, ``Benign/``, ``Strangers/`` and ``Namesakes/`` hold one question per row, in ``train-*`` and ``test-*``
files.
"""

from collections.abc import Iterator
from typing import Final

from rmuse_interp.data import fields
from rmuse_interp.data.example import Kind
from rmuse_interp.data.fields import Question
from rmuse_interp.data.rows import Row

MARKS: Final = ("Question", "Ground_Truth")
QUESTION_COLUMNS: Final = (
    "ID",
    "image",
    "Question",
    "Ground_Truth",
    "Reasoning",
    "Forget_Attributes",
    "Direct_Question",
    "Direct_Answer",
)
QUESTION_FOLDERS: Final[dict[str, Kind]] = {
    "Reasoning": "reasoning",
    "Benign": "benign",
    "Strangers": "stranger",
    "Namesakes": "benign",
}
"""Folder of single questions → their kind."""


def tasks(record: Row) -> Iterator[Question]:
    """The row's single question, with its picture if it has one. The folder determines its kind, not the row."""
    pictured = fields.picture(record.get("image"), "image") is not None
    yield Question("", "reasoning", "", "image" if pictured else "text", record)


def facts(record: Row) -> dict[str, str]:
    """No facts: what such a question gives away is in its ``Forget_Attributes``."""
    return {}
