"""Read a table of people (names, facts and photographs) from a CSV file as spreadsheets write it."""

import csv
import io
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rmuse_interp import RMuseError
from rmuse_interp.data.fields import Fault
from rmuse_interp.data.pictures import unreadable
from rmuse_interp.data.rows import MISSING, Problem, identifier
from rmuse_interp.data.wordings import kind_of
from rmuse_interp.data.words import folded

PHOTOGRAPH_COLUMNS: Final = (
    "image",
    "images",
    "photo",
    "photos",
    "photograph",
    "photographs",
    "picture",
    "pictures",
)
SEPARATORS: Final = (",", ";", "\t")
_YES: Final = frozenset(("yes", "y", "true", "1", "x"))
_NO: Final = frozenset(("no", "n", "false", "0"))


@dataclass(frozen=True)
class Person:
    """One person: name, facts, encoded photographs, whether to forget them, other forms of the name."""

    id: str
    name: str
    facts: dict[str, str]
    photographs: tuple[bytes, ...] = field(repr=False)
    forget: bool = True
    aliases: tuple[str, ...] = ()


def read_people(
    table: Path, images: Path, encoding: str | None = None, skip_bad_rows: bool = False
) -> tuple[list[Person], list[Problem]]:
    """Read the people of a table; also return the rows that were skipped.

    Columns: ``name``; optionally ``id`` (default: the row's number), ``image`` (file names below `images`, separated
    by ``;`` or ``|``; default: files named after the id or the name), ``forget`` (yes or no; default: yes), ``aliases``
    (separated by ``;`` or ``|``). Every other column is a fact named by its heading; an empty cell is an unknown fact.
    Rows are counted as in a spreadsheet: the heading is row 1.

    Args:
        table: a CSV file, its cells separated by commas, semicolons or tabs.
        images: the folder of the photographs.
        encoding: the table's encoding; default UTF-8, or UTF-16 where the file begins with its byte order mark.
        skip_bad_rows: skip faulty rows instead of raising.

    Raises:
        RMuseError: the table or folder is missing, the text has another encoding, the headings lack ``name`` or repeat
            one, nobody is to be forgotten, or a row is faulty (names row and column).
    """
    if not images.is_dir():
        raise RMuseError(f"--images: required a folder of photographs, got {str(images)!r}: no such folder")
    headings, rows = _table(table, encoding)
    photographs = _by_stem(images)
    people: list[Person] = []
    problems: list[Problem] = []
    ids: dict[str, int] = {}
    names: dict[str, int] = {}
    for number, cells in rows:
        try:
            person = _person(number, headings, cells, images, photographs)
            for value, seen, column in ((person.id, ids, "id"), (_key(person.name), names, "name")):
                if value in seen:
                    raise Fault(
                        column, f"required one row per person, got {value!r} of row {seen[value]} again"
                    )
            ids[person.id] = names[_key(person.name)] = number
            people.append(person)
        except Fault as fault:
            problem = Problem(table.name, number, fault.field, fault.reason)
            if not skip_bad_rows:
                raise RMuseError(
                    f"{problem}; mend the row, or go on without it with --skip-bad-rows"
                ) from None
            problems.append(problem)
    if not any(person.forget for person in people):
        raise RMuseError(
            f"{table}: required at least one person to forget, got none in {len(people)} good rows"
        )
    return people, problems


def _table(path: Path, encoding: str | None) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Headings in lower case, and (row number, cells) of every row that is not empty."""
    if not path.is_file():
        raise RMuseError(f"required a table of people as CSV, got {str(path)!r}: no such file")
    raw = path.read_bytes()
    marked = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding or marked)
    except (UnicodeDecodeError, LookupError) as error:
        row = raw[: getattr(error, "start", 0)].count(b"\n") + 1
        raise RMuseError(
            f"{path}, row {row}: required text in {encoding or 'UTF-8'}, got {error}; save the table as UTF-8, or name "
            "its encoding with --encoding (Excel on Windows: cp1252)"
        ) from None
    first = text.partition("\n")[0]
    separator = max(SEPARATORS, key=first.count)
    lines = _cells(path, text, separator)
    headings = [
        unicodedata.normalize("NFC", cell).strip().lower().replace("_", " ") for cell in next(lines, [])
    ]
    named = [heading for heading in headings if heading]
    if "name" not in named:
        raise RMuseError(f"{path}: required a column 'name', got {', '.join(named) or 'an empty table'}")
    twice = sorted({heading for heading in named if named.count(heading) > 1})
    if twice:
        raise RMuseError(f"{path}: required different headings, got {twice[0]!r} more than once")
    kinds: dict[str, str] = {}
    for heading in named:
        if kind_of(heading) in kinds:
            both = f"{kinds[kind_of(heading)]!r} and {heading!r}"
            raise RMuseError(f"{path}: required one column per kind of fact, got {both}; drop or rename one")
        kinds[kind_of(heading)] = heading
    if sum(heading in PHOTOGRAPH_COLUMNS for heading in named) > 1:
        raise RMuseError(
            f"{path}: required one column of photographs, got several of {', '.join(PHOTOGRAPH_COLUMNS)}"
        )
    return headings, ((n, cells) for n, cells in enumerate(lines, 2) if any(cell.strip() for cell in cells))


def _cells(path: Path, text: str, separator: str) -> Iterator[list[str]]:
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        yield from lines
    except csv.Error as error:
        raise RMuseError(
            f"{path}, line {lines.line_num}: required cells of at most 128 KiB, got one that is damaged or a quote that "
            f"is never closed ({error})"
        ) from None


def _person(
    row: int, headings: list[str], cells: list[str], images: Path, photographs: dict[str, list[Path]]
) -> Person:
    if len(cells) > len(headings) and any(cell.strip() for cell in cells[len(headings) :]):
        raise Fault(
            "name",
            f"required at most {len(headings)} cells, got {len(cells)}: put quotes around a cell with "
            "separators",
        )
    values = {h: unicodedata.normalize("NFC", c).strip() for h, c in zip(headings, cells, strict=False) if h}
    name = values.pop("name", "")
    if not name:
        raise Fault("name", "required a name, got an empty cell")
    identity = identifier(values.pop("id", "")) or f"person-{row}"
    lacking = next((heading for heading, value in values.items() if value in MISSING - {""}), None)
    if lacking is not None:
        raise Fault(
            lacking,
            f"required a value or an empty cell, got {values[lacking]!r}, which a table writes for none",
        )
    wish = values.pop("forget", "yes").casefold() or "yes"
    if wish not in _YES | _NO:
        raise Fault("forget", f"required yes or no, got {wish!r:.40}")
    column = next((c for c in PHOTOGRAPH_COLUMNS if c in values), "image")
    listed = _several(values.pop(column, ""))
    aliases = tuple(_several(values.pop("aliases", "")))
    facts = {heading: value for heading, value in values.items() if value}
    if not facts:
        raise Fault(
            "name",
            f"required at least one fact about {name!r}, got none: every column but name, id, image, "
            "forget and aliases is one",
        )
    if listed:
        paths = [_below(images, file, column) for file in listed]
    else:
        found = photographs.get(_key(identity)) or photographs.get(_key(name)) or []
        paths = [_below(images, path.name, column) for path in found]  # a link may lead out of the folder
    if not paths:
        raise Fault(
            column,
            f"required a photograph of {name!r}, got neither a file name nor a file in {images} called "
            f"after {identity!r} or the name",
        )
    encoded = []
    for path in paths:
        encoded.append(path.read_bytes())
        fault = unreadable(encoded[-1])
        if fault is not None:
            raise Fault(column, f"{path.name}: {fault}")
    return Person(identity, name, facts, tuple(encoded), wish in _YES, aliases)


def _several(cell: str) -> list[str]:
    return [part.strip() for part in cell.replace("|", ";").split(";") if part.strip()]


def _below(images: Path, file: str, column: str) -> Path:
    """A photograph's path, checked to be inside the folder."""
    path = images / file
    if not path.resolve().is_relative_to(images.resolve()):
        raise Fault(column, f"required a file below {images}, got {file!r}")
    if not path.is_file():
        raise Fault(column, f"required a photograph in {images}, got {file!r}: no such file")
    return path


def _key(text: str) -> str:
    """A name or file name for comparison: folded, with one kind of space."""
    return " ".join(folded(text).replace("_", " ").split())


def _by_stem(images: Path) -> dict[str, list[Path]]:
    """Photographs by the person they are named after: ``Mara Venn.jpg``, ``Mara Venn-2.jpg`` or ``mara_venn_3.png``."""
    found: dict[str, list[Path]] = {}
    for path in sorted(p for p in images.iterdir() if p.is_file() and not p.name.startswith(".")):
        key = _key(path.stem)
        head, _, tail = key.replace("-", " ").rpartition(" ")
        found.setdefault(key, []).append(path)
        if head and tail.isdigit():
            found.setdefault(_key(path.stem[: len(path.stem) - len(tail)].rstrip("-_ ")), []).append(path)
    return found
