"""`rmuse judge calibrate`, and what commands with a judge share: its options, its estimate and its progress."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from rmuse_interp.cli import options as o
from rmuse_interp.cli import support
from rmuse_interp.cli.groups import Helpful

if TYPE_CHECKING:
    from rich.progress import Progress

    from rmuse_interp.evaluate.calibration import Agreement, Item
    from rmuse_interp.evaluate.judges import Budget, Consultation, Estimate, Judge

SHOWN = 20
"""Disagreements that are printed; the file of --out has all."""

app = typer.Typer(cls=Helpful, help="Judges of leaks.", rich_markup_mode=None, pretty_exceptions_enable=False)
Name = Annotated[
    str,
    typer.Option(
        "--judge",
        metavar="J",
        help="rules, openai:MODEL (any compatible server) or local:PATH (transformers).",
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        "--judge-url", metavar="URL", help="The server's base URL; its key stands in OPENAI_API_KEY."
    ),
]
MaxCost = Annotated[
    float | None, typer.Option("--max-cost", min=0, help="Stop asking before this is spent; needs prices.")
]
PriceIn = Annotated[
    float | None, typer.Option("--price-in", min=0, help="Price of a million tokens that are asked.")
]
PriceOut = Annotated[
    float | None, typer.Option("--price-out", min=0, help="Price of a million tokens that are replied.")
]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for one reply of a server.")]


class Half(StrEnum):
    """Which part of the labelled set."""

    test = "test"
    dev = "dev"
    all = "all"


def budget_of(max_cost: float | None, price_in: float | None, price_out: float | None) -> "Budget":
    """Prices and the most to spend.

    Raises:
        RMuseError: a most without prices.
    """
    from rmuse_interp.evaluate.judges import Budget

    return Budget(price_in, price_out, max_cost)


@contextmanager
def asking(
    consultation: "Consultation", title: str, estimate: "Estimate", progress: "Progress"
) -> Iterator[None]:
    """A line of a progress bar with tokens and cost while questions are put; the estimate before, the sum behind.

    Raises:
        RMuseError: the estimate is above what may be spent; nothing is asked then.
    """
    support.notes.print(f"{escape(title)}: {estimate}", soft_wrap=True)
    consultation.require_affordable(estimate)
    task = progress.add_task(escape(title), total=estimate.questions)

    def told(done: int, total: int) -> None:
        said = f"{escape(title)} · {consultation.budget}"
        progress.update(task, completed=done, total=total, description=said)

    consultation.on_reply = told
    try:
        yield
    finally:
        consultation.on_reply = None
        support.notes.print(f"{escape(title)}: {consultation.budget}", soft_wrap=True)
        if consultation.unreadable:
            n = len(consultation.unreadable)
            support.notes.print(f"[yellow]note[/yellow] {n} questions without a readable reply")


def with_judge(judge: "Judge | None", work: Callable[["Judge | None"], Any], progress: "Progress") -> Any:
    """What some work with a judge gives; where the judge asks, it is rehearsed first to tell what it will cost."""
    from rmuse_interp.evaluate.judges import AskingJudge

    if not isinstance(judge, AskingJudge):
        return work(judge)
    rehearsal = judge.rehearsal()
    work(rehearsal)
    with asking(judge.consultation, judge.name, rehearsal.estimate(), progress):
        return work(judge)


@app.command()
def calibrate(
    judge: Name = "rules",
    labelled: Annotated[
        Path | None,
        typer.Option("--set", metavar="FILE", help="A labelled set; the organism's by default."),
    ] = None,
    half: Annotated[Half, typer.Option("--half", help="dev to mend a judge by, test to report.")] = Half.test,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Most items, spread evenly.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="JSON with every verdict.")
    ] = None,
    judge_url: Url = None,
    max_cost: MaxCost = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    timeout: Timeout = 60.0,
    device: o.Device = None,
    dtype: o.Dtype = None,
    seed: o.Seed = 0,
    debug: o.Debug = False,
) -> None:
    """Measure how far a judge agrees with a labelled set of leaks, and print where it and the rules disagree."""
    from rmuse_interp import judging
    from rmuse_interp.errors import RMuseError
    from rmuse_interp.evaluate.calibration import LabelledSet, agreement
    from rmuse_interp.evaluate.judges import RulesJudge
    from rmuse_interp.organism import implications
    from rmuse_interp.organism import labelled as shipped
    from rmuse_interp.organism.world import make_world
    from rmuse_interp.results import write_atomically

    if out is not None:
        support.require_writable(out.absolute().parent)
    found = LabelledSet.read(labelled or shipped.FILE)
    aliases, entails = implications.tables(make_world(0))
    aliases, entails = {**aliases, **found.aliases}, {**entails, **found.entails}
    one = judging.judge_of(
        judge, aliases, entails, budget=budget_of(max_cost, price_in, price_out), base_url=judge_url,
        timeout=timeout, device=device, dtype=dtype,
    )  # fmt: skip
    items = [item for item in found.items if half is Half.all or item.half == half]
    if limit is not None:
        items = items[:: max(1, -(-len(items) // limit))]
    if not items:
        raise RMuseError(f"items of the half {half} were required, got none; choose another --half")
    rules = agreement(RulesJudge(aliases, entails), items, seed)
    mine = rules
    if judge != "rules":
        with support.bars("judged", {}, "judge") as progress:
            mine = with_judge(one, lambda j: _agreement_or_none(j, items, seed), progress)
    _tell(mine, half)
    if judge == "rules":
        _list("the rules differ from the label", [i for i in items if mine.verdicts[i.id] != i.label], mine)
    else:
        apart = [i for i in items if mine.verdicts[i.id] != rules.verdicts[i.id]]
        _list(f"{one.name} and the rules disagree", apart, mine, rules)
    if out is not None:
        record = {"half": half.value, "set": str(labelled or "organism"), **mine.as_json()}
        record["rules"] = rules.verdicts
        record["labels"] = {item.id: item.label for item in items}
        write_atomically(out, [json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"])


def _agreement_or_none(judge: "Judge | None", items: "list[Item]", seed: int) -> "Agreement | None":
    """The agreement; None where the judge is only rehearsing."""
    from rmuse_interp.evaluate.calibration import agreement, labels_of
    from rmuse_interp.evaluate.judges import AskingJudge

    assert judge is not None
    if isinstance(judge, AskingJudge) and judge.consultation.rehearsing:
        labels_of(judge, items)
        return None
    return agreement(judge, items, seed)


def _tell(found: "Agreement", half: str) -> None:
    value, low, high = found.kappa
    support.out.print(
        f"{escape(found.judge)} on the labelled set ({half}): Cohen's κ {value:.3f} [{low:.3f}, {high:.3f}], "
        f"n {found.n}, without a verdict {found.unjudged}",
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("label", "precision, %", "recall, %", "judged", "labelled"):
        table.add_column(heading, justify="left" if heading == "label" else "right", no_wrap=True)
    for label, precision in found.precision.items():
        recall = found.recall[label]
        cells = [
            "–" if s.value is None else f"{s.value:.1f} [{s.low:.1f}, {s.high:.1f}]"
            for s in (precision, recall)
        ]
        table.add_row(label, *cells, str(precision.n), str(recall.n))
    support.out.print(table)
    wrong = [f"{kind} {n - right} of {n}" for kind, (right, n) in found.by_kind.items() if right < n]
    support.out.print(f"wrong by kind: {'; '.join(wrong) if wrong else 'none'}", soft_wrap=True)


def _list(title: str, items: "list[Item]", mine: "Agreement", rules: "Agreement | None" = None) -> None:
    support.out.print(f"{escape(title)}: {len(items)}", soft_wrap=True)
    for item in items[:SHOWN]:
        other = "" if rules is None else f", rules {rules.verdicts[item.id]}"
        support.out.print(
            escape(
                f"  {item.id} [{item.attribute} = {item.value}] {item.text[:160]!r}: "
                f"label {item.label}, {mine.judge} {mine.verdicts[item.id]}{other}"
            ),
            soft_wrap=True,
        )
    if len(items) > SHOWN:
        support.out.print(f"  … and {len(items) - SHOWN} more: --out has them all")
