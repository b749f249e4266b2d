"""Keep results on disk: files written whole or not at all, and `Store`, which lets interrupted work resume.

All code in the package that writes a result, or reuses an earlier one, goes through this module.
"""

import functools
import hashlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rmuse_interp import RMuseError

if TYPE_CHECKING:
    from torch import Tensor

JSON = dict[str, Any]
"""A JSON object: plain Python values by name."""

T = TypeVar("T")
WRITTEN: Final = ".rmuse-written"
"""Name of the file in a folder that lists what was written there, with hashes."""
NEXT: Final = ".next"
"""Name of the subfolder from which finished files move to their folder."""


def cache_folder() -> Path:
    """The package's folder below the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rmuse_interp"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a draft path beside `path`, for one file or folder; it becomes `path` when the block ends without an error.

    A file replaces an existing one. An existing folder stays, and the draft is dropped: another process was faster,
    and folders written this way are named by their content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        yield draft
        if not draft.is_dir():
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(draft, path)
        elif not path.is_dir():
            try:
                os.replace(draft, path)
            except OSError:
                if not path.is_dir():
                    raise
    finally:
        if draft.is_dir():
            shutil.rmtree(draft)
        draft.unlink(missing_ok=True)


@contextmanager
def atomic_files(folder: Path, last: str) -> Iterator[Path]:
    """Yield a draft folder for files that belong together; when the block ends, they replace those of `folder` as one.

    A crash at any moment leaves the old files or the new ones, never some of each, for who asks `newest` for them: the
    whole draft becomes `folder/.next` in one step, and its files move from there one by one. For readers that do not
    ask, the file `last` marks the others as complete: the old one is deleted first and the new one is moved last.
    """
    draft = folder / f".{secrets.token_hex(4)}"
    draft.mkdir(parents=True)
    try:
        yield draft
        while True:
            settle(folder, last)
            try:
                os.replace(draft, folder / NEXT)
                break
            except OSError:
                if not (folder / NEXT).is_dir():
                    raise  # else another process was faster: its files come first
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    settle(folder, last)


def settle(folder: Path, last: str) -> None:
    """Move the files of an `atomic_files` that was interrupted to where they belong; without one, do nothing."""
    ready = folder / NEXT
    if not ready.is_dir():
        return
    if (ready / last).is_file():
        (folder / last).unlink(missing_ok=True)
    names = [file.relative_to(ready) for file in sorted(ready.rglob("*")) if file.is_file()]
    for name in sorted(names, key=lambda one: str(one) == last):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process has moved it
            os.replace(ready / name, folder / name)
    shutil.rmtree(ready, ignore_errors=True)


def newest(folder: Path, name: str) -> Path:
    """The path of a file that `atomic_files` wrote in a folder, even if moving the files there was interrupted."""
    waiting = folder / NEXT / name
    return waiting if waiting.is_file() else folder / name


@contextmanager
def own_folder(folder: Path, last: str) -> Iterator[Path]:
    """As `atomic_files`, for a folder that holds nothing else; only files that an earlier call wrote there are removed.

    Raises:
        RMuseError: the folder holds a file that no earlier call wrote.
    """
    settle(folder, last)
    known, there = set(_written(folder)), _files(folder)
    if there - known:
        raise RMuseError(
            f"{folder}: an empty folder, or one with nothing but what was written here before, was required, got "
            f"{min(there - known)} in it; choose another folder, or move that away"
        )
    with atomic_files(folder, last) as draft:
        yield draft
        names = _files(draft)
        write_text(draft / WRITTEN, (f"{digest_of_file(draft / name)} {name}\n" for name in sorted(names)))
        (folder / last).unlink(missing_ok=True)
        for name in there - names - {last}:
            (folder / name).unlink()
            if not any((folder / name).parent.iterdir()):
                (folder / name).parent.rmdir()


def unchanged(folder: Path) -> bool:
    """Whether a folder holds what `own_folder` wrote there, every byte of it, and nothing else."""
    known = _written(folder)
    return bool(known) and known == {name: digest_of_file(folder / name) for name in _files(folder)}


def _written(folder: Path) -> dict[str, str]:
    """Name → hash of the files that an earlier `own_folder` wrote."""
    held = folder / WRITTEN
    lines = held.read_text(encoding="utf-8", errors="replace").splitlines() if held.is_file() else []
    return {name: known for known, _, name in (line.partition(" ") for line in lines)}


def _files(folder: Path) -> set[str]:
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}
    return found - {WRITTEN}


def write_text(path: Path, parts: Iterable[str]) -> None:
    """Write a text given in parts (as UTF-8), whole or not at all."""
    with atomic(path) as draft, draft.open("w", encoding="utf-8") as file:
        file.writelines(parts)


def write_json(path: Path, record: object) -> None:
    """Write a record as JSON, whole or not at all.

    Raises:
        ValueError: the record holds NaN or infinity.
    """
    write_text(path, [json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False), "\n"])


def write_tensors(
    path: Path, tensors: Mapping[str, "Tensor"], about: Mapping[str, str] | None = None
) -> None:
    """Write tensors of any shapes as a safetensors file, whole or not at all; `about` is kept with them."""
    from safetensors.torch import save_file

    # Tensors may share memory (one gate in two edits); safetensors requires each to own its memory.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic(path) as draft:
        draft.touch()
        mode = draft.stat().st_mode
        save_file(own, draft, dict(about or {}))
        draft.chmod(mode)  # permissions of any new file; safetensors would make it readable by its owner only


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """Read a safetensors file: its tensors (on the CPU), and the `about` that `write_tensors` kept with them.

    Raises:
        RMuseError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RMuseError(
            f"{path}: a whole safetensors file was required, got {type(error).__name__}"
        ) from error


class Store:
    """Results (JSON, optionally with tensors), stored under everything that they depend on.

    The file has one line per result, with a digest of what it depends on; a result with other dependencies is never
    returned. Each is on disk as soon as it is put. A line cut off by an interruption is skipped and never appended to.
    Safe to use from several threads.

    Args:
        path: a JSONL file; tensors are stored beside it, one safetensors file per result. None keeps all in memory.
        of: what every result depends on (see `digest`): the model, the settings, the version of the step.

    >>> store = Store(None, "model", {"limit": 3})
    >>> store.put("What?", "Oslo")
    >>> store.get("What?"), store.get("Who?")
    ('Oslo', None)
    """

    def __init__(self, path: Path | None, *of: object) -> None:
        self.path, self._of = path, digest(*of)
        self._lock = threading.Lock()
        self._lines: dict[str, str] = {}
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._torn = False
        if path is not None and path.is_file():
            # `splitlines` would also split at U+2028.
            *whole, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
            self._torn = bool(rest)
            for line in whole:
                try:
                    self._lines[json.loads(line)["key"]] = line
                except (ValueError, KeyError, TypeError):
                    continue

    def get(self, key: object) -> Any:
        """The result put under a key (anything that `digest` accepts), as plain JSON; None if there is none."""
        line = self._lines.get(digest(self._of, key))
        return None if line is None else json.loads(line)["value"]

    def tensors(self, key: object) -> dict[str, "Tensor"] | None:
        """The tensors put with a result (on the CPU); None if there are none, or their file is missing or damaged."""
        name = digest(self._of, key)
        if self.path is None or name not in self._lines:
            return self._tensors.get(name)
        try:
            return read_tensors(self._beside(name))[0]
        except RMuseError:
            return None

    def put(self, key: object, value: object, tensors: Mapping[str, "Tensor"] | None = None) -> None:
        """Write a result (plain JSON) and its tensors to disk immediately, replacing an earlier result of the key."""
        name = digest(self._of, key)
        line = json.dumps({"key": name, "value": value}, ensure_ascii=False)
        with self._lock:
            if tensors is not None:
                if self.path is None:
                    self._tensors[name] = dict(tensors)
                else:
                    write_tensors(self._beside(name), tensors)
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(f"\n{line}\n" if self._torn else f"{line}\n")
                self._torn = False
            self._lines[name] = line

    def once(self, key: object, make: Callable[[], T]) -> T:
        """The result put under a key; if there is none, put and return what `make` returns (plain JSON)."""
        found: T | None = self.get(key)
        if found is None:
            found = make()
            self.put(key, found)
        return found

    def drop_tensors(self, key: object) -> None:
        """Delete the tensors of a result; the result itself stays."""
        name = digest(self._of, key)
        self._tensors.pop(name, None)
        if self.path is not None:
            self._beside(name).unlink(missing_ok=True)

    def _beside(self, name: str) -> Path:
        assert self.path is not None
        return self.path.with_suffix(f".{name}.safetensors")


def digest(*of: object) -> str:
    """Compute a canonical digest (32 hex digits): equal for equal values, whatever the order in mappings and sets.

    Args:
        of: the values: None, booleans, numbers, text, bytes, paths, tensors, dataclasses (compared fields only), and
            mappings, sets and sequences of these.

    Raises:
        TypeError: a value is of another type, whose text may change from run to run.

    >>> digest({"a": 1, "b": (2, 3)}) == digest({"b": [2, 3], "a": 1})
    True
    >>> digest(1) == digest("1") or digest("ab", "c") == digest("a", "bc")
    False
    """
    return hashlib.sha256(_canonical(of)).hexdigest()[:32]


@functools.cache
def sources() -> str:
    """Digest the package's own code and tables: results fitted by different code must not be confused."""
    root = Path(__file__).resolve().parents[1]
    files = [file for kind in ("*.py", "*.json") for file in root.rglob(kind)]
    return digest({file.relative_to(root).as_posix(): file.read_bytes() for file in files})


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's content (64 hex digits)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(value: object) -> bytes:
    """Encode a value as unique bytes: kind, length, content; nested values by the digests of their items."""
    if value is None or isinstance(value, bool):
        kind, content = "constant", str(value).encode()
    elif isinstance(value, str):
        kind, content = "text", str.encode(value)
    elif isinstance(value, int):
        kind, content = "integer", str(int(value)).encode()
    elif isinstance(value, float):
        kind, content = "float", float(value).hex().encode()
    elif isinstance(value, bytes):
        kind, content = "bytes", value
    elif isinstance(value, Path):
        kind, content = "path", str(value).encode()
    elif isinstance(value, Mapping):
        kind, content = "mapping", b"".join(sorted(_hashed(k) + _hashed(v) for k, v in value.items()))
    elif isinstance(value, AbstractSet):
        kind, content = "set", b"".join(sorted(map(_hashed, value)))
    elif isinstance(value, Sequence):
        kind, content = "sequence", b"".join(map(_hashed, value))
    elif is_dataclass(value) and not isinstance(value, type):
        kind = f"dataclass {type(value).__name__}"
        content = _hashed({f.name: getattr(value, f.name) for f in fields(value) if f.compare})
    else:
        kind, content = _of_tensor(value)
    return f"{kind}:{len(content)}:".encode() + content


def _hashed(value: object) -> bytes:
    return hashlib.sha256(_canonical(value)).digest()


def _of_tensor(value: object) -> tuple[str, bytes]:
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"nothing is stored under a {type(value).__name__}, whose content cannot be told")
    raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"tensor {value.dtype} {tuple(value.shape)}", raw.numpy().tobytes()
