"""Draws `results/span_attribution.json`: which spans a leaked token comes from, before and after steering.

python figures/span_attribution.py [--results results/] [--out results/]

Writes `span_attribution` (text width: three ways, by what leaks where) and `span_attribution_agreement` (column width:
how far the ways agree), each as PDF, PNG and a caption.
"""

import sys
from collections.abc import Sequence

import _style as style
import matplotlib.pyplot as plt
from _style import Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

SCHEMA = "rmuse-span-attribution/1"
SPANS = ("image", "prefix", "question", "turn", "reasoning", "answer", "here")
WAYS = {
    "gradients": "integrated gradients\n(nats)",
    "knockout": "knockout\n(nats lost)",
    "direct": "direct\n(logits)",
}
SHOWN: dict[tuple[str, str], tuple[str, str, bool, str]] = {
    ("forget", "before"): (style.RED, "o", True, "forget, before"),
    ("forget", "after"): (style.BLUE, "s", False, "forget, after"),
    ("retain", "before"): (style.BLACK, "^", True, "retain, before"),
    ("retain", "after"): (style.GREY, "v", False, "retain, after"),
}
"""Group and side → colour, marker, whether it is filled, and its name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    figures = {
        "span_attribution": (sources, caption),
        "span_attribution_agreement": (agreement, agreement_caption),
    }
    return style.command(__doc__, "span_attribution", SCHEMA, figures, argv)


def columns(record: Row) -> list[tuple[str, str, str]]:
    """Kinds of query, leaked value and place, in the order of the file, images first."""
    found = dict.fromkeys((r["modality"], r["what"], r["part"]) for r in record["means"])
    return sorted(found, key=lambda key: key[0] != "image")


def ways(record: Row) -> list[str]:
    """The attribution methods in the record."""
    return [way for way in WAYS if any(r["way"] == way and r["n"] for r in record["means"])]


def sources(record: Row) -> Figure:
    """One column per kind of leak, one row per attribution method; a point per span, group and side."""
    kinds, rows = columns(record), ways(record)
    shape = {"figsize": (style.TEXT, 0.75 + 1.35 * len(rows)), "sharey": True, "sharex": "row"}
    figure, axes = plt.subplots(len(rows), len(kinds), squeeze=False, **shape)
    for axis_row, way in zip(axes, rows, strict=True):
        for axis, (modality, what, part) in zip(axis_row, kinds, strict=True):
            points(axis, style.picked(record["means"], modality=modality, what=what, part=part, way=way))
        axis_row[0].set_ylabel(WAYS[way])
        # Few round numbers, or those of neighbouring panels would touch.
        axis_row[0].xaxis.set_major_locator(plt.MaxNLocator(nbins=3, integer=True))
    for axis, (modality, what, part) in zip(axes[0], kinds, strict=True):
        axis.set_title(f"{modality} query\n{what}\nin the {part}", fontsize=6.5)
    axes[0][0].set_yticks(range(len(SPANS)), [*SPANS[:-1], "(here)"])
    axes[0][0].set_ylim(len(SPANS) - 0.4, -0.6)
    style.legend(figure, handles(record["means"]), handletextpad=0.2)
    return figure


def look(key: tuple[str, str]) -> Row:
    """Look of a group and side."""
    colour, marker, filled, _ = SHOWN[key]
    return {"color": colour, "marker": marker, "mfc": colour if filled else "white"}


def handles(rows: Sequence[Row]) -> list[Line2D]:
    """Legend entries for the groups and sides of some rows."""
    present = {(r["group"], r["side"]) for r in rows}
    return [style.entry(said, ls="", **look(key)) for key, (*_, said) in SHOWN.items() if key in present]


def points(axis: Axes, rows: list[Row]) -> None:
    """Draw means with intervals; a span that no leak has stays empty."""
    if not any(r["n"] for r in rows):
        axis.text(0.5, 0.5, "not taken", transform=axis.transAxes, ha="center", color=style.GREY, fontsize=6)
    for i, (group, side) in enumerate(SHOWN):
        mine = [r for r in style.picked(rows, group=group, side=side) if r["n"]]
        if mine:
            at = [SPANS.index(r["span"]) + 0.19 * (i - 1.5) for r in mine]
            bars = {"ls": "", "ms": 2.4, "mew": 0.6, "elinewidth": 0.6, "capsize": 1.0}
            style.intervals(axis, at, mine, along="x", **look((group, side)), **bars)
    axis.axvline(0, color=style.GREY, lw=0.5, zorder=-1)
    axis.axhline(len(SPANS) - 1.5, color=style.GREY, lw=0.4, ls=":", zorder=-1)
    axis.tick_params(axis="y", length=0)


def agreement(record: Row) -> Figure:
    """Rank correlation over spans, and how often the largest span is the same, by pair of attribution methods."""
    rows = [r for r in record["agreement"] if r["top"]["n"]]
    pairs = list(dict.fromkeys((r["first"], r["second"]) for r in rows))
    figure, axes = plt.subplots(1, 2, figsize=(style.COLUMN, 0.8 + 0.5 * len(pairs)), sharey=True)
    bars = {"mew": 0.6, "elinewidth": 0.7, "ms": 2.8}
    for place, (first, second) in enumerate(pairs):
        for i, (group, side) in enumerate(SHOWN):
            y = place + 0.19 * (i - 1.5)
            for row in style.picked(rows, first=first, second=second, group=group, side=side):
                for axis, cell, scale in ((axes[0], row["correlation"], 1), (axes[1], row["top"], 100)):
                    if cell["value"] is not None:
                        found = look((group, side)) | bars
                        style.intervals(axis, [y], [cell], along="x", scale=scale, **found)
                at = [100 * row["chance"]] * 2
                axes[1].plot(at, [y - 0.09, y + 0.09], color=style.GREY, lw=0.9, zorder=-1)
    axes[0].set_yticks(range(len(pairs)), [f"{a},\n{b}" for a, b in pairs])
    axes[0].set_ylim(len(pairs) - 0.5, -0.5)
    axes[0].axvline(0, color=style.GREY, lw=0.5, zorder=-1)
    axes[0].set_xlim(-1.05, 1.05)
    axes[0].set_xlabel("rank correlation")
    axes[1].set_xlim(-4, 104)
    axes[1].set_xlabel("same largest span (%)")
    by_chance = style.entry("by chance", color=style.GREY, marker="|", ls="")
    style.legend(figure, [*handles(rows), by_chance], ncols=3, columnspacing=0.8, handletextpad=0.2)
    return figure


def about(record: Row) -> str:
    """The end of every caption: model, benchmark, questions and seed."""
    origin = record["provenance"]
    counted = " and ".join(f"{n} about people to {group}" for group, n in origin["n"].items())
    taken = {(r["group"], r["id"]) for r in record["leaks"] if r["gradients"] is not None}
    part = f"; gradients of {len(taken)} of them" if taken else ""
    return "Bars are 95 % intervals, people resampled; a point about one person has none. " + style.origin(
        record, f"held-out questions, n = {counted}{part}"
    )


def caption(record: Row) -> str:
    """Caption of the wide figure."""
    origin = record["provenance"]
    checked = [r["completeness"] for r in record["leaks"] if r["completeness"] is not None]
    reached = sum(c["reached"] for c in checked)
    complete = (
        f"Gradients add up within {100 * origin['tolerance']:g} % for {reached} of {len(checked)} tokens, those shown. "
        if checked
        else ""
    )
    steered = ", ".join(
        f"{count} of {sum(r['group'] == group and r['side'] == 'after' for r in record['leaks'])} ({group})"
        for group, count in origin["steered"].items()
    )
    return (
        "Where the log-probability of a leaked token comes from, by source span: the first token that tells the value, "
        "in the reference response, given all that comes before. Top to bottom: integrated gradients from the average "
        "query of other people; log-probability lost where the span's states are held at that query's; what heads move "
        "from the span straight into the token's logit. (here): the token that predicts, never knocked out. A span "
        "without a point has no tokens there. After: the plan acts as it decides, on the same words; it steered "
        f"{steered} tokens. " + complete + about(record)
    )


def agreement_caption(record: Row) -> str:
    """Caption of the narrow figure."""
    rows = [r for r in record["agreement"] if r["top"]["n"]]
    counts = "; ".join(
        f"{r['group']}, {r['side']}: {r['correlation']['n']} ({r['first']}, {r['second']})" for r in rows
    )
    return (
        "Agreement of the three ways over the source spans of one leaked token: Spearman's rank correlation, mean over "
        "tokens with at least three spans, and how often the largest span is the same; grey ticks: one of the token's "
        f"spans drawn at random. Tokens: {counts}. " + about(record)
    )


if __name__ == "__main__":
    sys.exit(main())
