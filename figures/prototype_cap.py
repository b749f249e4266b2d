"""Draws `results/prototype_cap.json`: leakage and refusals against the number of refusal prototypes.

python figures/prototype_cap.py [--results results/] [--out results/]
"""

import sys
from collections.abc import Sequence

import _splits as splits
import _style as style
import matplotlib.pyplot as plt
from _style import Row
from matplotlib.figure import Figure

SCHEMA = "rmuse-prototype-cap/1"
SHOWN = (
    ("forget", "ril", "RIL, forget ↓", "-", {}),
    ("test", "ril", "RIL, test ↓", "-", {}),
    ("test", "refusal_rate", "refused, test ↑", "--", {"color": style.GREEN, "marker": "D"}),
    ("test", "malformed_rate", "malformed, test ↓", ":", {"color": style.BLACK, "marker": "X"}),
    ("retain_test", "exact", "exact, retain, new ↑", "-", {}),
)
"""Split, metric, label, line, and changes to the split's look: three metrics share one split."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return style.command(__doc__, "prototype_cap", SCHEMA, {"prototype_cap": (draw, caption)}, argv)


def draw(record: Row) -> Figure:
    """Draw metrics against the cap, evenly spaced, all prototypes last."""
    rows = [r for r in record["rows"] if r["cap"] is not None]
    caps = list(dict.fromkeys(r["cap"] for r in rows))
    figure, axis = plt.subplots(figsize=(style.COLUMN, 2.7))
    for i, (split, name, label, dashes, own) in enumerate(SHOWN):
        lines = [(place, {"cap": cap, "split": split}) for place, cap in enumerate(caps)]
        drawn = splits.cells(rows, name, lines)
        if drawn:
            at = [place + 0.09 * (i - (len(SHOWN) - 1) / 2) for place, _ in drawn]
            look = {"ls": dashes, "label": label} | splits.look(split) | own
            style.intervals(axis, at, [c for _, c in drawn], **look, **splits.BARS)
    axis.set_xticks(range(len(caps)), [str(cap) for cap in caps])
    axis.set_xlabel("prototypes kept per transport")
    axis.set_ylabel("percent of the answers")
    style.percents(axis)
    figure.legend(loc="outside upper center", ncols=2, columnspacing=1.2, handlelength=2.2)
    return figure


def caption(record: Row) -> str:
    """Caption of the figure."""
    plain = {
        r["split"]: r["ril"]["value"] for r in record["rows"] if r["cap"] is None and r["ril"] is not None
    }
    said = ", ".join(f"{split} {value:.1f}" for split, value in plain.items() if split in ("forget", "test"))
    total = " or ".join(str(n) for n in sorted(set(record["prototypes"].values())))
    return (
        "Calibrated with its token-level refusal prototypes capped by k-medoids under the angle; gates and blocks as "
        f"fitted. All are {total}. Without any plan RIL is {said or 'not defined'}. Malformed: "
        "neither an answer nor a chain with one. "
        + splits.about(record, splits.counted(record["provenance"]["n"]))
        + " RIL and exact are measured on the open questions among them."
    )


if __name__ == "__main__":
    sys.exit(main())
