"""R-MUSE: training-free unlearning that spares the reasoning of multimodal models.

Names below are loaded on first use, so that `import rmuse_interp` costs little more than `import torch`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmuse_interp.data import load_benchmark
    from rmuse_interp.edits import Edit, Plan
    from rmuse_interp.errors import RMuseError
    from rmuse_interp.fitting import fit
    from rmuse_interp.models.lens import load_model
    from rmuse_interp.rmuse import RMuse
    from rmuse_interp.sites import Site
    from rmuse_interp.subspace import Subspace

__version__ = "0.1.0"
__all__ = ["Edit", "Plan", "RMuse", "RMuseError", "Site", "Subspace", "fit", "load_benchmark", "load_model"]

_HOMES = {
    "Edit": "edits",
    "Plan": "edits",
    "RMuse": "rmuse",
    "RMuseError": "errors",
    "Site": "sites",
    "Subspace": "subspace",
    "fit": "fitting",
    "load_benchmark": "data",
    "load_model": "models.lens",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
