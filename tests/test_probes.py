"""Probes: a planted leak is found where it was planted and nowhere else; shuffled labels, noise and words are not."""

import numpy as np
import pytest

from rmuse_interp import RMuseError
from rmuse_interp.diagnostics import probes as p
from rmuse_interp.diagnostics.verdicts import conclusion, judge
from rmuse_interp.maths.statistics import Estimate

PEOPLE, PHOTOS, PER_PHOTO, D, LAYERS = 8, 3, 4, 120, 5


def world(people=PEOPLE, photos=PHOTOS, per_photo=PER_PHOTO):
    """Labels, groups and clusters of people seen in several photographs, with several questions to each."""
    ids = [f"p{i}/f{j}/q{k}" for i in range(people) for j in range(photos) for k in range(per_photo)]
    person = {i: i.split("/")[0] for i in ids}
    return person, {i: i.rpartition("/")[0] for i in ids}, person


def states(task, seed, planted=0.0, d=D):
    """Noise that photographs share, with a direction per class where something is planted."""
    rng = np.random.default_rng(seed)
    photo = np.unique([i.rpartition("/")[0] for i in task.ids], return_inverse=True)[1]
    shared = rng.standard_normal((photo.max() + 1, d))
    found = rng.standard_normal((len(task.ids), d)) + shared[photo]
    return found + planted * rng.standard_normal((len(task.classes), d))[task.labels]


def scores(task, planted_at, strength=1.0):
    layers = [states(task, 10 + layer, strength * (layer in planted_at)) for layer in range(LAYERS)]
    return {layer: p.score([p.probe(task, h)[0]]) for layer, h in enumerate(layers)}


@pytest.fixture(scope="module")
def task():
    return p.crossed(*world(), name="identity")


# Folds.


@pytest.mark.parametrize("photos", [2, 3, 7])
def test_no_group_is_trained_and_tested_on(photos):
    labels, groups, clusters = world(photos=photos)
    found = p.crossed(labels, groups, clusters)
    assert sorted(found.tested.tolist()) == list(range(len(labels)))
    for train, test in found.folds:
        assert not {groups[found.ids[i]] for i in train} & {groups[found.ids[i]] for i in test}
        assert set(found.labels[test]) <= set(found.labels[train])


def test_wordings_that_people_share_are_kept_together():
    ids = [f"p{i}/w{j}" for i in range(6) for j in range(4)]
    person, wording = {i: i.split("/")[0] for i in ids}, {i: i.split("/")[1] for i in ids}
    found = p.crossed(person, wording, person)
    for train, test in found.folds:
        assert not {wording[found.ids[i]] for i in train} & {wording[found.ids[i]] for i in test}


def test_the_one_division_that_there_is_is_found():
    """Every person has one of five known wordings and one of two others: only known against other divides them all."""
    ids = [f"p{i}/{j}" for i in range(10) for j in ("known", "other")]
    person = {i: i.split("/")[0] for i in ids}
    wording = {i: f"other{int(i[1]) % 2}" if i.endswith("other") else f"known{int(i[1]) % 5}" for i in ids}
    found = p.crossed(person, wording, person)
    assert {frozenset(found.ids[i].split("/")[1] for i in test) for _, test in found.folds} == {
        frozenset({"known"}),
        frozenset({"other"}),
    }
    together = {i: "one" if person[i] == "p0" else wording[i] for i in ids}
    with pytest.raises(RMuseError, match="1 of 'p0'"):
        p.crossed(person, together, person)


def test_shuffled_labels_keep_their_numbers_and_their_groups(task):
    photo = np.unique([i.rpartition("/")[0] for i in task.ids], return_inverse=True)[1]
    assert len(task.shuffles) == p.SHUFFLES
    for dealt in task.shuffles:
        assert (np.bincount(dealt) == np.bincount(task.labels)).all()
        assert all(len(set(dealt[photo == one])) == 1 for one in range(photo.max() + 1))
        assert (dealt != task.labels).any()


# Controls.


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_a_planted_leak_is_found_in_its_layer_only(task, layer):
    found = scores(task, {layer})
    assert [at for at, one in found.items() if one.readable] == [layer]
    assert found[layer].accuracy > 0.8
    assert found[layer].selectivity > 0.6
    for at, one in found.items():
        assert one.chance == 1 / PEOPLE
        assert one.low <= one.accuracy <= one.high
        if at != layer:
            assert one.low <= one.chance <= one.high or abs(one.selectivity) < 0.1


def test_shuffled_labels_are_at_chance_even_where_a_leak_is_planted(task):
    found = p.score([p.probe(task, states(task, 1, planted=2.0))[0]])
    assert found.accuracy == 1.0
    assert abs(found.shuffled - found.chance) < 0.06
    assert found.shuffled_low <= found.chance <= found.shuffled_high
    assert found.selectivity > 0.8
    # All right: resampling knows no spread, Wilson's interval of eight people does.
    assert 0.6 < found.low < found.high == 1.0


def test_random_features_are_at_chance(task):
    found = [p.score([p.random_features(task, D, seed)]) for seed in range(10)]
    assert abs(np.mean([one.accuracy for one in found]) - 1 / PEOPLE) < 0.04
    assert not any(one.readable for one in found)


def test_memorised_photographs_are_no_knowledge_of_the_person(task):
    """States that tell every photograph, and nothing that a person's photographs share."""
    rng = np.random.default_rng(0)
    photo = np.unique([i.rpartition("/")[0] for i in task.ids], return_inverse=True)[1]
    h = 3 * rng.standard_normal((photo.max() + 1, D))[photo] + 0.1 * rng.standard_normal((len(photo), D))
    assert not p.score([p.probe(task, h)[0]]).readable
    labels, _, clusters = world()
    leaky = p.crossed(
        labels, {i: i for i in labels}, clusters
    )  # each example its own group: photographs on both sides
    assert p.score([p.probe(leaky, h)[0]]).accuracy > 0.9


def test_words_that_tell_are_found_and_equal_words_are_not(task):
    same = dict.fromkeys(task.ids, (1, 2, 3))
    telling = {i: (1, 2, 10 + int(k)) for i, k in zip(task.ids, task.labels, strict=True)}
    assert p.score([p.probe(task, p.bag_of_words(task, telling))[0]]).accuracy == 1.0
    assert not p.score([p.probe(task, p.bag_of_words(task, same))[0]]).readable


def test_the_old_probe_fails_where_the_information_has_moved(task):
    before = states(task, 1, planted=2.0)
    turned = before @ np.linalg.qr(np.random.default_rng(3).standard_normal((D, D))).Q
    own, moved = (p.score([one]) for one in p.probe(task, before, turned))
    again = p.score(p.probe(task, turned))
    assert own.readable
    assert again.readable
    assert not moved.readable


# Probes across people.


def test_a_value_is_read_off_people_never_seen():
    train = {f"r{i}": "ab"[i % 2] for i in range(40)}
    test = {f"f{i}": "ab"[i % 2] for i in range(12)} | {"f12": "c"}
    clusters = {i: i for i in (*train, *test)}
    found = p.across(train, test, clusters, name="city")
    assert found.classes == ("a", "b")
    assert "f12" not in found.ids
    assert len(found.tested) == 12
    assert p.score(p.probe(found, states_of(found, 2.0))).readable
    assert not p.score(p.probe(found, states_of(found, 0.0))).readable
    with pytest.raises(RMuseError, match="1 are in both"):
        p.across(train, {**test, "r99": "a"}, {**clusters, "r99": "r0"})
    with pytest.raises(RMuseError, match="share with 2 or more others"):
        p.across(train, {"f0": "a", "f1": "c"}, clusters, name="city")


def states_of(task, planted):
    rng = np.random.default_rng(4)
    return rng.standard_normal((len(task.ids), D)) + planted * rng.standard_normal((2, D))[task.labels]


# Verdicts.


def at(*layers):
    one = p.Score(1.0, 0.8, 1.0, 0.1, 0.1, 0.0, 0.2, 80, 8)
    none = p.Score(0.1, 0.0, 0.2, 0.1, 0.1, 0.0, 0.2, 80, 8)
    return {layer: one if layer in layers else none for layer in range(6)}


def less(*layers):
    lost, kept = Estimate(0.5, 0.3, 0.7, 40, 8), Estimate(0.0, -0.1, 0.1, 40, 8)
    return {layer: lost if layer in layers else kept for layer in range(6)}


def test_the_verdict_says_from_which_block_on():
    hidden = judge(at(1, 2, 3, 4, 5), less(3, 4, 5), at(1, 2, 3))
    assert (hidden.kind, hidden.hidden_from, hidden.back_from, hidden.after) == ("hidden", 3, None, (1, 2, 3))
    back = judge(at(1, 2, 3, 4, 5), less(2, 3), at(1, 2, 4, 5))
    assert (back.kind, back.hidden_from, back.back_from) == ("hidden", 2, 4)
    lost, sight = judge(at(2, 3), less(3), at(2)), judge(at(2, 3), less(4), at(1, 2, 3))
    unread, anew = judge(at(), less(3), at(3)), judge({}, {}, at(4))
    across = judge(at(5), less(5), {})
    kinds = [v.kind for v in (lost, sight, unread, anew, across)]
    assert kinds == ["lost here", "in sight", "unread", "read anew", "lost here"]
    assert [v.hidden_from for v in (lost, sight, unread, anew, across)] == [3, None, None, None, 5]
    said = conclusion({"prompt_end": back, "image": sight, "recall": across, "own": anew})
    assert said.startswith(
        "hidden, not gone: read-outs of before read less at prompt_end from block 2 on (back at block 4)"
    )
    assert "recall from block 5 on;" in said
    assert said.endswith("prompt_end (blocks 1–2, 4–5); image (blocks 1–3); own (blocks 4)")
    assert conclusion({"recall": across}).endswith("that does not show it gone")
    assert conclusion({"image": sight}).startswith("in sight")
    assert conclusion({"answer": unread}).startswith("not readable before")
    with pytest.raises(RMuseError, match="same blocks"):
        judge(at(1), {0: Estimate(0.0, 0.0, 0.0, 1, 1)}, at(1))


def test_a_leak_that_is_turned_away_is_hidden_and_not_gone(task):
    """The whole chain: states, probes, scores, drops, verdict. Turned at blocks 2 and 3, planted from 1 to 3."""
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((D, D))).Q
    befores = {layer: states(task, 10 + layer, 2.0 * (1 <= layer <= 3)) for layer in range(4)}
    afters = {layer: h @ turn if layer >= 2 else h for layer, h in befores.items()}
    was, now, drops = {}, {}, {}
    for layer, h in befores.items():
        own, moved = p.probe(task, h, afters[layer])
        was[layer], drops[layer] = p.score([own]), p.drop([own], [moved])
        now[layer] = p.score(p.probe(task, afters[layer]))
    found = judge(was, drops, now)
    assert (found.kind, found.hidden_from, found.before, found.after) == ("hidden", 2, (1, 2, 3), (1, 2, 3))
    # Taken out instead of turned away: no probe finds it at the block, and that is all that is said.
    noise = states(task, 30)
    own, moved = p.probe(task, befores[3], noise)
    lost = judge({3: p.score([own])}, {3: p.drop([own], [moved])}, {3: p.score(p.probe(task, noise))})
    assert (lost.kind, lost.hidden_from, lost.after) == ("lost here", 3, ())
    assert drops[0].low <= 0 <= drops[0].high


# Bad input.


def test_too_few_groups_say_how_many_are_needed():
    labels, groups, clusters = world(photos=1)
    with pytest.raises(RMuseError, match=r"at least 2 groups .* 16 examples in all, got 32 with 1 of 'p0'"):
        p.crossed(labels, groups, clusters)
    with pytest.raises(RMuseError, match="identity: at least 2 classes were required, got 'p0' alone"):
        p.crossed(*world(people=1), name="identity")
    with pytest.raises(RMuseError, match="got no example"):
        p.crossed({}, {}, {})
    with pytest.raises(RMuseError, match="at least one probe"):
        p.score([])


def test_states_of_other_examples_are_refused(task):
    with pytest.raises(RMuseError, match="task's 96 examples"):
        p.probe(task, np.zeros((5, D)))
    some = p.probe(task, states(task, 1))[0]
    other = p.probe(p.crossed(*world(people=3)), states(p.crossed(*world(people=3)), 1))[0]
    with pytest.raises(RMuseError, match="ids differ"):
        p.drop([some], [other])
