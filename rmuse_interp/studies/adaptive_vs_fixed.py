"""Adaptive against fixed strength of the literal steering, behind two gates, at several forget rates."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example, load_benchmark, sample
from rmuse_interp.edits.plan import Plan
from rmuse_interp.evaluate.metrics import OPEN_KINDS
from rmuse_interp.fitting.collect import Query, pooled_states
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.method.rmuse import calibrated_gate
from rmuse_interp.operators import SlerpToward
from rmuse_interp.parts.angle import FixedFraction
from rmuse_interp.parts.gates import Gate
from rmuse_interp.runs.run import Answers, Method
from rmuse_interp.studies.common import Record, answered, opened, short
from rmuse_interp.studies.fits import World, working
from rmuse_interp.studies.gated import Gates, composed, fires, probes, scored
from rmuse_interp.studies.variants import Questions, rows_of, tabulate

ADAPTIVE = "ACS"
FRACTIONS = tuple(round(0.1 * i, 1) for i in range(1, 11))
COLUMNS = (
    ("test", "ril"),
    ("test", "malformed_rate"),
    *(("retain_test", name) for name in ("exact", "malformed_rate", "fire_rate")),
)
SPLITS_ASKED = ("test", "retain_test", "reasoning")


def run(given: argparse.Namespace) -> Record:
    """Make the record of `adaptive_vs_fixed.json`.

    Raises:
        RMuseError: bad arguments or a missing file, before the first long pass.
    """
    for λ in given.fractions:
        FixedFraction(λ)  # raises for a λ out of range
    lens, first = opened(given, given.forget[0])
    benchmarks = [first, *(load_benchmark(given.data, forget=rate) for rate in given.forget[1:])]
    asked = {benchmark.forget_rate: questions_of(benchmark, given) for benchmark in benchmarks}
    rows: list[Record] = []
    acs: list[Record] = []
    with working(given, lens, first) as world:
        for benchmark in benchmarks:
            rate = {"forget": benchmark.forget_rate}
            found, strengths = at_rate(replace(world, benchmark=benchmark), asked[benchmark.forget_rate])
            rows += [rate | row for row in found]
            acs += [rate | row for row in strengths]
    n = {str(rate): {split: len(some) for split, some in q.items()} for rate, q in asked.items()}
    origin = {"forget": list(given.forget), "n": n}
    return world.record("rmuse-adaptive-vs-fixed/1", origin, acs=acs, rows=rows)


def questions_of(benchmark: Benchmark, given: argparse.Namespace) -> dict[str, list[Example]]:
    """The open questions of the requested splits: leakage and exact answers are defined on those alone.

    Raises:
        RMuseError: none of the splits has an open question.
    """
    found = {}
    for split in given.splits:
        some = sample([e for e in benchmark.scoring(split) if e.kind in OPEN_KINDS], given.limit, given.seed)
        benchmark.check_images(some)
        if some:
            found[split] = some
    if not found:
        raise RMuseError(
            f"open questions in {', '.join(given.splits)} were required, got none; change --splits"
        )
    return found


def at_rate(world: World, questions: Questions) -> tuple[list[Record], list[Record]]:
    """Rows of every strength and gate at one forget rate, and rows of the λ that ACS chooses."""
    given, lens, benchmark, fitted = world.given, world.lens, world.benchmark, world.preset("paper")
    gates: Gates = {
        "paper": fitted.gates,
        "calibrated": {m: calibrated_gate(one).gate for m, one in world.evidence.items()},
    }
    ungated = fitted.plan.without("*.gate")
    plans = {ADAPTIVE: ungated} | {
        f"{λ:g}": ungated.replace(**{"*.angle": FixedFraction(λ)}) for λ in given.fractions
    }
    rate, everything = benchmark.forget_rate, [e for examples in questions.values() for e in examples]
    methods = [
        Method(f"{rate}/vanilla", lens),
        *(Method(f"{rate}/{name}", lens, plan) for name, plan in plans.items()),
    ]
    answers = answered(given, "adaptive_vs_fixed", methods, questions, benchmark, world.progress)
    by_method = {m.name: [t for t in answers.transcripts if t.method == m.name] for m in methods}
    scores = scored(lens, probes(fitted, gates), everything, given.batch_size, world.progress)
    plain = by_method[f"{rate}/vanilla"]
    rows: list[Record] = [
        {"gate": None, "strength": "vanilla"} | row
        for row in rows_of(methods[:1], Answers(plain), benchmark, lens, given.seed)
    ]
    for gate, by_modality in gates.items():
        fired = fires(scores[gate], by_modality, everything)
        for name, plan in plans.items():
            method = Method(f"{gate}/{name}", lens, gated(plan, by_modality))
            said = composed(method.name, by_method[f"{rate}/{name}"], plain, fired)
            found = rows_of([method], Answers(said), benchmark, lens, given.seed)
            rows += [{"gate": gate, "strength": name} | row for row in found]
    return rows, strengths_of(lens, fitted.plan, everything, given)


def gated(plan: Plan, gates: Mapping[str, Gate]) -> Plan:
    """The plan behind these gates, one per kind of query."""
    return Plan([edit.when(gates[str(edit.modality)]) for edit in plan], plan.fingerprint)


def strengths_of(
    lens: LensModel, plan: Plan, examples: Sequence[Example], given: argparse.Namespace
) -> list[Record]:
    """λ of ACS at the last prompt token and the lowest steered block: median, 5 % and 95 % quantiles."""
    found = []
    for edit in plan:
        layer = min(edit.layers)
        turn = edit.operator_at(layer)
        queries = [Query(e.id, e.prompt(), e.image) for e in examples if e.modality == edit.modality]
        if not queries or not isinstance(turn, SlerpToward):
            continue
        states = pooled_states(lens, queries, ["last"], layers=[layer], batch_size=given.batch_size)[
            "last"
        ].at(layer)
        goal = turn.toward * (states @ turn.direction).sign().unsqueeze(1)
        λ = turn.angle.fraction(states, goal)
        q05, q50, q95 = (short(float(λ.quantile(q))) for q in (0.05, 0.5, 0.95))
        found.append(
            {"modality": edit.modality, "layer": layer, "n": len(queries), "q05": q05, "q50": q50, "q95": q95}
        )
    return found


def show(record: Record) -> None:
    """Print RIL on the people to forget beside what is kept about everybody else."""

    def labels(row: Record) -> list[str]:
        return [str(row["forget"]), row["gate"] or "–", row["strength"]]

    tabulate("percent, greedy answers", record["rows"], ("forget %", "gate", "λ"), labels, COLUMNS)
