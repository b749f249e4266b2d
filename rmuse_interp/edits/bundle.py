"""Saved plans: `plan.safetensors` holds the tensors, `plan.json` the expression and its model. No pickle."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from rmuse_interp import __version__
from rmuse_interp.data.sealed import read_sealed, write_sealed
from rmuse_interp.data.store import atomic_files, newest, read_tensors, write_tensors
from rmuse_interp.edits.sentence import Clause
from rmuse_interp.models.loaded import LoadedModel
from rmuse_interp.parts.part import Part, from_record, to_record

SCHEMA: Final = "rmuse-plan/3"
RECORD: Final = "plan.json"
TENSORS: Final = "plan.safetensors"


def save(
    plan: Part,
    edits: Sequence[Clause],
    folder: str | Path,
    fingerprint: Mapping[str, object] | None = None,
    model: LoadedModel | None = None,
    provenance: Mapping[str, object] | None = None,
) -> Path:
    """Save a plan to a folder (created if needed), with the fingerprint of `model` or the plan's own.

    Args:
        plan: the plan to save.
        edits: its edits.
        fingerprint: record of the model it belongs to, if known.
        folder: target folder; an earlier plan there is replaced.
        model: the model it was fitted on.
        provenance: plain JSON to store with it; must not contain names of people.

    Raises:
        RMuseError: the plan contains a plain function, which cannot be saved.
    """
    known = fingerprint if model is None else model.record
    tree, tensors = to_record(plan)
    path = Path(folder)
    tree["settings"]["fingerprint"] = known
    record = {
        "schema": SCHEMA,
        "fingerprint": known,
        "hook": ", ".join(sorted({site.hook for edit in edits for site in edit.sites})),
        "layers": sorted({site.layer for edit in edits for site in edit.sites}),
        "versions": {"rmuse-interp": __version__, "torch": str(torch.__version__)},
        "provenance": dict(provenance or {}),
        "sentence": str(plan).splitlines(),
        "plan": tree,
    }
    with atomic_files(path, last=RECORD) as draft:
        write_tensors(draft / TENSORS, tensors)
        write_sealed(draft / RECORD, record, [TENSORS])
    return path


def load(folder: str | Path, model: LoadedModel | None = None, allow: str | Sequence[str] = ()) -> Part:
    """Load a plan written by `save`.

    Args:
        folder: folder of the bundle.
        model: the model to run it on; checked against the bundle's fingerprint and layers.
        allow: exact names of modules whose operators, gates and other parts may be loaded besides those of
            rmuse_interp. These modules are imported: name only modules that you trust.

    Returns:
        The saved part; `Plan.load` checks that it is a plan.

    Raises:
        RMuseError: no bundle there, a damaged or unknown one, or one fitted on another model.
    """
    path = Path(folder)
    again = f"fit it again, with `rmuse fit --out {path}`, or save it again with `plan.save`"
    record = read_sealed(path, RECORD, SCHEMA, [TENSORS], again)
    tensors = read_tensors(newest(path, TENSORS))[0]
    plan = from_record(record.get("plan"), tensors, allow)
    if model is not None:
        known = record.get("fingerprint")
        model.fingerprint.require(known if isinstance(known, Mapping) else None, f"the bundle in {path}")
    return plan
