"""The analysis of rivals and its figure."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from helpers import tiny

from analyses import rivals as analysis
from rmuse_interp.fitting import rivals as r
from rmuse_interp.fitting import tuning

ROOT = Path(__file__).resolve().parent.parent


def test_domination_has_margins():
    base = {"ril_test": 10.0, "exact_retain_test": 90.0, "malformed": 5.0}

    def better(**by):
        return {goal: base[goal] + analysis.GOALS[goal] * by.get(goal, 0.0) for goal in base}

    wins = partial(analysis.dominates, goals=analysis.GOALS)
    assert wins(better(ril_test=2), base)
    assert not wins(base, better(ril_test=2))
    assert not wins(better(ril_test=1), base)  # a point makes no difference
    assert wins(better(ril_test=50, malformed=-1), base)  # nor does a point lost
    assert not wins(better(ril_test=50, malformed=-1.5), base)
    assert not wins(better(exact_retain_test=50, malformed=-2), base)
    assert wins(better(exact_retain_test=2), base)
    assert wins(better(malformed=2), base)
    assert not wins(base, base)

    def row(**by):
        return {goal: {"value": value} for goal, value in better(**by).items()}

    values = {
        "rmuse/calibrated": row(),
        "caa": row(ril_test=-9),
        "leace": row(ril_test=9),
        "cast": row(ril_test=9, malformed=-9),
        "vanilla": row(ril_test=-9),
    }
    found = analysis.domination(values)
    assert found["dominates"] == ["caa"]
    assert found["dominated_by"] == ["leace"]
    assert found["neither"] == ["cast"]
    assert analysis.domination({"caa": row()}) is None
    values["caa"]["malformed"]["value"] = None
    assert analysis.domination(values)["neither"] == ["caa", "cast"]


@pytest.fixture(scope="module")
def analysed(data, tmp_path_factory):
    """The analysis as it is run, on a tiny model, with three methods and one choice of blocks."""
    folder = tmp_path_factory.mktemp("results")
    asked = [
        "--model",
        str(tiny.tiny_llava()),
        "--data",
        str(data),
        "--forget",
        "10",
        "--limit",
        "2",
        "--max-new-tokens",
        "3",
        "--out",
        str(folder),
        "--debug",
    ]
    with pytest.MonkeyPatch.context() as patch:
        for module in (r, tuning):
            patch.setattr(module, "choices", lambda n_layers: [(2,)])
        real = tuning.hold_out
        patch.setattr(tuning, "hold_out", lambda *a: replace(real(*a), max_new_tokens=3))
        assert analysis.main([*asked, "--methods", "caa,rmuse/paper,vanilla"]) == 0
        first = json.loads((folder / "rivals.json").read_text())
        assert analysis.main([*asked, "--methods", "caa,rmuse/paper,vanilla"]) == 0
    return folder, first


def test_the_analysis_reports_every_value_with_its_interval(analysed):
    folder, first = analysed
    record = json.loads((folder / "rivals.json").read_text())
    assert record["schema"] == "rmuse-rivals/1"
    assert list(record["methods"]) == ["vanilla", "rmuse/paper", "caa"]
    assert record["methods"] == first["methods"]  # taken up again, it says the same
    for row in record["methods"].values():
        assert set(row["values"]) == set(analysis.VALUES)
        for value in row["values"].values():
            assert value["n"] == 0 or value["low"] <= value["value"] <= value["high"]
    caa = record["methods"]["caa"]
    assert len(caa["trials"]["image"]) == 6
    assert caa["chosen"]["image"] in caa["trials"]["image"]
    assert record["provenance"]["budget"]["responses"] == 6 * (
        record["provenance"]["budget"]["forget"] + record["provenance"]["budget"]["others"]
    )
    assert record["provenance"]["n"]["test"] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "caa,best"], "'best'"),
        (["--methods", "gold", "--model", "elsewhere"], "gold is the twin"),
        (["--limit", "0"], "--limit of at least 1"),
        (["--data", "nowhere"], "no such folder"),
        (["--data", "nowhere", "--render-seed", "1"], "render_seed"),
    ],
)
def test_the_analysis_refuses_bad_arguments_on_one_line(words, said, tmp_path, capsys):
    assert analysis.main([*words, "--out", str(tmp_path / "x")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "x").exists()


def test_the_figure_is_drawn_from_results_alone(analysed, tmp_path):
    """In a process of its own, without torch; the same bytes twice."""
    code = (
        "import runpy, sys; sys.path.insert(0, 'figures'); _, results, *folders = sys.argv\nfor out in folders:\n"
        "    sys.argv = ['rivals.py', '--results', results, '--out', out]\n"
        "    try: runpy.run_path('figures/rivals.py', run_name='__main__')\n"
        "    except SystemExit as end: print('left with', end.code)\n"
        "print('torch' in sys.modules)"
    )
    folders = [tmp_path / name for name in ("one", "two")]
    run = subprocess.run(
        [sys.executable, "-c", code, str(analysed[0]), *map(str, folders)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )
    assert run.stdout.count("left with 0") == 2, run.stderr
    assert run.stdout.endswith("False\n")
    found = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert set(found[0]) == {"rivals.pdf", "rivals.png", "rivals.txt"}
    assert found[0] == found[1]
    assert b"fitting questions" in found[0]["rivals.txt"]
