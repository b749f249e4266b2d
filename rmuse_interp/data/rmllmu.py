"""RMLLMU-Bench, what it adds to MLLMU-Bench: questions with reasoning, and files of single questions.

A question of its person rows may carry ``Reasoning``, ``Forget_Attributes``, ``Direct_Question`` and ``Direct_Answer``.
``Reasoning/``, ``Benign/`` and ``Strangers/`` hold a question per row, in ``train-*`` and ``test-*`` files.
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
}
"""Folder of single questions → their kind."""


def tasks(record: Row) -> Iterator[Question]:
    """The one question of a row; with the picture where there is one. Its kind is its folder's, not told by the row."""
    pictured = fields.picture(record.get("image"), "image") is not None
    yield Question("", "reasoning", "", "image" if pictured else "text", record)


def facts(record: Row) -> dict[str, str]:
    """None: what such a question gives away stands in its ``Forget_Attributes``."""
    return {}
