"""Draws `results/gate_roc.json`: operating curves of gates on unseen queries, and the margins behind them.

    python figures/gate_roc.py [--results results/] [--out results/]

Writes `gate_roc` (text width) as PDF, PNG and a caption.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _splits as splits
import _style as style
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

SCHEMA = "rmuse-gate-roc/1"
GATE = {
    "paper": (style.GREY, "o", "--"),
    "calibrated": (style.BLUE, "s", "-"),
    "contrast": (style.SKY, "s", "-"),
    "discriminant": (style.BLUE, "^", "-"),
    "vmf": (style.ORANGE, "D", "-"),
    "mahalanobis": (style.RED, "v", "-"),
    "identity": (style.GREEN, "P", "-"),
    "condition": (style.PURPLE, "X", "-."),
}
FLOOR = 0.002
"""Where a false-positive rate of 0 is drawn on the logarithmic axis."""
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of gate_roc.json")
    parser.add_argument("--out", type=Path, help="folder for the figure (that of the results)")
    given = parser.parse_args(argv)
    record = style.read(given.results / "gate_roc.json", SCHEMA)
    style.use()
    print(*style.save(draw(record), given.out or given.results, "gate_roc", caption(record)), sep="\n")
    return 0


def kinds_of(record: Row) -> list[str]:
    """Kinds of query, images first."""
    return [k for k in style.MODALITY if any(r["modality"] == k for r in record["rows"])]


def banded(rows: Sequence[Row]) -> list[Row]:
    """The gates drawn with a band and with their margins: the literal one and the one chosen, else the first two."""
    main_ones = [r for r in rows if r["chosen"] or r["gate"] == "paper"]
    return (main_ones or list(rows))[:2]


def draw(record: Row) -> Figure:
    """One row of panels per kind of query: curves, areas against each split, margins."""
    kinds = kinds_of(record)
    figure, axes = plt.subplots(
        len(kinds),
        3,
        figsize=(style.TEXT, 1.1 + 2.0 * len(kinds)),
        squeeze=False,
        gridspec_kw={"width_ratios": [1.15, 1.15, 1]},
    )
    for line, kind in zip(axes, kinds, strict=True):
        rows = [r for r in record["rows"] if r["modality"] == kind]
        curves(line[0], rows, kind)
        areas(line[1], rows)
        margins(line[2], banded(rows))
    for axis, title in zip(
        axes[0], ("a  operating curves", "b  area under the curve", "c  margins"), strict=True
    ):
        axis.set_title(title, loc="left")
    axes[-1][0].set_xlabel("steered among queries to leave alone (%)")
    axes[-1][1].set_xlabel("AUROC against each split")
    axes[-1][2].set_xlabel("(score − threshold) / scale")
    names = [n for n in GATE if any(r["gate"] == n for r in record["rows"])]
    handles = [Line2D([], [], color=GATE[n][0], marker=GATE[n][1], ls=GATE[n][2], label=n) for n in names]
    shown = [s for s in splits.SPLIT if any(s in r["margins"] for r in record["rows"])]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles),
        columnspacing=1.0,
        handlelength=2.0,
        title="gates (a)",
        title_fontsize=6.5,
    )
    figure.legend(
        handles=splits.legend(shown),
        loc="outside lower center",
        ncols=len(shown),
        columnspacing=1.0,
        handletextpad=0.2,
        title="splits (b, c)",
        title_fontsize=6.5,
    )
    return figure


def curves(axis: Axes, rows: Sequence[Row], kind: str) -> None:
    """Every gate's curve with its operating point; bands of the literal gate and of the one chosen."""
    wide = [r["gate"] for r in banded(rows)]
    for row in rows:
        colour, marker, line = GATE[row["gate"]]
        x, y = zip(*row["points"], strict=True)
        axis.step(
            [max(FLOOR, v) for v in x],
            [100 * v for v in y],
            where="post",
            color=colour,
            ls=line,
            lw=1.2 if row["gate"] in wide else 0.7,
        )
        if row["gate"] in wide:
            band = row["band"]
            axis.fill_between(
                [max(FLOOR, v) for v in band["fpr"]],
                [100 * v for v in band["low"]],
                [100 * v for v in band["high"]],
                step="post",
                color=colour,
                alpha=0.15,
                lw=0,
            )
        tpr, fpr = row["operating"]["tpr"], row["operating"]["fpr"]
        at, low, high = (max(FLOOR, fpr[k] / 100) for k in ("value", "low", "high"))
        axis.errorbar(
            at,
            tpr["value"],
            xerr=[[at - low], [high - at]],
            yerr=splits.spread([tpr]),
            color=colour,
            marker=marker,
            ls="",
            ms=4,
            mec=style.BLACK,
            mew=0.4,
            zorder=4,
            **splits.BARS,
        )
    axis.set_xscale("log")
    axis.set_xlim(FLOOR * 0.8, 1.25)
    axis.set_xticks([FLOOR, 0.01, 0.1, 1.0], ["0", "1", "10", "100"])
    axis.minorticks_off()
    splits.percent_axis(axis)
    axis.set_ylabel(f"{kind} queries\nsteered among those to steer (%)")


def areas(axis: Axes, rows: Sequence[Row]) -> None:
    """Area under the curve against each split to leave alone, a line per gate, with intervals."""
    shown = [s for s in splits.SPLIT if any(s in r["against"] for r in rows)]
    for place, row in enumerate(rows):
        for i, split in enumerate(s for s in shown if s in row["against"]):
            colour, marker = splits.SPLIT[split]
            cell = row["against"][split]
            axis.errorbar(
                cell["value"],
                place + 0.17 * (i - (len(shown) - 1) / 2),
                xerr=splits.spread([cell]),
                color=colour,
                marker=marker,
                ls="",
                ms=2.8,
                **splits.BARS,
            )
        axis.axhline(place + 0.5, color=style.GREY, lw=0.3, alpha=0.4)
    axis.axvline(0.5, color=style.GREY, lw=0.6, ls=":", zorder=-1)
    axis.set_yticks(range(len(rows)), [r["gate"] + " *" * r["chosen"] for r in rows])
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    least = min(c["low"] for r in rows for c in r["against"].values())
    axis.set_xlim(min(0.45, least) - 0.02, 1.02)


def margins(axis: Axes, rows: Sequence[Row]) -> None:
    """Margins of every query by split, below one another, for the gates that have a band; 0 is the threshold."""
    shown = [s for s in splits.SPLIT if any(s in r["margins"] for r in rows)]
    place, ticks, labels = 0.0, [], []
    for row in rows:
        begin = place
        for split in (s for s in shown if s in row["margins"]):
            colour, marker = splits.SPLIT[split]
            values = sorted(row["margins"][split].values())
            # Spread over the line's height in an order that has nothing to do with the value.
            up = [((7 * i) % 11) / 11 - 0.5 for i in range(len(values))]
            axis.plot(
                values, [place + 0.6 * u for u in up], marker, ms=1.6, color=colour, mew=0, alpha=0.6, ls=""
            )
            place += 1
        ticks.append((begin + place - 1) / 2)
        labels.append(row["gate"] + " *" * row["chosen"])
        place += 0.8
    axis.axvline(0, color=style.BLACK, lw=0.6, ls=":", zorder=-1)
    axis.set_yticks(ticks, labels, rotation=90, va="center")
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(place - 0.9, -0.9)


def caption(record: Row) -> str:
    """What the figure shows, with areas and false positives of every gate."""
    origin = record["provenance"]
    told = "; ".join(
        f"{r['gate']}{' *' if r['chosen'] else ''}, {r['modality']} (block {r['layer']}, {r['readout']}): "
        f"{r['auroc']['value']:.3f} [{r['auroc']['low']:.3f}, {r['auroc']['high']:.3f}], "
        f"{r['fpr_at_tpr']['value']:.1f} % [{r['fpr_at_tpr']['low']:.1f}, {r['fpr_at_tpr']['high']:.1f}]"
        for r in record["rows"]
    )
    dealt = [r["shuffled"] for r in record["rows"]]
    counted = "; ".join(
        f"{kind}: {r['n'][0]} to steer ({r['people'][0]} people) and {r['n'][1]} to leave alone ({r['people'][1]} people "
        "or topics)"
        for kind in kinds_of(record)
        for r in [next(r for r in record["rows"] if r["modality"] == kind)]
    )
    benchmark = origin["benchmark"]
    return (
        "Gates on queries that no fit has read. (a) Operating curves, queries of forget and test against those of "
        "retain_test, celebrity, reasoning and benign; markers: the threshold that the fitting data set, with Wilson's "
        "95 % intervals; shaded: pointwise 95 % band of the literal gate and of the one that calibrated chooses (*); the "
        "left edge stands for 0. (b) Area under the curve against each split alone, with 95 % intervals; dotted: chance. "
        "(c) Margin of every query, by split; the gate fires to the right of 0. Bands and intervals of areas: people "
        "resampled, widened to Newcombe's and Wilson's where both sides are told apart without error. Area, and "
        f"false positives at {100 * record['tpr']:g} % true ones: {told}. With people dealt to the sides at random "
        f"the mean areas are {min(d['value'] for d in dealt):.2f} to {max(d['value'] for d in dealt):.2f} "
        f"({dealt[0]['deals']} deals each). Model {origin['model']['id']} "
        f"({origin['model']['fingerprint']}), benchmark {benchmark['id']}, {benchmark['forget']} % forgotten; "
        f"n = {counted}; seed {origin['seed']}."
    )


if __name__ == "__main__":
    sys.exit(main())
