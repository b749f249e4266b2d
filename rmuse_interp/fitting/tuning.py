"""`Tuning`: rivals tuned one after another in a run folder, which keeps their trials and plans."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.progress import Progress

from rmuse_interp import RMuseError, __version__
from rmuse_interp.data import Benchmark
from rmuse_interp.data.content import content
from rmuse_interp.data.store import Store, digest, write_json
from rmuse_interp.edits.plan import Modality, Plan
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.fitting.rivals import (
    HELD_OUT,
    Tuned,
    answer_unsteered,
    choices,
    hold_out,
    require_names,
    tune,
    without,
)
from rmuse_interp.lens.identity import depends
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.method.rivals import RIVALS, Trial, choose_strength
from rmuse_interp.method.rmuse import Evidence

SCHEMA: Final = "rmuse-tuning/1"
TRIALS: Final = "rivals.json"
"""File of a run folder that keeps the table of trials; the tuned plans lie in its folder `rivals`."""


@dataclass(eq=False)
class Tuning:
    """Rivals tuned one after another in a run folder; what it holds of the same tuning is not done again.

    Args:
        model: from `load_model`.
        benchmark: from `load_benchmark`.
        folder: the run's; gets `rivals.json` and `rivals/NAME`. None keeps nothing.
        limit: of `gather`, most examples of each group and kind of query.
        seed: of the validation part and of `gather`.
        batch_size: questions per batch.
    """

    model: LensModel
    benchmark: Benchmark
    folder: Path | None
    limit: int
    seed: int = 0
    batch_size: int = 2 * HELD_OUT

    def __post_init__(self) -> None:
        self.validation = hold_out(self.model, self.benchmark, self.seed)
        self._unsteered: dict[str, Transcript] = {}
        self._rest: dict[Modality, Evidence] = {}
        part = self.validation
        self._of = digest(
            depends(self.model),
            content(self.benchmark),
            self.budget,
            self.batch_size,
            part.forget,
            part.others,
        )
        self._kept = Store(None if self.folder is None else self.folder / "rivals" / "trials.jsonl", self._of)

    @property
    def budget(self) -> dict[str, Any]:
        """What tuning one rival costs, the same for each; plain JSON."""
        blocks, part = choices(self.model.n_layers), self.validation
        (strengths,) = {len(rival.strengths) for rival in RIVALS.values()}
        return {
            "blocks": [list(group) for group in blocks],
            "strengths": strengths,
            "forget": len(part.forget),
            "others": len(part.others),
            "max_new_tokens": part.max_new_tokens,
            "responses": len(blocks) * strengths * len(part.ids),
            "fit_limit": self.limit,
            "seed": self.seed,
        }

    def finished(self, name: str) -> bool:
        """Whether the folder holds this rival tuned, so that `take` needs no evidence."""
        return self._plan(name) is not None

    def take(
        self, name: str, evidence: Mapping[Modality, Evidence] | None = None, progress: Progress | None = None
    ) -> Tuned:
        """The rival, tuned now unless the folder holds it.

        Args:
            name: in `RIVALS`.
            evidence: from `gather`; may be left out where `finished`.
            progress: a running progress bar to add a line to.
        """
        require_names([name])
        plan, done = self._plan(name), self._trials(name)
        if plan is not None:
            found = Tuned(name, plan, done, _best(done), self.budget["responses"])
        elif evidence is None:
            raise RMuseError(f"{name} is not tuned yet: pass the evidence of gather(model, benchmark)")
        else:
            if not self._unsteered:
                self._unsteered = answer_unsteered(
                    self.model, self.benchmark, self.validation, self.batch_size
                )
            self._rest = self._rest or {m: without(e, self.validation.ids) for m, e in evidence.items()}
            found = tune(
                self.model,
                self.benchmark,
                self._rest,
                name,
                validation=self.validation,
                unsteered=self._unsteered,
                batch_size=self.batch_size,
                done=done,
                tell=lambda trials: self._keep(name, trials),
                progress=progress,
            )
            self._keep(name, found.trials)
            if self.folder is not None:
                found.plan.save(home(self.folder, name), self.model, rival=name, digest=self._digest(name))
        return found

    def _plan(self, name: str) -> Plan | None:
        """The plan the folder holds, if it is of this tuning."""
        if self.folder is None or not self._trials(name):
            return None
        try:
            record = json.loads((home(self.folder, name) / "plan.json").read_text(encoding="utf-8"))
            if record["provenance"]["digest"] == self._digest(name):
                return Plan.load(home(self.folder, name), self.model)
        except (OSError, ValueError, KeyError, RMuseError):
            pass  # none there, damaged, or of other weights: tuned anew
        return None

    def _trials(self, name: str) -> dict[Modality, list[Trial]]:
        """The trials that the folder holds of this rival."""
        trials = self._kept.get(self._digest(name)) or {}
        return {
            m: [Trial(**{**row, "layers": tuple(row["layers"])}) for row in trials[m]]
            for m in self.validation.modalities
            if m in trials
        }

    def _keep(self, name: str, trials: Mapping[Modality, Sequence[Trial]]) -> None:
        self._kept.put(
            self._digest(name), {m: [asdict(trial) for trial in rows] for m, rows in trials.items()}
        )
        if self.folder is None:
            return
        found = {n: done for n in RIVALS if (done := self._trials(n))}
        record = {
            "schema": SCHEMA,
            "rmuse-interp": __version__,
            "model": {"id": self.model.name, "fingerprint": str(self.model.fingerprint)},
            "benchmark": {
                "id": self.benchmark.id,
                "forget": self.benchmark.forget_rate,
                "render_seed": self.benchmark.render_seed,
            },
            "budget": self.budget,
            "rivals": {
                n: {
                    "paper": RIVALS[n].paper,
                    "summary": RIVALS[n].summary,
                    "chosen": {m: asdict(trial) for m, trial in _best(done).items()},
                    "trials": {m: [asdict(trial) for trial in rows] for m, rows in done.items()},
                }
                for n, done in found.items()
            },
        }
        write_json(self.folder / TRIALS, record)

    def _digest(self, name: str) -> str:
        """A digest of all that the tuning of a rival depends on."""
        return digest(self._of, name, RIVALS[name].strengths)


def home(run: Path, name: str) -> Path:
    """Where a run folder keeps the plan of a tuned rival."""
    return run / "rivals" / name


def _best(trials: Mapping[Modality, Sequence[Trial]]) -> dict[Modality, Trial]:
    return {modality: choose_strength(rows) for modality, rows in trials.items() if rows}
