"""What commands share: opening models and benchmarks, reading options and showing progress."""

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from rmuse_interp import RMuseError
from rmuse_interp.data.store import JSON, newest
from rmuse_interp.evaluate.results import require_writable
from rmuse_interp.runs.progress import Bars

if TYPE_CHECKING:
    from rmuse_interp.data import Benchmark
    from rmuse_interp.lens.lens import LensModel
    from rmuse_interp.method.rmuse import RMuse

out = Console(highlight=False)
"""Console for results."""
notes = Console(stderr=True, highlight=False)
"""Console for progress and remarks."""


@contextmanager
def bars(title: str, seconds: dict[str, float], key: str) -> Iterator[Progress]:
    """Progress bars of one stage, cleared at its end; a line with its seconds stays, and `seconds` gets them too."""
    began = time.monotonic()
    with Bars(notes) as progress:
        yield progress
    seconds[key] = time.monotonic() - began
    notes.print(f"{title} [dim]{seconds[key]:.1f} s[/dim]")


def open_model(name: str, device: str | None, dtype: str | None, blocks: str | None = None) -> "LensModel":
    """The model, with a note while it loads."""
    from rmuse_interp.lens.lens import load_model

    with notes.status(f"loading {name}"):
        return load_model(name, device=device, dtype=dtype, blocks=blocks)


def open_benchmark(name: str, forget: int, skip_bad_rows: bool = False) -> "Benchmark":
    """The benchmark, with a note while that of the small world is drawn for the first time."""
    from rmuse_interp.data import load_benchmark

    with notes.status(f"opening the benchmark {name}"):
        return load_benchmark(name, forget=forget, skip_bad_rows=skip_bad_rows)


def layers_of(text: str | None) -> list[int] | None:
    """The blocks that ``--layers`` names.

    >>> layers_of("5,6"), layers_of("2-4,7"), layers_of(None)
    ([5, 6], [2, 3, 4, 7], None)

    Raises:
        RMuseError: not a list of block numbers.
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise RMuseError(f"--layers: required block numbers such as 5,6 or 5-7, got {text!r}")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not found:
        raise RMuseError(f"--layers: required block numbers such as 5,6 or 5-7, got {text!r}")
    return sorted(set(found))


def forget_rate(bundle: "RMuse") -> int | None:
    """The forget rate that a bundle was fitted at."""
    found = bundle.report.get("benchmark", {}).get("forget")
    return None if found is None else int(found)


def require_bundle(folder: Path) -> None:
    """Raise unless a folder holds a bundle; does not read it."""
    if not newest(folder, "rmuse.json").is_file():
        raise RMuseError(
            f"required a bundle with rmuse.json in {folder}, got none; write one with `rmuse fit`"
        )


def open_bundle(folder: Path, model: "LensModel | None" = None) -> "RMuse":
    """The bundle in a folder, checked against the model if one is given.

    Raises:
        RMuseError: no bundle, a damaged one, or one fitted on another model.
    """
    from rmuse_interp.method.rmuse import RMuse

    return RMuse.load(folder, model)


def names_of(folders: Sequence[Path], bundles: Sequence["RMuse"]) -> list[str]:
    """The bundles' names in the scores: ``rmuse/PRESET``, extended if several have the same preset.

    Raises:
        RMuseError: the same folder twice.
    """
    return told_apart([f"rmuse/{bundle.preset}" for bundle in bundles], folders, "--bundle")


def told_apart(kinds: Sequence[str], folders: Sequence[Path], option: str) -> list[str]:
    """One name per folder: its kind, followed by ``@FOLDER`` or ``@PARENT-FOLDER`` if names would be equal.

    >>> told_apart(["npo", "ga", "ga"], [Path("a"), Path("b"), Path("c")], "--baseline")
    ['npo', 'ga@b', 'ga@c']

    Raises:
        RMuseError: the same folder twice.
    """
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) != len(resolved):
        raise RMuseError(f"required each {option} once, got {', '.join(map(str, folders))}")
    several = Counter(kinds)
    short = [
        kind + (f"@{path.name}" if several[kind] > 1 else "")
        for kind, path in zip(kinds, resolved, strict=True)
    ]
    alike = Counter(short)
    return [
        f"{kind}@{path.parent.name}-{path.name}" if alike[name] > 1 else name
        for name, kind, path in zip(short, kinds, resolved, strict=True)
    ]


def require_free(folder: Path, mark: str, held: str, overwrite: bool) -> None:
    """Raise unless a folder can be written to and is not taken; does not create it.

    Args:
        folder: the folder of ``--out``.
        mark: name of the file that marks a folder as taken.
        held: description of the contents of such a folder.
        overwrite: whether a taken folder is allowed.

    Raises:
        RMuseError: as `require_writable`; or the folder holds the file and `overwrite` is off.
    """
    require_writable(folder)
    if (folder / mark).is_file() and not overwrite:
        raise RMuseError(f"{folder} holds {held}; choose another --out or add --overwrite")


def provenance(model: str, data: str, **settings: object) -> JSON:
    """The origin of a bundle, as plain JSON."""
    from rmuse_interp import __version__

    return {"model": model, "data": data, "rmuse-interp": __version__, **settings}


def tell_skipped(benchmark: "Benchmark") -> None:
    """Print the rows that were left out."""
    for row in benchmark.skipped:
        notes.print(f"[yellow]skipped[/yellow] {row}", markup=True)
