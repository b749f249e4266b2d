"""Likelihood of responses, and whether two sets of them are told apart: against naive sums, with controls."""

import random

import pytest
import torch
from plans import gated_plan, lens_of, questions
from tiny import tiny_llava

from rmuse_interp.errors import RMuseError
from rmuse_interp.evaluate.likeness import likeness
from rmuse_interp.models.likelihood import response_nll

RESPONSES = [
    "It is a baker.",
    "Oren Tal lives in Lisbon and was born in 1984.",
    "two",
    "I cannot help with that.",
]


def naive(lens, prompt, image, response) -> tuple[float, int]:
    """One row alone, token by token."""
    whole, bare = lens.encode(prompt, image, response), lens.encode(prompt, image)
    begin = bare["input_ids"].shape[1]
    with torch.no_grad():
        logs = lens.hf(**whole).logits.log_softmax(-1)[0]
    ids = whole["input_ids"][0]
    return -sum(float(logs[t - 1, ids[t]]) for t in range(begin, len(ids))), len(ids) - begin


def test_nats_are_those_of_each_row_alone_whatever_the_batch():
    lens = lens_of(tiny_llava())
    prompts, images = questions()
    expected = [naive(lens, *row) for row in zip(prompts, images, RESPONSES, strict=True)]
    for size in (1, 3, 32):
        found = response_nll(lens, prompts, RESPONSES, images, batch_size=size)
        for (nats, n), (nats_alone, n_alone) in zip(found, expected, strict=True):
            assert n == n_alone
            assert nats == pytest.approx(nats_alone, abs=1e-3)


def test_a_plan_changes_what_is_likely_and_its_absence_does_not():
    lens = lens_of(tiny_llava())
    prompts, images = questions()
    plain = response_nll(lens, prompts, RESPONSES, images)
    steered = response_nll(lens, prompts, RESPONSES, images, gated_plan().without("gate"))
    assert all(abs(one[0] - two[0]) > 1e-3 for one, two in zip(plain, steered, strict=True))
    assert response_nll(lens, prompts, RESPONSES, images) == plain


def test_responses_without_words_are_refused():
    lens = lens_of(tiny_llava())
    with pytest.raises(RMuseError, match="1 of them empty"):
        response_nll(lens, ["Who?", "Where?"], ["Me.", " "])


def said(words: list[str], n: int, seed: int) -> tuple[list[str], list[str]]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=6)) for _ in range(n)], [f"p{i % 10}" for i in range(n)]


def test_texts_from_one_source_are_not_told_apart_and_others_are():
    (ours, people), (theirs, their_people) = said(list("abcdef"), 80, 1), said(list("abcdef"), 80, 2)
    alike = likeness(ours, theirs, people, their_people)
    assert alike.low < 0.5 < alike.high
    assert alike.n == 160
    other, _ = said(list("abcxyz"), 80, 3)
    assert likeness(ours, other, people, their_people).auroc > 0.95
    longer = [text + " a b" for text in theirs]
    assert likeness(ours, longer, people, their_people).auroc > 0.95


def test_what_is_said_about_one_person_does_not_help_with_another():
    """Every person has a word of their own on one side: with the same people in training it would tell the sides."""
    people = [f"p{i // 4}" for i in range(40)]
    ours = [f"sorry {name}-own" for name in people]
    theirs = [f"sorry {name}-other" for name in people]
    assert likeness(ours, theirs, people, people).auroc == pytest.approx(0.5, abs=0.05)


def test_likeness_needs_both_sides_and_two_people():
    with pytest.raises(RMuseError, match="both sides"):
        likeness(["a"], [], ["p"], [])
    with pytest.raises(RMuseError, match="two people"):
        likeness(["a"], ["b"], ["p"], ["p"])
