"""Draws `results/rivals.json`: what every method forgets against what it keeps, and how well it is said.

    python figures/rivals.py [--results results/] [--out results/]

Writes `rivals` (column width) as PDF, PNG and a caption.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _style as style
import matplotlib.pyplot as plt
from _labels import label
from _methods import LOOK, handles, name_of, spread
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure

SCHEMA = "rmuse-rivals/1"
X, Y, FILL = "ril_test", "exact_retain_test", "malformed"
GREYS = ListedColormap([plt.get_cmap("Greys")(0.85 * i / 255) for i in range(256)])
"""White to dark grey, never so dark that edges are lost."""
NORM = PowerNorm(0.5, 0, 100)
"""Few malformed responses are told from none."""
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of rivals.json")
    parser.add_argument("--out", type=Path, help="folder for the figure (that of the results)")
    given = parser.parse_args(argv)
    record = style.read(given.results / "rivals.json", SCHEMA)
    style.use()
    written = style.save(trade_off(record), given.out or given.results, "rivals", caption(record))
    print("\n".join(map(str, written)))
    return 0


def shown(record: Row) -> dict[str, Row]:
    """The methods for which both axes are defined, ours last, so that they lie on top."""
    rows = {
        n: r for n, r in record["methods"].items() if None not in (r["values"][k]["value"] for k in (X, Y))
    }
    return dict(sorted(rows.items(), key=lambda pair: list(LOOK).index(pair[1]["kind"])))


def trade_off(record: Row) -> Figure:
    """Leakage on new questions about people to forget, exact answers about people to retain; fill: malformed."""
    figure, axis = plt.subplots(figsize=(style.COLUMN, 3.0))
    rows = shown(record)
    places: dict[str, tuple[float, float]] = {}
    bars: list[Any] = []
    for name, row in rows.items():
        marker, edge, size = LOOK[row["kind"]]
        (x, across), (y, along) = (spread(row["values"][key]) for key in (X, Y))
        malformed = row["values"][FILL]["value"]
        fill = "white" if malformed is None else GREYS(NORM(malformed))
        axis.errorbar(x, y, yerr=along, xerr=across, color=edge, elinewidth=0.5, capsize=0, alpha=0.55, ls="")
        axis.plot(x, y, marker, ms=size, mfc=fill, mec=edge, mew=0.9, clip_on=False, zorder=3)
        places[name] = (x, y)
        bars += [] if across is None else [((x - across[0][0], y), (x + across[1][0], y))]
        bars += [] if along is None else [((x, y - along[0][0]), (x, y + along[1][0]))]
    axis.set_xlim(-4, 104)
    axis.set_ylim(-4, 106)
    axis.set_xlabel("leaked while reasoning, new questions (RIL, %) ←")
    axis.set_ylabel("exact answers, people to retain (%) →")
    axis.set_xticks(range(0, 101, 25))
    axis.set_yticks(range(0, 101, 25))
    axis.grid(color="#E6E6E6", linewidth=0.4)
    axis.set_axisbelow(True)
    shade = plt.cm.ScalarMappable(NORM, GREYS)
    bar = figure.colorbar(shade, ax=axis, location="top", aspect=40, pad=0.02, ticks=(0, 5, 25, 50, 100))
    bar.set_label("malformed, people to forget (%)", fontsize=6.5, labelpad=2)
    bar.ax.tick_params(labelsize=6, length=1.5, pad=1)
    bar.outline.set_linewidth(0.4)
    found = handles(plt, [row["kind"] for row in rows.values()])
    figure.legend(
        handles=found, loc="outside lower center", ncols=len(found), handletextpad=0.2, columnspacing=1.2
    )
    words = {name: name_of(name) for name in rows}
    label(axis, places, words, {name: LOOK[row["kind"]][1] for name, row in rows.items()}, bars)
    return figure


def caption(record: Row) -> str:
    """What the figure shows."""
    origin, found = record["provenance"], record["domination"]
    budget, n = origin["budget"], origin["n"]
    who = {
        name: "/".join(str(row["values"][k]["n"]) for k in (X, Y)) for name, row in record["methods"].items()
    }
    some = next(iter(who.values()), "0/0").split("/")
    verdict = ""
    if found is not None:
        groups = [found["dominates"], found["neither"], found["dominated_by"]]
        verdict = (
            f"R-MUSE dominates {len(groups[0])} of {sum(map(len, groups))} rivals, {len(groups[2])} dominate it, with "
            f"a margin of {found['margin']:g} point in leakage, exact answers and malformed responses. "
        )
    return (
        "What is forgotten against what is kept. Leakage in the reasoning (RIL) on new questions and photographs of the "
        "people to forget, exact answers to new questions about the people to retain; fill: share of malformed "
        "responses to questions about the people to forget; top left and white is best. Bars: 95 % bootstrap intervals "
        f"over people (n = {some[0]} and {some[1]} open questions of {n.get('test', 0)} and {n.get('retain_test', 0)}). "
        + verdict
        + f"Each rival's blocks and strength were chosen on {budget['forget']} + {budget['others']} fitting questions "
        f"held out, out of {len(budget['blocks'])} × {budget['strengths']} trials ({budget['responses']} responses). "
        f"Model {origin['model']['id']} ({origin['model']['fingerprint']}), benchmark {origin['benchmark']['id']}, "
        f"{origin['benchmark']['forget']} % forgotten; seed {origin['seed']}."
    )


if __name__ == "__main__":
    sys.exit(main())
