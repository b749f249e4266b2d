"""`train`: a baseline trained at several learning rates, and kept at the rate and epoch that validate best.

The budget is the same for every baseline: `len(factors) × epochs` trials, each judged by its greedy answers to the
rivals' validation part (fitting questions held out, see `fitting.rivals.hold_out`) under the rivals' rule
(`steering.choose_strength`). `Test_Set`, `test` files and celebrities are never read. What was validated is what is
kept: nothing is trained again afterwards.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import torch
from rich.progress import Progress

from rmuse_interp.baselines.batches import Row, batches, encode, refused, rows_of
from rmuse_interp.baselines.journal import Journal
from rmuse_interp.baselines.methods import Baseline, Group, Step, build, require_name
from rmuse_interp.baselines.store import RECORD, read_record, versions, write_baseline
from rmuse_interp.baselines.trainables import RANK, Trainable, adapter_config
from rmuse_interp.data import Benchmark, Example, sample
from rmuse_interp.errors import RMuseError
from rmuse_interp.evaluate import measure
from rmuse_interp.evaluate.text import Lexicon
from rmuse_interp.fitting.rivals import Validation, answer_unsteered, hold_out, is_kept
from rmuse_interp.models.lens import LensModel
from rmuse_interp.steering import Trial as Choice
from rmuse_interp.steering import choose_strength

FACTORS: Final = (1.0, 10.0, 30.0, 100.0)
"""Multiples of a paper's learning rate that are tried; the papers' are for models of 7 billion weights."""
EPOCHS: Final = 3
"""Epochs at each rate; every one is validated."""
LIMIT: Final = 96
"""Rows of each group in an epoch, drawn anew for every one."""
BATCH: Final = 8
"""Rows of each group in a step."""
CLIP: Final = 1.0
"""Longest gradient of a step."""


@dataclass(frozen=True)
class Trial:
    """What one setting did on the validation part.

    Attributes:
        setting: learning rate; for pruning, the share of neurons.
        epoch: how many were trained, 0 for pruning.
        leak: share of forget responses that leak (RIL), in [0, 1].
        keep: share of all other answers that are what the model says untrained, in [0, 1].
        malformed: share of forget responses that are neither well formed nor an answer, in [0, 1].
        loss: mean objective of the epoch's steps; None for pruning.
        seconds: of training and validation.
    """

    setting: float
    epoch: int
    leak: float
    keep: float
    malformed: float
    loss: float | None
    seconds: float


@dataclass(frozen=True)
class Trained:
    """A baseline after training.

    Attributes:
        name: in `BASELINES`.
        folder: that holds it; `open_baseline(folder, lens)` opens it.
        chosen: the trial that is kept.
        trials: all of them.
        seconds: of all of them.
    """

    name: str
    folder: Path
    chosen: Trial
    trials: tuple[Trial, ...]
    seconds: float


def train(
    name: str,
    lens: LensModel,
    benchmark: Benchmark,
    folder: str | Path,
    *,
    seed: int = 0,
    limit: int = LIMIT,
    batch_size: int = BATCH,
    factors: Sequence[float] = FACTORS,
    epochs: int = EPOCHS,
    progress: Progress | None = None,
) -> Trained:
    """A baseline trained and chosen on validation, saved in a folder; the model itself is left as it was.

    Interrupted, it goes on in the same folder behind the last whole epoch; a finished one is taken up as it is.

    Args:
        name: in `BASELINES`.
        lens: the model to unlearn from; is trained in place meanwhile, and not to be used.
        benchmark: whose fitting views are trained on.
        folder: where.
        seed: of every drawing: rows, order, adapters, dropout.
        limit: rows of each group in an epoch.
        batch_size: rows of each group in a step.
        factors: multiples of the paper's learning rate to try.
        epochs: at each rate.
        progress: a running progress bar to add a line to.

    Raises:
        RMuseError: an unknown name, a folder with another baseline, nothing to train on or to hold out.
    """
    baseline, home = require_name(name), Path(folder)
    require_budget(limit, batch_size, factors, epochs)
    part = hold_out(lens, benchmark, seed)
    budget = {
        "limit": limit,
        "batch_size": batch_size,
        "factors": list(factors),
        "epochs": epochs,
        "seed": seed,
    }
    digest = _digest(name, baseline, lens, benchmark, part, budget)
    if (home / RECORD).is_file():
        return _taken_up(home, name, digest)
    run = _Run(name, baseline, lens, benchmark, part, seed, limit, batch_size)
    run.require_rows()
    home.mkdir(parents=True, exist_ok=True)
    journal = Journal(home, digest)
    trials = [Trial(**row) for row in journal.trials]
    grid = [(baseline.rate * factor, epoch) for factor in factors for epoch in range(1, epochs + 1)]
    task = None if progress is None else progress.add_task(name, total=len(grid), completed=len(trials))
    with _in_place(lens):
        judge = Judged(lens, benchmark, part)
        trainable: Trainable | None = None
        try:
            for number, (rate, epoch) in enumerate(grid):
                if number < len(trials):
                    continue
                began = time.monotonic()
                if epoch == 1 or trainable is None:
                    if trainable is not None:
                        trainable.undo()
                    trainable = build(baseline, lens, seed)
                    optimiser = torch.optim.AdamW(trainable.parameters(), lr=rate, weight_decay=0.0)
                    if epoch > 1:
                        journal.resume(trainable, optimiser)
                loss = run.epoch(trainable, optimiser, epoch)
                leak, keep, malformed = judge()
                trial = Trial(rate, epoch, leak, keep, malformed, loss, time.monotonic() - began)
                trials.append(trial)
                journal.add(asdict(trial), trainable, optimiser, best=best(trials) is trial)
                if progress is not None and task is not None:
                    progress.advance(task)
        finally:
            if trainable is not None:
                trainable.undo()
    chosen, seconds = best(trials), sum(t.seconds for t in trials)
    record = {
        "method": name, "title": baseline.title, "summary": baseline.summary, "paper": baseline.paper,
        "digest": digest, "budget": budget,
        "settings": {"trains": baseline.trains, "rate": baseline.rate, "groups": list(baseline.groups),
                     **({"lora": asdict(RANK)} if baseline.trains == "adapters" else {})},
        "chosen": asdict(chosen), "trials": [asdict(t) for t in trials], "seconds": seconds,
        "model": {"id": lens.name, "fingerprint": lens.fingerprint.as_record()},
        "benchmark": {"id": benchmark.id, "forget": benchmark.forget_rate, "render_seed": benchmark.render_seed,
                      "people": len(benchmark.forget_people)},
        "versions": versions(),
    }  # fmt: skip
    config = adapter_config(lens, RANK) if baseline.trains == "adapters" else None
    write_baseline(home, journal.best_state(), config, record)
    journal.close()
    return Trained(name, home, chosen, tuple(trials), seconds)


def best(trials: Sequence[Trial]) -> Trial:
    """The trial of greatest `keep − leak − malformed`, the earlier one among equals: the rivals' own rule."""
    choices = [Choice(float(i), t.leak, t.keep, t.malformed) for i, t in enumerate(trials)]
    return trials[int(choose_strength(choices).strength)]


class Judged:
    """The model as it is now against itself before, on the validation part: shares that leak, keep, are malformed.

    Args:
        lens: the model, still untrained.
        benchmark: that judges.
        part: the questions.
    """

    def __init__(self, lens: LensModel, benchmark: Benchmark, part: Validation) -> None:
        self._lens, self._benchmark, self._part = lens, benchmark, part
        self._before = answer_unsteered(lens, benchmark, part)

    def __call__(self) -> tuple[float, float, float]:
        """Leak and keep and malformed, each in [0, 1]."""
        said = answer_unsteered(self._lens, self._benchmark, self._part)
        forget = self._part.forget
        found = measure([said[e.id] for e in forget], self._benchmark, {e.id: e for e in forget})
        leak, malformed = ((found[name].value or 0.0) / 100 for name in ("ril", "malformed_rate"))
        lexicon = Lexicon(self._benchmark.aliases, self._benchmark.entails)
        others = self._part.others
        kept = sum(is_kept(said[e.id], self._before[e.id], lexicon) for e in others) / len(others)
        return leak, kept, malformed


@dataclass(frozen=True, eq=False)
class _Run:
    """One baseline's training data and steps."""

    name: str
    baseline: Baseline
    lens: LensModel
    benchmark: Benchmark
    part: Validation
    seed: int
    limit: int
    batch_size: int

    def pool(self, group: Group) -> list[Example]:
        """All fitting questions of a group, without those held out."""
        view = {"retain": "fit_retain", "reasoning": "fit_reasoning"}.get(group, "fit_forget")
        return [e for e in getattr(self.benchmark, view) if e.id not in self.part.ids]

    def require_rows(self) -> None:
        """Nothing, or the error that a group has no rows (not every benchmark has general reasoning: it may)."""
        empty = [g for g in self.baseline.groups if g != "reasoning" and not self.pool(g)]
        if empty:
            raise RMuseError(
                f"{self.benchmark.id}: fitting questions beside the {len(self.part.ids)} held out were required to train "
                f"{self.name}, got none of {', '.join(empty)}; enlarge these splits"
            )

    def rows(self, group: Group, epoch: int) -> list[Row]:
        """The rows of a group in an epoch, drawn anew for every one."""
        pool = self.pool(group)
        drawn = sample(pool, self.limit, _mixed(self.seed, epoch)) if pool else []
        if group == "refusal":
            return refused(drawn, self.benchmark.refusals_cot, _mixed(self.seed, epoch))
        return rows_of(drawn, self.benchmark.delimiters)

    def epoch(self, trainable: Trainable, optimiser: torch.optim.Optimizer, epoch: int) -> float:
        """Trains for an epoch, the same whatever ran before it; gives the mean objective."""
        seed = _mixed(self.seed, epoch)
        groups = {
            g: batches(rows, self.batch_size, seed)
            for g in self.baseline.groups
            if (rows := self.rows(g, epoch))
        }
        steps = len(groups[self.baseline.groups[0]])
        losses = []
        self.lens.hf.train()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for _, *drawn in zip(range(steps), *map(cycle, groups.values()), strict=False):
                encoded = {g: encode(self.lens, rows) for g, rows in zip(groups, drawn, strict=True)}
                loss = self.baseline.objective(Step(self.lens, trainable, encoded, self.seed))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trainable.parameters(), CLIP)
                optimiser.step()
                losses.append(float(loss.detach()))
        self.lens.hf.eval()
        return sum(losses) / len(losses)


def require_budget(limit: int, batch_size: int, factors: Sequence[float], epochs: int) -> None:
    """Nothing, or the error that a budget is none.

    Raises:
        RMuseError: says what is wrong.
    """
    if limit < 1 or batch_size < 1 or epochs < 1 or not factors or min(factors) <= 0:
        raise RMuseError(
            "limit, batch_size and epochs ≥ 1 and positive factors were required, got "
            f"{limit}, {batch_size}, {epochs} and {list(factors)}"
        )


def _mixed(seed: int, epoch: int) -> int:
    """A seed of its own for each epoch of each seed."""
    return seed * 1009 + epoch


@contextmanager
def _in_place(lens: LensModel) -> Iterator[None]:
    """The model put back into the mode it was in."""
    mode = lens.hf.training
    try:
        yield
    finally:
        lens.hf.train(mode)


def _taken_up(folder: Path, name: str, digest: str) -> Trained:
    """The finished baseline of a folder.

    Raises:
        RMuseError: it is another one.
    """
    record = read_record(folder)
    if record.get("digest") != digest:
        raise RMuseError(
            f"{folder} holds {record['method']} trained in another way (other data, model, seed or budget) than the "
            f"{name} asked for; choose another folder, or remove it (`rmuse baseline train --overwrite`)"
        )
    trials = tuple(Trial(**row) for row in record["trials"])
    return Trained(name, folder, Trial(**record["chosen"]), trials, float(record["seconds"]))


def _digest(
    name: str,
    baseline: Baseline,
    lens: LensModel,
    benchmark: Benchmark,
    part: Validation,
    budget: Mapping[str, Any],
) -> str:
    """Of all that a training depends on."""
    said = (
        name, baseline.rate, baseline.groups, baseline.trains, asdict(RANK), dict(budget), lens.name,
        str(lens.fingerprint), str(next(lens.hf.parameters()).dtype), benchmark.id, benchmark.forget_rate,
        benchmark.render_seed, sorted(benchmark.forget_people), sorted(part.ids), part.max_new_tokens,
    )  # fmt: skip
    return hashlib.sha256(repr(said).encode()).hexdigest()
