"""Fitting questions set aside: some on which settings are tried, others that score the winner and choose nothing."""

from typing import Final

from rmuse_interp.data import Benchmark, Example, sample
from rmuse_interp.edits.plan import Modality

SHORT: Final = frozenset({"classification", "cloze"})
"""Kinds of question that are answered without reasoning."""
TRIALS: Final = 16
"""Number of open questions per trial; half as many short ones are added."""


def set_aside(benchmark: Benchmark, modality: Modality, seed: int) -> tuple[list[Example], list[Example]]:
    """Questions about people to forget to try settings on, and as many to score the winner on; disjoint.

    Refusals are not followed along either, so that neither is steered along its own states. Each takes a third of the
    questions at most; with fewer than three, all are tried on and none is left to score.
    """
    mine = [e for e in benchmark.fit_forget if e.modality == modality]
    tried: list[Example] = []
    scored: list[Example] = []
    for kinds, most in (({"generation"}, TRIALS), (SHORT, TRIALS // 2)):
        some = [e for e in mine if e.kind in kinds]
        n = min(most, len(some) // 3)
        drawn = sample(some, 2 * n, seed) if n else sample(some, most, seed)
        tried += drawn[::2] if n else drawn
        scored += drawn[1::2] if n else []
    return tried, scored


def kept_out(benchmark: Benchmark, modality: Modality, seed: int) -> frozenset[str]:
    """Ids of the questions along which no refusal is followed."""
    tried, scored = set_aside(benchmark, modality, seed)
    return frozenset(e.id for e in (*tried, *scored)) if scored else frozenset()
