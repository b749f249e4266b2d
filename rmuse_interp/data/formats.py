"""The five formats, recognised by a file's content, never by its name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from rmuse_interp import RMuseError
from rmuse_interp.data import mllmu, mllmu_training, rmllmu, rtofu, umu
from rmuse_interp.data.fields import Question
from rmuse_interp.data.rows import Row


@dataclass(frozen=True)
class Format:
    """A format: the columns only it has (`marks`), all columns to read, and how a row becomes questions and facts.

    `lacks` names what fitting or scoring needs but the format never has, and the remedy. Where `has_test` is false,
    a benchmark has no Test_Set and its test splits are empty.
    """

    name: str
    marks: tuple[str, ...]
    columns: tuple[str, ...]
    tasks: Callable[[Row], Iterator[Question]]
    facts: Callable[[Row], dict[str, str]]
    lacks: tuple[str, ...] = ()
    has_test: bool = True


_BARE: Final = "no reasoning: `rmuse data annotate` writes it, and `rmuse fit --traces own` does without"
UNTESTED: Final = "no Test_Set: forgetting in new wordings and photographs is not measured"
_NO_FACTS: Final = "no attributes: leakage (RIL) is measured on the answers' values alone"

MLLMU: Final = Format(
    "MLLMU-Bench evaluation", mllmu.MARKS, mllmu.COLUMNS, mllmu.tasks, mllmu.facts, (_BARE,)
)
MLLMU_TRAINING: Final = Format(
    "MLLMU-Bench training",
    mllmu_training.MARKS,
    mllmu_training.COLUMNS,
    mllmu_training.tasks,
    mllmu_training.facts,
    (_BARE, UNTESTED, _NO_FACTS, "no text-only questions: those stay as they are, whoever they are about"),
    has_test=False,
)
UMU: Final = Format(
    "UMU-Bench", umu.MARKS, umu.COLUMNS, umu.tasks, umu.facts, (_BARE, UNTESTED), has_test=False
)
RTOFU: Final = Format(
    "R-TOFU",
    rtofu.MARKS,
    rtofu.COLUMNS,
    rtofu.tasks,
    rtofu.facts,
    (_NO_FACTS, "no pictures: questions with a picture stay as they are"),
    has_test=False,
)
RMLLMU: Final = Format("RMLLMU-Bench", mllmu.MARKS, mllmu.COLUMNS, mllmu.tasks, mllmu.facts)
"""Its rows have MLLMU-Bench's columns; the reasoning in their questions tells them apart."""
QUESTIONS: Final = Format(
    "RMLLMU-Bench questions", rmllmu.MARKS, rmllmu.QUESTION_COLUMNS, rmllmu.tasks, rmllmu.facts
)
TOLD_BY_COLUMNS: Final = (MLLMU, MLLMU_TRAINING, UMU, RTOFU, QUESTIONS)


def told(columns: tuple[str, ...], name: str) -> Format:
    """The format that a file's columns identify.

    Raises:
        RMuseError: the columns fit no format (lists what each format has) or several.
    """
    found = [f for f in TOLD_BY_COLUMNS if set(f.marks) & set(columns)]
    if len(found) > 1:
        which = " and ".join(f"{f.name} ({', '.join(m for m in f.marks if m in columns)})" for f in found)
        raise RMuseError(
            f"{name}: required the columns of one format, got those of {which}; drop one of them"
        )
    if not found:
        wanted = "; ".join(f"{f.name}: one of {', '.join(f.marks)}" for f in TOLD_BY_COLUMNS)
        raise RMuseError(
            f"{name}: required the columns of a known format ({wanted}), got {', '.join(columns)}"
        )
    if found[0] is not RTOFU and "ID" not in columns:
        raise RMuseError(f"{name}: required the column 'ID', got {', '.join(columns)}")
    return found[0]
