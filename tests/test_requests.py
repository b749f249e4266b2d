"""Requests to a fitted bundle, one person at a time: what moves, what stays to the bit, and how it is taken back."""

import json
import re
import shutil

import pytest
import torch
from helpers import tiny
from helpers.requests import KINDS, clusters, fits_by_kind, leaf

import rmuse_interp as rm
from rmuse_interp import RMuseError
from rmuse_interp.data import load_benchmark
from rmuse_interp.fitting import hashed
from rmuse_interp.fitting.exchange import exchanged, label_of, undone
from rmuse_interp.fitting.gathering import _cluster
from rmuse_interp.fitting.requests import (
    _states,
    decided,
    forget_people,
    forgotten,
    questions_about,
    restore_people,
)
from rmuse_interp.method.rmuse import RMuse
from rmuse_interp.parts.gates import Clusters, Gate, Read, RRSAlignment
from rmuse_interp.parts.part import all_same, to_record


@pytest.fixture(scope="module")
def fitted(lens, benchmark, evidence) -> dict[str, RMuse]:
    return fits_by_kind(lens, benchmark, evidence)


def test_a_request_reads_what_the_fit_reads(lens, benchmark, evidence, fitted):
    for modality in ("image", "text"):
        own, harmless = questions_about(benchmark, "p0", modality)
        found = evidence[modality]
        who = {i: name for i, name in found.people.items() if "~" not in i}
        assert {q.id for q in own} == {i for i in who if i in found.forget and who[i] == label_of("p0")}
        assert {q.id for q in harmless} == {i for i, name in who.items() if name == label_of("benign p0")}
        gate = leaf(fitted["vmf"], modality)
        states, _ = _states(lens, benchmark, "p0", 32, gate.reads, modality)
        mine = [i for i in found.forget if found.people[i] == label_of("p0")]
        assert len(states) == len(mine) >= len(own)
        again = gate.scorer.without_cluster(label_of("p0")).with_cluster(label_of("p0"), states)
        assert torch.allclose(again.forget[-1], gate.scorer.forget[0], atol=1e-4)
    assert any("~" in name for name in evidence["image"].forget)  # some of them disturbed
    assert len(questions_about(benchmark, "p0", "image")[1]) == 2
    assert questions_about(benchmark, "p0", "text")[1] == []
    assert {_cluster(e) for e in benchmark.fit_retain if e.person == "p3"} == {label_of("p3")}
    assert {_cluster(e) for e in benchmark.fit_benign if e.person == "p3"} == {label_of("benign p3")}


def strings(record):
    """All keys and strings of a record."""
    if isinstance(record, dict):
        return [said for pair in record.items() for part in pair for said in strings(part)]
    if isinstance(record, list):
        return [said for part in record for said in strings(part)]
    return [record] if isinstance(record, str) else []


@pytest.mark.parametrize("kind", KINDS)
def test_one_more_moves_one_cluster_and_nothing_else(kind, fitted, lens, benchmark):
    before = fitted[kind]
    kept = json.dumps(before.report)
    after = forget_people(before, lens, benchmark, ["p2"])
    assert json.dumps(before.report) == kept
    for modality in ("image", "text"):
        old, new = clusters(leaf(before, modality).scorer), clusters(leaf(after, modality).scorer)
        gone = {("other", label_of("p2"))}
        assert set(old) - set(new) == gone
        assert set(new) - set(old) == {("forget", label_of("p2"))}
        # Harmless questions about p2 are read anew, as those about people to forget are.
        fresh = {("other", label_of("benign p2"))}
        assert all(torch.equal(new[key], old[key]) for key in set(old) - gone - fresh)
        assert leaf(after, modality).threshold == leaf(before, modality).threshold
    assert after.subspaces is before.subspaces
    for one, other in zip(before.plan, after.plan, strict=True):
        assert all_same(rm.Plan([one.when(None)]), rm.Plan([other.when(None)]))
    assert after.report["people"] == hashed(["p0", "p1", "p2"])
    assert after.report["requests"] == [{"request": "forget", "person": label_of("p2")}]
    assert forgotten(after, benchmark) == ["p0", "p1", "p2"]
    # As a word: numbers are kept in base64, where any two letters come up.
    assert not [said for said in strings(after.report) if re.search(r"\bp2\b", said)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("first", "then", "person"),
    [
        (forget_people, restore_people, "p2"),
        (restore_people, forget_people, "p0"),
    ],
)
def test_the_opposite_request_brings_everything_back(
    kind, first, then, person, fitted, lens, benchmark, tmp_path
):
    before = fitted[kind]
    changed = first(before, lens, benchmark, [person])
    assert not all_same(before.plan, changed.plan)
    back = then(RMuse.load(changed.save(tmp_path), lens), lens, benchmark, [person])
    assert all_same(before.plan, back.plan)
    assert back.report["people"] == before.report["people"]
    assert back.report["undo"] == {}
    assert [one["request"] for one in back.report["requests"]] == [
        f.__name__.partition("_")[0] for f in (first, then)
    ]
    # Once more gives the same again: a person's reading does not depend on what came between.
    assert all_same(first(back, lens, benchmark, [person]).plan, changed.plan)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_requests_on_different_people_commute(kind, fitted, lens, benchmark):
    before = fitted[kind]
    one = restore_people(forget_people(before, lens, benchmark, ["p2"]), lens, benchmark, ["p0"])
    other = forget_people(restore_people(before, lens, benchmark, ["p0"]), lens, benchmark, ["p2"])
    assert forgotten(one, benchmark) == forgotten(other, benchmark) == ["p1", "p2"]
    back = forget_people(restore_people(one, lens, benchmark, ["p2"]), lens, benchmark, ["p0"])
    for modality in ("image", "text"):
        for left, right in ((one, other), (before, back)):
            mine, theirs = clusters(leaf(left, modality).scorer), clusters(leaf(right, modality).scorer)
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert set(back.report["undo"]) == set()


@pytest.mark.parametrize("kind", KINDS[:3])
def test_the_person_fires_when_forgotten_and_not_when_restored(kind, fitted, lens, benchmark):
    """A random model tells little of people: what is added must all fire where the threshold lets it, and no more."""
    before = fitted[kind]
    after = forget_people(before, lens, benchmark, ["p2"])
    plain = {m: len(questions_about(benchmark, "p2", m)[0]) for m in ("image", "text")}
    states = {m: _states(lens, benchmark, "p2", 32, leaf(before, m).reads, m)[0] for m in plain}
    for modality, own in states.items():
        old, new = leaf(before, modality).score(own), leaf(after, modality).score(own)
        assert bool((new > old).any())
        assert bool((new > old - 1e-4).all())
    counts = decided(after, lens, benchmark, "p2")
    assert set(counts) == {"image", "text", "harmless"}
    assert [n for _, n in counts.values()] == [plain["image"], 1, plain["text"]]
    assert counts["image"][0] == int(
        leaf(after).fires(states["image"][: plain["image"]]).sum()
    )  # disturbed ones last
    fired = sum(n for n, _ in counts.values())
    assert fired > sum(n for n, _ in decided(before, lens, benchmark, "p2").values())
    restored = restore_people(before, lens, benchmark, ["p0"])
    assert label_of("p0") in leaf(restored).scorer.other_labels
    mine = decided(restored, lens, benchmark, "p0")
    assert mine["image"][0] + mine["text"][0] < sum(
        decided(before, lens, benchmark, "p0")[m][0] for m in ("image", "text")
    )


class Sorted(Clusters):
    """A gate that keeps no order of its clusters: what it loses cannot be put back where it was."""

    def without_cluster(self, label, *, side="forget"):
        less = super().without_cluster(label, side=side)
        names = less.other_labels if side == "other" else less.labels
        order = sorted(range(len(names)), key=lambda i: names[i])
        tensor = less.others if side == "other" else less.forget
        return less._changed(
            side, [names[i] for i in order], {"others" if side == "other" else "forget": tensor[order]}
        )


def test_what_a_gate_cannot_give_back_is_read_again(fitted):
    gate = leaf(fitted["mahalanobis"]).scorer
    own, harmless = torch.randn(4, gate.forget.shape[1]), torch.randn(2, gate.forget.shape[1])
    settings, tensors = to_record(gate)
    names = sorted(gate.other_labels, reverse=True)
    order = [gate.other_labels.index(name) for name in names]
    tree = {**settings["settings"], "other_labels": names}
    sealed = Sorted(**tree, **{**tensors, "others": tensors["others"][order]})
    after, note = exchanged(sealed, "p2", (own, harmless), "forget")
    assert note["taken"][0]["held"] is None
    reads = []
    back = undone(after, note, lambda: reads.append(1) or (own, harmless))
    assert reads
    assert set(back.other_labels) == set(sealed.other_labels)
    assert back.labels == sealed.labels
    assert torch.equal(
        clusters(back)["other", label_of("p2")],
        gate.with_cluster("new", own, side="other").others[-1],
    )


def test_only_fitting_files_are_read(data, lens, fitted, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(data, own)
    for name in ("Test_Set", "Retain_Set", "Full_Set"):
        (own / name / "train-00000-of-00001.parquet").write_bytes(b"not parquet")
    for name in ("Reasoning", "Benign", "Strangers"):
        (own / name / "test-00000-of-00001.parquet").write_bytes(b"not parquet")
    after = forget_people(fitted["vmf"], lens, load_benchmark(own, forget=10), ["p3"])
    assert label_of("p3") in leaf(after, "text").scorer.labels


def test_gates_without_people_are_refused(fitted, lens, benchmark):
    one = fitted["vmf"]
    literal = Gate(RRSAlignment(one.subspaces.at("image", 3)[1].subspace), Read(1), -0.85)
    for plan in (
        one.plan.replace(**{"image.gate": literal}),
        one.plan.without("text.gate"),
        one.plan.replace(**{"text.gate": ~leaf(one, "text")}),
    ):
        with pytest.raises(RMuseError, match=r"one by one were required.*--by-person"):
            forget_people(RMuse(plan, one.subspaces, one.report), lens, benchmark, ["p2"])


def test_requests_that_cannot_be_met(fitted, lens, benchmark, data):
    one = fitted["vmf"]
    for call, ids, said in (
        (forget_people, ["p22"], r"4 people.*'p22'; is it 'p2'"),
        (forget_people, ["zoe"], "got 'zoe'$"),
        (forget_people, ["p0"], "'p0' is forgotten already"),
        (forget_people, ["p2", "p2"], "'p2' 2 times"),
        (forget_people, ["p2", "p3"], "one to retain, got 4 of 4"),
        (restore_people, ["p3"], "'p3' is not forgotten"),
        (restore_people, ["p0", "p1"], "the last, 'p1'"),
    ):
        with pytest.raises(RMuseError, match=said):
            call(one, lens, benchmark, ids)
    with pytest.raises(RMuseError, match="forget 10, not 5"):
        forget_people(one, lens, load_benchmark(data, forget=5), ["p2"])
    strange = RMuse(one.plan, one.subspaces, one.report | {"people": hashed(["p0", "x"])})
    with pytest.raises(RMuseError, match="1 others of 2"):
        forgotten(strange, benchmark)
    other = rm.load_model(tiny.tiny_llava(1))
    with pytest.raises(RMuseError, match="another model"):
        forget_people(one, other, benchmark, ["p2"])


def test_a_benchmark_says_who_is_forgotten(benchmark):
    view = benchmark.forgetting(["p3", "p0"])
    assert view.people == benchmark.people == ("p0", "p1", "p2", "p3")
    assert {e.person for e in view.fit_forget} == {e.person for e in view.scoring("test")} == {"p0", "p3"}
    assert (
        {e.person for e in view.fit_retain} == {e.person for e in view.scoring("retain_test")} == {"p1", "p2"}
    )
    assert {e.person for e in view.scoring("benign")} == {"p0", "p3"}
    assert {e.split for e in view.fit_forget} == {"forget"}
    assert {e.id for e in view.fit_forget} | {e.id for e in view.fit_retain} == {
        e.id for e in [*benchmark.fit_forget, *benchmark.fit_retain]
    }
    assert {e.person for e in benchmark.fit_forget} == {"p0", "p1"}
    assert benchmark.forgetting(["p1", "p0"]) is benchmark
    assert view.forgetting(["p0", "p1"]).scoring("test") == benchmark.scoring("test")
    for people in ([], ["p0", "p1", "p2", "p3"], ["p9"]):
        with pytest.raises(RMuseError, match="one to retain"):
            benchmark.forgetting(people)
