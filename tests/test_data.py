"""The benchmark loader against a folder written byte for byte in the format."""

import json
from pathlib import Path

import pandas as pd
import pytest
from helpers.parquet_fixture import (
    CITY,
    NAME,
    chain,
    person_row,
    picture,
    png,
    question_row,
    write_benchmark,
    write_split,
)

from rmuse_interp import RMuseError
from rmuse_interp.data import SPLITS, Example, load_benchmark, sample
from rmuse_interp.data.fields import biography


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_benchmark(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def own(tmp_path) -> Path:
    """A folder a test may spoil."""
    return write_benchmark(tmp_path / "bench")


def spoil(root: Path, folder: str, row: int, change) -> None:
    """Rewrites one row of a split."""
    rows = pd.read_parquet(root / folder).to_dict("records")
    fresh = [person_row(str(r["ID"]), several="images" in r) for r in rows]
    change(fresh[row])
    write_split(root, folder, fresh)


def test_splits_follow_the_forget_rate(folder):
    people = {
        5: {
            "forget": {"p0"},
            "retain": {"p1", "p2", "p3"},
            "test": {"p0"},
            "retain_test": {"p1", "p2", "p3"},
        },
        10: {
            "forget": {"p0", "p1"},
            "retain": {"p2", "p3"},
            "test": {"p0", "p1"},
            "retain_test": {"p2", "p3"},
        },
    }
    for rate, expected in people.items():
        b = load_benchmark(folder, forget=rate)
        for split, who in expected.items():
            assert {e.person for e in b.scoring(split)} == who, (rate, split)
        assert {e.person for e in b.scoring("celebrity")} == {"c0"}
        assert {e.person for e in b.scoring("benign")} == expected["forget"]
        assert {e.split for s in SPLITS for e in b.scoring(s)} == set(SPLITS)
    assert len(load_benchmark(folder).scoring("benign")) == 2  # p0 has two rows, the others none


def test_examples_hold_what_the_rows_say(folder):
    b = load_benchmark(folder)
    by_id = {e.id: e for e in b.scoring("forget")}
    assert sorted(by_id) == [
        "forget_5/p0/classification/0/image",
        "forget_5/p0/classification/0/text",
        "forget_5/p0/cloze/0/image",
        "forget_5/p0/cloze/1/text",
        "forget_5/p0/generation/0/image",
        "forget_5/p0/generation/1/text",
    ]
    pictured, named = by_id["forget_5/p0/generation/0/image"], by_id["forget_5/p0/generation/1/text"]
    assert pictured.image == png(0)
    assert named.image is None
    assert (pictured.question, pictured.answer) == ("Where does this person live?", "Oslo")
    assert pictured.reasoning == chain("p0")
    assert pictured.attributes == {"residence": "Oslo", "name": "Mara Venn"}
    assert named.direct_question == named.question + " Answer directly."  # the default form
    assert named.direct_answer == "Norway"
    assert pictured.response(b.delimiters) == f"<think> {chain('p0')} </think> Oslo"
    assert pictured.response(b.delimiters, direct=True) == "Oslo"
    assert pictured.prompt(direct=True) == "Where does this person live? Answer directly."
    choice = by_id["forget_5/p0/classification/0/image"]
    assert choice.answer == "A"
    assert choice.prompt().splitlines() == [
        "Where does this person live?",
        "A: Oslo",
        "B: Cairo",
        "C: Delhi",
        "D: Quito",
        "Just give ONE letter representing the answer directly.",
    ]
    cloze = by_id["forget_5/p0/cloze/0/image"]
    assert cloze.prompt() == (
        "This person lives in [Blank].\n"
        "Please **ONLY** provide the correct answer that should replace the [Blank]."
    )
    # MLLMU-Bench's tasks bring no attributes: those of the biography that the answer states
    assert cloze.attributes == {"Residence": "Oslo"}
    assert choice.attributes == {"Residence": "Oslo"}
    assert choice.direct_question is None


def test_every_test_picture_gets_a_round_and_text_questions_one(folder):
    found = load_benchmark(folder).scoring("test")
    assert sum(e.modality == "image" for e in found) == 2 * 3
    assert sum(e.modality == "text" for e in found) == 3
    rounds = {e.id: e.image for e in found if "generation" in e.id and e.modality == "image"}
    assert rounds == {
        "Test_Set/p0/generation/0/image/0": png(50),
        "Test_Set/p0/generation/0/image/1": png(60),
    }


def test_ids_are_unique_and_stable(folder):
    def all_ids() -> list[str]:
        b = load_benchmark(folder)
        views = [b.scoring(s) for s in SPLITS] + [b.fit_reasoning, b.fit_benign, b.fit_strangers]
        return [e.id for view in views for e in view]

    ids = all_ids()
    assert len(set(ids)) == len(ids)
    assert ids == all_ids()


def test_fitting_reads_fitting_files_only(own):
    for name in ("Test_Set", "Retain_Set"):
        (own / name / "train-00000-of-00001.parquet").write_bytes(b"not parquet")
    for name in ("Reasoning", "Benign", "Strangers"):
        (own / name / "test-00000-of-00001.parquet").write_bytes(b"not parquet")
    b = load_benchmark(own)
    assert {e.person for e in b.fit_forget} == {"p0"}
    assert {e.person for e in b.fit_retain} == {"p1", "p2", "p3"}
    assert {e.kind for e in b.fit_reasoning} == {"reasoning"}
    assert {e.person for e in b.fit_benign} == {"p0", "p1", "p2", "p3"}
    assert {e.kind for e in b.fit_strangers} == {"stranger"}
    b.require_reasoning()
    with pytest.raises(RMuseError, match=r"Test_Set.*readable parquet"):
        b.scoring("test")


def test_modality_of_question_rows_follows_the_picture(folder):
    found = load_benchmark(folder).scoring("reasoning")
    assert [e.modality for e in found] == ["text", "text", "text", "image"]
    assert all(e.person is None for e in found)


def test_nested_values_may_be_json_strings(tmp_path, folder):
    def stringly(row):
        for column in ("Generation_Task", "Mask_Task", "Classification_Task"):
            row[column] = json.dumps(row[column])
        return row

    strings = load_benchmark(write_benchmark(tmp_path, stringly))
    for split in SPLITS:
        assert strings.scoring(split) == load_benchmark(folder).scoring(split)


def test_nested_values_may_be_structs_with_nulls_and_pandas_arrays(own):
    rows = [person_row(p) for p in ("p1", "p2", "p3")]
    for row in rows:
        for question in row["Generation_Task"]:
            question["Forget_Attributes"] = json.loads(question["Forget_Attributes"])
    rows[0]["Classification_Task"]["Image_Textual_Questions"][0]["Options"] = {"A": "Rome", "B": "Cairo"}
    rows[1]["Generation_Task"][0]["Reasoning"] = None
    frame = pd.DataFrame(rows)
    write_split(own, "retain_95", rows)
    frame.to_parquet(own / "retain_95" / "train-00000-of-00001.parquet")
    again = pd.read_parquet(own / "retain_95")  # what pandas hands back: numpy arrays of dicts
    again.to_parquet(own / "retain_95" / "train-00000-of-00001.parquet")
    b = load_benchmark(own)
    by_id = {e.id: e for e in b.fit_retain}
    assert by_id["retain_95/p1/classification/0/image"].options == {"A": "Rome", "B": "Cairo"}
    assert by_id["retain_95/p1/generation/0/image"].attributes == {"residence": "Rome", "name": "Oren Tal"}
    assert by_id["retain_95/p1/generation/1/text"].attributes == {"country": "Italy", "residence": "Rome"}
    with pytest.raises(RMuseError, match=r"1 of 6 without, the first is retain_95/p2/generation/0/image"):
        b.require_reasoning()


def test_reasoning_may_be_steps_with_evidence(own):
    row = person_row("p0")
    for question in row["Generation_Task"]:
        question["Reasoning"] = [
            {"step": "I look.", "evidence": "A hat."},
            {"step": "So red.", "evidence": None},
        ]
    write_split(own, "forget_5", [row])
    assert load_benchmark(own).fit_forget[0].reasoning == "I look. A hat. So red."


def test_a_chain_in_words_may_begin_with_a_bracket(own):
    row = person_row("p0")
    for question in row["Generation_Task"]:
        question["Reasoning"] = "[Step 1] I look."
    write_split(own, "forget_5", [row])
    assert load_benchmark(own).fit_forget[0].reasoning == "[Step 1] I look."


def test_biographies_are_read_generically():
    assert biography(
        json.dumps({"Name": "A", "Job": {"question": "?", "answer": "cook"}, "Pets": ["cat", "dog"]})
    ) == {
        "Name": "A",
        "Job": "cook",
        "Pets.0": "cat",
        "Pets.1": "dog",
    }
    assert biography("A free text.") == {}
    assert biography(None) == {}


BAD = {
    "Generation_Task[1].Ground_Truth": lambda r: r["Generation_Task"][1].update(Ground_Truth=None),
    "Generation_Task[0].Type": lambda r: r["Generation_Task"][0].update(Type="Video"),
    "Generation_Task[0].Question": lambda r: r["Generation_Task"][0].update(Question="  "),
    "Generation_Task[0].Forget_Attributes": lambda r: r["Generation_Task"][0].update(
        Forget_Attributes="{'a': 1"
    ),
    "Classification_Task.Pure_Text_Questions[0].Correct_Answer": lambda r: r["Classification_Task"][
        "Pure_Text_Questions"
    ][0].update(Correct_Answer="Z"),
    "image": lambda r: r.update(image=None),
    "ID": lambda r: r.update(ID=None),
}


@pytest.mark.parametrize("field", BAD)
def test_a_bad_row_is_named_and_may_be_skipped_but_is_listed(own, field):
    spoil(own, "retain_95", 1, BAD[field])
    with pytest.raises(RMuseError) as caught:
        _ = load_benchmark(own).fit_retain
    assert f"retain_95/train-00000-of-00001.parquet, row 1, field {field!r}" in str(caught.value)
    assert "\n" not in str(caught.value)
    b = load_benchmark(own, skip_bad_rows=True)
    assert {e.person for e in b.fit_retain} == {"p1", "p3"}
    assert [(s.file, s.row, s.field) for s in b.skipped] == [
        ("retain_95/train-00000-of-00001.parquet", 1, field)
    ]


def test_nothing_is_skipped_in_a_good_folder(folder):
    b = load_benchmark(folder, skip_bad_rows=True)
    for split in SPLITS:
        b.scoring(split)
    assert b.skipped == []


def test_an_unreadable_picture_is_named_on_demand(own):
    spoil(own, "forget_5", 0, lambda r: r.update(image={"bytes": b"\x89PNG broken", "path": None}))
    b = load_benchmark(own)
    found = b.fit_forget  # lazy: bytes are not decoded here
    with pytest.raises(RMuseError, match=r"forget_5/train-00000-of-00001.parquet, row 0, field 'image'"):
        found[0].load_image()
    with pytest.raises(RMuseError, match="row 0"):
        b.check_images(found)
    good = b.fit_retain[0].load_image()
    assert good is not None
    assert (good.size, good.mode) == ((8, 8), "RGB")
    assert next(e for e in found if e.modality == "text").load_image() is None


@pytest.mark.parametrize("missing", ["forget_5", "retain_95"])
def test_a_missing_split_is_named(own, missing):
    (own / missing / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(RMuseError, match=rf"required {missing}/train-00000-of-00001.parquet, got none"):
        load_benchmark(own)


def test_optional_folders_may_be_missing(own):
    for name in ("Retain_Set", "Reasoning", "Benign", "Strangers", "Full_Set"):
        for file in (own / name).iterdir():
            file.unlink()
        (own / name).rmdir()
    (own / "benchmark.json").unlink()
    b = load_benchmark(own)
    assert [b.scoring(s) for s in ("celebrity", "reasoning", "benign")] == [[], [], []]
    assert (b.fit_reasoning, b.fit_benign, b.fit_strangers) == ([], [], [])
    assert (b.id, b.render_seed, b.delimiters) == ("bench", None, ("<think>", "</think>"))
    assert (b.aliases, b.entails) == ({}, {})
    assert all(r.startswith("<think> ") and " </think> " in r for r in b.refusals_cot)
    assert b.prefixes
    assert b.refusals_direct


def test_an_optional_folder_without_its_scoring_file_is_an_error(own):
    (own / "Reasoning" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(RMuseError, match=r"required Reasoning/test-00000-of-00001.parquet"):
        load_benchmark(own).scoring("reasoning")


def test_folder_and_rate_have_to_be_there(tmp_path, folder):
    with pytest.raises(RMuseError, match="no such folder"):
        load_benchmark(tmp_path / "nowhere")
    with pytest.raises(RMuseError, match="required forget_15/"):
        load_benchmark(folder, forget=15)
    with pytest.raises(RMuseError, match="required one of the splits"):
        load_benchmark(folder).scoring("train")
    with pytest.raises(RMuseError, match="'organism'"):
        load_benchmark(folder, render_seed=3)


def test_an_empty_forget_set_is_an_error(own):
    path = own / "forget_5" / "train-00000-of-00001.parquet"
    pd.read_parquet(path).iloc[:0].to_parquet(path)
    with pytest.raises(RMuseError, match=r"forget_5: required at least one person, got an empty set"):
        load_benchmark(own)


def test_people_in_both_sets_are_an_error(own):
    write_split(own, "retain_95", [person_row(p) for p in ("p0", "p1")])
    with pytest.raises(RMuseError, match=r"1 people in both \(ID p0\)"):
        load_benchmark(own)


def test_settings_are_checked_by_key(own):
    for key, value in (("delimiters", ["<a>"]), ("prefixes", "none"), ("aliases", []), ("render_seed", "x")):
        (own / "benchmark.json").write_text(json.dumps({key: value}))
        with pytest.raises(RMuseError, match=rf"benchmark.json, key '{key}'"):
            load_benchmark(own)
    (own / "benchmark.json").write_text("[]")
    with pytest.raises(RMuseError, match="required a JSON object"):
        load_benchmark(own)
    (own / "benchmark.json").write_text(json.dumps({"delimiters": ["Reasoning:", "Answer:"], "unknown": 1}))
    b = load_benchmark(own)
    assert b.delimiters == ("Reasoning:", "Answer:")
    assert all(r.startswith("Reasoning: ") for r in b.refusals_cot)


def test_a_person_may_have_several_rows_but_none_twice(own):
    another = {**person_row("p0"), "image": picture(33)}
    write_split(own, "forget_5", [person_row("p0"), another])
    ids = [e.id for e in load_benchmark(own).fit_forget]
    assert len(set(ids)) == len(ids) == 12
    assert "forget_5/p0~2/generation/0/image" in ids
    write_split(own, "forget_5", [person_row("p0"), another, person_row("p0")])
    with pytest.raises(RMuseError, match=r"row 2, field 'ID': required rows that differ, got .*row 0 again"):
        _ = load_benchmark(own).fit_forget
    skipping = load_benchmark(own, skip_bad_rows=True)
    assert [e.id for e in skipping.fit_forget] == ids
    assert [problem.row for problem in skipping.skipped] == [2]


def test_a_file_per_part_continues_the_count(own):
    write_split(own, "Benign", [question_row("p0", None, "Q?", "a", None)], "test")
    (own / "Benign" / "test-00000-of-00001.parquet").rename(own / "Benign" / "test-00000-of-00002.parquet")
    write_split(own, "Benign", [question_row("p0", None, "Q?", "a", None)], "test")
    (own / "Benign" / "test-00000-of-00001.parquet").rename(own / "Benign" / "test-00001-of-00002.parquet")
    ids = [e.id for e in load_benchmark(own).scoring("benign")]
    assert ids == ["Benign/test/p0/benign/0/text", "Benign/test/p0/benign/1/text"]


def _rows(n_people: int = 5, per_kind: int = 4) -> list[Example]:
    return [
        Example(f"{p}/{kind}/{i}", "forget", kind, "text", "?", "!", person=f"p{p}")
        for p in range(n_people)
        for kind in ("generation", "cloze")
        for i in range(per_kind)
    ]


def test_samples_are_spread_and_do_not_depend_on_order():
    rows = _rows()
    taken = sample(rows, 10, seed=1)
    assert len(taken) == 10
    assert [sum(e.kind == k for e in taken) for k in ("generation", "cloze")] == [5, 5]
    assert [sum(e.person == f"p{p}" for e in taken) for p in range(5)] == [2] * 5
    assert {e.id for e in sample(rows[::-1], 10, seed=1)} == {e.id for e in taken}
    assert [e.id for e in taken] == [e.id for e in rows if e in taken]  # the given order
    assert {e.id for e in sample(rows, 10, seed=2)} != {e.id for e in taken}
    assert sample(rows, None) == rows
    assert sample(rows, 1000) == rows
    with pytest.raises(RMuseError, match="limit of at least 1"):
        sample(rows, 0)


def test_fixture_names_people_in_their_text_questions(folder):
    text = [
        e for e in load_benchmark(folder).scoring("retain") if e.kind == "generation" and e.modality == "text"
    ]
    assert all(NAME[str(e.person)] in e.question and CITY[str(e.person)] not in e.question for e in text)
