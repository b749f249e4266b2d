"""Draws `results/adaptive_vs_fixed.json`: ACS against fixed strengths of the literal steering.

python figures/adaptive_vs_fixed.py [--results results/] [--out results/]
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

SCHEMA = "rmuse-adaptive-vs-fixed/1"
ADAPTIVE = "ACS"
AT = 1.22
"""Where ACS stands on the axis of λ."""
SHOWN = (
    ("test", "ril", "RIL, test ↓", "-"),
    ("test", "malformed_rate", "malformed, test ↓", ":"),
    ("retain_test", "exact", "exact, retain, new ↑", "-"),
    ("retain_test", "malformed_rate", "malformed, retain, new ↓", ":"),
    ("reasoning", "exact", "exact, reasoning ↑", "-"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of adaptive_vs_fixed.json"
    )
    parser.add_argument("--out", type=Path, help="folder for the figures (that of the results)")
    given = parser.parse_args(argv)
    record = style.read(given.results / "adaptive_vs_fixed.json", SCHEMA)
    style.use()
    print(
        *style.save(draw(record), given.out or given.results, "adaptive_vs_fixed", caption(record)), sep="\n"
    )
    return 0


def draw(record: splits.Row) -> Figure:
    """One row of panels per gate, one column per forget rate."""
    rows = record["rows"]
    gates = list(dict.fromkeys(r["gate"] for r in rows if r["gate"] is not None))
    rates = list(dict.fromkeys(r["forget"] for r in rows))
    shape = {
        "figsize": (style.TEXT, 0.9 + 1.7 * len(gates)),
        "sharex": True,
        "sharey": True,
        "squeeze": False,
    }
    figure, axes = plt.subplots(len(gates), len(rates), **shape)
    for line, gate in zip(axes, gates, strict=True):
        for axis, rate in zip(line, rates, strict=True):
            panel(axis, [r for r in rows if r["forget"] == rate and r["gate"] in (None, gate)])
        line[0].set_ylabel(f"gate of {gate}\npercent of the answers")
    for axis, rate in zip(axes[0], rates, strict=True):
        axis.set_title(f"{rate} % to forget", loc="left")
    for axis in axes[-1]:
        axis.set_xlabel("λ: share of the angle")
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1.0, AT], ["0", "", "0.5", "", "1", "ACS"])
        axis.set_xlim(-0.08, AT + 0.12)
        splits.percent_axis(axis)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), columnspacing=1.0, handlelength=2.2
    )
    return figure


def panel(axis: Axes, rows: Sequence[splits.Row]) -> None:
    """Metrics against fixed λ, 0 being the model as it is, and those of ACS apart."""
    for i, (split, name, label, dashes) in enumerate(SHOWN):
        colour, marker = splits.SPLIT[split]
        mine = {r["strength"]: r[name] for r in rows if r["split"] == split and r[name] is not None}
        if not mine:
            continue
        fixed = sorted(
            (0.0 if s == "vanilla" else float(s), cell) for s, cell in mine.items() if s != ADAPTIVE
        )
        shift = 0.008 * (i - (len(SHOWN) - 1) / 2)
        filled = {"mfc": colour if dashes == "-" else "white"}
        axis.errorbar(
            [λ + shift for λ, _ in fixed],
            [c["value"] for _, c in fixed],
            yerr=splits.spread([c for _, c in fixed]),
            color=colour,
            marker=marker,
            ls=dashes,
            label=label,
            **filled,
            **splits.BARS,
        )
        if ADAPTIVE in mine:
            cell = mine[ADAPTIVE]
            axis.errorbar(
                AT + 4 * shift,
                cell["value"],
                yerr=splits.spread([cell]),
                color=colour,
                marker=marker,
                ls="",
                **filled,
                **splits.BARS,
            )
    axis.axvline((1 + AT) / 2, color=style.GREY, lw=0.5)


def caption(record: splits.Row) -> str:
    """What the figure shows."""
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
