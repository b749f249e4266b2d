"""Draws `results/span_ablation.json`: what the spans' unlearning subspaces steer to, and how they lie to each other.

python figures/span_ablation.py [--results results/] [--out results/]

Writes `span_ablation` (text width: answers) and `span_ablation_geometry` (text width: overlaps at every block), each as
PDF, PNG and a caption.
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
from matplotlib.lines import Line2D

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
"""The pairs that are drawn → colour and marker; the file holds all."""
SAID = {"vanilla": "not steered", "prompt_end": "prompt end", "random": "random direction"}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of span_ablation.json")
    parser.add_argument("--out", type=Path, help="folder for the figures (that of the results)")
    given = parser.parse_args(argv)
    record = style.read(given.results / "span_ablation.json", SCHEMA)
    style.use()
    folder = given.out or given.results
    written = style.save(answers(record), folder, "span_ablation", caption(record))
    written += style.save(geometry(record), folder, "span_ablation_geometry", geometry_caption(record))
    print("\n".join(map(str, written)))
    return 0


def answers(record: splits.Row) -> Figure:
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
    figure.legend(handles=splits.legend(used), loc="outside upper center", ncols=len(used), handletextpad=0.2)
    return figure


def geometry(record: splits.Row) -> Figure:
    """Overlap of subspaces and of directions by block, one row of panels per kind of query."""
    rows = record["geometry"]
    kinds = [kind for kind in style.MODALITY if any(r["modality"] == kind for r in rows)]
    figure, axes = plt.subplots(
        len(kinds), 2, figsize=(style.TEXT, 0.6 + 1.5 * len(kinds)), sharex=True, squeeze=False
    )
    for axis_row, kind in zip(axes, kinds, strict=True):
        for pair, (colour, marker) in PAIRS.items():
            mine = sorted(
                (r for r in rows if r["modality"] == kind and (r["first"], r["second"]) == pair),
                key=lambda r: r["layer"],
            )
            layers = [r["layer"] for r in mine]
            shape = {"color": colour, "marker": marker}
            axis_row[0].plot(layers, [r["kernel_normalised"] for r in mine], **shape)
            axis_row[0].plot(
                layers, [r["null"]["mean"] for r in mine], color=colour, lw=0.5, ls=":", zorder=-1
            )
            axis_row[1].plot(layers, [r["direction_cosine"] for r in mine], **shape)
        by_chance(axis_row[1], rows)
        for axis in axis_row:
            axis.set_ylim(axis.get_ylim()[0] if axis is axis_row[1] else 0, 1.04)
            own = record["provenance"]["layers"].get(kind, [])
            axis.plot(
                own, [axis.get_ylim()[0]] * len(own), "^", ms=5, color=style.BLACK, clip_on=False, zorder=5
            )
        axis_row[0].set_ylabel(f"{kind} queries\ncosine of projections")
        axis_row[1].set_ylabel("cosine of $v_{un}$")
    axes[0][0].set_title("a  subspaces $U_{un}$", loc="left")
    axes[0][1].set_title("b  directions $v_{un}$", loc="left")
    for axis in axes[-1]:
        axis.set_xlabel("block (▲: steered)")
        axis.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    handles = [
        Line2D([], [], color=c, marker=m, label=f"{SAID.get(a, a)}, {b}") for (a, b), (c, m) in PAIRS.items()
    ]
    handles.append(Line2D([], [], color=style.BLACK, lw=0.5, ls=":", label="by chance"))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.0, handlelength=1.8
    )
    return figure


def by_chance(axis: Axes, rows: Sequence[splits.Row]) -> None:
    """95 % range of the cosine of two random directions."""
    half = 1.96 * rows[0]["direction_null_sd"]
    axis.axhspan(-half, half, color=style.GREY, alpha=0.18, lw=0, zorder=-1)


def caption(record: splits.Row) -> str:
    """What the figure of answers shows."""
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


def geometry_caption(record: splits.Row) -> str:
    """What the figure of overlaps shows."""
    return (
        "How the unlearning subspaces of single spans lie to each other, by decoder block. (a) Cosine between the "
        "projections on two of them; dotted: the mean of random subspaces of the same ranks. (b) Cosine between their "
        "principal directions; shaded: 95 % of pairs of random directions. These are values of one fit, without "
        "intervals. " + splits.about(record, splits.counted(record["provenance"]["n"]))
    )


if __name__ == "__main__":
    sys.exit(main())
