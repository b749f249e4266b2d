"""`fit`: from a model and a benchmark to a fitted R-MUSE, reading fitting data only.

What is read: `forget_X`, `retain_X` and the `train` files; never `Test_Set`, `test` files or celebrities. All passes
are collected once (`gather`) and serve both presets.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from rich.progress import Progress

from rmuse_interp.collect import Query, pooled_states, trajectories
from rmuse_interp.data import Benchmark, Example, sample
from rmuse_interp.edits import Edit, Modality, Plan
from rmuse_interp.errors import RMuseError
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

LIMIT: Final = 240
"""Most examples of each group (forget, retain people, reasoning, benign) and kind of query that are read."""


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
            refusing,
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
        """Prompt states of what must and must not be steered, in every form that questions take."""
        benchmark, forms = self.benchmark, {"generation", "classification", "cloze"}
        forget = [*self.forget, *self._some(benchmark.fit_forget, forms - {"generation"})]
        retain = [*self.people, *self._some(benchmark.fit_retain, forms - {"generation"})]
        others = [
            *retain,
            *self._some(benchmark.fit_reasoning, {"reasoning"}),
            *self._some(benchmark.fit_benign, {"benign"}),
        ]
        queries = [Query(e.id, e.prompt(), e.image) for e in (*forget, *others)]
        readouts = ("last", "question", "image") if self.modality == "image" else ("last", "question")
        pooled = pooled_states(
            self.model, queries, readouts, label=f"prompts, {self.modality}", **self.settings
        )
        some = [*sample(self.forget, 60, self.seed), *sample([e for e in others if e not in retain], 60, self.seed),
                *sample(self.people, 60, self.seed)]  # fmt: skip
        prefixed = [Query(e.id, f"{benchmark.prefixes[0]} {e.prompt()}", e.image) for e in some]
        return {
            "readouts": pooled,
            "prefixed": pooled_states(
                self.model, prefixed, ("last",), label=f"prefixed prompts, {self.modality}", **self.settings
            )["last"],
            "forget": {e.id: _group(e) for e in forget},
            "others": {e.id: e.person or e.id for e in others},
        }


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
        if preset == "paper":
            steered = list(layers) if layers is not None else middle_third(model.n_layers)
            part = paper_edit(found, modality, steered, benchmark.prefixes[0])
        else:
            selection = calibrated_gate(found)
            steered = list(layers) if layers is not None else [model.n_layers - 1]
            part = calibrated_edit(found, modality, steered, selection.gate)
        parts.append(part)
        report[modality] = {"layers": steered, "forget": len(found.forget), "others": len(found.others)}
    fitted = together(parts, report)
    fingerprinted = Plan(list(fitted.plan), model.fingerprint.as_record())
    return RMuse(fingerprinted, fitted.subspaces, report)


def _group(example: Example) -> str:
    """What fresh forget queries differ in: the question. Names in it don't matter: its place in the file stands for it."""
    return f"{example.kind}-{'-'.join(example.id.split('/')[3:4])}"


def hashed(people: Sequence[str]) -> list[str]:
    """People's ids as they stand in a bundle: hashed, since a bundle travels."""
    return sorted(hashlib.sha256(f"rmuse-{p}".encode()).hexdigest()[:16] for p in people)
