"""R-MUSE: training-free unlearning that spares the reasoning of multimodal models.

Names below are loaded on first use, so that `import rmuse_interp` costs little more than `import torch`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmuse_interp.data import load_benchmark
    from rmuse_interp.edits.plan import Edit, Plan
    from rmuse_interp.edits.trace import Recorder
    from rmuse_interp.fitting import fit
    from rmuse_interp.lens.lens import load_model
    from rmuse_interp.method.rmuse import RMuse
    from rmuse_interp.models.site import Site
    from rmuse_interp.parts.subspace import Subspace

__version__ = "0.2.0"
__all__ = [
    "Edit",
    "Plan",
    "RMuse",
    "RMuseError",
    "Recorder",
    "Site",
    "Subspace",
    "fit",
    "load_benchmark",
    "load_model",
]

_HOMES = {
    "Edit": "edits.plan",
    "Plan": "edits.plan",
    "RMuse": "method.rmuse",
    "Recorder": "edits.trace",
    "Site": "models.site",
    "Subspace": "parts.subspace",
    "fit": "fitting",
    "load_benchmark": "data",
    "load_model": "lens.lens",
}


class RMuseError(ValueError):
    """A mistake of the caller: the message says what was required, what arrived, and which call mends it."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
