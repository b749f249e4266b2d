"""Tune rivals: choose blocks and strength by the same procedure and budget for each, on held-out fitting questions.

Every rival of `method.rivals.RIVALS` is fitted on the evidence without the validation questions, tried with every
choice of blocks (`choices`) and each of its strengths, and kept at the best setting (`choose_strength`). The validated
plan is the one that runs: nothing is refitted afterwards. `Test_Set`, `test` files and celebrities are never read.
"""

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from rich.progress import Progress

from rmuse_interp import RMuseError, __version__
from rmuse_interp.data import Benchmark
from rmuse_interp.data.content import content
from rmuse_interp.data.store import JSON, Store, digest, newest, write_json
from rmuse_interp.edits.plan import Modality, Plan
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.fitting.validation import HELD_OUT, Shares, hold_out
from rmuse_interp.lens.identity import depends
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.method.rivals import RIVALS, Trial, choose_strength
from rmuse_interp.method.rmuse import Evidence, middle_third
from rmuse_interp.parts.pooled import Pooled

T = TypeVar("T")
SCHEMA: Final = "rmuse-tuning/1"
TRIALS: Final = "rivals.json"
"""Name of the file in a run folder with the table of trials; the tuned plans are in its folder `rivals`."""

Setting = tuple[tuple[int, ...], float]
"""0-based blocks, and a strength."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """A rival after tuning.

    Attributes:
        plan: the edits for all kinds of query, at the blocks and strengths chosen.
        trials: all trials, by kind of query.
        chosen: the best trial, by kind of query.
    """

    plan: Plan
    trials: Mapping[Modality, Sequence[Trial]]
    chosen: Mapping[Modality, Trial]


@dataclass(eq=False)
class Tuning:
    """Tunes rivals one after another in a run folder; trials of the same tuning found there are not repeated.

    Edits for one kind of query do not affect the others, so the responses of one pass serve all kinds.

    Args:
        model: from `load_model`.
        benchmark: from `load_benchmark`.
        folder: the run folder, for `rivals.json` and `rivals/NAME`; None keeps nothing.
        limit: maximum number of examples per group and kind of query, as in `gather`.
        seed: seed of the validation part and of `gather`.
        batch_size: questions per batch.
    """

    model: LensModel
    benchmark: Benchmark
    folder: Path | None
    limit: int
    seed: int = 0
    batch_size: int = 2 * HELD_OUT

    def __post_init__(self) -> None:
        self.validation = part = hold_out(self.model, self.benchmark, self.seed)
        self._digest = digest(
            depends(self.model),
            content(self.benchmark),
            self.budget,
            self.batch_size,
            part.forget,
            part.others,
        )
        path = None if self.folder is None else self.folder / "rivals" / "trials.jsonl"
        self._store = Store(path, self._digest)
        self._unsteered: dict[str, Transcript] = {}
        self._rest: dict[Modality, Evidence] = {}

    @property
    def budget(self) -> JSON:
        """Return the cost of tuning one rival, equal for all; plain JSON."""
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
        """Whether the folder already holds this tuned rival, so that `take` needs no evidence."""
        return self._trials(name) is not None and self._plan(name) is not None

    def take(
        self, name: str, evidence: Mapping[Modality, Evidence] | None = None, progress: Progress | None = None
    ) -> Tuned:
        """Return the rival at the blocks and strength that do best on the validation part, for each kind of query.

        Args:
            name: a name in `RIVALS`.
            evidence: from `gather`; validation questions in it are ignored (see `without`). Not needed if the rival is
                `finished`.
            progress: a running progress bar to add a line to.

        Raises:
            RMuseError: an unknown name, evidence that is missing or that the rival cannot be built from.
        """
        require_names([name])
        if evidence is None and not self.finished(name):
            raise RMuseError(f"{name} is not tuned yet: pass the evidence of gather(model, benchmark)")
        if evidence is not None and not self._rest:
            kinds = [m for m in self.validation.modalities if m in evidence]
            self._rest = {m: without(evidence[m], self.validation.ids) for m in kinds}
        grid = self._grid(name)
        task = None if progress is None else progress.add_task(name, total=len(grid))
        for setting in grid:
            self._store.once((name, setting), functools.partial(self._tried, name, setting))
            if progress is not None and task is not None:
                progress.advance(task)
        trials = self._trials(name) or {}
        chosen = {m: choose_strength(rows) for m, rows in trials.items()}
        plan = self._plan(name)
        if plan is None:
            plan = self._built(name, {m: (t.layers, t.strength) for m, t in chosen.items()})
            if self.folder is not None:
                plan.save(home(self.folder, name), self.model, rival=name, digest=self._digest_of(name))
        self._write()
        return Tuned(plan, trials, chosen)

    @property
    def _benchmark(self) -> JSON:
        one = self.benchmark
        return {"id": one.id, "forget": one.forget_rate, "render_seed": one.render_seed}

    def _grid(self, name: str) -> list[Setting]:
        return [(blocks, s) for blocks in choices(self.model.n_layers) for s in RIVALS[name].strengths]

    def _tried(self, name: str, setting: Setting) -> dict[Modality, Shares]:
        """Measure the effect of one setting on each kind of query."""
        part, asking = self.validation, (self.model, self.benchmark)
        self._unsteered = self._unsteered or part.answers(*asking, batch_size=self.batch_size)
        said = part.answers(*asking, self._built(name, dict.fromkeys(self._rest, setting)), self.batch_size)
        return {m: part.shares(self.benchmark, said, self._unsteered, m) for m in self._rest}

    def _built(self, name: str, settings: Mapping[Modality, Setting]) -> Plan:
        build = RIVALS[name].build
        edits = [build(self._rest[m], m, blocks, strength) for m, (blocks, strength) in settings.items()]
        return Plan(edits).bound_to(self.model)

    def _trials(self, name: str) -> dict[Modality, list[Trial]] | None:
        """Return all trials of this rival by kind of query; None while some are missing."""
        found: dict[Modality, list[Trial]] = {}
        for blocks, strength in self._grid(name):
            shares = self._store.get((name, (blocks, strength)))
            if shares is None:
                return None
            for modality in (m for m in self.validation.modalities if m in shares):
                leak, keep, malformed = shares[modality]
                trial = Trial(strength, leak, keep, malformed, blocks)
                found.setdefault(modality, []).append(trial)
        return found

    def _plan(self, name: str) -> Plan | None:
        """Return the plan in the folder if it belongs to this tuning."""
        if self.folder is None:
            return None
        place = home(self.folder, name)
        try:
            record = json.loads(newest(place, "plan.json").read_text(encoding="utf-8"))
            if record["provenance"]["digest"] == self._digest_of(name):
                return Plan.load(place, self.model)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, RMuseError):
            pass  # missing, damaged or for other weights: rebuild
        return None

    def _digest_of(self, name: str) -> str:
        return digest(self._digest, name, RIVALS[name].strengths)

    def _write(self) -> None:
        """Write the table of trials of all rivals in the folder."""
        if self.folder is None:
            return
        tried = {name: trials for name in RIVALS if (trials := self._trials(name)) is not None}
        record = {
            "schema": SCHEMA,
            "rmuse-interp": __version__,
            "model": {"id": self.model.name, "fingerprint": str(self.model.fingerprint)},
            "benchmark": self._benchmark,
            "budget": self.budget,
            "rivals": {
                name: {
                    "paper": RIVALS[name].paper,
                    "summary": RIVALS[name].summary,
                    "chosen": {m: asdict(choose_strength(rows)) for m, rows in trials.items()},
                    "trials": {m: [asdict(trial) for trial in rows] for m, rows in trials.items()},
                }
                for name, trials in tried.items()
            },
        }
        write_json(self.folder / TRIALS, record)


def home(run: Path, name: str) -> Path:
    """Return the path where a run folder keeps the plan of a tuned rival."""
    return run / "rivals" / name


def choices(n_layers: int) -> list[tuple[int, ...]]:
    """List the choices of blocks tried for every rival: three single blocks, the middle third, the upper half.

    >>> choices(8)
    [(4,), (6,), (7,), (2, 3, 4), (4, 5, 6, 7)]
    """
    found = [
        (n_layers // 2,),
        (3 * n_layers // 4,),
        (n_layers - 1,),
        tuple(middle_third(n_layers)),
        tuple(range(n_layers // 2, n_layers)),
    ]
    return [blocks for blocks in dict.fromkeys(found) if blocks]


def without(evidence: Evidence, ids: Collection[str]) -> Evidence:
    """Remove from the evidence everything read from these questions.

    The states along refusals (`tokens`), which no rival uses, have no ids and are all removed.

    Args:
        evidence: evidence of one kind of query.
        ids: ids of examples.

    Returns:
        the same object if it holds none of these questions.

    Raises:
        RMuseError: no questions remain to forget, or none of the others.
    """
    sides = (*evidence.readouts.values(), *evidence.step.values(), evidence.refusal["answer"])
    if not any(_example(name) in ids for pooled in sides for name in pooled.ids):
        return evidence

    def rest(pooled: Pooled) -> Pooled:
        return pooled.select([name for name in pooled.ids if _example(name) not in ids])

    def each(pools: Mapping[T, Pooled]) -> dict[T, Pooled]:
        return {span: rest(pooled) for span, pooled in pools.items()}

    def of(table: Mapping[str, T]) -> dict[str, T]:
        return {name: value for name, value in table.items() if _example(name) not in ids}

    spans = ("own", "refusal", "step", "direct", "step_prefixed", "direct_prefixed", "readouts")
    tables = ("refused_with", "groups", "forget", "others", "people")
    parts: dict[str, Any] = {name: each(getattr(evidence, name)) for name in spans}
    parts |= {name: of(getattr(evidence, name)) for name in tables}
    states = ("tokens", "position", "template", "run_own", "run_stepwise", "start_text", "start_stepwise")
    parts |= {name: getattr(evidence, name)[:0] for name in states} | {"run": None, "starts": None}
    left = replace(evidence, prefixed=rest(evidence.prefixed), **parts)
    if not left.refusal["answer"].ids or not left.forget or not left.others:
        raise RMuseError(
            f"forget and other questions beside the {len(ids)} held out were required, got "
            f"{len(left.refusal['answer'].ids)} and {len(left.others)}; collect more of them (limit=…)"
        )
    return left


def _example(name: str) -> str:
    """Extract the example's id from a row name: ``ID@PICTURE`` for prompts, ``ID@PICTURE~HOW`` for disturbed ones."""
    head, _, number = name.rpartition("@")
    return head if head and number.partition("~")[0].isdigit() else name


def require_names(names: Sequence[str]) -> None:
    """Raise unless every name is that of a rival and occurs once.

    Raises:
        RMuseError: an unknown or repeated name; the message lists the names.
    """
    unknown = [name for name in names if name not in RIVALS]
    if unknown:
        raise RMuseError(f"a rival is one of {', '.join(RIVALS)}, got {', '.join(map(repr, unknown))}")
    if len(set(names)) != len(names):
        raise RMuseError(f"each rival once was required, got {', '.join(names)}")
