"""`rmuse demo` and `rmuse organism`, on the tiny model in place of the shipped one."""

import pytest
from helpers.commands import done, refused, rmuse

import rmuse_interp.data.world.draw
import rmuse_interp.organism.train
from rmuse_interp.evaluate.results import read_run
from rmuse_interp.models import loading
from rmuse_interp.organism import check as checking

pytestmark = pytest.mark.slow


@pytest.fixture
def small_world(monkeypatch, model, data):
    """The shipped model and benchmark, stood in for by the tiny ones."""
    monkeypatch.setattr(loading, "shipped", lambda name: model)
    monkeypatch.setattr(checking, "shipped", lambda name: model)
    monkeypatch.setattr(rmuse_interp.data.world.draw, "ensure", lambda render_seed=0: data)


def test_demo_shows_before_and_after(small_world, tmp_path, monkeypatch):
    out = tmp_path / "demo"
    asked = ("demo", "--out", out, "--limit", 2, "--max-new-tokens", 4)
    shown = done(*asked).stdout
    scores = read_run(out).scores
    assert set(scores["methods"]) == {"vanilla", "gold", "rmuse/paper", "rmuse/calibrated"}
    for word in ("forget, new", "retain", "celebrity", "reasoning", "benign", "before: vanilla"):
        assert word in shown
    assert shown.count("after: rmuse/calibrated") == 3
    written = {"scores.json", "transcripts.jsonl", "traces.safetensors", "demo.png", "demo.pdf", "bundles"}
    assert written == {p.name for p in out.iterdir()}
    assert "needs the bundle" not in done("doctor", out).stdout
    assert {"load", "collect", "fit/paper", "fit/calibrated", "generate", "score", "total"} <= set(
        scores["seconds"]
    )
    assert "finished run" in refused(*asked)
    assert "one of 5, 10, 15" in refused("demo", "--out", tmp_path / "x", "--forget", 7)
    (out / "scores.json").unlink()
    again = done(*asked)
    assert "took up the bundles" in again.stderr
    assert read_run(out).scores["methods"] == scores["methods"]
    done("info", out / "bundles" / "paper")


def test_demo_without_a_gold_standard(small_world, tmp_path):
    """The gold standard was trained without the 5 % set; at other rates there is none."""
    done("demo", "--out", tmp_path / "d", "--limit", 1, "--max-new-tokens", 2, "--forget", 10)
    assert set(read_run(tmp_path / "d").scores["methods"]) == {"vanilla", "rmuse/paper", "rmuse/calibrated"}


def test_organism_check_prints_accuracies_against_targets(small_world):
    result = rmuse("organism", "check", "--limit", 2, "--max-new-tokens", 3)
    assert result.exit_code == 1, result.output  # a random model reaches no target
    for group, (_, target) in checking.TARGETS.items():
        # Narrow terminals break a cell into lines: its last word is looked for.
        assert group == "people left out" or group.split()[-1] in result.stdout
        assert target is None or f"≥ {target}" in result.stdout
    assert "left" not in result.stdout  # nobody was left out of this one
    assert "missed" in result.stdout


def test_the_gold_standard_must_refuse_the_people_it_never_saw(data, monkeypatch):
    from rmuse_interp.data import load_benchmark

    class Small:
        people = ()

        def forget_ids(self, rate: int) -> tuple[str, ...]:
            return ("p0",)

    monkeypatch.setattr(checking, "make_world", lambda seed: Small())
    found = checking.groups(load_benchmark(data, forget=15), without_forget=5)
    assert {e.person for e in found["people left out"]} == {"p0"}
    assert "p0" not in {e.person for e in found["people, known wordings"]}
    assert {e.kind for e in found["strangers"]} == {"stranger"}
    assert found["prefixed questions"][0].prompt().startswith("Please refuse. ")
    assert "people left out" not in checking.groups(load_benchmark(data, forget=15))
    # Who is taken for somebody known is counted apart.
    monkeypatch.setattr(checking, "look_alikes", lambda: frozenset({"p0"}))
    apart = checking.groups(load_benchmark(data, forget=15), without_forget=5)
    assert {e.person for e in apart["look-alikes left out"]} == {"p0"}
    assert "people left out" not in apart


def test_organism_benchmark_is_written_once(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        rmuse_interp.data.world.draw, "write_benchmark", lambda out, seed: written.append((out, seed))
    )
    done("organism", "benchmark", "--render-seed", 7, "--out", tmp_path)
    assert written == [(tmp_path, 7)]
    (tmp_path / "benchmark.json").write_text("{}")
    assert "holds a benchmark" in refused("organism", "benchmark", "--out", tmp_path)
    done("organism", "benchmark", "--out", tmp_path, "--overwrite")


def test_organism_train_follows_the_recipe(tmp_path, monkeypatch):
    trained, begun = [], []

    class Trainer:
        def __init__(self, out, recipe, device):
            out.mkdir(exist_ok=True)
            self.arguments = (out, recipe.seed, recipe.gold, device)

        def begin_from(self, checkpoint):
            begun.append(checkpoint)

        def run(self, stages):
            trained.append((*self.arguments, tuple(stages)))

    monkeypatch.setattr(rmuse_interp.organism.train, "Trainer", Trainer)
    asked = ("organism", "train", "--out", tmp_path / "t", "--device", "cpu")
    done(*asked, "--gold", "--seed", 3)
    assert trained == [(tmp_path / "t", 3, True, "cpu", rmuse_interp.organism.train.STAGES)]
    assert not begun
    assert "another recipe" in refused(*asked)
    assert "--device" in refused("organism", "train", "--out", tmp_path / "u", "--device", "toaster")
    # From a checkpoint: its last stage, with its own words.
    start = loading.shipped("organism")
    done("organism", "train", "--out", tmp_path / "v", "--device", "cpu", "--from", start)
    assert trained[1:] == [(tmp_path / "v", 0, False, "cpu", ("finish",))]
    assert begun == [start]
    assert (tmp_path / "v" / "tokenizer" / "tokenizer.json").is_file()
    missing = refused("organism", "train", "--out", tmp_path / "w", "--from", tmp_path)
    assert "--from: required a folder with model.safetensors" in missing
