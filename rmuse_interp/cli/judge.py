"""`rmuse judge calibrate`, and what commands with a judge share: options, cost estimate and progress."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from rmuse_interp.cli import groups, support
from rmuse_interp.cli import options as o
from rmuse_interp.data.store import JSON
from rmuse_interp.evaluate.results import require_writable

if TYPE_CHECKING:
    from rich.progress import Progress

    from rmuse_interp.data import Benchmark
    from rmuse_interp.evaluate.agreement import Agreement, ChainItem, Item, RefusalItem
    from rmuse_interp.evaluate.judges import Budget, Consultation, Judge, Quote

T = TypeVar("T")
SHOWN = 20
"""Maximum number of disagreements to print; the file of --out has all."""

app = groups.group("Measure how far a judge of leaks and chains can be trusted.")
NAMES = "rules, openai:MODEL (any compatible server) or local:PATH (transformers)"
Name = Annotated[str, typer.Option("--judge", metavar="J", help=f"{NAMES}.")]
Url = Annotated[
    str | None,
    typer.Option(
        "--judge-url", metavar="URL", help="Base URL of the server; the key is read from OPENAI_API_KEY."
    ),
]
MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", min=0, help="Stop asking before more than this is spent; needs the prices."),
]
PriceIn = Annotated[float | None, typer.Option("--price-in", min=0, help="Price of a million prompt tokens.")]
PriceOut = Annotated[
    float | None, typer.Option("--price-out", min=0, help="Price of a million reply tokens.")
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0.1, help="Seconds to wait for one reply of a server.")
]


class Half(StrEnum):
    """A part of the labelled set."""

    test = "test"
    dev = "dev"
    all = "all"


def budget_of(max_cost: float | None, price_in: float | None, price_out: float | None) -> "Budget":
    """The budget: prices and maximum cost.

    Raises:
        RMuseError: a maximum cost without prices.
    """
    from rmuse_interp.evaluate.judges import Budget

    return Budget(price_in, price_out, max_cost)


def named(
    word: str,
    benchmark: "Benchmark",
    budget: "Budget",
    url: str | None,
    device: str | None,
    dtype: str | None,
) -> "Judge":
    """The judge of a benchmark's answers that ``--judge`` names.

    Raises:
        RMuseError: an unknown word, a judge without a key, or a missing model.
    """
    from rmuse_interp.runs.judging import judge_of

    aliases, entails = benchmark.aliases, benchmark.entails
    return judge_of(word, aliases, entails, budget=budget, base_url=url, device=device, dtype=dtype)


@contextmanager
def asking(
    consultation: "Consultation", title: str, estimate: "Quote", progress: "Progress"
) -> Iterator[None]:
    """Show a progress bar with tokens and cost while the judge is asked, the estimate before it, the total after it.

    Raises:
        RMuseError: the estimate exceeds the budget; then nothing is asked.
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


def with_judge(judge: "Judge | None", work: Callable[["Judge | None"], T], progress: "Progress") -> T:
    """The result of `work` with a judge; an asking judge is rehearsed first, to estimate the cost."""
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
    half: Annotated[
        Half, typer.Option("--half", help="dev to improve a judge on, test to report.")
    ] = Half.test,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Maximum number of texts, and of chains, spread evenly."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="File to write every verdict to, as JSON.")
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
    """Measure how far a judge agrees with labelled leaks, chains and refusals, and list where it and the rules differ."""
    from rmuse_interp import RMuseError
    from rmuse_interp.data.spans import DEFAULT_DELIMITERS
    from rmuse_interp.data.store import write_json
    from rmuse_interp.data.world import implications
    from rmuse_interp.data.world.people import make_world
    from rmuse_interp.evaluate.agreement import (
        LabelledSet,
        agreement,
        chain_agreement,
        read_refusals,
        refusal_agreement,
    )
    from rmuse_interp.evaluate.judges import RulesJudge
    from rmuse_interp.organism import labelled as shipped
    from rmuse_interp.runs import judging

    if out is not None:
        require_writable(out.absolute().parent)
    found = LabelledSet.read(labelled or shipped.FILE)
    aliases, entails = implications.tables(make_world(0))
    aliases, entails = {**aliases, **found.aliases}, {**entails, **found.entails}
    one = judging.judge_of(
        judge,
        aliases,
        entails,
        budget=budget_of(max_cost, price_in, price_out),
        base_url=judge_url,
        timeout=timeout,
        device=device,
        dtype=dtype,
    )
    items, chains = _chosen(found.items, half, limit), _chosen(found.chains, half, limit)
    if not items:
        raise RMuseError(f"items of the half {half} were required, got none; choose another --half")
    ruling = RulesJudge(aliases, entails)
    rules, rules_on_chains = agreement(ruling, items, seed), chain_agreement(ruling, chains, seed)
    mine, on_chains = rules, rules_on_chains
    if judge != "rules":
        with support.bars("judged", {}, "judge") as progress:
            judged = with_judge(one, lambda j: _agreements(j, items, chains, seed), progress)
        assert judged is not None  # None only while a judge is rehearsing
        mine, on_chains = judged
    for title, found_of, its_rules, labelled_as in (
        ("on the labelled set", mine, rules, items),
        ("on the labelled chains", on_chains, rules_on_chains, chains),
    ):
        if found_of is None:
            continue
        _tell(found_of, f"{title} ({half})")
        if judge == "rules":
            _list(
                "the rules differ from the label", labelled_as, found_of, {i.id: i.label for i in labelled_as}
            )
        else:
            of_rules = {} if its_rules is None else its_rules.verdicts
            _list(f"{one.name} and the rules disagree", labelled_as, found_of, of_rules, "rules")
    on_refusals = None
    if labelled is None:  # by the rules, whichever judge reads leaks and chains
        responses = _chosen(read_refusals(shipped.REFUSALS), half, limit)
        on_refusals = refusal_agreement(responses, DEFAULT_DELIMITERS, seed)
        if on_refusals is not None:
            _tell(on_refusals, f"on labelled refusals ({half})")
            labels = {i.id: i.label for i in responses}
            _list("the rules differ from the label", responses, on_refusals, labels)
    if out is not None:
        record = {"half": half.value, "set": str(labelled or "organism"), **mine.as_json()}
        record |= _beside(rules, items)
        record["chains"] = (
            None if on_chains is None else on_chains.as_json() | _beside(rules_on_chains, chains)
        )
        record["refusals"] = None if on_refusals is None else on_refusals.as_json()
        write_json(out, record)


def _chosen(items: Sequence[Any], half: Half, limit: int | None) -> list[Any]:
    """The labelled items of a half, at most `limit`, spread evenly."""
    mine = [item for item in items if half is Half.all or item.half == half]
    return mine if limit is None else mine[:: max(1, -(-len(mine) // limit))]


def _beside(rules: "Agreement | None", items: "Sequence[Item] | Sequence[ChainItem]") -> JSON:
    """The rules' verdicts and the labels, which a judge's verdicts are compared with."""
    return {
        "rules": None if rules is None else rules.verdicts,
        "labels": {item.id: item.label for item in items},
    }


def _agreements(
    judge: "Judge | None", items: "list[Item]", chains: "list[ChainItem]", seed: int
) -> "tuple[Agreement, Agreement | None] | None":
    """The agreement on leaks and on chains; None if the judge is only rehearsing."""
    from rmuse_interp.evaluate.agreement import agreement, chain_agreement, chain_labels_of, labels_of
    from rmuse_interp.evaluate.judges import AskingJudge

    assert judge is not None
    if isinstance(judge, AskingJudge) and judge.consultation.rehearsing:
        labels_of(judge, items)
        chain_labels_of(judge, chains)
        return None
    return agreement(judge, items, seed), chain_agreement(judge, chains, seed)


def _tell(found: "Agreement", where: str) -> None:
    kappa = found.kappa
    support.out.print(
        f"{escape(found.judge)} {where}: Cohen's κ {kappa.value:.3f} [{kappa.low:.3f}, {kappa.high:.3f}], "
        f"n {found.n}, without a verdict {found.unjudged}",
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("label", "precision, %", "recall, %", "judged", "labelled"):
        table.add_column(heading, justify="left" if heading == "label" else "right", no_wrap=True)
    for label, precision in found.precision.items():
        both = (precision, found.recall[label])
        cells = ["–" if s is None else f"{s.value:.1f} [{s.low:.1f}, {s.high:.1f}]" for s in both]
        table.add_row(label, *cells, *(str(s.n if s else 0) for s in both))
    support.out.print(table)
    wrong = [f"{kind} {n - right} of {n}" for kind, (right, n) in found.by_kind.items() if right < n]
    support.out.print(f"wrong by kind: {'; '.join(wrong) if wrong else 'none'}", soft_wrap=True)


def _list(
    title: str,
    items: "Sequence[Item] | Sequence[ChainItem] | Sequence[RefusalItem]",
    mine: "Agreement",
    others: Mapping[str, str | None],
    who: str = "",
) -> None:
    """Print the items on which a judge differs from the others; `who` names these, empty for the labels."""
    apart = [item for item in items if mine.verdicts[item.id] != others.get(item.id)]
    support.out.print(f"{escape(title)}: {len(apart)}", soft_wrap=True)
    for item in apart[:SHOWN]:
        other = f", {who} {others.get(item.id)}" if who else ""
        support.out.print(
            escape(
                f"  {item.id} {_shown(item)}: label {item.label}, {mine.judge} {mine.verdicts[item.id]}{other}"
            ),
            soft_wrap=True,
        )
    if len(apart) > SHOWN:
        support.out.print(f"  … and {len(apart) - SHOWN} more: --out has them all")


def _shown(item: "Item | ChainItem | RefusalItem") -> str:
    from rmuse_interp.evaluate.agreement import Item, RefusalItem

    if isinstance(item, RefusalItem):
        return f"[{item.kind}] {item.text[:160]!r}"
    if isinstance(item, Item):
        return f"[{item.attribute} = {item.value}] {item.text[:160]!r}"
    return f"[{item.reference_answer}] {item.reasoning[:160]!r}, so {item.answer!r}"
