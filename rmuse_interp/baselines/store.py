"""Storage of a trained baseline: an adapter or the changed tensors, and a record of the training. No pickle."""

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rmuse_interp import RMuseError, __version__
from rmuse_interp.baselines.trainables import AdapterConfig, require_peft
from rmuse_interp.data.store import JSON, digest, digest_of_file, write_json, write_tensors
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.models.fingerprint import remember

SCHEMA: Final = "rmuse-baseline/1"
RECORD: Final = "baseline.json"
ADAPTER: Final = "adapter_model.safetensors"
SETTINGS: Final = "adapter_config.json"
WEIGHTS: Final = "weights.safetensors"


def write_baseline(
    folder: Path, state: Mapping[str, Tensor], config: AdapterConfig | None, record: JSON
) -> None:
    """Write what training changed, then the record that marks the baseline as finished.

    Args:
        folder: folder to write to.
        state: adapter matrices under peft's names, or weights under the model's own.
        config: peft's configuration of the adapter; None for weights.
        record: plain JSON.
    """
    name = WEIGHTS if config is None else ADAPTER
    write_tensors(folder / name, state)
    names = [name]
    if config is not None:
        config.save_pretrained(str(folder))
        names.append(SETTINGS)  # only this file holds the adapters' scale
    whole = {"schema": SCHEMA, **record, "files": {name: digest_of_file(folder / name) for name in names}}
    write_json(folder / RECORD, whole)


def read_record(folder: Path) -> JSON:
    """Read the record of a finished baseline.

    Raises:
        RMuseError: a folder without a baseline, or a damaged one.
    """
    again = "train it with `rmuse baseline train`"
    path = folder / RECORD
    if not path.is_file():
        raise RMuseError(f"a trained baseline with {RECORD} was required in {folder}, got none; {again}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found, files = record["schema"], record["files"]
        if found == SCHEMA and set(files) not in ({WEIGHTS}, {ADAPTER, SETTINGS}):
            raise KeyError(f"files {sorted(map(str, files))}")
        record["method"], dict(record["model"]["fingerprint"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RMuseError(f"{path} cannot be read ({type(error).__name__}: {error}); {again}") from error
    if found != SCHEMA:
        raise RMuseError(f"a baseline of schema {SCHEMA} was required, {path} holds {found!r}; {again}")
    for name, known in files.items():
        held = digest_of_file(folder / name) if (folder / name).is_file() else None
        if held != known:
            got = "none" if held is None else "another one"
            raise RMuseError(
                f"{folder / name}: the file that {RECORD} describes was required, got {got}; {again}"
            )
    return record


def open_baseline(folder: str | Path, lens: LensModel) -> LensModel:
    """Apply a baseline to a copy of the model, with its own name and fingerprint.

    Args:
        folder: folder that `train` wrote.
        lens: the model it was trained from; not changed.

    Raises:
        RMuseError: a folder without a baseline, a damaged one, or one of another model.
    """
    path = Path(folder)
    record = read_record(path)
    lens.fingerprint.require(record["model"]["fingerprint"], f"the baseline in {path}")
    files = record["files"]
    name = WEIGHTS if WEIGHTS in files else ADAPTER
    peft = require_peft() if name == ADAPTER else None
    model = copied(lens, str(record["method"]))
    try:
        if peft is not None:
            model.hf = peft.PeftModel.from_pretrained(model.hf, str(path)).merge_and_unload()
        else:
            tensors = load_file(path / name)
            with torch.no_grad():
                for key, tensor in tensors.items():
                    model.hf.get_parameter(key).copy_(tensor)
    except (SafetensorError, OSError, ValueError, AttributeError, RuntimeError, TypeError, KeyError) as error:
        raise RMuseError(
            f"the baseline in {path} cannot be put on {lens.name} ({type(error).__name__}: {error}); train it again"
        ) from error
    model.hf.requires_grad_(True).eval()
    remember(model.hf, digest(lens.fingerprint.weights, files)[:16])
    return model


def merged(lens: LensModel, state: Mapping[str, Tensor], config: AdapterConfig, name: str) -> LensModel:
    """Merge adapters into a copy of the model.

    Args:
        lens: the model on which the adapters were trained.
        state: their matrices under peft's names.
        config: peft's configuration.
        name: name of the change, part of the copy's name.
    """
    peft = require_peft()
    model = copied(lens, name)
    adapted = peft.get_peft_model(model.hf, config)
    peft.set_peft_model_state_dict(adapted, dict(state))
    model.hf = adapted.merge_and_unload().requires_grad_(True).eval()
    remember(model.hf, digest(lens.fingerprint.weights, state)[:16])
    return model


def copied(lens: LensModel, name: str) -> LensModel:
    """Copy the model under the name ``MODEL+NAME``, to be changed and then given a fingerprint (`remember`)."""
    hf = copy.deepcopy(lens.hf)
    layout = replace(lens.layout, blocks=hf.get_submodule(lens.layout.path))
    return LensModel(hf, lens.processor, layout, f"{lens.name}+{name}")


def versions() -> dict[str, str]:
    """Return the versions of the packages that training depends on."""
    from importlib.metadata import version

    return {
        "rmuse-interp": __version__,
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }
