"""Steering relative to the RRS: geometry, updates, and their stability over resamples."""

import argparse
import math
from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, load_benchmark, sample
from rmuse_interp.diagnostics import direction_overlap, random_share, subspace_overlap
from rmuse_interp.diagnostics.stability import stability
from rmuse_interp.edits.plan import Modality, Plan
from rmuse_interp.fitting import check
from rmuse_interp.fitting.collect import Query
from rmuse_interp.lens.lens import load_model
from rmuse_interp.method.refits import Side, sides_at
from rmuse_interp.method.rmuse import PRESETS, Evidence, RMuse, calibrated_edit, paper_edit, together
from rmuse_interp.studies.common import MODALITIES, Record, around, places, print_table, short, steered_blocks
from rmuse_interp.studies.fits import World, bundle_of, working
from rmuse_interp.studies.updates import Case, pair, unsteered, updates_of

RANGE = (0.025, 0.5, 0.975)


def run(given: argparse.Namespace) -> Record:
    """Make the record of `orthogonality.json`.

    Raises:
        RMuseError: bad arguments, a missing file, a bundle for another model; all before the first long pass.
    """
    own = None if given.bundle is None else RMuse.load(given.bundle).report.get("benchmark", {}).get("forget")
    benchmark = load_benchmark(given.data, forget=int(given.forget or own or 5))
    queries: dict[Modality, list[Query]] = {
        kind: reasoning_queries(benchmark, kind, given.limit, given.seed) for kind in MODALITIES
    }
    if not any(queries.values()):
        raise RMuseError(
            f"{given.data}: the test file of Reasoning was required for held-out queries, got none"
        )
    lens = load_model(given.model, device=given.device, dtype=given.dtype)
    bundle = None if given.bundle is None else bundle_of(given.bundle, lens, benchmark)
    if bundle is None:
        check(lens, benchmark)
    with working(given, lens, benchmark) as world:
        if bundle is None:
            cases = fitted(world)
            stable, missing = resampled(world, cases)
        else:
            cases, stable = [Case(bundle.preset, bundle, bundle)], []
            missing = {
                "all": "the states of the fit are needed, which a bundle does not hold; leave --bundle out"
            }
        geometry = [row for case in cases for row in geometry_of(case)]
        updates: list[Record] = []
        for modality, asked in queries.items():
            plain = unsteered(world, asked) if asked else {}
            for case in cases if asked else []:
                updates += updates_of(world, case, modality, asked, plain)
    origin = {
        "bundle": None if bundle is None else bundle.report,
        "layers": {case.preset: steered_blocks(case.fitted.plan) for case in cases},
        "fit_limit": None if bundle else given.fit_limit,
        "n": {kind: len(asked) for kind, asked in queries.items()},
        "resamples": None if bundle else given.resamples,
    }
    found = {"geometry": geometry, "stability": stable, "not_resampled": missing, "updates": updates}
    return world.record("rmuse-orthogonality/2", origin, **found)


def fitted(world: World) -> list[Case]:
    """Both presets, fitted on the same evidence."""
    cases = []
    n_layers, prefix = world.lens.n_layers, world.benchmark.prefixes[0]
    for preset in PRESETS:
        own = world.preset(preset)
        cases.append(Case(preset, everywhere(own, world.evidence, n_layers, prefix), own))
    return cases


def everywhere(own: RMuse, evidence: Mapping[Modality, Evidence], n_layers: int, prefix: str) -> RMuse:
    """The same method at every block, with its own gates: choosing gates anew would take longer than all the rest."""
    blocks = range(n_layers)
    parts = [
        paper_edit(one, modality, blocks, prefix)
        if own.preset == "paper"
        else calibrated_edit(one, modality, blocks, own.gates[modality])
        for modality, one in evidence.items()
    ]
    found = together(parts, own.report)
    return RMuse(Plan(list(found.plan), own.plan.fingerprint), found.subspaces, own.report)


def reasoning_queries(benchmark: Benchmark, modality: str, limit: int, seed: int) -> list[Query]:
    """Held-out reasoning questions with their reference responses."""
    held_out = [
        e for e in benchmark.scoring("reasoning") if e.modality == modality and e.reasoning is not None
    ]
    delimiters = benchmark.delimiters
    return [Query(e.id, e.prompt(), e.image, e.response(delimiters)) for e in sample(held_out, limit, seed)]


def geometry_of(case: Case) -> list[Record]:
    """Angles, kernel and dot products at every fitted block."""
    rows = []
    for modality, layer in places(case.everywhere):
        unlearning, retain = case.everywhere.subspaces.at(modality, layer)
        rrs = retain.subspace
        overlap = subspace_overlap(unlearning.subspace, rrs)
        cleared = rrs.remove(unlearning.direction)
        sides = {"before": unlearning.direction} | (
            {"after": cleared} if float(cleared.norm()) > 1e-5 else {}
        )
        direction: Record = {"null": {**pair(random_share(rrs.d, rrs.rank)), "dot_sd": rrs.d**-0.5}}
        for side, vector in sides.items():
            lies = direction_overlap(vector, rrs)
            direction[side] = {"share": short(lies.share), "dots": [short(v) for v in lies.dots.tolist()]}
        rows.append(
            {
                "preset": case.preset,
                "modality": modality,
                "layer": layer,
                "d": rrs.d,
                "rank_unlearning": unlearning.rank,
                "rank_rrs": rrs.rank,
                "angles_degrees": [short(v) for v in overlap.angles.rad2deg().tolist()],
                "kernel": short(overlap.kernel),
                "kernel_normalised": short(overlap.normalised),
                "null": pair(overlap.null),
                "z": short(overlap.null.z(overlap.kernel)),
                "direction": direction,
            }
        )
    return rows


def resampled(world: World, cases: Sequence[Case]) -> tuple[list[Record], dict[str, str]]:
    """Ranges over resamples at every fitted block; and kind of query → the reason why it has none."""
    rows: list[Record] = []
    missing: dict[str, str] = {}
    keys = [(case, place) for case in cases for place in places(case.everywhere)]
    task = world.progress.add_task("resamples", total=len(keys))
    for case, (modality, layer) in keys:
        try:
            sides = sides_at(world.evidence[modality], layer, literal=case.preset == "paper")
        except RMuseError as error:  # only one example of this kind
            missing[modality] = str(error)
        else:
            rows.append(stability_of(case, modality, layer, *sides, world.given))
        world.progress.advance(task)
    return rows, missing


def stability_of(
    case: Case, modality: Modality, layer: int, forget: Side, kept: Side, given: argparse.Namespace
) -> Record:
    """Ranges over resamples at one block."""
    unlearning, retain = case.everywhere.subspaces.at(modality, layer)
    found = stability(unlearning, retain, forget, kept, resamples=given.resamples, seed=given.seed)
    return {
        "preset": case.preset,
        "modality": modality,
        "layer": layer,
        "n_forget": len(forget.ans),
        "n_retain": len(kept.ans),
        "clusters_forget": len(set(forget.clusters)),
        "clusters_retain": len(set(kept.clusters)),
        "kernel_normalised": reach(found.kernel),
        "direction_share": reach(found.share),
        "rank_unlearning": reach(found.ranks[:, 0]),
        "rank_rrs": reach(found.ranks[:, 1]),
        "angles_degrees": [reach(column) for column in found.angles.rad2deg().unbind(dim=1)],
        "unlearning_angle_degrees": reach(found.unlearning_angle.rad2deg()),
        "direction_angle_degrees": reach(found.direction_angle.rad2deg()),
        "rrs_angle_degrees": reach(found.retain_angle.rad2deg()),
        "chance_degrees": [short(math.degrees(angle)) for angle in found.chance],
    }


def reach(values: Float[Tensor, " resamples"]) -> Record:
    """Median and 95 % range over the resamples that have a value, and the number of these."""
    there = values[~values.isnan()]
    low, median, high = (short(float(there.quantile(q))) for q in RANGE)
    return {"low": low, "median": median, "high": high, "n": len(there)}


def show(record: Record) -> None:
    """Print, for each plan's own blocks, the share of the update inside the RRS beside chance."""
    rows = [r for r in record["updates"] if r["run"] == "plan" and r["measure"] == "update"]
    key = ("preset", "modality", "layer", "protection")
    gated = {tuple(r[k] for k in key): r for r in rows if r["gate"] == "gated"}
    lines = []
    for r in (row for row in rows if row["gate"] == "open"):
        through = gated[tuple(r[k] for k in key)]
        share = "–" if r["share"] is None else around(r, 2, 100.0, "share")
        fires = f"{through['n_updated']} of {through['n']}"
        form = r["protection"] + " *" * r["own"]
        lines.append((*(str(r[k]) for k in key[:3]), form, share, f"{100 * r['null']['mean']:.2f}", fires))
    headings = ("preset", "queries", "block", "protection", "inside [95 %]", "chance", "gate fires")
    print_table("percent of the update inside the RRS, held-out reasoning, gate forced open", headings, lines)
    print("*: the form of protection the plan has")
    for kind, why in record["not_resampled"].items():
        print(f"stability, {kind}: {why}")
    angles = {"U_un": "unlearning", "v_un": "direction", "U_rrs": "rrs"}
    moved = []
    for r in record["stability"]:
        cells = (around(r[f"{kind}_angle_degrees"], 0, value="median") for kind in angles.values())
        moved.append((r["preset"], r["modality"], str(r["layer"]), *cells))
    if moved:
        title = "degrees between a fit on resampled people and the fit on all, median [95 %]"
        print_table(title, ("preset", "queries", "block", *angles), moved)
