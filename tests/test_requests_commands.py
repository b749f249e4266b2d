"""Requests to forget and to restore, as commands; bundles that follow them; fits by person."""

import json
from pathlib import Path

import pytest
from helpers import tiny
from helpers.commands import done, refused
from helpers.requests import clusters, fits_by_kind, leaf
from helpers.studies import words

import rmuse_interp as rm
from analyses import requests as analysis
from rmuse_interp import RMuseError
from rmuse_interp.cli import support
from rmuse_interp.evaluate.results import read_run
from rmuse_interp.fitting import assemble
from rmuse_interp.fitting.exchange import label_of
from rmuse_interp.fitting.requests import check_request
from rmuse_interp.method.rmuse import RMuse
from rmuse_interp.parts.gates import BY_PERSON, IdentityScorer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fitted(lens, benchmark, evidence) -> dict[str, RMuse]:
    return fits_by_kind(lens, benchmark, evidence)


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
    assert set(clusters(leaf(RMuse.load(out)).scorer)) == set(clusters(leaf(RMuse.load(bundle)).scorer))


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
    assert all(isinstance(gate.scorer, IdentityScorer) for gate in found.gates.values())
    assert {row["kind"] for row in found.report["image"]["gates"]} == set(BY_PERSON)
    assert found.gate.expected is not None
    check_request(found, benchmark, ["p2"], "forget")
    others = assemble(lens, benchmark, evidence, layers=[3], kinds=["discriminant"])
    with pytest.raises(RMuseError, match=r"one by one were required.*got LinearDiscriminantGate"):
        check_request(others, benchmark, ["p2"], "forget")
    with pytest.raises(RMuseError, match="preset calibrated"):
        rm.fit(lens, benchmark, "paper", kinds=BY_PERSON)


@pytest.mark.stress
def test_one_by_one_beside_at_once(data, tmp_path, capsys):
    sizes = {"people": 3, "restore": 2, "limit": 6, "fit_limit": 6, "max_new_tokens": 4, "layers": 3}
    given = words(data, tmp_path, **sizes)
    assert analysis.main(given) == 0
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
        assert analysis.main([*given, *wrong]) == 2
        assert "--people from 1 to 3" in capsys.readouterr().err
