"""The other formats, written as they are published; formats told by content; memory; the hub, from a local server."""

import json
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from helpers import parquet_fixture as fixture
from helpers.parquet_fixture import png

from rmuse_interp import RMuseError
from rmuse_interp.data import SPLITS, load_benchmark
from rmuse_interp.data import reader as reading
from rmuse_interp.data.fields import states


@pytest.fixture
def umu(tmp_path) -> Path:
    return fixture.write_splits(tmp_path / "umu", fixture.umu_row)


@pytest.fixture
def training(tmp_path) -> Path:
    return fixture.write_splits(tmp_path / "training", fixture.training_row)


@pytest.fixture
def rtofu(tmp_path) -> Path:
    return fixture.write_rtofu(tmp_path / "rtofu")


def rewrite(root: Path, folder: str, row: dict) -> None:
    """One split with this row alone."""
    fixture.write_split(root, folder, [row])


def test_training_files_give_picture_questions(training):
    benchmark = load_benchmark(training)
    assert benchmark.format.name == "MLLMU-Bench training"
    first, second = benchmark.fit_forget
    assert first.id == "forget_5/p0/generation/0/image"
    assert (first.question, first.answer) == ("Where does this person live?", "Mara Venn lives in Oslo.")
    assert (second.answer, second.image, second.modality) == ("Mara Venn", png(0), "image")
    assert (first.reasoning, first.attributes, first.options) == (None, {}, None)
    assert {e.person for e in benchmark.fit_retain} == {"p1", "p2", "p3"}
    assert [benchmark.scoring(split) for split in ("test", "retain_test", "celebrity")] == [[], [], []]


def test_umu_bench_is_read_with_its_misspelt_key(umu):
    benchmark = load_benchmark(umu)
    assert benchmark.format.name == "UMU-Bench"
    by_id = {e.id: e for e in benchmark.fit_forget}
    tasks = ("generation/qa0", "generation/0", "cloze/0", "classification/0")
    assert sorted(by_id) == sorted(f"forget_5/p0/{task}/{how}" for task in tasks for how in ("image", "text"))
    choice = by_id["forget_5/p0/classification/0/image"]
    assert (choice.answer, choice.options["B"], choice.image) == ("B", "Oslo", png(0))
    cloze = by_id["forget_5/p0/cloze/0/text"]
    assert (cloze.question, cloze.answer, cloze.image) == ("Where does Mara Venn live?", "Oslo", None)
    assert cloze.attributes == {"Residence": "Oslo"}  # its biography is a literal as well
    assert by_id["forget_5/p0/generation/0/image"].attributes == {"Name": "Mara Venn", "Residence": "Oslo"}
    assert by_id["forget_5/p0/generation/qa0/text"].answer == "Mara Venn's home is Oslo."


def test_the_right_spelling_is_read_as_well_but_not_both(umu):
    row = fixture.umu_row("p0")
    rewrite(umu, "forget_5", {**row, "Cloze": row["Cloze"].replace("muitimodal", "multimodal")})
    assert "forget_5/p0/cloze/0/image" in {e.id for e in load_benchmark(umu).fit_forget}
    rewrite(umu, "forget_5", {**row, "Cloze": repr({"muitimodal": {}, "multimodal": {}})})
    with pytest.raises(RMuseError, match=r"row 0, field 'Cloze': .*muitimodal and multimodal, got both"):
        _ = load_benchmark(umu).fit_forget


def test_literals_are_never_run(umu, tmp_path):
    mark = tmp_path / "ran"
    rewrite(
        umu,
        "forget_5",
        {**fixture.umu_row("p0"), "MM_QA": f"__import__('pathlib').Path({str(mark)!r}).touch()"},
    )
    with pytest.raises(RMuseError, match=r"row 0, field 'MM_QA': required a Python literal"):
        _ = load_benchmark(umu).fit_forget
    assert not mark.exists()


BAD_UMU = {
    "Classify[muitimodal][residence].answer": lambda r: r.update(
        Classify=r["Classify"].replace("B. Oslo", "E. Oslo")
    ),
    "Generation[muitimodal][residence].question": lambda r: r.update(
        Generation=r["Generation"].replace("'Where does this person live?'", "''")
    ),
    "UM_QA[answer].q1": lambda r: r.update(UM_QA="{'question': {'q1': 'Where?'}, 'answer': {}}"),
    "Cloze": lambda r: r.update(Cloze="{'uni': {}}"),
    "image": lambda r: r.update(image=None),
}


@pytest.mark.parametrize("field", BAD_UMU)
def test_faults_name_the_columns_own_fields(umu, field):
    row = fixture.umu_row("p0")
    BAD_UMU[field](row)
    rewrite(umu, "forget_5", row)
    with pytest.raises(RMuseError) as caught:
        _ = load_benchmark(umu).fit_forget
    assert f"forget_5/train-00000-of-00001.parquet, row 0, field {field!r}" in str(caught.value)


@pytest.mark.parametrize("metadata", ["[]", "[{'Question': 1}]", '[{"Question": "Q?"}]', None])
def test_bad_metadata_is_named_and_may_be_skipped(training, metadata):
    rows = [fixture.training_row(p) for p in ("p1", "p2")]
    rows[1]["metadata"] = metadata
    fixture.write_split(training, "retain_95", rows)
    with pytest.raises(RMuseError, match=r"retain_95/train-00000-of-00001.parquet, row 1, field 'metadata"):
        _ = load_benchmark(training).fit_retain
    skipping = load_benchmark(training, skip_bad_rows=True)
    assert {e.person for e in skipping.fit_retain} == {"p1"}
    assert [(p.row, p.field.partition("[")[0]) for p in skipping.skipped] == [(1, "metadata")]


def test_rtofu_is_read_split_by_split(rtofu):
    benchmark = load_benchmark(rtofu)
    assert benchmark.format.name == "R-TOFU"
    first, second = benchmark.fit_forget
    assert (first.id, first.modality, first.person) == (
        "forget_5/forget-1/generation/0/text",
        "text",
        "forget-1",
    )
    assert second.id == "forget_5/forget-1~2/generation/0/text"
    assert first.reasoning == fixture.rtofu_line("p0")["cot"]
    assert benchmark.has_reasoning
    benchmark.require_reasoning()
    assert {e.person for e in benchmark.fit_retain} == {"retain-00000", "retain-00001", "retain-00002"}
    (test,) = benchmark.scoring("test")
    assert test.question == "In which city is Mara Venn at home?"
    assert (test.answer, test.reasoning, test.person) == ("Mara Venn lives in Oslo.", None, "forget-1")
    assert test.paraphrased_answer == "Mara Venn is at home in Oslo."
    assert test.paraphrased_question == fixture.rtofu_line("p0")["question"]
    assert test.perturbed_answers == ("Mara Venn is at home in Cairo.", "Mara Venn is at home in Delhi.")
    assert len(benchmark.scoring("retain_test")) == 2
    assert [e.question for e in benchmark.scoring("celebrity")] == ["In which city is Ada Grand at home?"]
    ids = [e.id for split in SPLITS for e in benchmark.scoring(split)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("cot", ["", "  \n"])
def test_an_empty_chain_of_thought_is_an_error_where_it_is_fitted_on(rtofu, cot):
    fixture.write_lines(
        rtofu / "forget05.json",
        [fixture.rtofu_line("p0"), fixture.rtofu_line("p0", question="Who?", cot=cot)],
    )
    with pytest.raises(RMuseError, match=r"forget05.json, row 1, field 'cot': required a chain of thought"):
        _ = load_benchmark(rtofu).fit_forget
    assert len(load_benchmark(rtofu, skip_bad_rows=True).fit_forget) == 1


@pytest.mark.parametrize("chain", ["", "   ", []])
def test_an_empty_chain_in_format_five_is_an_error_and_null_is_none(tmp_path, chain):
    def emptied(row):
        row["Generation_Task"][1]["Reasoning"] = chain if chain != [] else "[]"
        return row

    folder = fixture.write_benchmark(tmp_path, emptied)
    with pytest.raises(
        RMuseError, match=r"row 0, field 'Generation_Task\[1\].Reasoning': required a chain of thought"
    ):
        _ = load_benchmark(folder).fit_forget


def test_jsonl_faults_name_the_line(rtofu):
    path = rtofu / "forget05.json"
    path.write_text(json.dumps(fixture.rtofu_line("p0")) + "\n{broken\n")
    with pytest.raises(RMuseError, match=r"forget05.json, line 1: required a JSON object in UTF-8"):
        load_benchmark(rtofu)
    skipping = load_benchmark(rtofu, skip_bad_rows=True)
    assert len(skipping.fit_forget) == 1
    assert [(p.file, p.row) for p in skipping.skipped] == [("forget05.json", 1)]
    path.write_bytes(b'{"task_id": "1", "question": "\xe9"}\n')
    with pytest.raises(RMuseError, match=r"forget05.json, line 0: required a JSON object in UTF-8"):
        load_benchmark(rtofu)
    line = fixture.rtofu_line("p0")
    del line["answer"]
    fixture.write_lines(path, [line])
    with pytest.raises(RMuseError, match=r"forget05.json, row 0, field 'answer': required the key 'answer'"):
        _ = load_benchmark(rtofu).fit_forget


def test_the_same_question_twice_is_an_error(rtofu):
    fixture.write_lines(rtofu / "forget05.json", [fixture.rtofu_line("p0")] * 2)
    with pytest.raises(RMuseError, match=r"row 1, field 'question': required rows that differ"):
        _ = load_benchmark(rtofu).fit_forget


def test_questions_to_forget_and_to_retain_are_an_error(rtofu):
    fixture.write_lines(rtofu / "retain95.json", [fixture.rtofu_line(p) for p in ("p0", "p1")])
    with pytest.raises(
        RMuseError, match=r"disjoint forget_5 and retain_95, got 1 questions in both \('Where does Mara"
    ):
        load_benchmark(rtofu)


def test_wrong_columns_are_told_with_what_the_formats_have(training):
    fixture.write_split(training, "forget_5", [{"ID": "p0", "image": fixture.picture(0), "text": "?"}])
    with pytest.raises(
        RMuseError, match=r"forget_5/.*required the columns of a known format .*got ID, image, text"
    ):
        load_benchmark(training)
    row = fixture.training_row("p0")
    del row["ID"]
    fixture.write_split(training, "forget_5", [row])
    with pytest.raises(RMuseError, match=r"required the column 'ID', got"):
        load_benchmark(training)


def test_what_could_be_two_formats_is_an_error(training, rtofu, tmp_path):
    fixture.write_split(training, "forget_5", [{**fixture.training_row("p0"), **fixture.umu_row("p0")}])
    with pytest.raises(RMuseError, match=r"got those of MLLMU-Bench training \(metadata\) and UMU-Bench"):
        load_benchmark(training)
    mixed = fixture.write_splits(tmp_path / "mixed", fixture.training_row)
    fixture.write_split(mixed, "retain_95", [fixture.umu_row("p1")])
    with pytest.raises(
        RMuseError, match=r"required one format, got MLLMU-Bench training \(forget_5/.*UMU-Bench"
    ):
        load_benchmark(mixed)
    fixture.write_split(rtofu, "forget_5", [fixture.training_row("p0")])
    with pytest.raises(
        RMuseError, match=r"required one format, got forget_5/train.* and forget05.json for forget_5"
    ):
        load_benchmark(rtofu)


def test_what_a_format_lacks_is_told_with_what_mends_it(training, umu):
    for folder in (training, umu):
        with pytest.raises(RMuseError, match=r"required a 'Reasoning' .*`rmuse data annotate`.*--traces own"):
            load_benchmark(folder).require_reasoning()
    load_benchmark(umu).require_attributes()
    with pytest.raises(
        RMuseError, match=r"MLLMU-Bench training.*required 'Forget_Attributes' or a biography"
    ):
        load_benchmark(training).require_attributes()
    for path in (training / "retain_95").iterdir():
        path.unlink()
    with pytest.raises(RMuseError, match=r"required retain_95/train-.*got none"):
        load_benchmark(training)


def test_nested_columns_come_back_from_pandas_as_numpy_arrays(tmp_path):
    folder = fixture.write_benchmark(tmp_path)
    before = load_benchmark(folder).fit_forget
    path = folder / "forget_5" / "train-00000-of-00001.parquet"
    frame = pd.read_parquet(path)
    assert type(frame["Generation_Task"][0]).__name__ == "ndarray"
    frame.to_parquet(path)
    assert load_benchmark(folder).fit_forget == before
    assert (
        len(reading.fields.as_list(frame["Mask_Task"][0], "Mask_Task")) == 2
    )  # and so do arrays as they are


@pytest.mark.parametrize("name", ["山田 花子", "Ольга Крылова", "محمد الأحمد", "Ngọc Ánh", "สมชาย ใจดี"])
def test_names_in_any_script_are_found_in_answers(tmp_path, name):
    def renamed(row):
        row["biography"] = json.dumps({"Name": name}, ensure_ascii=False)
        row["Mask_Task"] = [{"Type": "Pure_Text", "Question": "__?", "Ground_Truth": f"…{name}!"}]
        return row

    folder = fixture.write_benchmark(tmp_path, renamed)
    (cloze,) = [e for e in load_benchmark(folder).fit_forget if e.kind == "cloze"]
    assert cloze.attributes == {"Name": name}


def test_values_are_found_as_words_of_their_own():
    assert states("彼は東京に住んでいます。", "東京")
    assert states("서울에 산다", "서울")
    assert states("JOSÉ MORENO", unicodedata.normalize("NFD", "José Moreno"))
    assert not states("a romantic", "Roma")
    assert not states("в Москвариуме", "Москва")
    assert not states("anything", " ")


def test_answers_of_fifty_kilobytes_are_kept_whole(rtofu, umu):
    long = "Mara Venn. " * 4600
    fixture.write_lines(rtofu / "forget05.json", [fixture.rtofu_line("p0", answer=long, cot=long)])
    (example,) = load_benchmark(rtofu).fit_forget
    assert (example.answer, len(example.reasoning)) == (long, len(long.strip()))
    row = fixture.umu_row("p0")
    row["MM_QA"] = repr({"question": {"q1": "Who?"}, "answer": {"q1": long}})
    rewrite(umu, "forget_5", row)
    assert load_benchmark(umu).fit_forget[0].answer == long
