"""The small world: the same on every machine, people apart by construction, and a benchmark without spoilers."""

import random
from itertools import combinations

import numpy as np
import pytest
from helpers.organism import WORLD

from rmuse_interp.data.world import phrases, portraits
from rmuse_interp.data.world import questions as q
from rmuse_interp.data.world.people import (
    CITIES,
    FACTORS,
    N_CELEBRITIES,
    N_PEOPLE,
    YEAR,
    distance,
    random_identity,
)
from rmuse_interp.organism.packing import pixels_of


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
        for kind in phrases.KINDS
        for modality in ("image", "text")
        for wording in q.wording_range(kind, held_out)
        for _ in range(12)
    }
    for _ in range(1500):
        found |= {
            q.word_problem(held_out, rng).question,
            q.about_scene(q.draw_scene(rng), held_out, rng).question,
            q.benign(portraits.Look.draw(rng), rng.choice(phrases.BENIGN_KINDS), held_out, rng).question,
        }
    return found


def test_held_out_wordings_are_met_nowhere_in_training():
    assert not all_questions(False) & all_questions(True)
    assert all(len(words) - phrases.N_HELD_OUT >= 8 for words in phrases.WORDINGS.values())
    assert all(len(set(words)) == len(words) for words in phrases.WORDINGS.values())


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("kind", phrases.KINDS)
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
