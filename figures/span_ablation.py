"""Draws `results/span_ablation.json`: what the spans' unlearning subspaces steer to, and how they lie to each other.

python figures/span_ablation.py [--results results/] [--out results/]

Writes `span_ablation` (text width: answers) and `span_ablation_geometry` (text width: overlaps at every block), each as
PDF, PNG and a caption.
"""

import sys
from collections.abc import Sequence

import _splits as splits
import _style as style
import matplotlib.pyplot as plt
from _style import Row
from matplotlib.figure import Figure

SCHEMA = "rmuse-span-ablation/1"
PANELS = (
    ("a  RIL ↓", "ril", ("forget", "test")),
    ("b  refused ↑", "refusal_rate", ("forget", "test")),
    ("c  malformed ↓", "malformed_rate", ("forget", "test", "retain_test")),
    ("d  exact", "exact", ("forget", "test", "retain", "retain_test")),
)
PAIRS = {
    ("prompt_end", "hybrid"): (style.PURPLE, "D"),
    ("reasoning", "hybrid"): (style.BLUE, "o"),
    ("answer", "hybrid"): (style.RED, "s"),
    ("reasoning", "answer"): (style.GREEN, "^"),
}
"""Pair of spans to draw → colour and marker; the file holds all pairs."""
SAID = {"vanilla": "not steered", "prompt_end": "prompt end", "random": "random direction"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    figures = {
        "span_ablation": (answers, caption),
        "span_ablation_geometry": (geometry, geometry_caption),
    }
    return style.command(__doc__, "span_ablation", SCHEMA, figures, argv)


def answers(record: Row) -> Figure:
    """One line per span, one panel per metric."""
    rows = record["rows"]
    names = list(dict.fromkeys(r["span"] for r in rows))
    figure, axes = plt.subplots(1, len(PANELS), figsize=(style.TEXT, 0.8 + 0.24 * len(names)), sharey=True)
    lines = [(float(y), {"span": name}) for y, name in enumerate(names)]
    for axis, (title, metric, shown) in zip(axes, PANELS, strict=True):
        splits.panel(axis, title, metric, shown, rows, lines)
    axes[0].set_yticks(range(len(names)), [SAID.get(name, name) for name in names])
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    axes[0].set_ylabel("$U_{un}$ from")
    figure.supxlabel("percent of the questions", fontsize=7)
    used = [s for s in splits.SPLIT if any(r["split"] == s for r in rows)]
    style.legend(figure, splits.legend(used), handletextpad=0.2)
    return figure


def geometry(record: Row) -> Figure:
    """Overlap of subspaces and of directions by block, one row of panels per kind of query."""
    rows = record["geometry"]
    kinds = style.modalities(rows)
    shape = {"figsize": (style.TEXT, 0.6 + 1.5 * len(kinds)), "sharex": True, "squeeze": False}
    figure, axes = plt.subplots(len(kinds), 2, **shape)
    for (subspaces, directions), kind in zip(axes, kinds, strict=True):
        for (first, second), (colour, marker) in PAIRS.items():
            mine = style.picked(rows, modality=kind, first=first, second=second)
            layers = [r["layer"] for r in mine]
            look = {"color": colour, "marker": marker}
            subspaces.plot(layers, [r["kernel_normalised"] for r in mine], **look)
            by_chance = [r["null"]["mean"] for r in mine]
            subspaces.plot(layers, by_chance, color=colour, lw=0.5, ls=":", zorder=-1)
            directions.plot(layers, [r["direction_cosine"] for r in mine], **look)
        half = 1.96 * rows[0]["direction_null_sd"]  # covers 95 % of pairs of random directions
        directions.axhspan(-half, half, color=style.GREY, alpha=0.18, lw=0, zorder=-1)
        for axis, bottom in ((subspaces, 0), (directions, directions.get_ylim()[0])):
            axis.set_ylim(bottom, 1.04)
            own = record["provenance"]["layers"].get(kind, [])
            axis.plot(own, [bottom] * len(own), "^", ms=5, color=style.BLACK, clip_on=False, zorder=5)
        subspaces.set_ylabel(f"{kind} queries\ncosine of projections")
        directions.set_ylabel("cosine of $v_{un}$")
    style.titles(axes[0], ("a  subspaces $U_{un}$", "b  directions $v_{un}$"))
    for axis in axes[-1]:
        style.blocks(axis, "block (▲: steered)")
    handles = [
        style.entry(f"{SAID.get(first, first)}, {second}", color=colour, marker=marker)
        for (first, second), (colour, marker) in PAIRS.items()
    ]
    handles.append(style.entry("by chance", lw=0.5, ls=":"))
    style.legend(figure, handles, columnspacing=1.0, handlelength=1.8)
    return figure


def caption(record: Row) -> str:
    """Caption of the figure of answers."""
    fitted = "; ".join(
        f"{kind}: {', '.join(f'{SAID.get(s, s)} {n}' for s, n in spans.items())}"
        for kind, spans in record["provenance"]["n_fitted"].items()
    )
    return (
        "Steering toward the principal direction of an unlearning subspace fitted on one span: the last prompt token, "
        "the reasoning, the answer, or both of them (hybrid, the method's); a random direction is the control. Rotation "
        "by the adaptive angle, inside the complement of the RRS; gate, blocks and prototypes are the calibrated plan's. "
        "(a) Reasoning information leakage. (b) Well-formed refusals. (c) Responses that are neither an answer nor a "
        f"chain with one. (d) Exact free answers. Forget queries fitted on: {fitted}. "
        + splits.about(record, splits.counted(record["provenance"]["n"]))
    )


def geometry_caption(record: Row) -> str:
    """Caption of the figure of overlaps."""
    return (
        "How the unlearning subspaces of single spans lie to each other, by decoder block. (a) Cosine between the "
        "projections on two of them; dotted: the mean of random subspaces of the same ranks. (b) Cosine between their "
        "principal directions; shaded: 95 % of pairs of random directions. These are values of one fit, without "
        "intervals. " + splits.about(record, splits.counted(record["provenance"]["n"]))
    )


if __name__ == "__main__":
    sys.exit(main())
