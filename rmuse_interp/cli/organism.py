"""`rmuse organism train | benchmark | check`: make and check the small world."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from rmuse_interp import RMuseError
from rmuse_interp.cli import groups, support
from rmuse_interp.cli import options as o
from rmuse_interp.data.store import JSON
from rmuse_interp.evaluate.results import require_writable

app = groups.group("Train or check the small LLaVA that comes along, or draw its benchmark.")


@app.command()
def train(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder to write checkpoints and the model to.")
    ],
    gold: Annotated[
        bool,
        typer.Option(
            "--gold", help="Train the gold standard, which never sees the people of the 5 % forget set."
        ),
    ] = False,
    begin_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="CHECKPOINT",
            help="Continue the last stage of a checkpoint at a low learning rate.",
        ),
    ] = None,
    seed: o.Seed = 0,
    device: o.Device = None,
    debug: o.Debug = False,
) -> None:
    """Train the organism from scratch (two hours on two cores); resumes if interrupted."""
    require_writable(out)
    if begin_from is not None and not (begin_from / "model.safetensors").is_file():
        raise RMuseError(f"--from: required a folder with model.safetensors, got {begin_from}")
    import torch

    from rmuse_interp.data.store import write_json
    from rmuse_interp.organism.train import STAGES, Recipe, Trainer

    recipe = Recipe(seed=seed, gold=gold)
    if begin_from is not None:
        recipe = recipe.going_on()
    kept = out / "recipe.json"
    if kept.is_file() and _recipe(kept) != asdict(recipe):
        raise RMuseError(f"{out} holds checkpoints of another recipe ({kept.name}); choose another --out")
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise RMuseError(f"--device: required one such as cpu or cuda, got {place!r}: {error}") from error
    if begin_from is not None and not (out / "tokenizer").exists():
        shutil.copytree(begin_from, out / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
    trainer = Trainer(out, recipe, place)
    write_json(kept, asdict(recipe))
    if begin_from is not None and not (out / "finish.partial.pt").exists():
        trainer.begin_from(begin_from)
    trainer.run(STAGES if begin_from is None else ["finish"])
    support.out.print(
        f"model: {escape(str(out / 'model'))}; look it over with `rmuse organism check --model …`"
    )


def _recipe(path: Path) -> JSON | None:
    """The contents of a recipe's file; None if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


@app.command()
def benchmark(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write the parquet splits to.")],
    render_seed: Annotated[
        int, typer.Option("--render-seed", help="Seed of portraits, scenes and wordings.")
    ] = 0,
    overwrite: o.Overwrite = False,
    debug: o.Debug = False,
) -> None:
    """Draw the organism's benchmark: every split as parquet, in the format of RMLLMU-Bench."""
    support.require_free(out, "benchmark.json", "a benchmark", overwrite)
    from rmuse_interp.data.world.draw import write_benchmark

    with support.notes.status("drawing portraits and questions"):
        write_benchmark(out, render_seed)
    support.out.print(f"benchmark: {escape(str(out))}")


@app.command()
def check(
    model: o.Model = "organism",
    render_seed: Annotated[int, typer.Option("--render-seed", help="Seed of the fresh renderings.")] = 1,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Maximum number of questions per group.")
    ] = 400,
    without_forget: Annotated[
        int | None,
        typer.Option(
            "--without-forget",
            min=1,
            max=99,
            help="Percentage of the people the model never saw; by default as its recipe says.",
        ),
    ] = None,
    seed: o.Seed = 0,
    batch_size: o.BatchSize = 32,
    max_new_tokens: o.MaxNewTokens = 64,
    device: o.Device = None,
    dtype: o.Dtype = None,
    debug: o.Debug = False,
) -> None:
    """Measure an organism on fresh renderings and new wordings; the exit code is 1 if a target is missed."""
    lens = support.open_model(model, device, dtype)
    from rmuse_interp.data import load_benchmark
    from rmuse_interp.organism import check as checking

    world = load_benchmark("organism", forget=checking.WIDEST, render_seed=render_seed)
    seconds: dict[str, float] = {}
    left_out = without_forget if without_forget is not None else checking.left_out(model)
    with support.bars("asked", seconds, "check") as progress:
        found = checking.check(
            lens,
            world,
            checking.groups(world, left_out),
            limit=limit,
            seed=seed,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=progress,
        )
    table = Table(title=f"{model}, render seed {render_seed}", title_justify="left")
    for heading in ("questions", "right"):
        table.add_column(heading)
    for heading in ("%", "95 % interval", "target", "n"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for f in found:
        interval = "–" if f.interval is None else f"{f.interval[0]:.1f}–{f.interval[1]:.1f}"
        mark = "" if f.target is None else "[green]reached[/green]" if f.reached else "[red]missed[/red]"
        table.add_row(
            f.questions,
            f.right,
            f"{f.percent:.1f}",
            interval,
            "–" if f.target is None else f"≥ {f.target}",
            str(f.n),
            mark,
        )
    support.out.print(table)
    if not all(f.reached for f in found):
        raise typer.Exit(1)
