"""The command line on real tiny models: what it writes, what it says, and every mistake a user can make."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import parquet_fixture
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from PIL import Image
from typer.testing import CliRunner

import rmuse_interp.data.world.draw
import rmuse_interp.organism.train
from rmuse_interp.cli import app, support
from rmuse_interp.data import SPLITS
from rmuse_interp.evaluate.results import read_run
from rmuse_interp.models import loading
from rmuse_interp.organism import check as checking
from rmuse_interp.runs import run as running
from rmuse_interp.runs.traces import read_traces

ROOT = Path(__file__).resolve().parent.parent
METRICS = {
    "ril",
    "ril_explicit",
    "ril_implicit",
    "rcr",
    "classification",
    "rouge_l",
    "cloze",
    "exact",
    "refusal_rate",
    "repetition_rate",
    "malformed_rate",
    "step_recall",
    "distinct_bigrams",
    "n",
}


def rmuse(*words: object):
    """What a command line prints, on either stream, and its exit code."""
    return CliRunner().invoke(app, [str(word) for word in words])


def done(*words: object):
    """The same, for a command line that must succeed."""
    result = rmuse(*words)
    assert result.exit_code == 0, result.output
    return result


def refused(*words: object) -> str:
    """The one line on stderr of a command line that must be refused with exit code 2."""
    result = rmuse(*words)
    assert result.exit_code == 2, (result.exit_code, result.output)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.output
    return lines[0]


@pytest.fixture(scope="module")
def model() -> Path:
    return tiny.tiny_llava()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = parquet_fixture.write_benchmark(tmp_path_factory.mktemp("data"))
    people = ["p0", "p1", "p2", "p3"]
    for name, chosen in (("forget_15", people[:1]), ("retain_85", people[1:])):
        parquet_fixture.write_split(folder, name, [parquet_fixture.person_row(p) for p in chosen])
    return folder


@pytest.fixture(scope="module")
def bundles(model, data, tmp_path_factory) -> dict[str, Path]:
    """Bundles of both presets, and one for another forget rate."""
    root = tmp_path_factory.mktemp("bundles")
    fitting = ("fit", "--model", model, "--data", data, "--limit", 8)
    done(*fitting, "--preset", "paper", "--out", root / "paper")
    done(*fitting, "--preset", "calibrated", "--layers", "2-3", "--out", root / "calibrated")
    done(*fitting, "--preset", "paper", "--forget", 10, "--out", root / "ten")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def run_of(model, data):
    """Arguments of a short evaluation."""
    return ("eval", "--model", model, "--data", data, "--limit", 3, "--max-new-tokens", 4)


def test_help_names_every_command():
    shown = done("--help").stdout
    assert all(name in shown for name in ("demo", "fit", "generate", "eval", "info", "doctor", "organism"))
    assert done().stdout == shown
    assert all(name in done("organism").stdout for name in ("train", "benchmark", "check"))
    assert done("--version").stdout.strip() == rmuse_interp.__version__


@pytest.mark.parametrize(
    "command", ["demo", "fit", "generate", "eval", "info", "doctor", "organism train", "organism check"]
)
def test_every_command_has_help_and_debug(command):
    assert "--debug" in done(*command.split(), "--help").stdout


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("fit", "seed limit device dtype batch-size layers overwrite model data forget preset out"),
        (
            "eval",
            "seed limit device dtype batch-size max-new-tokens overwrite model data bundle forget out record",
        ),
        ("generate", "device dtype max-new-tokens model bundle image prompt"),
        ("demo", "seed limit device dtype batch-size max-new-tokens overwrite forget out record"),
    ],
)
def test_common_flags(command, flags):
    shown = done(command, "--help").stdout
    assert [flag for flag in flags.split() if f"--{flag}" not in shown] == []


def test_a_real_process():
    """Started as a user starts it: exit codes, and one line on stderr without a traceback."""
    command = [sys.executable, "-m", "rmuse_interp.cli", "info", "nowhere"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr == (
        "error: required a bundle with rmuse.json in nowhere, got none; write one with `rmuse fit`\n"
    )


def test_fit_writes_a_bundle_that_info_explains(bundles):
    shown = done("info", bundles["calibrated"]).stdout
    assert "preset calibrated" in shown
    assert "steered blocks 2, 3" in shown
    assert re.search(r"image\s+[A-Z]\w+\s+\d", shown)
    for key in ("rank of U_un", "threshold", "benchmark id tiny, forget 5", "provenance", "d_model 32"):
        assert key in shown
    kept = "".join(path.read_text() for path in bundles["calibrated"].glob("*.json"))
    assert "Mara" not in kept
    assert '"p0"' not in kept


def test_eval_writes_a_run(bundles, run_of, tmp_path, model):
    out = tmp_path / "run"
    shown = done(
        *run_of, "--bundle", bundles["paper"], "--bundle", bundles["calibrated"], "--out", out
    ).stdout
    found = read_run(out)
    scores, names = found.scores, {"vanilla", "rmuse/paper", "rmuse/calibrated"}
    assert scores["schema"] == "rmuse-scores/1"
    assert scores["model"]["id"] == str(model)
    assert scores["benchmark"] == {"id": "tiny", "forget": 5, "render_seed": 3}
    assert set(scores["methods"]) == names
    assert set(scores["gate"]) == names - {"vanilla"}
    for name in names:
        assert set(scores["methods"][name]) == set(SPLITS)
        assert all(set(block) >= METRICS for block in scores["methods"][name].values())
        assert name in shown
    for name in scores["gate"]:
        gate = scores["gate"][name]
        assert set(gate["fire_rate"]) == set(SPLITS)
        assert {"image", "text"} == set(gate["by_modality"])
        assert all({"auroc", "threshold"} <= set(part) for part in gate["by_modality"].values())
    assert {(t.method, t.split) for t in found.transcripts} == {(n, s) for n in names for s in SPLITS}
    for t in found.transcripts:
        assert (t.gate_score is None) == (t.fired is None) == (t.method == "vanilla")
        assert t.fired is None or t.fired == (t.gate_score > 0)
    keys = {
        "id",
        "method",
        "split",
        "modality",
        "prompt",
        "response",
        "reasoning",
        "answer",
        "expected",
        "attributes",
        "gate_score",
        "fired",
    }
    first = json.loads((out / "transcripts.jsonl").read_text().splitlines()[0])
    assert keys <= set(first)
    written = {"scores.json", "transcripts.jsonl", "traces.safetensors", "figure.png", "figure.pdf"}
    assert {p.name for p in out.iterdir()} == written
    steered = {(t.method, t.id) for t in found.transcripts if t.method != "vanilla"}
    assert set(read_traces(out)) == steered
    told = done("doctor", out).stdout  # finds the bundles where the run says they are
    assert all(f"{name}: " in told for name in names if name != "vanilla")
    assert "needs the bundle" not in told
    assert "finished run" in refused(*run_of, "--out", out)
    done(*run_of, "--out", out, "--overwrite", "--no-record")
    assert {p.name for p in out.iterdir()} == written - {"traces.safetensors"}
    assert set(read_run(out).scores["methods"]) == {"vanilla"}


def test_eval_takes_the_forget_rate_from_the_bundle(bundles, run_of, tmp_path):
    done(*run_of, "--bundle", bundles["ten"], "--out", tmp_path / "ten")
    assert read_run(tmp_path / "ten").scores["benchmark"]["forget"] == 10
    said = refused(*run_of, "--bundle", bundles["ten"], "--bundle", bundles["paper"], "--out", tmp_path / "x")
    assert "one forget rate" in said
    assert "10 %" in said
    assert "--forget: 5" in refused(
        *run_of, "--bundle", bundles["ten"], "--forget", 5, "--out", tmp_path / "x"
    )
    done(*run_of, "--forget", 10, "--limit", 1, "--out", tmp_path / "vanilla")
    assert read_run(tmp_path / "vanilla").scores["benchmark"]["forget"] == 10
    assert not (tmp_path / "x").exists()


def test_bundles_of_one_preset_keep_apart(bundles, run_of, tmp_path):
    twin = tmp_path / "twin"
    shutil.copytree(bundles["paper"], twin)
    done(*run_of, "--limit", 1, "--bundle", bundles["paper"], "--bundle", twin, "--out", tmp_path / "run")
    names = set(read_run(tmp_path / "run").scores["methods"])
    assert names == {"vanilla", "rmuse/paper@paper", "rmuse/paper@twin"}
    assert "each --bundle once" in refused(
        *run_of, "--bundle", twin, "--bundle", twin, "--out", tmp_path / "x"
    )


def test_ctrl_c_loses_nothing(run_of, tmp_path, monkeypatch):
    """The first run stops in the middle; the same command goes on behind what was finished."""
    real, asked = running._ask, []

    def interrupted(method, batch, *rest):
        asked.append([e.id for e in batch])
        if len(asked) == 4:
            raise KeyboardInterrupt
        return real(method, batch, *rest)

    monkeypatch.setattr(running, "_ask", interrupted)
    out = tmp_path / "run"
    first = rmuse(*run_of, "--out", out)
    assert first.exit_code == 130
    assert "the same command goes on" in first.stderr
    assert not (out / "scores.json").exists()
    done(*run_of, "--out", out)
    assert asked.count(asked[0]) == 1
    assert asked.count(asked[3]) == 2
    assert not (out / running.UNFINISHED).exists()
    assert len(read_run(out).transcripts) == len({i for batch in asked for i in batch})


def test_generate_streams_and_says_what_the_gate_did(bundles, model, tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "x.png")
    asked = ("generate", "--model", model, "--prompt", "Where does this person live?", "--max-new-tokens", 6)
    plain = done(*asked).stdout
    assert "gate" not in plain
    steered = done(*asked, "--bundle", bundles["calibrated"], "--image", tmp_path / "x.png").stdout
    said = steered.splitlines()[-1]
    fired, score, sign, threshold = re.search(
        r"gate: (fired|did not fire).*\(score (\S+) ([>≤]) threshold (\S+),", said
    ).groups()
    assert (fired == "fired") == (float(score) > float(threshold)) == (sign == ">")


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
    for missing in ("forget_5", "retain_95", "Test_Set"):
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
    assert "readable picture" in refused(*asked, "--prompt", "Who?", "--image", text)
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
