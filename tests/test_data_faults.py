"""Benchmarks as they come: IDs and gaps from table libraries, empty and missing splits, damaged files."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import parquet_fixture as fixture
from helpers.checked import FIRST
from helpers.commands import done
from helpers.parquet_fixture import png

from rmuse_interp import RMuseError, load_benchmark
from rmuse_interp.data.check import check
from rmuse_interp.data.people import read_people
from rmuse_interp.data.rows import identifier

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (1, "1"),
        (1.0, "1"),
        ("1 ", "1"),
        ("1.0", "1"),
        ("1.00", "1"),
        ("001", "001"),
        ("1.5", "1.5"),
        (1.5, "1.5"),
        ("Jose\u0301", "José"),
        (" p0\n", "p0"),
        ("v1.0", "v1.0"),
        (1e15, "1000000000000000"),
        (NAN, None),
        (float("inf"), None),
        ("nan", None),
        ("<NA>", None),
        (None, None),
        ("  ", None),
        (True, None),
        (b"1", None),
    ],
)
def test_an_id_has_one_form(value, form):
    assert identifier(value) == form


@pytest.mark.parametrize("stored", [float, str, lambda i: f"{i} ", lambda i: f"{i}.0"])
def test_the_same_person_is_found_in_every_split_however_the_id_is_stored(tmp_path, stored):
    def numbered(row: dict, how=int) -> dict:
        return {**row, "ID": how(int(row["ID"][1:]) + (100 if row["ID"] == "c0" else 1))}

    folder = fixture.write_benchmark(tmp_path / "data", numbered)
    people = ["p0", "p1", "p2", "p3"]
    fixture.write_split(
        folder, "Test_Set", [numbered(fixture.person_row(p, several=True), stored) for p in people]
    )
    benchmark = load_benchmark(folder)
    assert benchmark.forget_people == {"1"}
    assert {e.person for e in benchmark.scoring("test")} == {"1"}
    assert {e.person for e in benchmark.scoring("retain_test")} == {"2", "3", "4"}
    assert not [p for p in check(folder).problems if p.field == "ID"]


def test_ids_that_are_nearly_the_same_and_ids_unknown_elsewhere_are_reported(tmp_path):
    folder = fixture.write_benchmark(tmp_path / "data")
    rows = [{**fixture.person_row(p, several=True), "ID": who} for p, who in (("p0", "P0"), ("p1", "0p1"))]
    fixture.write_split(folder, "Test_Set", [*rows, fixture.person_row("c0", several=True)])
    assert {e.person for e in load_benchmark(folder).scoring("retain_test")} == {"P0", "0p1", "c0"}
    said = [p.reason for p in check(folder).problems if p.field == "ID"]
    assert any("'0p1' (Test_Set) and 'p1'" in reason for reason in said)
    assert any("'P0' (Test_Set) and 'p0'" in reason for reason in said)
    assert any("2 that none of them has (0p1, P0)" in reason for reason in said)


def gap(field: str, value: object) -> dict:
    """p0's row with one value of its first question replaced."""
    row = fixture.person_row("p0")
    question = {**row["Generation_Task"][0], field: value}
    return {**row, "Generation_Task": json.dumps([question])}


@pytest.mark.parametrize("value", [NAN, "nan", "NaN", "NaT", "<NA>", None, "", "  ", True])
@pytest.mark.parametrize("field", ["Question", "Ground_Truth"])
def test_a_gap_is_never_taken_for_a_word(tmp_path, field, value):
    fixture.write_split(tmp_path, "forget_5", [gap(field, value)])
    fixture.write_split(tmp_path, "retain_95", [fixture.person_row("p1")])
    with pytest.raises(RMuseError, match=rf"forget_5/{FIRST}, row 0, field 'Generation_Task\[0\].{field}'"):
        load_benchmark(tmp_path).scoring("forget")


@pytest.mark.parametrize("field", ["question", "answer", "perturbed_answer"])
def test_a_gap_in_jsonl_names_line_and_field(tmp_path, field):
    folder = fixture.write_rtofu(tmp_path)
    value = ["Rome.", NAN] if field == "perturbed_answer" else NAN
    fixture.write_lines(
        folder / "forget05.json", [fixture.rtofu_line("p0"), fixture.rtofu_line("p0", **{field: value})]
    )
    with pytest.raises(RMuseError, match=rf"forget05.json, row 1, field '{field}'"):
        load_benchmark(folder).scoring("forget")


def test_gaps_in_attributes_options_and_chains_are_faults_and_whole_floats_are_whole_numbers(tmp_path):
    row = gap("Forget_Attributes", json.dumps({"city": NAN}))
    fixture.write_split(tmp_path, "retain_95", [fixture.person_row("p1")])
    for changed, field in (
        (row, "Forget_Attributes.city"),
        (gap("Reasoning", [{"step": NAN, "evidence": "x"}]), r"Reasoning\[0\].step"),
    ):
        fixture.write_split(tmp_path, "forget_5", [changed])
        with pytest.raises(RMuseError, match=field):
            load_benchmark(tmp_path).scoring("forget")
    fixture.write_split(tmp_path, "forget_5", [gap("Ground_Truth", 1984.0)])
    assert load_benchmark(tmp_path).scoring("forget")[0].answer == "1984"
    question = {"Question": "Where?", "Options": {"A": "Oslo", "B": NAN}, "Correct_Answer": "A"}
    choices = json.dumps({"Image_Textual_Questions": [question], "Pure_Text_Questions": []})
    fixture.write_split(tmp_path, "forget_5", [{**fixture.person_row("p0"), "Classification_Task": choices}])
    with pytest.raises(RMuseError, match=r"Options\.B"):
        load_benchmark(tmp_path).scoring("forget")


def test_a_picture_that_is_only_a_path_is_a_fault_not_a_text_question(tmp_path):
    row = fixture.question_row(
        "scene", {"bytes": None, "path": "scene.png"}, "How many dots?", "4", "I see 4."
    )
    folder = fixture.write_benchmark(tmp_path)
    fixture.write_split(folder, "Reasoning", [row], "test")
    with pytest.raises(RMuseError, match="field 'image': required the picture's bytes"):
        load_benchmark(folder).scoring("reasoning")


@pytest.mark.parametrize("split", ["forget_5", "retain_95"])
def test_an_empty_split_is_reported_and_refused(tmp_path, split):
    import pyarrow.parquet as pq

    folder = fixture.write_benchmark(tmp_path)
    path = folder / split / FIRST
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert [p.reason for p in check(folder).problems if p.file == split] == [
        "required at least one person, got an empty set"
    ]
    with pytest.raises(RMuseError, match="at least one person, got an empty set"):
        load_benchmark(folder)


def test_fitting_reads_no_test_split_and_needs_none(tmp_path, model):
    folder = fixture.write_benchmark(tmp_path / "data")
    for unread in ("Test_Set", "Retain_Set", "Full_Set"):
        (folder / unread / FIRST).unlink()
        (folder / unread).rmdir()
    for unread in folder.glob("*/test-*"):
        unread.unlink()
    assert check(folder).problems == []
    assert any("no Test_Set" in note for note in check(folder).notes)
    done(
        "fit",
        "--model",
        model,
        "--data",
        folder,
        "--preset",
        "paper",
        "--limit",
        2,
        "--out",
        tmp_path / "out",
    )
    assert load_benchmark(folder).scoring("test") == []


def people(folder: Path, table: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Mara Venn.png").write_bytes(png(1))
    path = folder / "people.csv"
    path.write_bytes(table if isinstance(table, bytes) else table.encode())
    return path


def test_a_table_of_people_says_which_row_is_at_fault(tmp_path):
    images = tmp_path / "images"
    for cell in ("nan", "NaN", "NaT", "<NA>"):
        with pytest.raises(RMuseError, match="row 2, field 'residence'"):
            read_people(people(images, f"name,residence,job\nMara Venn,{cell},baker\n"), images)
    with pytest.raises(RMuseError, match="line 2: required cells of at most 128 KiB"):
        read_people(people(images, f"name,job\nMara Venn,{'x' * 140_000}\n"), images)
    (found,), _ = read_people(people(images, "id,name,job\n7.0,Mara Venn,baker\n"), images)
    assert found.id == "7"


def mutated(original: bytes, times: int, seed: int):
    rng = np.random.default_rng(seed)
    for _ in range(times):
        damaged = bytearray(original)
        for at in rng.integers(0, len(damaged), size=rng.integers(1, 5)):
            damaged[at] = rng.integers(0, 256)
        if rng.random() < 0.3:
            del damaged[rng.integers(0, len(damaged)) :]
        yield bytes(damaged)


def test_damaged_files_are_read_or_refused_in_words(tmp_path):
    """Some 500 mutations of parquet, JSONL, benchmark.json and CSV files: never another exception."""
    tables = fixture.write_splits(tmp_path / "tables", fixture.training_row)
    lines = fixture.write_rtofu(tmp_path / "lines")
    settings = tmp_path / "tables" / "benchmark.json"
    settings.write_text(json.dumps(fixture.SETTINGS))
    images = tmp_path / "images"
    table = people(
        images, "id,name,residence,aliases,forget\n1,Mara Venn,Oslo,M. Venn|Mara,yes\n2,Mara Venn,,,no\n"
    )
    refused = 0
    for folder, path, times in (
        (tables, tables / "forget_5" / FIRST, 150),
        (lines, lines / "forget05.json", 60),
        (tables, settings, 150),
        (images, table, 150),
    ):
        original = path.read_bytes()
        for damaged in mutated(original, times, seed=len(original)):
            path.write_bytes(damaged)
            with contextlib.suppress(RMuseError):
                refused += 1
                if folder is images:
                    read_people(table, images)
                else:
                    benchmark = load_benchmark(folder)
                    for example in benchmark.scoring("forget"):
                        example.load_image()
                refused -= 1
        path.write_bytes(original)
    assert 100 < refused < 510


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("aliases", {"a": None}),
        ("aliases", {"a": 1.5, "b": {"c": "d"}}),
        ("entails", {"a": [["b"]]}),
        ("entails", ["a"]),
        ("delimiters", ["a", "a"]),
        ("prefixes", "one"),
        ("render_seed", True),
        ("id", 5),
    ],
)
def test_settings_of_the_wrong_shape_are_refused_by_name(tmp_path, key, value):
    folder = fixture.write_benchmark(tmp_path)
    (folder / "benchmark.json").write_text(json.dumps({key: value}))
    with pytest.raises(RMuseError, match=f"key '{key}'"):
        load_benchmark(folder)


def test_settings_nested_without_end_are_refused(tmp_path):
    folder = fixture.write_benchmark(tmp_path)
    (folder / "benchmark.json").write_text('{"aliases": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(RMuseError, match=r"benchmark\.json"):
        load_benchmark(folder)
