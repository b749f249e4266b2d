"""`Fingerprint`: identifies the model a plan was fitted on."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from torch import nn

from rmuse_interp import RMuseError
from rmuse_interp.models.layout import Layout


@dataclass(frozen=True)
class Fingerprint:
    """Architecture, widths and a hash of the source checkpoint's weight files.

    It does not include the dtype: every dtype and quantised form loaded from the same files matches.

    Args:
        architecture: class of the model with its head.
        n_layers: decoder blocks.
        d_model: width of the residual stream.
        vocabulary: entries of the embedding.
        weights: hash (16 hex digits) of the weight files, or "" if the model was not loaded from files.
    """

    architecture: str
    n_layers: int
    d_model: int
    vocabulary: int
    weights: str

    def __str__(self) -> str:
        shape = f"{self.n_layers}x{self.d_model}x{self.vocabulary}"
        return f"{self.architecture}:{shape}:{self.weights or 'unknown'}"

    def as_record(self) -> dict[str, str | int]:
        """The fingerprint as plain JSON."""
        return asdict(self)

    def differences(self, record: Mapping[str, object]) -> list[str]:
        """Differences from a saved record, one phrase each; weights are compared only if both are known."""
        found = []
        for name, own in self.as_record().items():
            other = record.get(name)
            if own != other and not (name == "weights" and not (own and other)):
                found.append(f"{name} {other} there, {own} here")
        return found

    def require(self, record: Mapping[str, object] | None, what: str) -> None:
        """Raise unless `what` belongs to this model.

        Raises:
            RMuseError: naming what differs.
        """
        found = [] if record is None else self.differences(record)
        if found:
            raise RMuseError(
                f"{what} was fitted on another model ({'; '.join(found)}): load that one, or fit again"
            )


def fingerprint(hf_model: nn.Module, layout: Layout) -> Fingerprint:
    """The fingerprint of a loaded model; its weight files are sampled once per process."""
    path = str(getattr(getattr(hf_model, "config", None), "_name_or_path", "") or "")
    vocabulary = int(hf_model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    return Fingerprint(type(hf_model).__name__, layout.n_layers, layout.d_model, vocabulary, _weights(path))


_PIECE: Final = 1 << 15
_SAMPLES: Final = 1024

_HASHES: dict[tuple[str, int, int], bytes] = {}
"""(path, size, time of change) → digest of a file."""


def _weights(path: str) -> str:
    files = sorted(Path(path).glob("*.safetensors")) if path and Path(path).is_dir() else _cached(path)
    if not files:
        return ""
    total = hashlib.sha256()
    for file in files:
        total.update(_digest(file))
    return total.hexdigest()[:16]


def _cached(repository: str) -> list[Path]:
    """The weight files of a hub checkpoint in the local cache."""
    if not repository:
        return []
    from huggingface_hub import try_to_load_from_cache

    for name in ("model.safetensors", "model.safetensors.index.json"):
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return sorted(Path(found).parent.glob("*.safetensors"))
    return []


def _digest(file: Path) -> bytes:
    status = file.stat()
    key = (str(file.resolve()), status.st_size, status.st_mtime_ns)
    if key not in _HASHES:
        _HASHES[key] = _sampled(file, status.st_size)
    return _HASHES[key]


def _sampled(file: Path, size: int) -> bytes:
    """sha256 of the size and of `_SAMPLES` pieces spread evenly over the file (the whole file if it is small).

    Hashing all of 14 GB would take half a minute; a changed weight matrix is larger than the gaps between pieces.
    """
    found = hashlib.sha256(str(size).encode())
    starts = range(0, size, _PIECE)
    if len(starts) > _SAMPLES:
        starts = range(0, size - _PIECE, (size - _PIECE) // (_SAMPLES - 1))
    with file.open("rb") as stream:
        for start in starts:
            stream.seek(start)
            found.update(stream.read(_PIECE))
    return found.digest()
