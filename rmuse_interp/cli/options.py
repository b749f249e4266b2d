"""Options that several commands share, each declared once."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Preset(StrEnum):
    """The two presets, as the method knows them."""

    paper = "paper"
    calibrated = "calibrated"


Model = Annotated[
    str,
    typer.Option("--model", metavar="M", help="organism, organism-gold, a checkpoint folder or a hub id."),
]
OwnModel = Annotated[
    str | None, typer.Option("--model", metavar="M", help="By default the model it was made with.")
]
OwnData = Annotated[
    str | None, typer.Option("--data", metavar="D", help="By default the benchmark it was made with.")
]
Data = Annotated[str, typer.Option("--data", metavar="D", help="organism, or a folder of parquet splits.")]
Forget = Annotated[int, typer.Option("--forget", min=1, max=99, help="Percent of the people to forget.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of every sampling.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, …; a GPU where there is one.")]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, bfloat16, …; float32 on a CPU, else the checkpoint's own."),
]
Blocks = Annotated[
    str | None,
    typer.Option("--blocks", metavar="PATH", help="Where an unknown model family keeps its decoder blocks."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Questions per batch.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens per response.")]
Layers = Annotated[
    str | None, typer.Option("--layers", metavar="L", help="Blocks to steer, from 0: 6, 5,6 or 5-7.")
]
Auto = Annotated[
    bool,
    typer.Option(
        "--auto",
        help="Choose blocks, target and rank of the RRS by trials on fitting questions; prints them.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds.")]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Go on past faulty rows, and list them.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ByPerson = Annotated[
    bool,
    typer.Option(
        "--by-person", help="Gates that know people one by one, as `rmuse forget` and `rmuse restore` need."
    ),
]
Record = Annotated[
    bool,
    typer.Option(
        "--record/--no-record",
        help="Keep how every token was steered in traces.safetensors: score, angles, share in the RRS, and more.",
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `rmuse eval` or `rmuse demo` wrote.")]
MovedBundles = Annotated[
    list[Path] | None,
    typer.Option(
        "--bundle",
        metavar="BUNDLE",
        help="A bundle of the run that is not where it was; repeat for several.",
    ),
]
RunFolder = Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder for scores and transcripts.")]
