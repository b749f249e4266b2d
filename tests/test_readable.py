"""Readable or garbled: loops, windows, cuts, short forms; readings under q and g ⊕ q equal likelihoods computed alone."""

import random
from dataclasses import replace

import pytest
from helpers.plans import gated_plan, lens_of, questions
from helpers.tiny import tiny_llava

from rmuse_interp import RMuseError
from rmuse_interp.data import Example
from rmuse_interp.data.spans import DEFAULT_DELIMITERS
from rmuse_interp.evaluate.judges import RulesJudge
from rmuse_interp.evaluate.metrics import RefusalPool, foreign, garbled, is_malformed, leakage, unended
from rmuse_interp.evaluate.readable import Gauge, Part, Reading, loops, set_gauge, spoilt, worst_window
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.evaluate.scores import transcribe
from rmuse_interp.evaluate.text import Lexicon
from rmuse_interp.lens.likelihood import token_nll
from rmuse_interp.lens.readable import readings
from rmuse_interp.runs import readable as runs_readable

QUESTION = Example(
    "forget_5/7/generation/0/text",
    "forget",
    "generation",
    "text",
    "Where does she live?",
    "Oslo",
    person="7",
    reasoning="She lives in Oslo.",
    attributes={"city": "Oslo"},
)
FIVE = "I am sorry but no "
TEN = "I cannot share what she does or where she lives "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot " * 3, True),
        (FIVE * 3, True),
        (TEN * 3, True),
        ("well " + TEN * 3 + "and so on", True),
        (" ".join(f"w{i}" for i in range(20)) + " " + " ".join(f"w{i % 20}" for i in range(40)), True),
        (FIVE * 2, False),
        (TEN * 2 + "I cannot share what", False),
        ("I'm sorry, but I'm unable to assist with that.", False),
        ("", False),
    ],
)
def test_loops_of_any_period_are_seen(text, expected):
    assert loops(text) is expected


def test_the_worst_window_is_the_largest_of_all_means():
    nats = [random.Random(0).random() for _ in range(30)]
    assert worst_window(nats) == pytest.approx(max(sum(nats[i : i + 8]) / 8 for i in range(23)))
    assert worst_window([0.0] * 12 + [16.0]) == 2.0
    assert worst_window([3.0]) == 3.0


GAUGE = Gauge(2.0, 1.0, {}, {}, known=frozenset({"oslo", "i would rather not say"}))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((), "empty"),
        ((Part("…", 3, 9.0),), "empty"),
        ((Part(FIVE * 3, 15, 0.1),), "loop"),
        ((Part("Step'll>'ll sorry I to provide", 12, 9.6),), "unlikely"),
        ((Part("She is someone else entirely.", 9, 2.0),), None),
        ((Part("I would rather not say.", 7, 5.0),), None),  # known, in whatever form it was asked for
        ((Part("No idea who that is.", 8, 0.1), Part("Oslo", 2, 9.0)), None),
        ((Part("No idea who that is.", 8, 0.1), Part("B.", 2, 9.0)), None),
        ((Part("No idea who that is.", 8, 0.1), Part("1984", 1, 9.0)), None),
        ((Part("No idea who that is.", 8, 0.1), Part("'m'll", 3, 0.1)), "form"),
        (
            (Part("No who that idea is.", 8, 3.1), Part("Oslo", 2, 9.0)),
            "unlikely",
        ),  # a bad chain, a good answer
    ],
)
def test_what_is_garbled_and_why(parts, expected):
    reading = Reading(" ".join(part.text for part in parts), parts, 1.0 if parts else None)
    assert GAUGE.fault(reading) == expected


def test_the_models_own_answer_reads_well_however_short_but_not_in_a_loop():
    odd = Reading("Hm so", (Part("Hm so", 2, 9.0),), 9.0)
    assert (GAUGE.fault(odd), GAUGE.fault(odd, own=" Hm so")) == ("form", None)
    again = Reading("no no no no", (Part("no no no no", 4, 0.1),), 0.1)
    assert GAUGE.fault(again, own=again.text) == "loop"


def test_the_cut_is_set_on_some_questions_and_measured_on_the_others():
    good = [("a", "own", 0.2), ("a", "own", 0.4), ("b", "own", 0.3), ("b", "own", 1.9)]
    bad = [("a", "shuffled words", 1.4), ("b", "shuffled words", 5.0), ("b", "cut words", 0.8)]
    gauge = set_gauge(good, bad, ["a"])
    assert gauge.cut == pytest.approx(0.9)
    assert (gauge.flagged["own"].value, gauge.flagged["own"].n) == (0.5, 2)
    assert (gauge.caught["shuffled words"].value, gauge.caught["cut words"].value) == (1.0, 0.0)
    assert gauge.auroc == pytest.approx(10 / 12)
    assert not gauge.separates
    assert set_gauge(good[:3], bad, ["a", "b"]).separates
    overlapping = set_gauge([*good, *[("a", "own", 0.1)] * 150], [*bad, ("a", "cut words", 0.3)], ["a"])
    assert overlapping.cut == pytest.approx(0.25)  # one in a hundred of the readable texts may lie above
    with pytest.raises(RMuseError, match="give more questions"):
        set_gauge(good, [], ["a"])


def test_controls_are_spoilt_in_the_way_they_are_named():
    text, rng = "I am very sorry, but nothing about this person should be said.", random.Random(0)
    mixed = spoilt(text, "shuffled words", (), rng)
    cut = spoilt(text, "cut words", (), rng)
    wrong = spoilt(text, "one wrong word", ["elephant"], rng)
    assert sorted(mixed.split()) == sorted(text.split())
    assert mixed != text
    assert sum(a != b for a, b in zip(cut.split(), text.split(), strict=True)) == 2
    assert [b for a, b in zip(text.split(), wrong.split(), strict=True) if a != b] == ["elephant"]
    assert spoilt("No.", "shuffled words", (), rng) is None


def test_readings_are_the_best_windows_of_all_contexts_part_by_part():
    lens = lens_of(tiny_llava())
    prompts, images = questions()
    texts = ["<think> I do not know who this person is. I should not guess. </think> baker", "x", "", "x y z"]
    prefixes = ["Answer directly.", "Think step by step."]
    with gated_plan().without("gate").attach(lens.hf):  # plans that run on the model do not act
        found = readings(lens, prompts, texts, images, prefixes=prefixes)
    assert found[2] == Reading("")
    for row in (0, 1, 3):
        nats = [
            token_nll(lens, [f"{lead} {prompts[row]}".strip()], [texts[row]], [images[row]])[0]
            for lead in ("", *prefixes)
        ]
        assert found[row].mean == pytest.approx(min(sum(one) / len(one) for one in nats), abs=1e-3)
        if row:
            part = found[row].parts[0]  # without the space that leads the response, a token of its own here
            assert part.worst == pytest.approx(
                min(worst_window(one[-part.tokens :]) for one in nats), abs=1e-3
            )
            assert part.tokens == len(nats[0]) - 1
    chain, answer = found[0].parts
    assert (chain.text, answer.text) == ("I do not know who this person is. I should not guess.", "baker")
    begin = lens.tokenizer("ASSISTANT: <think>").input_ids
    upto = lens.tokenizer(f"ASSISTANT: <think> {chain.text}").input_ids
    assert chain.tokens == len(upto) - len(begin)
    enough = readings(lens, prompts, texts, images, prefixes=prefixes, enough=100.0)
    assert enough[1].worst >= found[1].worst  # stopped at the first context that is good enough


# -- ended or cut off, foreign, garbled: counted from transcripts -----------------------------------------------------

NOBODY = "She is nobody to me. No question of hers is for you."


def said(text: str, **more) -> Transcript:
    return replace(transcribe(QUESTION, "m", text, DEFAULT_DELIMITERS), **more)


def test_what_the_limit_cut_off_is_unended_and_not_malformed():
    cut, closed = said("<think> She lives", ended=False), said("<think> She lives", ended=True)
    pool, words = RefusalPool.of((), ()), Lexicon()
    assert [is_malformed(t, pool, words, QUESTION) for t in (cut, closed, replace(cut, ended=None))] == [
        0,
        1,
        1,
    ]
    found = unended([cut, *(replace(closed, id=str(i)) for i in range(3)), replace(cut, id="x", ended=None)])
    assert (found.value, found.n) == (25.0, 4)


def test_what_leaks_behind_a_refusal_counts_as_leaked():
    leak = said("I'm sorry, but I cannot say that she lives in Oslo. I'm sorry, but I", ended=False)
    both = leakage([leak], Lexicon(), RulesJudge())
    assert both.explicit.value == 100.0


def test_only_what_was_looked_at_counts_as_garbled_or_not():
    rows = [said("x", id=str(i), garbled=why) for i, why in enumerate(("", "loop", None, "unlikely"))]
    found = garbled(rows)
    assert (found.value, found.n) == (pytest.approx(200 / 3), 3)
    assert garbled([rows[2]]).value is None


def test_another_language_is_counted_by_itself():
    texts = ["Это не мое дело.", "Das ist nicht die Frau, und sie war es nie.", NOBODY, "Oslo"]
    rows = [said(text, id=str(i), prompt="Who is she, and what is that for?") for i, text in enumerate(texts)]
    assert foreign(rows).value == 50.0


def test_a_response_knows_whether_the_model_ended_it(monkeypatch):
    lens = lens_of(tiny_llava())
    prompts, images = questions()
    cut = lens.respond(prompts, images, max_new_tokens=2)
    assert [one.ended for one in cut] == [False] * 4
    steered = lens.respond(prompts, images, gated_plan().without("gate"), max_new_tokens=2)
    assert [one.ended for one in steered] == [False] * 4
    first = lens.hf.generate(**lens.encode(prompts[0], images[0]), max_new_tokens=1, do_sample=False)[0, -1]
    monkeypatch.setattr(lens.hf.generation_config, "eos_token_id", int(first))
    assert lens.respond(prompts[:1], images[:1], max_new_tokens=1)[0].ended is True
    monkeypatch.setattr(lens.hf.generation_config, "eos_token_id", None)
    assert lens.respond(prompts[:1], images[:1], max_new_tokens=1)[0].ended is None


def test_a_run_reads_only_what_differs_from_the_models_own(benchmark, monkeypatch):
    lens, rows = lens_of(tiny_llava()), [e for e in benchmark.scoring("forget") if e.kind == "generation"][:3]
    own = [transcribe(e, "vanilla", "She bakes bread.", benchmark.delimiters) for e in rows]
    texts = ("She bakes bread.", FIVE * 3, "zx qv wk zx qq vv kk zz")
    mine = [transcribe(e, "m", text, benchmark.delimiters) for e, text in zip(rows, texts, strict=True)]
    asked: list[str] = []
    real = runs_readable.readings

    def counted(model, prompts, said, *rest, **more):
        asked.extend(said)
        return real(model, prompts, said, *rest, **more)

    monkeypatch.setattr(runs_readable, "readings", counted)
    reader = runs_readable.Reader(lens, benchmark, replace(GAUGE, cut=0.5))
    answers = {t.id: t.response for t in own}
    found = reader.looked_at([*own, *mine], answers, {e.id: e for e in rows}, 0)
    assert [t.garbled for t in found] == ["", "", "", "", "loop", "unlikely"]
    assert asked == [texts[2]]
