"""The direct RRS-orthogonality test: does steering touch what reasoning lives in?

    python analyses/orthogonality.py --model organism --data organism --forget 5 --out results/
    python analyses/orthogonality.py --bundle BUNDLE

Writes `orthogonality.json`, which `figures/orthogonality.py` draws. For every preset, kind of query and block:

* **geometry**: principal angles between `U_un` and `U_rrs` and their projection kernel; dot products of `v_un` with
  every RRS basis vector, before and after protection.
* **updates**: on held-out reasoning queries, the share of `h̃ − h` that falls into the RRS, and how much of the RRS
  part of h it alters. `run`: each block steered `alone`, or the `plan` as it is run, all its blocks together.
  `protection`: `none`; `direction` (v̂ cleared of the RRS, eq. 4.10); `rotation` (inside the RRS complement only).
  `gate`: forced `open`, or as `gated`. `measure`: the `update` at an edited block, or what has `arrived` at any block
  of all edits below it: steered minus unsteered state of the same token.

The words are given (the reference response to each query), so that all variants are measured on the same tokens.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from analyses._common import bars, command, options, provenance, short
from analyses._updates import Case, pair, unsteered, updates_of
from rmuse_interp.collect import Query
from rmuse_interp.data import Benchmark, load_benchmark, sample
from rmuse_interp.diagnostics import direction_overlap, random_share, subspace_overlap
from rmuse_interp.edits import Plan
from rmuse_interp.errors import RMuseError
from rmuse_interp.fitting import assemble, check, gather
from rmuse_interp.models.lens import LensModel, load_model
from rmuse_interp.rmuse import PRESETS, RMuse

SCHEMA = "rmuse-orthogonality/1"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = options(__doc__, limit=60, what="reasoning queries per kind of query")
    parser.add_argument("--forget", type=int, help="percent of the people to forget (5, or the bundle's own)")
    parser.add_argument(
        "--bundle", type=Path, metavar="B", help="measure this bundle instead of fitting both presets"
    )
    return command("orthogonality", parser, run, show, argv)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The whole record of `orthogonality.json`.

    Raises:
        RMuseError: bad arguments, a missing file, a bundle for another model; all before the first long pass.
    """
    if given.bundle is not None and not (given.bundle / "rmuse.json").is_file():
        raise RMuseError(
            f"required a bundle with rmuse.json in {given.bundle}, got none; write one with `rmuse fit`"
        )
    bundle = None if given.bundle is None else RMuse.load(given.bundle)
    own = None if bundle is None else bundle.report.get("benchmark", {}).get("forget")
    if own is not None and given.forget not in (None, own):
        raise RMuseError(f"the bundle was fitted at --forget {own}, got {given.forget}; leave --forget out")
    benchmark = load_benchmark(given.data, forget=int(own or given.forget or 5))
    queries = {
        kind: reasoning_queries(benchmark, kind, given.limit, given.seed) for kind in ("image", "text")
    }
    if not any(queries.values()):
        raise RMuseError(
            f"{given.data}: the test file of Reasoning was required for held-out queries, got none"
        )
    lens = load_model(given.model, device=given.device, dtype=given.dtype)
    if bundle is None:
        check(lens, benchmark)
    else:
        bundle = RMuse.load(given.bundle, lens)
    began = time.monotonic()
    with bars() as progress:
        cases = [Case(bundle.preset, bundle, bundle)] if bundle else fitted(lens, benchmark, given, progress)
        geometry = [row for case in cases for row in geometry_of(case)]
        updates: list[dict[str, Any]] = []
        for modality, asked in queries.items():
            plain = unsteered(lens, asked, benchmark.delimiters, given, progress) if asked else {}
            for case in cases if asked else []:
                updates += updates_of(case, modality, lens, asked, plain, given, progress)
    return {
        "schema": SCHEMA,
        "provenance": provenance(
            given, lens, benchmark, began,
            bundle=None if bundle is None else bundle.report,
            layers={case.preset: steered_blocks(case.fitted.plan) for case in cases},
            fit_limit=None if bundle else given.fit_limit,
            n={kind: len(asked) for kind, asked in queries.items()},
        ),
        "geometry": geometry,
        "updates": updates,
    }  # fmt: skip


def fitted(
    lens: LensModel, benchmark: Benchmark, given: argparse.Namespace, progress: Progress
) -> list[Case]:
    """Both presets, from the same evidence."""
    evidence = gather(lens, benchmark, limit=given.fit_limit, batch_size=given.batch_size, seed=given.seed,
                      progress=progress)  # fmt: skip
    cases = []
    for preset in PRESETS:
        own = assemble(lens, benchmark, evidence, preset, seed=given.seed, progress=progress)
        blocks = range(lens.n_layers)
        everywhere = assemble(
            lens, benchmark, evidence, preset, layers=blocks, seed=given.seed, progress=progress
        )
        cases.append(Case(preset, everywhere, own))
    return cases


def steered_blocks(plan: Plan) -> dict[str, list[int]]:
    """The blocks a plan steers, by kind of query."""
    kinds = ("image", "text")
    return {k: sorted({b for e in plan if e.modality in (None, k) for b in e.sites}) for k in kinds}


def reasoning_queries(benchmark: Benchmark, modality: str, limit: int, seed: int) -> list[Query]:
    """Held-out reasoning questions with their reference responses."""
    held_out = [
        e for e in benchmark.scoring("reasoning") if e.modality == modality and e.reasoning is not None
    ]
    delimiters = benchmark.delimiters
    return [Query(e.id, e.prompt(), e.image, e.response(delimiters)) for e in sample(held_out, limit, seed)]


def geometry_of(case: Case) -> list[dict[str, Any]]:
    """Angles, kernel and dot products at every block that was fitted."""
    rows = []
    for key in case.everywhere.subspaces.unlearning:
        modality, _, layer = str(key).rpartition("-")
        unlearning, retain = case.everywhere.subspaces.at(modality, int(layer))
        rrs = retain.subspace
        overlap = subspace_overlap(unlearning.subspace, rrs)
        cleared = rrs.remove(unlearning.direction)
        sides = {"before": unlearning.direction} | (
            {"after": cleared} if float(cleared.norm()) > 1e-5 else {}
        )
        direction: dict[str, Any] = {"null": {**pair(random_share(rrs.d, rrs.rank)), "dot_sd": rrs.d**-0.5}}
        for side, vector in sides.items():
            lies = direction_overlap(vector, rrs)
            direction[side] = {"share": short(lies.share), "dots": [short(v) for v in lies.dots.tolist()]}
        rows.append({
            "preset": case.preset, "modality": modality, "layer": int(layer), "d": rrs.d,
            "rank_unlearning": unlearning.rank, "rank_rrs": rrs.rank,
            "angles_degrees": [short(v) for v in overlap.angles.rad2deg().tolist()],
            "kernel": short(overlap.kernel), "kernel_normalised": short(overlap.normalised),
            "null": pair(overlap.null), "z": short(overlap.null.z(overlap.kernel)), "direction": direction,
        })  # fmt: skip
    return rows


def show(record: Mapping[str, Any]) -> None:
    """The plans' own blocks as a table: what of the update falls into the RRS, against chance."""
    table = Table(
        title="percent of the update inside the RRS, held-out reasoning, gate forced open", box=None
    )
    for heading in ("preset", "queries", "block", "protection", "inside [95 %]", "chance", "gate fires"):
        table.add_column(heading, no_wrap=True)
    rows = [r for r in record["updates"] if r["run"] == "plan" and r["measure"] == "update"]
    key = ("preset", "modality", "layer", "protection")
    gated = {tuple(r[k] for k in key): r for r in rows if r["gate"] == "gated"}
    for r in (row for row in rows if row["gate"] == "open"):
        through = gated[tuple(r[k] for k in key)]
        share, low, high = (percent(r[k]) for k in ("share", "low", "high"))
        table.add_row(
            *(str(r[k]) for k in key[:3]), r["protection"] + " *" * r["own"], f"{share} \\[{low}, {high}]",
            percent(r["null"]["mean"]), f"{through['n_updated']} of {through['n']}",
        )  # fmt: skip
    Console(width=max(100, Console().width)).print(table)
    print("*: the form of protection the plan has")


def percent(share: float | None) -> str:
    """A share for the table."""
    return "–" if share is None else f"{100 * share:.2f}"


if __name__ == "__main__":
    sys.exit(main())
