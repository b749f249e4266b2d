"""`fit`: from a model and a benchmark to a fitted R-MUSE, reading fitting data only.

What is read: `forget_X`, `retain_X` and the `train` files; never `Test_Set`, `test` files or celebrities. All passes
are collected once (`gather`) and serve both presets.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.progress import Progress

from rmuse_interp.data import Benchmark
from rmuse_interp.edits import Edit, Modality, Plan
from rmuse_interp.errors import RMuseError
from rmuse_interp.fitting.gathering import LIMIT, gather
from rmuse_interp.fitting.layers import LayerTrial, try_layers
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

__all__ = ["LIMIT", "LayerTrial", "assemble", "check", "fit", "gather", "hashed", "try_layers"]

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


def hashed(people: Sequence[str]) -> list[str]:
    """People's ids as they stand in a bundle: hashed, since a bundle travels."""
    return sorted(hashlib.sha256(f"rmuse-{p}".encode()).hexdigest()[:16] for p in people)
