"""One cell of the leaderboard: a method at a forget rate and a seed, from fitting to attacks.

A finished cell is kept with its transcripts in its own folder, `FORGET-SEED/METHOD`, and reused while everything it
depends on is unchanged. The folder also keeps the partial work of an unfinished cell. A failure is a result: the cell's
`error`.
"""

import argparse
import random
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from rich.progress import Progress

from rmuse_interp.baselines import BASELINES, open_baseline, relearned, train
from rmuse_interp.data import SPLITS, Benchmark, Example, load_benchmark, sample
from rmuse_interp.data.attacks import ATTACKS, Attack
from rmuse_interp.data.attacks.conversation import plain as as_it_is
from rmuse_interp.data.content import content
from rmuse_interp.data.store import Store, digest, write_text
from rmuse_interp.evaluate.metrics import OPEN_KINDS
from rmuse_interp.evaluate.recovery import attack_scores
from rmuse_interp.evaluate.results import AttackTranscript, Transcript
from rmuse_interp.fitting.rivals import Tuning
from rmuse_interp.lens.identity import depends
from rmuse_interp.lens.lens import LensModel, load_model
from rmuse_interp.method.rivals import RIVALS
from rmuse_interp.method.rmuse import PRESETS
from rmuse_interp.organism import GOLD
from rmuse_interp.runs.attacked import ATTACKED_SPLITS, attacked
from rmuse_interp.runs.controls import CONTROLS, Control
from rmuse_interp.runs.readable import read
from rmuse_interp.runs.run import Method, choose, finish, run
from rmuse_interp.studies.common import Record
from rmuse_interp.studies.fits import World
from rmuse_interp.studies.standings import FORGET, KEPT, VALUES, kind_of, values_of

METHODS: Final = (
    "vanilla",
    "gold",
    "rmuse/calibrated",
    "rmuse/paper",
    *(f"control/{name}" for name in CONTROLS),
    *RIVALS,
    *BASELINES,
)
REPORTED: Final[dict[str, tuple[str, tuple[str, ...]]]] = VALUES | {
    "rcr": ("rcr", KEPT),
    **{f"rcr_{split}": ("rcr", (split,)) for split in KEPT},
}
RELEARNT: Final = 16
"""Number of questions that relearning trains on."""
RELEARNING: Final = Attack(
    "relearning",
    f"the weights trained on {RELEARNT} questions about half of the people to forget, then asked about the other half",
    as_it_is,
)
"""Attacks on trained baselines alone: a method that steers at inference has no changed weights to train back."""


@dataclass(frozen=True)
class Cell:
    """A method at a forget rate and a seed; the seed is that of questions, fit or training, and intervals."""

    method: str
    forget: int
    seed: int

    def folder(self, root: Path) -> Path:
        """The folder where the cell is kept."""
        return root / f"{self.forget}-{self.seed}" / self.method.replace("/", "-")


@lru_cache(maxsize=2)
def world(
    model: str, data: str, forget: int, render_seed: int | None, device: str | None, dtype: str | None
) -> tuple[LensModel, Benchmark]:
    """The model and the benchmark of a forget rate, opened once per process."""
    benchmark = load_benchmark(data, forget=forget, render_seed=render_seed)
    return load_model(model, device=device, dtype=dtype), benchmark


def world_of(given: argparse.Namespace, forget: int) -> tuple[LensModel, Benchmark]:
    """The `world` that the command line names, at a forget rate."""
    return world(given.model, given.data, forget, given.render_seed, given.device, given.dtype)


def settle(cell: Cell, given: argparse.Namespace, root: Path, progress: Progress | None = None) -> Record:
    """The record of a cell, from its folder or worked out now and kept there. Errors in the cell's work are not raised.

    Args:
        cell: the cell.
        given: the leaderboard's command line.
        root: the leaderboard's folder.
        progress: a running progress bar to add lines to.
    """
    lens, benchmark = world_of(given, cell.forget)
    folder = cell.folder(root)
    kept = kept_of(cell, given, root)
    found: Record | None = kept.get("record")
    if found is not None:
        return found
    clock = Clock(kept)
    own = argparse.Namespace(**vars(given) | {"seed": cell.seed, "fits": root / "fits"})
    world = World(own, lens, benchmark, progress or Progress(disable=True))
    try:
        record = _worked_out(cell, world, folder, clock)
        error = None
    except Exception as fault:  # of any kind: the record keeps it, and the other cells go on
        if given.debug:
            raise
        record, error = {}, f"{type(fault).__name__}: {' '.join(str(fault).split())}"
    record = {
        **asdict(cell),
        "kind": kind_of(cell.method),
        "error": error,
        **record,
        "seconds": {stage: round(spent, 1) for stage, spent in clock.seconds.items()},
        "peak_mb": round(peak_mb()),
    }
    if error is None:
        kept.put("record", record)
        finish(folder)
    return record


def kept_of(cell: Cell, given: argparse.Namespace, root: Path) -> Store:
    """The store of a cell under these settings: its record, once finished, and its seconds by stage."""
    lens, benchmark = world_of(given, cell.forget)
    names = ("limit", "attack_limit", "attacks", "fit_limit", "batch_size", "max_new_tokens")
    settings = {name: getattr(given, name) for name in names}
    of = (cell, settings, depends(lens), content(benchmark, SPLITS))
    return Store(cell.folder(root) / "cell.jsonl", of)


class Clock:
    """Seconds by stage, including those of interrupted attempts with the same settings."""

    def __init__(self, kept: Store) -> None:
        self._kept = kept
        self.seconds: dict[str, float] = kept.get("seconds") or {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside this context to a stage."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began
            self._kept.put("seconds", self.seconds)


def peak_mb() -> float:
    """Peak memory of this process, MB."""
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _worked_out(cell: Cell, world: World, folder: Path, clock: Clock) -> Record:
    given, benchmark, progress = world.given, world.benchmark, world.progress
    questions = choose(benchmark, given.limit, cell.seed)
    with clock.stage("prepare"):
        method, chosen = prepared(cell, world, folder)
    with clock.stage("answer"):
        pooled = {"all": [e for asked in questions.values() for e in asked]}
        plain = run(
            [method],
            pooled,
            delimiters=benchmark.delimiters,
            max_new_tokens=given.max_new_tokens,
            batch_size=given.batch_size,
            folder=folder,
            progress=progress,
        ).transcripts
    with clock.stage("read"):
        plain, _ = read(
            plain,
            questions,
            benchmark,
            world.lens,
            max_new_tokens=given.max_new_tokens,
            batch_size=given.batch_size,
            seed=cell.seed,
            progress=progress,
            fluency=False,
        )
    few = to_attack(questions, given.attack_limit, cell.seed)
    under: list[AttackTranscript] = []
    settings: Record = {
        "max_new_tokens": given.max_new_tokens,
        "batch_size": given.batch_size,
        "seed": cell.seed,
        "folder": folder,
        "progress": progress,
    }
    with clock.stage("attack"):
        named = [name for name in given.attacks if name in ATTACKS]
        if named and few:
            under += attacked([method], few, benchmark, named, **settings)
        if RELEARNING.name in given.attacks and cell.method in BASELINES:
            lessons, rest = halves(benchmark, few, cell.seed)
            again = replace(
                method,
                model=relearned(method.model, lessons, seed=cell.seed, delimiters=benchmark.delimiters),
            )
            under += attacked([again], rest, benchmark, [RELEARNING], **settings)
    with clock.stage("score"):
        references = {e.id: e for asked in questions.values() for e in asked}
        values = values_of(plain, references, benchmark, REPORTED, cell.seed)
        found = attack_scores(plain, under, benchmark, seed=cell.seed)
    save(folder, plain, under)
    return {
        "chosen": chosen,
        "values": values,
        "attacks": found["methods"].get(cell.method, {}),
        "worst": worst_of(values, found["worst"].get(cell.method)),
    }


def worst_of(values: Mapping[str, Record], found: Record | None) -> Record:
    """The largest RIL on people to forget, `{value, low, high, n, attack, split}`; without attack if none was run."""
    if found is not None:
        return {"value": found["ril"], **{key: found[key] for key in ("low", "high", "n", "attack", "split")}}
    plain = {split: values[f"ril_{split}"] for split in FORGET}
    split = max(plain, key=lambda one: -1.0 if plain[one]["value"] is None else plain[one]["value"])
    return {**plain[split], "attack": "none", "split": split}


def save(folder: Path, plain: Sequence[Transcript], under: Sequence[AttackTranscript]) -> None:
    """Write a cell's transcripts, for people to read."""
    write_text(folder / "transcripts.jsonl", [t.to_json() + "\n" for t in plain])
    write_text(folder / "attacked.jsonl", [t.to_json() + "\n" for t in under])


def prepared(cell: Cell, world: World, folder: Path) -> tuple[Method, Record]:
    """The method, fitted, tuned or trained (work kept in the folder is reused), and the settings that were chosen."""
    given, lens, benchmark, progress = world.given, world.lens, world.benchmark, world.progress
    name = cell.method
    if name == "vanilla":
        return Method(name, lens), {}
    if name == "gold":
        return Method(name, load_model(GOLD, device=given.device, dtype=given.dtype)), {}
    preset = next((p for p in PRESETS if name == f"rmuse/{p}"), None)
    if preset is not None:
        bundle = world.preset(preset)
        blocks = {edit.modality or "any": list(edit.layers) for edit in bundle.plan}
        return Method(name, lens, bundle.plan, bundle.subspaces), {"layers": blocks}
    if name.startswith("control/"):
        bundle = world.preset("calibrated")
        control = Control.of(name.removeprefix("control/"), benchmark)
        return Method(name, lens, bundle.plan, control=control), {"gate of": "rmuse/calibrated"}
    if name in RIVALS:
        tuning = Tuning(
            lens, benchmark, folder, limit=given.fit_limit, seed=given.seed, batch_size=given.batch_size
        )
        needed = None if tuning.finished(name) else world.evidence
        tuned = tuning.take(name, needed, progress)
        chosen = {m: {"layers": list(t.layers), "strength": t.strength} for m, t in tuned.chosen.items()}
        return Method(name, lens, tuned.plan), {
            "layers": chosen,
            "trials": sum(map(len, tuned.trials.values())),
        }
    # One folder per world: a folder that holds another training is refused.
    home = folder / f"baseline-{digest(depends(lens), content(benchmark))[:8]}"
    trained = train(name, lens, benchmark, home, seed=given.seed, progress=progress)
    return Method(name, open_baseline(trained.folder, lens)), {
        **asdict(trained.chosen),
        "trials": len(trained.trials),
        "seconds": round(trained.seconds, 1),
    }


def to_attack(questions: Mapping[str, Sequence[Example]], limit: int, seed: int) -> dict[str, list[Example]]:
    """The questions to ask again under attack: open ones, spread over people."""
    return {
        split: sample([e for e in questions[split] if e.kind in OPEN_KINDS], limit, seed)
        for split in ATTACKED_SPLITS
        if questions.get(split)
    }


def halves(
    benchmark: Benchmark, questions: Mapping[str, Sequence[Example]], seed: int
) -> tuple[list[Example], dict[str, list[Example]]]:
    """Questions on half of the people to forget, for relearning, and the asked questions about everybody else."""
    people = sorted(benchmark.forget_people)
    random.Random(seed).shuffle(people)
    taught = frozenset(people[: len(people) // 2])
    rows = [e for e in benchmark.fit_forget if e.person in taught and e.kind in OPEN_KINDS]
    return sample(rows, RELEARNT, seed), {
        split: [e for e in asked if e.person not in taught] for split, asked in questions.items()
    }
