"""Draws `results/leaderboard.json`: what is forgotten against what is kept, without attack and under the worst.

    python figures/tradeoff.py [--results results/] [--out results/]

Writes `tradeoff` (text width, a row per forget rate) as PDF, PNG and a caption. After the paper's Fig. 5.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import _style as style
import matplotlib.pyplot as plt
from _labels import label
from _methods import LOOK, handles, name_of, spread
from _style import Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SCHEMA = "rmuse-leaderboard/1"
KEPT = "exact_retain_test"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return style.command(__doc__, "leaderboard", SCHEMA, {"tradeoff": (draw, caption)}, argv)


def plain(row: Row) -> Row:
    """The larger RIL of forget and test without attack, the counterpart of `worst`."""
    both = [row["values"][key] for key in ("ril_forget", "ril_test")]
    return max(both, key=lambda v: -1.0 if v["value"] is None else v["value"])


def worst(row: Row) -> Row:
    """The largest RIL of forget and test, without attack or under any attack."""
    found: Row = row["values"]["worst"]
    return found


PANELS: dict[str, Callable[[Row], Row]] = {"without attack": plain, "under the worst attack": worst}


def draw(record: Row) -> Figure:
    """Leakage against exact answers about people to retain: a panel without attack and one under the worst, per rate."""
    rates = record["provenance"]["rates"]
    figure, axes = plt.subplots(
        len(rates),
        len(PANELS),
        figsize=(style.TEXT, 0.35 + 2.75 * len(rates)),
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    kinds: set[str] = set()
    drawn = []
    for line, rate in zip(axes, rates, strict=True):
        rows = [row for row in record["summary"] if row["forget"] == rate]
        rows.sort(key=lambda row: list(LOOK).index(row["kind"]))
        kinds |= {row["kind"] for row in rows}
        for axis, (title, leaked) in zip(line, PANELS.items(), strict=True):
            drawn.append((axis, panel(axis, rows, leaked)))
            axis.set_title(title if len(rates) == 1 else f"{rate} % forgotten, {title}")
        line[0].set_ylabel("exact, new questions about others (%) →")
    for axis in axes[-1]:
        axis.set_xlabel("leaked while reasoning (RIL, %) ←")
    style.legend(figure, handles(kinds), loc="outside lower center", handletextpad=0.2, columnspacing=1.2)
    for axis, (places, colours, bars) in drawn:  # after everything else is placed
        label(axis, places, {name: name_of(name) for name in places}, colours, bars)
    return figure


Drawn = tuple[dict[str, tuple[float, float]], dict[str, str], list[Any]]
"""Method → its point, method → its colour, and the intervals, which names must not cover."""


def panel(axis: Axes, rows: Sequence[Row], leaked: Callable[[Row], Row]) -> Drawn:
    """Draw one panel: a point with intervals per method."""
    axis.set_xlim(-4, 104)
    axis.set_ylim(-4, 106)
    axis.set_xticks(range(0, 101, 25))
    axis.set_yticks(range(0, 101, 25))
    axis.grid(color="#E6E6E6", linewidth=0.4)
    axis.set_axisbelow(True)
    places: dict[str, tuple[float, float]] = {}
    colours: dict[str, str] = {}
    bars: list[Any] = []
    for row in rows:
        if None in (leaked(row)["value"], row["values"][KEPT]["value"]):
            continue
        marker, colour, size = LOOK[row["kind"]]
        (x, across), (y, along) = spread(leaked(row)), spread(row["values"][KEPT])
        axis.errorbar(
            x, y, yerr=along, xerr=across, color=colour, elinewidth=0.5, capsize=0, alpha=0.45, ls=""
        )
        axis.plot(x, y, marker, ms=size, mfc="white", mec=colour, mew=0.9, clip_on=False, zorder=3)
        places[row["method"]], colours[row["method"]] = (x, y), colour
        bars += [] if across is None else [((x - across[0][0], y), (x + across[1][0], y))]
        bars += [] if along is None else [((x, y - along[0][0]), (x, y + along[1][0]))]
    return places, colours, bars


def caption(record: Row) -> str:
    """Caption of the figure."""
    sizes = sorted({row["values"][key]["n"] for row in record["summary"] for key in (KEPT, "worst")})
    attacks = ", ".join(record["attacks"]) or "none"
    return (
        "What is forgotten against what is kept. Left: the larger leakage in the reasoning (RIL) of the forget and the "
        "test split, without attack; right: the largest of both splits, without attack or under any of the attacks "
        f"({attacks}), each question counted with its most leaking variant or sample. Upwards: exact answers to new "
        "questions about the people to retain, without attack. Top left is best. Bars: 95 % bootstrap intervals over "
        f"people ({sizes[0]} to {sizes[-1]} questions). Rivals and trained baselines were chosen on fitting questions "
        "held out, with one budget each. " + style.origin(record)
    )


if __name__ == "__main__":
    sys.exit(main())
