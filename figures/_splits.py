"""How the figures of answers draw splits and metrics, and how their captions end."""

from collections.abc import Sequence
from typing import Any, Final

import _style as style
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

Row = dict[str, Any]
SPLIT: Final[dict[str, tuple[str, str]]] = {
    "forget": (style.RED, "o"),
    "test": (style.ORANGE, "s"),
    "retain": (style.SKY, "^"),
    "retain_test": (style.BLUE, "v"),
    "celebrity": (style.PURPLE, "D"),
    "reasoning": (style.GREEN, "P"),
    "benign": (style.BLACK, "X"),
}
"""Split → colour and marker: never by colour alone."""
SAID: Final = {"test": "test (forget, new)", "retain_test": "retain, new"}
"""Splits whose name alone does not say what they are."""
BARS: Final = {"elinewidth": 0.6, "capsize": 1.2}


def picked(rows: Sequence[Row], **labels: Any) -> Row | None:
    """The one row with these labels, or None."""
    return next((r for r in rows if all(r[k] == v for k, v in labels.items())), None)


def spread(cells: Sequence[Row]) -> list[list[float]]:
    """Lengths of the error bars below and above each value."""
    return [
        [max(0.0, c["value"] - c["low"]) for c in cells],
        [max(0.0, c["high"] - c["value"]) for c in cells],
    ]


def panel(
    axis: Axes,
    title: str,
    metric: str,
    shown: Sequence[str],
    rows: Sequence[Row],
    lines: Sequence[tuple[float, Row]],
) -> None:
    """One metric of every line, in percent: a dot with its interval for each of the splits `shown`.

    Args:
        lines: height of each line, and the labels that pick its rows.
    """
    present = [s for s in shown if any(r["split"] == s for r in rows)]
    for i, split in enumerate(present):
        colour, marker = SPLIT[split]
        shift = 0.2 * (i - (len(present) - 1) / 2)
        cells = [(y, picked(rows, **labels, split=split)) for y, labels in lines]
        drawn = [(y, row[metric]) for y, row in cells if row is not None and row[metric] is not None]
        axis.errorbar(
            [c["value"] for _, c in drawn],
            [y + shift for y, _ in drawn],
            xerr=spread([c for _, c in drawn]),
            color=colour,
            marker=marker,
            ls="",
            ms=2.6,
            **BARS,
        )
    percent_axis(axis, "x")
    axis.set_xticks([0, 50, 100])
    axis.set_title(title, loc="left")
    axis.grid(axis="y", color=style.GREY, lw=0.3, alpha=0.4)
    axis.tick_params(axis="y", length=0)


def percent_axis(axis: Axes, which: str = "y") -> None:
    """0 to 100, with room for the markers at both ends."""
    getattr(axis, f"set_{which}lim")(-4, 104)
    getattr(axis, f"set_{which}ticks")([0, 25, 50, 75, 100])


def legend(splits: Sequence[str], line: str = "") -> list[Line2D]:
    """Handles of splits."""
    return [
        Line2D([], [], color=SPLIT[s][0], marker=SPLIT[s][1], ls=line, label=SAID.get(s, s)) for s in splits
    ]


def about(record: Row, n: str) -> str:
    """Model, benchmark, numbers and seed, as every caption ends."""
    origin = record["provenance"]
    benchmark, rates = origin["benchmark"], origin.get("forget", [origin["benchmark"]["forget"]])
    percents = " and ".join(map(str, rates)) if len(rates) < 3 else ", ".join(map(str, rates))
    return (
        f"Bars are 95 % intervals. Model {origin['model']['id']} ({origin['model']['fingerprint']}), benchmark "
        f"{benchmark['id']}, {percents} % forgotten; n = {n}; at most {origin['fit_limit']} examples of each group in "
        f"fitting; seed {origin['seed']}."
    )


def counted(n: Row) -> str:
    """Questions per split in words."""
    groups: dict[int, list[str]] = {}
    for split, count in n.items():
        groups.setdefault(count, []).append(split)
    return "; ".join(f"{count} questions ({', '.join(splits)})" for count, splits in groups.items())
