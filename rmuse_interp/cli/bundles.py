"""`rmuse fit` and `rmuse info`: write a bundle, and read one."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from rmuse_interp.cli import options as o
from rmuse_interp.cli import requests, support
from rmuse_interp.cli import traces as t

if TYPE_CHECKING:
    from rmuse_interp.data import Benchmark
    from rmuse_interp.fitting.elicit import Template
    from rmuse_interp.lens.lens import LensModel
    from rmuse_interp.method.rmuse import RMuse
    from rmuse_interp.parts.subspace import Subspace

FIT_LIMIT = 240
"""Smallest default limit: examples per group and kind of query that a fit reads."""
TOLD = 3
"""Maximum number of records of a list that `rmuse info` prints; the bundle's rmuse.json holds all."""


def fit(
    out: Annotated[Path, typer.Option("--out", metavar="BUNDLE", help="Folder to write the bundle to.")],
    model: o.Model = "organism",
    data: o.Data = "organism",
    forget: o.Forget = 5,
    preset: Annotated[
        o.Preset,
        typer.Option("--preset", help="The method as the paper writes it, or calibrated, which mends it."),
    ] = (o.Preset.calibrated),
    layers: o.Layers = None,
    auto: o.Auto = False,
    traces: t.Traces = t.Source.auto,
    template: t.TemplateName = None,
    delimiters: t.Delimiters = None,
    stepwise: t.Stepwise = None,
    direct: t.Direct = None,
    max_new_tokens: t.MaxNewTokens = 256,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            help="Maximum number of examples per group and kind of query; by default 240, or 12 per person to forget if "
            "that is more.",
        ),
    ] = None,
    seed: o.Seed = 0,
    batch_size: o.BatchSize = 32,
    device: o.Device = None,
    dtype: o.Dtype = None,
    blocks: o.Blocks = None,
    skip_bad_rows: o.SkipBadRows = False,
    by_person: o.ByPerson = False,
    overwrite: o.Overwrite = False,
    debug: o.Debug = False,
) -> None:
    """Fit R-MUSE to a model and a benchmark, and write a bundle of what was fitted."""
    support.require_free(out, "rmuse.json", "a bundle", overwrite)
    steered = support.layers_of(layers)
    from rmuse_interp.fitting import enough, require_preset
    from rmuse_interp.fitting import fit as fit_method
    from rmuse_interp.parts.gates import BY_PERSON, GATE_KINDS

    kinds = BY_PERSON if by_person else GATE_KINDS
    require_preset(preset.value, auto, kinds)
    benchmark = support.open_benchmark(data, forget, skip_bad_rows)
    limit = enough(benchmark, FIT_LIMIT) if limit is None else limit
    how = t.template_of(benchmark, template, delimiters, stepwise, direct)
    lens = support.open_model(model, device, dtype, blocks)
    ready(lens, benchmark, steered, traces, how)
    if len(benchmark.forget_people) == 1:
        support.notes.print(
            "[yellow]note[/yellow] one person to forget: what the gate expects to miss was measured on that person alone"
        )
    out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    benchmark = t.gathered_from(
        lens,
        benchmark,
        traces,
        how,
        seconds,
        max_new_tokens=max_new_tokens,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
    )
    with support.bars(f"fitted {preset.value}", seconds, "fit") as progress:
        fitted = fit_method(
            lens,
            benchmark,
            preset.value,
            layers=steered,
            auto=auto,
            kinds=kinds,
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    fitted.report["provenance"] = support.provenance(model, data, limit=limit, layers=steered)
    fitted.save(out)
    support.tell_skipped(benchmark)
    if fitted.preset == "calibrated":
        tell_trials(fitted)
    support.out.print(escape(str(fitted.plan)), soft_wrap=True)
    support.out.print(f"bundle: {escape(str(out))}")


def ready(
    lens: "LensModel",
    benchmark: "Benchmark",
    layers: list[int] | None,
    traces: t.Source = t.Source.given,
    template: "Template | None" = None,
) -> None:
    """Raise unless a fit can be made; one forward pass checks that the model works.

    Raises:
        RMuseError: layers out of range, given traces without reasoning, an unreadable picture, activations that are not
            finite.
    """
    from rmuse_interp.fitting import check
    from rmuse_interp.runs.run import probe

    check(lens, benchmark, layers, traces.value, template)
    for examples in (benchmark.fit_retain, benchmark.fit_reasoning, benchmark.fit_benign):
        benchmark.check_images(examples)
    probe(lens, benchmark.fit_forget[0])


def tell_trials(fitted: "RMuse") -> None:
    """Print the trials of a search, its choice and the reason, and whose refusals answers follow."""
    for modality in fitted.gates:
        record = fitted.report[modality]
        chosen = record["chosen"]
        table = Table(title=f"tried on {modality} questions, gate held open", title_justify="left", box=None)
        shares = ("leaked", "refused", "garbled", "unended", "verbatim", "inside")
        key = ("layers", "target", "energy", "protect", "strength")
        for heading in (
            "blocks",
            "target",
            "protects",
            "energy",
            "strength",
            "ranks",
            *(f"{name} %" for name in shares),
        ):
            names = heading in ("target", "protects")
            table.add_column(
                heading, justify="left" if names else "right", no_wrap=names, min_width=8 * names
            )
        table.add_column("ppl ratio", justify="right")
        for trial in record["trials"]:
            mine = all(trial[name] == chosen[name] for name in key)
            blocks, ranks = (", ".join(map(str, trial[name])) for name in ("layers", "ranks"))
            said = [f"{trial[name]:.1f}" for name in shares]
            ratio = "–" if trial["ratio"] is None else f"{trial['ratio']:.2f}"
            how = (trial["target"], trial["protect"], f"{trial['energy']:g}", f"{trial['strength']:g}")
            table.add_row(blocks, *how, ranks, *said, ratio, style="bold" if mine else None)
        support.out.print(table)
        for sentence in chosen["why"]:
            support.out.print(f"  {escape(sentence)}", soft_wrap=True)
        again = record["confirmed"]
        if again is not None:
            told = ", ".join(
                f"{name} {again[name]:.1f} %" for name in ("leaked", "refused", "garbled", "unended")
            )
            support.out.print(f"  on {again['n']} questions that chose nothing: {told}", soft_wrap=True)
        refusals = record["refusals"]
        if not refusals["own"]:
            support.notes.print(
                f"[yellow]note[/yellow] the model refuses {modality} questions under none of the prefixes, so answers "
                f"follow {refusals['of']} of the benchmark's, which it may not say fluently: write refusals in its "
                "words into refusals_cot and refusals_direct of benchmark.json, or prefixes that it obeys",
                soft_wrap=True,
            )


def info(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder written by `rmuse fit`.")],
    debug: o.Debug = False,
) -> None:
    """Print what a bundle does and where it comes from: plan, gates, blocks, ranks of the subspaces."""
    fitted = support.open_bundle(bundle)
    print_ = support.out.print
    print_(f"[bold]R-MUSE, preset {fitted.preset}[/bold], {escape(str(bundle))}\n")
    print_(escape(str(fitted.plan)) + "\n", soft_wrap=True)
    gates = Table(title="gates", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("queries", "kind", "block", "reads", "threshold", "scale", "scores"):
        gates.add_column(heading, overflow="fold")
    for modality, gate in fitted.gates.items():
        scored = "the prompt" if gate.prefix is None else f"“{gate.prefix}” and the prompt"
        kind = gate.kind.removesuffix("Gate")
        gates.add_row(
            modality,
            kind,
            str(gate.layer),
            gate.readout,
            f"{gate.threshold:.4g}",
            f"{gate.scale:.4g}",
            escape(scored),
        )
    print_(gates)
    ranks = Table(title="\nsubspaces", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("queries", "block", "rank of U_un", "rank of U_rrs", "width"):
        ranks.add_column(heading)
    for key, (un, rrs) in _subspaces(fitted).items():
        modality, _, layer = key.rpartition("-")
        ranks.add_row(modality, layer, str(un.rank), str(rrs.rank), str(rrs.d))
    print_(ranks)
    print_("\n[bold]steered blocks[/bold] " + ", ".join(map(str, fitted.plan.layers)))
    runs = "in one pass" if fitted.plan.single_pass else "in a pass of its own (two-pass)"
    print_(f"[bold]gate decides[/bold] {runs}")
    model = fitted.plan.fingerprint or {}
    print_(f"[bold]model[/bold] {escape(_flat(model) or 'any')}", soft_wrap=True)
    for key, value in fitted.report.items():
        if key == "undo":
            continue
        if key == "people":
            value = f"{len(value)} to forget (ids hashed)"
        if key == "requests":
            value = requests.summary(value)
        for line in _told(key, value):
            print_(line, soft_wrap=True)


def _subspaces(fitted: "RMuse") -> dict[str, tuple["Subspace", "Subspace"]]:
    held = fitted.subspaces
    return {key: (held.unlearning[key].subspace, held.retain[key].subspace) for key in held.unlearning}


def _told(key: str, value: object, indent: str = "") -> Iterator[str]:
    """A part of the report as lines: one record after another, only the first ones of a long list."""
    head = f"{indent}[bold]{escape(key)}[/bold]"
    if isinstance(value, dict) and any(isinstance(v, dict | list) for v in value.values()):
        yield head
        for name, part in value.items():
            yield from _told(name, part, indent + "  ")
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        yield f"{head}, {min(TOLD, len(value))} of {len(value)}"
        yield from (f"{indent}  {escape(_flat(record))}" for record in value[:TOLD])
    else:
        yield f"{head} {escape(_flat(value))}"


def _flat(value: object) -> str:
    """A value on one line: four significant digits, an estimate followed by its range, records in brackets."""
    if isinstance(value, dict | list | str) and not value:
        return "none"
    if isinstance(value, dict) and {"value", "low", "high"} <= set(value):
        return f"{_flat(value['value'])} ({_flat(value['low'])}–{_flat(value['high'])})"
    if isinstance(value, dict):
        return ", ".join(
            f"{k} ({_flat(v)})" if isinstance(v, dict) and "low" not in v else f"{k} {_flat(v)}"
            for k, v in value.items()
        )
    if isinstance(value, list):
        sentences = any(isinstance(v, str) and ", " in v for v in value)
        return ("; " if sentences else ", ").join(map(_flat, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
