"""`rmuse demo`: the whole method on the shipped model, before and after, in two minutes."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from rmuse_interp import RMuseError
from rmuse_interp.cli import options as o
from rmuse_interp.cli import support, tables
from rmuse_interp.cli.bundles import FIT_LIMIT, ready
from rmuse_interp.cli.evaluate import answered, save_run
from rmuse_interp.evaluate.results import SCORES, claim
from rmuse_interp.organism import GOLD, GOLD_RATE, MODEL

if TYPE_CHECKING:
    from rmuse_interp.data import Benchmark
    from rmuse_interp.lens.lens import LensModel
    from rmuse_interp.method.rmuse import RMuse

DATA = "organism"
RATES = (5, 10, 15)


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write everything to.")] = Path(
        "results/demo"
    ),
    forget: Annotated[
        int, typer.Option("--forget", help="Percentage of the people to forget: 5, 10 or 15.")
    ] = 5,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Maximum number of questions per split.")] = 45,
    seed: o.Seed = 0,
    batch_size: o.BatchSize = 32,
    max_new_tokens: o.MaxNewTokens = 48,
    device: o.Device = None,
    dtype: o.Dtype = None,
    record: o.Record = True,
    readable: o.Readable = True,
    overwrite: o.Overwrite = False,
    debug: o.Debug = False,
) -> None:
    """Fit both presets to the small model that comes along, and show what it says before and after.

    Beside them stands the gold standard, a model that never knew the people to forget.
    """
    if forget not in RATES:
        raise RMuseError(f"--forget: required one of {', '.join(map(str, RATES))}, got {forget}")
    support.require_free(out, SCORES, "a finished run", overwrite)
    seconds: dict[str, float] = {}
    began = time.monotonic()
    benchmark = support.open_benchmark(DATA, forget)
    lens = support.open_model(MODEL, device, dtype)
    gold = support.open_model(GOLD, device, dtype) if forget == GOLD_RATE else None
    from rmuse_interp.evaluate import before_after
    from rmuse_interp.runs import run as running

    questions = running.choose(benchmark, limit, seed)
    ready(lens, benchmark, None)
    seconds["load"] = time.monotonic() - began
    claim(out, overwrite)
    fitted = both_presets(lens, benchmark, out / "bundles", seed, batch_size, seconds)
    methods = [running.Method("vanilla", lens)]
    methods += [running.Method("gold", gold)] if gold is not None else []
    methods += [
        running.Method(f"rmuse/{preset}", lens, rmuse.plan, rmuse.subspaces)
        for preset, rmuse in fitted.items()
    ]
    scores, answers = answered(
        methods,
        questions,
        benchmark,
        out,
        seconds,
        seed=seed,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        traces=record,
        readable=readable,
    )
    scores["delimiters"] = list(benchmark.delimiters)
    scores["bundles"] = {f"rmuse/{preset}": f"bundles/{preset}" for preset in fitted}
    scores["provenance"] = support.provenance(MODEL, DATA, limit=limit, seed=seed)
    scores["seconds"]["total"] = round(time.monotonic() - began, 6)
    save_run(out, scores, answers, overwrite)
    figures = before_after.save(scores, out)
    running.finish(out)
    tables.before_after(scores)
    tables.side_by_side(answers.transcripts, "vanilla", "rmuse/calibrated")
    names = [
        "scores.json",
        "transcripts.jsonl",
        *(["traces.safetensors"] if answers.traces else []),
        *(path.name for path in figures),
        "bundles/",
    ]
    support.out.print(f"{escape(str(out))}: {', '.join(names)}; {scores['seconds']['total']:.0f} s")


def both_presets(
    lens: "LensModel",
    benchmark: "Benchmark",
    folder: Path,
    seed: int,
    batch_size: int,
    seconds: dict[str, float],
) -> dict[str, "RMuse"]:
    """Both presets, fitted on states collected once; bundles of an interrupted demo are reused."""
    from rmuse_interp.data.content import content
    from rmuse_interp.data.store import digest
    from rmuse_interp.fitting import assemble, enough, gather
    from rmuse_interp.lens.identity import depends
    from rmuse_interp.method.rmuse import PRESETS, RMuse

    limit = enough(benchmark, FIT_LIMIT)
    origin = support.provenance(MODEL, DATA, limit=limit, layers=None, batch_size=batch_size)
    origin["of"] = digest(depends(lens), content(benchmark))
    wanted = {"seed": seed, "provenance": origin}
    try:
        found: dict[str, RMuse] = {preset: RMuse.load(folder / preset, lens) for preset in PRESETS}
    except RMuseError:
        found = {}  # missing, damaged, or of other weights: fitted anew
    if found and all(one.report | wanted == one.report for one in found.values()):
        support.notes.print(f"took up the bundles in {escape(str(folder))}")
        return found
    with support.bars("collected states", seconds, "collect") as progress:
        evidence = gather(lens, benchmark, limit=limit, batch_size=batch_size, seed=seed, progress=progress)
    fitted: dict[str, RMuse] = {}
    for preset in PRESETS:
        with support.bars(f"fitted {preset}", seconds, f"fit/{preset}") as progress:
            fitted[preset] = assemble(lens, benchmark, evidence, preset, seed=seed, progress=progress)
        fitted[preset].report["provenance"] = origin
        fitted[preset].save(folder / preset)
    return fitted
