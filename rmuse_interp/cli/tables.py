"""Tables on the terminal: before and after, and transcripts side by side."""

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rmuse_interp.cli import support
from rmuse_interp.data.store import JSON
from rmuse_interp.evaluate.before_after import LABELS, methods_of, readable, rows, shown
from rmuse_interp.evaluate.known import warning
from rmuse_interp.evaluate.results import Transcript

HEADINGS = {
    "RIL": "ril",
    "exact": "exact",
    "choice": "classification",
    "cloze": "cloze",
    "RCR": "rcr",
    "refus": "refusal_rate",
    "malf": "malformed_rate",
    "garb": "garbled_rate",
    "cut": "unended_rate",
    "loop": "repetition_rate",
}
_RIGHT = {
    "exact": "exact: the whole answer is the expected one",
    "stated": "stated: the answer states the expected one, undenied (answers are sentences, so none is exact)",
}
SHOWN = ("forget", "retain", "reasoning")


def before_after(scores: JSON) -> None:
    """Print every split under every method, in percent; a dash if a metric is undefined.

    The column of right answers is `stated` where answers are sentences, else `exact`; scores over what the unsteered
    model knows follow in a second table.
    """
    known = scores.get("knowledge", {})
    line = warning(known)
    if line is not None:
        support.out.print(f"[yellow]{line}[/yellow]", soft_wrap=True)
    right = scores.get("right", "exact")
    columns = {
        right if metric == "exact" else heading: right if metric == "exact" else metric
        for heading, metric in HEADINGS.items()
    }
    table = Table(
        title="before and after, %", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("", min_width=16)
    for heading in (*columns, "gate", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    previous = None
    for split, name, block in rows(scores):
        if split != previous:
            table.add_row(f"[bold]{LABELS.get(split, split)}[/bold]")
        cells = [shown(block.get(metric)) for metric in columns.values()]
        table.add_row(escape(name), *cells, shown(block["fired"]), str(block["n"]))
        previous = split
    support.out.print(table)
    support.out.print(
        "RIL: leaked while reasoning; choice, cloze: the other two tasks; RCR: valid chains; refus: refused;\n"
        "malf: neither answer nor well formed; garb: does not read as language; cut: by the token limit;\n"
        f"loop: goes in circles; gate: fired; {_RIGHT[right]}",
        style="dim",
    )
    _over_known(scores, known, right)
    for line in readable(scores):
        support.out.print(escape(line), soft_wrap=True)
    for name in methods_of(scores):
        auroc = scores["gate"].get(name, {}).get("auroc")
        if auroc is not None:
            support.out.print(f"gate of {escape(name)}: AUROC {auroc:.4f}")


def knowledge(known: JSON) -> None:
    """Print what the unsteered model knows, a line per person; below half, the first line says so."""
    line = warning(known)
    if line is not None:
        support.out.print(f"[yellow]{line}[/yellow]", soft_wrap=True)
    table = Table(title="known before", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("person")
    table.add_column("knows (right of the wordings asked)")
    table.add_column("does not")
    facts = known["facts"]
    for person in dict.fromkeys(fact["person"] for fact in facts):
        mine = [fact for fact in facts if fact["person"] == person]
        cells = [
            ", ".join(
                f"{fact['attribute']} ({fact['modality']}) {fact['right']}/{fact['asked']}"
                for fact in mine
                if fact["known"] is known_
            )
            for known_ in (True, False)
        ]
        table.add_row(escape(person), *(escape(cell) or "–" for cell in cells))
    support.out.print(table)
    chance = (
        ""
        if known["chance"] is None
        else f"; other people's values by the same rule: {known['chance']:.1f} %"
    )
    if known["known"] is not None:
        support.out.print(f"known: {known['known']:.1f} % of {known['n']} facts{chance}", soft_wrap=True)


def _over_known(scores: JSON, known: JSON, right: str) -> None:
    """Print what the unsteered model knows of what it should forget, and the scores over that alone."""
    if known.get("known") is None:
        return
    chance = "" if known["chance"] is None else f", and by chance {known['chance']:.1f} %"
    support.out.print(
        f"known before: {known['known']:.1f} % of {known['n']} facts to forget (in two of three wordings{chance})",
        soft_wrap=True,
    )
    for name, blocks in scores["over_known"].items():
        told = [
            f"{LABELS.get(split, split)} RIL {shown(block['ril'])}, {right} {shown(block[right])} (n {block['n']})"
            for split, block in blocks.items()
            if split in ("forget", "test", "retain", "retain_test")
        ]
        if told:
            support.out.print(f"over what was known, {escape(name)}: {'; '.join(told)}", soft_wrap=True)


def side_by_side(transcripts: Sequence[Transcript], before: str, after: str) -> None:
    """Print one question about a person to forget, one about a person to retain and one of reasoning.

    Each is the first of its split, open and with a picture if there is such a question: none is selected by its answer.
    """
    found = {(t.method, t.id): t for t in transcripts}
    for split in SHOWN:
        mine = [t for t in transcripts if t.method == before and t.split == split]
        asked = sorted(
            (t for t in mine if (after, t.id) in found),
            key=lambda t: (t.kind not in ("generation", "reasoning"), t.modality != "image", t.id),
        )
        if not asked:
            continue
        one, two = asked[0], found[after, asked[0].id]
        seen = "picture and question" if one.modality == "image" else "question"
        table = Table(
            title=Text(f"{split} · {seen}: {one.prompt} [{one.expected}]"), title_justify="left", width=100
        )
        table.add_column(f"before: {before}", ratio=1)
        fired = "" if two.fired is None else ", gate fired" if two.fired else ", gate silent"
        table.add_column(f"after: {after}{fired}", ratio=1)
        table.add_row(escape(one.response), escape(two.response))
        support.out.print(table)
