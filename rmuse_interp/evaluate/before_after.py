"""Before and after: a run's ``scores.json`` as a table and as a bar chart. Reads plain JSON; needs no torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rmuse_interp import RMuseError
from rmuse_interp.data.store import JSON
from rmuse_interp.evaluate.results import SCHEMA

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORGOTTEN: Final = ("forget", "test")
KEPT: Final = ("retain", "retain_test", "celebrity", "reasoning", "benign", "namesakes")
LABELS: Final = {"retain_test": "retain, new", "test": "forget, new"}
"""Display names of splits in tables and figures, where they differ."""
ORDER: Final = ("vanilla", "gold")
_PER_LINE: Final = 6
"""Number of names per line of the legend."""

# Okabe and Ito's colours: distinct for any colour vision, and in grey by their lightness.
_COLOURS: Final = {
    "vanilla": "#999999",
    "gold": "#E69F00",
    "rmuse/paper": "#D55E00",
    "rmuse/calibrated": "#0072B2",
}
_SPARE: Final = ("#009E73", "#CC79A7", "#56B4E9", "#F0E442")
_HATCHES: Final = ("", "//////", "......", "xxxxxx", "------")


def read_scores(path: Path) -> JSON:
    """Read the scores from a file.

    Raises:
        RMuseError: the file is missing, or has another schema.
    """
    if not path.is_file():
        raise RMuseError(
            f"required a scores file, got {str(path)!r}, which is not there; write it with `rmuse demo`"
        )
    scores = json.loads(path.read_text(encoding="utf-8"))
    if scores.get("schema") != SCHEMA:
        raise RMuseError(f"{path}: required schema {SCHEMA!r}, got {scores.get('schema')!r}")
    return scores


def methods_of(scores: JSON) -> list[str]:
    """The methods of a run: the unsteered models first, then the others by name."""
    names = list(scores["methods"])
    rest = sorted(set(names) - set(ORDER), key=lambda name: (not name.startswith("rmuse/paper"), name))
    return [name for name in ORDER if name in names] + rest


def splits_of(scores: JSON) -> list[str]:
    """The splits in which some method has answered a question, those about people to forget first."""
    return [s for s in (*FORGOTTEN, *KEPT) if any(m.get(s, {}).get("n") for m in scores["methods"].values())]


def rows(scores: JSON) -> list[tuple[str, str, dict[str, float | None]]]:
    """(split, method, metrics and ``fired``) in reading order; ``fired`` is the gate's firing rate in percent."""
    found = []
    for split in splits_of(scores):
        for name in methods_of(scores):
            block = scores["methods"][name].get(split, {})
            if block.get("n"):
                rate = scores["gate"].get(name, {}).get("fire_rate", {}).get(split)
                found.append((split, name, {**block, "fired": rate}))
    return found


def shown(value: float | None) -> str:
    """Format a percentage for a table: one decimal, a dash for None.

    >>> shown(99.96), shown(None), shown(0.0)
    ('100.0', '–', '0.0')
    """
    return "–" if value is None else f"{value:.1f}"


def markdown(scores: JSON) -> str:
    """The table in ``README.md``: what should fall, what should stay, and how well the gate separates the two."""
    names = methods_of(scores)
    lines: list[tuple[str, Sequence[float | None]]] = []
    right = scores.get("right", "exact")
    wanted = [
        ("ril", "RIL ↓", FORGOTTEN),
        ("refusal_rate", "refused", FORGOTTEN),
        ("malformed_rate", "malformed ↓", FORGOTTEN),
        ("garbled_rate", "garbled ↓", FORGOTTEN),
        ("unended_rate", "cut by the limit ↓", FORGOTTEN),
        (right, f"{right} ↑", KEPT),
        ("rcr", "RCR ↑", ("retain", "reasoning")),
    ]
    for metric, label, splits in wanted:
        for split in (s for s in splits if s in splits_of(scores)):
            values = [scores["methods"][name].get(split, {}).get(metric) for name in names]
            if metric in ("garbled_rate", "unended_rate") and not any(v is not None for v in values):
                continue  # scores of an older version
            lines.append((f"{LABELS.get(split, split)}: {label}", values))
    loops = [
        max((b["repetition_rate"] for b in scores["methods"][n].values() if b["n"]), default=None)
        for n in names
    ]
    lines.append(("loops, worst split ↓", loops))
    text = ["| % | " + " | ".join(f"`{name}`" for name in names) + " |", "|---|" + "---:|" * len(names)]
    text += [f"| {label} | " + " | ".join(map(shown, values)) + " |" for label, values in lines]
    gates = [scores["gate"].get(name, {}).get("auroc") for name in names]
    text.append("| gate AUROC (0–1) | " + " | ".join("–" if g is None else f"{g:.3f}" for g in gates) + " |")
    return "\n".join(text)


def readable(scores: JSON) -> list[str]:
    """Lines about how responses read: how far the measure can be trusted, and how fluent each method is."""
    record = scores.get("readable")
    if record is None:
        return []
    gauge = record.get("gauge")
    if gauge is None:
        return [f"garbled answers not counted: {record.get('reason', 'the run has no gauge')}"]
    rates = [rate for rate in gauge["flagged"].values() if rate["n"]]
    n = sum(rate["n"] for rate in rates)
    flagged = sum(rate["value"] * rate["n"] for rate in rates) / n if n else None
    lines = [
        f"garbled: a window above {gauge['cut']:.2f} nats a token; flags {shown(flagged and 100 * flagged)} % of {n} "
        f"readable texts that did not set it, tells them from spoilt ones with AUROC {gauge['auroc']:.3f}"
        + ("" if gauge["separates"] else ": the two do not separate, a spoilt word may go unseen")
    ]
    own = record["own_refusals"]
    if own["n"]:
        lines.append(
            f"the model's own words behind its first prefix: refused {shown(own['refused'])} %, of these cut "
            f"{shown(own['unended'])} %, n {own['n']}"
        )
    for name, splits in record["fluency"].items():
        said = [
            f"{LABELS.get(split, split)} {one['ratio']:.2f} ({one['low']:.2f}–{one['high']:.2f}, n {one['n']}, "
            f"loops {one['loops']})"
            if one["ratio"] is not None
            else f"{LABELS.get(split, split)} – (loops {one['loops']})"
            for split, one in splits.items()
        ]
        lines.append(f"{name}: perplexity beside refusals ×{'; ×'.join(said)}")
    return lines


def look(name: str, names: Sequence[str]) -> tuple[str, str]:
    """Colour and hatch of a method: its own colour, or the next spare one; a new hatch each time these are used up."""
    if name in _COLOURS:
        return _COLOURS[name], ""
    turn, place = divmod([n for n in names if n not in _COLOURS].index(name), len(_SPARE))
    return _SPARE[place], _HATCHES[min(turn, len(_HATCHES) - 1)]


def draw(scores: JSON) -> "Figure":
    """Draw leakage where it should fall and exact answers where they should stay, as bars with 95 % intervals.

    Returns:
        a matplotlib figure that belongs to no window.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, present = methods_of(scores), splits_of(scores)
    right = scores.get("right", "exact")
    panels: list[tuple[str, str, list[str]]] = [
        ("ril", "Leaked while reasoning\n(RIL, %)", [s for s in FORGOTTEN if s in present]),
        (right, f"Answers {right} (%)", [s for s in KEPT if s in present]),
    ]
    panels = [panel for panel in panels if panel[2]]
    # The text width of a two-column page, so that type is printed at its own size.
    figure = Figure(figsize=(6.75, 2.3 + 0.16 * (len(names) > _PER_LINE)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        1, len(panels), sharey=True, squeeze=False, gridspec_kw={"width_ratios": [len(p[2]) for p in panels]}
    )[0]
    width = 0.84 / len(names)
    for ax, (metric, title, splits) in zip(axes, panels, strict=True):
        for i, name in enumerate(names):
            places, heights, below, above, absent = [], [], [], [], []
            for at, split in enumerate(splits):
                value = scores["methods"][name].get(split, {}).get(metric)
                place = at + (i - (len(names) - 1) / 2) * width
                if value is None:
                    absent.append(place)
                    continue
                around = scores.get("intervals", {}).get(name, {}).get(split, {}).get(metric)
                places.append(place)
                heights.append(value)
                below.append(max(0.0, value - around["low"]) if around else 0.0)
                above.append(max(0.0, around["high"] - value) if around else 0.0)
            colour, hatch = look(name, names)
            ax.bar(
                places,
                heights,
                0.92 * width,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0,
                label=name,
                yerr=[below, above],
                error_kw={"elinewidth": 0.7, "capsize": min(1.5, 6 * width), "ecolor": "#222222"},
            )
            # A bar of height zero must not look like a missing one.
            for place, height in zip(places, heights, strict=True):
                if height < 1:
                    ax.plot(
                        [place - 0.4 * width, place + 0.4 * width],
                        [0, 0],
                        color=colour,
                        linewidth=2.2,
                        solid_capstyle="butt",
                        clip_on=False,
                        zorder=3,
                    )
            for place in absent:
                ax.text(place, 2, "n/a", rotation=90, ha="center", va="bottom", fontsize=5.5, color="#666666")
        ax.set_title(title.replace("\n", " ") if len(splits) > 2 else title, fontsize=7.5)
        ax.set_xticks(range(len(splits)), [LABELS.get(s, s) for s in splits], fontsize=7)
        ax.tick_params(axis="x", length=0)
        ax.tick_params(axis="y", labelsize=6.5, width=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_ylim(0, 105)
        ax.set_yticks(range(0, 101, 25))
        ax.grid(axis="y", color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(len(labels), _PER_LINE),
        frameon=False,
        fontsize=6.5,
        columnspacing=1.2,
        handlelength=1.4,
    )
    return figure


def caption(scores: JSON) -> str:
    """The figure's caption, with n for every bar."""
    counts: dict[str, set[int]] = {}
    for metric, splits in (("ril", FORGOTTEN), ("exact", KEPT)):
        for split in (s for s in splits if s in splits_of(scores)):
            spans = (
                scores.get("intervals", {}).get(n, {}).get(split, {}).get(metric) for n in methods_of(scores)
            )
            counts[split] = {around["n"] for around in spans if around}
    said = "; ".join(
        f"{LABELS.get(split, split)}: {' or '.join(map(str, sorted(n)))}" for split, n in counts.items() if n
    )
    model, benchmark = scores["model"], scores["benchmark"]
    return (
        "Leakage while reasoning (RIL) on questions about the people to forget, exact answers on all others; bars are "
        "95 % bootstrap intervals over people; a flat mark is 0. "
        f"Model {model['id']} ({model['fingerprint']}), benchmark {benchmark['id']}, {benchmark['forget']} % forgotten; "
        f"n of open questions = {said or 'not known'}."
    )


def save(scores: JSON, folder: Path, stem: str = "demo") -> list[Path]:
    """Save the figure as PNG and PDF; the same scores give the same bytes.

    Returns:
        the two paths.
    """
    figure = draw(scores)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.{kind}" for kind in ("png", "pdf")]
    figure.savefig(paths[0], dpi=300, metadata={"Software": None})
    figure.savefig(paths[1], metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return paths
