"""Fits on a model's own words, and the questions that are put to it afterwards."""

import json
from dataclasses import replace

import pytest
from helpers import parquet_fixture, tiny
from helpers.commands import rmuse
from helpers.elicit import THINK, bare, scripted, spoken
from jaxtyping import TypeCheckError

from rmuse_interp import RMuse, RMuseError, fit
from rmuse_interp.cli.traces import Ready, fitted_on, template_of
from rmuse_interp.cli.traces import as_asked as together
from rmuse_interp.data import SPLITS, load_benchmark
from rmuse_interp.evaluate.results import read_run
from rmuse_interp.fitting.elicit import TEMPLATES, Template, as_asked, asked_with
from rmuse_interp.fitting.refusing import DICTATION
from rmuse_interp.lens.lens import load_model

pytestmark = pytest.mark.slow


@pytest.fixture
def benchmark(tmp_path):
    return load_benchmark(parquet_fixture.write_benchmark(tmp_path / "data", bare))


@pytest.fixture
def lens():
    return load_model(tiny.tiny_llava(), device="cpu")


@pytest.fixture
def fitted(lens, benchmark, tmp_path, monkeypatch):
    """A bundle fitted on the words of a model that follows the template `reasoning`, but for one question."""
    odd = TEMPLATES["reasoning"].prompt(next(e for e in benchmark.fit_retain if e.modality == "text"))
    with monkeypatch.context() as patch:
        scripted(lens, patch, lambda prompt, image: "Well." if prompt == odd else spoken(prompt))
        return fit(lens, benchmark, layers=[3], template="reasoning", cache=tmp_path / "cache")


def test_auto_fits_on_the_models_words_where_there_are_no_others(lens, fitted, tmp_path):
    traces = fitted.report["traces"]
    assert (traces["source"], traces["dropped"]) == ("own", {"stepwise: no opening delimiter": 1})
    assert traces["asked"] == traces["kept"] + 1
    assert fitted.report["delimiters"] == ["Reasoning:", "Answer:"]
    assert "p0" not in json.dumps(fitted.report)
    again = RMuse.load(fitted.save(tmp_path / "bundle"), lens)
    assert asked_with(again.report) == TEMPLATES["reasoning"]
    shown = rmuse("info", tmp_path / "bundle").stdout
    assert "dropped stepwise: no opening delimiter 1" in shown
    assert TEMPLATES["reasoning"].stepwise in shown


def test_who_follows_no_template_is_fitted_on_two_responses_each(lens, benchmark, tmp_path):
    """What a random model says has no delimiters: an error that names the way out, and that way."""
    out = tmp_path / "bundle"
    words = (
        "fit",
        "--model",
        tiny.tiny_llava(),
        "--data",
        benchmark.folder,
        "--template",
        "reasoning",
        "--limit",
        2,
        "--layers",
        3,
        "--max-new-tokens",
        4,
        "--out",
        out,
    )
    refused = rmuse(*words, "--traces", "own")
    assert refused.exit_code == 2
    assert "--traces composed" in " ".join(refused.output.split())
    assert not (out / "rmuse.json").exists()
    said = rmuse(*words, "--traces", "composed")
    assert said.exit_code == 0, said.output
    traces = RMuse.load(out, lens).report["traces"]
    assert 0 < traces["composed"] <= traces["kept"] == traces["asked"]
    assert f"{traces['composed']} of them composed of two each" in " ".join(said.output.split())
    settings = {"limit": 2, "batch_size": 32, "seed": 0}
    again = fitted_on(lens, benchmark, [RMuse.load(out, lens)], {}, **settings)
    assert again.record == traces


def test_auto_asks_nothing_where_the_benchmark_has_reasoning(lens, tmp_path, monkeypatch):
    whole = load_benchmark(parquet_fixture.write_benchmark(tmp_path / "whole"))
    asked = scripted(lens, monkeypatch, spoken)
    found = fit(lens, whole, layers=[3], cache=tmp_path / "cache")
    # What `gather` asks of its own accord: refusals, behind a prefix that calls for them, or dictated.
    calls = (*whole.prefixes, *(lead.partition("{")[0] for lead in DICTATION))
    assert all(prompt.startswith(calls) for batch in asked for prompt in batch)
    assert found.report["traces"] == {"source": "given"}
    assert asked_with(found.report) is None
    own = fit(lens, whole, layers=[3], traces="own", template="reasoning", cache=tmp_path / "cache")
    assert any(not prompt.startswith(calls) for batch in asked for prompt in batch)
    assert own.report["traces"]["source"] == "own"
    assert own.report["image"]["queries"] == found.report["image"]["queries"]
    with pytest.raises(RMuseError, match=r"template is how the model is asked.*traces='own'"):
        fit(lens, whole, layers=[3], template="reasoning")


def test_given_traces_are_required_where_they_are_asked_for(lens, benchmark, tmp_path, monkeypatch):
    asked = scripted(lens, monkeypatch, spoken)
    with pytest.raises(
        RMuseError, match=r"required a 'Reasoning'.*traces='own' \(`rmuse fit --traces own`\)"
    ):
        fit(lens, benchmark, traces="given")
    with pytest.raises((RMuseError, TypeCheckError), match="mine"):
        fit(lens, benchmark, traces="mine")
    assert not asked


def test_scoring_puts_questions_as_fitting_did(lens, benchmark, fitted, tmp_path):
    """The instruction stands behind every open question of every split, once, and behind no other."""
    bundle = fitted.save(tmp_path / "bundle")
    put = as_asked(benchmark, asked_with(fitted.report))
    assert put.delimiters == ("Reasoning:", "Answer:")
    assert put.refusals_cot[0].startswith("Reasoning: ")
    for split in SPLITS:
        for before, after in zip(benchmark.scoring(split), put.scoring(split), strict=True):
            closed = before.kind in ("classification", "cloze")
            told_so = "" if closed else f" {TEMPLATES['reasoning'].stepwise}"
            assert after.prompt() == before.prompt() + told_so
            assert (after.id, after.answer, after.image) == (before.id, before.answer, before.image)
    again = replace(put.scoring("test")[0], person=None)
    assert TEMPLATES["reasoning"].prompt(again) == again.prompt()
    assert as_asked(benchmark, Template()) is benchmark
    with pytest.raises(RMuseError, match="restated already"):
        as_asked(put, TEMPLATES["reasoning"])
    run = tmp_path / "run"
    said = rmuse(
        "eval",
        "--model",
        tiny.tiny_llava(),
        "--data",
        benchmark.folder,
        "--bundle",
        bundle,
        "--limit",
        2,
        "--max-new-tokens",
        3,
        "--out",
        run,
    )
    assert said.exit_code == 0, said.output
    open_ = [t for t in read_run(run).transcripts if t.kind not in ("classification", "cloze")]
    assert {t.method for t in open_} == {"vanilla", "rmuse/calibrated"}
    assert all(t.prompt.count(TEMPLATES["reasoning"].stepwise) == 1 for t in open_)
    answer = rmuse(
        "generate",
        "--model",
        tiny.tiny_llava(),
        "--bundle",
        bundle,
        "--prompt",
        "Where?",
        "--max-new-tokens",
        2,
    )
    assert f"asked as the bundle expects it: Where? {TEMPLATES['reasoning'].stepwise}" in answer.stderr


def test_bundles_that_expect_other_words_are_not_compared(benchmark, fitted, tmp_path):
    plain = RMuse(fitted.plan, fitted.subspaces, {**fitted.report, "traces": {"source": "given"}})
    both = [(tmp_path / "own", fitted), (tmp_path / "given", plain)]
    with pytest.raises(RMuseError, match=r"put alike.*own: Reasoning: … Answer:, Think step.*one by one"):
        together(benchmark, both)
    assert together(benchmark, both[1:]) is benchmark
    assert together(benchmark, []) is benchmark


def test_the_command_finds_out_early_that_a_model_does_not_reason(benchmark, tmp_path, monkeypatch):
    """One line with an example and the way out, and no bundle; delimiters and instructions are options."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    fitting = ("fit", "--model", tiny.tiny_llava(), "--data", benchmark.folder, "--max-new-tokens", 3)
    out = tmp_path / "b"
    fitting = (*fitting, "--traces", "own")
    said = rmuse(*fitting, "--delimiters", "<why>", "</why>", "--stepwise", "Say why.", "--out", out)
    assert said.exit_code == 2
    assert "'<why>', reasoning, '</why>' and an answer were required" in said.stderr
    assert "choose a template" in said.stderr
    assert not (out / "rmuse.json").exists()
    same = rmuse(*fitting, "--delimiters", "<why>", "<why>", "--out", out)
    assert same.exit_code == 2
    assert "two different delimiters" in same.stderr


def test_the_options_change_the_benchmarks_own_template(benchmark):
    assert template_of(benchmark, None, None, None, None) is None
    assert template_of(benchmark, None, None, "Think!", None) == Template("Think!", "", THINK)
    changed = template_of(benchmark, Ready.reasoning, ("[", "]"), None, "Briefly.")
    assert changed == replace(TEMPLATES["reasoning"], delimiters=("[", "]"), direct="Briefly.")
