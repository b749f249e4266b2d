"""Loading a checkpoint and its processor with transformers, on a device, in a dtype."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from rmuse_interp import RMuseError
from rmuse_interp.models.pixels import backend_of
from rmuse_interp.models.pretrained import SMOLLM2, require_smollm2

SHIPPED: Final = ("organism", "organism-gold")
"""Checkpoints that travel with the package."""


def load_checkpoint(
    name: str, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> tuple[Any, Any]:
    """The model at a path, hub id or shipped name, in evaluation mode, and its processor (or tokenizer).

    Args:
        name: a folder, a hub id, `organism`, `organism-gold` or `smollm2`.
        device: target device; by default a GPU if there is one.
        dtype: by default the checkpoint's own on a GPU and float32 elsewhere.

    Raises:
        RMuseError: no checkpoint there, an unknown dtype or device.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise RMuseError(f"a device such as 'cpu' or 'cuda' was required, got {device!r}: {error}") from error
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not isinstance(kind, torch.dtype):
        raise RMuseError(f"a dtype such as 'float32' or 'bfloat16' was required, got {dtype!r}")
    if kind is None and place.type == "cpu":
        kind = torch.float32
    model, processor = _load(_source(name), kind)
    return model.to(place).eval(), processor


def shipped(name: str) -> Path:
    """The folder of a shipped checkpoint: `organism`, or `organism-gold` (trained without the 5 % forget set)."""
    if name not in SHIPPED:
        raise RMuseError(f"a shipped checkpoint is one of {', '.join(SHIPPED)}; got {name!r}")
    return Path(__file__).parents[1] / "organism" / "weights" / name


def _source(name: str) -> str:
    if name in SHIPPED:
        return str(shipped(name))
    if name == SMOLLM2:
        return str(require_smollm2())
    looks_local = Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") != 1
    folder = Path(name).expanduser()
    if folder.exists() and not (folder / "config.json").exists():
        raise RMuseError(
            f"a checkpoint folder with a config.json was required, {name} has none; save the model there"
        )
    if looks_local and not folder.exists():
        raise RMuseError(
            f"a checkpoint folder, a hub id or 'organism' was required, {name} does not exist; check the path"
        )
    return str(folder) if folder.exists() else name


def _load(source: str, dtype: torch.dtype | None) -> tuple[Any, Any]:
    import transformers

    try:
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(source)
            sees = type(config) in transformers.AutoModelForImageTextToText._model_mapping
            kind = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
            processor = (transformers.AutoProcessor if sees else transformers.AutoTokenizer).from_pretrained(
                source
            )
            if backend_of(processor) is not None:  # PIL for every family that has it, whatever is installed
                processor.image_processor = transformers.AutoImageProcessor.from_pretrained(
                    source, backend="pil"
                )
            model = kind.from_pretrained(source, dtype=dtype if dtype is not None else "auto")
    except (OSError, ValueError, KeyError, ImportError) as error:
        if lacking := [name for name in ("torchvision", "num2words") if name in str(error).lower()]:
            raise RMuseError(
                f"the processor of {source} needs {lacking[0]}, which is not installed or does not fit torch: "
                "pip install 'rmuse-interp[families]'"
            ) from error
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RMuseError(f"{source} could not be loaded as an image-text or text model: {reason}") from error
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, processor


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Context without transformers' progress bars and advice."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
