"""MLLMU-Bench, evaluation files: one row per person with three tasks, nested as structs, arrays or JSON strings.

RMLLMU-Bench's rows are the same, with ``Reasoning`` and ``Forget_Attributes`` added to their questions.
"""

from collections.abc import Iterator
from typing import Final

from rmuse_interp.data import fields
from rmuse_interp.data.example import Kind, Modality
from rmuse_interp.data.fields import Fault, Question
from rmuse_interp.data.rows import Row

MARKS: Final = ("Classification_Task", "Generation_Task", "Mask_Task")
COLUMNS: Final = ("ID", "image", "images", "biography", *MARKS)
MODALITIES: Final[dict[str, Modality]] = {"Image_Textual": "image", "Pure_Text": "text"}


def tasks(record: Row) -> Iterator[Question]:
    """Every question of a person: open questions, cloze sentences, multiple choice."""
    named: tuple[tuple[str, Kind], ...] = (("Generation_Task", "generation"), ("Mask_Task", "cloze"))
    for column, kind in named:
        for i, question in enumerate(fields.as_list(record.get(column), column)):
            place = f"{column}[{i}]"
            entry = fields.as_dict(question, place)
            modality = MODALITIES.get(str(entry.get("Type")))
            if modality is None:
                found = entry.get("Type")
                raise Fault(f"{place}.Type", f"required Image_Textual or Pure_Text, got {found!r}")
            yield Question(f"{kind}/{i}", kind, place, modality, entry)
    classes = fields.plain(record.get("Classification_Task"), "Classification_Task")
    if classes is None:
        return
    for name, modality in MODALITIES.items():
        where = f"Classification_Task.{name}_Questions"
        asked = fields.as_dict(classes, "Classification_Task").get(f"{name}_Questions")
        for i, question in enumerate(fields.as_list(asked, where)):
            place = f"{where}[{i}]"
            entry = fields.as_dict(question, place)
            yield Question(f"classification/{i}", "classification", place, modality, entry)


def facts(record: Row) -> dict[str, str]:
    """The facts in the biography."""
    return fields.biography(record.get("biography"))
