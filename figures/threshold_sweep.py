"""Draws `results/threshold_sweep.json`: the literal threshold swept, and the operating curve of every gate.

python figures/threshold_sweep.py [--results results/] [--out results/]
"""

import sys
from collections.abc import Sequence
from typing import Any

import _splits as splits
import _style as style
import matplotlib.pyplot as plt
from _style import Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SCHEMA = "rmuse-threshold-sweep/1"
TOLD = (
    ("test", "ril", "RIL, test", "-"),
    ("test", "malformed_rate", "malformed, test", ":"),
    ("retain_test", "exact", "exact, retain, new", "-"),
    ("retain_test", "malformed_rate", "malformed,\nretain, new", ":"),
)
FLOOR = 0.004
"""Position of a false-positive rate of 0 on the logarithmic axis."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return style.command(__doc__, "threshold_sweep", SCHEMA, {"threshold_sweep": (draw, caption)}, argv)


def draw(record: Row) -> Figure:
    """Firing rates and answers against τ above, curves and firing rates of all gates below."""
    figure, axes = plt.subplots(2, 2, figsize=(style.TEXT, 5.4))
    firing(axes[0][0], record)
    told(axes[0][1], record)
    for axis in axes[0]:
        axis.axvspan(0.6, 1.0, color=style.YELLOW, alpha=0.2, lw=0, zorder=-2)
        axis.axvline(record["tau"], color=style.BLACK, lw=0.6, ls=":", zorder=-1)
        axis.set_xlim(0, 1)
        axis.set_xlabel(f"τ of the literal gate (steer if $s_{{gate}}$ < τ; dotted: {record['tau']:g})")
        style.percents(axis)
    curves(axes[1][0], record)
    gates(axes[1][1], record)
    handles, labels = axes[1][0].get_legend_handles_labels()
    below = {"loc": "outside lower center", "ncols": 4, "handlelength": 1.8}
    figure.legend(handles, labels, title="gates in c, and their AUROC", title_fontsize=6.5, **below)
    return figure


def firing(axis: Axes, record: Row) -> None:
    """Draw the firing rate of the literal gate per split."""
    sweep = record["sweep"]
    for split in splits.present(sweep, "fire_rate"):
        cells = [(one["tau"], one["fire_rate"][split]) for one in sweep]
        swept(axis, cells, label=splits.SAID.get(split, split), **splits.look(split))
    axis.set_title("a  literal gate: queries it steers", loc="left")
    axis.set_ylabel("gate fires (%)")
    # The curves rise at different places for different models.
    axis.legend(loc="best", fontsize=6, handlelength=1.4, handletextpad=0.5)


def told(axis: Axes, record: Row) -> None:
    """Draw leaks and broken answers at each τ."""
    for split, name, label, line in TOLD:
        found = [
            (one["tau"], row) for one in record["sweep"] for row in style.picked(one["rows"], split=split)
        ]
        drawn = [(tau, row[name]) for tau, row in found if row[name] is not None]
        if drawn:
            swept(axis, drawn, ls=line, label=label, **splits.look(split))
    axis.set_title("b  preset paper: what is told, what breaks", loc="left")
    axis.set_ylabel("percent of the answers")
    axis.legend(loc="best", fontsize=6, handlelength=1.4, handletextpad=0.5)


def swept(axis: Axes, cells: Sequence[tuple[float, Row]], **look: Any) -> None:
    """Draw values against τ with the band of their intervals."""
    taus, values = zip(*cells, strict=True)
    low, high = ([c[end] for c in values] for end in ("low", "high"))
    axis.fill_between(taus, low, high, color=look["color"], alpha=0.12, lw=0)
    axis.plot(taus, [c["value"] for c in values], markevery=5, **look)


def curves(axis: Axes, record: Row) -> None:
    """Draw operating curves, each with the point of its calibrated threshold and that point's intervals."""
    for row in record["gates"]:
        if not row["points"]:
            continue
        colour, _, line = splits.GATE[row["gate"]]
        fpr, tpr = zip(*row["points"], strict=True)
        axis.step([max(FLOOR, x) for x in fpr], [100 * y for y in tpr], where="post", color=colour, ls=line)
        label = f"{splits.named(row)}  {row['auroc']['value']:.3f}"
        splits.operating_point(axis, row, row["fpr"], row["tpr"], FLOOR, ls=line, ms=4.5, label=label)
    splits.operating_axes(axis, FLOOR, 0.9, 1.05)
    axis.set_title("c  operating curve of every gate", loc="left")
    axis.set_xlabel("steered among queries to leave alone (%)")
    axis.set_ylabel("steered among queries to steer (%)")


def gates(axis: Axes, record: Row) -> None:
    """Draw the firing rate of every gate per split, at the threshold of the fitting data."""
    splits.by_split(axis, record["gates"], "fire_rate", step=0.11, ms=2.6)
    style.percents(axis, "x")
    axis.set_title("d  the same per split, markers as in a", loc="left")
    axis.set_xlabel("gate fires (%)")


def caption(record: Row) -> str:
    """Caption of the figure."""
    origin = record["provenance"]
    read = "; ".join(
        f"{row['gate']}: "
        + ", ".join(f"{m} block {g['layer']} {g['readout']}" for m, g in row["by_modality"].items())
        for row in record["gates"]
    )
    chosen = ", ".join(
        f"{row['gate']} for {' and '.join(row['chosen_for'])}" for row in record["gates"] if row["chosen_for"]
    )
    return (
        "(a) Share of queries that the literal gate steers, against its threshold; yellow: the range of the paper's "
        "figure 3. A larger threshold steers more, so that forgetting cannot fail at a large one, as that figure says "
        "(defect D6). (b) What the preset paper then tells (RIL) and breaks, every answer put together exactly from one "
        "run with the gate open and one without a plan. (c) Operating curves on scoring queries, image and text gates "
        "pooled by their margins; markers: the threshold calibrated on fitting data; the left edge stands for 0. "
        "(d) Firing rates at that threshold. *: what calibrated chooses on fitting data "
        f"({chosen or 'none'}). Where each gate reads, chosen on fitting data for its kind: {read}. "
        + splits.about(
            record, f"{splits.counted(origin['n'])} in (b), {splits.counted(origin['n_gates'])} elsewhere"
        )
        + " Shaded bands in (a) and (b) are such intervals too."
    )


if __name__ == "__main__":
    sys.exit(main())
