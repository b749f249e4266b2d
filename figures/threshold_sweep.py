"""Draws `results/threshold_sweep.json`: the literal threshold swept, and the operating curve of every gate.

python figures/threshold_sweep.py [--results results/] [--out results/]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import _splits as splits
import _style as style
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SCHEMA = "rmuse-threshold-sweep/1"
GATE = {
    "literal": (style.GREY, "o", "--"),
    "contrast": (style.SKY, "s", "-"),
    "discriminant": (style.BLUE, "^", "-"),
    "vmf": (style.ORANGE, "D", "-"),
    "mahalanobis": (style.RED, "v", "-"),
    "identity": (style.GREEN, "P", "-"),
    "condition": (style.PURPLE, "X", "-."),
}
TOLD = (
    ("test", "ril", "RIL, test", "-"),
    ("test", "malformed_rate", "malformed, test", ":"),
    ("retain_test", "exact", "exact, retain, new", "-"),
    ("retain_test", "malformed_rate", "malformed,\nretain, new", ":"),
)
FLOOR = 0.004
"""Where a false-positive rate of 0 is drawn on the logarithmic axis."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of threshold_sweep.json"
    )
    parser.add_argument("--out", type=Path, help="folder for the figures (that of the results)")
    given = parser.parse_args(argv)
    record = style.read(given.results / "threshold_sweep.json", SCHEMA)
    style.use()
    print(*style.save(draw(record), given.out or given.results, "threshold_sweep", caption(record)), sep="\n")
    return 0


def draw(record: splits.Row) -> Figure:
    """Firing rates and answers against τ above, curves and firing rates of all gates below."""
    figure, axes = plt.subplots(2, 2, figsize=(style.TEXT, 5.4))
    firing(axes[0][0], record)
    told(axes[0][1], record)
    for axis in axes[0]:
        axis.axvspan(0.6, 1.0, color=style.YELLOW, alpha=0.2, lw=0, zorder=-2)
        axis.axvline(record["tau"], color=style.BLACK, lw=0.6, ls=":", zorder=-1)
        axis.set_xlim(0, 1)
        axis.set_xlabel(f"τ of the literal gate (steer if $s_{{gate}}$ < τ; dotted: {record['tau']:g})")
        splits.percent_axis(axis)
    curves(axes[1][0], record)
    gates(axes[1][1], record)
    handles, labels = axes[1][0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=4,
        title="gates in c, and their AUROC",
        title_fontsize=6.5,
        handlelength=1.8,
    )
    return figure


def firing(axis: Axes, record: splits.Row) -> None:
    """Firing rate of the literal gate per split."""
    sweep = record["sweep"]
    for split in (s for s in splits.SPLIT if s in sweep[0]["fire_rate"]):
        colour, marker = splits.SPLIT[split]
        cells = [one["fire_rate"][split] for one in sweep]
        taus = [one["tau"] for one in sweep]
        axis.fill_between(
            taus, [c["low"] for c in cells], [c["high"] for c in cells], color=colour, alpha=0.12, lw=0
        )
        axis.plot(
            taus,
            [c["value"] for c in cells],
            color=colour,
            marker=marker,
            markevery=5,
            label=splits.SAID.get(split, split),
        )
    axis.set_title("a  literal gate: queries it steers", loc="left")
    axis.set_ylabel("gate fires (%)")
    # Where curves rise differs by model.
    axis.legend(loc="best", fontsize=6, handlelength=1.4, handletextpad=0.5)


def told(axis: Axes, record: splits.Row) -> None:
    """What is told and broken at each τ."""
    for split, name, label, line in TOLD:
        colour, marker = splits.SPLIT[split]
        found = [(one["tau"], splits.picked(one["rows"], split=split)) for one in record["sweep"]]
        drawn = [(tau, row[name]) for tau, row in found if row is not None and row[name] is not None]
        if not drawn:
            continue
        taus, cells = zip(*drawn, strict=True)
        axis.fill_between(
            taus, [c["low"] for c in cells], [c["high"] for c in cells], color=colour, alpha=0.12, lw=0
        )
        axis.plot(
            taus, [c["value"] for c in cells], line, color=colour, marker=marker, markevery=5, label=label
        )
    axis.set_title("b  preset paper: what is told, what breaks", loc="left")
    axis.set_ylabel("percent of the answers")
    axis.legend(loc="best", fontsize=6, handlelength=1.4, handletextpad=0.5)


def curves(axis: Axes, record: splits.Row) -> None:
    """Operating curves, each with the point of its calibrated threshold and that point's intervals."""
    for row in record["gates"]:
        if not row["points"]:
            continue
        colour, marker, line = GATE[row["gate"]]
        fpr, tpr = zip(*row["points"], strict=True)
        axis.step([max(FLOOR, x) for x in fpr], [100 * y for y in tpr], where="post", color=colour, ls=line)
        area = row["auroc"]
        at = max(100 * FLOOR, row["fpr"]["value"]) / 100
        reach = [[at - max(FLOOR, row["fpr"]["low"] / 100)], [row["fpr"]["high"] / 100 - at]]
        axis.errorbar(
            at,
            row["tpr"]["value"],
            xerr=[[max(0.0, v[0])] for v in reach],
            yerr=splits.spread([row["tpr"]]),
            color=colour,
            marker=marker,
            ls=line,
            ms=4.5,
            mec=style.BLACK,
            mew=0.4,
            label=f"{row['gate']}{' *' if row['chosen_for'] else ''}  {area['value']:.3f}",
            **splits.BARS,
        )
    axis.set_xscale("log")
    axis.set_xlim(FLOOR * 0.9, 1.05)
    axis.set_xticks([FLOOR, 0.01, 0.1, 1.0], ["0", "1", "10", "100"])
    axis.minorticks_off()
    splits.percent_axis(axis)
    axis.set_title("c  operating curve of every gate", loc="left")
    axis.set_xlabel("steered among queries to leave alone (%)")
    axis.set_ylabel("steered among queries to steer (%)")


def gates(axis: Axes, record: splits.Row) -> None:
    """Firing rate of every gate per split, at the threshold of the fitting data."""
    rows = record["gates"]
    shown = [s for s in splits.SPLIT if any(s in row["fire_rate"] for row in rows)]
    for place, row in enumerate(rows):
        for i, split in enumerate(s for s in shown if s in row["fire_rate"]):
            colour, marker = splits.SPLIT[split]
            cell = row["fire_rate"][split]
            y = place + 0.11 * (i - (len(shown) - 1) / 2)
            axis.errorbar(
                cell["value"],
                y,
                xerr=splits.spread([cell]),
                color=colour,
                marker=marker,
                ls="",
                ms=2.6,
                **splits.BARS,
            )
        axis.axhline(place + 0.5, color=style.GREY, lw=0.3, alpha=0.4)
    axis.set_yticks(range(len(rows)), [row["gate"] + " *" * bool(row["chosen_for"]) for row in rows])
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    splits.percent_axis(axis, "x")
    axis.set_title("d  the same per split, markers as in a", loc="left")
    axis.set_xlabel("gate fires (%)")


def caption(record: splits.Row) -> str:
    """What the figure shows."""
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
