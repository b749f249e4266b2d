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
import importlib.metadata
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

import rmuse_interp.operators as op
from rmuse_interp import __version__
from rmuse_interp.collect import Query, trajectories
from rmuse_interp.data import Benchmark, load_benchmark, sample
from rmuse_interp.diagnostics import (
    UpdateShare,
    direction_overlap,
    random_share,
    subspace_overlap,
    update_share,
)
from rmuse_interp.diagnostics.protection import applied, in_form, own_protection, protections
from rmuse_interp.diagnostics.steered import States, Steered, steered
from rmuse_interp.edits import Edit, Plan
from rmuse_interp.errors import RMuseError
from rmuse_interp.fitting import LIMIT, assemble, check, gather
from rmuse_interp.models.lens import LensModel, load_model
from rmuse_interp.rmuse import PRESETS, RMuse
from rmuse_interp.subspace import Subspace

SCHEMA = "rmuse-orthogonality/1"
PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight", "numpy")


@dataclass(frozen=True, eq=False)
class Case:
    """One method: fitted `everywhere` for the geometry of every block, and with its own blocks for what it does."""

    preset: str
    everywhere: RMuse
    fitted: RMuse


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    given = options().parse_args(argv)
    try:
        record = run(given)
        given.out.mkdir(parents=True, exist_ok=True)
        path = given.out / "orthogonality.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except (RMuseError, OSError) as error:
        if given.debug:
            traceback.print_exc()
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    show(record)
    print(f"written: {path}")
    return 0


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--model", default="organism", metavar="M", help="organism, a checkpoint folder or a hub id"
    )
    parser.add_argument(
        "--data", default="organism", metavar="D", help="organism, or a folder of parquet splits"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--bundle", type=Path, metavar="B", help="measure this bundle instead of fitting both presets"
    )
    parser.add_argument("--forget", type=int, help="percent of the people to forget (5, or the bundle's own)")
    parser.add_argument("--limit", type=int, default=60, help="most reasoning queries per kind of query")
    parser.add_argument("--fit-limit", type=int, default=LIMIT, help="most examples of each group in fitting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The whole record of `orthogonality.json`.

    Raises:
        RMuseError: bad arguments, a missing file, a bundle for another model; all before the first long pass.
    """
    for name in ("limit", "fit_limit", "batch_size"):
        if getattr(given, name) < 1:
            raise RMuseError(
                f"--{name.replace('_', '-')} of at least 1 was required, got {getattr(given, name)}"
            )
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
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        cases = [Case(bundle.preset, bundle, bundle)] if bundle else fitted(lens, benchmark, given, progress)
        geometry = [row for case in cases for row in geometry_of(case)]
        updates: list[dict[str, Any]] = []
        for modality, asked in queries.items():
            plain = unsteered(lens, asked, benchmark.delimiters, given, progress) if asked else {}
            for case in cases if asked else []:
                updates += updates_of(case, modality, lens, asked, plain, given, progress)
    return {
        "schema": SCHEMA,
        "provenance": {
            "model": {"id": given.model, "fingerprint": str(lens.fingerprint)},
            "benchmark": {"id": benchmark.id, "forget": benchmark.forget_rate, "render_seed": benchmark.render_seed},
            "bundle": None if bundle is None else bundle.report,
            "layers": {case.preset: steered_blocks(case.fitted.plan) for case in cases},
            "n_layers": lens.n_layers,
            "seed": given.seed,
            "limit": given.limit,
            "fit_limit": None if bundle else given.fit_limit,
            "n": {kind: len(asked) for kind, asked in queries.items()},
            "seconds": round(time.monotonic() - began, 1),
            "python": platform.python_version(),
            "versions": {"rmuse-interp": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES},
        },
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


def unsteered(
    lens: LensModel,
    queries: Sequence[Query],
    delimiters: tuple[str, str],
    given: argparse.Namespace,
    progress: Progress,
) -> States:
    """What the model does by itself with the same words."""
    runs = trajectories(
        lens,
        queries,
        delimiters=delimiters,
        batch_size=given.batch_size,
        progress=progress,
        label="unsteered",
    )
    return {layer: {t.id: t.states[:, layer] for t in runs} for layer in range(lens.n_layers)}


def updates_of(
    case: Case,
    modality: str,
    lens: LensModel,
    queries: Sequence[Query],
    plain: States,
    given: argparse.Namespace,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Shares of the updates on reasoning queries of one kind; none where the case does not steer that kind."""

    def run_plan(plan: Plan, label: str) -> Steered:
        label = f"{case.preset}, {modality}: {label}"
        return steered(lens, plan, queries, batch_size=given.batch_size, progress=progress, label=label)

    shares = Shares(case, modality, given.seed)
    if shares.layers:
        fired = together(shares, plain, run_plan)
        alone(shares, plain, fired)
    return shares.rows


@dataclass(frozen=True, eq=False)
class Shares:
    """Rows of `updates` for one case and kind of query."""

    case: Case
    modality: Any
    seed: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def layers(self) -> list[int]:
        """The blocks whose RRS was fitted for this kind of query."""
        keys = (str(key).rpartition("-") for key in self.case.everywhere.subspaces.unlearning)
        return sorted(int(layer) for modality, _, layer in keys if modality == self.modality)

    def rrs(self, layer: int) -> Subspace:
        """The RRS of a block."""
        return self.case.everywhere.subspaces.at(self.modality, layer)[1].subspace

    def edit_of(self, plan: Plan) -> Edit:
        """The plan's edit for this kind of query."""
        return next(edit for edit in plan if edit.modality in (None, self.modality))

    def add(
        self, before: Mapping[str, Tensor], after: Mapping[str, Tensor], layer: int, **labels: Any
    ) -> None:
        """Measure one set of updates and keep the row."""
        found = update_share(before, after, self.rrs(layer), self.seed)
        row = {
            "preset": self.case.preset,
            "modality": self.modality,
            "layer": layer,
            **labels,
            **as_row(found),
        }
        if (labels["run"], labels["measure"]) == ("plan", "update"):
            row["per_example"] = {name: short(value) for name, value in found.per_example.items()}
        self.rows.append(row)


def together(
    shares: Shares, plain: States, run_plan: Callable[[Plan, str], Steered]
) -> dict[str, bool | None]:
    """The plan as it is run, in each form of protection, gates forced open and as they decide; what they decided."""
    plan = shares.case.fitted.plan
    edit = shares.edit_of(plan)
    own = own_protection(edit.operators[0])
    fired: dict[str, bool | None] = {}
    for protection in protections(edit.operators[0]):
        for gate in ("open", "gated"):
            found = run_plan(variant_of(edit, shares, protection, gate == "open"), f"{protection}, {gate}")
            labels = {"run": "plan", "protection": protection, "own": protection == own, "gate": gate}
            fired = found.fired if gate == "gated" else fired
            for layer in shares.layers:
                after = found.after[layer]
                if layer in edit.sites:
                    shares.add(found.before[layer], after, layer, measure="update", **labels)
                if layer >= min(edit.sites):
                    shares.add(plain[layer], after, layer, measure="arrived", **labels)
    return fired


def alone(shares: Shares, plain: States, fired: Mapping[str, bool | None]) -> None:
    """Each block steered by itself: its states are the unsteered ones, so the operator can be asked directly."""
    edit = shares.edit_of(shares.case.everywhere.plan)
    for layer in edit.sites:
        operator, before = edit.operator_at(layer), plain[layer]
        for protection in protections(operator):
            form = in_form(operator, protection, shares.rrs(layer))
            moved = {name: applied(form, edit.tokens, h) for name, h in before.items()}
            labels = {"run": "alone", "measure": "update", "protection": protection,
                      "own": protection == own_protection(operator)}  # fmt: skip
            shares.add(before, moved, layer, gate="open", **labels)
            if edit.per == "query":
                gated = {name: h if fired[name] is False else moved[name] for name, h in before.items()}
                shares.add(before, gated, layer, gate="gated", **labels)


def variant_of(edit: Edit, shares: Shares, protection: str, forced: bool) -> Plan:
    """The plan of one edit with another protection, its gate kept or forced open."""
    operators = {
        layer: in_form(edit.operator_at(layer), protection, shares.rrs(layer)) for layer in edit.sites
    }
    gate = None if forced else edit.gate
    changed = op.layerwise(operators).on(edit.tokens).given(edit.modality).when(gate, edit.per)
    return Plan([changed], shares.case.fitted.plan.fingerprint)


def as_row(found: UpdateShare) -> dict[str, Any]:
    """The measured part of one row."""
    low, high = found.interval or (None, None)
    change_low, change_high = found.change_interval or (None, None)
    return {
        "n": found.n, "n_updated": found.updated, "share": short(found.share), "low": short(low), "high": short(high),
        "null": pair(found.null), "z": None if found.share is None else short(found.null.z(found.share)),
        "change": short(found.change), "change_low": short(change_low), "change_high": short(change_high),
    }  # fmt: skip


def pair(null: Any) -> dict[str, float | None]:
    """A null as JSON."""
    return {"mean": short(null.mean), "sd": short(null.sd)}


def short(value: float | None) -> float | None:
    """Six significant digits."""
    return None if value is None else float(f"{value:.6g}")


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
