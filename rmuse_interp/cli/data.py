"""`rmuse data check | new`: check a benchmark, or make one from a table of people."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from rmuse_interp.cli import groups, support, tables
from rmuse_interp.cli import options as o
from rmuse_interp.data.store import JSON

if TYPE_CHECKING:
    from rmuse_interp.data.check import Report

app = groups.group("Check a benchmark, make one, or write reasoning for one.")


@app.command()
def check(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="A benchmark's folder, organism, or owner/name@revision of the hub."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="M",
            help="Ask this model too what it knows of the people to forget, in three wordings.",
        ),
    ] = None,
    forget: o.Forget = 5,
    device: o.Device = None,
    dtype: o.Dtype = None,
    debug: o.Debug = False,
) -> None:
    """Check and summarise a benchmark in any of the five formats; the exit code is 1 if it has problems."""
    from rmuse_interp.data.check import check as look_over

    with support.notes.status(f"reading {folder}"):
        place, name = _place(folder)
        report = look_over(place, name)
    known = None if model is None or report.problems else _asked(model, folder, forget, device, dtype)
    if as_json:
        told = report.record() | ({} if known is None else {"knowledge": known})
        typer.echo(json.dumps(told, ensure_ascii=False, indent=1))
    else:
        if known is not None:
            tables.knowledge(known)
        _tell(report)
    if report.problems:
        raise typer.Exit(1)


def _asked(model: str, data: str, forget: int, device: str | None, dtype: str | None) -> JSON:
    """What the model knows of the people to forget."""
    from rmuse_interp.runs.knowing import known_before

    benchmark = support.open_benchmark(data, forget)
    lens = support.open_model(model, device, dtype)
    with support.bars("asked what it knows", {}, "know") as progress:
        return known_before(lens, benchmark, progress=progress)


def _place(text: str) -> tuple[Path, str]:
    """The folder of a benchmark on this machine, fetched or drawn if needed, and its name."""
    from rmuse_interp.data import hub

    if text == "organism":
        from rmuse_interp.data.world.draw import ensure

        return ensure(), text
    if text == "facts":
        from rmuse_interp.data.facts.draw import ensure as facts

        return facts(), text
    if not Path(text).exists() and hub.is_id(text):
        found = hub.fetch(text)
        return found.folder, found.name
    return Path(text), text


def _tell(report: "Report") -> None:
    """Print splits, problems and notes."""
    table = Table(
        title=f"{report.folder}: {report.format or 'unknown format'}",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    table.add_column("split")
    for heading in ("rows", "people", "open", "cloze", "choice", "image", "text", "pictures"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("missing")
    for name, split in report.splits.items():
        cloze, choice = split.kinds["cloze"], split.kinds["classification"]
        counts = (
            split.rows,
            split.people,
            split.questions - cloze - choice,
            cloze,
            choice,
            split.modalities["image"],
            split.modalities["text"],
            split.pictures,
        )
        missing = ", ".join(f"{n} {what}" for what, n in split.missing.items())
        table.add_row(escape(name), *(str(n) if n else "–" for n in counts), missing or "–")
    support.out.print(table)
    support.out.print(
        "open, cloze, choice: questions of a kind; image, text: asked with a picture or without", style="dim"
    )
    for note in report.notes:
        support.out.print(f"note: {escape(note)}", soft_wrap=True)
    for problem in report.problems:
        support.out.print(f"[red]problem[/red] {escape(str(problem))}", soft_wrap=True)
    n = len(report.problems)
    support.out.print(f"{n} problem{'' if n == 1 else 's'}" if n else "no problems")


@app.command()
def new(
    table: Annotated[
        Path, typer.Argument(metavar="PEOPLE.CSV", help="One row per person: name, facts, photographs.")
    ],
    images: Annotated[Path, typer.Option("--images", metavar="DIR", help="Folder with the photographs.")],
    out: Annotated[Path, typer.Option("--out", metavar="DATA", help="Folder to write the benchmark to.")],
    retain: Annotated[
        Path | None,
        typer.Option(
            "--retain", metavar="DIR", help="A benchmark with people to retain; by default a generic set."
        ),
    ] = None,
    forget: Annotated[
        int,
        typer.Option(
            "--forget", min=1, max=99, help="The forget rate (percent) that the splits are named by."
        ),
    ] = 5,
    encoding: Annotated[
        str | None, typer.Option("--encoding", help="Encoding of the table: cp1252, …; UTF-8 by default.")
    ] = None,
    seed: o.Seed = 0,
    skip_bad_rows: o.SkipBadRows = False,
    overwrite: o.Overwrite = False,
    debug: o.Debug = False,
) -> None:
    """Make a benchmark from a table of people, ready for `rmuse fit`."""
    support.require_free(out, "benchmark.json", "a benchmark", overwrite)
    from rmuse_interp.data.new import write_new
    from rmuse_interp.data.people import read_people

    people, skipped = read_people(table, images, encoding, skip_bad_rows)
    with support.notes.status("writing questions"):
        source = retain
        if source is None:
            from rmuse_interp.data.world.draw import ensure

            source = ensure()
        made = write_new(people, source, out, forget, seed)
    for problem in skipped:
        support.notes.print(f"[yellow]skipped[/yellow] {escape(str(problem))}", soft_wrap=True)
    if retain is None:
        support.notes.print(
            "[yellow]note[/yellow] people to retain: the generic set, which are drawn and unknown to models but the "
            "organism; name people that your model knows with --retain",
            soft_wrap=True,
        )
    for note in made.notes:
        support.notes.print(f"[yellow]note[/yellow] {escape(note)}", soft_wrap=True)
    rate = "" if forget == 5 else f" --forget {forget}"
    support.out.print(
        f"benchmark: {escape(str(out))}, {made.forget} to forget, {made.retain} to retain", soft_wrap=True
    )
    support.out.print(f"next: rmuse fit --data {escape(str(out))}{rate} --model … --out …", soft_wrap=True)
