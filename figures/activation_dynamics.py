"""Draws `results/activation_dynamics.json`: retain and forget states before and after steering (the paper's figure 4).

    python figures/activation_dynamics.py [--results results/] [--out results/]

Writes `activation_dynamics` (text width) as PDF, PNG and a caption.
"""

import sys
from collections.abc import Sequence

import _style as style
import matplotlib.pyplot as plt
from _style import Row
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SCHEMA = "rmuse-activation-dynamics/1"
SIDE = {"retain": (style.BLUE, "o"), "forget": (style.RED, "s")}
DASHES = {"image": "-", "text": "--"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return style.command(
        __doc__, "activation_dynamics", SCHEMA, {"activation_dynamics": (draw, caption)}, argv
    )


def presets(record: Row) -> list[str]:
    """The methods, in the order of the file."""
    return list(dict.fromkeys(row["preset"] for row in record["rows"]))


def shown(record: Row, preset: str, modality: str) -> Row | None:
    """Row of the block whose plane is drawn: the highest steered block, or the highest block if none is steered."""
    mine = [r for r in record["rows"] if (r["preset"], r["modality"]) == (preset, modality)]
    return max(mine, key=lambda r: (r["steered"], r["layer"]), default=None)


def draw(record: Row) -> Figure:
    """One row of panels per method: a plane per kind of query, then the displacement of states at each block."""
    names = presets(record)
    kinds = style.modalities(record["rows"])
    size = (style.TEXT, 0.6 + 1.9 * len(names))
    figure, axes = plt.subplots(len(names), len(kinds) + 1, figsize=size, squeeze=False)
    for line, name in zip(axes, names, strict=True):
        for axis, kind in zip(line, kinds, strict=False):
            row = shown(record, name, kind)
            if row is None:
                axis.set_axis_off()
                continue
            plane(axis, row)
        line[0].set_ylabel(f"{name}\n{line[0].get_ylabel()}")
        distances(line[-1], [r for r in record["rows"] if r["preset"] == name])
    layers = [r["layer"] for r in record["rows"]]
    for axis in axes[:, -1]:
        axis.set_xlim(min(layers) - 0.4, max(layers) + 0.4)
    axes[-1][-1].set_xlabel("block (▲: steered)")
    names = [f"{letter}  {kind} queries" for letter, kind in zip("ab", kinds, strict=False)]
    style.titles(axes[0], [*names, f"{'abc'[len(kinds)]}  displacement"])
    looks = {side: {"color": colour, "marker": marker, "ls": ""} for side, (colour, marker) in SIDE.items()}
    handles = [style.entry(f"{side}, steered", **look) for side, look in looks.items()]
    handles += [style.entry(f"{side}, before", mfc="white", **look) for side, look in looks.items()]
    handles += [style.entry(f"{kind} (c)", ls=DASHES[kind]) for kind in kinds]
    style.legend(figure, handles, columnspacing=1.0, handletextpad=0.4, handlelength=1.6)
    return figure


def plane(axis: Axes, row: Row) -> None:
    """Draw states before (hollow) and after (filled), joined by a thin line if they moved."""
    for side, (colour, marker) in SIDE.items():
        mine = [p for p in row["points"].values() if p["side"] == side]
        moves = [(p["before"], p["after"]) for p in mine if p["displaced"] > 0]
        axis.add_collection(LineCollection(moves, colors=colour, linewidths=0.35, alpha=0.45, zorder=1))
        for when, face in (("before", "white"), ("after", colour)):
            x, y = zip(*(p[when] for p in mine), strict=True)
            look = {"color": colour, "mfc": face, "mew": 0.5, "alpha": 0.85, "ms": 2.4, "ls": ""}
            axis.plot(x, y, marker, zorder=2 if when == "before" else 3, **look)
    first, second = row["explained"]
    axis.set_xlabel(f"axis 1 ({100 * first:.0f} %), block {row['layer']}", labelpad=1.5)
    axis.set_ylabel(f"axis 2 ({100 * second:.0f} %)", labelpad=1)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.margins(0.06)  # keeps markers off the frame


def distances(axis: Axes, rows: Sequence[Row]) -> None:
    """Mean displacement of each side at every block, with its interval."""
    kinds = [k for k in DASHES if any(r["modality"] == k for r in rows)]
    for place, kind in enumerate(kinds):
        mine = style.picked(rows, modality=kind)
        shift = 0.1 * (place - (len(kinds) - 1) / 2)
        at = [r["layer"] + shift for r in mine]
        bars = {"ms": 2.2, "ls": DASHES[kind], "elinewidth": 0.7, "capsize": 2, "clip_on": False}
        for side, (colour, marker) in SIDE.items():
            cells = [r["displaced"][side] for r in mine]
            style.intervals(axis, at, cells, scale=100, color=colour, marker=marker, **bars)
        there = [r["layer"] + shift for r in mine if r["steered"]]
        below = {"transform": axis.get_xaxis_transform(), "clip_on": False, "zorder": 5}
        face = style.BLACK if kind == "image" else "white"
        axis.plot(there, [-0.045] * len(there), "^", ms=3.6, color=style.BLACK, mfc=face, mew=0.6, **below)
    axis.set_ylabel("moved (% of length)", labelpad=1)
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.tick_params(axis="x", pad=9, length=0)


def caption(record: Row) -> str:
    """What the figure shows, with the tests of every plane drawn."""
    origin = record["provenance"]
    counted = "; ".join(
        f"{kind}: {n['forget']} forget and {n['retain']} retain" for kind, n in origin["n"].items()
    )
    tests, closed = [], []
    for name in presets(record):
        for kind in origin["n"]:
            row = shown(record, name, kind)
            if row is None:
                continue
            t, moved = row["test"], row["displaced"]
            low, high = (100 * v for v in t["interval"])
            tests.append(
                f"{name}, {kind}: {100 * moved['forget']['value']:.1f} against {100 * moved['retain']['value']:.1f} %, "
                f"difference {100 * t['difference']:+.1f} [{low:.1f}, {high:.1f}], {chance(t)} "
                f"({t['people'][0]} and {t['people'][1]} people), with people dealt at random p = "
                f"{row['shuffled']['p']:.2g}"
            )
            if row["closed"]["most"] is not None:
                closed.append(f"{name}, {kind}: {row['closed']['most']:g} (n = {row['closed']['n']})")
    return (
        "States of retain and forget queries before and after steering. (a, b) Each query's mean over the last prompt "
        "token and its reference response, at the highest steered block, in the plane of the two principal axes of the "
        "unsteered states (share of their variance in brackets); a filled mark without a line was not moved. (c) Length "
        "of the displacement over that of the states, in all dimensions; mean and 95 % bootstrap interval, people "
        "resampled; filled triangles: blocks steered for image queries, open ones for text. One-sided permutation tests "
        f"over people at these blocks: {'; '.join(tests)}. "
        + (f"Largest displacement where the gate stayed closed: {'; '.join(closed)}. " if closed else "")
        + style.origin(record, f"n = {counted} queries")
    )


def chance(test: Row) -> str:
    """The p value; an upper bound if no permutation was as large."""
    return f"p = {test['p']:.2g}" if test["p"] > test["least"] * 1.001 else f"p ≤ {test['p']:.2g}"


if __name__ == "__main__":
    sys.exit(main())
