"""Requests to a fitted bundle, one person at a time: what moves, what stays to the bit, and how it is taken back."""

import json
import re
import shutil
from pathlib import Path

import parquet_fixture
import pytest
import tiny
import torch
from test_cli import done, refused

import rmuse_interp as rm
from analyses import requests as analysis
from rmuse_interp import RMuseError
from rmuse_interp.cli import support
from rmuse_interp.data import load_benchmark
from rmuse_interp.evaluate.results import read_run
from rmuse_interp.fitting import assemble, gather, hashed
from rmuse_interp.fitting.exchange import exchanged, label_of, undone
from rmuse_interp.fitting.gathering import _cluster
from rmuse_interp.fitting.requests import (
    _states,
    check_request,
    decided,
    forget_people,
    forgotten,
    questions_about,
    restore_people,
)
from rmuse_interp.method.rmuse import RMuse
from rmuse_interp.parts.gates import (
    BY_PERSON,
    AllOf,
    ClusterGate,
    IdentityGate,
    IdentityRatioGate,
    RRSAlignmentGate,
    fit_clusters,
    fit_discriminant,
    fit_identity_ratio,
)
from rmuse_interp.parts.part import all_same, to_record

LAYER = 2
KINDS = ("vmf", "mahalanobis", "ratio", "both")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return parquet_fixture.write_benchmark(tmp_path_factory.mktemp("requests"))


@pytest.fixture(scope="module")
def benchmark(data):
    """p0 and p1 to forget, p2 and p3 to retain."""
    return load_benchmark(data, forget=10)


@pytest.fixture(scope="module")
def lens():
    return rm.load_model(tiny.tiny_llava())


@pytest.fixture(scope="module")
def evidence(lens, benchmark):
    return gather(lens, benchmark)


@pytest.fixture(scope="module")
def fitted(lens, benchmark, evidence) -> dict[str, RMuse]:
    """A fit whose gates are clusters of either kind, alone or in a combination."""
    base = assemble(lens, benchmark, evidence, layers=[3])
    found = {}
    for kind in KINDS:
        gates = {}
        for modality, seen in evidence.items():
            pooled = seen.readouts["question"]
            rows = {name: i for i, name in enumerate(pooled.ids)}
            sides = []
            for ids in (seen.forget, seen.others):
                sides += [pooled.at(LAYER)[[rows[i] for i in ids]], [seen.people[i] for i in ids]]
            where = {"layer": LAYER, "readout": "question", "threshold": -0.1}
            if kind == "ratio":
                gate = fit_identity_ratio(*sides, **where)
            else:
                gate = fit_clusters(*sides, **where, kind="vmf" if kind == "vmf" else "mahalanobis")
            if kind == "both":
                gate = gate & fit_discriminant(sides[0], sides[2], layer=LAYER, readout="question")
            gates[f"{modality}.gate"] = gate
        found[kind] = RMuse(base.plan.replace(**gates), base.subspaces, base.report)
    return found


def leaf(one: RMuse, modality: str = "image") -> IdentityGate:
    gate = one.gates[modality]
    return gate.gates[0] if isinstance(gate, AllOf) else gate


def clusters(gate: IdentityGate) -> dict[tuple[str, str], torch.Tensor]:
    """(side, label) → all that a gate holds of the cluster."""
    forget, others = gate.forget, gate.others
    if isinstance(gate, IdentityRatioGate):
        forget, others = (
            torch.cat([means, counts.unsqueeze(1)], dim=1)
            for means, counts in ((forget, gate.counts), (others, gate.other_counts))
        )
    sides = (("forget", gate.labels, forget), ("other", gate.other_labels, others))
    return {
        (side, name): mean for side, names, means in sides for name, mean in zip(names, means, strict=True)
    }


def test_a_request_reads_what_the_fit_reads(lens, benchmark, evidence, fitted):
    for modality in ("image", "text"):
        own, harmless = questions_about(benchmark, "p0", modality)
        found = evidence[modality]
        who = {i: name for i, name in found.people.items() if "~" not in i}
        assert {q.id for q in own} == {i for i in who if i in found.forget and who[i] == label_of("p0")}
        assert {q.id for q in harmless} == {i for i, name in who.items() if name == label_of("benign p0")}
        gate = leaf(fitted["vmf"], modality)
        states, _ = _states(lens, benchmark, "p0", 32, gate, modality)
        mine = [i for i in found.forget if found.people[i] == label_of("p0")]
        assert len(states) == len(mine) >= len(own)
        again = gate.without_cluster(label_of("p0")).with_cluster(label_of("p0"), states)
        assert torch.allclose(again.forget[-1], gate.forget[0], atol=1e-4)
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
        old, new = clusters(leaf(before, modality)), clusters(leaf(after, modality))
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
            mine, theirs = clusters(leaf(left, modality)), clusters(leaf(right, modality))
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert set(back.report["undo"]) == set()


@pytest.mark.parametrize("kind", KINDS[:3])
def test_the_person_fires_when_forgotten_and_not_when_restored(kind, fitted, lens, benchmark):
    """A random model tells little of people: what is added must all fire where the threshold lets it, and no more."""
    before = fitted[kind]
    after = forget_people(before, lens, benchmark, ["p2"])
    plain = {m: len(questions_about(benchmark, "p2", m)[0]) for m in ("image", "text")}
    states = {m: _states(lens, benchmark, "p2", 32, leaf(before, m), m)[0] for m in plain}
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
    assert label_of("p0") in leaf(restored).other_labels
    mine = decided(restored, lens, benchmark, "p0")
    assert mine["image"][0] + mine["text"][0] < sum(
        decided(before, lens, benchmark, "p0")[m][0] for m in ("image", "text")
    )


class Sorted(ClusterGate):
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
    gate = leaf(fitted["mahalanobis"])
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
    assert label_of("p3") in leaf(after, "text").labels


def test_gates_without_people_are_refused(fitted, lens, benchmark):
    one = fitted["vmf"]
    literal = RRSAlignmentGate(one.subspaces.at("image", 3)[1].subspace, 1)
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


@pytest.fixture(scope="module")
def bundle(fitted, tmp_path_factory, data) -> Path:
    one = fitted["vmf"]
    report = one.report | {"provenance": support.provenance(str(tiny.tiny_llava()), str(data))}
    return RMuse(one.plan, one.subspaces, report).save(tmp_path_factory.mktemp("bundle") / "ten")


def test_the_command(bundle, data, tmp_path):
    out = tmp_path / "more"
    shown = done("forget", "p2", "--bundle", bundle, "--out", tmp_path / "three").output
    assert "forgotten p2: the gate fires on" in shown
    assert "3 people to forget" in shown
    shown = done("restore", "p1", "--bundle", tmp_path / "three", "--out", out).output
    assert "restored p1" in shown
    assert "2 people to forget" in shown
    assert "requests 1 forgotten, 1 restored" in done("info", out).output
    assert "undo" not in done("info", out).output
    assert {p.name for p in out.iterdir()} == {p.name for p in bundle.iterdir()}
    kept = "".join(path.read_text() for path in out.glob("*.json"))
    assert '"p2"' not in kept
    assert "a bundle" in refused("restore", "p2", "--bundle", out, "--out", out)
    done("forget", "p1", "--bundle", out, "--out", out, "--overwrite")
    done("restore", "p2", "--bundle", out, "--out", out, "--overwrite")
    assert set(clusters(leaf(RMuse.load(out)))) == set(clusters(leaf(RMuse.load(bundle))))


def test_eval_follows_who_is_forgotten(bundle, data, tmp_path):
    model = tiny.tiny_llava()
    done("forget", "p2", "--bundle", bundle, "--out", tmp_path / "three")
    done("restore", "p1", "--bundle", tmp_path / "three", "--out", tmp_path / "more")
    run = ("eval", "--model", model, "--data", data, "--max-new-tokens", 2, "--limit", 4)
    done(*run, "--bundle", tmp_path / "more", "--out", tmp_path / "run")
    found = read_run(tmp_path / "run")
    for split, people in (("test", {"p0", "p2"}), ("forget", {"p0", "p2"}), ("retain_test", {"p1", "p3"})):
        assert {t.person for t in found.transcripts if t.split == split} == people
    assert found.scores["benchmark"]["people"] == 2
    said = refused(*run, "--bundle", tmp_path / "more", "--bundle", bundle, "--out", tmp_path / "x")
    assert "the same people" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("forget", "nobody"), "got 'nobody'"),
        (("forget", "p0"), "forgotten already"),
        (("restore", "p2"), "not forgotten"),
        (("restore", "p0", "p1"), "the last"),
        (("forget", "p2", "p2"), "2 times"),
        (("forget",), "Missing argument"),
    ],
)
def test_a_wrong_request_is_refused_before_the_model_is_loaded(words, said, bundle, tmp_path):
    line = refused(*words, "--bundle", bundle, "--model", "nowhere", "--out", tmp_path / "x")
    assert said in line
    assert "nowhere" not in line
    assert not (tmp_path / "x").exists()


def test_requests_need_a_bundle_and_its_model(bundle, tmp_path):
    assert "'--bundle'" in refused("forget", "p2", "--out", tmp_path / "x")
    assert "--by-person" in refused("fit", "--by-person", "--preset", "paper", "--out", tmp_path / "x")
    other = tiny.tiny_llava(1)
    assert "another model" in refused(
        "forget", "p2", "--bundle", bundle, "--model", other, "--out", tmp_path / "x"
    )
    assert not (tmp_path / "x").exists()


def test_a_fit_by_person_takes_requests_for_certain(lens, benchmark, evidence):
    found = assemble(lens, benchmark, evidence, layers=[3], kinds=BY_PERSON)
    assert all(isinstance(gate, IdentityGate) for gate in found.gates.values())
    assert {row["kind"] for row in found.report["image"]["gates"]} == set(BY_PERSON)
    assert found.gate.expected is not None
    check_request(found, benchmark, ["p2"], "forget")
    others = assemble(lens, benchmark, evidence, layers=[3], kinds=["discriminant"])
    with pytest.raises(RMuseError, match=r"one by one were required.*got LinearDiscriminantGate"):
        check_request(others, benchmark, ["p2"], "forget")
    with pytest.raises(RMuseError, match="preset calibrated"):
        rm.fit(lens, benchmark, "paper", kinds=BY_PERSON)


def test_one_by_one_beside_at_once(data, tmp_path, capsys):
    given = [
        "--model",
        tiny.tiny_llava(),
        "--data",
        data,
        "--out",
        tmp_path,
        "--people",
        3,
        "--restore",
        2,
        "--limit",
        6,
        "--fit-limit",
        6,
        "--max-new-tokens",
        4,
        "--layers",
        3,
    ]
    assert analysis.main([str(word) for word in given]) == 0
    record = json.loads((tmp_path / "requests.json").read_text())
    assert record["schema"] == "rmuse-requests/1"
    assert [one["request"] for one in record["requests"]] == ["forget", "forget", "restore", "restore"]
    # The order is that of the larger forget sets, and p1 stands in forget_10.
    assert [one["person"] for one in record["requests"][:2]] == [label_of("p1"), label_of("p2")]
    assert all(one["seconds"] > 0 and "image" in one for one in record["requests"])
    assert [stage["people"] for stage in record["stages"]] == [3, 1]
    assert record["provenance"]["seed"] == 0
    assert "torch" in record["provenance"]["versions"]
    for stage in record["stages"]:
        splits = {row["split"]: row for row in stage["splits"]}
        assert ("restored" in splits) == (stage["people"] == 1)
        for row in splits.values():
            for name, gap in row["differences"].items():
                if gap is not None:
                    one, other = (row["figures"][method][name] for method in ("one by one", "at once"))
                    assert gap["value"] == pytest.approx(one["value"] - other["value"], abs=1e-3)
                    assert gap["n"] == one["n"] == other["n"]
            assert 0 <= row["agreement"]["value"] <= 100
        assert splits["forget"]["differences"]["ril"] is not None
    assert not (tmp_path / ".requests").exists()
    assert "restore: 2 requests" in capsys.readouterr().out
    for wrong in (("--people", "4"), ("--people", "3", "--restore", "3")):
        assert analysis.main([*[str(word) for word in given], *wrong]) == 2
        assert "--people from 1 to 3" in capsys.readouterr().err
