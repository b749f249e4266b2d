"""RMLLMU-Bench folders, and MLLMU-Bench's own: parquet rows in, `Example`s out.

A folder per split, each with ``train-*.parquet`` (and ``test-*.parquet`` where the format has them). Nested
values may be structs, maps, numpy arrays or JSON strings. Every fault names file, row (0-based) and field.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rmuse_interp.data import fields
from rmuse_interp.data.example import Example, Kind, Modality
from rmuse_interp.data.fields import Fault
from rmuse_interp.errors import RMuseError

BATCH_ROWS: Final = 16
PERSON_COLUMNS: Final = (
    "ID", "image", "images", "biography", "Classification_Task", "Generation_Task", "Mask_Task",
)  # fmt: skip
QUESTION_COLUMNS: Final = (
    "ID", "image", "Question", "Ground_Truth", "Reasoning", "Forget_Attributes",
    "Direct_Question", "Direct_Answer",
)  # fmt: skip
_MODALITIES: Final[dict[str, Modality]] = {"Image_Textual": "image", "Pure_Text": "text"}


@dataclass(frozen=True)
class Skipped:
    """A row that was left out, and why."""

    file: str
    row: int
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}, field {self.field!r}: {self.reason}"


@dataclass
class Reader:
    """Reads one benchmark folder. `skip_bad_rows` lists faulty rows in `skipped` instead of raising."""

    root: Path
    direct_instruction: str
    skip_bad_rows: bool = False
    skipped: list[Skipped] = field(default_factory=list)

    def files(self, folder: str, part: str = "train") -> list[Path]:
        """The parquet files of one split, sorted.

        Raises:
            RMuseError: there are none; says which folders there are.
        """
        found = sorted((self.root / folder).glob(f"{part}-*.parquet"))
        if not found:
            there = ", ".join(sorted(p.name for p in self.root.iterdir() if p.is_dir())) or "nothing"
            raise RMuseError(
                f"{self.root}: required {folder}/{part}-00000-of-00001.parquet, got none (folders: {there}); "
                "add the split, choose another `forget` rate, or see the format in the README"
            )
        return found

    def ids(self, folder: str, part: str = "train") -> list[str]:
        """The people of one split, in file order; reads the column ``ID`` alone."""
        found = []
        for path in self.files(folder, part):
            for row, record in self._records(path, ("ID",), None):
                with self._guard(path, row):
                    found.append(fields.identity(record))
        return found

    def people(self, folder: str, split: str, wanted: Callable[[str], bool] | None = None) -> list[Example]:
        """All questions of the people of one split (`wanted` chooses by ID)."""
        examples: list[Example] = []
        seen: dict[str, int] = {}
        for path in self.files(folder):
            for row, record in self._records(path, PERSON_COLUMNS, wanted):
                with self._guard(path, row):
                    person = fields.identity(record)
                    # A person may have several rows (one per picture): the ids stay apart and stable.
                    seen[person] = seen.get(person, 0) + 1
                    stem = f"{folder}/{person}" + (f"~{seen[person]}" if seen[person] > 1 else "")
                    source = f"{path.relative_to(self.root)}, row {row}"
                    examples += list(self._person(record, person, stem, split, source))
        return examples

    def questions(
        self,
        folder: str,
        part: str,
        split: str,
        kind: Kind,
        wanted: Callable[[str], bool] | None = None,
    ) -> list[Example]:
        """Rows that are one question each (Reasoning, Benign, Strangers)."""
        examples, number = [], 0
        for path in self.files(folder, part):
            for row, record in self._records(path, QUESTION_COLUMNS, wanted):
                with self._guard(path, row):
                    image = fields.picture(record.get("image"), "image")
                    modality: Modality = "text" if image is None else "image"
                    person = None if kind == "reasoning" else fields.identity(record)
                    examples.append(
                        self._open(
                            record,
                            "",
                            id=f"{folder}/{part}/{fields.identity(record)}/{kind}/{number + row}/{modality}",
                            split=split,
                            kind=kind,
                            modality=modality,
                            person=person,
                            image=image,
                            source=f"{path.relative_to(self.root)}, row {row}",
                        )
                    )
            number += _row_count(path)
        return examples

    def _person(
        self, record: Mapping[str, Any], person: str, stem: str, split: str, source: str
    ) -> Iterator[Example]:
        several = record.get("images") is not None
        images = fields.pictures(record)
        facts = fields.biography(record.get("biography"))
        count = 0
        for round_, image in enumerate(images):
            for task, kind, place, modality, question in _tasks(record):
                if modality == "text" and round_ > 0:
                    continue  # a text question does not depend on the picture: asked once
                if modality == "image" and image is None:
                    raise Fault("images" if several else "image", f"required a picture for {place}, got null")
                count += 1
                turn = f"/{round_}" if several and modality == "image" else ""
                yield self._open(
                    question,
                    place + ".",
                    id=f"{stem}/{task}/{modality}{turn}",
                    split=split,
                    kind=kind,
                    modality=modality,
                    person=person,
                    image=image if modality == "image" else None,
                    source=source,
                    facts=facts,
                )
        if not count:
            raise Fault("Generation_Task", "required at least one question in any task, got none")

    def _open(
        self,
        question: Mapping[str, Any],
        at: str,
        *,
        kind: Kind,
        facts: Mapping[str, str] | None = None,
        **rest: Any,
    ) -> Example:
        """One example from one question record; `at` is where it stands in its row."""
        words = fields.text(question, "Question", at)
        options = None
        if kind == "classification":
            options = fields.options(question.get("Options"), at + "Options")
            answer = fields.text(question, "Correct_Answer", at).strip()
            if answer not in options:
                raise Fault(at + "Correct_Answer", f"required one of {', '.join(options)}, got {answer!r}")
            truth = options[answer]
        else:
            answer = truth = fields.text(question, "Ground_Truth", at)
        attributes = fields.attributes(question.get("Forget_Attributes"), at + "Forget_Attributes")
        if attributes is None:  # MLLMU-Bench has none: the facts of the biography that the answer states
            attributes = {k: v for k, v in (facts or {}).items() if _states(truth, v)}
        direct_question = direct_answer = None
        if kind not in ("classification", "cloze"):
            direct_question = fields.optional_text(question, "Direct_Question", at)
            direct_question = direct_question or f"{words} {self.direct_instruction}".strip()
            direct_answer = fields.optional_text(question, "Direct_Answer", at) or answer
        return Example(
            kind=kind,
            question=words,
            answer=answer,
            reasoning=fields.reasoning(question.get("Reasoning"), at + "Reasoning"),
            direct_question=direct_question,
            direct_answer=direct_answer,
            attributes=attributes,
            options=options,
            **rest,
        )

    def _records(
        self, path: Path, columns: tuple[str, ...], wanted: Callable[[str], bool] | None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows as plain dicts, a few at a time; rows that are not wanted are never turned into Python."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        name = path.relative_to(self.root)
        try:
            with pq.ParquetFile(path) as file:
                there = file.schema_arrow.names
                if "ID" not in there:
                    raise RMuseError(f"{name}: required the column 'ID', got {', '.join(there)}")
                row = 0
                use = [c for c in columns if c in there]
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=use):
                    for i, person in enumerate(batch.column("ID").to_pylist()):
                        if wanted is None or person is None or wanted(str(person)):
                            yield row, {c: batch.column(c)[i].as_py() for c in use}
                        row += 1
        except pa.ArrowException as error:
            said = str(error).splitlines()[0]
            raise RMuseError(f"{name}: required a readable parquet file, got: {said}") from error

    def _guard(self, path: Path, row: int) -> "_Guard":
        return _Guard(self, str(path.relative_to(self.root)), row)


@dataclass
class _Guard:
    """Turns a fault into an error that names file and row, or into an entry of `skipped`."""

    reader: Reader
    file: str
    row: int

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, fault: Any, trace: Any) -> bool:
        if not isinstance(fault, Fault):
            return False
        bad = Skipped(self.file, self.row, fault.field, fault.reason)
        if not self.reader.skip_bad_rows:
            raise RMuseError(f"{bad}; mend the row or load with skip_bad_rows=True") from None
        if bad not in self.reader.skipped:
            self.reader.skipped.append(bad)
        return True


def _row_count(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def _tasks(record: Mapping[str, Any]) -> Iterator[tuple[str, Kind, str, Modality, Mapping[str, Any]]]:
    """Every question of a person: (part of the id, kind, place in the row, modality, record)."""
    named: tuple[tuple[str, Kind], ...] = (("Generation_Task", "generation"), ("Mask_Task", "cloze"))
    for column, kind in named:
        for i, question in enumerate(fields.as_list(record.get(column), column)):
            place = f"{column}[{i}]"
            entry = fields.as_dict(question, place)
            modality = _MODALITIES.get(str(entry.get("Type")))
            if modality is None:
                found = entry.get("Type")
                raise Fault(f"{place}.Type", f"required Image_Textual or Pure_Text, got {found!r}")
            yield f"{kind}/{i}", kind, place, modality, entry
    classes = fields.plain(record.get("Classification_Task"), "Classification_Task")
    if classes is None:
        return
    for name, modality in _MODALITIES.items():
        where = f"Classification_Task.{name}_Questions"
        asked = fields.as_dict(classes, "Classification_Task").get(f"{name}_Questions")
        for i, question in enumerate(fields.as_list(asked, where)):
            place = f"{where}[{i}]"
            yield f"classification/{i}", "classification", place, modality, fields.as_dict(question, place)


def _states(text: str, value: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None
