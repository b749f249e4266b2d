"""Trials: settings of `calibrated` tried on fitting questions, and what a reader would see of each."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import torch
from rich.progress import Progress, TaskID

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example, sample
from rmuse_interp.data.store import JSON
from rmuse_interp.edits.plan import Edit, Modality, Plan
from rmuse_interp.evaluate.readable import Gauge, Reading, loops
from rmuse_interp.evaluate.scores import measure
from rmuse_interp.fitting.aside import set_aside
from rmuse_interp.fitting.elicit import follows_template
from rmuse_interp.fitting.refusing import is_plain_refusal
from rmuse_interp.fitting.validation import answers
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.lens.readable import gauge_of, readings
from rmuse_interp.method.rmuse import ENERGY, Evidence, calibrated_edit, subspaces_at
from rmuse_interp.method.targets import PROTECTIONS, TARGETS
from rmuse_interp.parts.retain import Subspaces

ENERGIES: Final = (ENERGY, 0.5, 0.95)
"""Shares of the variance that the RRS may hold; the paper's comes first."""
PROTECT: Final = next(iter(PROTECTIONS))
"""What of the RRS is protected unless another protection does better."""
ROOM: Final = 24
"""Number of tokens that a refusal may have beyond the longest one known; one that is longer does not end."""
GAUGED: Final = 8
"""Number of questions from which the cut between readable and garbled answers is set."""
BASES: Final = 4
"""Number of the model's own refusals to which the likelihood of an answer is compared."""


@dataclass(frozen=True)
class Setting:
    """What is tried: blocks, target, energy of the RRS, what it protects, and the share of the way.

    Attributes:
        layers: 0-based blocks steered.
        target: name in `TARGETS`.
        energy: share of the variance that the RRS holds.
        protect: name in `PROTECTIONS`.
        strength: share of the way to the target; only 1 for operators that have no such share.
    """

    layers: tuple[int, ...]
    target: str
    energy: float = ENERGY
    protect: str = PROTECT
    strength: float = 1.0


@dataclass(frozen=True)
class Choice:
    """One setting, and its effect on fitting queries with the gate held open.

    Attributes:
        layers, target, energy, protect, strength: see `Setting`.
        ranks: ranks of the RRS, one per block.
        leaked: percent of the responses that reveal a forgotten attribute (RIL).
        refused: percent that are refusals, well formed where the model follows a template.
        garbled: percent that do not read as language (`Gauge`), loops included.
        unended: percent that did not end within the longest refusal and `ROOM` tokens.
        faulty: percent that are not a whole, readable refusal without a leak.
        ratio: exp of the mean nats per token above the likeliest of the model's own refusals to the same question, loops
            left out; None where nothing was said.
        verbatim: percent that equal a refusal of the pool or of the model's own exactly, so that no two are mixed.
        inside: percent of the squared update of the last prompt token inside the widest RRS tried; the damage to
            reasoning if the gate opened by mistake.
        n: number of queries.
    """

    layers: tuple[int, ...]
    target: str
    energy: float
    protect: str
    strength: float
    ranks: tuple[int, ...]
    leaked: float
    refused: float
    garbled: float
    unended: float
    faulty: float
    ratio: float | None
    verbatim: float
    inside: float
    n: int

    @property
    def words(self) -> tuple[float, float, float, float]:
        """Rank key of the responses, smaller is better: leakage, faults, fluency to a tenth, mixtures."""
        fluency = math.inf if self.ratio is None else round(max(self.ratio, 1.0), 1)
        return (self.leaked, self.faulty, fluency, -self.verbatim)


@dataclass(frozen=True)
class _Seen:
    """What was seen of one response."""

    leaked: float
    refused: bool
    garbled: bool
    unended: bool
    verbatim: bool
    nats: float | None

    @property
    def faulty(self) -> bool:
        return self.leaked > 0 or self.garbled or self.unended or not self.refused


class Trials:
    """Runs each setting once, all on the same questions.

    Args:
        model: from `load_model`.
        benchmark: from `load_benchmark`, or what `elicit` made of it.
        evidence: of one kind of query, from `gather`.
        modality: kind of query.
        seed: seed of the sampling.
        progress: a running progress bar to add a line to.
        total: number of trials expected.
    """

    def __init__(
        self,
        model: LensModel,
        benchmark: Benchmark,
        evidence: Evidence,
        modality: Modality,
        seed: int,
        progress: Progress | None,
        total: int,
    ) -> None:
        self.model, self.benchmark, self.evidence, self.modality = model, benchmark, evidence, modality
        self.asked, self.apart = set_aside(benchmark, modality, seed)
        own = [text for i, text in enumerate(evidence.refusals) if i in _own(evidence)]
        self.own = tuple(own)
        self.pool = {*benchmark.refusals_cot, *benchmark.refusals_direct, *own}
        self.longest = max(len(model.tokenizer(r).input_ids) for r in self.pool) + ROOM
        self.formed = follows_template(benchmark)
        self.done: dict[Setting, Choice] = {}
        self.failed: list[str] = []
        self._seen: dict[Setting, list[_Seen]] = {}
        self._read: dict[tuple[str, str], Reading] = {}
        self._seed = seed
        self._gauge: Gauge | None = None
        self._gauged = False
        self._progress = progress
        label = f"trials, {modality}"
        self._task: TaskID | None = None if progress is None else progress.add_task(label, total=total)

    def __call__(self, setting: Setting) -> Choice:
        """Return the trial of one setting."""
        if setting not in self.done:
            self._seen[setting] = self.seen(setting, self.asked)
            self.done[setting] = self._choice(setting, self._seen[setting])
            if self._progress is not None and self._task is not None:
                self._progress.advance(self._task)
        return self.done[setting]

    def all(self, settings: Iterable[Setting]) -> list[Choice]:
        """Return the trials of some settings; one that cannot be built is left out and named in `failed`."""
        found = []
        for setting in settings:
            try:
                found.append(self(setting))
            except RMuseError as error:
                self.failed.append(f"target {setting.target}, energy {setting.energy:g} is out: {error}")
        return found

    def confirmed(self, setting: Setting) -> JSON | None:
        """Score a setting on questions that chose nothing; None where there are none."""
        if not self.apart:
            return None
        found = asdict(self._choice(setting, self.seen(setting, self.apart)))
        return {
            key: found[key] for key in ("leaked", "refused", "garbled", "unended", "faulty", "ratio", "n")
        }

    def steadiness(self, best: Setting, draws: int = 200) -> float:
        """Percent of resamples of the questions in which the setting's responses are still as good as any."""
        rng, hits, n = random.Random(self._seed), 0, len(self.asked)
        for _ in range(draws):
            rows = [rng.randrange(n) for _ in range(n)]
            score = {
                setting: (sum(seen[i].leaked for i in rows), sum(seen[i].faulty for i in rows))
                for setting, seen in self._seen.items()
            }
            hits += score[best] <= min(score.values())
        return 100 * hits / draws

    def seen(self, setting: Setting, asked: Sequence[Example]) -> list[_Seen]:
        """What a setting makes of each question, the gate held open."""
        edit, _ = self._edit(setting)
        said = list(
            answers(
                self.model,
                self.benchmark,
                asked,
                Plan([edit]),
                max_new_tokens=self.longest,
                batch_size=len(asked),
            ).values()
        )
        metrics = measure(said, self.benchmark, {e.id: e for e in asked})
        leaks, refusals = (metrics[name].per_example for name in ("ril", "refusal_rate"))
        gauge = self.gauge
        read = self._readings(asked, [row.response for row in said])
        bases = self._bases(asked)
        found = []
        for row, reading, base in zip(said, read, bases, strict=True):
            tokens = self.model.tokenizer(row.response, add_special_tokens=False).input_ids
            plain = not self.formed and is_plain_refusal(row.response)
            known = row.response in self.pool
            looped = loops(row.response)
            garbled = not known and (gauge.fault(reading) is not None if gauge is not None else looped)
            nats = None
            if reading.mean is not None and not looped:
                nats = max(0.0, reading.mean - base)
            found.append(
                _Seen(
                    float(leaks.get(row.id, 0.0)) / 100,
                    plain or bool(refusals.get(row.id, 0.0)),
                    garbled,
                    len(tokens) >= self.longest - 1,
                    known,
                    nats,
                )
            )
        return found

    @property
    def gauge(self) -> Gauge | None:
        """The cut between readable and garbled answers; None where the model's answers are too short to set one."""
        if not self._gauged:
            self._gauged = True
            open_ = [
                e
                for e in (*self.benchmark.fit_forget, *self.benchmark.fit_retain)
                if e.modality == self.modality and e.kind == "generation"
            ]
            try:
                self._gauge = gauge_of(
                    self.model,
                    sample(open_, GAUGED, self._seed),
                    prefixes=self.benchmark.prefixes,
                    refusals=self.benchmark.refusals_cot,
                    refusals_direct=self.benchmark.refusals_direct,
                    delimiters=self.benchmark.delimiters,
                    known=self.own,
                    max_new_tokens=self.longest,
                    seed=self._seed,
                )
            except RMuseError as error:
                self.failed.append(f"no cut between readable and garbled answers: {error}")
        return self._gauge

    def _edit(self, setting: Setting) -> tuple[Edit, Subspaces]:
        return calibrated_edit(
            self.evidence,
            self.modality,
            setting.layers,
            None,
            TARGETS[setting.target],
            setting.energy,
            PROTECTIONS[setting.protect],
            setting.strength,
        )

    def _readings(self, asked: Sequence[Example], texts: Sequence[str]) -> list[Reading]:
        """How likely responses are under the unsteered model; a response read before is not read again."""
        rows = {(e.id, text): e for e, text in zip(asked, texts, strict=True)}
        new = {key: e for key, e in rows.items() if key not in self._read}
        gauge = self.gauge
        found = readings(
            self.model,
            [e.prompt() for e in new.values()],
            [text for _, text in new],
            [e.image for e in new.values()],
            prefixes=self.benchmark.prefixes,
            delimiters=self.benchmark.delimiters,
            enough=None if gauge is None else gauge.cut,
        )
        self._read |= dict(zip(new, found, strict=True))
        return [self._read[e.id, text] for e, text in zip(asked, texts, strict=True)]

    def _bases(self, asked: Sequence[Example]) -> list[float]:
        """Mean nats of the likeliest of the model's own refusals, or else of the pool's, to each question."""
        texts = (self.own or tuple(sorted(self.pool)))[:BASES]
        rows = [(e, text) for e in asked for text in texts]
        read = self._readings([e for e, _ in rows], [text for _, text in rows])
        means = [reading.mean for reading in read]
        each = [means[i : i + len(texts)] for i in range(0, len(means), len(texts))]
        return [min((mean for mean in some if mean is not None), default=0.0) for some in each]

    def _choice(self, setting: Setting, seen: Sequence[_Seen]) -> Choice:
        _, fitted = self._edit(setting)

        def percent(values: Iterable[float]) -> float:
            return 100 * sum(map(float, values)) / len(seen)

        nats = [one.nats for one in seen if one.nats is not None]
        return Choice(
            **asdict(setting) | {"layers": setting.layers},
            ranks=tuple(fitted.at(self.modality, layer)[1].rank for layer in setting.layers),
            leaked=percent(one.leaked for one in seen),
            refused=percent(one.refused for one in seen),
            garbled=percent(one.garbled for one in seen),
            unended=percent(one.unended for one in seen),
            faulty=percent(one.faulty for one in seen),
            ratio=math.exp(sum(nats) / len(nats)) if nats else None,
            verbatim=percent(one.verbatim for one in seen),
            inside=self._inside(setting, fitted),
            n=len(seen),
        )

    def _inside(self, setting: Setting, fitted: Subspaces) -> float:
        """Compute `Σ‖P Δ‖² / Σ‖Δ‖²` over the last prompt tokens of forget queries, P of the widest RRS; percent."""
        edit, _ = self._edit(setting)
        prompts = self.evidence.readouts["last"]
        prompts = prompts.select([i for i in prompts.ids if i in self.evidence.forget])
        part = whole = length = 0.0
        for layer in setting.layers:
            operator = edit.operator_at(layer)
            assert operator is not None
            widest = subspaces_at(self.evidence, layer, literal=False, energy=max(ENERGIES))[1].subspace
            states = prompts.at(layer)
            update = operator(states, torch.zeros(len(states), dtype=torch.long)) - states
            part += float(widest.project(update).square().sum())
            whole += float(update.square().sum())
            length += float(states.square().sum())
        # What is shorter is the rounding of float32: nothing was moved.
        return 100 * part / whole if whole > 1e-10 * length else 0.0


def _own(evidence: Evidence) -> frozenset[int]:
    """Numbers of the refusals that the model itself said."""
    if evidence.run is None:
        return frozenset()
    first = [int((evidence.run == i).nonzero()[0]) for i in range(len(evidence.run_own))]
    return frozenset(
        int(evidence.template[row]) for row, own in zip(first, evidence.run_own, strict=True) if own
    )
