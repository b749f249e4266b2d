"""Forget quality (TOFU): do a model's truth ratios differ from those of a model that never knew the people?"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from rmuse_interp import RMuseError
from rmuse_interp.data.example import Example
from rmuse_interp.evaluate.text import Lexicon
from rmuse_interp.maths.statistics import bootstrap

PERTURBED: Final = 5


def perturbed_answers(
    examples: Sequence[Example], lexicon: Lexicon | None = None, n: int = PERTURBED, seed: int = 0
) -> dict[str, list[str]]:
    """Map id → wrong answers in the form of the right one: other people's answers to the same question.

    Questions count as the same if their answers state the same attribute: one about a city gets other cities. Examples
    without such an attribute, or with fewer than two wrong answers, are left out; the keys show which remain.

    Args:
        examples: open questions about people, including retained ones; their answers are each other's wrong answers.
        lexicon: aliases, so that no other form of the right answer counts as wrong.
        n: the maximum number of wrong answers per question.
        seed: seed for drawing them.
    """
    words = lexicon or Lexicon()
    pools: dict[tuple[str, ...], set[str]] = {}
    for example in examples:
        pools.setdefault(_asked(example, words), set()).add(example.answer)
    found: dict[str, list[str]] = {}
    for example in sorted(examples, key=lambda e: e.id):
        key = _asked(example, words)
        others = sorted(answer for answer in pools[key] if not words.same(answer, example.answer))
        if key and len(others) >= 2:
            draw = random.Random(f"{seed}/{example.id}")
            found[example.id] = draw.sample(others, min(n, len(others)))
    return found


def _asked(example: Example, lexicon: Lexicon) -> tuple[str, ...]:
    """The attributes that a question asks for: those whose value the answer states."""
    return tuple(sorted(k for k, v in example.attributes.items() if lexicon.states(example.answer, v)))


def truth_ratio(right: Sequence[float], wrong: Sequence[Sequence[float]]) -> float:
    """R = mean over wrong answers of p(wrong)^(1/tokens), divided by p(right)^(1/tokens); small if the truth is known.

    Defined in TOFU (arXiv 2401.06121, section 2.2.1); here with the right answer in place of its paraphrase.

    Args:
        right: nats of each token of the right answer.
        wrong: for each wrong answer, nats of each token.

    >>> round(truth_ratio([0.0], [[math.log(2)], [math.log(4)]]), 3)
    0.375
    """
    if not right or not wrong or not all(wrong):
        raise RMuseError(
            f"tokens of the right and of wrong answers were required, got {len(right)} and {[len(w) for w in wrong]}"
        )
    return math.exp(np.mean(right)) * float(np.mean([math.exp(-np.mean(one)) for one in wrong]))


@dataclass(frozen=True)
class ForgetQuality:
    """A two-sample Kolmogorov–Smirnov test of truth ratios against a gold model's, which never knew the people.

    Attributes:
        p_value: large if the two cannot be distinguished; in TOFU a method forgets if it is above 0.05.
        statistic: the largest gap between the two distribution functions, 0 to 1.
        low: lower end of the statistic's 95 % bootstrap interval over people.
        high: upper end of that interval.
        n: number of questions.
        people: number of people in them; the p-value treats questions as independent, but those of one person are not.
    """

    p_value: float
    statistic: float
    low: float
    high: float
    n: int
    people: int


def forget_quality(
    ours: Mapping[str, float],
    gold: Mapping[str, float],
    people: Mapping[str, str],
    *,
    seed: int = 0,
) -> ForgetQuality:
    """Compare the truth ratios of a method with the gold model's, on the same questions.

    Args:
        ours: question id → `truth_ratio` under the method.
        gold: question id → `truth_ratio` under the model trained without the people.
        people: question id → ID of the person it is about.
        seed: seed for resampling.

    Raises:
        RMuseError: the two sides have different questions, there are fewer than two people, or a ratio is no number.
    """
    if set(ours) != set(gold) or len({people.get(i) for i in ours}) < 2:
        raise RMuseError(
            f"truth ratios of the same questions about two people or more were required, got {len(ours)} and {len(gold)} "
            f"questions, {len(set(ours) ^ set(gold))} of them on one side only"
        )
    bad = [i for side in (ours, gold) for i, value in side.items() if not math.isfinite(value)]
    if bad:
        raise RMuseError(
            f"finite truth ratios were required, got none for {bad[0]}; check the model's logits"
        )
    from scipy.stats import ks_2samp

    ids = sorted(ours, key=lambda i: (people[i], i))
    mine, golden = (np.array([side[i] for i in ids]) for side in (ours, gold))

    def largest_gap(weights: np.ndarray) -> np.ndarray:
        at = np.sort(np.concatenate([mine, golden]))
        # For each question, the difference of the two step functions (−1, 0 or 1) at every ratio that occurs.
        apart = (mine[:, None] <= at).astype(float) - (golden[:, None] <= at)
        return np.abs(weights @ apart).max(axis=1) / weights.sum(axis=1)

    gap = bootstrap(largest_gap, [people[i] for i in ids], seed)
    p_value = float(ks_2samp(mine, golden).pvalue)
    return ForgetQuality(p_value, gap.value, gap.low, gap.high, gap.n, gap.clusters)
