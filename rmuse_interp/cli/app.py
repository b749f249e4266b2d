"""The application, and error handling of all commands: one line, exit code 2, a traceback with ``--debug``."""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from rmuse_interp import RMuseError, __version__
from rmuse_interp.cli import (
    annotate,
    baseline,
    bundles,
    data,
    demo,
    doctor,
    evaluate,
    generate,
    groups,
    judge,
    models,
    organism,
    requests,
    score,
)

MOVED = {
    ("fit", "--bundle"): "rmuse forget ID --bundle B --out B2, or rmuse restore",
    ("fit", "--add"): "rmuse forget ID --bundle B --out B2",
    ("fit", "--remove"): "rmuse restore ID --bundle B --out B2",
    ("eval", "--gold"): "rmuse score RUN --gold M",
    ("eval", "--perplexity"): "rmuse score RUN --perplexity",
    ("eval", "--traces"): "rmuse eval --record",
    ("eval", "--no-traces"): "rmuse eval --no-record",
    ("demo", "--traces"): "rmuse demo --record",
    ("demo", "--no-traces"): "rmuse demo --no-record",
}
"""(command, option that it had in 0.1) → the replacement."""


class OneLine(groups.Helpful):
    """A group of commands that shows a traceback only on request."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **settings: Any) -> Any:
        """Run the command line; an error ends in one line on stderr, with exit code 2, or 1 if it is a bug of ours."""
        given = sys.argv[1:] if args is None else list(args)
        settings["standalone_mode"] = False
        if "--debug" not in given:
            warnings.filterwarnings("ignore")
            os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        try:
            code = super().main(given, *rest, **settings)
        except Exception as error:
            said = explained(error)
            if "--debug" in given:
                traceback.print_exc()
            if said is None:
                text = " ".join(f"{type(error).__name__}: {error}".split())
                typer.echo(f"error: a fault in rmuse itself ({text}); --debug shows where", err=True)
                sys.exit(1)
            typer.echo(f"error: {said}", err=True)
            sys.exit(2)
        if code == 130:
            typer.echo(
                "interrupted; what was finished is kept: the same command goes on from there", err=True
            )
        sys.exit(code if isinstance(code, int) else 0)


def explained(error: Exception) -> str | None:
    """The message of an error for the user, on one line; None for bugs of ours."""
    name = type(error).__name__
    if name == "OutOfMemoryError":
        return "the accelerator's memory is full; try a smaller --batch-size, or --dtype bfloat16"
    if isinstance(error, RMuseError | OSError):
        text = str(error)
    elif hasattr(error, "format_message"):  # typer's own: a bad option, an unknown command
        context = getattr(error, "ctx", None)
        where = "" if context is None else f" (see {context.command_path} --help)"
        option = getattr(error, "option_name", "")
        successor = None if context is None else MOVED.get((str(context.info_name), option))
        text = error.format_message() + where
        if successor is not None:
            text = f"{option} has moved; use `{successor}`"
    else:
        return None
    return " ".join(text.split())


app = typer.Typer(
    cls=OneLine,
    help="Make a multimodal reasoning model forget people, without training, and watch it still reason.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def start(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Common ground of all commands."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


app.command("demo", rich_help_panel=groups.LOOK)(demo.demo)
app.command("generate", rich_help_panel=groups.LOOK)(generate.generate)
app.command("info", rich_help_panel=groups.LOOK)(bundles.info)
app.command("doctor", rich_help_panel=groups.LOOK)(doctor.doctor)
app.command("fit", rich_help_panel=groups.FORGET)(bundles.fit)
app.command(
    "forget",
    help="Forget further people with a fitted bundle, each in seconds; `rmuse restore` takes it back.",
    rich_help_panel=groups.FORGET,
)(requests.command("forget"))
app.command(
    "restore",
    help="Stop forgetting people with a fitted bundle; the others stay forgotten.",
    rich_help_panel=groups.FORGET,
)(requests.command("restore"))
app.command("eval", rich_help_panel=groups.MEASURE)(evaluate.evaluate)
app.command("score", rich_help_panel=groups.MEASURE)(score.score)
data.app.command("annotate")(annotate.annotate)
app.add_typer(data.app, name="data", rich_help_panel=groups.MATERIAL)
app.add_typer(judge.app, name="judge", rich_help_panel=groups.MATERIAL)
app.add_typer(baseline.app, name="baseline", rich_help_panel=groups.MATERIAL)
app.add_typer(models.app, name="models", rich_help_panel=groups.MATERIAL)
app.add_typer(organism.app, name="organism", rich_help_panel=groups.MATERIAL)


def main() -> None:
    """The console script `rmuse`."""
    app()
