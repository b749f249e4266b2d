"""`fit`: fit an R-MUSE to a model and a benchmark, reading fitting data only.

It reads `forget_X`, `retain_X` and the `train` files, never `Test_Set`, `test` files or celebrities. All passes run
once (`gather`) and serve both presets.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.progress import Progress

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark
from rmuse_interp.data.store import JSON
from rmuse_interp.edits.plan import Edit, Modality
from rmuse_interp.fitting.agreement import subspace_table
from rmuse_interp.fitting.elicit import (
    MAX_NEW_TOKENS,
    TRACES,
    Template,
    TemplateName,
    Traces,
    elicit,
    fault,
    traces_of,
)
from rmuse_interp.fitting.gathering import LIMIT, enough, gather
from rmuse_interp.fitting.search import Chosen, search
from rmuse_interp.fitting.trials import Choice
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.method.rmuse import (
    ENERGY,
    PRESETS,
    Evidence,
    PresetName,
    RMuse,
    calibrated_edit,
    calibrated_gate,
    middle_third,
    paper_edit,
    together,
)
from rmuse_interp.method.targets import PROTECTIONS, TARGETS
from rmuse_interp.parts.gates import GATE_KINDS, GateKind
from rmuse_interp.parts.retain import Subspaces

__all__ = [
    "LIMIT",
    "TARGETS",
    "Choice",
    "Chosen",
    "assemble",
    "check",
    "enough",
    "fit",
    "gather",
    "hashed",
    "require_preset",
    "search",
    "source_of",
    "traced",
]

TABLE: Final = 12
"""Number of rows of the gates' table that the bundle keeps."""


def fit(
    model: LensModel,
    benchmark: Benchmark,
    preset: PresetName = "calibrated",
    *,
    layers: Sequence[int] | None = None,
    auto: bool = False,
    kinds: Sequence[GateKind] = GATE_KINDS,
    traces: Traces = "auto",
    template: TemplateName | Template | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    cache: Path | None = None,
    limit: int = LIMIT,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> RMuse:
    """Fit an R-MUSE to a model and a benchmark.

    Args:
        model: from `load_model`.
        benchmark: from `load_benchmark`.
        preset: `calibrated` (default) or `paper`.
        layers: 0-based blocks to steer; None lets the preset choose.
        auto: search widely (`search`): pairs of blocks, all targets, what the RRS protects, its rank, and strength.
        kinds: kinds of gates to choose from; `BY_PERSON`: those that `forget_people` and `restore_people` can change.
        traces: whose reasoning and answers to fit on: the benchmark's (`given`), the model's `own`, its own even if it
            follows no template (`composed`, see `elicit`), or `auto`: the benchmark's if it has reasoning, else the
            model's own, composed if none of its first responses begins to reason.
        template: how the model is asked for its own traces; see `elicit`.
        max_new_tokens: maximum number of tokens in each of the model's own responses.
        cache: folder for the model's responses; see `elicit`.
        limit: maximum number of examples per group and kind of query.
        seed: seed of the sampling.
        progress: a running progress bar to add lines to.

    Raises:
        RMuseError: layers out of range, given traces without reasoning, a model that does not follow the template,
            states that are not finite, a search or kinds of gates for the literal method.
    """
    check(model, benchmark, layers, traces, template)
    require_preset(preset, auto, kinds)
    benchmark = traced(
        model,
        benchmark,
        traces,
        template,
        max_new_tokens=max_new_tokens,
        cache=cache,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    evidence = gather(model, benchmark, limit=limit, batch_size=batch_size, seed=seed, progress=progress)
    return assemble(
        model,
        benchmark,
        evidence,
        preset,
        layers=layers,
        auto=auto,
        kinds=kinds,
        seed=seed,
        progress=progress,
    )


def check(
    model: LensModel,
    benchmark: Benchmark,
    layers: Sequence[int] | None = None,
    traces: Traces = "given",
    template: TemplateName | Template | None = None,
) -> None:
    """Raise unless a fit on the benchmark is possible with these settings; runs no pass. `gather` needs given traces.

    Raises:
        RMuseError: layers out of range, given traces without reasoning spans, a template for given traces, an unreadable
            image.
    """
    outside = [layer for layer in layers or [] if not 0 <= layer < model.n_layers]
    if outside or (layers is not None and not layers):
        raise RMuseError(
            f"layers in 0..{model.n_layers - 1} were required, got {list(layers or [])}; mend --layers"
        )
    source = source_of(benchmark, traces)
    bare = next((text for text in benchmark.refusals_cot if fault(text, benchmark.delimiters)), None)
    if bare is not None and (source == "given" or traces == "own"):
        opener, closer = benchmark.delimiters
        raise RMuseError(
            f"{benchmark.id}: refusals_cot with reasoning between {opener} and {closer} were required for a model that "
            f"follows this template, got {bare!r:.80}; add the delimiters in benchmark.json, or, for a model without a "
            "template, fit with traces='composed' (--traces composed), which takes them as they are"
        )
    if source == "given":
        benchmark.require_reasoning()
        if template is not None:
            raise RMuseError(
                "a template is how the model is asked for traces of its own, got one for the benchmark's; "
                "add traces='own' (--traces own), or leave the template out"
            )
    benchmark.check_images(benchmark.fit_forget)


def source_of(benchmark: Benchmark, traces: Traces) -> Traces:
    """Resolve `traces` to `given`, `own` or `composed`: what `auto` means on this benchmark.

    Raises:
        RMuseError: an unknown value of `traces`.
    """
    if traces not in TRACES:
        raise RMuseError(f"traces are one of {', '.join(TRACES)}, got {traces!r}")
    if traces == "auto":
        return "given" if benchmark.has_reasoning else "own"
    return traces


def traced(
    model: LensModel,
    benchmark: Benchmark,
    traces: Traces = "auto",
    template: TemplateName | Template | None = None,
    **settings: Any,
) -> Benchmark:
    """Return the benchmark, with the model's own responses if `traces` asks for them; `settings` go to `elicit`."""
    source = source_of(benchmark, traces)
    if source == "given":
        return benchmark
    composed = None if traces == "auto" else source == "composed"
    return elicit(model, benchmark, template=template, composed=composed, **settings).benchmark


def assemble(
    model: LensModel,
    benchmark: Benchmark,
    evidence: Mapping[Modality, Evidence],
    preset: PresetName = "calibrated",
    *,
    layers: Sequence[int] | None = None,
    auto: bool = False,
    kinds: Sequence[GateKind] = GATE_KINDS,
    seed: int = 0,
    progress: Progress | None = None,
) -> RMuse:
    """Build a preset from evidence already gathered; see `fit`."""
    require_preset(preset, auto, kinds)
    parts: list[tuple[Edit, Subspaces]] = []
    report: JSON = {
        "preset": preset,
        "benchmark": {
            "id": benchmark.id,
            "forget": benchmark.forget_rate,
            "render_seed": benchmark.render_seed,
        },
        "people": hashed(sorted(benchmark.forget_people)),
        "seed": seed,
        "delimiters": list(benchmark.delimiters),
        "traces": traces_of(benchmark),
    }
    for modality, found in evidence.items():
        table: JSON = {}
        energy = ENERGY
        if preset == "paper":
            usual = [layer for layer in middle_third(model.n_layers) if layer in model.layout.always]
            steered = usual if layers is None else list(layers)
            part = paper_edit(found, modality, steered, benchmark.prefixes[0])
        else:
            selection = calibrated_gate(found, kinds)
            where = (model, benchmark, evidence, modality, selection.gate.layer)
            outcome = search(*where, layers, seed, progress, wide=auto)
            best = outcome.best
            steered, energy = list(best.layers), best.energy
            part = calibrated_edit(
                found,
                modality,
                steered,
                selection.gate,
                TARGETS[best.target],
                energy,
                PROTECTIONS[best.protect],
                best.strength,
            )
            table["chosen"] = {**asdict(best), "why": list(outcome.why)}
            table["confirmed"] = outcome.confirmed
            table["steady"] = outcome.steady
            table["refusals"] = refusals_of(found)
            table["gates"] = [asdict(row) for row in selection.table[:TABLE]]
            table["trials"] = [asdict(trial) for trial in outcome.trials]
        table["subspaces"] = subspace_table(
            found, steered, literal=preset == "paper", energy=energy, seed=seed
        )
        parts.append(part)
        report[modality] = table | {"steered": steered, "queries": [len(found.forget), len(found.others)]}
    fitted = together(parts, report)
    fingerprinted = fitted.plan.bound_to(model)
    return RMuse(fingerprinted, fitted.subspaces, report)


def refusals_of(evidence: Evidence) -> JSON:
    """Which refusals answers follow: the number that the model itself said, of all, and those words."""
    own = [bool(one) for one in evidence.run_own]
    return {"own": sum(own), "of": len(own), "texts": list(evidence.refusals)[:TABLE]}


def require_preset(preset: str, auto: bool = False, kinds: Sequence[GateKind] = GATE_KINDS) -> None:
    """Raise unless the preset is known and allows this search and choice of gate kinds.

    Raises:
        RMuseError: an unknown preset; `auto` or kinds of gates for the preset `paper`.
    """
    if preset not in PRESETS:
        raise RMuseError(f"a preset is one of {', '.join(PRESETS)}, got {preset!r}")
    if auto and preset == "paper":
        raise RMuseError(
            "a search needs the preset calibrated, got paper, whose settings are the paper's; leave --auto out"
        )
    if tuple(kinds) != GATE_KINDS and preset == "paper":
        raise RMuseError(
            "a choice of gates needs the preset calibrated, got paper, whose gate is the literal one; leave kinds= "
            "(--by-person) out"
        )


def hashed(people: Sequence[str]) -> list[str]:
    """Hash people's ids as a bundle stores them, since bundles are shared."""
    return sorted(hashlib.sha256(f"rmuse-{p}".encode()).hexdigest()[:16] for p in people)
