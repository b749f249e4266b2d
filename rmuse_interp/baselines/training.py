"""`train`: train a baseline at several learning rates, and keep the rate and epoch that validate best.

The budget is the same for every baseline: `settings` rates of at most `epochs` epochs, each epoch judged by greedy
answers to the rivals' validation part (fitting questions held out, see `fitting.validation.hold_out`). `Test_Set`, `test`
files and celebrities are never read. The validated weights are the ones kept: nothing is retrained afterwards.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Bool, Float
from rich.progress import Progress
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.baselines.batches import Row, batches, encode, refused, rows_of
from rmuse_interp.baselines.journal import Journal
from rmuse_interp.baselines.methods import Baseline, Group, Step, build, require_name
from rmuse_interp.baselines.pruning import neuron_scores, prune
from rmuse_interp.baselines.saliency import mask_of, relative, saliency
from rmuse_interp.baselines.store import RECORD, read_record, versions, write_baseline
from rmuse_interp.baselines.trainables import RANK, Trainable, adapter_config, require_peft
from rmuse_interp.baselines.trials import Judged, Trial, best, next_setting
from rmuse_interp.data import Benchmark, Example, sample
from rmuse_interp.data.content import content
from rmuse_interp.data.store import digest
from rmuse_interp.evaluate.metrics import OPEN_KINDS
from rmuse_interp.fitting.validation import Validation, hold_out
from rmuse_interp.lens.identity import depends
from rmuse_interp.lens.lens import LensModel

SETTINGS: Final = 10
"""Number of learning rates (or shares of neurons) tried."""
EPOCHS: Final = 3
"""Maximum number of epochs at each setting; every epoch is validated."""
LIMIT: Final = 32
"""Rows per group and epoch, drawn anew for every epoch."""
BATCH: Final = 4
"""Rows per group and step."""
CLIP: Final = 1.0
"""Norm to which the gradient of a step is clipped."""


@dataclass(frozen=True)
class Trained:
    """A baseline after training.

    Attributes:
        name: a name in `BASELINES`.
        folder: its folder; `open_baseline(folder, lens)` opens it.
        chosen: the trial that is kept.
        trials: all trials, in order.
        seconds: duration of all trials.
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
    settings: int = SETTINGS,
    epochs: int = EPOCHS,
    progress: Progress | None = None,
) -> Trained:
    """Train a baseline, choose the best trial on validation and save it in a folder; the model is restored afterwards.

    After an interruption the same call resumes after the last complete epoch and reaches the same weights; a finished
    baseline is loaded.

    Args:
        name: a name in `BASELINES`.
        lens: the model to unlearn from; it is trained in place, so do not use it meanwhile.
        benchmark: benchmark with the fitting views to train on.
        folder: folder for the baseline.
        seed: seed of all random draws: rows, order, adapters, dropout.
        limit: rows per group and epoch.
        batch_size: rows per group and step.
        settings: number of learning rates (or shares of neurons) to try.
        epochs: maximum number of epochs at each.
        progress: a running progress bar to add a line to.

    Raises:
        RMuseError: an unknown name, a folder with another baseline, nothing to train on or to hold out.
    """
    baseline, home = require_name(name), Path(folder)
    if min(limit, batch_size, settings, epochs) < 1:
        raise RMuseError(
            "limit, batch_size, settings and epochs ≥ 1 were required, got "
            f"{limit}, {batch_size}, {settings} and {epochs}"
        )
    part = hold_out(lens, benchmark, seed)
    budget = {"seed": seed, "limit": limit, "batch_size": batch_size, "settings": settings, "epochs": epochs}
    how = (name, baseline.setting, baseline.groups, baseline.trains, RANK)
    of = digest(how, budget, depends(lens), content(benchmark), part.ids, part.max_new_tokens)
    if (home / RECORD).is_file():
        return _taken_up(home, name, of)
    course = Course(name, baseline, lens, benchmark, part, seed, limit, batch_size)
    course.require_rows()
    if baseline.trains == "adapters":
        require_peft()
    home.mkdir(parents=True, exist_ok=True)
    journal = Journal(home, of)
    task = None if progress is None else progress.add_task(name, total=settings, completed=0)
    with _mode_kept(lens):
        judged = Judged(lens, benchmark, part)
        for number in range(settings):
            course.try_setting(number, epochs, judged, journal)
            if progress is not None and task is not None:
                progress.advance(task)
    trials = journal.trials
    chosen, seconds = best(trials), sum(t.seconds for t in trials)
    record = {
        "method": name,
        "title": baseline.title,
        "summary": baseline.summary,
        "paper": baseline.paper,
        "digest": of,
        "budget": budget,
        "settings": {
            "trains": baseline.trains,
            "first": baseline.setting,
            "groups": list(baseline.groups),
            **({"lora": asdict(RANK)} if baseline.trains == "adapters" else {}),
        },
        "chosen": asdict(chosen),
        "trials": [asdict(t) for t in trials],
        "seconds": seconds,
        "model": {"id": lens.name, "fingerprint": lens.fingerprint.as_record()},
        "benchmark": {
            "id": benchmark.id,
            "forget": benchmark.forget_rate,
            "render_seed": benchmark.render_seed,
            "people": len(benchmark.forget_people),
        },
        "versions": versions(),
    }
    config = adapter_config(lens) if baseline.trains == "adapters" else None
    write_baseline(home, journal.best_state(), config, record)
    journal.close()
    return Trained(name, home, chosen, tuple(trials), seconds)


@dataclass(frozen=True, eq=False)
class Course:
    """One baseline's training: which rows, which steps, which trials.

    Attributes:
        name: name of the baseline.
        baseline: the baseline.
        lens: the model.
        benchmark: benchmark with the fitting views to train on.
        part: the questions held out of them.
        seed: seed of all random draws.
        limit: rows per group and epoch.
        batch_size: rows per group and step.
    """

    name: str
    baseline: Baseline
    lens: LensModel
    benchmark: Benchmark
    part: Validation
    seed: int
    limit: int
    batch_size: int
    _masks: list[Tensor] = field(default_factory=list)

    def pool(self, group: Group) -> list[Example]:
        """Return the open fitting questions of a group, without those held out.

        Multiple choice and cloze serve for scoring only; MLLMU-Bench, too, trains on open questions and answers alone.
        """
        view = {"retain": "fit_retain", "reasoning": "fit_reasoning"}.get(group, "fit_forget")
        found = getattr(self.benchmark, view)
        return [e for e in found if e.kind in OPEN_KINDS and e.id not in self.part.ids]

    def require_rows(self) -> None:
        """Raise unless every group has rows; general reasoning may be empty, since some benchmarks have none."""
        empty = [g for g in self.baseline.groups if g != "reasoning" and not self.pool(g)]
        if empty:
            raise RMuseError(
                f"{self.benchmark.id}: fitting questions beside the {len(self.part.ids)} held out were required to train "
                f"{self.name}, got none of {', '.join(empty)}; enlarge these splits"
            )

    def rows(self, group: Group, epoch: int) -> list[Row]:
        """Draw the rows of a group for an epoch."""
        pool, seed = self.pool(group), _mixed(self.seed, epoch)
        drawn = sample(pool, self.limit, seed) if pool else []
        if group == "refusal":
            return refused(drawn, self.benchmark.refusals_cot, seed)
        return rows_of(drawn, self.benchmark.delimiters)

    def try_setting(self, number: int, epochs: int, judged: Judged, journal: Journal) -> None:
        """Run the trials of the setting with this number, except those already in the journal."""
        done = journal.trials
        order = list(dict.fromkeys(t.setting for t in done))
        mine = [t for t in done if number < len(order) and t.setting == order[number]]
        before = [t for t in done if t.setting in order[:number]]
        if number < len(order) - 1 or (mine and self._finished(mine[-1], epochs, before)):
            return
        most = 1.0 if self.baseline.objective is None else math.inf
        setting = next_setting(before, self.baseline.setting, most)
        trainable = build(self.baseline, self.lens, self.seed)
        try:
            optimiser = torch.optim.AdamW(trainable.parameters(), lr=setting, weight_decay=0.0)
            if mine:
                journal.resume(trainable, optimiser)
            last = mine[-1] if mine else None
            while last is None or not self._finished(last, epochs, before):
                began, loss = time.monotonic(), None
                epoch = 0 if self.baseline.objective is None else 1 + (0 if last is None else last.epoch)
                if self.baseline.objective is None:
                    self.prune(trainable, setting)
                else:
                    loss = self.epoch(self.baseline.objective, trainable, optimiser, epoch)
                found = judged()
                last = Trial(setting, epoch, loss=loss, seconds=time.monotonic() - began, **found)
                journal.add(last, trainable, optimiser)
        finally:
            trainable.undo()

    def _finished(self, trial: Trial, epochs: int, before: Sequence[Trial]) -> bool:
        """Whether a setting is finished: all epochs done, a ruined model, or no change while the search goes up."""
        climbing = all(other.setting < trial.setting for other in before)
        early = trial.ruined or (climbing and trial.changed == 0)
        return self.baseline.objective is None or trial.epoch >= epochs or early

    @cached_property
    def neurons(self) -> Float[Tensor, "layers neurons"]:
        """Return the importance of the neurons; call it while the model is untrained."""
        return neuron_scores(self.lens, self.rows("forget", 0), self.rows("retain", 0), self.batch_size)

    def prune(self, trainable: Trainable, share: float) -> None:
        """Prune a share of the neurons."""
        prune(trainable.parameters(), self.neurons, share)

    def masks(self, trainable: Trainable) -> list[Bool[Tensor, "..."]]:
        """Return masks of the trained weights, computed on the untrained model; empty if all weights are trained."""
        if self.baseline.masked and not self._masks:
            with trainable.original():
                forget, retain = (
                    relative(saliency(self.lens, trainable, self.rows(group, 0), self.batch_size, self.seed))
                    for group in ("forget", "retain")
                )
            self._masks.extend(map(mask_of, forget, retain))
        return self._masks

    def epoch(
        self,
        objective: Callable[[Step], Tensor],
        trainable: Trainable,
        optimiser: torch.optim.Optimizer,
        epoch: int,
    ) -> float | None:
        """Train for one epoch, reproducibly from any start; return the mean objective, None if it is not finite."""
        seed, masks = _mixed(self.seed, epoch), self.masks(trainable)
        drawn = {g: self.rows(g, epoch) for g in self.baseline.groups}
        groups = {g: batches(rows, self.batch_size, seed) for g, rows in drawn.items() if rows}
        steps = len(groups[self.baseline.groups[0]])
        losses = []
        self.lens.hf.train()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for _, *chosen in zip(range(steps), *map(cycle, groups.values()), strict=False):
                encoded = {g: encode(self.lens, rows) for g, rows in zip(groups, chosen, strict=True)}
                loss = objective(Step(self.lens, trainable, encoded, self.seed))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                for parameter, mask in zip(trainable.parameters(), masks, strict=False):
                    if parameter.grad is not None:
                        parameter.grad *= mask
                torch.nn.utils.clip_grad_norm_(trainable.parameters(), CLIP)
                optimiser.step()
                losses.append(float(loss.detach()))
        self.lens.hf.eval()
        mean = sum(losses) / len(losses)
        return mean if math.isfinite(mean) else None


def _mixed(seed: int, epoch: int) -> int:
    """Derive a separate seed for each epoch."""
    return seed * 1009 + epoch


@contextmanager
def _mode_kept(lens: LensModel) -> Iterator[None]:
    """Return a context with the model in evaluation mode; its previous mode is restored afterwards."""
    mode = lens.hf.training
    try:
        lens.hf.eval()
        yield
    finally:
        lens.hf.train(mode)


def _taken_up(folder: Path, name: str, of: str) -> Trained:
    """Load the finished baseline of a folder.

    Raises:
        RMuseError: another baseline in the folder.
    """
    record = read_record(folder)
    if record.get("digest") != of:
        raise RMuseError(
            f"{folder} holds {record['method']} trained in another way (other data, model, seed, budget or version of "
            f"this package) than the {name} asked for; choose another folder, or remove it "
            "(`rmuse baseline train --overwrite`)"
        )
    trials = tuple(Trial(**row) for row in record["trials"])
    return Trained(name, folder, Trial(**record["chosen"]), trials, float(record["seconds"]))
