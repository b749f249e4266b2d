"""Membership inference: can training questions be distinguished from others by the likelihood of their answers?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from rmuse_interp import RMuseError
from rmuse_interp.maths.statistics import auroc_clustered

Attack = Literal["loss", "min_k"]
MIN_K: Final = 0.2
"""Share of the least likely tokens that min-k looks at (Shi et al., arXiv 2310.16789)."""


@dataclass(frozen=True)
class Membership:
    """AUROC of members against others, with a 95 % bootstrap interval over people; 0.5 if they cannot be distinguished.

    Attributes:
        attack: the score used, `loss` or `min_k`.
        auroc: 1 if every member is more likely than every other.
        low: lower end of the interval.
        high: upper end of the interval.
        n_members: number of questions about members.
        n_others: number of questions about the others.
    """

    attack: Attack
    auroc: float
    low: float
    high: float
    n_members: int
    n_others: int


def loss_score(nats: Sequence[float]) -> float:
    """Minus the mean nats per token: larger for better known answers.

    >>> loss_score([1.0, 3.0])
    -2.0
    """
    return -float(np.mean(nats))


def min_k_score(nats: Sequence[float], k: float = MIN_K) -> float:
    """Minus the mean nats of the least likely tokens: a share `k` of all, but at least one.

    >>> min_k_score([1.0, 3.0, 5.0, 0.0, 0.0], k=0.4)
    -4.0
    """
    worst = np.sort(np.asarray(nats))[::-1][: max(1, int(len(nats) * k))]
    return -float(worst.mean())


SCORES: Final[dict[Attack, Callable[[Sequence[float]], float]]] = {"loss": loss_score, "min_k": min_k_score}


def membership(
    members: Mapping[str, Sequence[float]],
    others: Mapping[str, Sequence[float]],
    people: Mapping[str, str],
    attack: Attack = "loss",
    *,
    seed: int = 0,
) -> Membership:
    """Compute an attack's AUROC.

    Members are what the model was trained on; the others are similar but were never shown: other people, or wrong
    answers to the same questions. A method that forgets lowers the AUROC to that of a model that never saw the
    members; going lower overdoes it and distinguishes members again.

    Args:
        members: question id → nats per token of its right answer, under the model (or method) attacked.
        others: question id → nats per token of the answer, for questions the model never saw.
        people: question id → ID of the person it is about.
        attack: the score, `loss` or `min_k`.
        seed: seed for resampling.

    Raises:
        RMuseError: a side is empty, or an answer has no tokens or a loss that is no number.
    """
    for side, rows in (("members", members), ("others", others)):
        bad = [i for i, nats in rows.items() if not len(nats) or not np.isfinite(nats).all()]
        if not rows or bad:
            got = f"{bad[0]} without" if bad else "none"
            raise RMuseError(f"{side}: answers with finite nats per token were required, got {got}")
    ids = [sorted(rows, key=lambda i: (people[i], i)) for rows in (members, others)]
    scores = [
        [SCORES[attack](rows[i]) for i in side] for rows, side in zip((members, others), ids, strict=True)
    ]
    area = auroc_clustered(*scores, *([people[i] for i in side] for side in ids), seed=seed)
    return Membership(attack, area.value, area.low, area.high, len(members), len(others))
