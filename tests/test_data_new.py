"""`rmuse data new`: a table of people and their photographs become a benchmark."""

import codecs
import json
import shutil
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import parquet_fixture as fixture
from helpers import tiny
from helpers.checked import FIRST, problems, truncated
from helpers.commands import refused, rmuse
from helpers.parquet_fixture import png

from rmuse_interp import RMuseError
from rmuse_interp.data import load_benchmark
from rmuse_interp.data.check import check
from rmuse_interp.data.new import write_new
from rmuse_interp.data.people import read_people
from rmuse_interp.data.wordings import KNOWN, N_HELD_OUT, wording

pytestmark = pytest.mark.slow


@pytest.fixture
def table(tmp_path) -> tuple[Path, Path]:
    """A table of three people, one to retain, and their photographs under three kinds of file name."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "mara_venn.png").write_bytes(png(1))
    (images / "mara_venn_2.png").write_bytes(png(2))
    (images / unicodedata.normalize("NFD", "José Núñez.png")).write_bytes(png(3))  # as macOS writes it
    (images / "x1.png").write_bytes(png(4))
    path = tmp_path / "people.csv"
    path.write_text(
        "Name,Residence,Job,Blood type,Image,Forget,Aliases\n"
        'Mara Venn,Oslo,baker,A+,,yes,"Marlene|M. Venn"\n'
        "José Núñez,Rome,pilot,,,,\n"
        "山田花子,東京,nurse,B+,x1.png,no,\n",
        encoding="utf-8",
    )
    return path, images


@pytest.fixture
def retain(tmp_path) -> Path:
    return fixture.write_benchmark(tmp_path / "retain")


def test_a_link_out_of_the_folder_of_photographs_is_not_followed(table, tmp_path):
    (tmp_path / "private.png").write_bytes(png(9))
    photograph = table[1] / "mara_venn.png"
    photograph.unlink()
    photograph.symlink_to(tmp_path / "private.png")
    with pytest.raises(RMuseError, match="required a file below"):
        read_people(*table)


def made(table: tuple[Path, Path], retain: Path, out: Path, *more: object):
    return rmuse("data", "new", table[0], "--images", table[1], "--retain", retain, "--out", out, *more)


def test_a_table_of_people_becomes_a_benchmark(table, retain, tmp_path):
    out = tmp_path / "data"
    result = made(table, retain, out)
    assert result.exit_code == 0, result.output
    assert "2 to forget, 4 to retain" in result.stdout
    report = check(out)
    assert (report.format, report.problems) == ("RMLLMU-Bench", [])
    benchmark = load_benchmark(out)
    benchmark.require_reasoning()
    benchmark.require_attributes()
    people = set(benchmark.people)
    assert people == {"person-2", "person-3", "person-4", "p1", "p2", "p3"}
    assert benchmark.forget_people == {"person-2", "person-3"}
    assert benchmark.aliases["Mara Venn"] == ("Marlene", "M. Venn")
    assert benchmark.entails["Oslo"] == ("Norway",)  # the retain data's settings are taken over
    mine = [e for e in benchmark.fit_forget if e.person == "person-2"]
    assert {(e.kind, e.modality) for e in mine} == {
        (kind, how) for kind in ("generation", "cloze", "classification") for how in ("image", "text")
    }
    home = next(e for e in mine if e.kind == "generation" and e.modality == "image" and e.answer == "Oslo")
    assert home.reasoning == "This is Mara Venn. Mara Venn lives in Oslo."
    assert home.attributes == {"city": "Oslo", "name": "Mara Venn"}
    assert home.direct_question == f"{home.question} Answer directly."
    assert home.image == png(1)
    blood = next(e for e in mine if e.kind == "cloze" and e.modality == "text" and e.answer == "A+")
    assert blood.question == "The blood type of Mara Venn is __."
    choice = next(e for e in mine if e.kind == "classification" and "blood" in e.question)
    assert set(choice.options.values()) == {"A+", "B+"}
    assert {e.image for e in benchmark.scoring("test") if e.person == "person-2" and e.image} == {png(2)}
    assert {e.image for e in benchmark.scoring("test") if e.person == "person-3" and e.image} == {png(3)}
    assert {e.person for e in benchmark.scoring("retain_test")} == {"person-4", "p1", "p2", "p3"}
    assert {e.person for e in benchmark.scoring("benign")} == {"person-2", "person-3"}
    assert {e.person for e in benchmark.fit_benign} == people
    assert benchmark.fit_reasoning == load_benchmark(retain).fit_reasoning


def test_what_is_retained_is_copied_as_it_stands(table, retain, tmp_path):
    assert made(table, retain, tmp_path / "data").exit_code == 0
    before = {e.person: e.question for e in load_benchmark(retain).fit_retain}
    after = {e.person: e.question for e in load_benchmark(tmp_path / "data").fit_retain if e.person in before}
    assert after == before


def test_wordings_of_the_test_set_are_held_out(table, retain, tmp_path):
    assert made(table, retain, tmp_path / "data").exit_code == 0
    benchmark = load_benchmark(tmp_path / "data")

    def asked(split):
        found = [e for e in benchmark.scoring(split) if e.kind == "generation" and e.modality == "text"]
        return {e.question for e in found if e.person in benchmark.forget_people}

    assert asked("forget")
    assert asked("test")
    assert not asked("forget") & asked("test")
    every = [question for words in KNOWN.values() for question in words.questions]
    assert len(set(every)) == len(every)  # no question has two answers
    for words in (*KNOWN.values(), wording("shoe size {EU}")):
        assert len(set(words.questions)) == len(words.questions) > 2 * N_HELD_OUT - 1
        for text in (*words.questions, words.cloze):
            assert "Ann" in text.format(s="Ann", p="Ann's")
        assert "{" not in words.fact.format(n="Ann", v="x").replace("{EU}", "")


def test_the_same_seed_writes_the_same_benchmark(table, retain, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        assert made(table, retain, tmp_path / name, "--seed", seed).exit_code == 0
    one, two, three = (load_benchmark(tmp_path / n).fit_forget for n in ("one", "two", "three"))
    assert one == two
    assert one != three


def test_who_stands_in_the_table_is_not_retained(table, retain, tmp_path):
    path, images = table
    (images / "Oren Tal.png").write_bytes(png(7))
    path.write_text(path.read_text(encoding="utf-8") + "Oren Tal,Rome,cook,0-,,,\n", encoding="utf-8")
    result = made(table, retain, tmp_path / "data")
    assert "left out of the retain data, for their names stand in the table: p1" in result.stderr
    assert "p1" not in load_benchmark(tmp_path / "data").people
    assert problems(tmp_path / "data") == []


def test_an_existing_benchmark_is_replaced_as_a_whole_or_not_at_all(table, retain, tmp_path):
    out = tmp_path / "data"
    assert made(table, retain, out, "--forget", 10).exit_code == 0
    assert "holds a benchmark" in refused("data", "new", table[0], "--images", table[1], "--out", out)
    assert made(table, retain, out, "--overwrite").exit_code == 0
    assert not (out / "forget_10").exists()
    assert problems(out) == []


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
@pytest.mark.parametrize("name", ["benchmark/train.parquet", "notes.txt"])
def test_files_of_others_are_never_removed(table, retain, tmp_path, more, name):
    """Nor is anything written among them; beside a benchmark of our own they are in the way as well."""
    mine = tmp_path / "data" / name
    for _ in range(2):
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_bytes(b"mine")
        before = {path for path in (tmp_path / "data").rglob("*") if path.is_file()}
        said = refused("data", "new", table[0], "--images", table[1], "--out", tmp_path / "data", *more)
        assert "an empty folder" in said or "holds a benchmark" in said
        assert {path for path in (tmp_path / "data").rglob("*") if path.is_file()} == before
        assert mine.read_bytes() == b"mine"
        mine.unlink()
        if not any(before - {mine}):
            assert made(table, retain, tmp_path / "data").exit_code == 0


@pytest.mark.parametrize(
    ("encoded", "more"),
    [
        (lambda text: text.encode("utf-8-sig"), ()),
        (lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"), ()),
        (lambda text: text.replace(",", ";").encode(), ()),
        (lambda text: text.replace(",", "\t").replace("\n", "\r\n").encode(), ()),
        (lambda text: text.replace("山田花子", "Ana").replace("東京", "Lima").encode("cp1252"), ("cp1252",)),
    ],
)
def test_tables_are_read_as_spreadsheets_write_them(table, encoded, more):
    path, images = table
    text = path.read_text(encoding="utf-8").replace('"Marlene|M. Venn"', "Marlene|M. Venn")
    path.write_bytes(encoded(text))
    people, _ = read_people(path, images, *more)
    assert [p.name for p in people][:2] == ["Mara Venn", "José Núñez"]
    assert people[0].facts == {"residence": "Oslo", "job": "baker", "blood type": "A+"}
    assert [len(p.photographs) for p in people] == [2, 1, 1]
    assert [p.forget for p in people] == [True, True, False]


def test_another_encoding_is_told_with_its_row(table):
    path, images = table
    path.write_bytes("name,city\nAnn,Oslo\nJosé,Rome\n".encode("cp1252"))
    with pytest.raises(RMuseError, match=r"people.csv, row 3: required text in UTF-8.*--encoding"):
        read_people(path, images)
    with pytest.raises(RMuseError, match="unknown encoding"):
        read_people(path, images, "latin-99")


@pytest.mark.parametrize(
    "row",
    [
        ("name", ",Oslo,baker,A+,x1.png,yes,", "required a name"),
        (
            "name",
            "mara  venn,Oslo,baker,A+,x1.png,yes,",
            "one row per person, got 'mara venn' of row 2 again",
        ),
        ("name", "Ann Lee,,,,x1.png,yes,", "at least one fact"),
        ("name", "Ann Lee,Oslo,baker,A+,x1.png,yes,,more", "at most 7 cells, got 8"),
        ("forget", "Ann Lee,Oslo,baker,A+,x1.png,perhaps,", "yes or no, got 'perhaps'"),
        ("image", "Ann Lee,Oslo,baker,A+,,yes,", "required a photograph of 'Ann Lee'"),
        ("image", "Ann Lee,Oslo,baker,A+,y.png,yes,", "'y.png': no such file"),
        ("image", "Ann Lee,Oslo,baker,A+,../people.csv,yes,", "required a file below"),
        (
            "image",
            "Ann Lee,Oslo,baker,A+,broken.png,yes,",
            "broken.png: a picture that Pillow can read was required",
        ),
    ],
)
def test_a_bad_row_is_named_and_may_be_skipped_but_is_listed(table, retain, tmp_path, row):
    field, text, reason = row
    path, images = table
    (images / "broken.png").write_bytes(truncated())
    path.write_text(path.read_text(encoding="utf-8") + text + "\n", encoding="utf-8")
    said = refused("data", "new", path, "--images", images, "--retain", retain, "--out", tmp_path / "data")
    assert f"people.csv, row 5, field {field!r}: " in said
    assert reason in said
    assert not (tmp_path / "data").exists()
    result = made(table, retain, tmp_path / "data", "--skip-bad-rows")
    assert result.exit_code == 0, result.output
    assert f"skipped people.csv, row 5, field {field!r}" in result.stderr
    assert load_benchmark(tmp_path / "data").forget_people == {"person-2", "person-3"}


def test_tables_that_are_none_are_refused(table, retain, tmp_path):
    path, images = table

    def new(text: str) -> str:
        path.write_text(text, encoding="utf-8")
        return refused(
            "data", "new", path, "--images", images, "--retain", retain, "--out", tmp_path / "data"
        )

    assert "required a column 'name', got who, city" in new("who,city\nAnn,Oslo\n")
    assert "required a column 'name', got an empty table" in new("")
    assert "one column per kind of fact, got 'city' and 'home'" in new("name,city,home\nAnn,Oslo,Rome\n")
    assert "'city' more than once" in new("name,city,City\nAnn,Oslo,Rome\n")
    assert "required one column of photographs" in new("name,city,photo,image\nAnn,Oslo,x1.png,x1.png\n")
    assert "at least one person to forget" in new("name,city,image,forget\nAnn,Oslo,x1.png,no\n")
    missing = ("--retain", retain, "--out", tmp_path / "data")
    assert "no such file" in refused("data", "new", tmp_path / "x.csv", "--images", images, *missing)
    assert "no such folder" in refused("data", "new", path, "--images", tmp_path / "x", *missing)


def test_retain_data_of_other_formats_is_refused(table, tmp_path):
    path, images = table

    def new(folder: Path) -> str:
        return refused(
            "data", "new", path, "--images", images, "--retain", folder, "--out", tmp_path / "data"
        )

    assert "got UMU-Bench (retain_95/" in new(fixture.write_splits(tmp_path / "umu", fixture.umu_row))
    assert "retain_95/ (or another rate) or Full_Set/" in new(images)
    assert "no such folder" in new(tmp_path / "nowhere")
    own = fixture.write_benchmark(tmp_path / "data")
    before = problems(own)
    same = ("--retain", own, "--out", own, "--overwrite")
    assert "another folder than the retain data's" in refused("data", "new", path, "--images", images, *same)
    assert problems(own) == before == []
    shutil.rmtree(own)
    taken = fixture.write_benchmark(tmp_path / "taken")
    text = path.read_text(encoding="utf-8").replace("Name,", "id,Name,").replace("José", "p1,José")
    path.write_text(text.replace("Mara", "m,Mara").replace("山", "y,山"), encoding="utf-8")
    (images / "p1.png").write_bytes(png(1))
    assert "required other IDs than the table's, got 'p1'" in new(taken)


def test_one_person_with_one_fact_nobody_shares_is_enough(tmp_path, retain):
    images = tmp_path / "images"
    images.mkdir()
    (images / "Ann Lee.png").write_bytes(png(1))
    (tmp_path / "people.csv").write_text("name,email\nAnn Lee,ann@example.org\n")
    people, _ = read_people(tmp_path / "people.csv", images)
    result = write_new(people, retain, tmp_path / "data")
    assert any("no multiple choice about 'email'" in note for note in result.notes)
    assert any("1 of 1 people have one photograph" in note for note in result.notes)
    assert problems(tmp_path / "data") == []
    kinds = [(e.kind, e.modality) for e in load_benchmark(tmp_path / "data").fit_forget]
    assert ("classification", "image") in kinds  # about the name
    assert ("cloze", "text") in kinds


def test_a_benchmark_that_was_made_is_fitted_on(table, retain, tmp_path):
    assert made(table, retain, tmp_path / "data").exit_code == 0
    fit = rmuse(
        "fit",
        "--model",
        tiny.tiny_llava(),
        "--data",
        tmp_path / "data",
        "--limit",
        6,
        "--layers",
        "2-3",
        "--traces",
        "given",
        "--out",
        tmp_path / "bundle",
    )
    assert fit.exit_code == 0, fit.output
    assert (tmp_path / "bundle" / "rmuse.json").is_file()


@pytest.mark.stress
def test_the_generic_set_is_retained_where_no_other_is_named(tmp_path):
    """The organism's own people in a table: those are forgotten, the drawn ones are retained."""
    from rmuse_interp.data.world.draw import ensure

    images = tmp_path / "images"
    images.mkdir()
    lines = ["name,city,occupation"]
    forgotten = pq.read_table(ensure() / "forget_5" / FIRST).to_pylist()
    for row in forgotten[:2]:
        facts = json.loads(row["biography"])
        (images / f"{facts['name']}.png").write_bytes(row["image"]["bytes"])
        lines.append(f"{facts['name']},{facts['city']},{facts['occupation']}")
    (tmp_path / "people.csv").write_text("\n".join(lines))
    result = rmuse("data", "new", tmp_path / "people.csv", "--images", images, "--out", tmp_path / "data")
    assert result.exit_code == 0, result.output
    assert "name people that your model knows with --retain" in result.stderr
    assert "no problems" in rmuse("data", "check", tmp_path / "data").stdout
    benchmark = load_benchmark(tmp_path / "data")
    assert (len(benchmark.forget_people), len(benchmark.people)) == (2, 192)
    assert benchmark.fit_strangers
    fit = rmuse(
        "fit", "--data", tmp_path / "data", "--limit", 8, "--layers", "6", "--out", tmp_path / "bundle"
    )
    assert fit.exit_code == 0, fit.output
