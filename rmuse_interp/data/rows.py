"""Rows of parquet and JSONL files as plain dicts, a few in memory at a time, and what can be wrong with one."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmuse_interp.data.pictures import BATCH_ROWS, parquet
from rmuse_interp.errors import RMuseError

Row = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """What is wrong where: a field of a row (0-based; in JSONL the line), or of several files together."""

    file: str
    row: int | None
    field: str
    reason: str

    def __str__(self) -> str:
        row = "" if self.row is None else f", row {self.row}"
        return f"{self.file}{row}, field {self.field!r}: {self.reason}"


def columns_of(path: Path, name: str) -> tuple[str, ...]:
    """The columns of a parquet file, or the keys of a JSONL file's first line.

    Raises:
        RMuseError: a file that cannot be read as either.
    """
    if path.suffix == ".parquet":
        with _readable(name), parquet(path) as file:
            return tuple(file.schema_arrow.names)
    first = next(_lines(path, name), None)
    return () if first is None else tuple(first[1])


def count_rows(path: Path, name: str) -> int:
    """How many rows a file has; of a parquet file its footer says so."""
    if path.suffix != ".parquet":
        return sum(1 for _ in _lines(path, name))
    with _readable(name), parquet(path) as file:
        return int(file.metadata.num_rows)


def records(
    path: Path, name: str, columns: tuple[str, ...], wanted: Callable[[str], bool] | None = None
) -> Iterator[tuple[int, Row]]:
    """Row number and row, of the columns there are; of a parquet row whose ``ID`` is not wanted nothing is decoded.

    Args:
        path: a parquet or JSONL file.
        name: how it is called in errors.
        columns: those to read.
        wanted: chooses by ``ID``; None takes all.

    Raises:
        RMuseError: a file that cannot be read (names the line where it is JSONL).
    """
    if path.suffix != ".parquet":
        for number, row in _lines(path, name):
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


def _lines(path: Path, name: str) -> Iterator[tuple[int, Row]]:
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"a {type(row).__name__}")
                    yield number, row
    except ValueError as error:  # JSON's own, or bytes that are no UTF-8
        raise RMuseError(f"{name}, line {number}: required a JSON object in UTF-8, got {error}") from None


class _readable:
    """Turns what Arrow says of a damaged file into one line."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        import pyarrow as pa

        if isinstance(error, pa.ArrowException):
            said = str(error).splitlines()[0]
            raise RMuseError(f"{self.name}: required a readable parquet file, got: {said}") from error
