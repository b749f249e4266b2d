"""`rmuse score RUN`: what is added to a finished run, and that nothing else of it changes."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.commands import done, refused
from helpers.misbehaving import serving
from helpers.parquet_fixture import write_benchmark
from helpers.tiny import tiny_llava

import rmuse_interp as rm
from rmuse_interp.cli.score import methods_of
from rmuse_interp.evaluate.results import read_run
from rmuse_interp.runs import likelihoods
from rmuse_interp.runs import run as running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_benchmark(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """A run of the model as it is and of one bundle, beside that bundle, under one attack."""
    root = tmp_path_factory.mktemp("finished")
    model = ("--model", tiny_llava(), "--data", data, "--limit", 4)
    done("fit", *model, "--forget", 10, "--layers", 3, "--out", root / "bundle")
    words = ("eval", *model, "--max-new-tokens", 4, "--bundle", root / "bundle", "--attack", "prefix")
    done(*words, "--out", root / "run")
    return root


@pytest.fixture
def run(finished, tmp_path, monkeypatch) -> Path:
    """A copy of it to add to, where no answer may be asked for."""

    def never(*_arguments, **_settings):
        raise AssertionError("a question was answered again")

    monkeypatch.setattr(running, "_ask", never)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy" / "run"


def test_forget_quality_membership_and_perplexity_are_added(run):
    before, files = read_run(run), {path.name for path in run.iterdir()}
    shown = done("score", run, "--gold", tiny_llava(), "--perplexity").stdout
    after = read_run(run)
    assert after.transcripts == before.transcripts
    assert {key: after.scores[key] for key in before.scores} == before.scores
    assert set(after.scores) - set(before.scores) == {"forgetting", "fluency"}
    assert {path.name for path in run.iterdir()} == files
    found = after.scores["forgetting"]["methods"]
    assert set(found) == {"vanilla", "gold", "rmuse/calibrated"}
    quality = found["vanilla"]["forget_quality"]
    assert (quality["p_value"], quality["statistic"]) == (1.0, 0.0)  # the gold model is the model itself
    assert found["vanilla"] == found["gold"]
    assert set(found["gold"]["membership"]) == {"loss", "min_k"}
    assert len(found["gold"]["truth_ratio"]) == quality["n"] == 4
    fluent = after.scores["fluency"]["vanilla"]["forget"]
    assert fluent["low"] <= fluent["perplexity"] <= fluent["high"]
    assert fluent["perplexity"] > 1.0
    assert "vanilla: told from the gold model by 0.00 (p 1" in shown
    assert "vanilla: perplexity" in shown


def test_the_steered_methods_are_those_of_the_run(run, data):
    """A tuned rival and the bundle, opened from the run's files, give the likelihoods of the plans they hold."""
    lens = rm.load_model(tiny_llava())
    fitted = rm.RMuse.load(run.parent / "bundle", lens)
    fitted.plan.save(run / "rivals" / "caa", lens)
    scores = read_run(run).scores
    scores["methods"] |= {"caa": {}, "gold": {}}
    methods = methods_of(run, scores, {"rmuse/calibrated": fitted}, lens)
    assert [method.name for method in methods] == ["vanilla", "rmuse/calibrated", "caa"]
    benchmark = rm.load_benchmark(data, forget=10)
    found = likelihoods.forgetting(methods, lens, benchmark, limit=2)["methods"]
    assert found["caa"] == found["rmuse/calibrated"]
    assert found["caa"]["truth_ratio"] != found["vanilla"]["truth_ratio"]
    with pytest.raises(rm.RMuseError, match="holds were required, got spherical"):
        methods_of(run, {**scores, "methods": {"vanilla": {}, "spherical": {}}}, {}, lens)


def test_another_judge_stands_beside_the_first(run):
    def yes(question: str) -> str:
        return json.dumps({"explicit": False, "implicit": True, "valid": True, "supported": True})

    before = read_run(run).scores
    with serving(yes) as server:
        done("score", run, "--judge", "openai:m", "--judge-url", server.url)
        scores, name = read_run(run).scores, f"openai:m@{server.url}"
        assert {key: scores[key] for key in before} == before  # the rules' stay where they are
        assert set(scores["judges"]) == {name}
        mine = scores["judges"][name]
        # Random weights say nothing of anybody, but this judge finds everything implied.
        assert mine["methods"]["vanilla"]["forget"]["ril_implicit"] == 100.0
        assert scores["methods"]["vanilla"]["forget"]["ril_implicit"] == 0.0
        assert set(mine["attacks"]["methods"]) == {"vanilla", "rmuse/calibrated"}
        asked = len(server.questions)
        done("score", run, "--judge", "openai:m", "--judge-url", server.url)
        assert len(server.questions) == asked  # replies are kept
    assert "another judge" in refused("score", run, "--judge", "rules")


def test_a_bundle_that_has_moved_is_named(run):
    shutil.move(run.parent / "bundle", run.parent / "elsewhere")
    assert "say where with --bundle" in refused("score", run, "--perplexity")
    done("score", run, "--perplexity", "--bundle", run.parent / "elsewhere")
    assert "fluency" in read_run(run).scores


def test_what_cannot_be_added_is_refused(run, data, tmp_path):
    kept = (run / "scores.json").read_text()
    assert "--gold, --perplexity or --judge was required" in refused("score", run)
    assert "a finished run" in refused("score", tmp_path, "--perplexity")
    other = tiny_llava(seed=1)
    assert "the model of the run was required" in refused("score", run, "--perplexity", "--model", other)
    renamed = shutil.copytree(data, tmp_path / "renamed")
    record = json.loads((renamed / "benchmark.json").read_text())
    (renamed / "benchmark.json").write_text(json.dumps(record | {"id": "another"}))
    said = refused("score", run, "--perplexity", "--data", renamed)
    assert "which has id 'tiny', not 'another'" in said
    assert (run / "scores.json").read_text() == kept
    (run / "scores.json").write_text(json.dumps({**json.loads(kept), "provenance": {}}))
    assert "--data was required" in refused("score", run, "--perplexity")
    done("score", run, "--perplexity", "--data", data)
