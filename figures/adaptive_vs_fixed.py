"""Draws `results/adaptive_vs_fixed.json`: ACS against fixed strengths of the literal steering.

python figures/adaptive_vs_fixed.py [--results results/] [--out results/]
"""

import sys
from collections.abc import Sequence

import _splits as splits
import _style as style
import matplotlib.pyplot as plt
from _style import Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SCHEMA = "rmuse-adaptive-vs-fixed/1"
ADAPTIVE = "ACS"
AT = 1.22
"""Position of ACS on the axis of λ."""
SHOWN = (
    ("test", "ril", "RIL, test ↓", "-"),
    ("test", "malformed_rate", "malformed, test ↓", ":"),
    ("retain_test", "exact", "exact, retain, new ↑", "-"),
    ("retain_test", "malformed_rate", "malformed, retain, new ↓", ":"),
    ("reasoning", "exact", "exact, reasoning ↑", "-"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return style.command(__doc__, "adaptive_vs_fixed", SCHEMA, {"adaptive_vs_fixed": (draw, caption)}, argv)


def draw(record: Row) -> Figure:
    """One row of panels per gate, one column per forget rate."""
    rows = record["rows"]
    gates = list(dict.fromkeys(r["gate"] for r in rows if r["gate"] is not None))
    rates = list(dict.fromkeys(r["forget"] for r in rows))
    shape = {"figsize": (style.TEXT, 0.9 + 1.7 * len(gates)), "sharex": True, "sharey": True}
    figure, axes = plt.subplots(len(gates), len(rates), squeeze=False, **shape)
    for line, gate in zip(axes, gates, strict=True):
        for axis, rate in zip(line, rates, strict=True):
            panel(axis, [r for r in rows if r["forget"] == rate and r["gate"] in (None, gate)])
        line[0].set_ylabel(f"gate of {gate}\npercent of the answers")
    style.titles(axes[0], [f"{rate} % to forget" for rate in rates])
    for axis in axes[-1]:
        axis.set_xlabel("λ: share of the angle")
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1.0, AT], ["0", "", "0.5", "", "1", "ACS"])
        axis.set_xlim(-0.08, AT + 0.12)
        style.percents(axis)
    handles, _ = axes[0][0].get_legend_handles_labels()
    style.legend(figure, handles, columnspacing=1.0, handlelength=2.2)
    return figure


def panel(axis: Axes, rows: Sequence[Row]) -> None:
    """Draw metrics against fixed λ (0 is the unsteered model), and those of ACS separately."""
    for i, (split, name, label, dashes) in enumerate(SHOWN):
        colour, _ = splits.SPLIT[split]
        mine = {r["strength"]: r[name] for r in rows if r["split"] == split and r[name] is not None}
        if not mine:
            continue
        look = splits.look(split) | {"mfc": colour if dashes == "-" else "white"} | splits.BARS
        fixed = sorted((0.0 if s == "vanilla" else float(s), s) for s in mine if s != ADAPTIVE)
        shift = 0.008 * (i - (len(SHOWN) - 1) / 2)
        at = [λ + shift for λ, _ in fixed]
        style.intervals(axis, at, [mine[s] for _, s in fixed], ls=dashes, label=label, **look)
        if ADAPTIVE in mine:
            style.intervals(axis, [AT + 4 * shift], [mine[ADAPTIVE]], ls="", **look)
    axis.axvline((1 + AT) / 2, color=style.GREY, lw=0.5)


def caption(record: Row) -> str:
    """Caption of the figure."""
    n = record["provenance"]["n"]
    same = len({str(v) for v in n.values()}) == 1
    counts = (
        splits.counted(next(iter(n.values())))
        if same
        else "; ".join(f"at {rate} %: {splits.counted(v)}" for rate, v in n.items())
    )
    said = "; ".join(
        f"{a['forget']} %, {a['modality']}: {a['q50']:.2f} [{a['q05']:.2f}, {a['q95']:.2f}]"
        for a in record["acs"]
    )
    fires: dict[str, list[str]] = {}
    for r in record["rows"]:
        if r["strength"] == ADAPTIVE and r["fire_rate"] is not None:
            said_so = f"{r['fire_rate']['value']:.0f} ({splits.SAID.get(r['split'], r['split'])})"
            fires.setdefault(f"{r['forget']} %, {r['gate']}", []).append(said_so)
    fired = "; ".join(f"{which}: {', '.join(shares)}" for which, shares in fires.items())
    return (
        "Adaptive (ACS) against fixed strength of the rotation that the preset paper makes, behind its own gate and "
        "behind that of calibrated. λ = 0 is the model as it is, λ = 1 replaces the state's direction. Malformed: "
        "neither an answer nor a chain with one (open markers, dotted). λ that ACS gives the last prompt token at the "
        f"lowest steered block, median and 90 % range: {said}. The gates fire on (percent): {fired}. "
        + splits.about(record, f"open questions per rate: {counts}")
    )


if __name__ == "__main__":
    sys.exit(main())
