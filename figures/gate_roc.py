"""Draws `results/gate_roc.json`: operating curves of gates on unseen queries, and the margins behind them.

    python figures/gate_roc.py [--results results/] [--out results/]

Writes `gate_roc` (text width) as PDF, PNG and a caption.
"""

import sys
from collections.abc import Sequence

import _splits as splits
import _style as style
import matplotlib.pyplot as plt
from _style import Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SCHEMA = "rmuse-gate-roc/1"
FLOOR = 0.002
"""Position of a false-positive rate of 0 on the logarithmic axis."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return style.command(__doc__, "gate_roc", SCHEMA, {"gate_roc": (draw, caption)}, argv)


def banded(rows: Sequence[Row]) -> list[Row]:
    """The gates drawn with a band and margins: the literal and the chosen one, else the first two."""
    main_ones = [r for r in rows if r["chosen"] or r["gate"] == "paper"]
    return (main_ones or list(rows))[:2]


def draw(record: Row) -> Figure:
    """One row of panels per kind of query: curves, areas against each split, margins."""
    kinds = style.modalities(record["rows"])
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
    style.titles(axes[0], ("a  operating curves", "b  area under the curve", "c  margins"))
    axes[-1][0].set_xlabel("steered among queries to leave alone (%)")
    axes[-1][1].set_xlabel("AUROC against each split")
    axes[-1][2].set_xlabel("(score − threshold) / scale")
    used = [name for name in splits.GATE if any(r["gate"] == name for r in record["rows"])]
    looks = {name: dict(zip(("color", "marker", "ls"), splits.GATE[name], strict=True)) for name in used}
    handles = [style.entry(name, **look) for name, look in looks.items()]
    close = {"columnspacing": 1.0, "title_fontsize": 6.5}
    style.legend(figure, handles, handlelength=2.0, title="gates (a)", **close)
    below = {"loc": "outside lower center", "handletextpad": 0.2, "title": "splits (b, c)", **close}
    style.legend(figure, splits.legend(splits.present(record["rows"], "margins")), **below)
    return figure


def curves(axis: Axes, rows: Sequence[Row], kind: str) -> None:
    """Draw every gate's curve with its operating point, and bands of the literal and the chosen gate."""
    wide = [r["gate"] for r in banded(rows)]
    for row in rows:
        colour, _, line = splits.GATE[row["gate"]]
        x, y = zip(*row["points"], strict=True)
        width = 1.2 if row["gate"] in wide else 0.7
        shape = {"color": colour, "ls": line, "lw": width}
        axis.step([max(FLOOR, v) for v in x], [100 * v for v in y], where="post", **shape)
        if row["gate"] in wide:
            x = [max(FLOOR, v) for v in row["band"]["fpr"]]
            low, high = ([100 * v for v in row["band"][end]] for end in ("low", "high"))
            axis.fill_between(x, low, high, step="post", color=colour, alpha=0.15, lw=0)
        rates = row["operating"]
        splits.operating_point(axis, row, rates["fpr"], rates["tpr"], FLOOR, ls="", ms=4, zorder=4)
    splits.operating_axes(axis, FLOOR, 0.8, 1.25)
    axis.set_ylabel(f"{kind} queries\nsteered among those to steer (%)")


def areas(axis: Axes, rows: Sequence[Row]) -> None:
    """Draw the area under the curve against each split that must not be steered, a line per gate, with intervals."""
    splits.by_split(axis, rows, "against", step=0.17, ms=2.8)
    axis.axvline(0.5, color=style.GREY, lw=0.6, ls=":", zorder=-1)
    least = min(c["low"] for r in rows for c in r["against"].values())
    axis.set_xlim(min(0.45, least) - 0.02, 1.02)


def margins(axis: Axes, rows: Sequence[Row]) -> None:
    """Draw the margins of all queries, one line per split, for the gates that have a band; 0 is the threshold."""
    shown = splits.present(rows, "margins")
    place, ticks, labels = 0.0, [], []
    for row in rows:
        begin = place
        for split in (s for s in shown if s in row["margins"]):
            colour, marker = splits.SPLIT[split]
            values = sorted(row["margins"][split].values())
            # Spread over the line's height in an order unrelated to the value.
            up = [((7 * i) % 11) / 11 - 0.5 for i in range(len(values))]
            axis.plot(
                values, [place + 0.6 * u for u in up], marker, ms=1.6, color=colour, mew=0, alpha=0.6, ls=""
            )
            place += 1
        ticks.append((begin + place - 1) / 2)
        labels.append(splits.named(row))
        place += 0.8
    axis.axvline(0, color=style.BLACK, lw=0.6, ls=":", zorder=-1)
    axis.set_yticks(ticks, labels, rotation=90, va="center")
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(place - 0.9, -0.9)


def caption(record: Row) -> str:
    """What the figure shows, with areas and false positives of every gate."""
    told = "; ".join(
        f"{splits.named(r)}, {r['modality']} (block {r['layer']}, {r['readout']}): "
        f"{r['auroc']['value']:.3f} [{r['auroc']['low']:.3f}, {r['auroc']['high']:.3f}], "
        f"{r['fpr_at_tpr']['value']:.1f} % [{r['fpr_at_tpr']['low']:.1f}, {r['fpr_at_tpr']['high']:.1f}]"
        for r in record["rows"]
    )
    dealt = [r["shuffled"] for r in record["rows"]]
    counted = "; ".join(
        f"{kind}: {r['n'][0]} to steer ({r['people'][0]} people) and {r['n'][1]} to leave alone ({r['people'][1]} people "
        "or topics)"
        for kind in style.modalities(record["rows"])
        for r in [next(r for r in record["rows"] if r["modality"] == kind)]
    )
    return (
        "Gates on queries that no fit has read. (a) Operating curves, queries of forget and test against those of "
        "retain_test, celebrity, reasoning and benign; markers: the threshold that the fitting data set, with Wilson's "
        "95 % intervals; shaded: pointwise 95 % band of the literal gate and of the one that calibrated chooses (*); the "
        "left edge stands for 0. (b) Area under the curve against each split alone, with 95 % intervals; dotted: chance. "
        "(c) Margin of every query, by split; the gate fires to the right of 0. Bands and intervals of areas: people "
        "resampled, widened to Newcombe's and Wilson's where both sides are told apart without error. Area, and "
        f"false positives at {100 * record['tpr']:g} % true ones: {told}. With people dealt to the sides at random "
        f"the mean areas are {min(d['value'] for d in dealt):.2f} to {max(d['value'] for d in dealt):.2f} "
        f"({dealt[0]['deals']} deals each). " + style.origin(record, f"n = {counted}")
    )


if __name__ == "__main__":
    sys.exit(main())
