"""Benchmarks: one `Example` per question, one `Benchmark` per folder, one file per format."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmuse_interp.data.benchmark import SPLITS, Benchmark, Split, load_benchmark, sample
    from rmuse_interp.data.example import Example, Kind, Modality

__all__ = ["SPLITS", "Benchmark", "Example", "Kind", "Modality", "Split", "load_benchmark", "sample"]


def __getattr__(name: str) -> Any:
    # Late, so that the question texts (`data.prompts`) can be had without torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "example" if name in ("Example", "Kind", "Modality") else "benchmark"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
