"""What all analyses share: options, one-line errors, progress, provenance, and answers that survive an interrupted run.

An analysis is a script `analyses/STEM.py` with a command line of `options`, and a module `studies/STEM.py` that makes the
record of `results/STEM.json` from it; `command` runs both. The script begins with

    if not __package__:  # run as a script: its own folder is no place to import from
        sys.path[0] = str(Path(__file__).resolve().parents[1])

so that no script beside it shadows a package of the same name.
"""

import argparse
import importlib.metadata
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rmuse_interp import RMuseError, __version__
from rmuse_interp.data import Benchmark, Example, load_benchmark
from rmuse_interp.data.store import write_json, write_text
from rmuse_interp.edits.plan import Edit, Modality, Plan
from rmuse_interp.evaluate.metrics import Metric
from rmuse_interp.evaluate.results import require_writable
from rmuse_interp.fitting import LIMIT, check
from rmuse_interp.lens.lens import LensModel, load_model
from rmuse_interp.maths.statistics import Rate
from rmuse_interp.method.rmuse import RMuse
from rmuse_interp.operators import Operator
from rmuse_interp.runs.run import Answers, Method, finish, probe
from rmuse_interp.runs.run import run as ask

PACKAGES: Final = ("torch", "transformers", "transformer-lens", "nnsight", "numpy")
MODALITIES: Final[tuple[Modality, ...]] = get_args(Modality)
Record = dict[str, Any]


def options(
    doc: str | None,
    *,
    limit: int | None,
    what: str,
    fit_limit: int = LIMIT,
    max_new_tokens: int | None = None,
    small: Record | None = None,
) -> argparse.ArgumentParser:
    """The command line that all analyses have.

    Args:
        doc: the module's docstring; its first line describes the command.
        limit: default of `--limit`; None for all.
        what: what `--limit` counts, for the help.
        fit_limit: default of `--fit-limit`.
        max_new_tokens: default of `--max-new-tokens`; None if nothing is answered.
        small: name of an option → its default under `--small`, for an analysis that has a figure: `make figures` runs
            it at these sizes, with what is fitted shared in the folder `--fits`. None takes neither option.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    add = parser.add_argument
    add("--model", default="organism", metavar="M", help="organism, a checkpoint folder or a hub id")
    add("--data", default="organism", metavar="D", help="organism, or a folder of parquet splits")
    add("--out", type=Path, default=Path("results"), metavar="DIR", help="folder to write to")
    add("--limit", type=int, default=limit, help=f"most {what} ({'all' if limit is None else limit})")
    add(
        "--fit-limit",
        type=int,
        default=fit_limit,
        help=f"most examples of each group in fitting ({fit_limit})",
    )
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, default=32)
    if max_new_tokens is not None:
        add("--max-new-tokens", type=int, default=max_new_tokens, help="most tokens per answer")
    add("--device")
    add("--dtype")
    add("--debug", action="store_true", help="show the traceback of an error")
    if small is not None:
        sizes = ", ".join(
            f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
            for name, value in small.items()
        )
        add("--small", action="store_const", const=dict(small), help=f"a first look: {sizes}, unless given")
        add(
            "--fits",
            type=Path,
            metavar="DIR",
            help="keep here what is fitted, for analyses of the same settings",
        )
    return parser


def command(
    stem: str,
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], Record],
    show: Callable[[Record], None],
    argv: Sequence[str] | None = None,
    markdown: Callable[[Record], str] | None = None,
    failures: Callable[[Record], Sequence[str]] = lambda _: (),
) -> int:
    """Run an analysis and write `STEM.json`, whole or not at all.

    Args:
        stem: the analysis's name.
        parser: its command line.
        run: makes the record from the arguments.
        show: prints the record for people.
        argv: arguments of the command line; `sys.argv[1:]` by default.
        markdown: makes the text of `STEM.md` from the record; no such file by default.
        failures: names the parts of a record that failed, where the other parts are complete.

    Returns:
        The exit code: 2 with an error in one line, 1 where something failed.
    """
    given = parser.parse_args(argv)
    if getattr(given, "small", None):
        parser.set_defaults(**given.small)
        given = parser.parse_args(argv)  # again, so that given options override these defaults
    try:
        for name in ("limit", "fit_limit", "batch_size", "max_new_tokens", "resamples", "queries"):
            value = getattr(given, name, None)
            if value is not None and value < 1:
                flag = name.replace("_", "-")
                raise RMuseError(f"--{flag} of at least 1 was required, got {value}")
        require_writable(given.out)
        record = run(given)
        path = given.out / f"{stem}.json"
        if markdown is not None:
            write_text(path.with_suffix(".md"), [markdown(record)])
        write_json(path, record)
        folder = kept(given, stem)
        if folder.is_dir():
            finish(folder)
            folder.rmdir()
    except (RMuseError, OSError) as error:
        if given.debug:
            traceback.print_exc()
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    show(record)
    print(f"written: {path}")
    failed = failures(record)
    if failed:
        print(f"failed: {'; '.join(failed)}; the same command does these again", file=sys.stderr)
    return int(bool(failed))


def kept(given: argparse.Namespace, stem: str) -> Path:
    """Where an analysis keeps the batches it has answered, until it is finished."""
    return given.out / f".{stem}"


def provenance(
    given: argparse.Namespace, lens: LensModel, benchmark: Benchmark, began: float, **more: object
) -> Record:
    """Where a record comes from: model, benchmark, settings, versions, seconds since `began` (`time.monotonic`)."""
    return {
        "model": {"id": given.model, "fingerprint": str(lens.fingerprint)},
        "benchmark": {
            "id": benchmark.id,
            "forget": benchmark.forget_rate,
            "render_seed": benchmark.render_seed,
        },
        "n_layers": lens.n_layers,
        "seed": given.seed,
        "limit": given.limit,
        "fit_limit": given.fit_limit,
        **more,
        "seconds": round(time.monotonic() - began, 1),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {"rmuse-interp": __version__}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def ready(lens: LensModel, benchmark: Benchmark) -> None:
    """Raise unless a model can be fitted on a benchmark and every picture of its fitting files can be read."""
    check(lens, benchmark)
    for examples in (benchmark.fit_retain, benchmark.fit_reasoning, benchmark.fit_benign):
        benchmark.check_images(examples)
    probe(lens, benchmark.fit_forget[0])


def opened(given: argparse.Namespace, forget: int) -> tuple[LensModel, Benchmark]:
    """The model and the benchmark at one forget rate, after checking all that fitting needs.

    Raises:
        RMuseError: a model or benchmark that is missing or cannot be fitted on.
    """
    benchmark = load_benchmark(given.data, forget=forget)
    lens = load_model(given.model, device=given.device, dtype=given.dtype)
    check(lens, benchmark)
    return lens, benchmark


def answered(
    given: argparse.Namespace,
    stem: str,
    methods: Sequence[Method],
    questions: Mapping[str, Sequence[Example]],
    benchmark: Benchmark,
    progress: Progress | None = None,
) -> Answers:
    """Greedy answers of methods with distinct names, each of at most ``--max-new-tokens`` tokens.

    The questions of all splits share batches. Finished batches are kept, and reused when the same run is started again.
    """
    pooled = {"all": [example for examples in questions.values() for example in examples]}
    return ask(
        methods,
        pooled,
        delimiters=benchmark.delimiters,
        max_new_tokens=given.max_new_tokens,
        batch_size=given.batch_size,
        folder=kept(given, stem),
        progress=progress,
    )


def steered_blocks(plan: Plan) -> dict[str, list[int]]:
    """Kind of query → the blocks that a plan steers."""
    return {
        kind: sorted({block for edit in plan if edit.modality in (None, kind) for block in edit.layers})
        for kind in MODALITIES
    }


def places(fitted: RMuse) -> list[tuple[Modality, int]]:
    """The kind of query and the block of every subspace in a bundle."""
    keys = (key.rpartition("-") for key in fitted.subspaces.unlearning)
    return [("image" if kind == "image" else "text", int(layer)) for kind, _, layer in keys]


def steering(edit: Edit) -> dict[int, Operator]:
    """Block → the operator that edits its output."""
    found = {layer: edit.operator_at(layer) for layer in edit.layers}
    return {layer: operator for layer, operator in found.items() if operator is not None}


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; it may be wider than a narrow terminal."""
    table = Table(title=title, box=None)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=max(150, Console().width)).print(table)


def around(found: Record, digits: int, scale: float = 1.0, value: str = "value") -> str:
    """A value and its interval, for a table."""
    middle, low, high = (f"{scale * found[key]:.{digits}f}" for key in (value, "low", "high"))
    return f"{middle} \\[{low}, {high}]"


def percent(rate: Rate) -> Record:
    """A rate as ``{value, low, high, n}`` in percent."""
    return estimate(100 * rate.value, 100 * rate.low, 100 * rate.high, n=rate.n)


def of_metric(metric: Metric) -> Record:
    """A metric as ``{value, low, high, n}``."""
    return estimate(metric.value, *(metric.interval or (None, None)), n=metric.n)


def estimate(value: float | None, low: float | None, high: float | None, **more: object) -> Record:
    """A value with its interval and further entries, as JSON."""
    return {"value": short(value), "low": short(low), "high": short(high), **more}


def short(value: float | None) -> float | None:
    """A value at six significant digits."""
    return None if value is None else float(f"{value:.6g}")
