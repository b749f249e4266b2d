"""Steering traces on disk: one safetensors file beside a run's transcripts, read back with `read_traces`.

The file holds every quantity of every trace in one flat tensor, and in its metadata which stretch belongs to whom:
the method, the id of the transcript, the sites and the number of tokens.
"""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.data.store import read_tensors, write_tensors
from rmuse_interp.edits.trace import SITE_COLUMNS, SteeringTrace, TraceSite
from rmuse_interp.evaluate.results import TRACES

SCHEMA: Final = "rmuse-traces/1"

Key = tuple[str, str]
"""Name of the method and id of the transcript."""


def write_traces(path: Path, traces: Mapping[Key, SteeringTrace]) -> None:
    """Write the traces of single responses to a file, whole or not at all; without any trace, no file stays there."""
    if not traces:
        path.unlink(missing_ok=True)
        return
    index = [
        {
            "method": method,
            "id": name,
            "tokens": trace.valid.shape[1],
            "sites": [[site.edit, site.layer, site.hook] for site in trace.sites],
        }
        for (method, name), trace in traces.items()
    ]
    tensors = {
        column: torch.cat([getattr(trace, column).flatten() for trace in traces.values()])
        for column in SITE_COLUMNS
    }
    tensors["ids"] = torch.cat([trace.ids.flatten() for trace in traces.values()])
    write_tensors(path, tensors, {"schema": SCHEMA, "index": json.dumps(index, ensure_ascii=False)})


def read_traces(path: Path) -> dict[Key, SteeringTrace]:
    """The traces of a run folder (or of one file), each of one row, by method and id of the transcript.

    Raises:
        RMuseError: no traces there, a damaged file, or one of another schema.
    """
    file = path / TRACES if path.is_dir() else path
    if not file.is_file():
        raise RMuseError(
            f"required steering traces in {path}, got a run without {TRACES}; run `rmuse eval` again with --record"
        )
    try:
        tensors, about = read_tensors(file)
        if about.get("schema") == SCHEMA:
            return _apart(json.loads(about["index"]), tensors)
    except (RMuseError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise RMuseError(
            f"{file}: required whole steering traces, got a damaged file ({type(error).__name__}); "
            "run `rmuse eval` again"
        ) from error
    raise RMuseError(
        f"{file}: required schema {SCHEMA!r}, got {about.get('schema')!r}; run `rmuse eval` again"
    )


def _apart(index: list[dict], tensors: Mapping[str, Tensor]) -> dict[Key, SteeringTrace]:
    shapes = [(1, len(entry["sites"]), entry["tokens"]) for entry in index]
    parts = {
        name: [
            x.view(shape)
            for x, shape in zip(tensors[name].split([prod(s) for s in shapes]), shapes, strict=True)
        ]
        for name in SITE_COLUMNS
    }
    ids = tensors["ids"].split([shape[2] for shape in shapes])
    return {
        (entry["method"], entry["id"]): SteeringTrace(
            tuple(TraceSite(*site) for site in entry["sites"]),
            torch.ones(1, entry["tokens"], dtype=torch.bool),
            ids[i].unsqueeze(0),
            **{name: part[i] for name, part in parts.items()},
        )
        for i, entry in enumerate(index)
    }
