"""One image-processor backend per family, whatever is installed; a torchvision that does not fit torch does no harm."""

import importlib.util
import sys
from pathlib import Path
from typing import Final

import torch

_SCHEMAS: Final = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)
"""The operators whose absence stops torchvision's own import; no image processor calls them."""

_LIBRARIES: Final[list[torch.library.Library]] = []
"""Definitions live as long as their library."""


def mend_torchvision() -> None:
    """Let torchvision be imported where its compiled part does not fit torch (a CPU build of torch, another version).

    transformers imports an installed torchvision with every model, text-only ones included, so a broken one would take
    all of them down. Its picture transforms are plain torch and work without the compiled part: the operators missing
    are declared without a kernel. If the import fails all the same, torchvision is hidden, as if not installed.
    """
    if "torchvision" in sys.modules or (spec := importlib.util.find_spec("torchvision")) is None:
        return
    try:
        torch.ops.load_library(str(next(Path(str(spec.origin)).parent.glob("_C.*"))))
        return
    except (OSError, ImportError, StopIteration):
        library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)
    _LIBRARIES.append(library)
    try:
        import torchvision  # noqa: F401
    except Exception:  # whatever a package of another torch's may raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # type: ignore[assignment]


def backend_of(processor: object) -> str | None:
    """`pil` or `torchvision`: what turns pictures into tensors in a processor; None for a bare tokenizer."""
    images = getattr(processor, "image_processor", None)
    if images is None:
        return None
    named = {base.__name__ for base in type(images).__mro__}
    return "torchvision" if "TorchvisionBackend" in named else "pil"
