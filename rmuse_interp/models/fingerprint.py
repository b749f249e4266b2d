"""`Fingerprint`: identifies the model a plan was fitted on, and tells weights that were changed in memory since.

The weights have two digests. One is of the files they came from: it is equal for every dtype and quantised form loaded
from them. The other, `weights_in_memory`, is of every value that the model holds now. Both read everything, at about
three gigabytes a second. `remember` notes, when a model is first seen, which files its values stand for.
"""

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
import xxhash
from torch import Tensor, nn

from rmuse_interp import RMuseError
from rmuse_interp.models.checkpoint import adapter_base, weight_files
from rmuse_interp.models.layout import Layout


@dataclass(frozen=True)
class Fingerprint:
    """Architecture, widths and a hash of the source checkpoint's weight files, and of what was changed since.

    It does not include the dtype: every dtype and quantised form loaded from the same files matches. What a model's
    answers depend on is more than that: `lens.identity.depends`.

    Args:
        architecture: class of the model with its head.
        n_layers: decoder blocks.
        d_model: width of the residual stream.
        vocabulary: entries of the embedding.
        weights: hash (16 hex digits) of the weight files, or "" if the model was not loaded from files; another hash
            where values were changed after loading, by training, an adapter or by hand.
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
    """The fingerprint of a loaded model; only weights that have changed since the last call are read."""
    vocabulary = int(hf_model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    return Fingerprint(
        type(hf_model).__name__, layout.n_layers, layout.d_model, vocabulary, _known(hf_model).now(hf_model)
    )


def remember(hf_model: nn.Module, source: str | None = None) -> None:
    """Note that the values which a model holds now are those of its files.

    Args:
        hf_model: the model, just loaded or just made.
        source: what the values stand for instead (`Fingerprint.weights`), for copies with an identity of their own.
    """
    found = _Weights(hf_model, _of_files(hf_model) if source is None else source)
    object.__setattr__(
        hf_model, "_rmuse_weights", found
    )  # not a tensor or a module, as nn.Module's own would have it


def weights_in_memory(hf_model: nn.Module) -> str:
    """Digest (32 hex digits) of all values that a model holds now, with their dtypes, and of its adapters' state.

    Weights that are offloaded have no values here: they count by shape, and by their files in `Fingerprint.weights`.
    """
    tensors = [tensor for tensor in _held(hf_model) if not tensor.is_meta]
    total = xxhash.xxh3_128()
    with ThreadPoolExecutor(4) as pool:
        for part in pool.map(_digest, tensors):
            total.update(part)
    total.update(repr([(t.dtype, tuple(t.shape)) for t in _held(hf_model)] + _adapters(hf_model)).encode())
    return total.hexdigest()


_SAMPLES: Final = 8
"""Values per tensor that are compared to tell whether weights have changed."""
_BLOCK: Final = 1 << 24

_HASHES: dict[tuple[str, int, int], str] = {}
"""(path, size, time of change) → digest of a file."""


class _Weights:
    """Weights as they were when the model was first seen, and the files that they came from."""

    def __init__(self, hf_model: nn.Module, source: str) -> None:
        self.source, self._live = source, weights_in_memory(hf_model)
        self._first, self._samples = _stamp(hf_model), _sampled(hf_model)
        self._last, self._found = (self._first, self._samples), source

    def now(self, hf_model: nn.Module) -> str:
        """`source` if the values are those first seen, or a cast of them to another dtype; else a digest of both."""
        stamp, samples = _stamp(hf_model), _sampled(hf_model)
        if stamp != self._last[0] or not _equal(samples, self._last[1]):
            self._last, self._found = (stamp, samples), self._changed(hf_model, samples)
        return self._found

    def _changed(self, hf_model: nn.Module, samples: list[Tensor]) -> str:
        if (live := weights_in_memory(hf_model)) == self._live:
            return self.source
        first = [one.to(now.dtype) for one, now in zip(self._samples, samples, strict=False)]
        cast = [a.dtype != b.dtype for a, b in zip(self._samples, samples, strict=False)]
        if any(cast) and len(self._samples) == len(samples) and _equal(first, samples):
            return self.source
        return xxhash.xxh3_128_hexdigest(f"{self.source} {live}".encode())[:16]


def _known(hf_model: nn.Module) -> _Weights:
    """What is noted about a model; copies, and wrappers that pass on attributes, have the note of their original."""
    if not isinstance(getattr(hf_model, "_rmuse_weights", None), _Weights):
        remember(hf_model)
    found = hf_model._rmuse_weights
    assert isinstance(found, _Weights)
    return found


def _held(hf_model: nn.Module) -> list[Tensor]:
    """Parameters and stored buffers, each once, in the order of the modules: names differ under wrappers."""
    found = {id(x): x for x in hf_model.state_dict(keep_vars=True).values() if isinstance(x, Tensor)}
    return list(found.values())


def _stamp(hf_model: nn.Module) -> object:
    """Changes whenever a tensor is replaced, or changed in place in a way that PyTorch counts."""
    held = [(x.data_ptr(), 0 if x.is_inference() else x._version) for x in _held(hf_model) if not x.is_meta]
    return held, _adapters(hf_model)


def _sampled(hf_model: nn.Module) -> list[Tensor]:
    """A few values of every tensor: changes through `.data` are not counted."""
    return [
        flat[:: max(1, flat.numel() // _SAMPLES)].to("cpu", copy=True)
        for flat in (x.detach().reshape(-1) for x in _held(hf_model) if not x.is_meta)
    ]


def _equal(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether all values are equal bit by bit (NaN to itself)."""
    return len(some) == len(others) and all(
        a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        for a, b in zip(some, others, strict=True)
    )


def _adapters(hf_model: nn.Module) -> list[object]:
    """What peft's layers do with the adapters they hold: which are active or merged, and at what scale."""
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = (part for part in hf_model.modules() if isinstance(part, BaseTunerLayer))
    return [
        (
            list(one.active_adapters),
            one.disable_adapters,
            list(one.merged_adapters),
            sorted(getattr(one, "scaling", {}).items()),
        )
        for one in layers
    ]


def _digest(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return xxhash.xxh3_128_digest(flat.numpy().data)


def _of_files(hf_model: nn.Module) -> str:
    """Digest of the files that a model was loaded from; "" if there are none."""
    config = getattr(hf_model, "config", None)
    files = _files(str(getattr(config, "_name_or_path", "") or ""), getattr(config, "_commit_hash", None))
    if not files:
        return ""
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(_of_file, files))
    return xxhash.xxh3_128_hexdigest(" ".join(parts).encode())[:16]


def _files(source: str, revision: str | None = None) -> list[Path]:
    """The weight files of a checkpoint in a folder or in the hub's local cache; those of an adapter and of its base."""
    folder = Path(source) if source and Path(source).is_dir() else _cached(source, revision)
    if folder is None:
        return []
    own = weight_files(folder) or sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    adapter = [file for kind in ("model.*", "config.json") for file in sorted(folder.glob(f"adapter_{kind}"))]
    base = adapter_base(folder)
    return list(dict.fromkeys([*own, *adapter, *([] if base is None else _files(base))]))


def _cached(repository: str, revision: str | None) -> Path | None:
    """The folder of a hub checkpoint in the local cache."""
    if not repository:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, "config.json", revision=revision)
    except HFValidationError:  # no hub id, but the name of something else
        return None
    return Path(found).parent if isinstance(found, str) else None


def _of_file(file: Path) -> str:
    status = file.stat()
    key = (str(file.resolve()), status.st_size, status.st_mtime_ns)
    if key not in _HASHES:
        total = xxhash.xxh3_128()
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                total.update(block)
        _HASHES[key] = total.hexdigest()
    return _HASHES[key]
