"""Trained baselines on a real tiny LLaVA: what training moves and leaves, resuming, folders, the attack, commands."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers import parquet_fixture, tiny
from helpers.baselines import course, held_out, nats, weights
from helpers.plans import lens_of
from typer.testing import CliRunner

from rmuse_interp import RMuseError
from rmuse_interp.baselines import BASELINES, batches, open_baseline, relearned, train, training
from rmuse_interp.baselines.batches import encode, rows_of
from rmuse_interp.baselines.journal import UNFINISHED
from rmuse_interp.baselines.trainables import linear_names
from rmuse_interp.cli import app
from rmuse_interp.data import load_benchmark
from rmuse_interp.evaluate.results import read_run

SMALL = {"limit": 4, "batch_size": 2, "settings": 2, "epochs": 2}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Validation with short responses."""
    monkeypatch.setattr(training, "hold_out", held_out)


@pytest.fixture(scope="module")
def trained(lens, benchmark, tmp_path_factory):
    """Gradient ascent, trained once for all that look at its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "hold_out", held_out)
        return train("ga", lens, benchmark, tmp_path_factory.mktemp("ga"), **SMALL)


@pytest.mark.parametrize("name", ["mmunlearner", "manu", "r2mu"])
def test_round_trip_of_weights(lens, benchmark, tmp_path, name):
    before = weights(lens)
    found = train(name, lens, benchmark, tmp_path / name, **SMALL)
    assert all(torch.equal(p, before[key]) for key, p in lens.hf.named_parameters())
    model = open_baseline(tmp_path / name, lens)
    changed = {key for key, p in model.hf.named_parameters() if not torch.equal(p, before[key])}
    may = {f"{n}.weight" for n in linear_names(lens)}
    if name == "r2mu":
        may = {f"{n}.weight" for n in linear_names(lens, (0, 1, 2))}
    assert changed
    assert changed <= may
    if name == "manu":
        gone = sum(
            int((p == 0).all(dim=0).sum()) for key, p in model.hf.named_parameters() if "down_proj" in key
        )
        assert gone == round(found.chosen.setting * lens.n_layers * 2 * lens.d_model)
        assert [t.setting for t in found.trials] == pytest.approx([0.03, 0.3])


def test_round_trip_of_adapters(lens, benchmark, trained):
    record = json.loads((trained.folder / "baseline.json").read_text())
    assert {p.name for p in trained.folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "baseline.json",
    }
    assert record["method"] == "ga"
    assert record["benchmark"]["forget"] == 10
    assert len(record["trials"]) == len(trained.trials) >= 2
    assert record["chosen"] == record["trials"][trained.trials.index(trained.chosen)]
    assert not [name for name in parquet_fixture.NAME.values() if name in json.dumps(record)]
    before, asked = weights(lens), rows_of(benchmark.fit_forget[:2], benchmark.delimiters)
    model = open_baseline(trained.folder, lens)
    assert model.name == f"{lens.name}+ga"
    assert model.fingerprint != lens.fingerprint
    assert open_baseline(trained.folder, lens).fingerprint == model.fingerprint
    own = dict(model.hf.named_parameters())
    assert own.keys() == before.keys()  # merged: no adapter is left
    assert {key for key in own if not torch.equal(own[key], before[key])} <= {
        f"{n}.weight" for n in linear_names(lens)
    }
    assert nats(model, asked) != nats(lens, asked)
    assert all(torch.equal(p, before[key]) for key, p in lens.hf.named_parameters())
    assert all(p.requires_grad for p in lens.hf.parameters())
    assert not lens.hf.training


def test_a_finished_one_is_taken_up_and_no_other(lens, benchmark, trained):
    again = train("ga", lens, benchmark, trained.folder, **SMALL)
    assert again.trials == trained.trials
    with pytest.raises(RMuseError, match="holds ga trained in another way"):
        train("npo", lens, benchmark, trained.folder, **SMALL)
    with pytest.raises(RMuseError, match="holds ga trained in another way"):
        train("ga", lens, benchmark, trained.folder, **{**SMALL, "seed": 1})


def test_one_trained_on_other_pictures_is_not_taken_up(lens, trained, tmp_path):
    """The same people, ids and names of files; only what the photographs show was changed."""

    def repainted(row):
        return row | {"image": parquet_fixture.picture(99)} if row.get("image") else row

    changed = load_benchmark(parquet_fixture.write_benchmark(tmp_path / "data", repainted), forget=10)
    with pytest.raises(RMuseError, match="holds ga trained in another way"):
        train("ga", lens, changed, trained.folder, **SMALL)


def test_seeds(lens, benchmark, trained, tmp_path):
    same = train("ga", lens, benchmark, tmp_path / "same", **SMALL)
    other = train("ga", lens, benchmark, tmp_path / "other", **SMALL, seed=1)
    one, two, three = (
        open_baseline(f, lens).fingerprint for f in (trained.folder, same.folder, other.folder)
    )
    assert one == two
    assert one != three


@pytest.mark.parametrize("name", ["ga_diff", "mmunlearner"])
def test_resumed_in_the_middle_it_ends_at_the_same_weights(lens, benchmark, tmp_path, monkeypatch, name):
    """Cut off within the second epoch of the last setting, where optimiser moments and dropout matter."""
    small = {**SMALL, "settings": 1}
    # The answers of random weights change at once, or not at all: no early end.
    monkeypatch.setattr(training.Course, "_finished", lambda self, trial, epochs, _: trial.epoch >= epochs)
    whole = train(name, lens, benchmark, tmp_path / "whole", **small)
    assert [t.epoch for t in whole.trials] == [1, 2]
    before, steps = weights(lens), []

    def cut(*asked):
        steps.append(asked)
        if len(steps) == 2 * len(steps_of_an_epoch) + 2:
            raise KeyboardInterrupt
        return encode(*asked)

    steps_of_an_epoch = batches.batches(course(name, lens, benchmark).rows("forget", 1)[:4], 2, 0)
    with monkeypatch.context() as patch:
        patch.setattr(training, "encode", cut)
        with pytest.raises(KeyboardInterrupt):
            train(name, lens, benchmark, tmp_path / "cut", **small)
    assert all(torch.equal(p, before[key]) for key, p in lens.hf.named_parameters())
    (line,) = (tmp_path / "cut" / UNFINISHED / "trials.jsonl").read_text().splitlines()
    with pytest.raises(RMuseError, match="got none"):
        open_baseline(tmp_path / "cut", lens)
    resumed = train(name, lens, benchmark, tmp_path / "cut", **small)
    assert resumed.trials[0].seconds == json.loads(line)["value"]["seconds"]  # taken up, not trained again
    assert [replace(t, seconds=0.0) for t in resumed.trials] == [
        replace(t, seconds=0.0) for t in whole.trials
    ]
    assert open_baseline(resumed.folder, lens).fingerprint == open_baseline(whole.folder, lens).fingerprint
    assert not (resumed.folder / UNFINISHED).exists()


def test_faulty_folders(lens, trained, tmp_path):
    with pytest.raises(RMuseError, match=r"a trained baseline with .* was required"):
        open_baseline(tmp_path, lens)
    with pytest.raises(RMuseError, match="fitted on another model"):
        open_baseline(trained.folder, lens_of(tiny.tiny_llava(seed=1)))
    for name, content, said in (
        ("adapter_model.safetensors", b"\x00" * 40, "got another one"),
        ("adapter_model.safetensors", None, "got none"),
        ("adapter_config.json", b"{", "got another one"),
        ("baseline.json", b"{", "cannot be read"),
        (
            "baseline.json",
            b'{"schema": "x", "files": {"a": ""}, "method": "", "model": {"fingerprint": {}}}',
            "schema",
        ),
        *(
            (
                "baseline.json",
                json.dumps({"schema": "rmuse-baseline/1", "files": files}).encode(),
                "cannot be read",
            )
            for files in ({"../weights.safetensors": ""}, {"/etc/passwd": ""}, ["a"], 3, None)
        ),
    ):
        folder = shutil.copytree(trained.folder, tmp_path / "damaged", dirs_exist_ok=True)
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        with pytest.raises(RMuseError, match=said):
            open_baseline(folder, lens)


def test_faulty_requests(lens, benchmark, tmp_path):
    with pytest.raises(
        RMuseError, match="one of ga, ga_diff, kl_min, npo, po, mmunlearner, manu, r2mu, got 'gaa'"
    ):
        train("gaa", lens, benchmark, tmp_path)
    with pytest.raises(RMuseError, match="≥ 1 were required, got 0"):
        train("ga", lens, benchmark, tmp_path, limit=0)
    with pytest.raises(RMuseError, match="at least one example"):
        relearned(lens, [])
    assert not any(tmp_path.iterdir())


def test_a_little_of_what_was_forgotten_brings_it_back(lens, benchmark):
    """Learning a few rows again raises the likelihood of those rows; the model that was given is left alone."""
    few, before = benchmark.fit_forget[:2], weights(lens)
    rows = rows_of(few, benchmark.delimiters)
    again = relearned(lens, few, steps=10, rate=1e-2)
    assert nats(again, rows) < nats(lens, rows) - 0.5
    assert again.fingerprint != lens.fingerprint
    assert relearned(lens, few, steps=10, rate=1e-2).fingerprint == again.fingerprint
    assert all(torch.equal(p, before[key]) for key, p in lens.hf.named_parameters())


def test_commands(data, tmp_path):
    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    shown = run("baseline", "list").stdout
    assert all(name in shown for name in BASELINES)
    asked = ("--model", tiny.tiny_llava(), "--data", data, "--forget", 10)
    small = ("--limit", 2, "--batch-size", 2, "--settings", 1, "--epochs", 1, "--out", tmp_path / "po")
    done = run("baseline", "train", "po", *asked, *small)
    assert done.exit_code == 0, done.output
    assert "1e-05" in done.stdout
    short = ("--limit", 1, "--max-new-tokens", 2, "--out", tmp_path / "run")
    taken = run("eval", *asked, *short, "--baseline", tmp_path / "po")
    assert taken.exit_code == 0, taken.output
    scores = read_run(tmp_path / "run").scores
    assert set(scores["methods"]) == {"vanilla", "po"}
    assert scores["baselines"] == {"po": "../po"}
    other = run("eval", *asked[:4], "--forget", 5, "--baseline", tmp_path / "po", "--out", tmp_path / "run5")
    assert other.exit_code == 2
    twice = run("eval", *asked, *["--baseline", tmp_path / "po"] * 2, "--out", tmp_path / "run2")
    assert twice.exit_code == 2
