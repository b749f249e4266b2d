"""Comparison of the leaderboard's methods: summaries over seeds, domination, and tables."""

from collections.abc import Mapping, Sequence
from typing import Final

from rmuse_interp.baselines import BASELINES
from rmuse_interp.data import Benchmark, Example
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.evaluate.scores import measure
from rmuse_interp.method.rivals import RIVALS
from rmuse_interp.studies.common import Record, of_metric, print_table, short

FORGET: Final = ("forget", "test")
KEPT: Final = ("retain", "retain_test", "celebrity", "reasoning", "benign")
VALUES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    **{f"ril_{split}": ("ril", (split,)) for split in FORGET},
    "malformed": ("malformed_rate", FORGET),
    "garbled": ("garbled_rate", FORGET),
    "unended": ("unended_rate", FORGET),
    "refused": ("refusal_rate", FORGET),
    **{f"exact_{split}": ("exact", (split,)) for split in KEPT},
    "repetition": ("repetition_rate", (*FORGET, *KEPT)),
}
"""Value reported for a method, in percent → its metric, and the splits whose answers are pooled for it."""
MARGIN: Final = 1.0
"""Percentage points that make a difference."""


def values_of(
    transcripts: Sequence[Transcript],
    references: Mapping[str, Example],
    benchmark: Benchmark,
    wanted: Mapping[str, tuple[str, tuple[str, ...]]] = VALUES,
    seed: int = 0,
) -> dict[str, Record]:
    """One method's values ``{value, low, high, n}``: 95 % intervals, people resampled; None if undefined."""
    measured = {
        splits: measure([t for t in transcripts if t.split in splits], benchmark, references, seed=seed)
        for splits in dict.fromkeys(splits for _, splits in wanted.values())
    }
    return {key: of_metric(measured[splits][metric]) for key, (metric, splits) in wanted.items()}


def kind_of(method: str) -> str:
    """`rmuse`, `control` (its gate without steering), `rival` (steers at inference), `trained`, or `reference`."""
    for kind in ("rmuse", "control"):
        if method.startswith(f"{kind}/"):
            return kind
    return "rival" if method in RIVALS else "reference" if method in ("vanilla", "gold") else "trained"


def dominates(
    one: Mapping[str, float], other: Mapping[str, float], goals: Mapping[str, int], margin: float = MARGIN
) -> bool:
    """Whether `one` is better by more than `margin` in some goal, and worse by more than `margin` in none.

    Args:
        one: goal → value.
        other: goal → value of another method.
        goals: goal → +1 if more is better, −1 if less is.
        margin: percentage points that make a difference.
    """
    gains = [sign * (one[goal] - other[goal]) for goal, sign in goals.items()]
    return min(gains) >= -margin and max(gains) > margin


OURS: Final = "rmuse/calibrated"
GOALS: Final = {"worst": -1, "exact_retain_test": 1, "malformed": -1}
"""Goal that domination compares → +1 if more is better, −1 if less is."""
FORGOT: Final = 20.0
"""Maximum RIL without attack, percent, for a trained baseline to count as having forgotten."""
BOUND: Final = 8.0
"""Maximum worst RIL allowed for `OURS`, percent."""
COLUMNS: Final = {
    "ril_forget": "RIL forget",
    "ril_test": "RIL test",
    "worst": "worst RIL",
    "exact_retain_test": "retain_test",
    "exact_celebrity": "celebrity",
    "exact_reasoning": "reasoning",
    "exact_benign": "benign",
    "rcr": "RCR",
    "malformed": "malformed",
    "garbled": "garbled",
    "unended": "unended",
    "refused": "refused",
}
"""Value → its heading in the tables."""


def summary(rows: Sequence[Record]) -> list[Record]:
    """One record per method and forget rate: values and worst RIL over its seeds. Failed cells are left out."""
    groups: dict[tuple[str, int], list[Record]] = {}
    for row in rows:
        if row["error"] is None:
            groups.setdefault((row["method"], row["forget"]), []).append(row)
    found = []
    for (method, rate), mine in groups.items():
        values = {key: over_seeds([row["values"][key] for row in mine]) for key in mine[0]["values"]}
        worst = [row["worst"] for row in mine]
        top = max(worst, key=lambda one: -1.0 if one["value"] is None else one["value"])
        found.append(
            {
                "method": method,
                "kind": mine[0]["kind"],
                "forget": rate,
                "seeds": [row["seed"] for row in mine],
                "values": values | {"worst": over_seeds(worst)},
                "attack": top["attack"],
                "split": top["split"],
                "seconds": short(sum(sum(row["seconds"].values()) for row in mine) / len(mine)),
            }
        )
    return found


def over_seeds(values: Sequence[Record]) -> Record:
    """Mean of the seeds' values, the outer ends of their intervals, and the total number of questions."""
    defined = [v for v in values if v["value"] is not None]
    if not defined:
        return {"value": None, "low": None, "high": None, "n": sum(v["n"] for v in values)}
    lows, highs = ([v[end] for v in defined if v[end] is not None] for end in ("low", "high"))
    return {
        "value": short(sum(v["value"] for v in defined) / len(defined)),
        "low": min(lows, default=None),
        "high": max(highs, default=None),
        "n": sum(v["n"] for v in defined),
    }


def verdict(found: Sequence[Record], rate: int) -> Record:
    """Verdict on `OURS` at a forget rate: its worst RIL against its bound and each trained baseline's, and domination.

    Every entry is None if `OURS` is not among the methods, or has no value.
    """
    values = {row["method"]: row["values"] for row in found if row["forget"] == rate}
    goals = {name: {goal: mine[goal]["value"] for goal in GOALS} for name, mine in values.items()}
    whole = {name: mine for name, mine in goals.items() if None not in mine.values()}
    record: Record = {
        "forget": rate,
        "method": OURS,
        "goals": GOALS,
        "margin": MARGIN,
        "bound": BOUND,
        "forgot": FORGOT,
        "worst": None,
        "within": None,
        "trained": None,
        "dominates": None,
        "dominated_by": None,
    }
    if OURS not in whole:
        return record
    ours = whole[OURS]
    trained = {}
    for name in values:
        plain = [values[name][f"ril_{split}"]["value"] for split in ("forget", "test")]
        if name in BASELINES and None not in plain and max(plain) <= FORGOT and name in whole:
            trained[name] = {"worst": whole[name]["worst"], "half": ours["worst"] <= whole[name]["worst"] / 2}
    others = {name: mine for name, mine in whole.items() if name != OURS}
    return record | {
        "worst": ours["worst"],
        "within": ours["worst"] <= BOUND,
        "trained": trained,
        "dominates": [name for name, mine in others.items() if dominates(ours, mine, GOALS)],
        "dominated_by": [name for name, mine in others.items() if dominates(mine, ours, GOALS)],
    }


def markdown(record: Record) -> str:
    """The leaderboard as Markdown, a table per forget rate, lowest worst RIL first, and the failed cells."""
    origin = record["provenance"]
    lines = []
    for rate in origin["rates"]:
        rows = [row for row in record["summary"] if row["forget"] == rate]
        lines += [
            f"**{rate} % forgotten**",
            "",
            "| | " + " | ".join(COLUMNS.values()) + " | by | s |",
            "|---|" + "---:|" * len(COLUMNS) + "---|---:|",
        ]
        for row in sorted(rows, key=lambda one: _last(one["values"]["worst"]["value"])):
            cells = [shown(row["values"][key], spread=key == "worst") for key in COLUMNS]
            by = "–" if row["attack"] is None else f"{row['attack']}, {row['split']}"
            name = f"**{row['method']}**" if row["method"] == OURS else row["method"]
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {by} | {row['seconds']:.0f} |")
        for row in record["rows"]:
            if row["forget"] == rate and row["error"] is not None:
                error = row["error"][:120].replace("|", "/")
                lines.append(f"| {row['method']} (seed {row['seed']}) | failed: {error} |")
        lines.append("")
    model, attacks = origin["model"], record["attacks"]
    lines.append(
        f"Benchmark {origin['benchmark']['id']}, model {model['id']} ({model['fingerprint']}); percent. "
        f"{origin['limit']} questions a split, {origin['attack_limit']} open ones a split under each of {len(attacks)} "
        f"attacks ({', '.join(attacks)}); seed {', '.join(map(str, origin['seeds']))}. Worst: the largest RIL on forget "
        "and test, without attack (none) or under any, with a 95 % interval over people (further ones in the JSON), and "
        "by which. s: seconds per cell, fitting or training, answers, attacks and scores. Written by "
        "`python analyses/leaderboard.py`."
    )
    return "\n".join(lines) + "\n"


def _last(value: float | None) -> float:
    return float("inf") if value is None else value


def show(record: Record) -> None:
    """Print the tables and the verdict on ours."""
    for rate in record["provenance"]["rates"]:
        rows = [row for row in record["summary"] if row["forget"] == rate]
        rows.sort(key=lambda one: _last(one["values"]["worst"]["value"]))
        lines = [
            (row["method"], *(shown(row["values"][key]) for key in COLUMNS), row["attack"] or "–")
            for row in rows
        ]
        print_table(f"{rate} % forgotten, percent", ("method", *COLUMNS.values(), "by"), lines)
    for one in record["verdicts"]:
        if one["worst"] is None:
            continue
        print(
            f"{one['forget']} %: {OURS} leaks at worst {one['worst']:.1f} (bound {one['bound']:g}), "
            f"dominated by {', '.join(one['dominated_by']) or 'none'}"
        )
        for name, its in one["trained"].items():
            half = "at most half of it" if its["half"] else "more than half of it"
            print(f"  {name} forgot, and leaks at worst {its['worst']:.1f}: ours {half}")
    for row in record["rows"]:
        if row["error"] is not None:
            print(f"failed: {row['method']} at {row['forget']} %, seed {row['seed']}: {row['error']}")


def shown(value: Record | None, spread: bool = False) -> str:
    """A value in a table, with or without its interval."""
    if value is None or value["value"] is None:
        return "–"
    known = spread and value["low"] is not None
    return f"{value['value']:.1f}" + (f" ({value['low']:.0f}–{value['high']:.0f})" if known else "")
