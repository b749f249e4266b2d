"""What holds for all figures: run small by `make figures`, another schema refused, names and colours told apart."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.container import BarContainer

from rmuse_interp.evaluate.before_after import caption, draw, look

ROOT = Path(__file__).resolve().parent.parent
STEMS = sorted(p.stem for p in (ROOT / "figures").glob("[!_]*.py"))
MEASURED = [stem for stem in STEMS if (ROOT / "analyses" / f"{stem}.py").is_file()]


def test_make_figures_runs_and_draws_all_of_them():
    found = subprocess.run(["make", "-n", "figures"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    for stem in STEMS:
        assert f"drawn-{stem}" in found.stdout
    assert "OMP_NUM_THREADS=1" in found.stdout


@pytest.mark.parametrize("stem", MEASURED)
def test_every_analysis_with_a_figure_has_a_small_size(stem, capsys, monkeypatch):
    """Each name in it is an option: `set_defaults` would take any."""
    monkeypatch.setenv("COLUMNS", "1000")  # the help unbroken
    module = importlib.import_module(f"analyses.{stem}")
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert end.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--fits DIR" in said
    sizes = re.search(r"a first look: (.*?), unless given", said)
    assert sizes is not None
    names = re.findall(r"--[a-z-]+", sizes.group(1))
    usage = said.partition("options:")[0]
    assert "--limit" in names
    assert set(names) <= set(re.findall(r"--[a-z-]+", usage))


def test_what_is_given_counts_more_than_the_small_size(tmp_path):
    from rmuse_interp.studies import common

    parser = common.options("One line.", limit=50, what="things", small={"limit": 5, "fit_limit": 7})
    seen = []

    def record_of(given):
        seen.append((given.limit, given.fit_limit))
        return {"provenance": {}}

    for argv in ([], ["--small"], ["--small", "--limit", "9"], ["--limit", "9", "--small"]):
        assert (
            common.command("thing", parser, record_of, lambda _: None, [*argv, "--out", str(tmp_path)]) == 0
        )
        parser = common.options("One line.", limit=50, what="things", small={"limit": 5, "fit_limit": 7})
    assert seen[0][0] == 50
    assert seen[1:] == [(5, 7), (9, 7), (9, 7)]


@pytest.mark.parametrize("stem", MEASURED)
def test_results_of_another_schema_name_the_command_that_makes_new_ones(stem, tmp_path):
    (tmp_path / f"{stem}.json").write_text(json.dumps({"schema": f"rmuse-{stem}/0"}))
    argv = [sys.executable, f"figures/{stem}.py", "--results", str(tmp_path)]
    found = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert f"required schema 'rmuse-{stem.replace('_', '-')}/" in found.stderr
    assert f"got 'rmuse-{stem}/0'; run `python analyses/{stem}.py` again" in found.stderr
    assert len(list(tmp_path.iterdir())) == 1


# Names beside points.


CODE = """
import sys; sys.path.insert(0, 'figures')
import _style, json
import matplotlib.pyplot as plt
from _labels import label
_style.use()
figure, axis = plt.subplots(figsize=(3.25, 3))
axis.set_xlim(0, 100); axis.set_ylim(0, 100)
places = {'a': (99, 99), 'b': (99, 94), 'c': (99, 99), 'd': (80, 90), 'e': (82, 78), 'f': (1, 1), 'g': (60, 95)}
words = {n: n * 9 for n in places}
for at in places.values():
    axis.plot(*at, 'o', ms=5)
label(axis, places, words, dict.fromkeys(places, 'black'), [((60, 90), (95, 90))])
figure.canvas.draw()
boxes = {t.get_text(): t.get_window_extent().extents.tolist() for t in axis.texts}
dots = [axis.transData.transform(at).tolist() for at in places.values()]
print(json.dumps([boxes, dots, axis.get_window_extent().extents.tolist()]))
"""


def test_names_cover_neither_points_nor_each_other_and_stay_inside():
    found = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    boxes, dots, frame = json.loads(found.stdout)
    assert set(boxes) == {
        "aaaaaaaaa, ccccccccc",
        *(n * 9 for n in "bdefg"),
    }  # points that coincide share a text
    rows = list(boxes.values())
    for i, (x0, y0, x1, y1) in enumerate(rows):
        assert frame[0] <= x0
        assert x1 <= frame[2] + 1
        assert not any(x0 < x < x1 and y0 < y < y1 for x, y in dots)
        for a0, b0, a1, b1 in rows[:i]:
            assert a1 <= x0 or x1 <= a0 or b1 <= y0 or y1 <= b0


# Before and after.


def scores(names):
    block = {"n": 4, "ril": 50.0, "exact": 50.0}
    around = {"low": 20.0, "high": 80.0, "n": 3}
    return {
        "model": {"id": "m", "fingerprint": "f"},
        "benchmark": {"id": "b", "forget": 5},
        "gate": {},
        "methods": {n: dict.fromkeys(("forget", "retain"), block) for n in names},
        "intervals": {n: {s: {"ril": around, "exact": around} for s in ("forget", "retain")} for n in names},
    }


def test_no_two_methods_look_the_same():
    names = ["vanilla", "gold", "rmuse/paper", "rmuse/calibrated", *(f"rival-{i}" for i in range(12))]
    looks = {name: look(name, names) for name in names}
    assert len(set(looks.values())) == len(names)
    assert all(looks[name][1] == "" for name in names[:8])
    figure = draw(scores(names))
    bars = {
        c.get_label(): (c[0].get_facecolor(), c[0].get_hatch())
        for c in figure.axes[0].containers
        if isinstance(c, BarContainer)
    }
    drawn = {name: look_ for name, look_ in bars.items() if name in names}
    assert len(set(drawn.values())) == len(names)
    assert figure.get_size_inches()[0] == 6.75


def test_the_caption_counts_what_was_measured():
    said = caption(scores(["vanilla"]))
    assert "forget: 3" in said
    assert "retain: 3" in said
    assert "Model m (f), benchmark b, 5 % forgotten" in said
