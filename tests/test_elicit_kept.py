"""What is kept of a model's responses: nothing is asked twice, nothing is lost."""

import json
from dataclasses import replace

import pytest
from helpers import parquet_fixture, tiny
from helpers.elicit import VIEWS, bare, scripted, spoken

from rmuse_interp.data import load_benchmark
from rmuse_interp.fitting.elicit import TEMPLATES, elicit
from rmuse_interp.lens.lens import load_model
from rmuse_interp.models.fingerprint import remember


@pytest.fixture
def benchmark(tmp_path):
    return load_benchmark(parquet_fixture.write_benchmark(tmp_path / "data", bare))


@pytest.fixture
def lens():
    return load_model(tiny.tiny_llava(), device="cpu")


# What is kept


def test_nothing_is_asked_twice(lens, benchmark, tmp_path, monkeypatch):
    """Other delimiters only cut the kept responses anew; another instruction, length, dtype or model asks again."""
    asked = scripted(lens, monkeypatch, spoken)
    first = elicit(lens, benchmark, template="reasoning", cache=tmp_path)
    n = len(asked)
    again = elicit(lens, benchmark, template="reasoning", cache=tmp_path)
    assert len(asked) == n
    assert again.kept == first.kept
    for view in VIEWS:
        assert getattr(again.benchmark, view) == getattr(first.benchmark, view)
    elicit(
        lens,
        benchmark,
        template=replace(TEMPLATES["reasoning"], delimiters=("Reasoning", "Answer")),
        cache=tmp_path,
    )
    assert len(asked) == n
    elicit(lens, benchmark, template="reasoning", cache=tmp_path, max_new_tokens=99)
    assert len(asked) == 2 * n
    other = replace(TEMPLATES["reasoning"], stepwise="Reason aloud.")
    elicit(lens, benchmark, template=other, cache=tmp_path)
    assert 2 * n < len(asked) < 3 * n + 1
    n = len(asked)
    lens.hf.bfloat16()
    elicit(lens, benchmark, template="reasoning", cache=tmp_path)
    assert len(asked) > n
    stranger = load_model(tiny.tiny_llava(seed=1), device="cpu")
    theirs = scripted(stranger, monkeypatch, spoken)
    elicit(stranger, benchmark, template="reasoning", cache=tmp_path)
    assert theirs
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_another_picture_is_another_question(lens, benchmark, tmp_path, monkeypatch):
    """Four people, one wording: as many questions as there are pictures."""
    asked = scripted(lens, monkeypatch, spoken)
    people = [
        e for e in (*benchmark.fit_forget, *benchmark.fit_retain) if e.id.endswith("generation/0/image")
    ]
    assert len({e.prompt() for e in people}) == 1
    elicit(lens, benchmark, examples=people, template="reasoning", cache=tmp_path)
    assert [len(batch) for batch in asked] == [4, 4]


def test_an_interruption_loses_one_batch_at_most(lens, benchmark, tmp_path, monkeypatch):
    """After Ctrl-C, a torn line and stray bytes, only what is missing is asked, and the outcome is the same."""
    whole = elicit_scripted(lens, benchmark, tmp_path / "whole", monkeypatch)
    asked: list[str] = []

    def say(prompt, image):
        asked.append(prompt)
        if len(asked) == 8:
            raise KeyboardInterrupt
        return spoken(prompt)

    scripted(lens, monkeypatch, say)
    with pytest.raises(KeyboardInterrupt):
        elicit(lens, benchmark, template="reasoning", cache=tmp_path / "cut", batch_size=3)
    (kept,) = (tmp_path / "cut").iterdir()
    assert len(kept.read_text().splitlines()) == 6
    kept.write_bytes(kept.read_bytes()[:-9] + b"\xc3")
    scripted(lens, monkeypatch, say)
    again = elicit(lens, benchmark, template="reasoning", cache=tmp_path / "cut", batch_size=3)
    assert (again.kept, again.dropped) == (whole.kept, whole.dropped)
    questions = len((tmp_path / "whole" / kept.name).read_text().splitlines())
    assert len(asked) == 8 + questions - 5
    lines = [line for line in kept.read_text(errors="replace").splitlines() if line.endswith("}")]
    assert len({json.loads(line)["key"] for line in lines}) == questions


def elicit_scripted(lens, benchmark, cache, monkeypatch):
    scripted(lens, monkeypatch, spoken)
    return elicit(lens, benchmark, template="reasoning", cache=cache, batch_size=3)


def test_nothing_is_kept_of_a_model_without_files(lens, benchmark, tmp_path, monkeypatch):
    remember(lens.hf, "")
    elicit_scripted(lens, benchmark, tmp_path / "none", monkeypatch)
    assert not (tmp_path / "none").exists()


def test_the_cache_is_the_users_own(lens, benchmark, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    elicit_scripted(lens, benchmark, None, monkeypatch)
    assert len(list((tmp_path / "home" / "rmuse_interp" / "elicited").glob("*.jsonl"))) == 1
