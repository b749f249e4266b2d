"""The calibrated plan with fewer refusal prototypes."""

import argparse
import time

from rich.console import Console
from rich.table import Table

from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Plan
from rmuse_interp.operators import Transport
from rmuse_interp.runs.run import Method, choose
from rmuse_interp.studies.common import (
    Record,
    answered,
    bars,
    opened,
    operators_of,
    provenance,
    rows_of,
)
from rmuse_interp.studies.fits import evidence_of, preset_of

SCHEMA = "rmuse-prototype-cap/1"
STEM = "prototype_cap"
CAPS = (8, 16, 32, 64, 128, 256, 512)
SPLITS_ASKED = ("forget", "test", "retain_test")


def run(given: argparse.Namespace) -> Record:
    """The whole record of `prototype_cap.json`.

    Raises:
        RMuseError: bad arguments or a missing file, before the first long pass.
    """
    if min(given.caps) < 1:
        raise RMuseError(f"--caps of at least 1 were required, got {min(given.caps)}")
    lens, benchmark = opened(given, given.forget)
    questions = {s: v for s, v in choose(benchmark, given.limit, given.seed).items() if s in given.splits}
    began = time.monotonic()
    with bars() as progress:
        evidence = evidence_of(given, lens, benchmark, progress)
        plan = preset_of(given, lens, benchmark, evidence, "calibrated", progress).plan
        most = max(counts(plan).values())
        plans = {cap: capped(plan, cap, given.seed) for cap in sorted(set(given.caps)) if cap < most}
        # 0 stands for no cap: a key in JSON that sorts and draws apart.
        plans[0] = plan
        methods = [
            Method("vanilla", lens),
            *(Method(f"cap-{cap or 'all'}", lens, p) for cap, p in plans.items()),
        ]
        answers = answered(given, STEM, methods, questions, benchmark, progress)
    labels: dict[str, Record] = {"vanilla": {"cap": None, "kept": None}}
    for cap, some in plans.items():
        labels[f"cap-{cap or 'all'}"] = {"cap": cap or "all", "kept": counts(some)}
    return {
        "schema": SCHEMA,
        "provenance": provenance(
            given, lens, benchmark, began, n={split: len(asked) for split, asked in questions.items()}
        ),
        "prototypes": counts(plan),
        "rows": [
            labels[row["method"]] | row for row in rows_of(methods, answers, benchmark, lens, given.seed)
        ],
    }


def transports(plan: Plan) -> dict[str, Transport]:
    """The operators of a plan that move states to prototypes, by address.

    Raises:
        RMuseError: a plan without any.
    """
    found = {address: one for address, one in operators_of(plan).items() if isinstance(one, Transport)}
    if not found:
        raise RMuseError("a plan with a transport to prototypes was required, got none; cap `calibrated`")
    return found


def counts(plan: Plan) -> dict[str, int]:
    """Address of each transport → how many prototypes it has."""
    return {address: len(operator.points) for address, operator in transports(plan).items()}


def capped(plan: Plan, cap: int, seed: int = 0) -> Plan:
    """The same plan with at most `cap` prototypes in each transport."""
    return plan.replace(**{address: one.capped(cap, seed) for address, one in transports(plan).items()})


def show(record: Record) -> None:
    """What is said to questions about the people to forget, per cap."""
    columns = (
        ("forget", "ril"),
        ("test", "ril"),
        ("test", "refusal_rate"),
        ("test", "malformed_rate"),
        ("test", "repetition_rate"),
        ("retain_test", "exact"),
    )
    table = Table(title="percent, greedy answers", box=None)
    for heading in ("cap", "kept", *(f"{split}\n{name.removesuffix('_rate')}" for split, name in columns)):
        table.add_column(heading, no_wrap=True)
    cells = {(str(r["cap"]), r["split"]): r for r in record["rows"]}
    kept = {
        str(r["cap"]): ", ".join(map(str, dict.fromkeys((r["kept"] or {}).values()))) for r in record["rows"]
    }
    for cap in kept:
        found = (cells.get((cap, split), {}).get(name) for split, name in columns)
        values = ("–" if v is None else f"{v['value']:.1f}" for v in found)
        table.add_row("vanilla" if cap == "None" else cap, kept[cap] or "–", *values)
    Console(width=max(110, Console().width)).print(table)
