"""Where steering moves retain and forget states, and tests of the displacement."""

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

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
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.maths.statistics import clustered
from rmuse_interp.method.rmuse import PRESETS, RMuse
from rmuse_interp.operators import Operator
from rmuse_interp.studies.common import Record, bars, opened, provenance, short
from rmuse_interp.studies.fits import presets_of
from rmuse_interp.studies.updates import unsteered

SCHEMA = "rmuse-activation-dynamics/1"
STEM = "activation_dynamics"
SIDES = {"forget": "test", "retain": "retain_test"}
"""Side → split that its queries are taken from."""


@dataclass(frozen=True, eq=False)
class Asked:
    """The queries of one kind: forget side first, each with whom it is about."""

    modality: Modality
    queries: list[Query]
    people: dict[str, str]
    forget: set[str]
    plain: States = field(default_factory=dict)


def run(given: argparse.Namespace) -> Record:
    """The whole record of `activation_dynamics.json`.

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
    began = time.monotonic()
    rows: list[Record] = []
    with bars() as progress:
        fitted = presets_of(given, lens, benchmark, PRESETS, progress)
        for one in asked:
            one.plain.update(unsteered(lens, one.queries, benchmark.delimiters, given, progress))
            for preset, rmuse in fitted.items():
                rows += rows_of(preset, rmuse, one, lens, given, progress)
    return {
        "schema": SCHEMA,
        "provenance": provenance(
            given,
            lens,
            benchmark,
            began,
            bundle=None if given.bundle is None else next(iter(fitted.values())).report,
            layers={
                preset: {e.modality or "any": list(e.layers) for e in r.plan} for preset, r in fitted.items()
            },
            n={
                one.modality: {"forget": len(one.forget), "retain": len(one.queries) - len(one.forget)}
                for one in asked
            },
            permutations=PERMUTATIONS,
        ),
        "rows": rows,
    }


def asked_of(benchmark: Benchmark, modality: Modality, limit: int, seed: int) -> Asked:
    """Open questions of both sides with their reference responses; none where a side has fewer than two people."""
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


def rows_of(
    preset: str, fitted: RMuse, asked: Asked, lens: LensModel, given: argparse.Namespace, progress: Progress
) -> list[Record]:
    """One row per block; none where the plan does not steer this kind of query."""
    edits = [edit for edit in fitted.plan if edit.modality in (None, asked.modality)]
    if not edits:
        return []

    def run_plan(plan: Plan, label: str) -> Steered:
        label = f"{preset}, {asked.modality}: {label}"
        return steered(lens, plan, asked.queries, batch_size=given.batch_size, progress=progress, label=label)

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
    """The edit behind a gate that fires on nothing: the negative control."""
    return edit if edit.gate is None else edit.when(edit.gate.at_threshold(math.inf), edit.per)


def row_of(
    layer: int, asked: Asked, found: Steered, shut: Steered, fitted: RMuse, edits: Sequence[Edit], seed: int
) -> Record:
    """All that is measured at one block."""
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
    """The refusal prototypes that an operator steers to: of a transport, or of the ACS of a rotation."""
    points = getattr(operator, "points", None)
    return getattr(getattr(getattr(operator, "angle", None), "prototypes", None), "points", points)


def sides_of(asked: Asked) -> dict[str, list[str]]:
    """Ids of each side."""
    return {side: [i for i in asked.people if (i in asked.forget) is (side == "forget")] for side in SIDES}


def by_side(values: Mapping[str, float], asked: Asked, seed: int) -> Record:
    """Mean of each side with its interval; None where a side has no value."""
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


def rounded(value: Any) -> Any:
    """A result with every float at six digits."""
    apply: Callable[[Any], Any] = rounded
    if isinstance(value, Mapping):
        return {name: apply(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [apply(one) for one in value]
    return short(value) if isinstance(value, float) else value


def show(record: Record) -> None:
    """Displacement of both sides and its test, at every block."""
    table = Table(title="displacement in percent of the state's length, mean [95 %]", box=None)
    for heading in ("preset", "queries", "block", "forget", "retain", "p", "p shuffled", "gate closed: most"):
        table.add_column(heading, no_wrap=True)
    for r in record["rows"]:
        sides = (
            f"{100 * c['value']:.2f} \\[{100 * c['low']:.2f}, {100 * c['high']:.2f}]"
            for c in r["displaced"].values()
        )
        most = "–" if r["closed"]["most"] is None else f"{r['closed']['most']:g} of {r['closed']['n']}"
        table.add_row(
            r["preset"],
            r["modality"],
            str(r["layer"]) + " *" * r["steered"],
            *sides,
            f"{r['test']['p']:.4f}",
            f"{r['shuffled']['p']:.2f}",
            most,
        )
    Console(width=max(120, Console().width)).print(table)
    print("*: steered")
