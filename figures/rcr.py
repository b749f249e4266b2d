"""Draws `results/leaderboard.json`: how many reasoning chains about everybody else stay valid (RCR).

    python figures/rcr.py [--results results/] [--out results/]

Writes `rcr` (column width, for several forget rates text width) as PDF, PNG and a caption. After the paper's Fig. 2.
"""

import sys
from collections.abc import Sequence

import _style as style
import matplotlib.pyplot as plt
from _methods import LOOK, SAID, name_of, spread
from _style import Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SCHEMA = "rmuse-leaderboard/1"
SPLITS = {"retain": "|", "retain_test": "x", "celebrity": "+", "reasoning": "1", "benign": "2"}
"""Split → marker of its value."""
ORDER = ("reference", "rmuse", "rival", "trained")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return style.command(__doc__, "leaderboard", SCHEMA, {"rcr": (draw, caption)}, argv)


def draw(record: Row) -> Figure:
    """A bar per method over all kept splits, with a marker per split; a panel per forget rate."""
    if all(row["values"]["rcr"]["value"] is None for row in record["summary"]):
        style.leave(
            "required RCR of one method, got none: the rules have no verdicts on this benchmark's chains"
        )
    rates = record["provenance"]["rates"]
    groups = [[row for row in record["summary"] if row["forget"] == rate] for rate in rates]
    most = max(map(len, groups))
    width = style.COLUMN if len(rates) == 1 else style.TEXT
    figure, axes = plt.subplots(1, len(rates), figsize=(width, 0.85 + 0.155 * most), squeeze=False)
    for axis, rate, rows in zip(axes[0], rates, groups, strict=True):
        panel(axis, rows)
        if len(rates) > 1:
            axis.set_title(f"{rate} % forgotten")
    marks = [style.entry(split, marker=marker, ls="", ms=4, mew=0.8) for split, marker in SPLITS.items()]
    below = {"loc": "outside lower center", "handletextpad": 0.1}
    style.legend(figure, marks, ncols=3 if len(rates) == 1 else 5, **below)
    return figure


def panel(axis: Axes, rows: Sequence[Row]) -> None:
    """Draw the bars of one forget rate, by kind of method, the highest of each kind first."""
    known = [row for row in rows if row["values"]["rcr"]["value"] is not None]
    known.sort(key=lambda row: (ORDER.index(row["kind"]), -row["values"]["rcr"]["value"]))
    for place, row in enumerate(known):
        middle, error = spread(row["values"]["rcr"])
        colour = LOOK[row["kind"]][1]
        axis.barh(place, middle, height=0.66, color=colour, alpha=0.3, edgecolor=colour, linewidth=0.6)
        axis.errorbar(middle, place, xerr=error, color=colour, elinewidth=0.8, capsize=1.5, ls="")
        for split, marker in SPLITS.items():
            value = row["values"][f"rcr_{split}"]["value"]
            if value is not None:
                axis.plot(value, place, marker, color=style.BLACK, ms=3.4, mew=0.6, clip_on=False, zorder=3)
    axis.set_yticks(range(len(known)), [name_of(row["method"]) for row in known])
    for text, row in zip(axis.get_yticklabels(), known, strict=True):
        text.set_color(LOOK[row["kind"]][1])
    axis.set_ylim(len(known) - 0.4, -0.6)
    axis.set_xlim(0, 102)
    axis.set_xticks(range(0, 101, 25))
    axis.set_xlabel("valid and supported chains (RCR, %) →")
    axis.tick_params(axis="y", length=0)


def caption(record: Row) -> str:
    """Caption of the figure."""
    sizes = sorted({row["values"]["rcr"]["n"] for row in record["summary"] if row["values"]["rcr"]["n"]})
    kinds = {row["kind"] for row in record["summary"]}
    n = " to ".join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))
    order = ", ".join(SAID[kind] for kind in ORDER if kind in kinds)
    return (
        "Reasoning that stays: the share of chains that the rules call valid and supported (RCR), over all splits but "
        "those about the people to forget; malformed chains count as invalid. Marks: each split by itself. From the "
        f"top: {order}. Bars: 95 % bootstrap intervals over people (n = {n} "
        "chains). " + style.origin(record)
    )


if __name__ == "__main__":
    sys.exit(main())
