"""Search over the settings of a baseline, with one rule and one budget for all baselines.

A setting is a learning rate, or the share of neurons to prune. The first is the paper's own. From the best so far, the
search goes to smaller settings if later epochs were worse there, else to larger ones: by a factor of ten if none was
tried on that side, else halfway to the next one tried, on a logarithmic scale. The score is `keep − leak − malformed`
on the validation part, as for the rivals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rmuse_interp.data import Benchmark
from rmuse_interp.fitting.validation import Validation
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.method.rivals import Trial as Choice
from rmuse_interp.method.rivals import choose_strength

LADDER: Final = 10.0
"""Factor of a step to a side where no setting was tried yet."""
NARROW: Final = 1.1
"""Minimum factor of a step; below it, the search turns to the other side of the best setting."""


@dataclass(frozen=True)
class Trial:
    """The effect of one setting on the validation part.

    Attributes:
        setting: learning rate; for pruning, the share of neurons.
        epoch: number of epochs trained; 0 for pruning.
        leak: share of forget responses that leak (RIL), in [0, 1].
        keep: share of all other answers that match those of the untrained model, in [0, 1].
        malformed: share of forget responses that are neither well formed nor an answer, in [0, 1].
        changed: share of all responses that differ from those of the untrained model, in [0, 1].
        loss: mean objective of the epoch's steps; None for pruning, or if it is not finite.
        seconds: duration of training and validation.
    """

    setting: float
    epoch: int
    leak: float
    keep: float
    malformed: float
    changed: float
    loss: float | None
    seconds: float

    @property
    def score(self) -> float:
        """`keep − leak − malformed`, larger is better; rounded, since equal sums may differ in the last digit."""
        return round(self.keep - self.leak - self.malformed, 12)

    @property
    def ruined(self) -> bool:
        """Whether nothing is kept, so that the model has not forgotten selectively."""
        return self.keep == 0


def best(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the largest `keep − leak − malformed`, by the rivals' rule; the earliest among equals."""
    choices = [Choice(float(i), t.leak, t.keep, t.malformed) for i, t in enumerate(trials)]
    return trials[int(choose_strength(choices).strength)]


def next_setting(trials: Sequence[Trial], first: float, most: float = math.inf) -> float:
    """Choose the setting to try after these trials.

    Args:
        trials: the trials so far, of finished settings.
        first: the paper's setting.
        most: the largest possible setting.

    Examples:
        >>> def at(setting, leak, keep):
        ...     return Trial(setting, 1, leak, keep, 0.0, 0.5, 0.0, 1.0)
        >>> next_setting([], 1e-5), next_setting([at(1e-5, 1.0, 1.0)], 1e-5)
        (1e-05, 0.0001)
        >>> next_setting([at(1.0, 1.0, 1.0), at(10.0, 0.0, 0.9), at(100.0, 0.0, 0.0)], 1.0) == math.sqrt(1000.0)
        True
    """
    if not trials:
        return first
    scores: dict[float, float] = {}
    for trial in trials:
        score = -math.inf if trial.ruined else trial.score
        scores[trial.setting] = max(score, scores.get(trial.setting, -math.inf))
    if max(scores.values()) == -math.inf:
        return min(scores) / LADDER
    # Among equals the largest: settings too small to change anything are all equal.
    top = max(scores, key=lambda setting: (scores[setting], setting))
    above = min((s for s in scores if s > top), default=None)
    below = max((s for s in scores if s < top), default=None)
    higher = min(most, top * LADDER) if above is None else math.sqrt(top * above)
    lower = top / LADDER if below is None else math.sqrt(below * top)
    mine = [t for t in trials if t.setting == top]
    falling = max(mine, key=lambda t: t.score).epoch < mine[-1].epoch
    first_choice, other = (lower, higher) if falling else (higher, lower)
    return first_choice if abs(math.log(first_choice / top)) >= math.log(NARROW) else other


class Judged:
    """Compares the current model with its untrained self on the validation part.

    Args:
        lens: the model, still untrained.
        benchmark: benchmark by which responses are judged.
        part: the validation questions.
    """

    def __init__(self, lens: LensModel, benchmark: Benchmark, part: Validation) -> None:
        self._lens, self._benchmark, self._part = lens, benchmark, part
        self._before = part.answers(lens, benchmark)

    def __call__(self) -> dict[str, float]:
        """Return `leak`, `keep`, `malformed` and `changed` for a `Trial`."""
        said = self._part.answers(self._lens, self._benchmark)
        leak, keep, malformed = self._part.shares(self._benchmark, said, self._before)
        changed = sum(row.response != self._before[name].response for name, row in said.items())
        return {"leak": leak, "keep": keep, "malformed": malformed, "changed": changed / len(said)}
