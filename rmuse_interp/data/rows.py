"""Rows of parquet and JSONL files as plain dicts, a few in memory at a time, and what can be wrong with one."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rmuse_interp import RMuseError
from rmuse_interp.data.pictures import BATCH_ROWS, parquet

Row = Mapping[str, object]
"""A row, or a question within one, by column."""
BadLine = Callable[[int, str], None]
"""Is told the number of a line that is no JSON object, and why."""


@dataclass(frozen=True)
class Problem:
    """What is wrong where: a field of a row (0-based; in JSONL the line), or of several files together."""

    file: str
    row: int | None
    field: str
    reason: str

    def __str__(self) -> str:
        row = "" if self.row is None else f", row {self.row}"
        field = f", field {self.field!r}" if self.field else ""
        return f"{self.file}{row}{field}: {self.reason}"


def columns_of(path: Path, name: str, bad: BadLine | None = None) -> tuple[str, ...]:
    """The columns of a parquet file, or the keys of a JSONL file's first line (`bad` as for `records`).

    Raises:
        RMuseError: a file that cannot be read as either.
    """
    if path.suffix == ".parquet":
        with _readable(name), parquet(path) as file:
            return tuple(file.schema_arrow.names)
    first = next(_lines(path, name, bad), None)
    return () if first is None else tuple(first[1])


def count_rows(path: Path, name: str) -> int:
    """How many rows a file has; of a parquet file its footer says so."""
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
    """Row number and row, of the columns there are; of a parquet row whose ``ID`` is not wanted nothing is decoded.

    Args:
        path: a parquet or JSONL file.
        name: how it is called in errors.
        columns: those to read.
        wanted: chooses by ``ID``; None takes all.
        bad: is told of lines that are no JSON object, which are then passed over.

    Raises:
        RMuseError: a file that cannot be read; without `bad`, a line that cannot.
    """
    if path.suffix != ".parquet":
        for number, row in _lines(path, name, bad):
            if wanted is None or row.get("ID") is None or wanted(str(row["ID"])):
                yield number, row
        return
    with _readable(name), parquet(path) as file:
        there = file.schema_arrow.names
        use, number = [c for c in columns if c in there], 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=use):
            ids = batch.column("ID").to_pylist() if wanted is not None and "ID" in use else None
            for i in range(batch.num_rows):
                if wanted is None or ids is None or ids[i] is None or wanted(str(ids[i])):
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
            except ValueError as error:  # JSON's own, or bytes that are no UTF-8
                reason = f"required a JSON object in UTF-8, got {error}"
                if bad is None:
                    raise RMuseError(f"{name}, line {number}: {reason}") from None
                bad(number, reason)
                continue
            if row is not None:
                yield number, row


class _readable:
    """Turns what Arrow says of a damaged file into one line."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import pyarrow as pa

        if isinstance(error, pa.ArrowException):
            said = str(error).splitlines()[0]
            raise RMuseError(f"{self.name}: required a readable parquet file, got: {said}") from error
