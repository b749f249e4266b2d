"""A sweep of the literal gate's threshold, and the operating curve of every kind of gate."""

import argparse
from collections.abc import Mapping, Sequence

import torch

from rmuse_interp.data import SPLITS, Example
from rmuse_interp.edits.plan import Plan
from rmuse_interp.runs.run import Answers, Method, choose
from rmuse_interp.studies.common import Record, answered, around, opened, print_table, short
from rmuse_interp.studies.fits import World, working
from rmuse_interp.studies.gated import Gates, composed, curve, fires, gates_of, probes, rate, scored
from rmuse_interp.studies.variants import Questions, rows_of

TAUS = tuple(round(0.02 * i, 2) for i in range(51))
LITERAL = "literal"


def run(given: argparse.Namespace) -> Record:
    """Make the record of `threshold_sweep.json`.

    Raises:
        RMuseError: bad arguments or a missing file, before the first long pass.
    """
    lens, benchmark = opened(given, given.forget)
    asked = choose(benchmark, given.limit, given.seed)
    known = choose(benchmark, max(given.limit, given.queries), given.seed)
    with working(given, lens, benchmark) as world:
        fitted = world.preset("paper")
        learned, chosen = gates_of(world.evidence, given.seed)
        gates: Gates = {LITERAL: fitted.gates, **learned}
        plan = fitted.plan
        methods = [Method("vanilla", lens), Method("open", lens, plan.without("*.gate"))]
        answers = answered(given, "threshold_sweep", methods, asked, benchmark, world.progress)
        literal = probes(fitted, {LITERAL: fitted.gates})
        # Over the answered questions alone: the same batches, so bit-identical scores.
        own = scored(lens, literal, flat(asked), given.batch_size)[LITERAL]
        scores = scored(lens, probes(fitted, gates), flat(known), given.batch_size, world.progress)
    sizes = {"n": asked, "n_gates": known}
    return world.record(
        "rmuse-threshold-sweep/1",
        {key: {split: len(some) for split, some in found.items()} for key, found in sizes.items()},
        tau=short(-next(iter(fitted.gates.values())).threshold),
        alignment=[alignment(split, examples, scores[LITERAL]) for split, examples in known.items()],
        sweep=sweep(world, plan, known, asked, scores[LITERAL], own, answers),
        gates=[curve(name, gates[name], scores[name], known, chosen, given.seed) for name in gates],
    )


def flat(questions: Questions) -> list[Example]:
    """The questions of all splits."""
    return [example for examples in questions.values() for example in examples]


def alignment(split: str, examples: Sequence[Example], scores: Mapping[str, float]) -> Record:
    """`s_gate` of a split: its 5 %, 50 % and 95 % quantiles."""
    values = torch.tensor([-scores[e.id] for e in examples], dtype=torch.float64)
    q05, q50, q95 = (short(float(values.quantile(q))) for q in (0.05, 0.5, 0.95))
    return {"split": split, "n": len(examples), "q05": q05, "q50": q50, "q95": q95}


def sweep(
    world: World,
    plan: Plan,
    known: Questions,
    asked: Questions,
    scores: Mapping[str, float],
    own: Mapping[str, float],
    answers: Answers,
) -> list[Record]:
    """One entry per τ: firing rates on all queries, and scores of the answers composed for it."""
    plain, steered = ([t for t in answers.transcripts if t.method == name] for name in ("vanilla", "open"))
    measured: dict[frozenset[str], list[Record]] = {}
    found = []
    for tau in TAUS:
        gated = at_tau(plan, tau)
        gates = Method("", world.lens, gated).gates
        fired = fires(own, gates, flat(asked))
        key = frozenset(i for i, open_ in fired.items() if open_)
        if key not in measured:
            method = Method("paper", world.lens, gated)
            said = Answers(composed("paper", steered, plain, fired))
            rows = rows_of([method], said, world.benchmark, world.lens, world.given.seed)
            measured[key] = [{k: v for k, v in row.items() if k not in ("method", "gated")} for row in rows]
        rates = {split: rate(fires(scores, gates, examples)) for split, examples in known.items()}
        found.append({"tau": tau, "fire_rate": rates, "rows": measured[key]})
    return found


def at_tau(plan: Plan, tau: float) -> Plan:
    """The preset `paper` with another τ for all kinds of query."""
    changes = {f"{edit.name}.gate": edit.gate.at_threshold(-tau) for edit in plan if edit.gate is not None}
    return plan.replace(**changes)


def show(record: Record) -> None:
    """Print firing rates of the literal gate at some τ, and of every gate at its own threshold."""
    shown = (0.3, 0.6, 0.7, 0.8, 0.9, 1.0)
    swept = [row for row in record["sweep"] if row["tau"] in shown]
    rows = [(f"literal, τ = {row['tau']}", "", *cells(row["fire_rate"])) for row in swept]
    for row in record["gates"]:
        area = "–" if row["auroc"] is None else around(row["auroc"], 3)
        rows.append((row["gate"] + " *" * bool(row["chosen_for"]), area, *cells(row["fire_rate"])))
    headings = ("gate", "AUROC [95 %]", *(split.replace("_", "\n") for split in SPLITS))
    print_table("percent of the queries a gate fires on", headings, rows)
    chosen = [f"{', '.join(r['chosen_for'])}: {r['gate']}" for r in record["gates"] if r["chosen_for"]]
    print("*: chosen by `calibrated` for " + "; ".join(chosen))


def cells(rates: Record) -> list[str]:
    """Firing rates as cells of the table."""
    return [f"{rates[split]['value']:.1f}" if split in rates else "–" for split in SPLITS]
