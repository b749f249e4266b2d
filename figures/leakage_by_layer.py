"""Draws `results/leakage_by_layer.json`: what probes still read at every block, before and after steering.

python figures/leakage_by_layer.py [--results results/] [--out results/]

Writes `leakage_by_layer` (text width: people to forget, by place, who is meant and the attribute) and
`leakage_by_layer_lens` (column width: the model's own read-out and probes of other people at the token that predicts the
value), each as PDF, PNG and a caption.
"""

import sys
from collections.abc import Sequence
from typing import Any

import _style as style
import matplotlib.pyplot as plt
from _style import Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

SCHEMA = "rmuse-leakage-by-layer/1"
COLUMNS = (
    ("image", "prompt", "image tokens"),
    ("prompt_end", "prompt", "prompt end"),
    ("reasoning", "reference", "reasoning,\nreference words"),
    ("reasoning", "refusal", "reasoning,\nrefusal words"),
    ("answer", "refusal", "answer,\nrefusal words"),
)
ROWS = (("identity", "image"), ("attribute", "image"), ("identity", "text"), ("attribute", "text"))
SIDES = {
    "before": ("-", "before steering"),
    "after": ("--", "after, probe trained anew"),
    "moved": (":", "after, probe of before"),
}
DOTTED = (0, (1, 3))
CHANCE = style.entry("chance", lw=0.5, ls=DOTTED)
SHUFFLED = Patch(color=style.GREY, alpha=0.3, lw=0, label="shuffled labels (95 %)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    figures = {
        "leakage_by_layer": (probes, caption),
        "leakage_by_layer_lens": (recall, lens_caption),
    }
    return style.command(__doc__, "leakage_by_layer", SCHEMA, figures, argv)


def probes(record: Row) -> Figure:
    """One row of panels per target and kind of query, one column per place; retained people in grey."""
    shown = [
        row for row in ROWS if style.picked(record["probes"], group="forget", target=row[0], modality=row[1])
    ]
    shape = {"figsize": (style.TEXT, 0.85 + 1.2 * len(shown)), "sharex": True, "sharey": True}
    figure, axes = plt.subplots(len(shown), len(COLUMNS), squeeze=False, **shape)
    for line, (target, modality) in zip(axes, shown, strict=True):
        for axis, (place, words, _) in zip(line, COLUMNS, strict=True):
            labels = {"target": target, "modality": modality, "place": place, "words": words}
            panel(axis, record, {**labels, "held_out": "rendering"})
        line[0].set_ylabel(f"{target}, {modality}\naccuracy (%)")
    style.titles(axes[0], [title for *_, title in COLUMNS])
    for axis in axes[-1]:
        axis.set_xlabel("block")
    handles = [style.entry(said, ls=line) for line, said in SIDES.values()]
    handles += [
        style.entry("retained people, after", color=style.GREY, lw=0.7),
        CHANCE,
        SHUFFLED,
        style.entry("words shown", color=style.PURPLE, lw=0.8, ls="-."),
        style.entry("steered block", marker="^", mec=style.BLACK, ms=4, ls=""),
    ]
    style.legend(figure, handles, ncols=4, columnspacing=1.4, handlelength=2.2)
    return figure


def panel(axis: Axes, record: Row, labels: Row) -> None:
    """Draw accuracy by block with intervals, chance, the bands of shuffled labels and the accuracy from words alone."""
    mine = style.picked(record["probes"], group="forget", side="before", **labels)
    if not mine:
        middle = {"transform": axis.transAxes, "ha": "center"}
        axis.text(0.5, 0.5, "nothing read", color=style.GREY, fontsize=6, **middle)
        return
    colour, marker = style.MODALITY[labels["modality"]]
    chance(axis, mine)
    words = style.picked(record["controls"], group="forget", side="before", control="words", **labels)
    if words:
        axis.axhline(100 * words[0]["accuracy"], color=style.PURPLE, lw=0.8, ls="-.", zorder=-1)
    retained = style.picked(record["probes"], group="retain", side="after", **labels)
    at, values = [r["layer"] for r in retained], [100 * r["accuracy"] for r in retained]
    axis.plot(at, values, color=style.GREY, lw=0.7, zorder=0)
    for step, side in zip((-0.1, 0.0, 0.1), SIDES, strict=True):
        rows = apart(style.picked(record["probes"], group="forget", side=side, **labels))
        curve(axis, rows, side, colour, marker, step=step, scale=100, value="accuracy")
    steered(axis, record, labels["modality"])
    axis.set_ylim(-4, 106)
    axis.set_yticks([0, 25, 50, 75, 100])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def apart(rows: Sequence[Row]) -> list[Row]:
    """Rows from one before the first that differs from before steering; all rows of a side without a comparison."""
    parted = [i for i, r in enumerate(rows) if "drop" not in r or any(r["drop"].values())]
    return list(rows[max(0, parted[0] - 1) :]) if parted else []


def chance(axis: Axes, rows: Sequence[Row]) -> None:
    """Draw the best constant guess and the band of shuffled labels."""
    if not rows:
        return
    low, high = ([100 * r[k] for r in rows] for k in ("shuffled_low", "shuffled_high"))
    axis.fill_between([r["layer"] for r in rows], low, high, color=style.GREY, alpha=0.3, lw=0, zorder=-2)
    axis.axhline(100 * rows[0]["chance"], color=style.BLACK, lw=0.5, ls=DOTTED, zorder=-1)


def curve(
    axis: Axes, rows: Sequence[Row], side: str, colour: str, marker: str, step: float = 0.0, **cells: Any
) -> None:
    """Draw values by block with error bars: filled markers before steering, open ones after."""
    face = colour if side == "before" else "white"
    look = {"color": colour, "marker": marker, "mfc": face, "ls": SIDES[side][0], "ms": 2.4, "mew": 0.6}
    at = [r["layer"] + step for r in rows]
    held = [r.get("log_prob", r) for r in rows]
    style.intervals(axis, at, held, elinewidth=0.5, capsize=0.8, **look, **cells)


def steered(axis: Axes, record: Row, modality: str) -> None:
    """Draw triangles on the axis at the blocks that the plan edits."""
    blocks = record["provenance"]["layers"][modality]
    below = {"transform": axis.get_xaxis_transform(), "clip_on": False, "zorder": 5}
    axis.plot(blocks, [0] * len(blocks), "^", ms=4, color=style.BLACK, **below)


def recall(record: Row) -> Figure | None:
    """The token that predicts the value: log-probability by the logit lens above, probes of other people below."""
    if not record["lens"]:
        return None
    modalities = [m for m in style.MODALITY if style.picked(record["lens"], modality=m, group="forget")]
    shape = {"figsize": (style.COLUMN, 3.3), "sharex": True, "sharey": "row", "squeeze": False}
    figure, axes = plt.subplots(2, len(modalities), **shape)
    for (above, below), modality in zip(axes.T, modalities, strict=True):
        colour, marker = style.MODALITY[modality]
        for token, tone in (("another person's", style.GREY), ("value", colour)):
            for side in ("before", "after"):
                labels = {"group": "forget", "modality": modality, "side": side, "token": token}
                curve(above, apart(style.picked(record["lens"], **labels)), side, tone, marker)
        above.set_title(f"{modality} queries", loc="left")
        labels = {"group": "forget", "modality": modality, "held_out": "person", "place": "recall"}
        # `moved` is drawn as after steering: there is no other value after.
        for name, side in (("before", "before"), ("moved", "after")):
            rows = apart(style.picked(record["probes"], side=name, **labels))
            curve(below, rows, side, colour, marker, scale=100, value="accuracy")
        chance(below, style.picked(record["probes"], side="before", **labels))
        below.set_ylim(-4, 106)
        style.blocks(below)
        for axis in (above, below):
            steered(axis, record, modality)
    axes[0][0].set_ylabel("logit lens: log p (nats)")
    axes[1][0].set_ylabel("probes of other\npeople: accuracy (%)")
    handles = [
        style.entry("before steering", ls="-", marker="o"),
        style.entry("after", ls="--", marker="o", mfc="white"),
        style.entry("another person's value", color=style.GREY),
        SHUFFLED,
        CHANCE,
        style.entry("steered block", marker="^", ms=4, ls=""),
    ]
    style.legend(figure, handles, ncols=2, columnspacing=1.4, handlelength=2.2)
    return figure


def about(record: Row) -> str:
    """The end of every caption: model, benchmark, questions and seed."""
    asked = [q for q in record["questions"] if q["group"] == "forget"]
    counted = " and ".join(
        f"{q['n']} {q['modality']} (attributes {', '.join(q['attributes'])}; {q['people']} people, {q['renderings']} "
        f"{'photographs' if q['modality'] == 'image' else 'wordings'}, {q['steered']} steered)"
        for q in asked
    )
    preset = f"preset {record['provenance']['preset']}"
    origin = style.origin(record, f"{preset}; n = {counted} queries about people to forget")
    return "Bars are 95 % bootstrap intervals over people. " + origin


def caption(record: Row) -> str:
    """Caption of the wide figure, with the conclusions."""
    said = "; ".join(
        f"{c['target']}, {c['modality']} queries: {c['says'].partition(':')[0]}"
        + ("" if c["hidden_from"] is None else f", from block {c['hidden_from']} on")
        for c in record["conclusions"]
        if c["group"] == "forget"
    )
    return (
        "What linear probes read from the states of every decoder block about people to forget, before and after "
        "steering, tested on photographs (image queries) or wordings (text queries) that they were not trained on. "
        "States are means over the tokens of a place, in a response over those before anything secret is said; after "
        "steering gates act as they decide. Solid: probes on unsteered states. Dashed: probes trained anew on steered "
        "states. Dotted: the probes of before on steered states. Shaded: 2.5 to 97.5 % of shuffled labels. Chance: the "
        "best constant guess. Dash-dotted: probes of the tokens shown by then. Curves of after begin where they part "
        f"from that of before. By the rule of the record: {said}. " + about(record)
    )


def lens_caption(record: Row) -> str:
    """Caption of the narrow figure."""
    others = {
        r["modality"]: r["n"]
        for r in style.picked(record["probes"], held_out="person", place="recall", side="before")
    }
    counted = " and ".join(f"{n} {kind}" for kind, n in others.items()) or "no"
    return (
        "The token that predicts the forgotten value along the reference response, before (solid) and after (dashed) "
        "steering. Above: log-probability of the value's first token and, in grey, of another person's value of the same "
        "attribute, when the states of each block are read through the final norm and the unembedding (logit lens). "
        "Curves of after begin where they part from that of before. "
        "Below: accuracy of probes trained on unsteered states of retained people, on people to forget whose value some "
        f"of them share (n = {counted} queries). " + about(record)
    )


if __name__ == "__main__":
    sys.exit(main())
