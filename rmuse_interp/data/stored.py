"""Pictures that stay in their parquet file until they are needed."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rmuse_interp import RMuseError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS: Final = 16
"""Rows of a parquet file held in memory at a time; few, because rows hold pictures."""
BUFFER: Final = 1 << 20
"""Bytes of a column to read ahead. Without a buffer, the whole column of a row group is read, with all pictures."""


@dataclass(frozen=True)
class Stored:
    """The place of a picture: file, row (0-based), column, and its index among several."""

    path: Path
    row: int
    column: str
    number: int | None = None

    def read(self) -> bytes:
        """The encoded bytes. Reading in file order is fast: the file stays open and is read forward."""
        try:
            column: _Column | None = getattr(_forward, "column", None)
            if column is None or not column.reaches(self):
                column = _forward.column = _Column(self)
            value = column.value(self.row)
            if self.number is not None:
                value = value[self.number]
            return value["bytes"] if isinstance(value, dict) else value
        except Exception as error:  # Arrow's errors are of many kinds, and the file may have changed since
            _forward.column = None
            raise RMuseError(
                f"{self.path}, row {self.row}, field {self.column!r}: required a readable parquet file, got "
                f"{type(error).__name__}: {str(error)[:200]}"
            ) from error


class _Column:
    """One column of one file, read forward from the row group that holds the first row wanted."""

    def __init__(self, wanted: Stored) -> None:
        self._seen = _version(wanted)
        file = parquet(wanted.path)
        group = self.first = 0
        while self.first + file.metadata.row_group(group).num_rows <= wanted.row:
            self.first += file.metadata.row_group(group).num_rows
            group += 1
        groups = list(range(group, file.metadata.num_row_groups))
        batches = file.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=[wanted.column])
        self._batches: Iterator["pa.Array"] = (batch.column(wanted.column) for batch in batches)
        self._batch = next(self._batches)

    def reaches(self, wanted: Stored) -> bool:
        return self.first <= wanted.row and self._seen == _version(wanted)

    def value(self, row: int) -> "pq.ParquetFile":
        while row >= self.first + len(self._batch):
            self.first += len(self._batch)
            self._batch = next(self._batches)
        return self._batch[row - self.first].as_py()


_forward = threading.local()
"""The column that each thread is reading."""


def _version(wanted: Stored) -> tuple[Path, str, int, int]:
    """The identity of a column; a rewritten file counts as a different one."""
    now = wanted.path.stat()
    return wanted.path, wanted.column, now.st_mtime_ns, now.st_size


def parquet(path: Path) -> "pq.ParquetFile":
    """Open a parquet file so that memory does not grow with its row groups."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
