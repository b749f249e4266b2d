"""What a check finds in a benchmark folder."""

import io
from pathlib import Path

from helpers import tiny

from rmuse_interp.data.check import check


def problems(folder: Path) -> list[tuple[str, int | None, str]]:
    """File, row and field of every problem found."""
    return [(p.file, p.row, p.field) for p in check(folder).problems]


FIRST = "train-00000-of-00001.parquet"


def truncated() -> bytes:
    """The first half of a photograph's file, as an interrupted copy leaves it: its heading is whole."""
    buffer = io.BytesIO()
    tiny.picture().resize((64, 64)).save(buffer, "JPEG")
    return buffer.getvalue()[: buffer.tell() // 2]
