"""The small world: the same on every machine, people apart by construction, and a benchmark without spoilers."""

import hashlib
import json
import os
import random
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoProcessor

from rmuse_interp.data import load_benchmark
from rmuse_interp.data.world import draw as benchmark
from rmuse_interp.data.world import portraits
from rmuse_interp.data.world import questions as q
from rmuse_interp.data.world.people import (
    CITIES,
    FACTORS,
    N_CELEBRITIES,
    N_PEOPLE,
    YEAR,
    World,
    distance,
    make_world,
    random_identity,
)
from rmuse_interp.organism import build
from rmuse_interp.organism.packing import pixels_of

ROOT = Path(__file__).resolve().parent.parent
WORLD = make_world(0)
SMALL = World(WORLD.people[:20], WORLD.celebrities[:4], 0)
"""Twenty people and four celebrities, so that a benchmark is written in about a second."""
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
    assert len(files) == len(benchmark.RATES) * 2 + 3 + 6 + 1
    here = [
        repr(WORLD).encode(),
        tokenizer.backend_tokenizer.to_str().encode(),
        *(f.read_bytes() for f in files),
    ]
    assert run.stdout.split() == [hashlib.sha256(data).hexdigest() for data in here]


def test_another_seed_gives_another_world_and_other_pictures(folder, tmp_path):
    assert {p.name for p in make_world(1).everyone} != {p.name for p in WORLD.everyone}
    other = benchmark.write_benchmark(tmp_path, 1, SMALL)
    for split, column in (("forget_5", "image"), ("Test_Set", "images")):
        assert rows_of(folder, split)[0][column] != rows_of(other, split)[0][column]
    assert rows_of(folder, "forget_5")[0]["biography"] == rows_of(other, "forget_5")[0]["biography"]


def test_everybody_has_an_id_and_a_name_of_their_own():
    everyone = WORLD.everyone
    assert (len(WORLD.people), len(WORLD.celebrities)) == (N_PEOPLE, N_CELEBRITIES)
    assert len({p.id for p in everyone}) == len(everyone)
    assert len({p.name for p in everyone}) == len({p.name.split()[1] for p in everyone}) == len(everyone)
    assert [p.celebrity for p in everyone] == [False] * N_PEOPLE + [True] * N_CELEBRITIES
    assert all(len(p.identity) == len(FACTORS) for p in everyone)
    assert all(
        0 <= value < size for p in everyone for value, size in zip(p.identity, FACTORS.values(), strict=True)
    )


def test_people_are_apart_but_for_declared_look_alikes():
    near = {}
    for one, two in combinations(WORLD.everyone, 2):
        if (gap := distance(one.identity, two.identity)) < 3:
            near[one.id, two.id] = gap
    assert set(near.values()) == {2}
    assert len(near) >= 10
    # A look-alike stands right behind whom it resembles, and nobody has two.
    assert all(int(two[1:]) == int(one[1:]) + 1 for one, two in near)
    assert len({name for pair in near for name in pair}) == 2 * len(near)


def test_strangers_resemble_nobody_and_share_no_surname():
    rng = random.Random(0)
    surnames = {p.name.split()[1] for p in WORLD.everyone}
    reduced = WORLD.without(WORLD.forget_ids(15))
    for world in (WORLD, reduced):  # the gold standard's strangers stay apart from those it never met
        for _ in range(60):
            face, name = world.stranger(rng)
            assert min(distance(face, p.identity) for p in WORLD.everyone) >= 3
            assert name.split()[1] not in surnames


def test_forget_sets_are_nested_and_some_have_a_retained_look_alike():
    five, ten, fifteen = (WORLD.forget_ids(rate) for rate in (5, 10, 15))
    assert (len(set(five)), len(set(ten)), len(set(fifteen))) == (10, 20, 30)
    assert set(five) < set(ten) < set(fifteen)
    for forget in (five, ten, fifteen):
        kept = [p for p in WORLD.people if p.id not in forget]
        twins = [
            p.id
            for p in WORLD.people
            if p.id in forget and any(distance(p.identity, k.identity) == 2 for k in kept)
        ]
        assert len(twins) >= 2
    without = WORLD.without(five)
    assert len(without.people) == 190
    assert without.celebrities == WORLD.celebrities
    assert not {p.id for p in without.people} & set(five)


def test_derived_attributes_follow_from_known_ones():
    for person in WORLD.everyone:
        assert int(person.age) == YEAR - int(person.attributes["birth_year"])
        assert person.country == CITIES[person.attributes["city"]]


def portrait(identity, look, seed=0):
    return np.asarray(portraits.portrait(identity, look, random.Random(seed)), dtype=float)


def test_a_portrait_is_a_function_of_face_look_and_randomness():
    look, face = portraits.Look(None, False, "red", "blue"), WORLD.people[0].identity
    first = portrait(face, look)
    assert first.shape == (portraits.SIZE, portraits.SIZE, 3)
    assert np.array_equal(first, portrait(face, look))
    assert np.abs(first - portrait(face, look, seed=1)).mean() > 3  # pose, light, noise and crop


@pytest.mark.parametrize("factor", FACTORS)
def test_every_factor_of_a_face_shows_under_every_look(factor):
    """Also below hat and glasses, in 48 pixels: what cannot be seen cannot be an identity."""
    at = list(FACTORS).index(factor)
    rng = random.Random(factor)
    for look in (portraits.Look(None, False, "red", "blue"), portraits.Look("green", True, "red", "blue")):
        face = list(random_identity(rng))
        seen = []
        for value in range(FACTORS[factor]):
            face[at] = value
            seen.append(pixels_of(portraits.portrait(tuple(face), look, random.Random(0))))
        # More than a few pixels clearly change; light and noise are the same draw.
        gaps = [(np.abs(one - two).max(axis=0) > 0.15).sum() for one, two in combinations(seen, 2)]
        assert min(gaps) >= 4


@pytest.mark.parametrize(
    ("change", "least"),
    [
        ({"hat": "green"}, 100),
        ({"hat": "yellow"}, 100),
        ({"glasses": True}, 50),
        ({"clothes": "yellow"}, 300),
        ({"background": "purple"}, 1000),
    ],
)
def test_every_part_of_a_look_shows_on_every_face(change, least):
    plain = {"hat": None, "glasses": False, "clothes": "red", "background": "blue"}
    for person in WORLD.people[:6]:
        base = portrait(person.identity, portraits.Look(**plain))
        other = portrait(person.identity, portraits.Look(**{**plain, **change}))
        assert (np.abs(base - other).max(axis=2) > 40).sum() > least


def test_looks_are_drawn_anew_and_never_hide_in_the_background():
    rng = random.Random(0)
    looks = [portraits.Look.draw(rng) for _ in range(300)]
    assert len(set(looks)) > 100
    assert all(look.background not in (look.hat, look.clothes) for look in looks)
    assert {look.hat for look in looks} == {None, *portraits.COLOURS}


def all_questions(held_out, seed=0):
    """Every wording about one person, and many draws of the rest."""
    rng, person = random.Random(seed), WORLD.people[3]
    found = {
        q.ask(person, kind, modality, wording, rng).question
        for kind in q.KINDS
        for modality in ("image", "text")
        for wording in q.wording_range(kind, held_out)
        for _ in range(12)
    }
    for _ in range(1500):
        found |= {
            q.word_problem(held_out, rng).question,
            q.about_scene(q.draw_scene(rng), held_out, rng).question,
            q.benign(portraits.Look.draw(rng), rng.choice(q.BENIGN_KINDS), held_out, rng).question,
        }
    return found


def test_held_out_wordings_are_met_nowhere_in_training():
    assert not all_questions(False) & all_questions(True)
    assert all(len(words) - q.N_HELD_OUT >= 8 for words in q.WORDINGS.values())
    assert all(len(set(words)) == len(words) for words in q.WORDINGS.values())


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("kind", q.KINDS)
def test_reasoning_tells_what_its_question_would_leak(kind, modality):
    rng = random.Random(0)
    for person in WORLD.people[:40]:
        item = q.ask(person, kind, modality, 0, rng)
        assert item.attributes
        assert all(value in item.reasoning for value in item.attributes.values())
        assert (item.attributes.get("name") == person.name) == (modality == "image" or kind == "name")
        assert item.response == f"<think> {item.reasoning} </think> {item.answer}"
        # A pictured person is not named in the question.
        assert (person.name.split()[1] in item.question) == (modality == "text")


def test_general_reasoning_is_right():
    rng = random.Random(1)
    for _ in range(400):
        scene = q.draw_scene(rng)
        item = q.about_scene(scene, rng.random() < 0.5, rng)
        shapes = [s for s in portraits.SHAPES if s in item.question]
        if item.kind == "count":
            assert item.answer == str(scene.count(shapes[0]))
        elif item.kind == "colour":
            assert {c for s, c in scene.items if s == shapes[0]} == {item.answer}
        else:
            one, two = (scene.count(s) for s in shapes)
            assert item.answer == ("equal" if one == two else f"{shapes[0] if one > two else shapes[1]}s")
        words = q.word_problem(rng.random() < 0.5, rng)
        numbers = [int(w.strip("?,.:")) for w in words.question.split() if w.strip("?,.:").isdigit()]
        expected = {
            "add": sum(numbers),
            "subtract": numbers[0] - numbers[1],
            "larger": (min if "smaller" in words.question else max)(numbers),
        }[words.kind]
        assert int(words.answer) == expected >= 0
        assert words.answer in words.reasoning


@pytest.mark.parametrize("rate", benchmark.RATES)
def test_the_folder_is_read_by_the_common_loader(folder, rate):
    world = load_benchmark(folder, forget=rate)
    assert world.forget_people == set(SMALL.forget_ids(rate))
    world.require_reasoning()
    world.check_images(world.fit_forget)
    for split in ("forget", "test", "retain", "retain_test", "celebrity", "reasoning", "benign"):
        assert world.scoring(split), split
    forget = [e for e in world.fit_forget if e.kind == "generation"]
    assert len(forget) == rate // 5 * (len(q.KINDS) + len(q.TEXT_KINDS))
    assert {e.person for e in world.scoring("benign")} == world.forget_people
    assert world.fit_strangers
    for example in (*world.fit_forget, *world.fit_reasoning, *world.fit_benign):
        if example.kind not in ("classification", "cloze"):
            assert example.direct_question == f"{example.question} {q.DIRECT}"
    refusals = {text.partition("</think>")[2].strip() for text in q.REFUSALS_COT}
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
        *q.REFUSALS_COT,
        *q.REFUSALS_DIRECT,
        *q.PREFIXES,
        f"Where does {strange} live?",
        " <think> 1984 </think> 41",
    ]
    texts += [q.ask(person, kind, "image", 0, rng).response for kind in q.KINDS]
    texts += [q.word_problem(True, rng).response for _ in range(5)]
    texts.append(q.cloze_prompt(q.cloze(person, "pet", "text")[0]))
    for text in texts:
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) == build.VOCABULARY
    assert [len(tokenizer(mark, add_special_tokens=False).input_ids) for mark in q.DELIMITERS] == [1, 1]
    assert len(tokenizer("1984", add_special_tokens=False).input_ids) == 4  # digits one by one


def test_the_processor_is_an_ordinary_llava_one(tokenizer, tmp_path):
    build.build_processor(tokenizer).save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
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
        (out / "benchmark.json").write_text(hashlib.sha256(str(render_seed).encode()).hexdigest())
        return out

    monkeypatch.setattr(benchmark, "write_benchmark", quick)
    first, again, other = (benchmark.ensure(seed, tmp_path) for seed in (0, 0, 1))
    assert first == again != other
    assert calls == [0, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([first.name, other.name])
    # Without its settings, what is there is no benchmark: drawn again, not taken for one without aliases.
    (first / "benchmark.json").unlink()
    assert benchmark.ensure(0, tmp_path) == first
    assert (first / "benchmark.json").is_file()
    assert calls == [0, 1, 0]
    # Another drawing code would not find what this one has written.
    monkeypatch.setattr(benchmark, "_version", lambda: "another")
    assert benchmark.ensure(0, tmp_path) != first
    assert calls == [0, 1, 0, 0]
