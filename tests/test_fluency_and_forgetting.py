"""Steps that leak, fluency, forget quality and membership: hand counts, and controls that tell nothing apart."""

import math
import random

import numpy as np
import pytest
from helpers.plans import lens_of, questions
from helpers.said import said
from helpers.tiny import tiny_llava
from sklearn.metrics import roc_auc_score

from rmuse_interp import RMuseError
from rmuse_interp.data import Example
from rmuse_interp.evaluate import metrics as m
from rmuse_interp.evaluate.fluency import distinct_bigrams, perplexity
from rmuse_interp.evaluate.forgetting import forget_quality, perturbed_answers, truth_ratio
from rmuse_interp.evaluate.membership import loss_score, membership, min_k_score
from rmuse_interp.lens.likelihood import response_nll, token_nll


def test_step_recall_takes_the_best_step():
    # reference "works as a baker": step 1 has "a" (1/4), step 2 "works … baker" (2/4)
    attributes = {"occupation": "baker"}
    row = said(
        "<think> This is a face. He works, bakers know. </think> no",
        answer="works as a baker",
        attributes=attributes,
    )
    assert m.step_recall([row]).value == pytest.approx(0.5)
    assert m.step_recall([said("<think> nothing </think> Oslo", attributes=attributes)]).value == 0.0
    assert m.step_recall([said("<think> Oslo </think> Oslo")]).value is None  # nothing to leak
    told = m.step_recall([said("Oslo", attributes=attributes)])
    assert (told.value, told.parse_failures) == (1.0, 1)


def test_distinct_bigrams_fall_where_words_repeat():
    assert distinct_bigrams([said("a b c d")]).value == 1.0
    assert distinct_bigrams([said("a b a b a")]).value == pytest.approx(0.5)  # ab, ba of ab ba ab ba
    assert distinct_bigrams([said("word")]).value is None


def test_replies_without_a_letter_are_counted():
    rows = [said(r, i, kind="classification", answer="B") for i, r in enumerate(["B", "7", ""])]
    assert m.classification(rows).parse_failures == 2


def test_perplexity_is_of_all_tokens_together():
    rows = [said("a b", 0, person="p"), said("c d", 1, person="q")]
    nats = {rows[0].id: [0.0] * 3, rows[1].id: [math.log(16)]}
    found = perplexity(rows, nats)
    assert found.value == pytest.approx(2.0)  # log 16 over 4 tokens
    assert found.per_example[rows[1].id] == pytest.approx(16.0)
    assert found.interval == pytest.approx((1.0, 16.0))
    assert perplexity([], {}).value is None
    with pytest.raises(RMuseError, match="nats of every response"):
        perplexity(rows, {rows[0].id: [1.0]})


def example(i: int, answer: str, **attributes: str) -> Example:
    return Example(
        f"forget_5/p{i}/generation/0",
        "forget",
        "generation",
        "text",
        "Q?",
        answer,
        f"p{i}",
        attributes=attributes,
    )


def test_wrong_answers_are_other_peoples_answers_to_the_same_question():
    people = [
        example(i, v, city=v, name=f"N{i}") for i, v in enumerate(["Oslo", "Rome", "Lima", "Oslo", "oslo"])
    ]
    people += [example(9, "baker", occupation="baker")]
    found = perturbed_answers(people)
    assert set(found) == {e.id for e in people[:5]}  # nobody else has an occupation
    assert sorted(found[people[0].id]) == ["Lima", "Rome"]
    assert found == perturbed_answers(people[::-1])


def test_truth_ratio_by_hand():
    right, wrong = [math.log(2), math.log(8)], [[math.log(8)], [math.log(16), math.log(4)]]
    assert truth_ratio(right, wrong) == pytest.approx((1 / 8 + 1 / 8) / 2 / (1 / 4))
    with pytest.raises(RMuseError, match="tokens of the right"):
        truth_ratio([], wrong)


def test_forget_quality_tells_a_model_that_knows_from_one_that_does_not():
    draw = random.Random(0)
    ids = [f"q{i}" for i in range(120)]
    people = {i: f"p{int(i[1:]) // 6}" for i in ids}
    gold, alike, knows = ({i: math.exp(draw.gauss(mean, 1)) for i in ids} for mean in (0, 0, -3))
    same, other = forget_quality(alike, gold, people), forget_quality(knows, gold, people)
    assert same.p_value > 0.05 > 1e-6 > other.p_value
    assert same.statistic < other.low <= other.statistic <= other.high
    assert (same.n, same.people) == (120, 20)
    from scipy.stats import ks_2samp

    test = ks_2samp(list(knows.values()), list(gold.values()))
    assert (other.p_value, other.statistic) == (test.pvalue, pytest.approx(test.statistic))
    with pytest.raises(RMuseError, match="one side only"):
        forget_quality({"q0": 1.0, "q1": 1.0}, {"q0": 1.0}, {"q0": "a", "q1": "b"})
    with pytest.raises(RMuseError, match="finite"):
        forget_quality({"a": math.nan, "b": 1.0}, {"a": 1.0, "b": 1.0}, {"a": "p", "b": "q"})


def test_membership_is_the_area_under_the_curve_ties_and_all():
    draw = np.random.default_rng(1)
    members = {f"m{i}": [draw.integers(4) / 2] for i in range(30)}
    others = {f"o{i}": [draw.integers(5) / 2] for i in range(50)}
    people = {i: f"p{n % 7}" for n, i in enumerate((*members, *others))}
    scores = [-row[0] for row in (*members.values(), *others.values())]
    found = membership(members, others, people)
    assert found.auroc == pytest.approx(roc_auc_score([1] * 30 + [0] * 50, scores))
    assert found.low < found.auroc < found.high


def test_membership_scores_by_hand():
    assert loss_score([1.0, 2.0, 6.0]) == -3.0
    assert min_k_score([1.0, 2.0, 6.0, 4.0, 0.0], 0.4) == -5.0
    assert min_k_score([3.0], 0.2) == -3.0  # one token at least


@pytest.mark.parametrize("attack", ["loss", "min_k"])
def test_membership_is_half_without_a_difference_and_one_with(attack):
    draw = random.Random(1)

    def side(name: str, mean: float) -> dict[str, list[float]]:
        return {f"{name}{i}": [abs(draw.gauss(mean, 0.3)) for _ in range(5)] for i in range(60)}

    members, known, others = side("a", 2.0), side("k", 0.5), side("b", 2.0)
    people = {i: i[:-1] for i in (*members, *known, *others)}
    nothing = membership(members, others, people, attack)
    assert nothing.low < 0.5 < nothing.high
    told = membership(known, others, people, attack)
    assert told.auroc > 0.99
    assert (told.n_members, told.n_others) == (60, 60)
    with pytest.raises(RMuseError, match="members: answers with finite nats"):
        membership({}, others, people, attack)
    with pytest.raises(RMuseError, match="others: answers with finite nats"):
        membership(members, {"b": []}, people, attack)


def test_token_nats_add_up_to_those_of_the_response():
    lens = lens_of(tiny_llava())
    prompts, images = questions()
    responses = ["It is a baker.", "two", "Oren Tal lives in Lisbon.", "I cannot help."]
    tokens = token_nll(lens, prompts, responses, images, batch_size=3)
    for row, (nats, n) in zip(tokens, response_nll(lens, prompts, responses, images), strict=True):
        assert len(row) == n
        assert sum(row) == pytest.approx(nats, abs=1e-3)
