"""MLLMU-Bench, training files: each row has a picture and ``metadata``, a JSON string of ``[{Question, Answer}]``."""

from collections.abc import Iterator
from typing import Final

from rmuse_interp.data import fields
from rmuse_interp.data.fields import Fault, Question
from rmuse_interp.data.rows import Row

MARKS: Final = ("metadata",)
COLUMNS: Final = ("ID", "image", "metadata")


def tasks(record: Row) -> Iterator[Question]:
    """The questions about the picture."""
    found = fields.as_list(record.get("metadata"), "metadata")
    if not found:
        raise Fault("metadata", "required a JSON list of {Question, Answer}, got an empty one")
    for i, question in enumerate(found):
        place = f"metadata[{i}]"
        entry = fields.as_dict(question, place)
        asked = fields.text(entry, "Question", f"{place}."), fields.text(entry, "Answer", f"{place}.")
        yield Question(
            f"generation/{i}",
            "generation",
            place,
            "image",
            dict(zip(("Question", "Ground_Truth"), asked, strict=True)),
        )


def facts(record: Row) -> dict[str, str]:
    """No facts: the format has no biography."""
    return {}
