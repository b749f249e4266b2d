"""Read a benchmark folder's files row by row into `Example`s, whatever their format.

Each split is a folder with ``train-*.parquet`` (and ``test-*.parquet`` where the format has them); R-TOFU's JSONL
files are in the folder itself. Every fault names file, row (0-based) and field. Memory does not grow with the rows:
the pictures of large benchmarks stay on disk.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rmuse_interp import RMuseError
from rmuse_interp.data import fields, formats, rtofu
from rmuse_interp.data.example import Example, Kind
from rmuse_interp.data.fields import Fault, Question
from rmuse_interp.data.formats import Format
from rmuse_interp.data.rows import BadLine, Problem, Row, columns_of, count_rows, records
from rmuse_interp.data.stored import Stored

HELD_BYTES: Final = 64 << 20
"""Bytes of encoded pictures that a reader keeps in memory; others are read from their file whenever needed."""


@dataclass
class Reader:
    """Reads one benchmark folder. With `skip_bad_rows`, faulty rows are listed in `skipped` instead of raising.

    `rate` is the forget rate, which selects R-TOFU's test files by name.
    """

    root: Path
    direct_instruction: str
    skip_bad_rows: bool = False
    rate: int | None = None
    skipped: list[Problem] = field(default_factory=list)
    _held: int = 0

    def files(self, folder: str, part: str = "train") -> list[Path]:
        """The files of one split, sorted.

        Raises:
            RMuseError: there are none (lists the existing folders), or there are files in two layouts.
        """
        found = self.found(folder, part)
        if not found:
            there = ", ".join(sorted(p.name for p in self.root.iterdir() if not p.name.startswith(".")))
            raise RMuseError(
                f"{self.root}: required {folder}/{part}-00000-of-00001.parquet, got none "
                f"(there is: {there or 'nothing'}); add the split, choose another `forget` rate, or look "
                "the folder over with `rmuse data check`"
            )
        return found

    def found(self, folder: str, part: str = "train") -> list[Path]:
        """The files of one split as in `files`, but an empty list where there are none.

        Raises:
            RMuseError: the split has both parquet and JSONL files.
        """
        tables = sorted((self.root / folder).glob(f"{part}-*.parquet"))
        lines = rtofu.files(self.root, folder, self.rate) if part == "train" else []
        if tables and lines:
            raise RMuseError(
                f"{self.root}: required one format, got {self.name(tables[0])} and {self.name(lines[0])} for {folder}; "
                "move one of them away"
            )
        return tables or lines

    def name(self, path: Path) -> str:
        """A file's name in error messages."""
        return path.relative_to(self.root).as_posix()

    def format(self, path: Path) -> Format:
        """The format of a file, recognised by its columns.

        Raises:
            RMuseError: the file has no known format, or several.
        """
        columns = columns_of(path, self.name(path), self._bad(path))
        return formats.told(columns, self.name(path))

    def one_format(self, files: list[Path]) -> Format:
        """The format that these files share.

        Raises:
            RMuseError: the files have several formats, or one has no known format.
        """
        found = {self.format(path): path for path in files}
        if len(found) > 1:
            which = " and ".join(f"{layout.name} ({self.name(path)})" for layout, path in found.items())
            raise RMuseError(f"{self.root}: required one format, got {which}")
        return next(iter(found))

    def ids(self, folder: str) -> list[str]:
        """The IDs of one split's people, in file order; of parquet files only the column ``ID`` is read."""
        found = []
        for path in self.files(folder):
            jsonl = self.format(path) is formats.RTOFU
            columns = ("task_id",) if jsonl else ("ID",)
            for row, record in records(path, self.name(path), columns, bad=self._bad(path)):
                with self.guard(path, row):
                    found.append(rtofu.person(record, path, row) if jsonl else fields.identity(record))
        return found

    def people(
        self, folder: str, split: str, wanted: Callable[[str], bool] | None = None, part: str = "train"
    ) -> Iterator[Example]:
        """Yield all questions about the people of one split, one at a time (`wanted` selects people by ID)."""
        return self.people_of(self.files(folder, part), folder, split, wanted)

    def people_of(
        self, files: list[Path], folder: str, split: str, wanted: Callable[[str], bool] | None = None
    ) -> Iterator[Example]:
        """Yield questions as `people` does, from the given files."""
        seen: dict[str, dict[bytes, str]] = {}
        for path in files:
            layout = self.format(path)
            if layout is formats.QUESTIONS:
                raise RMuseError(
                    f"{self.name(path)}: required a row per person ({', '.join(formats.MLLMU.marks)}), got "
                    "one per question"
                )
            for row, record in records(path, self.name(path), layout.columns, wanted, self._bad(path)):
                with self.guard(path, row):
                    person = (
                        rtofu.person(record, path, row)
                        if layout is formats.RTOFU
                        else fields.identity(record)
                    )
                    if layout is formats.RTOFU and wanted is not None and not wanted(person):
                        continue
                    source = f"{self.name(path)}, row {row}"
                    number = _numbered(seen.setdefault(person, {}), record, layout, source)
                    stem = f"{folder}/{person}" + (f"~{number}" if number > 1 else "")
                    # A row with a fault is left out as a whole.
                    yield from list(self._person(layout, record, person, stem, split, path, row))

    def questions(
        self,
        folder: str,
        part: str,
        split: str,
        kind: Kind,
        wanted: Callable[[str], bool] | None = None,
    ) -> Iterator[Example]:
        """Yield the questions of files with one question per row (Reasoning, Benign, Strangers), one at a time."""
        number = 0
        for path in self.files(folder, part):
            if self.format(path) is not formats.QUESTIONS:
                raise RMuseError(
                    f"{self.name(path)}: required a row per question (Question, Ground_Truth), got one "
                    "per person"
                )
            for row, record in records(path, self.name(path), formats.QUESTIONS.columns, wanted):
                with self.guard(path, row):
                    for asked in formats.QUESTIONS.tasks(record):
                        person = fields.identity(record)
                        yield self._open(
                            asked,
                            id=f"{folder}/{part}/{person}/{kind}/{number + row}/{asked.modality}",
                            split=split,
                            kind=kind,
                            person=None if kind == "reasoning" else person,
                            image=self._hold(
                                fields.picture(record.get("image"), "image"), Stored(path, row, "image")
                            ),
                            source=f"{self.name(path)}, row {row}",
                        )
            number += count_rows(path, self.name(path))

    def note(self, bad: Problem) -> None:
        """Record a skipped row, only once however often its file is read."""
        if bad not in self.skipped:
            self.skipped.append(bad)

    def _bad(self, path: Path) -> BadLine | None:
        """With `skip_bad_rows`, a function that records lines that are no JSON; else None."""
        if not self.skip_bad_rows:
            return None
        return lambda line, reason: self.note(Problem(self.name(path), line, "", reason))

    def guard(self, path: Path, row: int) -> "_Guard":
        """A context that adds file and row to a fault."""
        return _Guard(self, self.name(path), row)

    def _person(
        self, layout: Format, record: Row, person: str, stem: str, split: str, path: Path, row: int
    ) -> Iterator[Example]:
        several = record.get("images") is not None
        pictures: list[bytes | Stored | None] = [
            self._hold(image, Stored(path, row, "images", i) if several else Stored(path, row, "image"))
            for i, image in enumerate(fields.pictures(record))
        ]
        facts, count = layout.facts(record), 0
        for round_, image in enumerate(pictures):
            for asked in layout.tasks(record):
                if asked.modality == "text" and round_ > 0:
                    continue  # a text question does not depend on the picture, so it is asked once
                if asked.modality == "image" and image is None:
                    at = "images" if several else "image"
                    raise Fault(at, f"required a picture for {asked.place}, got null")
                count += 1
                turn = f"/{round_}" if several and asked.modality == "image" else ""
                yield self._open(
                    asked,
                    id=f"{stem}/{asked.task}/{asked.modality}{turn}",
                    split=split,
                    kind=asked.kind,
                    person=person,
                    image=image if asked.modality == "image" else None,
                    source=f"{self.name(path)}, row {row}",
                    facts=facts,
                )
        if not count:
            raise Fault(
                layout.marks[0], f"required at least one question in {', '.join(layout.marks)}, got none"
            )

    def _hold(self, image: bytes | None, place: Stored) -> bytes | Stored | None:
        if image is None:
            return None
        self._held += len(image)
        return image if self._held <= HELD_BYTES else place

    def _open(
        self,
        asked: Question,
        *,
        id: str,
        split: str,
        kind: Kind,
        person: str | None,
        image: bytes | Stored | None,
        source: str,
        facts: Mapping[str, str] | None = None,
    ) -> Example:
        """Make an example from a question."""
        question, at = asked.record, f"{asked.place}." if asked.place else ""
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
        if attributes is None:
            # Other formats state no attributes; take the facts of the biography that the answer contains.
            attributes = {k: v for k, v in (facts or {}).items() if fields.states(truth, v)}
        direct_question = direct_answer = None
        if kind not in ("classification", "cloze"):
            direct_question = fields.optional_text(question, "Direct_Question", at)
            direct_question = direct_question or f"{words} {self.direct_instruction}".strip()
            direct_answer = fields.optional_text(question, "Direct_Answer", at) or answer
        return Example(
            id,
            split,
            kind,
            asked.modality,
            words,
            answer,
            person=person,
            image=image,
            reasoning=fields.reasoning(question.get("Reasoning"), at + "Reasoning"),
            direct_question=direct_question,
            direct_answer=direct_answer,
            attributes=attributes,
            options=options,
            paraphrased_answer=fields.optional_text(question, "Paraphrased_Answer", at),
            paraphrased_question=fields.optional_text(question, "Paraphrased_Question", at),
            perturbed_answers=tuple(
                fields.said(answer, f"{at}Perturbed_Answers")
                for answer in fields.as_list(question.get("Perturbed_Answers"), at)
            ),
            source=source,
        )


@dataclass
class _Guard:
    """Turns a fault into an error that names file and row, or into an entry of `skipped`."""

    reader: Reader
    file: str
    row: int

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, fault: BaseException | None, trace: object) -> bool:
        if not isinstance(fault, Fault):
            return False
        bad = Problem(self.file, self.row, fault.field, fault.reason)
        if not self.reader.skip_bad_rows:
            raise RMuseError(
                f"{bad}; mend the row, or go on without it with --skip-bad-rows (skip_bad_rows=True)"
            ) from None
        self.reader.note(bad)
        return True


def _numbered(seen: dict[bytes, str], record: Row, layout: Format, source: str) -> int:
    """Number a row among its person's rows: there may be several, one per photograph, but no duplicates."""
    said = hashlib.blake2b(digest_size=8)
    for value in (record.get(column) for column in layout.columns):
        encoded = value.get("bytes") if isinstance(value, dict) else None
        said.update(encoded if isinstance(encoded, bytes) else repr(value).encode("utf-8", "surrogatepass"))
        said.update(b"\0")
    digest = said.digest()
    if digest in seen:
        key = "question" if layout is formats.RTOFU else "ID"
        raise Fault(key, f"required rows that differ, got the one of {seen[digest]} again")
    seen[digest] = source
    return len(seen)
