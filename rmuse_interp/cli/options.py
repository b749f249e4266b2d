"""Options that several commands share, each declared once."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Preset(StrEnum):
    """The method's two presets."""

    paper = "paper"
    calibrated = "calibrated"


Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="M",
        help="A checkpoint folder, a hub id, smollm2, or a small model that comes along: organism, organism-gold.",
    ),
]
OwnModel = Annotated[
    str | None, typer.Option("--model", metavar="M", help="The model; by default the one it was made with.")
]
OwnData = Annotated[
    str | None,
    typer.Option("--data", metavar="D", help="The benchmark; by default the one it was made with."),
]
Data = Annotated[
    str,
    typer.Option(
        "--data", metavar="D", help="A benchmark's folder, a hub id, or the small models' own: organism."
    ),
]
Forget = Annotated[int, typer.Option("--forget", min=1, max=99, help="Percentage of the people to forget.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of all random choices.")]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="cpu, cuda, …, or auto: spread over devices, memory and disk; by default a GPU if there is one.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="float32, bfloat16, …; by default float32 on a CPU, elsewhere the checkpoint's own."
    ),
]
Blocks = Annotated[
    str | None,
    typer.Option(
        "--blocks",
        metavar="PATH",
        help="Where the decoder blocks are in a model of an unknown family: model.layers, …",
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Questions per batch.")]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Maximum number of tokens per response.")
]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="L",
        help="Blocks to steer, counted from 0: 6, 5,6 or 5-7; by default the preset chooses.",
    ),
]
Auto = Annotated[
    bool,
    typer.Option(
        "--auto",
        help="Choose blocks, target and rank of the RRS by trials on fitting questions, and print the trials.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in the folder --out.")]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Skip faulty rows of the data, and list them.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback if there is an error.")]
ByPerson = Annotated[
    bool,
    typer.Option(
        "--by-person",
        help="Use gates that know people one by one, so that `rmuse forget` and `rmuse restore` can change the bundle.",
    ),
]
Record = Annotated[
    bool,
    typer.Option(
        "--record/--no-record",
        help="Record how every token was steered (gate score, angles, share in the RRS, …) in traces.safetensors.",
    ),
]
Readable = Annotated[
    bool,
    typer.Option(
        "--readable/--no-readable",
        help="Look at changed answers under the unsteered model: garbled or not, and how fluent beside its own refusals.",
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `rmuse eval` or `rmuse demo` wrote.")]
MovedBundles = Annotated[
    list[Path] | None,
    typer.Option(
        "--bundle",
        metavar="BUNDLE",
        help="Where a bundle of the run is now, if it has moved; repeat the option for several.",
    ),
]
RunFolder = Annotated[
    Path, typer.Option("--out", metavar="RUN", help="Folder to write scores and transcripts to.")
]
