"""Rates, thresholds and AUROC by what defines them; the bootstrap by the spread that theory gives."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from rmuse_interp import RMuseError
from rmuse_interp.maths.statistics import (
    FALSE_ALARM,
    RESAMPLES,
    auroc,
    auroc_clustered,
    bootstrap,
    choose_threshold,
    clustered,
    resampled,
    wilson,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def singly(values) -> list[int]:
    """Everybody once."""
    return list(range(len(values)))


def test_auroc_is_sklearns_ties_included():
    forget, other = (random(40) * 2).round() / 2 + 0.5, (random(60, seed=1) * 2).round() / 2
    truth = [1] * 40 + [0] * 60
    expected = roc_auc_score(truth, torch.cat([forget, other]).numpy())
    assert auroc(forget, other) == pytest.approx(expected)
    assert auroc([1.0], [0.0]) == 1.0
    found = auroc_clustered(forget, other, singly(forget), singly(other))
    assert found.value == auroc(forget, other)
    assert found.low < expected < found.high
    assert (found.n, found.clusters) == (100, 100)
    assert found == auroc_clustered(forget, other, singly(forget), singly(other))


def test_the_area_of_a_resample_is_that_of_the_examples_drawn():
    forget, other = (random(9) * 2).round() + 0.5, (random(7, seed=1) * 2).round() + 0.5
    who, sides = [i // 2 for i in range(16)], [True] * 9 + [False] * 7
    weights = resampled(who, seed=3, apart=sides).astype(int)
    areas = []
    for row in weights:
        hits, rest = (np.repeat(*both) for both in ((forget.numpy(), row[:9]), (other.numpy(), row[9:])))
        areas.append(np.mean((hits[:, None] > rest) + (hits[:, None] == rest) / 2))
    found = auroc_clustered(forget, other, who[:9], who[9:], seed=3)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(areas, [2.5, 97.5])))
    assert found.clusters == 5 + 4  # who is on both sides is drawn on each


def test_people_are_drawn_whole_and_sides_keep_their_number_of_people():
    people, sides = ["a", "a", "b", "c", "c", "d"], [0, 0, 0, 1, 1, 1]
    weights = resampled(people, apart=sides)
    assert weights.shape == (RESAMPLES, 6)
    assert bool((weights[:, 0] == weights[:, 1]).all())
    assert bool((weights[:, [1, 2]].sum(axis=1) == 2).all())
    assert bool((weights[:, [4, 5]].sum(axis=1) == 2).all())
    whole = resampled(people)
    assert len(set(whole[:, [1, 2]].sum(axis=1))) > 1
    assert not np.array_equal(resampled(people, seed=1), whole)
    assert resampled(people, resamples=7).shape == (7, 6)


def test_the_interval_of_a_mean_is_the_one_theory_gives():
    values = random(400).numpy() * 3 + 1
    found = clustered(values, singly(values))
    half = norm.ppf(0.975) * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.03)
    # Each value four times is no new evidence where the copies are known to be one person's, and would be otherwise.
    copies, owners = np.repeat(values, 4), np.repeat(np.arange(400), 4).tolist()
    again, naive = clustered(copies, owners), clustered(copies, singly(copies))
    assert (again.low, again.high) == pytest.approx((found.low, found.high))
    assert naive.high - naive.low == pytest.approx((found.high - found.low) / 2, rel=0.1)
    assert (again.n, again.clusters) == (1600, 400)


def test_a_ratio_is_of_sums_and_an_undefined_resample_does_not_count():
    parts, wholes = [1.0, 2.0, 0.0], [2.0, 8.0, 0.0]
    found = clustered(parts, singly(parts), over=wholes)
    assert (found.value, found.low, found.high) == (0.3, 0.25, 0.5)
    assert clustered([1.0, 3.0], ["a", "a"]).low == clustered([1.0, 3.0], ["a", "a"]).high == 2.0


def test_the_interval_of_a_ratio_covers_it_and_narrows():
    rng = np.random.default_rng(0)
    hits, widths = 0, []
    for seed in range(200):
        wholes = rng.uniform(1, 3, size=40)
        parts = wholes * rng.beta(2, 6, size=40)
        found = clustered(parts, range(40), over=wholes, seed=seed)
        hits += found.low <= 0.25 <= found.high
        widths.append(found.high - found.low)
    assert 0.88 <= hits / 200 <= 1.0
    wholes = rng.uniform(1, 3, size=4000)
    found = clustered(wholes * rng.beta(2, 6, size=4000), range(4000), over=wholes)
    assert found.high - found.low < np.mean(widths) / 5


def test_any_statistic_of_weighted_examples_has_an_interval():
    values = np.sort(random(60).numpy())

    def median(weights: np.ndarray) -> np.ndarray:
        return values[(weights.cumsum(axis=1) >= weights.sum(axis=1, keepdims=True) / 2).argmax(axis=1)]

    found = bootstrap(median, singly(values))
    assert found.value == values[29]
    drawn = [np.sort(np.repeat(values, row.astype(int)))[29] for row in resampled(singly(values))]
    assert (found.low, found.high) == tuple(np.percentile(drawn, [2.5, 97.5]))


def test_bootstraps_refuse_bad_input():
    with pytest.raises(RMuseError, match="at least one value"):
        clustered([], [])
    with pytest.raises(RMuseError, match="with a person"):
        clustered([1.0], ["a", "b"])
    with pytest.raises(RMuseError, match="a person and a side"):
        resampled(["a"], apart=[])
    with pytest.raises(RMuseError, match="one person per score"):
        auroc_clustered([1.0], [0.0, 0.0], ["a", "b"], ["c"])


@pytest.mark.parametrize("level", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_thresholds_keep_their_promise_and_no_more(level: float):
    forget, other = random(50) + 1.0, random(70, seed=1)
    for rule in ("target_fpr", "target_tpr"):
        found = choose_threshold(forget, other, rule, level)
        tpr, fpr = float((forget > found.value).double().mean()), float((other > found.value).double().mean())
        assert (found.tpr.value, found.fpr.value) == pytest.approx((tpr, fpr))
        if rule == "target_fpr":
            assert fpr <= level
            steps = other[other <= found.value]  # letting one more through would break the promise
            assert not len(steps) or fpr + 1 / 70 > level or bool((forget > found.value).all())
        else:
            assert tpr >= level
            steps = forget[forget > found.value]
            assert not len(steps) or tpr - 1 / 50 < level


def test_youden_finds_the_largest_gain_and_midpoint_the_middle():
    forget, other = random(50) + 1.0, random(70, seed=1)
    found = choose_threshold(forget, other, "youden")
    gains = [
        float((forget > c).double().mean() - (other > c).double().mean()) for c in torch.cat([forget, other])
    ]
    assert found.tpr.value - found.fpr.value == pytest.approx(max(gains))
    wary = choose_threshold(forget, other, "midpoint")  # they overlap
    gains = [
        float((forget > c).double().mean() - FALSE_ALARM * (other > c).double().mean())
        for c in torch.cat([forget, other])
    ]
    assert wary.tpr.value - FALSE_ALARM * wary.fpr.value == pytest.approx(max(gains))
    assert wary.fpr.value < found.fpr.value
    assert choose_threshold(forget + 10, other).value == pytest.approx(
        float((forget.min() + 10 + other.max()) / 2)
    )


def test_thresholds_refuse_bad_input():
    with pytest.raises(RMuseError, match="forget scores"):
        choose_threshold([], [1.0])
    with pytest.raises(RMuseError, match="other scores"):
        auroc([1.0], [math.nan])
    with pytest.raises(RMuseError, match="level"):
        choose_threshold([1.0], [0.0], "target_fpr", 5.0)


def test_wilson_interval():
    rate = wilson(8, 10)
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.4902, 0.9433)  # textbook values
    assert wilson(10, 10).high == 1.0
    assert math.isnan(wilson(0, 0).value)
