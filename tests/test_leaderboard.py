"""The leaderboard on a real tiny LLaVA: cells that are kept, fail alone and go on; what the tables say; both figures."""

import argparse
import json
import shutil
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import parquet_fixture
from helpers.studies import drawn, refused, words

from analyses import leaderboard as script
from rmuse_interp import load_benchmark
from rmuse_interp.baselines import train
from rmuse_interp.evaluate.results import AttackTranscript, Transcript
from rmuse_interp.studies import cells, leaderboard, standings
from rmuse_interp.studies.cells import Cell, halves, worst_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("vanilla", "rmuse/calibrated", "caa", "ga")


@pytest.fixture(scope="module")
def asked(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    attacks, methods = "prefix,4-bit,relearning", ",".join(METHODS)
    sizes = {"forget": 10, "limit": 3, "attack_limit": 2, "fit_limit": 6, "max_new_tokens": 5, "jobs": 1}
    return words(data, out, attacks=attacks, methods=methods, **sizes)


@pytest.fixture(scope="module")
def quick():
    """One choice of blocks for rivals, one setting for trained baselines, and no cell worked out twice unseen."""
    worked = []
    real = cells._worked_out

    def counted(cell, *arguments):
        worked.append(cell.method)
        return real(cell, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmuse_interp.fitting.rivals.choices", lambda n_layers: [(2,)])
        patch.setattr(cells, "train", partial(train, limit=4, epochs=1))
        patch.setattr(cells, "_worked_out", counted)
        yield worked


@pytest.fixture(scope="module")
def broken_then_whole(asked, quick):
    """The record of a run in which one cell fails, that of the same command again, and what each of them worked out."""
    with pytest.MonkeyPatch.context() as patch:

        def no_memory(*_arguments, **_settings):
            raise MemoryError("no room")

        patch.setattr(cells, "train", no_memory)
        code = script.main(asked)
    out = Path(asked[asked.index("--out") + 1])
    broken = json.loads((out / "leaderboard.json").read_text()), code, list(quick)
    quick.clear()
    code = script.main(asked)
    whole = json.loads((out / "leaderboard.json").read_text()), code, list(quick)
    return out, broken, whole


def test_a_cell_fails_alone_and_is_worked_out_again(broken_then_whole):
    _, (first, first_code, first_worked), (second, second_code, second_worked) = broken_then_whole
    assert (first_code, second_code) == (1, 0)
    assert sorted(first_worked) == sorted(METHODS)
    assert second_worked == ["ga"]
    errors = {row["method"]: row["error"] for row in first["rows"]}
    assert errors == {**dict.fromkeys(METHODS), "ga": "MemoryError: no room"}
    assert [row["method"] for row in first["summary"]] == ["vanilla", "rmuse/calibrated", "caa"]
    assert "ga (seed 0) | failed: MemoryError: no room" in standings.markdown(first)
    assert [row["method"] for row in second["summary"]] == list(METHODS)
    old, new = ({row["method"]: row for row in record["rows"]} for record in (first, second))
    assert all(old[name] == new[name] for name in METHODS if name != "ga")


def test_every_row_has_values_attacks_and_the_worst(broken_then_whole):
    out, _, (record, *_) = broken_then_whole
    assert record["schema"] == leaderboard.SCHEMA
    assert set(record["attacks"]) == {"prefix", "4-bit", "relearning"}
    for row in record["rows"]:
        relearnt = {"relearning"} if row["method"] == "ga" else set()
        assert set(row["attacks"]) == {"prefix", "4-bit"} | relearnt
        assert set(row["values"]) == set(cells.REPORTED)
        assert set(row["seconds"]) == {"prepare", "answer", "read", "attack", "score"}
        assert row["peak_mb"] > 50
        values = [
            block["ril"]["value"]
            for by_split in row["attacks"].values()
            for split, block in by_split.items()
            if split != "retain"
        ]
        assert row["worst"]["value"] == max(0.0, *(v for v in values if v is not None))
        folder = Cell(row["method"], 10, 0).folder(out / "leaderboard")
        plain = [
            Transcript.from_json(line) for line in (folder / "transcripts.jsonl").read_text().splitlines()
        ]
        under = [
            AttackTranscript.from_json(line) for line in (folder / "attacked.jsonl").read_text().splitlines()
        ]
        assert {t.id for t in under} <= {t.id for t in plain}
        assert {t.attack for t in under} == set(row["attacks"])
    chosen = {row["method"]: row["chosen"] for row in record["rows"]}
    assert chosen["caa"]["layers"]["image"]["layers"] == [2]
    assert chosen["ga"]["trials"] >= 1
    assert record["provenance"]["cell_seconds"].keys() == {"reference", "rmuse", "rival", "trained"}


def test_processes_of_their_own_give_the_same(asked, broken_then_whole, tmp_path):
    again = [*asked, "--methods", "vanilla", "--out", str(tmp_path), "--jobs", "2"]
    assert script.main(again) == 0
    row = json.loads((tmp_path / "leaderboard.json").read_text())["rows"][0]
    known = broken_then_whole[2][0]["rows"][0]
    assert {k: row[k] for k in ("method", "values", "attacks", "worst")} == {
        k: known[k] for k in ("method", "values", "attacks", "worst")
    }


def test_other_settings_are_other_cells(broken_then_whole, asked):
    given = script.arguments().parse_args(asked)
    given.attacks = leaderboard.attacks_of(given.attacks)
    root = broken_then_whole[0] / "leaderboard"

    def kept(cell=Cell("vanilla", 10, 0), **changes):  # noqa: B008
        return cells.kept_of(cell, argparse.Namespace(**vars(given) | changes), root).get("record")

    assert kept()["method"] == "vanilla"
    assert kept(Cell("vanilla", 10, 1)) is None
    for changes in ({"limit": 4}, {"attacks": []}, {"max_new_tokens": 6}, {"dtype": "bfloat16"}):
        assert kept(**changes) is None


def test_cells_of_other_answers_are_other_cells(broken_then_whole, asked, data, tmp_path):
    """A folder of the same name in which one reference answer was mended."""
    given = script.arguments().parse_args(asked)
    given.attacks = leaderboard.attacks_of(given.attacks)
    root, cell = broken_then_whole[0] / "leaderboard", Cell("vanilla", 10, 0)
    mended = tmp_path / data.name
    shutil.copytree(data, mended)
    assert cells.kept_of(cell, argparse.Namespace(**vars(given) | {"data": str(mended)}), root).get("record")
    file = mended / "Test_Set" / "train-00000-of-00001.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[0]["Generation_Task"][0]["Ground_Truth"] = "Lima"
    parquet_fixture.write_split(mended, "Test_Set", rows)
    cells.world.cache_clear()
    assert not cells.kept_of(cell, argparse.Namespace(**vars(given) | {"data": str(mended)}), root).get(
        "record"
    )


def test_relearning_asks_about_other_people_than_it_is_taught(data):
    benchmark = load_benchmark(data, forget=10)
    questions = {"forget": benchmark.scoring("forget"), "retain": benchmark.scoring("retain")}
    lessons, rest = halves(benchmark, questions, seed=0)
    taught = {e.person for e in lessons}
    assert 0 < len(lessons) <= cells.RELEARNT
    assert taught < benchmark.forget_people
    assert {e.person for e in rest["forget"]} == benchmark.forget_people - taught
    assert rest["retain"] == questions["retain"]


def value(number, n=10):
    low, high = (None, None) if number is None else (number - 1, number + 1)
    return {"value": number, "low": low, "high": high, "n": n}


def row(method, seed=0, kind="trained", worst=50.0, plain=10.0, exact=90.0, malformed=0.0):
    values = {key: value(90.0) for key in cells.REPORTED}
    values |= {
        "ril_forget": value(plain),
        "ril_test": value(plain - 1),
        "exact_retain_test": value(exact),
        "malformed": value(malformed),
    }
    return {
        "method": method,
        "forget": 5,
        "seed": seed,
        "kind": kind,
        "error": None,
        "values": values,
        "attacks": {},
        "worst": {**value(worst), "attack": "prefix", "split": "test"},
        "seconds": {"prepare": 2.0},
    }


def test_seeds_are_pooled_and_the_verdict_follows():
    rows = [
        row("rmuse/calibrated", 0, "rmuse", worst=4.0),
        row("rmuse/calibrated", 1, "rmuse", worst=8.0),
        row("ga", worst=11.0),
        row("npo", worst=30.0),
        row("po", worst=60.0, plain=20.5),
        row("caa", kind="rival", worst=90.0, exact=95.0),
        row("gold", kind="reference", worst=0.0, exact=91.0),
    ]
    found = standings.summary(rows)
    ours = found[0]["values"]["worst"]
    assert ours == {"value": 6.0, "low": 3.0, "high": 9.0, "n": 20}
    assert found[0]["seeds"] == [0, 1]
    said = standings.verdict(found, 5)
    assert said["within"] is True
    assert said["trained"] == {"ga": {"worst": 11.0, "half": False}, "npo": {"worst": 30.0, "half": True}}
    assert said["dominates"] == ["ga", "npo", "po"]
    assert said["dominated_by"] == ["gold"]
    assert (
        standings.verdict([r for r in found if r["method"] != "rmuse/calibrated"], 5)["dominated_by"] is None
    )
    assert standings.over_seeds([value(None), value(2.0)])["value"] == 2.0
    assert standings.over_seeds([value(None)])["value"] is None


def test_domination_has_margins():
    base = {"worst": 10.0, "exact_retain_test": 90.0, "malformed": 5.0}

    def better(**by):
        return {goal: base[goal] + standings.GOALS[goal] * by.get(goal, 0.0) for goal in base}

    wins = partial(standings.dominates, goals=standings.GOALS)
    assert wins(better(worst=2), base)
    assert not wins(base, better(worst=2))
    assert not wins(better(worst=1), base)  # a point makes no difference
    assert wins(better(worst=50, malformed=-1), base)  # nor does a point lost
    assert not wins(better(worst=50, malformed=-1.5), base)
    assert not wins(better(exact_retain_test=50, malformed=-2), base)
    assert wins(better(exact_retain_test=2), base)
    assert wins(better(malformed=2), base)
    assert not wins(base, base)


def test_without_attacks_the_worst_is_that_of_none():
    values = {"ril_forget": value(3.0), "ril_test": value(7.0)}
    assert worst_of(values, None) == {**value(7.0), "attack": "none", "split": "test"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--methods", "caa,best"], "'best'"),
        (["--methods", "gold", "--model", "elsewhere"], "gold is the twin"),
        (["--attacks", "prefix,force"], "'force'"),
        (["--attack-limit", "0"], "--attack-limit of at least 1"),
        (["--data", "nowhere"], "no such folder"),
    ],
)
def test_bad_arguments_are_refused_on_one_line(change, said, tmp_path, capsys):
    argv = [*change, "--out", str(tmp_path / "x")]
    assert said in refused(script, argv, tmp_path / "x", capsys)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("stem", ["tradeoff", "rcr"])
def test_figures_are_drawn_from_results_alone(broken_then_whole, stem, tmp_path):
    (caption,) = drawn(stem, broken_then_whole[0], tmp_path, stem)
    assert "bootstrap intervals" in caption
    assert {path.name for path in tmp_path.iterdir()} == {f"{stem}.{kind}" for kind in ("pdf", "png", "txt")}
