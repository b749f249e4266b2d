"""Benchmarks: one `Example` per question, one `Benchmark` per folder, one file per format."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmuse_interp.data.benchmark import SPLITS, Benchmark, Split, load_benchmark
    from rmuse_interp.data.example import Example, Kind, Modality
    from rmuse_interp.data.sampling import sample

__all__ = ["SPLITS", "Benchmark", "Example", "Kind", "Modality", "Split", "load_benchmark", "sample"]


def __getattr__(name: str) -> object:
    # Imported late, so that the question texts (`data.prompts`) are available without torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = {"Example": "example", "Kind": "example", "Modality": "example", "sample": "sampling"}
    home = homes.get(name, "benchmark")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
