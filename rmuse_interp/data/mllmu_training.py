"""MLLMU-Bench, training files: a picture and ``metadata``, a JSON string of ``[{Question, Answer}]``, per row."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rmuse_interp.data import fields
from rmuse_interp.data.fields import Asked, Fault

MARKS: Final = ("metadata",)
COLUMNS: Final = ("ID", "image", "metadata")


def tasks(record: Mapping[str, Any]) -> Iterator[Asked]:
    """The questions about the picture."""
    found = fields.as_list(record.get("metadata"), "metadata")
    if not found:
        raise Fault("metadata", "required a JSON list of {Question, Answer}, got an empty one")
    for i, question in enumerate(found):
        place = f"metadata[{i}]"
        entry = fields.as_dict(question, place)
        asked = fields.text(entry, "Question", f"{place}."), fields.text(entry, "Answer", f"{place}.")
        yield Asked(
            f"generation/{i}",
            "generation",
            place,
            "image",
            dict(zip(("Question", "Ground_Truth"), asked, strict=True)),
        )


def facts(record: Mapping[str, Any]) -> dict[str, str]:
    """None: the format has no biography."""
    return {}
