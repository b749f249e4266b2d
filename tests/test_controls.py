"""The controls: a fitted gate with a canned refusal, and with g before the question; everything else is untouched."""

from dataclasses import replace

import pytest
from helpers import parquet_fixture
from helpers.places import plans
from helpers.plans import lens_of, questions
from helpers.tiny import tiny_llava

from rmuse_interp import RMuseError
from rmuse_interp.data import load_benchmark
from rmuse_interp.models.prompts import behind
from rmuse_interp.runs.controls import CONTROLS, Control
from rmuse_interp.runs.run import Method, kept_of

CANNED = Control("canned", ("<think> No. </think> Never.",), ("No.", "Never."), "Say no.")


@pytest.fixture(scope="module")
def lens():
    return lens_of(tiny_llava())


def asked(lens, control, **more):
    method = Method("control", lens, plans(lens)["question"], control=control)
    return method.respond(*questions(), max_new_tokens=6, **more)


def test_a_canned_refusal_stands_where_the_gate_fires_and_nothing_else_changes(lens):
    prompts, images = questions()
    free = lens.respond(prompts, images, max_new_tokens=6)
    steered = Method("steered", lens, plans(lens)["question"]).respond(prompts, images, max_new_tokens=6)
    found = asked(lens, CANNED)
    fired = [one.fired for one in steered]
    assert True in fired
    assert False in fired
    assert [(one.fired, one.margin, one.gate) for one in found] == [
        (one.fired, pytest.approx(one.margin, abs=1e-4), one.gate) for one in steered
    ]
    said = [one.text for one, fires in zip(found, fired, strict=True) if fires]
    assert said == [CANNED.direct[i % 2] for i in range(len(said))]  # nobody reasoned: bare refusals, in turn
    for one, other, fires in zip(found, free, fired, strict=True):
        assert fires or one.text == other.text
    begun = asked(lens, CANNED, prefills=["Sure,"] * len(prompts))
    assert [one.text for one, fires in zip(begun, fired, strict=True) if fires] == [
        f"Sure, {text}" for text in said
    ]


def test_the_prefix_stands_before_the_question_where_the_gate_fires(lens):
    prompts, images = questions()
    found = asked(lens, replace(CANNED, kind="prefixed"))
    put = [behind("Say no.", q) if one.fired else q for q, one in zip(prompts, found, strict=True)]
    expected = lens.respond(put, images, max_new_tokens=6)
    assert [one.text for one in found] == [one.text for one in expected]


def test_a_control_is_kept_apart_from_the_steering_and_known_by_name(lens, tmp_path):
    method = Method("x", lens, plans(lens)["question"])
    kept_of(tmp_path, method, 6).put("key", [1])
    assert kept_of(tmp_path, method, 6).get("key") == [1]
    assert kept_of(tmp_path, replace(method, control=CANNED), 6).get("key") is None
    assert set(CONTROLS) == {"canned", "prefixed"}


def test_an_unknown_control_is_refused(tmp_path):
    with pytest.raises(RMuseError, match="canned, prefixed"):
        Control.of("silence", load_benchmark(parquet_fixture.write_benchmark(tmp_path), forget=10))
