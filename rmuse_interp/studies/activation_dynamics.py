"""Where steering moves retain and forget states, and tests of the displacement."""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example, sample
from rmuse_interp.diagnostics.dynamics import (
    PERMUTATIONS,
    along,
    approach,
    displacement,
    shuffled,
    side_test,
    state_plane,
)
from rmuse_interp.diagnostics.steered import States, Steered, steered
from rmuse_interp.edits.plan import Edit, Modality, Plan
from rmuse_interp.fitting.collect import Query
from rmuse_interp.maths.statistics import clustered
from rmuse_interp.method.rmuse import PRESETS, RMuse
from rmuse_interp.operators import Follow, Operator
from rmuse_interp.studies.common import Record, around, opened, print_table, short
from rmuse_interp.studies.fits import World, working
from rmuse_interp.studies.updates import unsteered

SIDES = {"forget": "test", "retain": "retain_test"}
"""Side → the split that its queries come from."""


@dataclass(frozen=True, eq=False)
class Asked:
    """The queries of one kind, forget side first, and the person that each is about."""

    modality: Modality
    queries: list[Query]
    people: dict[str, str]
    forget: set[str]
    plain: States = field(default_factory=dict)


def run(given: argparse.Namespace) -> Record:
    """Make the record of `activation_dynamics.json`.

    Raises:
        RMuseError: bad arguments, a missing file, too few people, a bundle for another model; before the first long pass.
    """
    lens, benchmark = opened(given, given.forget)
    outside = [layer for layer in given.layers or [] if not 0 <= layer < lens.n_layers]
    if outside:
        raise RMuseError(f"--layers within 0..{lens.n_layers - 1} were required, got {outside}")
    asked = [
        one for m in ("image", "text") if (one := asked_of(benchmark, m, given.limit, given.seed)).queries
    ]
    if not asked:
        raise RMuseError(
            f"{benchmark.id}: open questions about at least 2 people on each side were required in the splits "
            f"{', '.join(SIDES.values())}, got none; raise --limit or --forget"
        )
    rows: list[Record] = []
    with working(given, lens, benchmark) as world:
        fitted = world.presets(PRESETS)
        for one in asked:
            one.plain.update(unsteered(world, one.queries))
            for preset, rmuse in fitted.items():
                rows += rows_of(preset, rmuse, one, world)
    sizes = {one.modality: (len(one.forget), len(one.queries)) for one in asked}
    origin = {
        "bundle": None if given.bundle is None else next(iter(fitted.values())).report,
        "layers": {name: {e.modality or "any": list(e.layers) for e in r.plan} for name, r in fitted.items()},
        "n": {kind: {"forget": few, "retain": n - few} for kind, (few, n) in sizes.items()},
        "permutations": PERMUTATIONS,
    }
    return world.record("rmuse-activation-dynamics/1", origin, rows=rows)


def asked_of(benchmark: Benchmark, modality: Modality, limit: int, seed: int) -> Asked:
    """Open questions of both sides with their reference responses; empty if a side has fewer than two people."""
    sides: dict[str, list[Example]] = {}
    for side, split in SIDES.items():
        mine = [e for e in benchmark.scoring(split) if e.modality == modality and e.kind == "generation"]
        sides[side] = sample([e for e in mine if e.reasoning is not None], limit, seed)
        benchmark.check_images(sides[side])
    if any(len({e.person for e in some}) < 2 for some in sides.values()):
        return Asked(modality, [], {}, set())
    both = [e for some in sides.values() for e in some]
    queries = [Query(e.id, e.prompt(), e.image, e.response(benchmark.delimiters)) for e in both]
    return Asked(modality, queries, {e.id: str(e.person) for e in both}, {e.id for e in sides["forget"]})


def rows_of(preset: str, fitted: RMuse, asked: Asked, world: World) -> list[Record]:
    """One row per block; empty if the plan does not steer this kind of query."""
    edits = [edit for edit in fitted.plan if edit.modality in (None, asked.modality)]
    if not edits:
        return []
    given, lens = world.given, world.lens

    def run_plan(plan: Plan, label: str) -> Steered:
        settings = {"batch_size": given.batch_size, "progress": world.progress}
        return steered(lens, plan, asked.queries, label=f"{preset}, {asked.modality}: {label}", **settings)

    found = run_plan(Plan(edits, fitted.plan.fingerprint), "steered")
    shut = run_plan(Plan([closed(edit) for edit in edits], fitted.plan.fingerprint), "gates closed")
    lowest = min(min(edit.layers) for edit in edits)
    layers = given.layers or range(lowest, lens.n_layers)
    return [
        {"preset": preset, "modality": asked.modality, "layer": layer}
        | row_of(layer, asked, found, shut, fitted, edits, given.seed)
        for layer in layers
    ]


def closed(edit: Edit) -> Edit:
    """The edit behind a gate that never fires: the negative control."""
    return edit if edit.gate is None else edit.when(edit.gate.at_threshold(sys.float_info.max), edit.per)


def row_of(
    layer: int, asked: Asked, found: Steered, shut: Steered, fitted: RMuse, edits: Sequence[Edit], seed: int
) -> Record:
    """All measurements at one block."""
    before, after = asked.plain[layer], found.after[layer]
    moved = {name: displacement(h, after[name]) for name, h in before.items()}
    means = {name: h.mean(dim=0) for name, h in before.items()}
    plane = state_plane(torch.stack(list(means.values())))
    places = [
        plane.place(torch.stack([side[name].mean(dim=0) for name in before])).tolist()
        for side in (before, after)
    ]
    test = side_test(moved, asked.forget, asked.people, seed=seed)
    dealt = side_test(moved, shuffled(asked.people, asked.forget, seed), asked.people, seed=seed)
    left = [moved[name] for name, fired in found.fired.items() if fired is False]
    row: Record = {
        "steered": any(layer in edit.layers for edit in edits),
        "explained": [short(share) for share in plane.explained],
        "displaced": by_side(moved, asked, seed),
        "test": rounded(asdict(test)),
        "shuffled": rounded(asdict(dealt)),
        "fired": {
            side: sum(found.fired[i] is not False for i in ids) for side, ids in sides_of(asked).items()
        },
        "closed": {
            "n": len(left),
            "most": max(left, default=None),
            "control_n": len(before),
            "control_most": max(displacement(h, shut.after[layer][name]) for name, h in before.items()),
        },
        "along": None,
        "approach": None,
        "points": {
            name: {
                "side": "forget" if name in asked.forget else "retain",
                "fired": found.fired[name] is not False,
                "displaced": short(moved[name]),
                "before": [short(v) for v in start],
                "after": [short(v) for v in end],
            }
            for name, start, end in zip(before, *places, strict=True)
        },
    }
    edit = next((edit for edit in edits if layer in edit.layers), None)
    if edit is not None:
        unlearning, _ = fitted.subspaces.at(asked.modality, layer)
        sign = 1.0 if unlearning.alignment >= 0 else -1.0
        cosines = {name: along(h, after[name], sign * unlearning.direction) for name, h in before.items()}
        row["along"] = by_side({name: c for name, c in cosines.items() if c is not None}, asked, seed)
        points = prototypes_of(edit.operator_at(layer))
        if points is not None:
            nearer = {n: math.degrees(approach(h, after[n], points)) for n, h in before.items()}
            row["approach"] = by_side(nearer, asked, seed)
    return row


def prototypes_of(operator: Operator | None) -> torch.Tensor | None:
    """The refusal prototypes of a transport, or of the ACS of a rotation; the states of refusals that are followed."""
    if isinstance(operator, Follow):
        return torch.cat(
            [line[:n] for line, n in zip(operator.points, operator.lengths.tolist(), strict=True)]
        )
    points = getattr(operator, "points", None)
    return getattr(getattr(getattr(operator, "angle", None), "prototypes", None), "points", points)


def sides_of(asked: Asked) -> dict[str, list[str]]:
    """Side → the ids of its queries."""
    return {side: [i for i in asked.people if (i in asked.forget) is (side == "forget")] for side in SIDES}


def by_side(values: Mapping[str, float], asked: Asked, seed: int) -> Record:
    """Mean of each side with its interval; None if a side has no value."""
    found: Record = {}
    for side, ids in sides_of(asked).items():
        mine = {name: values[name] for name in ids if name in values}
        if not mine:
            found[side] = None
            continue
        mean = clustered([*mine.values()], [asked.people[i] for i in mine], seed=seed)
        found[side] = {
            "value": short(mean.value),
            "low": short(mean.low),
            "high": short(mean.high),
            "n": mean.n,
        }
    return found


def rounded(values: Record) -> Record:
    """A result with every float, those in pairs too, rounded to six digits."""

    def of(value: object) -> object:
        return short(value) if isinstance(value, float) else value

    return {k: [of(one) for one in v] if isinstance(v, tuple) else of(v) for k, v in values.items()}


def show(record: Record) -> None:
    """Print the displacement of both sides and its test, for every block."""
    headings = ("preset", "queries", "block", "forget", "retain", "p", "p shuffled", "gate closed: most")
    rows = []
    for r in record["rows"]:
        sides = (around(cell, 2, 100.0) for cell in r["displaced"].values())
        chances = (f"{r['test']['p']:.4f}", f"{r['shuffled']['p']:.2f}")
        most = "–" if r["closed"]["most"] is None else f"{r['closed']['most']:g} of {r['closed']['n']}"
        place = (r["preset"], r["modality"], str(r["layer"]) + " *" * r["steered"])
        rows.append((*place, *sides, *chances, most))
    print_table("displacement in percent of the state's length, mean [95 %]", headings, rows)
    print("*: steered")
