"""What analyses fit, fitted once: evidence and presets, kept in a folder for every analysis of the same settings.

`--fits DIR` names the folder; without it everything is fitted anew and nothing is kept. Each entry's name is a digest of
all that it depends on: model, benchmark down to its questions and pictures, settings, and the package's own sources. So
an entry is never stale, and a change of any of them makes another.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.progress import Progress
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark
from rmuse_interp.data.content import content
from rmuse_interp.data.store import atomic, digest, read_tensors, sources, write_tensors
from rmuse_interp.edits.plan import Modality
from rmuse_interp.fitting import assemble, gather
from rmuse_interp.lens.identity import depends
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.method.rmuse import Evidence, PresetName, RMuse
from rmuse_interp.parts.pooled import Pooled


def evidence_of(
    given: argparse.Namespace, lens: LensModel, benchmark: Benchmark, progress: Progress | None = None
) -> dict[Modality, Evidence]:
    """`gather` with the settings of the command line; from the folder where it holds it."""

    def fresh() -> dict[Modality, Evidence]:
        return gather(
            lens,
            benchmark,
            limit=given.fit_limit,
            batch_size=given.batch_size,
            seed=given.seed,
            progress=progress,
        )

    if given.fits is None:
        return fresh()
    place = _place(given, lens, benchmark) / "evidence.safetensors"
    if not place.is_file():
        tensors: dict[str, Tensor] = {}
        tree = {modality: _packed(vars(one), tensors) for modality, one in fresh().items()}
        write_tensors(place, tensors, {"tree": json.dumps(tree)})
    held, about = read_tensors(place)
    kept = json.loads(about["tree"])
    return {modality: Evidence(**_unpacked(one, held.__getitem__)) for modality, one in kept.items()}


def preset_of(
    given: argparse.Namespace,
    lens: LensModel,
    benchmark: Benchmark,
    evidence: Mapping[Modality, Evidence],
    preset: PresetName,
    progress: Progress | None = None,
) -> RMuse:
    """`assemble` of a preset at the blocks that are its own choice; from the folder where it holds it."""

    def fresh() -> RMuse:
        return assemble(lens, benchmark, evidence, preset, seed=given.seed, progress=progress)

    if given.fits is None:
        return fresh()
    place = _place(given, lens, benchmark) / preset
    if not (place / "rmuse.json").is_file():
        with atomic(place) as draft:
            fresh().save(draft)
    return RMuse.load(place, lens)


def presets_of(
    given: argparse.Namespace,
    lens: LensModel,
    benchmark: Benchmark,
    names: Sequence[PresetName],
    progress: Progress | None = None,
) -> dict[str, RMuse]:
    """The bundle of `--bundle` alone where one is given, else these presets from one evidence."""
    if given.bundle is not None:
        bundle = bundle_of(given.bundle, lens, benchmark)
        return {bundle.preset: bundle}
    evidence = evidence_of(given, lens, benchmark, progress)
    return {name: preset_of(given, lens, benchmark, evidence, name, progress) for name in names}


def bundle_of(path: Path, lens: LensModel, benchmark: Benchmark) -> RMuse:
    """The bundle that `--bundle` names, for this model and the people this benchmark forgets.

    Raises:
        RMuseError: no bundle, one of another model, one fitted at another forget rate.
    """
    found = RMuse.load(path, lens)
    rate = found.report.get("benchmark", {}).get("forget")
    if rate is not None and rate != benchmark.forget_rate:
        raise RMuseError(
            f"{path}: a bundle fitted at --forget {benchmark.forget_rate} was required, got one fitted at {rate}; "
            f"add --forget {rate}"
        )
    return found


def _place(given: argparse.Namespace, lens: LensModel, benchmark: Benchmark) -> Path:
    settings = (given.fit_limit, given.batch_size, given.seed)
    return Path(given.fits) / digest(depends(lens), content(benchmark), settings, sources())[:16]


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Evidence as JSON: tensors are put aside by number, records and tuples become objects that name their kind."""
    if isinstance(value, Tensor):
        tensors[str(len(tensors))] = value.contiguous()
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, Pooled):
        return {"pooled": {f.name: _packed(getattr(value, f.name), tensors) for f in fields(value)}}
    if isinstance(value, Mapping):
        return {"mapping": {k: _packed(v, tensors) for k, v in value.items()}}
    if isinstance(value, tuple):
        return {"tuple": [_packed(v, tensors) for v in value]}
    return value


def _unpacked(value: Any, tensor: Callable[[str], Tensor]) -> Any:
    """What `_packed` made JSON of."""
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "tensor":
        return tensor(held)
    if kind == "tuple":
        return tuple(_unpacked(v, tensor) for v in held)
    found = {k: _unpacked(v, tensor) for k, v in held.items()}
    return Pooled(**found) if kind == "pooled" else found
