"""Splits and metrics in the figures of answers, and the end of their captions."""

from collections.abc import Sequence
from typing import Any, Final

import _style as style
from _style import Row
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

SPLIT: Final[dict[str, tuple[str, str]]] = {
    "forget": (style.RED, "o"),
    "test": (style.ORANGE, "s"),
    "retain": (style.SKY, "^"),
    "retain_test": (style.BLUE, "v"),
    "celebrity": (style.PURPLE, "D"),
    "reasoning": (style.GREEN, "P"),
    "benign": (style.BLACK, "X"),
    "namesakes": (style.GREY, "*"),
}
"""Split → colour and marker: never by colour alone."""
SAID: Final = {"test": "test (forget, new)", "retain_test": "retain, new"}
"""Splits whose name alone does not explain them → what they are."""
GATE: Final[dict[str, tuple[str, str, str]]] = {
    "literal": (style.GREY, "o", "--"),
    "paper": (style.GREY, "o", "--"),
    "calibrated": (style.BLUE, "s", "-"),
    "contrast": (style.SKY, "s", "-"),
    "discriminant": (style.BLUE, "^", "-"),
    "vmf": (style.ORANGE, "D", "-"),
    "mahalanobis": (style.RED, "v", "-"),
    "identity": (style.GREEN, "P", "-"),
    "condition": (style.PURPLE, "X", "-."),
}
"""Gate → colour, marker and line."""
BARS: Final = {"elinewidth": 0.6, "capsize": 1.2}


def look(split: str) -> dict[str, str]:
    """Colour and marker of a split."""
    colour, marker = SPLIT[split]
    return {"color": colour, "marker": marker}


def cells(rows: Sequence[Row], metric: str, lines: Sequence[tuple[float, Row]]) -> list[tuple[float, Row]]:
    """A metric's values: for each line that has one, its place and the cell of the row that its labels select."""
    found = [(at, next(iter(style.picked(rows, **labels)), None)) for at, labels in lines]
    return [(at, row[metric]) for at, row in found if row is not None and row[metric] is not None]


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
        lines: height of each line, and the labels that select its rows.
    """
    present = [s for s in shown if any(r["split"] == s for r in rows)]
    for i, split in enumerate(present):
        drawn = cells(rows, metric, [(y, {**labels, "split": split}) for y, labels in lines])
        at = [y + 0.2 * (i - (len(present) - 1) / 2) for y, _ in drawn]
        style.intervals(axis, at, [c for _, c in drawn], along="x", ls="", ms=2.6, **look(split), **BARS)
    style.percents(axis, "x")
    axis.set_xticks([0, 50, 100])
    axis.set_title(title, loc="left")
    axis.grid(axis="y", color=style.GREY, lw=0.3, alpha=0.4)
    axis.tick_params(axis="y", length=0)


def by_split(axis: Axes, rows: Sequence[Row], key: str, step: float, ms: float) -> None:
    """One line per gate, from the top: its values by split, with intervals.

    Args:
        key: where a row holds its cells by split.
        step: distance between two splits.
        ms: size of the markers in points.
    """
    shown = present(rows, key)
    for place, row in enumerate(rows):
        for i, split in enumerate(s for s in shown if s in row[key]):
            at = [place + step * (i - (len(shown) - 1) / 2)]
            style.intervals(axis, at, [row[key][split]], along="x", ls="", ms=ms, **look(split), **BARS)
        axis.axhline(place + 0.5, color=style.GREY, lw=0.3, alpha=0.4)
    axis.set_yticks(range(len(rows)), [named(row) for row in rows])
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(rows) - 0.5, -0.5)


def named(row: Row) -> str:
    """A gate's name, marked if it is the chosen one."""
    return row["gate"] + " *" * bool(row.get("chosen") or row.get("chosen_for"))


def operating_axes(axis: Axes, floor: float, low: float, high: float) -> None:
    """Set up axes in percent: false positives along a logarithmic x whose left edge stands for 0, true ones along y."""
    axis.set_xscale("log")
    axis.set_xlim(floor * low, high)
    axis.set_xticks([floor, 0.01, 0.1, 1.0], ["0", "1", "10", "100"])
    axis.minorticks_off()
    style.percents(axis)


def operating_point(axis: Axes, row: Row, fpr: Row, tpr: Row, floor: float, **look: Any) -> None:
    """Draw a gate's point at its threshold with the intervals of both rates, on `operating_axes`."""
    at = {key: max(floor, fpr[key] / 100) for key in ("value", "low", "high")}
    colour, marker, _ = GATE[row["gate"]]
    edge = {"color": colour, "marker": marker, "mec": style.BLACK, "mew": 0.4}
    errors = {"xerr": style.reach([at]), "yerr": style.reach([tpr])}
    axis.errorbar(at["value"], tpr["value"], **errors, **edge, **look, **BARS)


def present(rows: Sequence[Row], key: str) -> list[str]:
    """The splits that at least one row has cells for."""
    return [split for split in SPLIT if any(split in row[key] for row in rows)]


def legend(splits: Sequence[str], line: str = "") -> list[Line2D]:
    """Legend handles of splits."""
    return [style.entry(SAID.get(s, s), ls=line, **look(s)) for s in splits]


def about(record: Row, n: str) -> str:
    """The end of every caption: model, benchmark, numbers and seed."""
    fitted = f"at most {record['provenance']['fit_limit']} examples of each group in fitting"
    return f"Bars are 95 % intervals. {style.origin(record, f'n = {n}', fitted)}"


def counted(n: Row) -> str:
    """Questions per split, as a text."""
    groups: dict[int, list[str]] = {}
    for split, count in n.items():
        groups.setdefault(count, []).append(split)
    return "; ".join(f"{count} questions ({', '.join(splits)})" for count, splits in groups.items())
