"""Steering traces on disk: one safetensors file beside a run's transcripts, read with `read_traces`.

The file holds one flat tensor per quantity for all traces; its metadata say which stretch belongs to which trace:
the method, the id of the transcript, the sites and the number of tokens.
"""

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Final, TypedDict

import torch
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.data.store import read_tensors, write_tensors
from rmuse_interp.edits.trace import SITE_COLUMNS, SteeringTrace, TraceSite
from rmuse_interp.evaluate.results import TRACES

SCHEMA: Final = "rmuse-traces/2"

Key = tuple[str, str]
"""Name of the method and id of the transcript."""


class Shape(TypedDict):
    """The size of one trace's stretch of the flat tensors."""

    tokens: int
    sites: list[tuple[str, int, str]]


def write_traces(path: Path, traces: Mapping[Key, SteeringTrace]) -> None:
    """Write the traces of single responses to a file, whole or not at all; without traces, remove an existing file."""
    if not traces:
        path.unlink(missing_ok=True)
        return
    shapes, tensors = packed(list(traces.values()))
    index = [{"method": m, "id": name, **shape} for (m, name), shape in zip(traces, shapes, strict=True)]
    write_tensors(path, tensors, {"schema": SCHEMA, "index": json.dumps(index, ensure_ascii=False)})


def read_traces(path: Path) -> dict[Key, SteeringTrace]:
    """Read the traces of a run folder (or of one file), each with one row, by method and id of the transcript.

    Raises:
        RMuseError: there are no traces, or the file is damaged or has another schema.
    """
    file = path / TRACES if path.is_dir() else path
    if not file.is_file():
        raise RMuseError(
            f"required steering traces in {path}, got a run without {TRACES}; run `rmuse eval` again with --record"
        )
    try:
        tensors, about = read_tensors(file)
        if about.get("schema") == SCHEMA:
            index = json.loads(about["index"])
            keys = [(entry["method"], entry["id"]) for entry in index]
            return dict(zip(keys, unpacked(index, tensors), strict=True))
    except (RMuseError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise RMuseError(
            f"{file}: required whole steering traces, got a damaged file ({type(error).__name__}); "
            "run `rmuse eval` again"
        ) from error
    raise RMuseError(
        f"{file}: required schema {SCHEMA!r}, got {about.get('schema')!r}; run `rmuse eval` again"
    )


def packed(traces: Sequence[SteeringTrace]) -> tuple[list[Shape], dict[str, Tensor]]:
    """Pack traces of single responses as plain JSON (tokens and sites of each) and one flat tensor per quantity."""
    shapes: list[Shape] = [
        {
            "tokens": trace.valid.shape[1],
            "sites": [(site.edit, site.layer, site.hook) for site in trace.sites],
        }
        for trace in traces
    ]
    if not traces:
        return shapes, {}
    columns = (*SITE_COLUMNS, "ids")
    return shapes, {name: torch.cat([getattr(one, name).flatten() for one in traces]) for name in columns}


def unpacked(shapes: Sequence[Shape], tensors: Mapping[str, Tensor]) -> list[SteeringTrace]:
    """Restore the traces that `packed` packed."""
    sizes = [(1, len(shape["sites"]), shape["tokens"]) for shape in shapes]
    if not sizes:
        return []
    parts = {
        name: [x.view(size) for x, size in zip(tensors[name].split([*map(prod, sizes)]), sizes, strict=True)]
        for name in SITE_COLUMNS
    }
    ids = tensors["ids"].split([size[2] for size in sizes])
    return [
        SteeringTrace(
            tuple(TraceSite(*site) for site in shape["sites"]),
            torch.ones(1, shape["tokens"], dtype=torch.bool),
            ids[i].unsqueeze(0),
            **{name: part[i] for name, part in parts.items()},
        )
        for i, shape in enumerate(shapes)
    ]
