"""Read rows of parquet and JSONL files as plain dicts, a few in memory at a time, and report faulty ones."""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from rmuse_interp import RMuseError
from rmuse_interp.data.stored import BATCH_ROWS, parquet

Row = Mapping[str, object]
"""Column → value of a row, or key → value of a question within a row."""
MISSING: Final = frozenset({"", "nan", "NaN", "NaT", "<NA>", "inf", "-inf"})
"""What a table library writes where there is no value: never taken for a word. (None and Nan can be words.)"""
BadLine = Callable[[int, str], None]
"""Function called with the number of a line that is no JSON object, and the reason."""


@dataclass(frozen=True)
class Problem:
    """A fault and its place: a field of a row (0-based; in JSONL the line), or several files together."""

    file: str
    row: int | None
    field: str
    reason: str

    def __str__(self) -> str:
        row = "" if self.row is None else f", row {self.row}"
        field = f", field {self.field!r}" if self.field else ""
        return f"{self.file}{row}{field}: {self.reason}"


def identifier(value: object) -> str | None:
    """The one form of an ID, however a file stores it: 1, 1.0 and "1 " are "1", "001" is another; None for no ID.

    >>> identifier(1.0), identifier(" 1"), identifier("1.0"), identifier("001"), identifier(float("nan"))
    ('1', '1', '1', '001', None)
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = unicodedata.normalize("NFC", str(value)).strip()
    text = re.sub(r"(?<=[0-9])\.0+$", "", text) if re.fullmatch(r"-?[0-9]+\.0+", text) else text
    return None if text in MISSING else text


def columns_of(path: Path, name: str, bad: BadLine | None = None) -> tuple[str, ...]:
    """The columns of a parquet file, or the keys of a JSONL file's first line (`bad` as for `records`).

    Raises:
        RMuseError: the file cannot be read as either.
    """
    if path.suffix == ".parquet":
        with _readable(name), parquet(path) as file:
            return tuple(file.schema_arrow.names)
    first = next(_lines(path, name, bad), None)
    return () if first is None else tuple(first[1])


def count_rows(path: Path, name: str) -> int:
    """Count the rows of a file; a parquet file's footer gives the number."""
    if path.suffix != ".parquet":
        return sum(1 for _ in _lines(path, name, lambda _line, _reason: None))
    with _readable(name), parquet(path) as file:
        return int(file.metadata.num_rows)


def records(
    path: Path,
    name: str,
    columns: tuple[str, ...],
    wanted: Callable[[str], bool] | None = None,
    bad: BadLine | None = None,
) -> Iterator[tuple[int, Row]]:
    """Yield row number and row, with those of `columns` that exist; parquet rows with unwanted ``ID`` are not decoded.

    Args:
        path: a parquet or JSONL file.
        name: the file's name in error messages.
        columns: the columns to read.
        wanted: selects rows by ``ID``; None takes all.
        bad: called for each line that is no JSON object, which is then skipped.

    Raises:
        RMuseError: the file cannot be read or, without `bad`, a line cannot.
    """
    if path.suffix != ".parquet":
        for number, row in _lines(path, name, bad):
            if wanted is None or (who := identifier(row.get("ID"))) is None or wanted(who):
                yield number, row
        return
    with _readable(name), parquet(path) as file:
        there = file.schema_arrow.names
        use, number = [c for c in columns if c in there], 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=use):
            ids = batch.column("ID").to_pylist() if wanted is not None and "ID" in use else None
            for i in range(batch.num_rows):
                who = None if ids is None else identifier(ids[i])
                if wanted is None or who is None or wanted(who):
                    yield number, {c: batch.column(c)[i].as_py() for c in use}
                number += 1


def _lines(path: Path, name: str, bad: BadLine | None = None) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file):
            try:
                text = line.decode("utf-8-sig" if number == 0 else "utf-8")
                row = json.loads(text) if text.strip() else None
                if not isinstance(row, dict | None):
                    raise ValueError(f"a {type(row).__name__}")
            except (ValueError, RecursionError) as error:  # invalid or deep JSON, or bytes that are not UTF-8
                reason = f"required a JSON object in UTF-8, got {error}"
                if bad is None:
                    raise RMuseError(f"{name}, line {number}: {reason}") from None
                bad(number, reason)
                continue
            if row is not None:
                yield number, row


class _readable:
    """Turns Arrow's error about a damaged file into a one-line error."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Arrow's errors on damaged bytes are of all kinds: its own, OSError, UnicodeDecodeError, OverflowError.
        if isinstance(error, Exception) and not isinstance(error, RMuseError):
            said = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise RMuseError(f"{self.name}: required a readable parquet file, got: {said:.200}") from error
