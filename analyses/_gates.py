"""Gates of every kind from the same fitting data, and how each does on scoring queries."""

from collections.abc import Mapping, Sequence

import torch

from analyses._common import Record, percent, short
from analyses._composed import fires
from rmuse_interp.data import Example
from rmuse_interp.edits.plan import Modality
from rmuse_interp.evaluate.scores import NOT_TO_STEER, TO_STEER
from rmuse_interp.maths.statistics import auroc_clustered, wilson
from rmuse_interp.method.rmuse import Evidence, gate_candidates
from rmuse_interp.parts.gates import GATE_KINDS, Gate, GateKind, GateStates, Readout, select_gate

Gates = dict[str, dict[str, Gate]]
"""Name → kind of query → gate."""


def gates_of(evidence: Mapping[Modality, Evidence], seed: int) -> tuple[Gates, dict[str, str]]:
    """The best gate of each kind by cross-validation on fitting data, and which kind wins, per kind of query."""
    found: Gates = {kind: {} for kind in GATE_KINDS}
    chosen: dict[str, str] = {}
    for modality, one in evidence.items():
        candidates = gate_candidates(one)
        table = select_gate(candidates, seed=seed).table
        chosen[modality] = table[0].kind
        for kind in GATE_KINDS:
            # The table is in order: its first row of a kind is where that kind is best read.
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
    """Share of the queries a gate fires on."""
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
        area = auroc_clustered(hits, rest, *([e.person or e.id for e in s] for s in sides), seed=seed)
        found["auroc"] = {"value": short(area.value), "low": short(area.low), "high": short(area.high)}
        cuts = torch.cat([torch.cat([hits, rest]).unique().flip(0), torch.tensor([-torch.inf])])
        points = [
            [short(float((side > cut).double().mean())) for side in (rest, hits)] for cut in cuts.tolist()
        ]
        found["points"] = points
        found["tpr"], found["fpr"] = (
            percent(wilson(int((side > 0).sum()), len(side))) for side in (hits, rest)
        )
    return found
