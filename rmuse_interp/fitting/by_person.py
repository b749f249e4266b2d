"""A fit that takes requests for certain: gates that know people one by one, whatever kind tells people apart best."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.progress import Progress

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark
from rmuse_interp.edits.plan import Modality
from rmuse_interp.fitting import LIMIT, TABLE, assemble, check, gather, traced
from rmuse_interp.fitting.elicit import Template, TemplateName, Traces
from rmuse_interp.fitting.exchange import knows_people
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.method.rmuse import Evidence, PresetName, RMuse, gate_candidates
from rmuse_interp.parts.gates import GateKind, select_gate

KINDS: Final[tuple[GateKind, ...]] = ("vmf", "mahalanobis", "identity")
"""Kinds of gate that know people one by one."""


def fit_by_person(
    model: LensModel,
    benchmark: Benchmark,
    preset: PresetName = "calibrated",
    *,
    layers: Sequence[int] | None = None,
    auto: bool = False,
    limit: int = LIMIT,
    batch_size: int = 32,
    traces: Traces = "auto",
    template: TemplateName | Template | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **own: Any,
) -> RMuse:
    """As `fit`, with gates that `forget_people` and `restore_people` can change; arguments and errors as there.

    Raises:
        RMuseError: the preset `paper`, whose gate is the literal one.
    """
    if preset != "calibrated":
        raise RMuseError(
            f"the preset calibrated was required for gates that know people one by one, got {preset!r}"
        )
    check(model, benchmark, layers, traces, template, auto, preset)
    common: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "progress": progress}
    benchmark = traced(model, benchmark, traces, template, limit=limit, **common, **own)
    evidence = gather(model, benchmark, limit=limit, **common)
    fitted = assemble(
        model, benchmark, evidence, preset, layers=layers, auto=auto, seed=seed, progress=progress
    )
    return by_person(fitted, evidence)


def by_person(fitted: RMuse, evidence: Mapping[Modality, Evidence]) -> RMuse:
    """The same R-MUSE where every gate that does not know people one by one gives way to the best that does.

    The best by the same cross-validation on the same states as `calibrated_gate`; the report's table of gates is then
    that of the kinds in question.
    """
    plan, report = fitted.plan, dict(fitted.report)
    for modality, found in evidence.items():
        if not knows_people(fitted.gates[modality]):
            selection = select_gate(gate_candidates(found), kinds=KINDS)
            plan = plan.replace(**{f"{modality}.gate": selection.gate})
            report[modality] = report[modality] | {"gates": [asdict(row) for row in selection.table[:TABLE]]}
    return RMuse(plan, fitted.subspaces, report)
