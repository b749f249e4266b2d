"""Ablations, threshold sweep, adaptive against fixed, prototype caps: small runs, their figures, and what must hold."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.studies import refused, words

from analyses import ablations, adaptive_vs_fixed, prototype_cap, readme_table, threshold_sweep
from rmuse_interp import RMuseError
from rmuse_interp.data import SPLITS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


ANALYSES = {
    "ablations": (ablations, []),
    "threshold_sweep": (threshold_sweep, ["--queries", "6"]),
    "adaptive_vs_fixed": (adaptive_vs_fixed, ["--forget", "5", "10", "--fractions", "0.5", "1"]),
    "prototype_cap": (prototype_cap, ["--caps", "4", "16"]),
}


def arguments(data, out, *more):
    return [*words(data, out, limit=3, fit_limit=6, max_new_tokens=6), *more]


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    for module, more in ANALYSES.values():
        assert module.main(arguments(data, out, *more)) == 0
    return out


@pytest.fixture(scope="module")
def records(results):
    return {stem: json.loads((results / f"{stem}.json").read_text()) for stem in ANALYSES}


# What every analysis does.


@pytest.mark.parametrize("stem", ANALYSES)
def test_the_record_says_where_it_comes_from(records, results, stem):
    origin = records[stem]["provenance"]
    assert records[stem]["schema"] == f"rmuse-{stem.replace('_', '-')}/1"
    assert origin["model"]["fingerprint"].startswith("LlavaForConditionalGeneration:4x32x")
    assert (origin["seed"], origin["limit"], origin["fit_limit"]) == (0, 3, 6)
    assert origin["n"]
    assert origin["platform"]
    assert {"rmuse-interp", "torch", "nnsight"} <= origin["versions"].keys()
    # What was kept for a broken run goes with its end.
    assert sorted(p.name for p in results.iterdir() if p.suffix != ".png") == sorted(
        f"{s}.json" for s in ANALYSES
    )


@pytest.mark.parametrize("stem", ANALYSES)
def test_mistakes_are_one_line_and_exit_code_2(data, tmp_path, stem, capsys):
    module, more = ANALYSES[stem]
    for change, said in (
        (["--model", "/nowhere"], "does not exist"),
        (["--forget", "20"], "forget_20"),
        (["--limit", "0"], "--limit of at least 1"),
        (["--max-new-tokens", "0"], "--max-new-tokens of at least 1"),
    ):
        assert said in refused(module, [*arguments(data, tmp_path, *more), *change], tmp_path, capsys)


def test_a_script_starts_anywhere_and_hides_no_package(tmp_path):
    """`analyses/requests.py` must not be what `import requests` finds."""
    script = ROOT / "analyses" / "threshold_sweep.py"
    argv = [sys.executable, "-v", str(script), "--help"]
    found = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0
    assert "--queries" in found.stdout
    assert "studies/common" in found.stderr
    assert "analyses/requests" not in found.stderr


@pytest.mark.parametrize(
    ("stem", "successor"), [("rivals", "analyses/leaderboard.py"), ("trace_overhead", "rmuse eval")]
)
def test_analyses_that_are_gone_name_their_successor(stem, successor):
    argv = [sys.executable, f"analyses/{stem}.py", "--limit", "3"]
    found = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.startswith("gone: ")
    assert successor in found.stderr
    assert found.stderr.count("\n") == 1


def test_ablation_rows_cover_every_split(records):
    record = records["ablations"]
    assert {(r["preset"], r["ablation"]) for r in record["rows"]} == {
        ("vanilla", "none"),
        *((v["preset"], v["ablation"]) for v in record["variants"]),
    }
    for row in record["rows"]:
        cell = row["fire_rate"]
        assert row["n"] == record["provenance"]["n"][row["split"]]
        assert (cell is None) == (row["preset"] == "vanilla")
        assert row["malformed_rate"]["low"] <= row["malformed_rate"]["value"] <= row["malformed_rate"]["high"]
        if row["ablation"] == "w/o gate":
            assert cell["value"] == cell["low"] == 100
    assert {r["split"] for r in record["rows"]} == set(SPLITS)


# Thresholds.


def test_a_larger_threshold_steers_more(records):
    sweep = records["threshold_sweep"]["sweep"]
    assert [one["tau"] for one in sweep] == sorted({one["tau"] for one in sweep})
    for split in sweep[0]["fire_rate"]:
        rates = [one["fire_rate"][split]["value"] for one in sweep]
        assert rates == sorted(rates)
        assert rates[0] == 0
        # Only a state that lies inside the RRS whole has s_gate = 1, and stays out even at τ = 1.
        assert rates[-1] == 100
    vanilla, steered = (one["rows"] for one in (sweep[0], sweep[-1]))
    assert [r["fire_rate"]["value"] for r in vanilla] == [0] * len(vanilla)
    assert vanilla != steered


def test_operating_curves_rise_and_pass_through_their_threshold(records):
    gates = records["threshold_sweep"]["gates"]
    assert gates[0]["gate"] == "literal"
    assert len(gates) > 3
    for row in gates:
        assert row["points"][-1] == [1.0, 1.0]
        assert row["points"] == sorted(row["points"])
        nearest = min(
            abs(x - row["fpr"]["value"] / 100) + abs(y - row["tpr"]["value"] / 100) for x, y in row["points"]
        )
        corner = row["fpr"]["value"] == row["tpr"]["value"] == 0  # nothing fires: before the first point
        assert nearest < 1e-5 or corner
        assert row["auroc"]["low"] <= row["auroc"]["value"] <= row["auroc"]["high"]
    assert any(row["chosen_for"] for row in gates)


# Strength and caps.


def test_strengths_are_measured_behind_both_gates_at_every_rate(records):
    record = records["adaptive_vs_fixed"]
    strengths = {"ACS", "0.5", "1"}
    assert {(r["forget"], r["gate"], r["strength"]) for r in record["rows"]} == {
        *((rate, gate, s) for rate in (5, 10) for gate in ("paper", "calibrated") for s in strengths),
        *((rate, None, "vanilla") for rate in (5, 10)),
    }
    assert all(0 <= a["q05"] <= a["q50"] <= a["q95"] <= 1 for a in record["acs"])
    assert record["acs"]


def test_the_caps_that_bind_are_reported(records):
    record = records["prototype_cap"]
    most = max(record["prototypes"].values())
    assert list(dict.fromkeys(r["cap"] for r in record["rows"])) == [
        None,
        *(c for c in (4, 16) if c < most),
        "all",
    ]
    for row in record["rows"]:
        if row["cap"] is not None:
            assert all(kept <= (most if row["cap"] == "all" else row["cap"]) for kept in row["kept"].values())


# Figures.


def test_figures_are_drawn_from_the_records_alone(results, records, tmp_path):
    """All in one process that knows neither torch nor the package."""
    code = (
        "import importlib, sys; sys.path.insert(0, 'figures')\n"
        "stems, results, out, empty = sys.argv[1].split(','), *sys.argv[2:]\n"
        "modules = [importlib.import_module(stem) for stem in stems]\n"
        "print([m.main(['--results', results, '--out', out]) for m in modules])\n"
        "print('torch' in sys.modules, 'rmuse_interp' in sys.modules)\n"
        "for m in modules:\n"
        "    try: m.main(['--results', empty])\n"
        "    except SystemExit as end: print('left with', end.code)\n"
    )
    (tmp_path / "empty").mkdir()
    argv = [
        sys.executable,
        "-c",
        code,
        ",".join(ANALYSES),
        str(results),
        str(tmp_path),
        str(tmp_path / "empty"),
    ]
    found = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.endswith("[0, 0, 0, 0]\nFalse False\n" + 4 * "left with 2\n"), found.stderr
    missing = found.stderr.splitlines()
    assert len(missing) == 4  # and not a warning beside
    for stem, line in zip(ANALYSES, missing, strict=True):
        assert f"python analyses/{stem}.py" in line
        assert (tmp_path / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
        assert (tmp_path / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        caption = " ".join((tmp_path / f"{stem}.txt").read_text().split())
        assert "n = " in caption
        assert records[stem]["provenance"]["model"]["fingerprint"] in caption


# The README's tables.


def test_the_readme_says_what_was_measured_and_marks_what_was_missed():
    row = {
        "forget": 5,
        "figure": "RIL, test",
        "value": 0.4,
        "low": 0.0,
        "high": 1.2,
        "n": 60,
        "sense": "<=",
        "target": 1.0,
        "reached": True,
    }
    record = {
        "rows": [row, row | {"forget": 10, "value": 2.5, "low": None, "high": None, "reached": False}],
        "provenance": {"render_seeds": [0, 1], "limit": 96},
    }
    text = readme_table.with_acceptance("a <!-- acceptance -->stale<!-- /acceptance --> z", record)
    assert "| RIL, test | ≤ 1 | 0.4 (0–1.2) | **2.5** |" in text
    assert text.startswith("a ")
    assert text.endswith(" z")
    assert "stale" not in text
    with pytest.raises(RMuseError, match="required one <!-- acceptance -->"):
        readme_table.with_acceptance("no place for it", record)
