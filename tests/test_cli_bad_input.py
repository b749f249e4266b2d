"""Bad input to every command: one clear line, exit code 2, before any long work."""

import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from helpers import parquet_fixture, tiny
from helpers.commands import done, refused, rmuse

from rmuse_interp.cli import support
from rmuse_interp.runs import run as running

pytestmark = pytest.mark.slow

# Bad input: one clear line, exit code 2, before any long work.


@pytest.fixture
def no_work(monkeypatch):
    """Fails the test if the method is fitted or a question is answered."""
    import rmuse_interp.fitting as fitting

    def never(*_arguments, **_settings):
        raise AssertionError("long work began")

    monkeypatch.setattr(fitting, "gather", never)
    monkeypatch.setattr(running, "_ask", never)


def variant(data: Path, to: Path, change=None) -> Path:
    """A copy of the benchmark with every person row changed."""
    if change is None:
        shutil.copytree(data, to)
        return to
    return parquet_fixture.write_benchmark(to, change)


def without_reasoning(row):
    return {**row, "Generation_Task": [{**q, "Reasoning": None} for q in row["Generation_Task"]]}


def with_broken_picture(row):
    bad = {"bytes": b"no picture at all", "path": None}
    return {**row, **({"images": [bad, bad]} if "images" in row else {"image": bad})}


def test_bad_benchmarks_are_refused(model, data, tmp_path, no_work):
    def fit(folder, *more):
        return refused("fit", "--model", model, "--data", folder, "--out", tmp_path / "b", *more)

    assert "no such folder" in fit(tmp_path / "nowhere")
    assert "forget_20/" in fit(data, "--forget", 20)
    for missing in ("forget_5", "retain_95"):
        holed = variant(data, tmp_path / missing)
        shutil.rmtree(holed / missing)
        assert f"required {missing}/" in fit(holed)
    empty = variant(data, tmp_path / "empty")
    file = empty / "forget_5" / "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    assert "at least one person, got an empty set" in fit(empty)
    assert "--traces own" in fit(variant(data, tmp_path / "bare", without_reasoning), "--traces", "given")
    assert "picture" in fit(variant(data, tmp_path / "broken", with_broken_picture))
    torn = variant(data, tmp_path / "torn")
    (torn / "forget_5" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    assert "readable parquet" in fit(torn)
    assert not (tmp_path / "b").exists()


def test_bad_benchmarks_are_refused_by_eval(model, data, tmp_path, no_work):
    evaluation = ("eval", "--model", model, "--out", tmp_path / "run", "--data")
    holed = variant(data, tmp_path / "holed")
    (holed / "Reasoning" / "test-00000-of-00001.parquet").unlink()
    assert "Reasoning/test-" in refused(*evaluation, holed)
    assert "picture" in refused(*evaluation, variant(data, tmp_path / "broken", with_broken_picture))
    assert not (tmp_path / "run").exists()


def test_skipped_rows_are_listed(model, data, tmp_path):
    broken = variant(
        data, tmp_path / "faulty", lambda r: {**r, "Mask_Task": [{"Type": "?"}]} if r["ID"] == "p3" else r
    )
    asked = ("fit", "--model", model, "--data", broken, "--limit", 4, "--out", tmp_path / "b")
    assert "row 2" in refused(*asked)
    assert "skipped" in done(*asked, "--skip-bad-rows").stderr


def test_bad_models_are_refused(model, data, bundles, tmp_path, no_work):
    def evaluate(name, *more):
        return refused("eval", "--model", name, "--data", data, "--out", tmp_path / "run", *more)

    assert "does not exist" in evaluate(tmp_path / "nowhere")
    (tmp_path / "hollow").mkdir()
    assert "config.json" in evaluate(tmp_path / "hollow")
    assert "was fitted on another model" in evaluate(tiny.tiny_llava(seed=1), "--bundle", bundles["paper"])
    assert "d_model 32 there, 48 here" in evaluate(tiny.tiny_llava(d_model=48), "--bundle", bundles["paper"])
    said = refused(
        "generate", "--model", tiny.tiny_llava(seed=1), "--bundle", bundles["paper"], "--prompt", "Who?"
    )
    assert "another model" in said
    assert "dtype" in evaluate(model, "--dtype", "float33")
    assert "device" in evaluate(model, "--device", "toaster")
    assert not (tmp_path / "run").exists()


def test_an_unknown_family_says_where_blocks_were_looked_for(data, tmp_path, no_work):
    from transformers import AutoTokenizer, BertConfig, BertLMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(tiny.tiny_llama())
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        is_decoder=True,
    )
    BertLMHeadModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    asked = ("fit", "--model", tmp_path / "bert", "--data", data, "--out", tmp_path / "b")
    said = refused(*asked)
    assert "model.language_model.layers" in said
    assert "blocks=" in said
    assert "nowhere.layers" in refused(*asked, "--blocks", "nowhere.layers")


def test_activations_that_are_not_finite_are_refused(model, data, tmp_path, no_work):
    from rmuse_interp.lens.lens import load_model

    lens = load_model(model)
    with torch.no_grad():
        lens.layout.blocks[1].mlp.down_proj.weight[0, 0] = float("nan")
    lens.hf.save_pretrained(tmp_path / "nan")
    lens.processor.save_pretrained(tmp_path / "nan")
    for command in ("fit", "eval"):
        said = refused(command, "--model", tmp_path / "nan", "--data", data, "--out", tmp_path / command)
        assert "finite activations" in said
        assert "block 1" in said
        assert not (tmp_path / command).exists()


@pytest.mark.parametrize(
    ("layers", "said"), [("9", "0..3"), ("1,x", "such as 5,6"), ("5-2", "such as 5,6"), ("", "such")]
)
def test_layers_out_of_range_are_refused(model, data, tmp_path, no_work, layers, said):
    asked = ("fit", "--model", model, "--data", data, "--out", tmp_path / "b", "--layers", layers)
    assert said in refused(*asked)


def test_bad_pictures_and_prompts_are_refused(model, tmp_path):
    text = tmp_path / "x.png"
    text.write_text("no picture")
    asked = ("generate", "--model", model)
    assert "picture that Pillow can read" in refused(*asked, "--prompt", "Who?", "--image", text)
    assert "no such file" in refused(*asked, "--prompt", "Who?", "--image", tmp_path / "nowhere.png")
    assert "--prompt" in refused(*asked)
    assert "--prompt" in refused(*asked, "--prompt", " ")


def test_bad_bundles_are_refused(bundles, model, data, tmp_path, no_work):
    evaluation = ("eval", "--model", model, "--data", data, "--out", tmp_path / "run")
    assert "rmuse fit" in refused(*evaluation, "--bundle", tmp_path / "nowhere")
    for file in ("rmuse.json", "plan.json", "plan.safetensors", "subspaces.safetensors"):
        damaged = tmp_path / file
        shutil.copytree(bundles["paper"], damaged)
        (damaged / file).write_text("{")
        refused(*evaluation, "--bundle", damaged)
        refused("info", damaged)
    assert "holds a bundle" in refused("fit", "--model", model, "--data", data, "--out", bundles["paper"])


@pytest.mark.parametrize(
    "command", ["demo", "fit", "eval", "organism train", "organism benchmark --render-seed 3"]
)
def test_places_that_cannot_be_written_are_refused_first(command, tmp_path, no_work):
    """Before anything is loaded: a folder that is a file, lies below one, or is read-only."""
    file = tmp_path / "file"
    file.write_text("kept")
    assert f"got the file {file}" in refused(*command.split(), "--out", file)
    assert f"below the file {file}" in refused(*command.split(), "--out", file / "deep" / "er")
    assert file.read_text() == "kept"
    (tmp_path / "locked").mkdir(mode=0o555)
    if not os.access(tmp_path / "locked", os.W_OK):  # the superuser may write everywhere
        assert "read-only" in refused(*command.split(), "--out", tmp_path / "locked" / "x")


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("fit",),
        ("fit", "--out", "x", "--preset", "best"),
        ("fit", "--out", "x", "--batch-size", "0"),
        ("fit", "--out", "x", "--forget", "many"),
        ("eval", "--out", "x", "--limit", "0"),
        ("eval", "--out", "x", "--seed", "-1"),
        ("organism", "nonsense"),
    ],
)
def test_bad_options_are_refused_on_one_line(words):
    assert "--help)" in refused(*words)


def test_a_fault_of_our_own_is_one_line_too(monkeypatch, tmp_path):
    """No traceback without ``--debug``; exit code 1 tells it from a mistake of the user's."""

    def broken(_folder):
        raise TypeError("three\nlines\nlong")

    monkeypatch.setattr(support, "open_bundle", broken)
    result = rmuse("info", tmp_path)
    assert result.exit_code == 1
    assert result.stderr == (
        "error: a fault in rmuse itself (TypeError: three lines long); --debug shows where\n"
    )
    shown = rmuse("info", tmp_path, "--debug")
    assert shown.exit_code == 1
    assert "Traceback" in shown.stderr
    assert "in broken" in shown.stderr


def test_debug_shows_the_traceback(tmp_path):
    result = rmuse("info", tmp_path, "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: required a bundle")
