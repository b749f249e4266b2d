"""Saved plans: `plan.safetensors` holds the tensors, `plan.json` the expression and its model. No pickle."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rmuse_interp import RMuseError, __version__
from rmuse_interp.data.store import atomic_files, write_json, write_tensors
from rmuse_interp.edits.sentence import Clause
from rmuse_interp.models.loaded import LoadedModel
from rmuse_interp.parts.part import Part, from_record, to_record

SCHEMA: Final = "rmuse-plan/2"


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
    known = fingerprint if model is None else model.fingerprint.as_record()
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
    with atomic_files(path, last="plan.json") as draft:
        write_tensors(draft / "plan.safetensors", tensors)
        write_json(draft / "plan.json", record)
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
    for name in ("plan.json", "plan.safetensors"):
        if not (path / name).is_file():
            raise RMuseError(
                f"a bundle with plan.json and plan.safetensors was required, {path} lacks {name}"
            )
    try:
        record = json.loads((path / "plan.json").read_text(encoding="utf-8"))
        tensors = load_file(path / "plan.safetensors")
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise RMuseError(f"the bundle in {path} cannot be read ({error}): save it again") from error
    found = record.get("schema") if isinstance(record, dict) else None
    if found != SCHEMA:
        raise RMuseError(
            f"a bundle of schema {SCHEMA} was required, {path} holds {found!r}, of another version: "
            f"fit it again, with `rmuse fit --out {path}` or `plan.save`"
        )
    if model is not None:
        model.fingerprint.require(record["fingerprint"], f"the bundle in {path}")
    return from_record(record["plan"], tensors, allow)
