"""Every method at every forget rate and seed, in cells that are kept and reused."""

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Final

import torch
from rich.markup import escape
from rich.progress import Progress

from rmuse_interp import RMuseError
from rmuse_interp.baselines import BASELINES
from rmuse_interp.data.attacks import ATTACKS
from rmuse_interp.method.rivals import RIVALS
from rmuse_interp.method.rmuse import PRESETS
from rmuse_interp.organism import GOLD_RATE, MODEL
from rmuse_interp.runs.progress import Bars
from rmuse_interp.runs.run import choose
from rmuse_interp.studies import cells, common
from rmuse_interp.studies.cells import METHODS, RELEARNING, Cell, settle, world_of
from rmuse_interp.studies.common import Record
from rmuse_interp.studies.fits import World
from rmuse_interp.studies.standings import kind_of, shown, summary, verdict

SCHEMA: Final = "rmuse-leaderboard/1"
KNOWN: Final = (*ATTACKS, RELEARNING.name)
"""The attacks that `--attacks` accepts by name."""


def run(given: argparse.Namespace) -> Record:
    """Make the record of `leaderboard.json`.

    Raises:
        RMuseError: bad arguments, a missing file, too little to fit on; all before the first long pass.
    """
    names, given.attacks = named(given), attacks_of(given.attacks)
    given.seeds = given.seeds or [given.seed]
    if given.jobs < 1 or given.attack_limit < 1:
        raise RMuseError(
            f"--jobs and --attack-limit of at least 1 were required, got {given.jobs}, {given.attack_limit}"
        )
    wanted = [
        Cell(name, rate, seed)
        for rate in dict.fromkeys(given.forget)
        for seed in dict.fromkeys(given.seeds)
        for name in names
        if name != "gold" or twin(given.model, rate)
    ]
    for rate in dict.fromkeys(given.forget):
        lens, benchmark = world_of(given, rate)
        common.ready(lens, benchmark)
        choose(benchmark, given.limit, given.seeds[0])  # reads the scoring files before any long work
    began = time.monotonic()
    root = given.out / "leaderboard"
    with Bars() as progress:
        rows = sorted(settled(wanted, given, root, progress), key=lambda row: wanted.index(_cell(row)))
    found = summary(rows)
    return {
        "schema": SCHEMA,
        "provenance": common.provenance(
            given,
            lens,
            benchmark,
            began,
            rates=given.forget,
            seeds=given.seeds,
            attack_limit=given.attack_limit,
            max_new_tokens=given.max_new_tokens,
            jobs=given.jobs,
            **spent(rows),
        ),
        "attacks": {name: what_of(name) for name in given.attacks},
        "rows": rows,
        "summary": found,
        "verdicts": [verdict(found, rate) for rate in dict.fromkeys(given.forget)],
    }


def failures(record: Record) -> list[str]:
    """The cells that failed."""
    return [
        f"{row['method']} at {row['forget']} %, seed {row['seed']}"
        for row in record["rows"]
        if row["error"] is not None
    ]


def named(given: argparse.Namespace) -> list[str]:
    """The requested methods, in the order of `METHODS`.

    Raises:
        RMuseError: an unknown name, or `gold` where there is no gold standard.
    """
    asked = METHODS if given.methods is None else tuple(n.strip() for n in given.methods.split(","))
    unknown = [name for name in asked if name not in METHODS]
    if unknown:
        raise RMuseError(f"--methods takes {', '.join(METHODS)}, got {', '.join(map(repr, unknown))}")
    if (
        given.methods is not None
        and "gold" in asked
        and not any(twin(given.model, rate) for rate in given.forget)
    ):
        raise RMuseError(
            f"gold is the twin of {MODEL} at {GOLD_RATE} % alone, got {given.model} at {given.forget} %"
        )
    return [name for name in METHODS if name in asked]


def twin(model: str, rate: int) -> bool:
    """Whether there is a gold standard for a model and rate."""
    return model == MODEL and rate == GOLD_RATE


def attacks_of(text: str) -> list[str]:
    """The attacks that `--attacks` names.

    Raises:
        RMuseError: an unknown name.
    """
    asked = KNOWN if text == "all" else [] if text == "none" else [name.strip() for name in text.split(",")]
    unknown = [name for name in asked if name not in KNOWN]
    if unknown:
        raise RMuseError(
            f"--attacks takes all, none, or {', '.join(KNOWN)}, got {', '.join(map(repr, unknown))}"
        )
    return [name for name in KNOWN if name in asked]


def what_of(attack: str) -> str:
    """An attack in one line."""
    return RELEARNING.what if attack == RELEARNING.name else ATTACKS[attack].what


def _cell(row: Record) -> Cell:
    return Cell(row["method"], row["forget"], row["seed"])


def settled(
    wanted: Sequence[Cell], given: argparse.Namespace, root: Path, progress: Progress
) -> Iterator[Record]:
    """The cells' records as they finish, in `--jobs` processes; what several cells share is worked out first."""
    steering = [c for c in wanted if c.method in RIVALS or c.method.startswith(("rmuse/", "control/"))]
    for rate, seed in dict.fromkeys((c.forget, c.seed) for c in steering):
        own = argparse.Namespace(**vars(given) | {"seed": seed, "fits": root / "fits"})
        _ = World(own, *world_of(given, rate), progress).evidence  # kept for all cells
    task = progress.add_task("cells", total=len(wanted))
    # The longest first, so that processes finish at about the same time.
    kinds = (BASELINES, PRESETS, RIVALS)
    ordered = sorted(wanted, key=lambda c: [c.method.removeprefix("rmuse/") not in names for names in kinds])
    if given.jobs == 1:
        for cell in ordered:
            yield _told(settle(cell, given, root, progress), progress)
            progress.advance(task)
        return
    threads = max(1, (os.cpu_count() or 1) // given.jobs)
    pool = ProcessPoolExecutor(
        given.jobs,
        multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(threads,),
    )
    try:
        futures: dict[Future[Record], Cell] = {
            pool.submit(settle, cell, given, root): cell for cell in ordered
        }
        for future in as_completed(futures):
            try:
                found = future.result()
            except Exception as fault:  # the process itself was lost, say for memory
                found = failed(futures[future], f"{type(fault).__name__}: {fault}")
            yield _told(found, progress)
            progress.advance(task)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def failed(cell: Cell, error: str) -> Record:
    """The record of a cell whose process was lost."""
    return {
        "method": cell.method,
        "forget": cell.forget,
        "seed": cell.seed,
        "kind": kind_of(cell.method),
        "error": error,
        "seconds": {},
        "peak_mb": None,
    }


def _told(row: Record, progress: Progress) -> Record:
    """Print the outcome of a cell above the progress bars."""
    if row["error"] is not None:
        said = f"[red]{escape(row['error'])}[/red]"
    else:
        said = f"RIL test {shown(row['values']['ril_test'])}, worst {shown(row['worst'])}"
    took = sum(row["seconds"].values())
    progress.console.print(f"{row['method']} at {row['forget']} %, seed {row['seed']}: {said}; {took:.0f} s")
    return row


def spent(rows: Sequence[Record]) -> Record:
    """Seconds of all cells by kind of method, and the peak memory of one process."""
    seconds: dict[str, float] = {}
    for row in rows:
        seconds[row["kind"]] = seconds.get(row["kind"], 0.0) + sum(row["seconds"].values())
    peaks = [row["peak_mb"] for row in rows if row["peak_mb"] is not None]
    return {
        "cell_seconds": {kind: round(total, 1) for kind, total in seconds.items()},
        "peak_mb": {"cell": max(peaks, default=None), "this_process": round(cells.peak_mb())},
    }
