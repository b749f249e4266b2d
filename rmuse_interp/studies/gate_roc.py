"""Operating curves of gates on queries they have never seen."""

import argparse
from collections.abc import Mapping, Sequence

import numpy as np

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example
from rmuse_interp.diagnostics.roc import TPR, Curve, operating_curve
from rmuse_interp.evaluate.scores import NOT_TO_STEER, TO_STEER
from rmuse_interp.maths.statistics import RESAMPLES, auroc, interval, wilson
from rmuse_interp.method.rmuse import RMuse
from rmuse_interp.parts.gates import Gate
from rmuse_interp.runs.run import choose
from rmuse_interp.studies.common import Record, around, estimate, opened, percent, print_table, short
from rmuse_interp.studies.fits import bundle_of, working
from rmuse_interp.studies.gated import Gates, fires, gates_of, probes, rate, scored

PAPER = "paper"
GRID = (0.0, *np.logspace(-3, 0, 61).round(6).tolist())
"""False-positive rates at which the confidence band is evaluated."""
DEALS = 200
"""Number of random deals in the negative control."""


def run(given: argparse.Namespace) -> Record:
    """Make the record of `gate_roc.json`.

    Raises:
        RMuseError: bad arguments, a missing file, a bundle without gates or for another model; before any long pass.
    """
    lens, benchmark = opened(given, given.forget)
    asked = {
        split: examples
        for split, examples in choose(benchmark, given.limit, given.seed).items()
        if split in TO_STEER | NOT_TO_STEER
    }
    bundle = None if given.bundle is None else bundle_of(given.bundle, lens, benchmark)
    if bundle is not None and not placed(bundle):
        raise RMuseError(
            f"{given.bundle}: a bundle with gates was required, got a plan that steers every query"
        )
    with working(given, lens, benchmark) as world:
        if bundle is None:
            host = world.preset("paper")
            learned, chosen = gates_of(world.evidence, given.seed)
            gates: Gates = {PAPER: host.gates, **learned}
        else:
            host, chosen = bundle, {}
            gates = {bundle.preset: placed(bundle)}
        everything = [e for examples in asked.values() for e in examples]
        scores = scored(lens, probes(host, gates), everything, given.batch_size, world.progress)
    rows = [
        {"gate": name, "modality": modality, "chosen": chosen.get(modality) == name}
        | row_of(gate, scores[name], asked, modality, benchmark, given.seed)
        for name, by_modality in gates.items()
        for modality, gate in by_modality.items()
    ]
    origin = {
        "bundle": None if bundle is None else bundle.report,
        "n": {split: len(examples) for split, examples in asked.items()},
        "resamples": RESAMPLES,
    }
    return world.record("rmuse-gate-roc/1", origin, tpr=TPR, rows=rows)


def placed(bundle: RMuse) -> dict[str, Gate]:
    """Kind of query → the gate of a bundle."""
    return {str(edit.modality): edit.gate for edit in bundle.plan if edit.gate is not None and edit.modality}


def who(example: Example) -> str:
    """The cluster of a query: its person; benign queries about a person form their own, one about nobody is its own."""
    if example.person is None:
        return example.id
    return f"benign {example.person}" if example.kind == "benign" else example.person


def row_of(
    gate: Gate,
    scores: Mapping[str, float],
    asked: Mapping[str, Sequence[Example]],
    modality: str,
    benchmark: Benchmark,
    seed: int,
) -> Record:
    """All measurements of one gate on its kind of query.

    Raises:
        RMuseError: one side has no query of this kind.
    """
    mine = {split: [e for e in examples if e.modality == modality] for split, examples in asked.items()}
    mine = {split: examples for split, examples in mine.items() if examples}
    hits = [e for split, examples in mine.items() if split in TO_STEER for e in examples]
    rest = [e for split, examples in mine.items() if split in NOT_TO_STEER for e in examples]
    if not hits or not rest:
        raise RMuseError(
            f"{benchmark.id}: {modality} queries to steer and to leave alone were required, got {len(hits)} and "
            f"{len(rest)}; raise --limit"
        )
    margin = {e.id: (scores[e.id] - gate.threshold) / gate.scale for e in (*hits, *rest)}

    def curve(first: Sequence[Example], second: Sequence[Example]) -> Curve:
        mine, others = ([margin[e.id] for e in side] for side in (first, second))
        people, other_people = ([who(e) for e in side] for side in (first, second))
        return operating_curve(mine, others, people, other_people, grid=GRID, seed=seed)

    whole = curve(hits, rest)
    fired = {split: fires(scores, {modality: gate}, examples) for split, examples in mine.items()}
    sides = [
        [decided for split, found in fired.items() if split in names for decided in found.values()]
        for names in (TO_STEER, NOT_TO_STEER)
    ]
    return {
        "layer": gate.layer,
        "readout": gate.readout,
        "kind": gate.kind,
        "threshold": short(gate.threshold),
        "scale": short(gate.scale),
        "expected": gate.expected,
        "n": list(whole.n),
        "people": list(whole.people),
        "auroc": area(whole),
        "fpr_at_tpr": percent(whole.fpr_at_tpr),
        "points": [[short(x), short(y)] for x, y in zip(whole.fpr.tolist(), whole.tpr.tolist(), strict=True)],
        "band": {
            "fpr": [short(x) for x in whole.grid.tolist()],
            "low": [short(y) for y in whole.band[0].tolist()],
            "high": [short(y) for y in whole.band[1].tolist()],
        },
        "operating": dict(zip(("tpr", "fpr"), (percent(wilson(sum(s), len(s))) for s in sides), strict=True)),
        "fire_rate": {split: rate(found) for split, found in fired.items()},
        "against": {
            split: area(curve(hits, mine[split])) | {"n": len(mine[split])}
            for split in mine
            if split in NOT_TO_STEER
        },
        "shuffled": dealt(margin, hits, rest, seed),
        "margins": {split: {e.id: short(margin[e.id]) for e in examples} for split, examples in mine.items()},
    }


def area(curve: Curve) -> Record:
    """An area under the curve as JSON."""
    return estimate(curve.auroc, *curve.auroc_interval)


def dealt(
    margin: Mapping[str, float],
    hits: Sequence[Example],
    rest: Sequence[Example],
    seed: int,
    deals: int = DEALS,
) -> Record:
    """Mean area and its 95 % range when people, each with all queries, are dealt to the two sides at random."""
    both = [*hits, *rest]
    people = {e.id: who(e) for e in both}
    names = sorted(set(people.values()))
    rng = np.random.default_rng(seed)
    areas = []
    for _ in range(deals):
        taken: set[str] = set()
        n = 0
        for name in rng.permutation(names)[:-1].tolist():  # one is left for the other side
            taken.add(name)
            n += sum(person == name for person in people.values())
            if n >= len(hits):
                break
        sides = (
            [margin[i] for i, person in people.items() if (person in taken) is mine] for mine in (True, False)
        )
        areas.append(auroc(*sides))
    low, high = interval(np.array(areas))
    return estimate(float(np.mean(areas)), low, high, deals=deals)


def show(record: Record) -> None:
    """Print area, false positives and operating point of every gate."""
    strict = f"FPR at {100 * record['tpr']:g} % TPR"
    headings = ("gate", "queries", "reads", "AUROC [95 %]", strict, "TPR", "FPR", "shuffled")
    rows = [
        (
            r["gate"] + " *" * r["chosen"],
            r["modality"],
            f"block {r['layer']}, {r['readout']}",
            around(r["auroc"], 3),
            around(r["fpr_at_tpr"], 1),
            around(r["operating"]["tpr"], 1),
            around(r["operating"]["fpr"], 1),
            around(r["shuffled"], 2),
        )
        for r in record["rows"]
    ]
    print_table("unseen queries; percent but for the area", headings, rows)
    print("*: chosen by `calibrated`")
