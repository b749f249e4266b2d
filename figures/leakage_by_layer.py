"""Draws `results/leakage_by_layer.json`: what probes still read at every block, before and after steering.

python figures/leakage_by_layer.py [--results results/] [--out results/]

Writes `leakage_by_layer` (text width: people to forget, by place, who is meant and the attribute) and
`leakage_by_layer_lens` (column width: the model's own read-out and probes of other people at the token that predicts the
value), each as PDF, PNG and a caption.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _style as style
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

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
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of leakage_by_layer.json"
    )
    parser.add_argument("--out", type=Path, help="folder for the figures (that of the results)")
    given = parser.parse_args(argv)
    record = style.read(given.results / "leakage_by_layer.json", SCHEMA)
    style.use()
    folder = given.out or given.results
    written = style.save(probes(record), folder, "leakage_by_layer", caption(record))
    if record["lens"]:
        written += style.save(recall(record), folder, "leakage_by_layer_lens", lens_caption(record))
    print("\n".join(map(str, written)))
    return 0


def picked(rows: Sequence[Row], **labels: Any) -> list[Row]:
    """Rows with these labels, by block."""
    found = [r for r in rows if all(r[k] == v for k, v in labels.items())]
    return sorted(found, key=lambda r: -1 if r.get("layer") is None else r["layer"])


def probes(record: Row) -> Figure:
    """One row of panels per target and kind of query, one column per place; retained people in grey."""
    shown = [row for row in ROWS if picked(record["probes"], group="forget", target=row[0], modality=row[1])]
    figure, axes = plt.subplots(
        len(shown),
        len(COLUMNS),
        figsize=(style.TEXT, 0.85 + 1.2 * len(shown)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for i, (target, modality) in enumerate(shown):
        for j, (place, words, title) in enumerate(COLUMNS):
            axis = axes[i][j]
            labels = {
                "target": target,
                "modality": modality,
                "held_out": "rendering",
                "place": place,
                "words": words,
            }
            panel(axis, record, labels)
            if i == 0:
                axis.set_title(title, loc="left")
            if j == 0:
                axis.set_ylabel(f"{target}, {modality}\naccuracy (%)")
            if i == len(shown) - 1:
                axis.set_xlabel("block")
    handles = [Line2D([], [], color=style.BLACK, ls=line, label=said) for line, said in SIDES.values()]
    handles += [
        Line2D([], [], color=style.GREY, lw=0.7, label="retained people, after"),
        Line2D([], [], color=style.BLACK, lw=0.5, ls=(0, (1, 3)), label="chance"),
        Patch(color=style.GREY, alpha=0.3, lw=0, label="shuffled labels (95 %)"),
        Line2D([], [], color=style.PURPLE, lw=0.8, ls="-.", label="words shown"),
        Line2D([], [], color=style.BLACK, marker="^", mec=style.BLACK, ms=4, ls="", label="steered block"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, columnspacing=1.4, handlelength=2.2)
    return figure


def panel(axis: Axes, record: Row, labels: Row) -> None:
    """Accuracy by block with intervals, chance, the bands of shuffled labels and what words alone tell."""
    mine = picked(record["probes"], group="forget", side="before", **labels)
    if not mine:
        axis.text(
            0.5, 0.5, "nothing read", transform=axis.transAxes, ha="center", color=style.GREY, fontsize=6
        )
        return
    colour, marker = style.MODALITY[labels["modality"]]
    chance(axis, mine)
    words = picked(record["controls"], group="forget", side="before", control="words", **labels)
    if words:
        axis.axhline(100 * words[0]["accuracy"], color=style.PURPLE, lw=0.8, ls="-.", zorder=-1)
    retained = picked(record["probes"], group="retain", side="after", **labels)
    axis.plot(
        [r["layer"] for r in retained],
        [100 * r["accuracy"] for r in retained],
        color=style.GREY,
        lw=0.7,
        zorder=0,
    )
    for step, side in zip((-0.1, 0.0, 0.1), SIDES, strict=True):
        rows = apart(picked(record["probes"], group="forget", side=side, **labels))
        curve(axis, [r["layer"] + step for r in rows], *accuracies(rows), colour, marker, side)
    steered(axis, record, labels["modality"])
    axis.set_ylim(-4, 106)
    axis.set_yticks([0, 25, 50, 75, 100])
    axis.xaxis.set_major_locator(plt.MaxNLocator(integer=True))


def apart(rows: Sequence[Row]) -> list[Row]:
    """Rows from the block on, at which they part from those of before; all of a side that is compared with none."""
    parted = [i for i, r in enumerate(rows) if "drop" not in r or any(r["drop"].values())]
    return list(rows[max(0, parted[0] - 1) :]) if parted else []


def chance(axis: Axes, rows: Sequence[Row]) -> None:
    """The best constant guess, and the band of shuffled labels."""
    if not rows:
        return
    low, high = ([100 * r[k] for r in rows] for k in ("shuffled_low", "shuffled_high"))
    axis.fill_between([r["layer"] for r in rows], low, high, color=style.GREY, alpha=0.3, lw=0, zorder=-2)
    axis.axhline(100 * rows[0]["chance"], color=style.BLACK, lw=0.5, ls=(0, (1, 3)), zorder=-1)


def curve(
    axis: Axes,
    at: Sequence[float],
    value: Sequence[float],
    spread: list[list[float]],
    colour: str,
    marker: str,
    side: str,
) -> None:
    """Values by block with error bars; filled marks before steering, open ones after."""
    axis.errorbar(
        at,
        value,
        spread,
        color=colour,
        ls=SIDES[side][0],
        marker=marker,
        mfc=colour if side == "before" else "white",
        ms=2.4,
        mew=0.6,
        elinewidth=0.5,
        capsize=0.8,
    )


def accuracies(rows: Sequence[Row]) -> tuple[list[float], list[list[float]]]:
    """Accuracies in percent, and the lengths of their error bars below and above."""
    below = [100 * max(0.0, r["accuracy"] - r["low"]) for r in rows]
    above = [100 * max(0.0, r["high"] - r["accuracy"]) for r in rows]
    return [100 * r["accuracy"] for r in rows], [below, above]


def steered(axis: Axes, record: Row, modality: str) -> None:
    """Triangles on the axis at the blocks that the plan edits."""
    blocks = record["provenance"]["layers"][modality]
    axis.plot(
        blocks,
        [0] * len(blocks),
        "^",
        ms=4,
        color=style.BLACK,
        clip_on=False,
        zorder=5,
        transform=axis.get_xaxis_transform(),
    )


def recall(record: Row) -> Figure:
    """The token that predicts the value: log-probability by the logit lens above, probes of other people below."""
    modalities = [m for m in style.MODALITY if picked(record["lens"], modality=m, group="forget")]
    figure, axes = plt.subplots(
        2, len(modalities), figsize=(style.COLUMN, 3.3), sharex=True, sharey="row", squeeze=False
    )
    for j, modality in enumerate(modalities):
        colour, marker = style.MODALITY[modality]
        for token, tone in (("another person's", style.GREY), ("value", colour)):
            for side in ("before", "after"):
                rows = apart(
                    picked(record["lens"], group="forget", modality=modality, side=side, token=token)
                )
                cells = [r["log_prob"] for r in rows]
                spread = [[c["value"] - c["low"] for c in cells], [c["high"] - c["value"] for c in cells]]
                curve(
                    axes[0][j],
                    [r["layer"] for r in rows],
                    [c["value"] for c in cells],
                    spread,
                    tone,
                    marker,
                    side,
                )
        axes[0][j].set_title(f"{modality} queries", loc="left")
        labels = {"group": "forget", "modality": modality, "held_out": "person", "place": "recall"}
        for name, side in (
            ("before", "before"),
            ("moved", "after"),
        ):  # drawn as what it is: the only one after
            rows = apart(picked(record["probes"], side=name, **labels))
            curve(axes[1][j], [r["layer"] for r in rows], *accuracies(rows), colour, marker, side)
        chance(axes[1][j], picked(record["probes"], side="before", **labels))
        axes[1][j].set_ylim(-4, 106)
        axes[1][j].set_xlabel("block")
        axes[1][j].xaxis.set_major_locator(plt.MaxNLocator(integer=True))
        for axis in axes[:, j]:
            steered(axis, record, modality)
    axes[0][0].set_ylabel("logit lens: log p (nats)")
    axes[1][0].set_ylabel("probes of other\npeople: accuracy (%)")
    handles = [
        Line2D([], [], color=style.BLACK, ls="-", marker="o", label="before steering"),
        Line2D([], [], color=style.BLACK, ls="--", marker="o", mfc="white", label="after"),
        Line2D([], [], color=style.GREY, label="another person's value"),
        Patch(color=style.GREY, alpha=0.3, lw=0, label="shuffled labels (95 %)"),
        Line2D([], [], color=style.BLACK, lw=0.5, ls=(0, (1, 3)), label="chance"),
        Line2D([], [], color=style.BLACK, marker="^", ms=4, ls="", label="steered block"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, columnspacing=1.4, handlelength=2.2)
    return figure


def about(record: Row) -> str:
    """Model, benchmark, questions and seed, as every caption ends."""
    origin = record["provenance"]
    benchmark = origin["benchmark"]
    asked = [q for q in record["questions"] if q["group"] == "forget"]
    counted = " and ".join(
        f"{q['n']} {q['modality']} (attributes {', '.join(q['attributes'])}; {q['people']} people, {q['renderings']} "
        f"{'photographs' if q['modality'] == 'image' else 'wordings'}, {q['steered']} steered)"
        for q in asked
    )
    return (
        f"Bars are 95 % bootstrap intervals over people. Model {origin['model']['id']} "
        f"({origin['model']['fingerprint']}), benchmark {benchmark['id']}, {benchmark['forget']} % forgotten, preset "
        f"{origin['preset']}; n = {counted} queries about people to forget; seed {origin['seed']}."
    )


def caption(record: Row) -> str:
    """What the wide figure shows, and what was concluded."""
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
    """What the narrow figure shows."""
    others = {
        r["modality"]: r["n"]
        for r in picked(record["probes"], held_out="person", place="recall", side="before")
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
