"""`fit`: from a model and a benchmark to a fitted R-MUSE, reading fitting data only.

What is read: `forget_X`, `retain_X` and the `train` files; never `Test_Set`, `test` files or celebrities. All passes
are collected once (`gather`) and serve both presets.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from rich.progress import Progress

from rmuse_interp.collect import Query, pooled_states, trajectories
from rmuse_interp.data import Benchmark, Example, sample
from rmuse_interp.edits import Edit, Modality, Plan
from rmuse_interp.errors import RMuseError
from rmuse_interp.evaluate import measure, transcribe
from rmuse_interp.models.lens import LensModel
from rmuse_interp.rmuse import (
    PRESETS,
    Evidence,
    PresetName,
    RMuse,
    Subspaces,
    calibrated_edit,
    calibrated_gate,
    middle_third,
    paper_edit,
    together,
)

LIMIT: Final = 160
"""Most examples of each group (forget, retain people, reasoning, benign) and kind of query that are read."""
TRAJECTORIES: Final = 32
"""Most refusals followed token by token, per kind of query: the prototypes of `calibrated` are their states."""
CANDIDATES: Final = 6
"""Most blocks that `try_layers` tries."""
TRIALS: Final = 16
"""Fitting queries per block tried."""
TABLE: Final = 12
"""Rows of the gates' table kept in the bundle."""


def fit(
    model: LensModel,
    benchmark: Benchmark,
    preset: PresetName = "calibrated",
    *,
    layers: Sequence[int] | None = None,
    limit: int = LIMIT,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> RMuse:
    """A fitted R-MUSE.

    Args:
        model: from `load_model`.
        benchmark: from `load_benchmark`.
        preset: `calibrated` (default) or `paper`.
        layers: 0-based blocks to steer; chosen by the preset where absent.
        limit: most examples of each group and kind of query.
        seed: of the sampling.
        progress: a running progress bar to add lines to.

    Raises:
        RMuseError: layers out of range, a benchmark without reasoning, states that are not finite.
    """
    check(model, benchmark, layers)
    evidence = gather(model, benchmark, limit=limit, batch_size=batch_size, seed=seed, progress=progress)
    return assemble(model, benchmark, evidence, preset, layers=layers, seed=seed, progress=progress)


def check(model: LensModel, benchmark: Benchmark, layers: Sequence[int] | None = None) -> None:
    """All that can be wrong is found here, before the first pass.

    Raises:
        RMuseError: layers out of range, no reasoning spans, an unreadable image.
    """
    outside = [layer for layer in layers or [] if not 0 <= layer < model.n_layers]
    if outside or (layers is not None and not layers):
        raise RMuseError(
            f"layers in 0..{model.n_layers - 1} were required, got {list(layers or [])}; mend --layers"
        )
    benchmark.require_reasoning()
    benchmark.check_images(benchmark.fit_forget)


def gather(
    model: LensModel,
    benchmark: Benchmark,
    *,
    limit: int = LIMIT,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[Modality, Evidence]:
    """Everything both presets need, for each kind of query the forget set has."""
    found: dict[Modality, Evidence] = {}
    for modality in ("image", "text"):
        wanted = [e for e in benchmark.fit_forget if e.modality == modality]
        if any(e.kind == "generation" for e in wanted):
            found[modality] = _Gatherer(
                model, benchmark, modality, limit, batch_size, seed, progress
            ).evidence()
    if not found:
        raise RMuseError(f"{benchmark.id}: the forget set has no generation questions to fit on")
    return found


class _Gatherer:
    """The passes over one kind of query."""

    def __init__(
        self, model: LensModel, benchmark: Benchmark, modality: Modality, limit: int, batch_size: int, seed: int,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.model, self.benchmark, self.modality, self.limit = model, benchmark, modality, limit
        self.seed = seed
        self.settings: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        self.forget = self._some(benchmark.fit_forget, {"generation"})
        self.people = self._some(benchmark.fit_retain, {"generation"})
        self.reasoning = [
            e for e in self._some(benchmark.fit_reasoning, {"reasoning"}) if e.reasoning is not None
        ]
        if not self.people and not self.reasoning:
            raise RMuseError(
                f"{benchmark.id}: {modality} questions to retain are needed for the RRS and the gate, got none in "
                "the retain split and in Reasoning/train"
            )

    def _some(self, examples: Sequence[Example], kinds: set[str]) -> list[Example]:
        mine = [e for e in examples if e.modality == self.modality and e.kind in kinds]
        return sample(mine, self.limit, self.seed)

    def evidence(self) -> Evidence:
        benchmark = self.benchmark
        prefixes, refusals = benchmark.prefixes, benchmark.refusals_cot
        rng = random.Random(self.seed)
        refused_with = {
            e.id: i % len(refusals) for i, e in enumerate(rng.sample(self.forget, len(self.forget)))
        }
        refusing = [
            Query(e.id, f"{prefixes[i % len(prefixes)]} {e.prompt()}", e.image, refusals[refused_with[e.id]])
            for i, e in enumerate(self.forget)
        ]
        retained = [*self.people, *self.reasoning]
        runs = trajectories(
            self.model,
            rng.sample(refusing, min(TRAJECTORIES, len(refusing))),
            delimiters=benchmark.delimiters,
            label=f"refusals, {self.modality}",
            **self.settings,
        )
        return Evidence(
            own=self._responses(self.forget, "own responses"),
            refusal=self._pool(refusing, "refusals"),
            refused_with=refused_with,
            step=self._responses(retained, "stepwise"),
            direct=self._responses(retained, "direct", direct=True),
            step_prefixed=self._responses(retained, "stepwise, prefixed", prefix=prefixes[0]),
            direct_prefixed=self._responses(retained, "direct, prefixed", direct=True, prefix=prefixes[0]),
            groups={e.id: e.kind for e in retained},
            tokens=torch.cat([run.states for run in runs]),
            position=torch.cat([torch.arange(len(run.states)) for run in runs]),
            template=torch.cat([torch.full((len(run.states),), refused_with[run.id]) for run in runs]),
            **self._gate(),
        )

    def _pool(self, queries: list[Query], label: str) -> Any:
        spans = ("cot", "answer") if all(q.stepwise for q in queries) else ("answer",)
        return pooled_states(
            self.model, queries, spans, delimiters=self.benchmark.delimiters,  # type: ignore[arg-type]
            label=f"{label}, {self.modality}", **self.settings,
        )  # fmt: skip

    def _responses(
        self, examples: Sequence[Example], label: str, *, direct: bool = False, prefix: str = ""
    ) -> Any:
        """Pooled states of the reference responses; prefixed ones keep q as it is (`g ⊕ q`)."""
        lead = f"{prefix} " if prefix else ""
        delimiters = self.benchmark.delimiters
        queries = [
            Query(
                e.id,
                lead + e.prompt(direct and not prefix),
                e.image,
                e.response(delimiters, direct),
                not direct,
            )
            for e in examples
        ]
        return self._pool(queries, label)

    def _gate(self) -> dict[str, Any]:
        """Prompt states of what must and must not be steered, in every form that questions take.

        A forget person's further photographs (Benign's `train` files hold some) are asked about as well: a gate that
        knows one photograph by heart is told from one that knows the person only by holding photographs out.
        """
        benchmark, short = self.benchmark, {"classification", "cloze"}
        photographs = self._photographs()
        # (example, picture, number of the picture among the person's)
        forget: list[tuple[Example, bytes | None, int]] = [
            (e, image, n)
            for e in self.forget
            for n, image in enumerate([e.image, *photographs.get(e.person or "", [])])
        ]
        for i, example in enumerate(self._some(benchmark.fit_forget, short)):
            own = [example.image, *photographs.get(example.person or "", [])]
            forget.append((example, own[i % len(own)], i % len(own)))
        people: list[tuple[Example, bytes | None, int]] = []
        for i, example in enumerate([*self.people, *self._some(benchmark.fit_retain, short)]):
            own = [example.image, *photographs.get(example.person or "", [])]
            people.append((example, own[i % len(own)], i % len(own)))
        harmless = [
            (e, e.image, 0)
            for kind, view in (("reasoning", benchmark.fit_reasoning), ("benign", benchmark.fit_benign))
            for e in self._some(view, {kind})
        ]
        # The hardest of all: harmless questions about the very people to forget.
        known = {e.id for e, _, _ in harmless}
        harmless += [
            (e, e.image, 0)
            for e in benchmark.fit_benign
            if e.person in benchmark.forget_people and e.modality == self.modality and e.id not in known
        ]
        others = [*people, *harmless]
        # The reference response stands for the draft: what the model says when it is left alone.
        queries = [
            Query(f"{e.id}@{n}", e.prompt(), image, e.response(benchmark.delimiters), e.reasoning is not None)
            for e, image, n in (*forget, *others)
        ]
        several = any(n for _, _, n in forget)
        # Never the image tokens alone: they come before the question and can't know what is asked about a person.
        readouts = ["last", "question", "draft"]
        pooled = pooled_states(
            self.model,
            queries,
            readouts,  # type: ignore[arg-type]
            delimiters=benchmark.delimiters,
            label=f"prompts, {self.modality}",
            **self.settings,
        )
        some = [*sample(self.forget, 60, self.seed), *sample(self.people, 60, self.seed),
                *sample([e for e, _, _ in harmless], 60, self.seed)]  # fmt: skip
        prefixed = [Query(f"{e.id}@0", f"{benchmark.prefixes[0]} {e.prompt()}", e.image) for e in some]
        return {
            "readouts": pooled,
            "prefixed": pooled_states(
                self.model, prefixed, ("last",), label=f"prefixed prompts, {self.modality}", **self.settings
            )["last"],
            "forget": {f"{e.id}@{n}": f"photograph-{n}" if several else _question(e) for e, _, n in forget},
            "others": {f"{e.id}@{n}": e.person or e.id for e, _, n in others},
        }

    def _photographs(self) -> dict[str, list[bytes]]:
        """Further photographs of people in fitting data, by person."""
        found: dict[str, list[bytes]] = {}
        if self.modality == "image":
            for example in self.benchmark.fit_benign:
                if example.person is not None and example.image is not None:
                    found.setdefault(example.person, []).append(example.image)
        return found


def _question(example: Example) -> str:
    """Which question of a person's row this is: the same number stands for the same subject in every row."""
    return f"{example.kind}-{'-'.join(example.id.split('/')[3:4])}"


def assemble(
    model: LensModel,
    benchmark: Benchmark,
    evidence: Mapping[Modality, Evidence],
    preset: PresetName = "calibrated",
    *,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> RMuse:
    """A preset built from evidence already gathered; see `fit`."""
    if preset not in PRESETS:
        raise RMuseError(f"a preset is one of {', '.join(PRESETS)}, got {preset!r}")
    parts: list[tuple[Edit, Subspaces]] = []
    report: dict[str, Any] = {
        "preset": preset,
        "benchmark": {
            "id": benchmark.id,
            "forget": benchmark.forget_rate,
            "render_seed": benchmark.render_seed,
        },
        "people": hashed(sorted(benchmark.forget_people)),
        "seed": seed,
        "delimiters": list(benchmark.delimiters),
    }
    for modality, found in evidence.items():
        table: dict[str, Any] = {}
        if preset == "paper":
            steered = list(layers) if layers is not None else middle_third(model.n_layers)
            part = paper_edit(found, modality, steered, benchmark.prefixes[0])
        else:
            selection = calibrated_gate(found)
            trials = (
                []
                if layers is not None
                else try_layers(model, benchmark, evidence, modality, selection.gate.layer, seed, progress)
            )
            steered = list(layers) if layers is not None else [trials[0].layer]
            part = calibrated_edit(found, modality, steered, selection.gate)
            table["gates"] = [asdict(row) for row in selection.table[:TABLE]]
            table["layers"] = [asdict(trial) for trial in trials]
        parts.append(part)
        report[modality] = table | {"steered": steered, "queries": [len(found.forget), len(found.others)]}
    fitted = together(parts, report)
    fingerprinted = Plan(list(fitted.plan), model.fingerprint.as_record())
    return RMuse(fingerprinted, fitted.subspaces, report)


@dataclass(frozen=True)
class LayerTrial:
    """What steering one block does to fitting queries, the gate held open.

    Attributes:
        layer: 0-based block.
        leaked: share of responses that tell a forgotten attribute.
        refused: share that are well-formed refusals.
        verbatim: share that are refusals of the pool to the letter: no mixture of two.
        n: number of queries.
    """

    layer: int
    leaked: float
    refused: float
    verbatim: float
    n: int


def try_layers(
    model: LensModel,
    benchmark: Benchmark,
    evidence: Mapping[Modality, Evidence],
    modality: Modality,
    gate_layer: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[LayerTrial]:
    """One trial per candidate block, best first: what is said decides, then whether one pass is enough, then depth.

    Candidates are at most `CANDIDATES` blocks of the upper two thirds, evenly spaced, the last one among them.
    """
    first, last = model.n_layers // 3, model.n_layers - 1
    n = min(CANDIDATES, last - first + 1)
    candidates = sorted({round(first + (last - first) * i / max(1, n - 1)) for i in range(n)})
    asked = sample(
        [e for e in benchmark.fit_forget if e.modality == modality and e.kind == "generation"], TRIALS, seed
    )
    pool = {*benchmark.refusals_cot, *benchmark.refusals_direct}
    longest = max(len(model.tokenizer(r).input_ids) for r in pool) + 8
    task = progress.add_task(f"layers, {modality}", total=len(candidates)) if progress is not None else None
    found = []
    for layer in candidates:
        edit, _ = calibrated_edit(evidence[modality], modality, [layer], None)
        answers = model.respond(
            [e.prompt() for e in asked],
            [e.image for e in asked],
            edit,
            max_new_tokens=longest,
            batch_size=TRIALS,
        )
        said = [
            transcribe(e, "trial", r.text, benchmark.delimiters) for e, r in zip(asked, answers, strict=True)
        ]
        metrics = measure(said, benchmark, {e.id: e for e in asked})
        leaked, refused = (metrics[name].value or 0.0 for name in ("ril", "refusal_rate"))
        verbatim = 100 * sum(r.text in pool for r in answers) / len(answers)
        found.append(LayerTrial(layer, leaked, refused, verbatim, len(asked)))
        if progress is not None and task is not None:
            progress.advance(task)
    return sorted(found, key=lambda t: (t.leaked - t.refused, -t.verbatim, t.layer < gate_layer, -t.layer))


def hashed(people: Sequence[str]) -> list[str]:
    """People's ids as they stand in a bundle: hashed, since a bundle travels."""
    return sorted(hashlib.sha256(f"rmuse-{p}".encode()).hexdigest()[:16] for p in people)
