"""Likelihood of responses, resumed where it was broken off; whether two sets of responses are told apart; controls."""

import random

import pytest
import torch
from helpers.plans import gated_plan, lens_of, questions
from helpers.tiny import tiny_llava

from rmuse_interp import RMuseError
from rmuse_interp.evaluate.likeness import likeness
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.evaluate.scores import transcribe
from rmuse_interp.lens.likelihood import response_nll
from rmuse_interp.runs import likelihoods
from rmuse_interp.runs.run import UNFINISHED, Method

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


@pytest.fixture
def counted(monkeypatch):
    """The sizes of the batches whose likelihoods are computed; the one numbered `stop` is interrupted."""
    sizes: list[int] = []
    real = likelihoods.token_nll

    def counting(lens, prompts, *rest, **settings):
        sizes.append(len(prompts))
        if len(sizes) == counting.stop:
            raise KeyboardInterrupt
        return real(lens, prompts, *rest, **settings)

    counting.stop = None
    monkeypatch.setattr(likelihoods, "token_nll", counting)
    return sizes, counting


def test_nats_of_answers_go_on_behind_the_last_whole_batch(benchmark, tmp_path, counted):
    sizes, counting = counted
    lens, other = lens_of(tiny_llava()), lens_of(tiny_llava(seed=1))
    methods = [Method("vanilla", lens), Method("rmuse/odd", lens, gated_plan().without("gate"))]
    asked = [e for e in benchmark.scoring("forget") if e.kind == "generation"]
    wrong = {e.id: ["Cairo", "It is Quito."] for e in asked[:-1]}

    def nats(method, folder=None):
        return likelihoods.answer_nats(method, asked, wrong, batch_size=3, folder=folder)

    whole = [nats(method) for method in methods]
    each = len(sizes) // 2
    assert [len(row) for row in whole[0].values()] == [3] * len(wrong)
    assert (sum(sizes[:each]), len(asked)) == (3 * len(wrong), 4)
    sizes.clear()
    counting.stop = each + 3
    with pytest.raises(KeyboardInterrupt):
        [nats(method, tmp_path) for method in methods]
    kept = tmp_path / UNFINISHED / "rmuse-odd.jsonl"
    assert len(kept.read_text().splitlines()) == 2  # a line per batch
    kept.write_text(kept.read_text()[:-5])  # torn while it was written
    sizes.clear()
    counting.stop = None
    assert [nats(method, tmp_path) for method in methods] == whole
    assert len(sizes) == each - 1
    sizes.clear()
    assert [nats(method, tmp_path) for method in methods] == whole
    assert sizes == []
    assert nats(Method("vanilla", other), tmp_path) != whole[0]  # another model under a known name
    assert len(sizes) == each


def test_fluency_goes_on_behind_the_last_whole_batch(benchmark, tmp_path, counted):
    sizes, counting = counted
    lens = lens_of(tiny_llava())
    examples = {e.id: e for split in ("forget", "test") for e in benchmark.scoring(split)}
    texts = [f"She lives in {'far away ' * (i % 3)}Oslo." for i in range(len(examples))]
    responses: list[Transcript] = [
        transcribe(e, "vanilla", text, benchmark.delimiters)
        for e, text in zip(examples.values(), texts, strict=True)
    ]
    whole = likelihoods.fluency(responses, examples, lens, batch_size=4)
    n = len(sizes)
    sizes.clear()
    counting.stop = 3
    with pytest.raises(KeyboardInterrupt):
        likelihoods.fluency(responses, examples, lens, batch_size=4, folder=tmp_path)
    sizes.clear()
    counting.stop = None
    assert likelihoods.fluency(responses, examples, lens, batch_size=4, folder=tmp_path) == whole
    assert len(sizes) == n - 2
    batches = response_nll(
        lens, [t.prompt for t in responses], texts, [examples[t.id].image for t in responses]
    )
    nats = {t.id: row for t, row in zip(responses, batches, strict=True) if t.split == "forget"}
    expected = torch.tensor([sum(one) for one in zip(*nats.values(), strict=True)])
    found = whole["vanilla"]["forget"]
    assert found["n"] == len(nats)
    assert found["perplexity"] == pytest.approx(float((expected[0] / expected[1]).exp()), rel=1e-3)


def said(words: list[str], n: int, seed: int) -> tuple[list[str], list[str]]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=6)) for _ in range(n)], [f"p{i % 10}" for i in range(n)]


def test_texts_from_one_source_are_not_told_apart_and_others_are():
    (ours, people), (theirs, their_people) = said(list("abcdef"), 80, 1), said(list("abcdef"), 80, 2)
    alike = likeness(ours, theirs, people, their_people)
    assert alike.low < 0.5 < alike.high
    assert alike.n == 160
    other, _ = said(list("abcxyz"), 80, 3)
    assert likeness(ours, other, people, their_people).value > 0.95
    longer = [text + " a b" for text in theirs]
    assert likeness(ours, longer, people, their_people).value > 0.95


def test_what_is_said_about_one_person_does_not_help_with_another():
    """Every person has a word of their own on one side: with the same people in training it would tell the sides."""
    people = [f"p{i // 4}" for i in range(40)]
    ours = [f"sorry {name}-own" for name in people]
    theirs = [f"sorry {name}-other" for name in people]
    assert likeness(ours, theirs, people, people).value == pytest.approx(0.5, abs=0.05)


def test_likeness_needs_both_sides_and_two_people():
    with pytest.raises(RMuseError, match="both sides"):
        likeness(["a"], [], ["p"], [])
    with pytest.raises(RMuseError, match="two people"):
        likeness(["a"], ["b"], ["p"], ["p"])
