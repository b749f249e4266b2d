"""The command line on real tiny models: what it writes, what it says, and every mistake a user can make."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import done, refused, rmuse
from helpers.said import METRICS
from PIL import Image

import rmuse_interp.data.world.draw
import rmuse_interp.organism.train
from rmuse_interp.data import SPLITS
from rmuse_interp.evaluate.results import read_run
from rmuse_interp.runs import run as running
from rmuse_interp.runs.traces import read_traces

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run_of(model, data):
    """Arguments of a short evaluation."""
    return ("eval", "--model", model, "--data", data, "--limit", 3, "--max-new-tokens", 4)


def test_help_names_every_command():
    shown = done("--help").stdout
    rows = re.findall(r"^(?:  ([a-z]+)  .*|([A-Z][a-z ]+):.*)$", shown, flags=re.M)
    listed = " ".join(name or heading for name, heading in rows)
    assert listed.endswith(
        "Look demo generate info doctor Make a model forget fit forget restore Measure eval score "
        "Material data judge baseline models organism"
    )
    assert "...\n" not in shown.partition("Look:")[2]  # whole sentences
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
        assert (t.gate is None) == (t.gate_score is None) == (t.fired is None) == (t.method == "vanilla")
        assert t.fired is None or t.fired == (t.margin > 0)
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
