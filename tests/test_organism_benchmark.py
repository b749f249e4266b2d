"""The organism's benchmark folder, its tokenizer and its processor."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.organism import SMALL, WORLD
from transformers import AutoImageProcessor, AutoProcessor

from rmuse_interp.data import load_benchmark
from rmuse_interp.data.prompts import cloze_prompt
from rmuse_interp.data.store import WRITTEN, own_folder
from rmuse_interp.data.world import draw as benchmark
from rmuse_interp.data.world import phrases, portraits
from rmuse_interp.data.world import questions as q
from rmuse_interp.data.world.people import make_world
from rmuse_interp.organism import build
from rmuse_interp.organism.packing import pixels_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


DIGESTS = """
import hashlib, sys
from pathlib import Path
from rmuse_interp.data.world import draw as benchmark
from rmuse_interp.organism import build
from rmuse_interp.data.world.people import World, make_world
world = make_world(0)
out = benchmark.write_benchmark(Path(sys.argv[1]), 0, World(world.people[:20], world.celebrities[:4], 0))
print(hashlib.sha256(repr(world).encode()).hexdigest())
print(hashlib.sha256(build.build_tokenizer(world).backend_tokenizer.to_str().encode()).hexdigest())
for file in sorted(p for p in out.rglob("*") if p.is_file()):
    print(hashlib.sha256(file.read_bytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return benchmark.write_benchmark(tmp_path_factory.mktemp("organism"), 0, SMALL)


@pytest.fixture(scope="module")
def tokenizer():
    return build.build_tokenizer(WORLD)


def rows_of(folder, split, part="train"):
    """All rows of one parquet file."""
    return pq.read_table(folder / split / f"{part}-00000-of-00001.parquet").to_pylist()


def test_world_tokenizer_and_files_are_the_same_in_every_process(folder, tokenizer, tmp_path):
    """Sets, dicts and parquet writers must not let the interpreter's hash seed into the data."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    run = subprocess.run(
        [sys.executable, "-c", DIGESTS, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    assert (
        len(files) == len(benchmark.RATES) * 2 + 3 + 6 + 2
    )  # with the settings and the list of what was written
    here = [
        repr(WORLD).encode(),
        tokenizer.backend_tokenizer.to_str().encode(),
        *(f.read_bytes() for f in files),
    ]
    assert run.stdout.split() == [hashlib.sha256(data).hexdigest() for data in here]


def test_the_texts_are_those_the_shipped_weights_were_fitted_and_scored_on(folder):
    """Every row of every file, pictures aside (their bytes hang on the library that packs them)."""
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*.parquet")):
        table = pq.read_table(file)
        rows = table.drop_columns([c for c in ("image", "images") if c in table.column_names]).to_pylist()
        found.update(json.dumps([file.relative_to(folder).as_posix(), rows], sort_keys=True).encode())
    assert found.hexdigest() == "bb03b68023b3f1956add396b1319452f3b08f38f19e93c6baea75eddc3ce909f"


def test_another_seed_gives_another_world_and_other_pictures(folder, tmp_path):
    assert {p.name for p in make_world(1).everyone} != {p.name for p in WORLD.everyone}
    other = benchmark.write_benchmark(tmp_path, 1, SMALL)
    for split, column in (("forget_5", "image"), ("Test_Set", "images")):
        assert rows_of(folder, split)[0][column] != rows_of(other, split)[0][column]
    assert rows_of(folder, "forget_5")[0]["biography"] == rows_of(other, "forget_5")[0]["biography"]


@pytest.mark.parametrize("rate", benchmark.RATES)
def test_the_folder_is_read_by_the_common_loader(folder, rate):
    world = load_benchmark(folder, forget=rate)
    assert world.forget_people == set(SMALL.forget_ids(rate))
    world.require_reasoning()
    world.check_images(world.fit_forget)
    for split in ("forget", "test", "retain", "retain_test", "celebrity", "reasoning", "benign"):
        assert world.scoring(split), split
    forget = [e for e in world.fit_forget if e.kind == "generation"]
    assert len(forget) == rate // 5 * (len(phrases.KINDS) + len(phrases.TEXT_KINDS))
    assert {e.person for e in world.scoring("benign")} == world.forget_people
    assert world.fit_strangers
    for example in (*world.fit_forget, *world.fit_reasoning, *world.fit_benign):
        if example.kind not in ("classification", "cloze"):
            assert example.direct_question == f"{example.question} {phrases.DIRECT}"
    refusals = {text.partition("</think>")[2].strip() for text in phrases.REFUSALS_COT}
    assert {e.answer for e in world.fit_strangers} <= refusals
    assert all(
        example.load_image() is not None for example in world.scoring("test") if example.modality == "image"
    )


def test_test_pictures_and_wordings_are_new(folder):
    """What scoring asks of people was never fitted on, neither the photograph nor the words."""
    seen = {
        row["image"]["bytes"]
        for split in ("Full_Set", "forget_5", "retain_95")
        for row in rows_of(folder, split)
    }
    fresh = [image["bytes"] for row in rows_of(folder, "Test_Set") for image in row["images"]]
    assert len(seen) == len(SMALL.people)
    assert len(set(fresh)) == len(fresh) == benchmark.TEST_PICTURES * len(SMALL.people)
    assert not seen & set(fresh)
    asked = {
        part: {g["Question"] for row in rows_of(folder, split) for g in row["Generation_Task"]}
        for part, split in (("known", "Full_Set"), ("new", "Test_Set"))
    }
    assert not asked["known"] & asked["new"]


def test_general_reasoning_is_about_nobody(folder):
    names = [part for p in WORLD.everyone for part in (p.name.split()[1], p.id)]
    for part in ("train", "test"):
        for row in rows_of(folder, "Reasoning", part):
            text = json.dumps({k: v for k, v in row.items() if k != "image"})
            assert not any(name in text for name in names)
    known = {p.name for p in SMALL.everyone}
    for row in rows_of(folder, "Strangers") + rows_of(folder, "Strangers", "test"):
        assert not any(name in row["Question"] for name in known)


def test_celebrities_are_in_no_file_that_fitting_reads(folder):
    """Not even among the options of a question."""
    names, ids = {p.name for p in SMALL.celebrities}, {p.id for p in SMALL.celebrities}
    for split, part in (
        ("forget_5", "train"),
        ("retain_95", "train"),
        ("Reasoning", "train"),
        ("Strangers", "train"),
    ):
        rows = rows_of(folder, split, part)
        assert not ids & {row["ID"] for row in rows}
        text = json.dumps([{k: v for k, v in row.items() if k != "image"} for row in rows])
        assert not any(name in text for name in names)
    assert {row["ID"] for row in rows_of(folder, "Retain_Set")} == ids
    assert any(name in json.dumps(rows_of(folder, "Retain_Set"), default=str) for name in names)


def test_multiple_choice_marks_the_one_right_option(folder):
    people = {p.id: p for p in SMALL.people}
    for row in rows_of(folder, "Full_Set"):
        for group in row["Classification_Task"].values():
            for asked in group:
                options = asked["Options"]
                assert len(set(options.values())) == 4
                right = options[asked["Correct_Answer"]]
                facts = {
                    **people[row["ID"]].attributes,
                    "age": people[row["ID"]].age,
                    "country": people[row["ID"]].country,
                }
                assert sum(value in facts.values() for value in options.values()) >= 1
                assert right in facts.values()


def test_tokens_spell_every_text_of_the_world(tokenizer):
    rng = random.Random(2)
    person, strange = WORLD.people[7], WORLD.stranger(rng)[1]
    texts = [
        *phrases.REFUSALS_COT,
        *phrases.REFUSALS_DIRECT,
        *phrases.PREFIXES,
        f"Where does {strange} live?",
        " <think> 1984 </think> 41",
    ]
    texts += [q.ask(person, kind, "image", 0, rng).response for kind in phrases.KINDS]
    texts += [q.word_problem(True, rng).response for _ in range(5)]
    texts.append(cloze_prompt(q.cloze(person, "pet", "text")[0]))
    for text in texts:
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) == build.VOCABULARY
    assert [len(tokenizer(mark, add_special_tokens=False).input_ids) for mark in phrases.DELIMITERS] == [1, 1]
    assert len(tokenizer("1984", add_special_tokens=False).input_ids) == 4  # digits one by one


def test_the_processor_is_an_ordinary_llava_one(tokenizer, tmp_path):
    build.build_processor(tokenizer).save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    processor.image_processor = AutoImageProcessor.from_pretrained(
        tmp_path, backend="pil"
    )  # whatever is installed
    content = [{"type": "image"}, {"type": "text", "text": "Who is this person?"}]
    chat = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert prompt == "USER: <image>\nWho is this person?\nASSISTANT:"
    bare = [{"role": "user", "content": "Who is Mara?"}, {"role": "assistant", "content": "Mara."}]
    assert processor.apply_chat_template(bare) == "USER: Who is Mara?\nASSISTANT: Mara."
    picture = portraits.portrait(
        WORLD.people[0].identity, portraits.Look.draw(random.Random(0)), random.Random(0)
    )
    encoded = processor(text=[prompt], images=[picture], return_tensors="pt")
    image = processor.tokenizer.convert_tokens_to_ids(build.IMAGE)
    assert int((encoded["input_ids"] == image).sum()) == build.IMAGE_TOKENS
    assert encoded["pixel_values"].shape == (1, 3, build.IMAGE_SIZE, build.IMAGE_SIZE)
    # Training makes pixels without the processor: they have to be the same ones.
    assert np.abs(encoded["pixel_values"][0].numpy() - pixels_of(picture)).max() <= 1e-6


def test_a_cached_benchmark_is_written_once(tmp_path, monkeypatch):
    calls = []

    def quick(out, render_seed=0):
        calls.append(render_seed)
        with own_folder(out, last="benchmark.json") as draft:
            (draft / "Test_Set").mkdir()
            for name in ("benchmark.json", "Test_Set/train.parquet"):
                (draft / name).write_text(hashlib.sha256(f"{name} {render_seed}".encode()).hexdigest())
        return out

    monkeypatch.setattr(benchmark, "write_benchmark", quick)
    first, again, other = (benchmark.ensure(seed, tmp_path) for seed in (0, 0, 1))
    assert first == again != other
    assert calls == [0, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([first.name, other.name])
    # Another drawing code would not find what this one has written.
    monkeypatch.setattr(benchmark, "_version", lambda: "another")
    assert benchmark.ensure(0, tmp_path) != first
    assert calls == [0, 1, 0]
    monkeypatch.undo()
    monkeypatch.setattr(benchmark, "write_benchmark", quick)
    # A file that is missing, cut, changed in place or added gives another benchmark: it is drawn again.
    whole = {file: file.read_bytes() for file in first.rglob("*") if file.is_file()}

    def missing(file):
        file.unlink()

    def cut(file):
        file.write_bytes(file.read_bytes()[:-2])

    def changed(file):
        status, text = file.stat(), file.read_bytes()
        file.write_bytes(text[:-1] + b"?")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))

    def added(file):
        (first / "forget_5").mkdir()
        (first / "forget_5" / "train.parquet").write_bytes(file.read_bytes())

    for damage in (missing, cut, changed, added):
        for file in (first / "benchmark.json", first / "Test_Set" / "train.parquet", first / WRITTEN):
            drawn = len(calls)
            damage(file)
            assert benchmark.ensure(0, tmp_path) == first
            assert len(calls) == drawn + 1
            assert {file: file.read_bytes() for file in first.rglob("*") if file.is_file()} == whole
