"""Draws `results/ablations.json`: what each ingredient of both presets is worth.

python figures/ablations.py [--results results/] [--out results/]
"""

import sys
from collections.abc import Sequence

import _splits as splits
import _style as style
import matplotlib.pyplot as plt
from _style import Row
from matplotlib.figure import Figure

SCHEMA = "rmuse-ablations/1"
PANELS = (
    ("a  RIL ↓", "ril", ("forget", "test")),
    ("b  refused", "refusal_rate", ("forget", "test", "retain_test")),
    ("c  malformed ↓", "malformed_rate", ("test", "retain_test", "reasoning")),
    ("d  choice", "classification", ("forget", "retain")),
    ("e  exact ↑", "exact", ("retain_test", "celebrity", "reasoning", "benign")),
    ("f  gate fires", "fire_rate", ("test", "retain_test", "reasoning", "benign")),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return style.command(__doc__, "ablations", SCHEMA, {"ablations": (draw, caption)}, argv)


def draw(record: Row) -> Figure:
    """One line per ablation, one panel per metric."""
    rows = record["rows"]
    groups = [("vanilla", "none"), *((v["preset"], v["ablation"]) for v in record["variants"])]
    place, y = {}, 0.0
    for i, (preset, ablation) in enumerate(groups):
        y += 0.6 if i and preset != groups[i - 1][0] else 0.0  # a gap between the presets
        place[preset, ablation] = y
        y += 1.0
    figure, axes = plt.subplots(1, len(PANELS), figsize=(style.TEXT, 0.8 + 0.21 * y), sharey=True)
    lines = [(y, {"preset": p, "ablation": a}) for (p, a), y in place.items()]
    for axis, (title, name, shown) in zip(axes, PANELS, strict=True):
        splits.panel(axis, title, name, shown, rows, lines)
    labels = [f"{p}: full" if a == "full" else p if a == "none" else a for p, a in place]
    axes[0].set_yticks(list(place.values()), labels)
    for tick, (_, ablation) in zip(axes[0].get_yticklabels(), place, strict=True):
        tick.set_fontweight("bold" if ablation in ("full", "none") else "normal")
    axes[0].set_ylim(y - 0.4, -0.6)
    figure.supxlabel("percent of the questions", fontsize=7)
    drawn = {split for *_, shown in PANELS for split in shown} & {r["split"] for r in rows}
    used = [split for split in splits.SPLIT if split in drawn]
    style.legend(figure, splits.legend(used), columnspacing=1.0, handletextpad=0.2)
    return figure


def caption(record: Row) -> str:
    """Caption of the figure."""
    return (
        "Ablations of both presets, each one edit of the fitted expression; whatever an ablation does not name stays as "
        "fitted. (a) Reasoning information leakage. (b) Well-formed refusals. (c) Responses that are neither an answer "
        "nor a chain with one. (d) Multiple choice (the paper's table uses forget and retain; chance is 25). (e) Exact "
        "free answers. (f) Share of queries steered; a plan without gates steers all. "
        + splits.about(record, splits.counted(record["provenance"]["n"]))
        + " RIL and exact are measured on the open questions, two thirds of them in most splits. "
        "Intervals of (f) are Wilson's, all others resample people."
    )


if __name__ == "__main__":
    sys.exit(main())
