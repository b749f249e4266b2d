"""RMLLMU-Bench folders, and MLLMU-Bench's own: parquet rows in, `Example`s out.

A folder per split, each with ``train-*.parquet`` (and ``test-*.parquet`` where the format has them). Nested values
may be structs, maps, numpy arrays or JSON strings. Every fault names file, row (0-based) and field.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rmuse_interp.data.example import Example, Kind, Modality
from rmuse_interp.errors import RMuseError

BATCH_ROWS: Final = 16
PERSON_COLUMNS: Final = (
    "ID", "image", "images", "biography", "Classification_Task", "Generation_Task", "Mask_Task",
)  # fmt: skip
QUESTION_COLUMNS: Final = (
    "ID", "image", "Question", "Ground_Truth", "Reasoning", "Forget_Attributes", "Direct_Question", "Direct_Answer",
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


class _Fault(Exception):
    """A field that is not what the format says; the reader adds file and row."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field, self.reason = field, reason


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
                    found.append(_identity(record))
        return found

    def people(self, folder: str, split: str, wanted: Callable[[str], bool] | None = None) -> list[Example]:
        """All questions of the people of one split (`wanted` chooses by ID)."""
        examples: list[Example] = []
        seen: dict[str, int] = {}
        for path in self.files(folder):
            for row, record in self._records(path, PERSON_COLUMNS, wanted):
                with self._guard(path, row):
                    person = _identity(record)
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
                    image = _image(record.get("image"), "image")
                    modality: Modality = "text" if image is None else "image"
                    person = None if kind == "reasoning" else _identity(record)
                    examples.append(
                        self._open(
                            record,
                            "",
                            id=f"{folder}/{part}/{_identity(record)}/{kind}/{number + row}/{modality}",
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
        images = _images(record)
        facts = biography(record.get("biography"))
        count = 0
        for round_, image in enumerate(images):
            for task, kind, place, modality, question in _tasks(record):
                if modality == "text" and round_ > 0:
                    continue  # a text question does not depend on the picture: asked once
                if modality == "image" and image is None:
                    raise _Fault(
                        "images" if several else "image", f"required a picture for {place}, got null"
                    )
                count += 1
                yield self._open(
                    question,
                    place + ".",
                    id=f"{stem}/{task}/{modality}"
                    + (f"/{round_}" if several and modality == "image" else ""),
                    split=split,
                    kind=kind,
                    modality=modality,
                    person=person,
                    image=image if modality == "image" else None,
                    source=source,
                    facts=facts,
                )
        if not count:
            raise _Fault("Generation_Task", "required at least one question in any task, got none")

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
        words = _text(question, "Question", at)
        options = None
        if kind == "classification":
            options = _options(question.get("Options"), at + "Options")
            answer = _text(question, "Correct_Answer", at).strip()
            if answer not in options:
                raise _Fault(at + "Correct_Answer", f"required one of {', '.join(options)}, got {answer!r}")
            truth = options[answer]
        else:
            answer = truth = _text(question, "Ground_Truth", at)
        attributes = _attributes(question.get("Forget_Attributes"), at + "Forget_Attributes")
        if attributes is None:  # MLLMU-Bench has none: the facts of the biography that the answer states
            attributes = {k: v for k, v in (facts or {}).items() if _states(truth, v)}
        direct_question = direct_answer = None
        if kind not in ("classification", "cloze"):
            direct_question = _optional(question, "Direct_Question", at)
            direct_question = direct_question or f"{words} {self.direct_instruction}".strip()
            direct_answer = _optional(question, "Direct_Answer", at) or answer
        return Example(
            kind=kind,
            question=words,
            answer=answer,
            reasoning=_reasoning(question.get("Reasoning"), at + "Reasoning"),
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
            raise RMuseError(
                f"{name}: required a readable parquet file, got: {str(error).splitlines()[0]}"
            ) from error

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
        if not isinstance(fault, _Fault):
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
        for i, question in enumerate(_list(record.get(column), column)):
            place = f"{column}[{i}]"
            entry = _dict(question, place)
            modality = _MODALITIES.get(str(entry.get("Type")))
            if modality is None:
                raise _Fault(
                    f"{place}.Type", f"required Image_Textual or Pure_Text, got {entry.get('Type')!r}"
                )
            yield f"{kind}/{i}", kind, place, modality, entry
    classes = _plain(record.get("Classification_Task"), "Classification_Task")
    if classes is None:
        return
    for key, modality in (("Image_Textual_Questions", "image"), ("Pure_Text_Questions", "text")):
        place = f"Classification_Task.{key}"
        for i, question in enumerate(_list(_dict(classes, "Classification_Task").get(key), place)):
            entry = _dict(question, f"{place}[{i}]")
            yield f"classification/{i}", "classification", f"{place}[{i}]", modality, entry  # type: ignore[misc]


def biography(value: Any) -> dict[str, str]:
    """Facts of an MLLMU-Bench biography (a JSON string whose keys vary), nested ones flattened.

    >>> biography('{"Residence": "Tokyo", "Job": {"question": "What does she do?", "answer": "nurse"}}')
    {'Residence': 'Tokyo', 'Job': 'nurse'}
    """
    try:
        plain = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return {}  # free text: no facts to read off, and format 5 brings its own
    facts: dict[str, str] = {}

    def walk(key: str, node: Any) -> None:
        if isinstance(node, Mapping):
            if "answer" in node:
                walk(key, node["answer"])
            else:
                for inner, child in node.items():
                    walk(f"{key}.{inner}" if key else str(inner), child)
        elif isinstance(node, list | tuple):
            for i, child in enumerate(node):
                walk(f"{key}.{i}", child)
        elif node is not None and str(node).strip():
            facts[key] = str(node).strip()

    if isinstance(plain, Mapping):
        walk("", plain)
    return facts


def _states(text: str, value: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None


def _plain(value: Any, at: str) -> Any:
    """numpy arrays as lists, JSON strings of containers as those containers."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError as error:
            raise _Fault(at, f"required JSON, got {value[:60]!r} ({error})") from None
    return value


def _list(value: Any, at: str) -> list[Any]:
    plain = _plain(value, at)
    if plain is None:
        return []
    if not isinstance(plain, list):
        raise _Fault(at, f"required a list, got {type(plain).__name__}")
    return plain


def _dict(value: Any, at: str) -> Mapping[str, Any]:
    plain = _plain(value, at)
    if isinstance(plain, list) and all(isinstance(p, list | tuple) and len(p) == 2 for p in plain):
        plain = dict(plain)  # a parquet map
    if not isinstance(plain, Mapping):
        raise _Fault(at, f"required a mapping, got {plain!r:.60}")
    return plain


def _text(record: Mapping[str, Any], key: str, at: str) -> str:
    value = record.get(key)
    if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).strip():
        raise _Fault(at + key, f"required a non-empty string, got {value!r:.60}")
    return str(value)


def _optional(record: Mapping[str, Any], key: str, at: str) -> str | None:
    return None if record.get(key) in (None, "") else _text(record, key, at)


def _identity(record: Mapping[str, Any]) -> str:
    return _text(record, "ID", "").strip()


def _options(value: Any, at: str) -> dict[str, str]:
    options = {str(k): str(v) for k, v in _dict(value, at).items() if v is not None}
    if len(options) < 2:
        raise _Fault(at, f"required at least two options, got {len(options)}")
    return options


def _attributes(value: Any, at: str) -> dict[str, str] | None:
    if value is None or value == "":
        return None
    return {str(k): str(v) for k, v in _dict(value, at).items() if v is not None and str(v).strip()}


def _reasoning(value: Any, at: str) -> str | None:
    """A chain as one string; steps of ``{step, evidence}`` are joined by spaces."""
    plain = _plain(value, at)
    if plain is None or plain == "" or plain == []:
        return None
    if isinstance(plain, str):
        return plain.strip()
    steps = []
    for i, entry in enumerate(_list(plain, at)):
        if isinstance(entry, str):
            steps.append(entry.strip())
            continue
        step = _dict(entry, f"{at}[{i}]")
        steps += [str(step[k]).strip() for k in ("step", "evidence") if step.get(k)]
    if not any(steps):
        raise _Fault(at, f"required a string or a list of {{step, evidence}}, got {value!r:.60}")
    return " ".join(s for s in steps if s)


def _image(value: Any, at: str) -> bytes | None:
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if value is None:
        return None
    if not isinstance(value, bytes) or not value:
        raise _Fault(
            at, f"required encoded picture bytes, got {type(value).__name__} of {len(value)} characters"
        )
    return value


def _images(record: Mapping[str, Any]) -> list[bytes | None]:
    """All pictures of a person: `images`, or the one `image`; [None] for a person without."""
    several = record.get("images")
    if several is None:
        return [_image(record.get("image"), "image")]
    found = [_image(value, f"images[{i}]") for i, value in enumerate(_list(several, "images"))]
    return found or [None]
