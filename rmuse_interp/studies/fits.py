"""Evidence and presets, fitted once and kept in a folder for every analysis with the same settings.

`--fits DIR` names the folder; without it everything is fitted anew and nothing is kept. Each entry's name is a digest of
all that it depends on: model, benchmark with its questions and pictures, settings, and the package's own sources. So an
entry is never stale: a change of any of them makes a new entry.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.progress import Progress
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark
from rmuse_interp.data.content import content
from rmuse_interp.data.store import atomic, digest, read_tensors, write_tensors
from rmuse_interp.edits.plan import Modality
from rmuse_interp.fitting import assemble, gather
from rmuse_interp.lens.identity import depends
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.method.rmuse import Evidence, PresetName, RMuse
from rmuse_interp.parts.pooled import Pooled
from rmuse_interp.runs.progress import Bars
from rmuse_interp.studies.common import Record, provenance


@dataclass(frozen=True, eq=False)
class World:
    """A model, a benchmark and their fits, with the settings of the command line.

    Attributes:
        given: the command line.
        lens, benchmark: the model and the benchmark that it names.
        progress: a running progress bar to add lines to.
        began: start of the work (`time.monotonic`), for the seconds in the record.
    """

    given: argparse.Namespace
    lens: LensModel
    benchmark: Benchmark
    progress: Progress = field(default_factory=lambda: Progress(disable=True))
    began: float = field(default_factory=time.monotonic)

    @cached_property
    def evidence(self) -> dict[Modality, Evidence]:
        """`gather` with the settings of the command line; read from the folder of `--fits` if kept there."""
        if self._place is None:
            return self._gathered()
        place = self._place / "evidence.safetensors"
        with suppress(RMuseError, ValueError, KeyError, TypeError):  # missing or damaged: collected below
            return _read(place)
        tensors: dict[str, Tensor] = {}
        tree = {modality: _packed(vars(one), tensors) for modality, one in self._gathered().items()}
        write_tensors(place, tensors, {"tree": json.dumps(tree)})
        return _read(place)

    def preset(self, name: PresetName) -> RMuse:
        """`assemble` of a preset at the blocks it chooses itself; read from the folder of `--fits` if kept there."""
        if self._place is None:
            return self._assembled(name)
        place = self._place / name
        with suppress(RMuseError):  # missing or damaged: fitted below
            return RMuse.load(place, self.lens)
        shutil.rmtree(place, ignore_errors=True)
        with atomic(place) as draft:
            self._assembled(name).save(draft)
        return RMuse.load(place, self.lens)

    def presets(self, names: Sequence[PresetName]) -> dict[str, RMuse]:
        """The bundle of `--bundle` alone if one is given, else these presets, fitted on the same evidence."""
        if self.given.bundle is not None:
            bundle = bundle_of(self.given.bundle, self.lens, self.benchmark)
            return {bundle.preset: bundle}
        return {name: self.preset(name) for name in names}

    def record(self, schema: str, origin: Record, **entries: object) -> Record:
        """The record of an analysis: its schema, its provenance (`origin` adds to it), and its entries."""
        source = provenance(self.given, self.lens, self.benchmark, self.began, **origin)
        return {"schema": schema, "provenance": source, **entries}

    def _gathered(self) -> dict[Modality, Evidence]:
        given = self.given
        settings = {"limit": given.fit_limit, "batch_size": given.batch_size, "seed": given.seed}
        return gather(self.lens, self.benchmark, progress=self.progress, **settings)

    def _assembled(self, name: PresetName) -> RMuse:
        settings = {"seed": self.given.seed, "progress": self.progress}
        return assemble(self.lens, self.benchmark, self.evidence, name, **settings)

    @cached_property
    def _place(self) -> Path | None:
        """The folder of these fits; None without `--fits`."""
        given = self.given
        if given.fits is None:
            return None
        settings = (given.fit_limit, given.batch_size, given.seed)
        return Path(given.fits) / digest(depends(self.lens), content(self.benchmark), settings)[:16]


@contextmanager
def working(given: argparse.Namespace, lens: LensModel, benchmark: Benchmark) -> Iterator[World]:
    """A world with progress bars on standard error; an error in the bundle is raised before they start."""
    if getattr(given, "bundle", None) is not None:
        bundle_of(given.bundle, lens, benchmark)
    with Bars() as progress:
        yield World(given, lens, benchmark, progress)


def bundle_of(path: Path, lens: LensModel, benchmark: Benchmark) -> RMuse:
    """The bundle that `--bundle` names, for this model and the people to forget of this benchmark.

    Raises:
        RMuseError: no bundle, or one of another model or forget rate.
    """
    found = RMuse.load(path, lens)
    rate = found.report.get("benchmark", {}).get("forget")
    if rate is not None and rate != benchmark.forget_rate:
        raise RMuseError(
            f"{path}: a bundle fitted at --forget {benchmark.forget_rate} was required, got one fitted at {rate}; "
            f"add --forget {rate}"
        )
    return found


def _read(place: Path) -> dict[Modality, Evidence]:
    """The evidence in a file."""
    held, about = read_tensors(place)
    kept = json.loads(about["tree"])
    return {modality: Evidence(**_unpacked(one, held.__getitem__)) for modality, one in kept.items()}


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Evidence as JSON: tensors go to `tensors` by number, records and tuples become objects that name their type."""
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
    """The evidence that `_packed` turned into JSON."""
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "tensor":
        return tensor(held)
    if kind == "tuple":
        return tuple(_unpacked(v, tensor) for v in held)
    found = {k: _unpacked(v, tensor) for k, v in held.items()}
    return Pooled(**found) if kind == "pooled" else found
