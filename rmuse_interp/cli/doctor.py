"""`rmuse doctor`: faults of a finished run, the evidence for them, and what to try."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from rmuse_interp import RMuseError
from rmuse_interp.cli import options as o
from rmuse_interp.cli import support
from rmuse_interp.data.store import JSON, newest
from rmuse_interp.evaluate.results import TRACES, read_run

if TYPE_CHECKING:
    from rmuse_interp.diagnostics.findings import Figure, Finding
    from rmuse_interp.method.rmuse import RMuse

SCHEMA = "rmuse-doctor/1"


def doctor(
    run: o.Run,
    bundle: o.MovedBundles = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    debug: o.Debug = False,
) -> None:
    """Look for signs of failure in a run, and name the evidence, the likely cause and the setting to try."""
    held = read_run(run)
    bundles = bundles_of(run, held.scores, bundle or [])
    from rmuse_interp.diagnostics.findings import cases, to_json
    from rmuse_interp.diagnostics.signatures import diagnose
    from rmuse_interp.runs.traces import read_traces

    traces = read_traces(run) if (run / TRACES).is_file() else None
    opening, closing = delimiters_of(held.scores, bundles)
    found = cases(held.transcripts, traces, bundles, (opening, closing))
    if not found:
        methods = ", ".join(sorted({t.method for t in held.transcripts}))
        raise RMuseError(
            f"{run}: required answers of a method that steers, got {methods}; run `rmuse eval` with --bundle or --method"
        )
    findings = [finding for case in found for finding in diagnose(case)]
    if as_json:
        record = {
            "schema": SCHEMA,
            "run": str(run),
            "traces": traces is not None,
            "findings": to_json(findings),
        }
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False))
        return
    for line in lines(findings):
        support.out.print(line, soft_wrap=True)


def bundles_of(run: Path, scores: JSON, given: Sequence[Path]) -> dict[str, "RMuse"]:
    """Method → bundle of a run: the given bundles, and those that the run names and that still exist.

    Raises:
        RMuseError: a damaged bundle, or a given one that is none of the run's methods.
    """
    opened = [support.open_bundle(folder) for folder in given]
    found = dict(zip(support.names_of(given, opened), opened, strict=True))
    strange = sorted(set(found) - set(scores["methods"]))
    if strange:
        raise RMuseError(
            f"--bundle: required bundles of the run, which has {', '.join(scores['methods'])}, got {', '.join(strange)}"
        )
    for name, place in scores.get("bundles", {}).items():
        folder = run / place
        if name not in found and newest(folder, "rmuse.json").is_file():
            found[name] = support.open_bundle(folder)
    return found


def delimiters_of(scores: JSON, bundles: Mapping[str, "RMuse"]) -> tuple[str, str]:
    """The delimiters around the reasoning: those of the run, else of the bundles, else the default."""
    from rmuse_interp.data.spans import DEFAULT_DELIMITERS

    told = [scores.get("delimiters"), *(bundle.report.get("delimiters") for bundle in bundles.values())]
    opening, closing = next((pair for pair in told if pair), DEFAULT_DELIMITERS)
    return opening, closing


def lines(findings: Sequence["Finding"]) -> list[str]:
    """The findings of every method as lines: signatures found, with their evidence, then those not checked."""
    said: list[str] = []
    for method in dict.fromkeys(f.method for f in findings):
        mine = [f for f in findings if f.method == method]
        found, absent, unchecked = (
            [f for f in mine if f.state == state] for state in ("found", "absent", "not checked")
        )
        said.append(f"[bold]{escape(method)}[/bold]: {len(found)} of {len(mine)} signatures found")
        for finding in found:
            said.append(f"  [red]{finding.name}[/red]")
            said += [f"    {escape(shown(figure))}" for figure in finding.evidence]
            said.append(escape(f"    likely cause: {finding.cause}"))
            said.append(escape(f"    try: {finding.setting}"))
        if absent:
            said.append(f"  not found: {', '.join(f.name for f in absent)}")
        said += [escape(f"  not checked: {f.name}, needs {'; '.join(f.missing)}") for f in unchecked]
        said += [escape(f"  not checked: {f.name}: {m}") for f in (*found, *absent) for m in f.missing]
    return said


def shown(figure: "Figure") -> str:
    """One piece of evidence on a line."""
    value = "none" if figure.value is None else f"{figure.value:.4g}"
    spread = "" if figure.low is None or figure.high is None else f" ({figure.low:.3g}–{figure.high:.3g})"
    return f"{figure.what}: {value}{spread}" + ("" if figure.n is None else f", n = {figure.n}")
