"""What methods are compared by: a metric, taken of the answers to some splits together, and who is better in it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from analyses._common import short
from rmuse_interp.data import Benchmark, Example
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.evaluate.scores import measure
from rmuse_interp.method.rivals import RIVALS

FORGET: Final = ("forget", "test")
KEPT: Final = ("retain", "retain_test", "celebrity", "reasoning", "benign")
VALUES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    **{f"ril_{split}": ("ril", (split,)) for split in FORGET},
    "malformed": ("malformed_rate", FORGET),
    "refused": ("refusal_rate", FORGET),
    **{f"exact_{split}": ("exact", (split,)) for split in KEPT},
    "repetition": ("repetition_rate", (*FORGET, *KEPT)),
}
"""What is reported of a method: the metric, and the splits whose answers it is taken of together; percent."""
MARGIN: Final = 1.0
"""Points that make a difference."""


def values_of(
    transcripts: Sequence[Transcript],
    references: Mapping[str, Example],
    benchmark: Benchmark,
    wanted: Mapping[str, tuple[str, tuple[str, ...]]] = VALUES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """One method's values ``{value, low, high, n}``: 95 % intervals, people resampled; None where undefined."""
    measured = {
        splits: measure([t for t in transcripts if t.split in splits], benchmark, references, seed=seed)
        for splits in dict.fromkeys(splits for _, splits in wanted.values())
    }
    values = {}
    for key, (metric, splits) in wanted.items():
        one = measured[splits][metric]
        low, high = one.interval or (None, None)
        values[key] = {"value": short(one.value), "low": short(low), "high": short(high), "n": one.n}
    return values


def kind_of(method: str) -> str:
    """`rmuse`, `rival` (steers at inference), `trained`, or `reference`."""
    if method.startswith("rmuse/"):
        return "rmuse"
    return "rival" if method in RIVALS else "reference" if method in ("vanilla", "gold") else "trained"


def dominates(
    one: Mapping[str, float], other: Mapping[str, float], goals: Mapping[str, int], margin: float = MARGIN
) -> bool:
    """Whether `one` is worse by more than `margin` in no goal, and better by more than `margin` in some goal.

    Args:
        one: goal → value.
        other: the same of another method.
        goals: goal → +1 where more is better, −1 where less is.
        margin: points that make a difference.
    """
    gains = [sign * (one[goal] - other[goal]) for goal, sign in goals.items()]
    return min(gains) >= -margin and max(gains) > margin
