"""Token-level transport at the calibrated plan's blocks, with fewer refusal prototypes."""

import argparse
from collections.abc import Mapping

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark
from rmuse_interp.edits.plan import Modality, Plan
from rmuse_interp.method.rmuse import Evidence, RMuse, calibrated_edit
from rmuse_interp.operators import Transport
from rmuse_interp.runs.run import choose
from rmuse_interp.studies.ablations import steered
from rmuse_interp.studies.common import Record
from rmuse_interp.studies.fits import World
from rmuse_interp.studies.variants import Prepared, Questions, Variant, operators_of, study, tabulate

CAPS = (8, 16, 32, 64, 128, 256, 512)
SPLITS_ASKED = ("forget", "test", "retain_test")
COLUMNS = (
    ("forget", "ril"),
    *(("test", name) for name in ("ril", "refusal_rate", "malformed_rate", "repetition_rate")),
    ("retain_test", "exact"),
)


def run(given: argparse.Namespace) -> Record:
    """Make the record of `prototype_cap.json`.

    Raises:
        RMuseError: bad arguments or a missing file, before the first long pass.
    """
    if min(given.caps) < 1:
        raise RMuseError(f"--caps of at least 1 were required, got {min(given.caps)}")

    def asked(benchmark: Benchmark) -> Questions:
        found = choose(benchmark, given.limit, given.seed)
        return {split: some for split, some in found.items() if split in given.splits}

    def prepare(world: World) -> Prepared:
        plan = by_step(world.preset("calibrated"), world.evidence)
        most = max(counts(plan).values())
        plans: dict[int | str, Plan] = {
            cap: capped(plan, cap, given.seed) for cap in sorted(set(given.caps)) if cap < most
        }
        plans["all"] = plan
        found = [Variant(f"cap-{cap}", one, {"cap": cap, "kept": counts(one)}) for cap, one in plans.items()]
        vanilla = Variant("vanilla", None, {"cap": None, "kept": None})
        return Prepared([vanilla, *found], {"prototypes": counts(plan)})

    return study("prototype_cap", given, asked, prepare)


def by_step(fitted: RMuse, evidence: Mapping[Modality, Evidence]) -> Plan:
    """A fitted plan's gates and blocks, with transport to the nearest refusal state of the same step."""
    edits = {
        m: calibrated_edit(found, m, steered(fitted.plan, m), fitted.gates[m])[0]
        for m, found in evidence.items()
    }
    return fitted.plan.replace(**edits)


def transports(plan: Plan) -> dict[str, Transport]:
    """Address → each operator of a plan that moves states to prototypes.

    Raises:
        RMuseError: the plan has none.
    """
    found = {address: one for address, one in operators_of(plan).items() if isinstance(one, Transport)}
    if not found:
        raise RMuseError("a plan with a transport to prototypes was required, got none; cap `calibrated`")
    return found


def counts(plan: Plan) -> dict[str, int]:
    """Address of each transport → its number of prototypes."""
    return {address: len(operator.points) for address, operator in transports(plan).items()}


def capped(plan: Plan, cap: int, seed: int = 0) -> Plan:
    """The same plan with at most `cap` prototypes in each transport."""
    return plan.replace(**{address: one.capped(cap, seed) for address, one in transports(plan).items()})


def show(record: Record) -> None:
    """Print what is answered about the people to forget, one line per cap."""

    def labels(row: Record) -> list[str]:
        kept = dict.fromkeys((row["kept"] or {}).values())
        return [str(row["cap"] or "vanilla"), ", ".join(map(str, kept)) or "–"]

    tabulate("percent, greedy answers", record["rows"], ("cap", "kept"), labels, COLUMNS)
