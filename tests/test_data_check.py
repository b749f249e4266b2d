"""`rmuse data check`: what is wrong with a benchmark folder, all of it, with file, row and field."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import parquet_fixture as fixture
from helpers.checked import FIRST, problems, truncated
from helpers.commands import refused, rmuse
from helpers.parquet_fixture import person_row, png

from rmuse_interp.data.check import check


@pytest.fixture
def bench(tmp_path) -> Path:
    return fixture.write_benchmark(tmp_path / "bench")


def test_a_good_benchmark_has_no_problems(bench):
    report = check(bench)
    assert report.format == "RMLLMU-Bench"
    assert report.problems == []
    forget, test = report.splits["forget_10"], report.splits["Test_Set"]
    assert (forget.rows, forget.people, forget.questions, forget.pictures) == (2, 2, 12, 2)
    assert forget.kinds == {"generation": 4, "cloze": 4, "classification": 4}
    assert forget.modalities == {"image": 6, "text": 6}
    assert (test.rows, test.questions, test.pictures) == (4, 36, 8)
    assert report.splits["Reasoning/test"].people == 0
    done = rmuse("data", "check", bench)
    assert done.exit_code == 0, done.output
    assert "no problems" in done.stdout
    assert all(name in done.stdout for name in report.splits)


@pytest.mark.parametrize(
    ("write", "name", "lacks"),
    [
        (
            lambda root: fixture.write_splits(root, fixture.umu_row),
            "UMU-Bench",
            ("no reasoning", "no Test_Set"),
        ),
        (
            lambda root: fixture.write_splits(root, fixture.training_row),
            "MLLMU-Bench training",
            ("no reasoning", "no Test_Set", "no attributes", "no text-only"),
        ),
        (fixture.write_rtofu, "R-TOFU", ("no attributes", "no pictures")),
    ],
)
def test_every_format_is_told_and_what_it_lacks(tmp_path, write, name, lacks):
    report = check(write(tmp_path / "data"))
    assert (report.format, report.problems) == (name, [])
    assert [note.partition(":")[0].partition(" questions")[0] for note in report.notes] == list(lacks)


def test_mllmu_bench_is_told_from_ours_by_its_lack_of_reasoning(tmp_path):
    def bare(row):
        row["Generation_Task"] = [
            {key: q[key] for key in ("Type", "Question", "Ground_Truth")} for q in row["Generation_Task"]
        ]
        return row

    report = check(fixture.write_benchmark(tmp_path, bare))
    assert (report.format, report.problems) == ("MLLMU-Bench evaluation", [])
    assert report.splits["forget_5"].missing["reasoning"] == 2
    assert any("rmuse data annotate" in note for note in report.notes)


def test_the_report_is_plain_json_with_every_problem(bench):
    rows = [person_row(p) for p in ("p1", "p2", "p3")]
    rows[1]["Mask_Task"][0]["Ground_Truth"] = None
    rows[2]["image"] = {"bytes": png(3)[:40], "path": None}
    fixture.write_split(bench, "retain_95", rows)
    result = rmuse("data", "check", bench, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["schema"] == "rmuse-data-check/1"
    found = [(p["file"], p["row"], p["field"]) for p in report["problems"]]
    assert found == [
        (f"retain_95/{FIRST}", 1, "Mask_Task[0].Ground_Truth"),
        (f"retain_95/{FIRST}", 2, "image"),
    ]
    assert "Pillow can read was required, got 40 bytes" in report["problems"][1]["reason"]
    assert report["splits"]["retain_95"]["people"] == 2
    told = rmuse("data", "check", bench)
    assert told.exit_code == 1
    assert "2 problems" in told.stdout
    assert "row 1, field 'Mask_Task[0].Ground_Truth'" in told.stdout


def test_a_broken_picture_is_named_once_and_a_truncated_one_is_broken(bench):
    rows = [person_row(p) for p in ("p0", "p1")]
    rows[0]["image"]["bytes"] = truncated()
    fixture.write_split(bench, "forget_10", rows)
    assert problems(bench) == [(f"forget_10/{FIRST}", 0, "image")]


def test_splits_that_overlap_are_problems(bench):
    fixture.write_split(bench, "retain_95", [person_row(p) for p in ("p0", "p1", "p2")])
    fixture.write_split(bench, "Retain_Set", [person_row("c0"), person_row("p1")])
    found = {p.file: p.reason for p in check(bench).problems}
    assert set(found) == {"forget_5 and retain_95", "forget_10 and Retain_Set"}
    assert "required no ID in both, got 1 (p0)" in found["forget_5 and retain_95"]
    sums = [fixture.question_row("sum-train-0", None, "What?", "2", "So.")]
    fixture.write_split(bench, "Reasoning", sums, "test")
    assert ("Reasoning/train and Reasoning/test", None, "ID") in problems(bench)


def test_overlapping_lines_are_problems(tmp_path):
    folder = fixture.write_rtofu(tmp_path)
    fixture.write_lines(folder / "retain95.json", [fixture.rtofu_line("p0"), fixture.rtofu_line("p1")])
    assert problems(folder) == [("forget05 and retain95", None, "question")]


def test_broken_lines_are_problems_and_do_not_hide_the_others(tmp_path):
    folder = fixture.write_rtofu(tmp_path)
    path = folder / "retain95.json"
    path.write_text(
        "{broken\n" + path.read_text() + "[1]\n" + json.dumps(fixture.rtofu_line("p0", cot="")) + "\n"
    )
    assert problems(folder) == [
        ("retain95.json", 0, ""),
        ("retain95.json", 4, ""),
        ("retain95.json", 5, "cot"),
        ("forget05 and retain95", None, "question"),
    ]
    assert check(folder).splits["retain95"].questions == 3
    assert "retain95.json, row 4: required a JSON object" in rmuse("data", "check", folder).stdout


def test_duplicate_ids_are_problems(bench):
    fixture.write_split(bench, "forget_5", [person_row("p0"), person_row("p0")])
    assert problems(bench) == [(f"forget_5/{FIRST}", 1, "ID")]


def test_files_that_cannot_be_read_do_not_hide_the_others(bench):
    (bench / "forget_10" / FIRST).write_bytes(b"PAR1")
    fixture.write_split(bench, "Retain_Set", [{"ID": "c0", "text": "?"}])
    (bench / "Test_Set" / FIRST).unlink()
    (bench / "benchmark.json").write_text("[]")
    report = check(bench)
    found = {p.file: p.reason for p in report.problems}
    assert set(found) == {"benchmark.json", f"forget_10/{FIRST}", f"Retain_Set/{FIRST}", "Test_Set"}
    assert "readable parquet" in found[f"forget_10/{FIRST}"]
    assert "columns of a known format" in found[f"Retain_Set/{FIRST}"]
    assert report.splits["forget_5"].questions == 6


def test_a_forget_set_without_its_retain_set_is_a_problem(bench):
    shutil.rmtree(bench / "retain_95")
    (problem,) = check(bench).problems
    assert (problem.file, "retain_95/ beside it" in problem.reason) == ("forget_5", True)


def test_what_is_no_benchmark_is_refused(tmp_path):
    assert "no such folder" in refused("data", "check", tmp_path / "nowhere")
    assert "rmuse data new" in refused("data", "check", tmp_path)
    assert "owner/name@revision" in refused("data", "check", "owner/name")
