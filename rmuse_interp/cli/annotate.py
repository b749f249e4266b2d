"""`rmuse data annotate`: a language model writes reasoning for a benchmark without any, for a person to audit."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from rmuse_interp import RMuseError
from rmuse_interp.cli import judge as j
from rmuse_interp.cli import options as o
from rmuse_interp.cli import support


def annotate(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of parquet splits with person rows (MLLMU-Bench).")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DATA", help="Folder to write the benchmark with reasoning to.")
    ],
    judge: Annotated[
        str,
        typer.Option("--judge", metavar="J", help="Who writes and verifies: openai:MODEL or local:PATH."),
    ],
    judge_url: j.Url = None,
    max_cost: j.MaxCost = None,
    price_in: j.PriceIn = None,
    price_out: j.PriceOut = None,
    timeout: j.Timeout = 120.0,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, help="Maximum number of questions; the others stay without reasoning."
        ),
    ] = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    overwrite: o.Overwrite = False,
    debug: o.Debug = False,
) -> None:
    """Have a language model write and verify reasoning for every open question about a person.

    audit.csv and audit.jsonl list all of it for a person to check. Replies are kept: after an error or an interrupt the
    same command goes on from there.
    """
    from rmuse_interp.evaluate.judges import Consultation
    from rmuse_interp.fitting import annotate as writing
    from rmuse_interp.runs import judging

    support.require_free(out, f"{writing.AUDIT}.jsonl", "an annotated benchmark", overwrite)
    if out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents:
        raise RMuseError(f"--out: required a folder outside {folder}, got {out}; choose another")
    budget = j.budget_of(max_cost, price_in, price_out)
    tasks = writing.tasks_in(folder)
    if not tasks:
        raise RMuseError(f"{folder}: required open questions without reasoning, got none; it has reasoning")
    asked = judging.asked_of(
        judge, base_url=judge_url, timeout=timeout, device=device, dtype=dtype, max_tokens=1024
    )
    consultation = Consultation(asked, judging.kept_in(), budget)
    chosen = tasks[:limit]
    with support.bars("annotated", {}, "annotate") as progress:
        expected = writing.estimate(chosen, consultation)
        with j.asking(consultation, asked.name, expected, progress):
            found = writing.annotate(chosen, consultation)
    writing.write_annotated(folder, out, found)
    accepted = sum(one.accepted for one in found)
    support.out.print(
        f"reasoning for {accepted} of {len(tasks)} questions; {len(found) - accepted} were sent back {writing.ROUNDS} "
        f"times and stay without, {len(tasks) - len(found)} were not asked\n"
        f"benchmark: {escape(str(out))}; audit it in {escape(str(out / 'audit.csv'))}",
        soft_wrap=True,
    )
