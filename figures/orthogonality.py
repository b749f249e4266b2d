"""Draws `results/orthogonality.json`: how the unlearning geometry and its updates lie to the RRS, block by block.

python figures/orthogonality.py [--results results/] [--out results/]

Writes `orthogonality` (text width: geometry and updates at every block), `orthogonality_plan` (column width: the plans as
they are run) and `orthogonality_stability` (text width: refits on resampled people, where the results hold some), each as
PDF, PNG and a caption.
"""

import sys
from collections.abc import Sequence
from typing import Any

import _style as style
import matplotlib.pyplot as plt
from _style import Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

SCHEMA = "rmuse-orthogonality/2"
LINES = {"none": "-", "direction": "--", "room": "-.", "rotation": ":"}
SAID = {
    "none": "no protection",
    "direction": "direction protected",
    "room": "partly protected",
    "rotation": "rotation protected",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    figures = {
        "orthogonality": (everywhere, caption),
        "orthogonality_plan": (plans, plan_caption),
        "orthogonality_stability": (stability, stability_caption),
    }
    return style.command(__doc__, "orthogonality", SCHEMA, figures, argv)


def presets(record: Row) -> list[str]:
    """The methods, in the order of the file."""
    return list(dict.fromkeys(row["preset"] for row in record["geometry"]))


def everywhere(record: Row) -> Figure:
    """One row of panels per method: subspaces, direction, updates of each block steered alone."""
    names = presets(record)
    shape = {"figsize": (style.TEXT, 0.7 + 1.6 * len(names)), "sharex": True, "squeeze": False}
    figure, axes = plt.subplots(len(names), 3, **shape)
    for row, name in enumerate(names):
        geometry = style.picked(record["geometry"], preset=name)
        kernels(axes[row][0], geometry)
        directions(axes[row][1], geometry)
        alone = style.picked(record["updates"], preset=name, run="alone", gate="open")
        updates(axes[row][2], alone)
        own = record["provenance"]["layers"][name]
        kinds = style.modalities(geometry)
        for axis in axes[row]:
            axis.set_ylim(bottom=0)
            for kind in kinds:
                colour, shift = style.MODALITY[kind][0], 0.12 if kind == "text" else -0.12
                at = [layer + shift * (len(kinds) > 1) for layer in own[kind]]
                look = {"color": colour, "mec": style.BLACK, "mew": 0.5, "clip_on": False, "zorder": 5}
                axis.plot(at, [0] * len(at), "^", ms=5, **look)
        axes[row][0].set_ylabel(f"{name}\ncosine of projections")
        axes[row][1].set_ylabel("$v_{un}$ in the RRS (%)")
        axes[row][2].set_ylabel("update in the RRS (%)")
    names = ("subspaces $U_{un}$ and $U_{rrs}$", "steering direction", "updates on reasoning queries")
    style.titles(axes[0], [f"{letter}  {name}" for letter, name in zip("abc", names, strict=True)])
    for axis in axes[-1]:
        style.blocks(axis, "block (▲: steered by the plan)")
    handles = queries(record["geometry"])
    used = [p for p in LINES if any(r["protection"] == p for r in record["updates"])]
    handles += [style.entry(SAID[p], ls=LINES[p]) for p in used]
    handles.append(style.entry("random subspaces (95 %)", color=style.GREY, lw=3, alpha=0.4))
    style.legend(figure, handles, columnspacing=1.0, handlelength=1.8)
    return figure


def queries(rows: Sequence[Row], **look: Any) -> list[Line2D]:
    """Legend entries for the kinds of query of some rows."""
    looks = {kind: style.MODALITY[kind] for kind in style.modalities(rows)}
    return [style.entry(f"{kind} queries", color=c, marker=m, **look) for kind, (c, m) in looks.items()]


def band(axis: Axes, rows: list[Row], nulls: list[Row], scale: list[float], colour: str) -> None:
    """Draw mean and 95 % range of random subspaces, in the colour of the kind of query with the same ranks."""
    layers = [row["layer"] for row in rows]
    mean = [n["mean"] * s for n, s in zip(nulls, scale, strict=True)]
    low = [max(0.0, (n["mean"] - 1.96 * n["sd"]) * s) for n, s in zip(nulls, scale, strict=True)]
    high = [(n["mean"] + 1.96 * n["sd"]) * s for n, s in zip(nulls, scale, strict=True)]
    axis.fill_between(layers, low, high, color=colour, alpha=0.13, lw=0, zorder=-1)
    axis.plot(layers, mean, color=colour, lw=0.5, alpha=0.6, zorder=-1)


def kernels(axis: Axes, rows: list[Row]) -> None:
    """Draw the cosine of the two projections, against random subspaces of the same ranks."""
    for kind in style.modalities(rows):
        mine = style.picked(rows, modality=kind)
        colour, marker = style.MODALITY[kind]
        scale = [1 / max(1e-9, (r["rank_unlearning"] * r["rank_rrs"]) ** 0.5) for r in mine]
        band(axis, mine, [r["null"] for r in mine], scale, colour)
        axis.plot(
            [r["layer"] for r in mine], [r["kernel_normalised"] for r in mine], color=colour, marker=marker
        )


def directions(axis: Axes, rows: list[Row]) -> None:
    """Draw the share of the steering direction inside the RRS, before and after protection."""
    for kind in style.modalities(rows):
        mine = style.picked(rows, modality=kind)
        colour, marker = style.MODALITY[kind]
        band(axis, mine, [r["direction"]["null"] for r in mine], [100.0] * len(mine), colour)
        for side, line in (("before", LINES["none"]), ("after", LINES["direction"])):
            there = [r for r in mine if side in r["direction"]]
            shares = [100 * r["direction"][side]["share"] for r in there]
            axis.plot([r["layer"] for r in there], shares, line, color=colour, marker=marker)


def updates(axis: Axes, rows: list[Row]) -> None:
    """Draw the share of the updates inside the RRS with 95 % intervals, by protection."""
    for kind in style.modalities(rows):
        colour, marker = style.MODALITY[kind]
        for protection, line in LINES.items():
            mine = [
                r for r in style.picked(rows, modality=kind, protection=protection) if r["share"] is not None
            ]
            if not mine:
                continue
            shift = 0.08 if kind == "text" else -0.08
            if protection == "none":
                band(axis, mine, [r["null"] for r in mine], [100.0] * len(mine), colour)
            at = [r["layer"] + shift for r in mine]
            look = {"color": colour, "marker": marker, "ls": line, "elinewidth": 0.7}
            style.intervals(axis, at, mine, scale=100, value="share", **look)


def plans(record: Row) -> Figure:
    """The whole plans: the share of their updates inside the RRS by protection, beside that of random subspaces."""
    rows = style.picked(record["updates"], run="plan", measure="update", gate="open")
    groups = list(dict.fromkeys((r["preset"], r["protection"]) for r in rows))
    figure, axis = plt.subplots(figsize=(style.COLUMN, 0.75 + 0.42 * len(groups)))
    for place, (preset, protection) in enumerate(groups):
        for kind in style.modalities(rows):
            colour, marker = style.MODALITY[kind]
            mine = style.picked(rows, preset=preset, protection=protection, modality=kind)
            for r in (m for m in mine if m["share"] is not None):
                y = place + (0.14 if kind == "text" else -0.14)
                share = 100 * r["share"]
                look = {
                    "color": colour,
                    "marker": marker,
                    "ms": 2.6,
                    "elinewidth": 0.9,
                    "capsize": 2,
                    "ls": "",
                }
                style.intervals(axis, [y], [r], along="x", scale=100, value="share", **look)
                if share > 1:  # at 0 the numbers would overlap
                    away, side = (-3, "top") if kind == "text" else (3, "bottom")
                    beside = {"textcoords": "offset points", "ha": "center", "va": side, "fontsize": 5.5}
                    axis.annotate(str(r["layer"]), (share, y), (0, away), **beside)
                axis.plot([100 * r["null"]["mean"]] * 2, [y - 0.1, y + 0.1], color=style.GREY)
    own = {(r["preset"], r["protection"]) for r in rows if r["own"]}
    labels = [f"{preset}\n{SAID[p]}{' *' if (preset, p) in own else ''}" for preset, p in groups]
    axis.set_yticks(range(len(groups)), labels)
    axis.invert_yaxis()
    axis.set_xlim(left=-2)
    axis.set_xlabel("update in the RRS (%)")
    handles = [*queries(rows, ls=""), style.entry("by chance", color=style.GREY, marker="|", ls="")]
    style.legend(figure, handles, columnspacing=1.0, handletextpad=0.3)
    return figure


MOVED = (
    ("unlearning_angle_degrees", 0, "b  $U_{un}$, refit to fit"),
    ("direction_angle_degrees", None, "c  $v_{un}$, refit to fit"),
    ("rrs_angle_degrees", 1, "d  $U_{rrs}$, refit to fit"),
)
"""Key of an angle, its index among the angles of chance, and the panel's title."""


def stability(record: Row) -> Figure | None:
    """One row of panels per method: the kernel, and the angles between refits and the fit, over resamples."""
    if not record["stability"]:
        return None
    names = presets(record)
    shape = {"figsize": (style.TEXT, 0.7 + 1.5 * len(names)), "sharex": True, "squeeze": False}
    figure, axes = plt.subplots(len(names), 4, **shape)
    kinds = style.modalities(record["stability"])
    whole_fit = {"color": style.BLACK, "ms": 6, "mew": 1.1}
    for line, name in zip(axes, names, strict=True):
        for place, kind in enumerate(kinds):
            mine = style.picked(record["stability"], preset=name, modality=kind)
            whole = {r["layer"]: r for r in style.picked(record["geometry"], preset=name, modality=kind)}
            colour, marker = style.MODALITY[kind]
            layers = [r["layer"] for r in mine]
            at = [layer + 0.16 * (place - (len(kinds) - 1) / 2) for layer in layers]
            for axis, key in zip(line, ("kernel_normalised", *(key for key, *_ in MOVED)), strict=True):
                look = {"color": colour, "marker": marker, "elinewidth": 0.7}
                style.intervals(axis, at, [r[key] for r in mine], value="median", **look)
            line[0].plot(at, [whole[x]["kernel_normalised"] for x in layers], "_", zorder=4, **whole_fit)
            for axis, (_, chance, _) in zip(line[1:], MOVED, strict=True):
                if chance is not None:
                    by_chance = [r["chance_degrees"][chance] for r in mine]
                    axis.plot(layers, by_chance, ":", color=colour, lw=0.8, zorder=-1)
        line[0].set_ylim(bottom=0)
        line[0].set_ylabel(f"{name}\ncosine of projections")
        line[1].set_ylabel("degrees")
        for axis in line[1:]:
            axis.set_ylim(0, 92)
            axis.set_yticks([0, 30, 60, 90])
    style.titles(axes[0], ("a  overlap of both", *(title for *_, title in MOVED)))
    for axis in axes[-1]:
        style.blocks(axis)
    handles = queries(record["stability"])
    handles.append(style.entry("fit on all data", marker="_", ls="", **whole_fit))
    handles.append(style.entry("random subspaces", color=style.GREY, ls=":"))
    style.legend(figure, handles, columnspacing=1.2, handlelength=1.8)
    return figure


def stability_caption(record: Row) -> str:
    """Caption of the figure of resamples."""
    origin, rows = record["provenance"], record["stability"]
    kinds = {r["modality"]: r for r in rows}
    counted = "; ".join(
        f"{kind}: {r['n_forget']} forget examples about {r['clusters_forget']} people and {r['n_retain']} retain "
        f"examples in {r['clusters_retain']} clusters"
        for kind, r in kinds.items()
    )
    return (
        f"Both subspaces refitted on {origin['resamples']} bootstrap resamples of their fitting examples, people drawn "
        "with all of their examples: median and 95 % range. (a) Cosine between the projections on U_un and U_rrs; black: "
        "the fit on all data (a resample holds fewer distinct people, so that the fit may lie outside the range). (b to "
        "d) Angle between the refit and the fit on all data: of U_un and U_rrs the angle whose squared cosine is the "
        "mean over their principal angles, of v_un the angle itself; dotted: random subspaces of the same ranks. "
        + style.origin(record, f"n = {counted}")
    )


def about(record: Row) -> str:
    """The end of every caption: model, benchmark, queries and seed."""
    counted = " and ".join(f"{n} {kind}" for kind, n in record["provenance"]["n"].items())
    return style.origin(record, f"n = {counted} held-out reasoning queries with their reference responses")


def caption(record: Row) -> str:
    """Caption of the wide figure."""
    own = "; ".join(
        f"{name}, {kind}: {', '.join(map(str, blocks)) or 'none'}"
        for name, kinds in record["provenance"]["layers"].items()
        for kind, blocks in kinds.items()
    )
    return (
        "Unlearning geometry against the reasoning retain subspace (RRS), by decoder block. (a) Cosine between the "
        "projections on U_un and U_rrs: their projection kernel over the geometric mean of the ranks. (b) Share of "
        "the principal unlearning direction inside the RRS, before and after it is cleared of the RRS. (c) Share of "
        "the update (steered minus unsteered state) inside the RRS, each block steered alone with its gate forced "
        "open; bars are 95 % bootstrap intervals over queries. Shaded: mean and 95 % range of random subspaces of "
        f"the same ranks. Triangles: the blocks that the plan itself steers ({own}). " + about(record)
    )


def plan_caption(record: Row) -> str:
    """Caption of the narrow figure."""
    gated = style.picked(record["updates"], run="plan", measure="update", gate="gated")
    fired = {(r["preset"], r["modality"]): f"{r['n_updated']} of {r['n']}" for r in gated if r["own"]}
    said = "; ".join(f"{preset}, {kind}: {count}" for (preset, kind), count in fired.items())
    return (
        "Share of the updates of whole plans that falls into the RRS of the steered block, gates open, with 95 % "
        "bootstrap intervals over queries; numbers: its block; grey ticks: random subspaces of its rank; *: the form "
        f"of protection the plan has. With gates as they decide, the plans steered {said} of these queries. "
        + about(record)
    )


if __name__ == "__main__":
    sys.exit(main())
