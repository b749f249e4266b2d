"""`rmuse baseline list | train`: trained baselines, and how `rmuse eval --baseline` opens them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from rmuse_interp.cli import groups, support
from rmuse_interp.cli import options as o
from rmuse_interp.evaluate.results import require_writable

if TYPE_CHECKING:
    from rmuse_interp.baselines import Trained
    from rmuse_interp.lens.lens import LensModel

NAMES = "ga, ga_diff, kl_min, npo, po, mmunlearner, manu, r2mu"
"""The baselines' names, for the help, without importing `baselines`."""

app = groups.group("Train baselines of unlearning, and list what there is.")

Folders = Annotated[
    list[Path] | None,
    typer.Option(
        "--baseline",
        metavar="DIR",
        help="A folder written by `rmuse baseline train`; repeat the option for several.",
    ),
]


@app.command("list")
def list_(debug: o.Debug = False) -> None:
    """List the baselines and what they do."""
    from rmuse_interp.baselines import BASELINES

    for name, baseline in BASELINES.items():
        text = f"{name:<13}{baseline.title}: {baseline.summary} (arXiv {baseline.paper})"
        support.out.print(escape(text), soft_wrap=True)


@app.command()
def train(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {NAMES}.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write what is trained to.")],
    model: o.Model = "organism",
    data: o.Data = "organism",
    forget: o.Forget = 5,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Questions per group in an epoch.")] = 32,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Questions per step.")] = 4,
    settings: Annotated[
        int, typer.Option("--settings", min=1, help="How many learning rates (or shares of neurons) to try.")
    ] = 10,
    epochs: Annotated[
        int, typer.Option("--epochs", min=1, help="Maximum number of epochs at each of them.")
    ] = 3,
    seed: o.Seed = 0,
    device: o.Device = None,
    dtype: o.Dtype = None,
    blocks: o.Blocks = None,
    skip_bad_rows: o.SkipBadRows = False,
    overwrite: o.Overwrite = False,
    debug: o.Debug = False,
) -> None:
    """Train a baseline at several learning rates and keep the best on validation; resumes if interrupted."""
    require_writable(out)
    from rmuse_interp.baselines import train as train_baseline
    from rmuse_interp.baselines.methods import require_name
    from rmuse_interp.baselines.store import RECORD

    require_name(name)
    benchmark = support.open_benchmark(data, forget, skip_bad_rows)
    lens = support.open_model(model, device, dtype, blocks)
    if overwrite:
        (out / RECORD).unlink(missing_ok=True)
    with support.bars(f"trained {name}", {}, "train") as progress:
        trained = train_baseline(
            name,
            lens,
            benchmark,
            out,
            seed=seed,
            limit=limit,
            batch_size=batch_size,
            settings=settings,
            epochs=epochs,
            progress=progress,
        )
    support.tell_skipped(benchmark)
    _tell(trained)
    support.out.print(f"baseline: {escape(str(out))}")


def _tell(trained: "Trained") -> None:
    """Print the table of trials, with the kept one marked."""
    pruned = trained.chosen.epoch == 0
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    headings = ("", "share" if pruned else "rate", "epoch", "leaks, %", "keeps, %", "malformed, %", "seconds")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for trial in trained.trials:
        shares = (f"{100 * share:.0f}" for share in (trial.leak, trial.keep, trial.malformed))
        table.add_row(
            "*" if trial == trained.chosen else "",
            f"{trial.setting:.2g}",
            "–" if pruned else str(trial.epoch),
            *shares,
            f"{trial.seconds:.1f}",
        )
    support.out.print(table)


def names_of(folders: Sequence[Path]) -> dict[str, Path]:
    """Name in the scores → folder of each trained baseline: its method, and ``@FOLDER`` if several share the method.

    Raises:
        RMuseError: a missing or damaged baseline, or the same folder twice.
    """
    from rmuse_interp.baselines.store import read_record

    methods = [str(read_record(folder)["method"]) for folder in folders]
    return dict(zip(support.told_apart(methods, folders, "--baseline"), folders, strict=True))


def rates_of(folders: Sequence[Path]) -> dict[str, int]:
    """Folder → the forget rate that its baseline was trained at."""
    from rmuse_interp.baselines.store import read_record

    return {str(folder): int(read_record(folder)["benchmark"]["forget"]) for folder in folders}


def opened(names: dict[str, Path], lens: "LensModel") -> dict[str, "LensModel"]:
    """Name → the model that the baseline trained from this one.

    Raises:
        RMuseError: a baseline of another model.
    """
    from rmuse_interp.baselines import open_baseline

    return {name: open_baseline(folder, lens) for name, folder in names.items()}
