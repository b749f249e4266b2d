"""What a checkpoint's files hold: asked before they are loaded, and compared with the model afterwards."""

import json
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from rmuse_interp import RMuseError

CHECK_OFF: Final = "load_model(..., check=False) takes it as it is"
_POINTER: Final = b"version https://git-lfs"
_BYTES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes per value of safetensors' floating-point types that a load converts; others are kept."""


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint in a folder, as transformers chooses them; without those that are not there."""
    for kind in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{kind}.index.json"
        if (folder / kind).is_file():
            return [folder / kind]
        if index.is_file():
            try:
                names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RMuseError(
                    f"{index}: an index with weight_map was required, got a damaged one ({error})"
                ) from error
            return sorted(file for name in names if (file := folder / str(name)).is_file())
    return []


def require_real(folder: Path) -> None:
    """Raise unless every file of a checkpoint is there itself, not as a pointer of git-lfs.

    Raises:
        RMuseError: naming the pointers.
    """
    pointers = [
        file.name
        for file in sorted(folder.iterdir())
        if file.is_file() and file.stat().st_size < 1024 and file.read_bytes().startswith(_POINTER)
    ]
    if pointers:
        raise RMuseError(
            f"{folder}: the files themselves were required, git-lfs has left pointers in place of "
            f"{shortened(pointers)}; run `git lfs pull` there"
        )


def size_in(files: Collection[Path], itemsize: int | None) -> int:
    """Bytes that the weights in some files take once loaded.

    Args:
        files: safetensors files, of which the headers are read, or others, which count as they are.
        itemsize: bytes per floating-point value after loading; None for as many as in the files.

    Raises:
        RMuseError: a safetensors file that is cut off or damaged.
    """
    total = 0
    for file in files:
        if file.suffix != ".safetensors":
            total += file.stat().st_size
            continue
        for kind, size in header(file).values():
            own = _BYTES.get(kind)
            total += size if own is None or itemsize is None else size // own * itemsize
    return total


def header(file: Path) -> dict[str, tuple[str, int]]:
    """Name of each tensor in a safetensors file → its dtype, in the format's own words, and its size in bytes.

    Raises:
        RMuseError: a file that is cut off or damaged.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise ValueError(f"{size} bytes")
            listed = json.loads(stream.read(length))
        listed.pop("__metadata__", None)
        found = {name: (one["dtype"], one["data_offsets"]) for name, one in listed.items()}
        needed = 8 + length + max((end for _, (_, end) in found.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise RMuseError(
            f"{file}: a whole safetensors file was required, got a damaged one ({error})"
        ) from error
    if size != needed:
        raise RMuseError(
            f"{file}: a safetensors file of {needed} bytes was required, got {size}; copy or download it again"
        )
    return {name: (kind, end - start) for name, (kind, (start, end)) in found.items()}


def require_whole(source: str, info: Mapping[str, Collection[object]]) -> None:
    """Raise unless a checkpoint filled the model, and the model took all of the checkpoint.

    Args:
        source: the checkpoint.
        info: what `from_pretrained(..., output_loading_info=True)` reports; tied weights, and names that the family
            declares to be of no use, are not in it.

    Raises:
        RMuseError: naming tensors that are missing (they would be random), left over, or of another shape.
    """
    faults = [
        f"{what} {shortened(sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys))}"
        for name, what in (
            ("missing_keys", "lacks"),
            ("unexpected_keys", "has no place for"),
            ("mismatched_keys", "has other shapes for"),
        )
        if (keys := info.get(name))
    ]
    if faults:
        raise RMuseError(
            f"the weights in {source} were required to be those of the model in its config, the checkpoint "
            f"{'; it '.join(faults)}; {CHECK_OFF}"
        )


def shortened(names: Collection[str], limit: int = 4) -> str:
    """Some names in one phrase: the first few, and how many more there are."""
    shown = ", ".join(list(names)[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def adapter_base(folder: Path) -> str | None:
    """The base model that an adapter folder (peft) names; None for a folder that holds no adapter alone.

    Raises:
        RMuseError: an adapter that names none.
    """
    settings = folder / "adapter_config.json"
    if not settings.is_file() or (folder / "config.json").is_file():
        return None
    try:
        base = json.loads(settings.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise RMuseError(f"{settings}: a base model's name was required, got none ({error!r})") from error
    if not isinstance(base, str) or not base:
        raise RMuseError(f"{settings}: a base model's name was required, got {base!r}; write its path there")
    return base
