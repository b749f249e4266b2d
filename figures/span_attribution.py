"""Draws `results/span_attribution.json`: which spans a leaked token comes from, before and after steering.

python figures/span_attribution.py [--results results/] [--out results/]

Writes `span_attribution` (text width: three ways, by what leaks where) and `span_attribution_agreement` (column width:
how far the ways agree), each as PDF, PNG and a caption.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _style as style
import matplotlib.pyplot as plt
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
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of span_attribution.json"
    )
    parser.add_argument("--out", type=Path, help="folder for the figures (that of the results)")
    given = parser.parse_args(argv)
    record = style.read(given.results / "span_attribution.json", SCHEMA)
    style.use()
    folder = given.out or given.results
    written = style.save(sources(record), folder, "span_attribution", caption(record))
    written += style.save(agreement(record), folder, "span_attribution_agreement", agreement_caption(record))
    print("\n".join(map(str, written)))
    return 0


def columns(record: Row) -> list[tuple[str, str, str]]:
    """Kind of query, what leaks and where, in the order of the file; images first."""
    found = dict.fromkeys((r["modality"], r["what"], r["part"]) for r in record["means"])
    return sorted(found, key=lambda key: key[0] != "image")


def ways(record: Row) -> list[str]:
    """The ways that were taken."""
    return [way for way in WAYS if any(r["way"] == way and r["n"] for r in record["means"])]


def sources(record: Row) -> Figure:
    """One column per kind of leak, one row per way; a point per span, group and side."""
    kinds, rows = columns(record), ways(record)
    figure, axes = plt.subplots(
        len(rows),
        len(kinds),
        figsize=(style.TEXT, 0.75 + 1.35 * len(rows)),
        sharey=True,
        sharex="row",
        squeeze=False,
    )
    for axis_row, way in zip(axes, rows, strict=True):
        for axis, (modality, what, part) in zip(axis_row, kinds, strict=True):
            mine = [
                r
                for r in record["means"]
                if (r["modality"], r["what"], r["part"], r["way"]) == (modality, what, part, way)
            ]
            points(axis, mine)
        axis_row[0].set_ylabel(WAYS[way])
        # Few round numbers, or neighbours' would touch.
        axis_row[0].xaxis.set_major_locator(plt.MaxNLocator(nbins=3, integer=True))
    for axis, (modality, what, part) in zip(axes[0], kinds, strict=True):
        axis.set_title(f"{modality} query\n{what}\nin the {part}", fontsize=6.5)
    axes[0][0].set_yticks(range(len(SPANS)), [*SPANS[:-1], "(here)"])
    axes[0][0].set_ylim(len(SPANS) - 0.4, -0.6)
    present = {(r["group"], r["side"]) for r in record["means"]}
    handles = [
        Line2D([], [], color=c, marker=m, mfc=c if full else "white", ls="", label=label)
        for key, (c, m, full, label) in SHOWN.items()
        if key in present
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), handletextpad=0.2)
    return figure


def points(axis: Axes, rows: list[Row]) -> None:
    """Means with intervals; a span that no leak has stays empty."""
    if not any(r["n"] for r in rows):
        axis.text(0.5, 0.5, "not taken", transform=axis.transAxes, ha="center", color=style.GREY, fontsize=6)
    for i, ((group, side), (colour, marker, full, _)) in enumerate(SHOWN.items()):
        mine = [r for r in rows if (r["group"], r["side"]) == (group, side) and r["n"]]
        if not mine:
            continue
        y = [SPANS.index(r["span"]) + 0.19 * (i - 1.5) for r in mine]
        axis.errorbar(
            [r["value"] for r in mine],
            y,
            xerr=lengths(mine),
            color=colour,
            marker=marker,
            ls="",
            ms=2.4,
            mfc=colour if full else "white",
            mew=0.6,
            elinewidth=0.6,
            capsize=1.0,
        )
    axis.axvline(0, color=style.GREY, lw=0.5, zorder=-1)
    axis.axhline(len(SPANS) - 1.5, color=style.GREY, lw=0.4, ls=":", zorder=-1)
    axis.tick_params(axis="y", length=0)


def lengths(cells: Sequence[Row]) -> list[list[float]]:
    """Of the error bars below and above each value; 0 where there is no interval."""
    return [
        [0.0 if c["low"] is None else max(0.0, c["value"] - c["low"]) for c in cells],
        [0.0 if c["high"] is None else max(0.0, c["high"] - c["value"]) for c in cells],
    ]


def agreement(record: Row) -> Figure:
    """Rank correlation over spans, and how often the largest span is the same, by pair of ways."""
    rows = [r for r in record["agreement"] if r["top"]["n"]]
    pairs = list(dict.fromkeys((r["first"], r["second"]) for r in rows))
    figure, axes = plt.subplots(1, 2, figsize=(style.COLUMN, 0.8 + 0.5 * len(pairs)), sharey=True)
    for place, pair in enumerate(pairs):
        for i, (key, (colour, marker, full, _)) in enumerate(SHOWN.items()):
            mine = [r for r in rows if (r["first"], r["second"], r["group"], r["side"]) == (*pair, *key)]
            for row in mine:
                y = place + 0.19 * (i - 1.5)
                for axis, cell, scale in ((axes[0], row["correlation"], 1), (axes[1], row["top"], 100)):
                    if cell["value"] is None:
                        continue
                    spread = [[scale * side[0]] for side in lengths([cell])]
                    axis.errorbar(
                        scale * cell["value"],
                        y,
                        xerr=spread,
                        color=colour,
                        marker=marker,
                        mew=0.6,
                        mfc=colour if full else "white",
                        elinewidth=0.7,
                        ms=2.8,
                    )
                axes[1].plot(
                    [100 * row["chance"]] * 2, [y - 0.09, y + 0.09], color=style.GREY, lw=0.9, zorder=-1
                )
    axes[0].set_yticks(range(len(pairs)), [f"{a},\n{b}" for a, b in pairs])
    axes[0].set_ylim(len(pairs) - 0.5, -0.5)
    axes[0].axvline(0, color=style.GREY, lw=0.5, zorder=-1)
    axes[0].set_xlim(-1.05, 1.05)
    axes[0].set_xlabel("rank correlation")
    axes[1].set_xlim(-4, 104)
    axes[1].set_xlabel("same largest span (%)")
    present = {(r["group"], r["side"]) for r in rows}
    handles = [
        Line2D([], [], color=c, marker=m, mfc=c if full else "white", ls="", label=label)
        for key, (c, m, full, label) in SHOWN.items()
        if key in present
    ]
    handles.append(Line2D([], [], color=style.GREY, marker="|", ls="", label="by chance"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, columnspacing=0.8, handletextpad=0.2)
    return figure


def about(record: Row) -> str:
    """Model, benchmark, questions and seed, as every caption ends."""
    origin = record["provenance"]
    benchmark = origin["benchmark"]
    counted = " and ".join(f"{n} about people to {group}" for group, n in origin["n"].items())
    taken = {(r["group"], r["id"]) for r in record["leaks"] if r["gradients"] is not None}
    part = f"; gradients of {len(taken)} of them" if taken else ""
    return (
        "Bars are 95 % intervals, people resampled; a point about one person has none. "
        f"Model {origin['model']['id']} ({origin['model']['fingerprint']}), "
        f"benchmark {benchmark['id']}, {benchmark['forget']} % forgotten; held-out questions, n = {counted}{part}; seed "
        f"{origin['seed']}."
    )


def caption(record: Row) -> str:
    """What the wide figure shows."""
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
    """What the narrow figure shows."""
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
