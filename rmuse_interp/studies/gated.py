"""Answers of a gated plan, composed from an ungated run and an unsteered one instead of being generated again.

A closed gate leaves its row unchanged bit for bit, and rows of a batch do not affect each other. So each answer of a
gated plan is that of the same plan without gates if the gate fires, and that of the unsteered model if it does not.
This is exact as long as all runs form the same batches.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from rich.progress import Progress

from rmuse_interp import RMuseError
from rmuse_interp.data import Example
from rmuse_interp.edits.plan import Edit, Modality, Plan
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.evaluate.scores import NOT_TO_STEER, TO_STEER
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.maths.statistics import auroc_clustered, wilson
from rmuse_interp.method.rmuse import Evidence, RMuse, gate_candidates
from rmuse_interp.models.batches import alike, by_length
from rmuse_interp.parts.gates import GATE_KINDS, Gate, GateKind, GateStates, Readout, select_gate
from rmuse_interp.studies.common import Record, estimate, percent, short

Scores = dict[str, dict[str, float]]
"""Name of a gate → id of a question → its score, for the questions that the gate applies to."""


def probes(fitted: RMuse, gates: Mapping[str, Mapping[str, Gate]]) -> Plan:
    """A plan used only for its gates' decisions: one edit per gate and kind of query, named ``gate/kind``.

    Args:
        fitted: bundle whose edits, one per kind of query, carry the gates.
        gates: name → kind of query → gate.
    """
    host = {edit.modality: edit for edit in fitted.plan}
    edits: list[Edit] = [
        host[modality].when(gate).named(f"{name}/{modality}")  # type: ignore[index]
        for name, by_modality in gates.items()
        for modality, gate in by_modality.items()
    ]
    return Plan(edits, fitted.plan.fingerprint)


def scored(
    lens: LensModel,
    plan: Plan,
    examples: Sequence[Example],
    batch_size: int,
    progress: Progress | None = None,
) -> Scores:
    """The scores of the gates of `probes`, in the batches that `rmuse_interp.runs.run.run` forms.

    Raises:
        RMuseError: a gate has no score for a question that it applies to.
    """
    found: Scores = {str(edit.name).rpartition("/")[0]: {} for edit in plan}
    for batch in alike(examples, batch_size, by_length, progress=progress, label="gates"):
        decision = lens.decide(plan, [e.prompt() for e in batch], [e.image for e in batch])
        for column, edit in enumerate(plan):
            name, _, modality = str(edit.name).rpartition("/")
            values = decision.score[:, column].tolist() if modality == batch[0].modality else []
            for example, value in zip(batch, values, strict=bool(values)):
                if value != value:
                    raise RMuseError(
                        f"{example.id}: the gate {edit.name} was to score it, it had nothing to read"
                    )
                found[name][example.id] = value
    return found


def fires(
    scores: Mapping[str, float], gates: Mapping[str, Gate], examples: Iterable[Example]
) -> dict[str, bool]:
    """Id → whether the gate of its kind of query fires, as `Gate.fires` decides: strictly above, in float32."""
    return {
        e.id: bool(torch.tensor(scores[e.id], dtype=torch.float32) > gates[e.modality].threshold)
        for e in examples
    }


def composed(
    name: str, steered: Iterable[Transcript], plain: Iterable[Transcript], fired: Mapping[str, bool]
) -> list[Transcript]:
    """The transcripts of a gated plan under a new name: steered if the gate fires, plain if it does not.

    Raises:
        RMuseError: the runs are over different questions.
    """
    sides: list[Record] = [{t.id: t for t in run} for run in (plain, steered)]
    if sides[0].keys() != sides[1].keys() or not sides[0].keys() <= fired.keys():
        raise RMuseError(
            f"{name}: two runs over the same questions and a decision about each were required, got "
            f"{len(sides[0])} plain and {len(sides[1])} steered answers and {len(fired)} decisions"
        )
    return [replace(sides[fired[i]][i], method=name, fired=fired[i]) for i in sides[0]]


Gates = dict[str, dict[str, Gate]]
"""Name → kind of query → gate."""


def gates_of(evidence: Mapping[Modality, Evidence], seed: int) -> tuple[Gates, dict[str, str]]:
    """The best gate of each kind by cross-validation on fitting data, and the best kind, for each kind of query."""
    found: Gates = {kind: {} for kind in GATE_KINDS}
    chosen: dict[str, str] = {}
    for modality, one in evidence.items():
        candidates = gate_candidates(one)
        table = select_gate(candidates, seed=seed).table
        chosen[modality] = table[0].kind
        for kind in GATE_KINDS:
            # The table is sorted: the first row of a kind has the best place to read it.
            row = next((r for r in table if r.kind == kind), None)
            if row is not None:
                found[kind][modality] = best_at(candidates, row.layer, row.readout, kind, seed)
    return {kind: gates for kind, gates in found.items() if gates}, chosen


def best_at(
    candidates: Mapping[tuple[int, Readout], GateStates],
    layer: int,
    readout: Readout,
    kind: GateKind,
    seed: int,
) -> Gate:
    """The gate of one kind, block and read-out."""
    return select_gate({(layer, readout): candidates[layer, readout]}, kinds=[kind], seed=seed).gate


def rate(fired: Mapping[str, bool]) -> Record:
    """Share of the queries that a gate fires on."""
    return percent(wilson(sum(fired.values()), len(fired)))


def curve(
    name: str,
    gates: Mapping[str, Gate],
    scores: Mapping[str, float],
    known: Mapping[str, Sequence[Example]],
    chosen: Mapping[str, str],
    seed: int,
) -> Record:
    """Operating curve of one gate on scoring queries, and its rates at the threshold of the fitting data."""
    sides: list[list[Example]] = [[], []]
    for split, examples in known.items():
        if split in TO_STEER | NOT_TO_STEER:
            sides[split in NOT_TO_STEER] += [e for e in examples if e.modality in gates]
    margins = [
        [(scores[e.id] - gates[e.modality].threshold) / gates[e.modality].scale for e in s] for s in sides
    ]
    hits, rest = (torch.tensor(values, dtype=torch.float64) for values in margins)
    fired = {split: fires(scores, gates, [e for e in v if e.modality in gates]) for split, v in known.items()}
    found: Record = {
        "gate": name,
        "chosen_for": [modality for modality, kind in chosen.items() if kind == name],
        "by_modality": {
            modality: {
                "layer": gate.layer,
                "readout": gate.readout,
                "threshold": short(gate.threshold),
                "expected": gate.expected,
            }
            for modality, gate in gates.items()
        },
        "n": [len(hits), len(rest)],
        "auroc": None,
        "points": [],
        "tpr": None,
        "fpr": None,
        "fire_rate": {split: rate(decided) for split, decided in fired.items() if decided},
    }
    if len(hits) and len(rest):
        people, others = ([e.person or e.id for e in side] for side in sides)
        area = auroc_clustered(hits, rest, people, others, seed=seed)
        found["auroc"] = estimate(area.value, area.low, area.high)
        cuts = torch.cat([torch.cat([hits, rest]).unique().flip(0), torch.tensor([-torch.inf])])
        points = [
            [short(float((side > cut).double().mean())) for side in (rest, hits)] for cut in cuts.tolist()
        ]
        found["points"] = points
        found["tpr"], found["fpr"] = (
            percent(wilson(int((side > 0).sum()), len(side))) for side in (hits, rest)
        )
    return found
