"""`RIVALS`: the rivals by name, the strengths to try, and the rule that picks one of the trials."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Edit, Modality
from rmuse_interp.method.expressions import (
    ablation,
    alphasteer,
    angular,
    caa,
    cast,
    leace,
    linear_act,
    mllmeraser,
    spherical,
)
from rmuse_interp.method.rmuse import Evidence


@dataclass(frozen=True)
class Rival:
    """A rival method and what to try it with.

    Attributes:
        build: the function that makes the edit of one kind of query.
        strengths: the strengths to try, ascending; as many for every rival.
        summary: what it does, in a line.
        paper: arXiv number.
    """

    build: Callable[[Evidence, Modality, Sequence[int], float], Edit]
    strengths: tuple[float, ...]
    summary: str
    paper: str


RIVALS: Final[Mapping[str, Rival]] = {
    "caa": Rival(caa, (0.5, 1.0, 1.5, 2.0, 3.0, 4.0), "add the mean difference to refusals", "2312.06681"),
    "ablation": Rival(
        ablation, (0.25, 0.5, 0.75, 1.0, 1.5, 2.0), "remove the direction of forget queries", "2406.11717"
    ),
    "leace": Rival(
        leace, (0.25, 0.5, 0.75, 1.0, 1.5, 2.0), "erase what tells forget queries from others", "2306.03819"
    ),
    "cast": Rival(
        cast, (0.5, 1.0, 1.5, 2.0, 3.0, 4.0), "add where a condition's cosine says so", "2409.05907"
    ),
    "angular": Rival(
        angular, (30.0, 60.0, 90.0, 120.0, 150.0, 180.0), "turn to an angle in one plane", "2510.26243"
    ),
    "spherical": Rival(
        spherical, (0.1, 0.2, 0.4, 0.6, 0.8, 1.0), "rotate to refusal by the doubt in it", "2602.08169"
    ),
    "alphasteer": Rival(
        alphasteer, (0.5, 1.0, 1.5, 2.0, 3.0, 4.0), "add refusal read in retain's null space", "2506.07022"
    ),
    "mllmeraser": Rival(
        mllmeraser, (0.5, 1.0, 1.5, 2.0, 3.0, 4.0), "the same, in the prefill alone", "2510.04217"
    ),
    "linear-act": Rival(
        linear_act, (0.1, 0.25, 0.4, 0.6, 0.8, 1.0), "transport each coordinate to refusals", "2410.23054"
    ),
}
"""The rivals by their names on the command line."""


@dataclass(frozen=True)
class Trial:
    """What one strength, at one choice of blocks, did on the validation part.

    Attributes:
        strength: that was tried.
        leak: share of forget responses that leak, in [0, 1].
        keep: share of all others that stay right, in [0, 1].
        malformed: share of forget responses that are neither well formed nor an answer, in [0, 1].
        layers: the 0-based blocks that were steered.
    """

    strength: float
    leak: float
    keep: float
    malformed: float = 0.0
    layers: tuple[int, ...] = ()


def choose_strength(trials: Sequence[Trial]) -> Trial:
    """The trial of greatest `keep − leak − malformed`; the least strength among equals, then the first.

    No other trial leaks less, keeps more and says it in better form: the one chosen lies on the front of all three.
    Trials of several choices of blocks may be given together; the blocks are then chosen by the same rule.

    Raises:
        RMuseError: no trials, or shares outside [0, 1].

    Examples:
        >>> choose_strength([Trial(1.0, 0.9, 1.0), Trial(2.0, 0.1, 0.8), Trial(3.0, 0.0, 0.2)]).strength
        2.0
        >>> choose_strength([Trial(2.0, 0.1, 0.9), Trial(3.0, 0.0, 0.9, malformed=0.6)]).strength
        2.0
    """
    shares = [x for trial in trials for x in (trial.leak, trial.keep, trial.malformed)]
    if not trials or any(not (0.0 <= x <= 1.0) for x in shares):
        raise RMuseError(
            f"one trial or more with leak, keep and malformed in [0, 1] was required, got {list(trials)}"
        )
    # Rounded: the sum of shares that are equal on paper may differ in the last digit.
    return max(trials, key=lambda t: (round(t.keep - t.leak - t.malformed, 12), -t.strength))
