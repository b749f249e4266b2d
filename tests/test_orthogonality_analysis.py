"""The analysis of orthogonality and its figure, end to end."""

import json
import math

import pytest
from helpers.parquet_fixture import write_benchmark
from helpers.studies import drawn, refused, words
from helpers.tiny import tiny_llava

from analyses import orthogonality as analysis

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    data = write_benchmark(tmp_path_factory.mktemp("bench"))
    assert analysis.main(words(data, out, limit=3, seed=4)) == 0
    return out, data, json.loads((out / "orthogonality.json").read_text())


def test_the_record_says_where_it_comes_from(results):
    _, _, record = results
    origin = record["provenance"]
    assert record["schema"] == "rmuse-orthogonality/2"
    assert origin["model"]["fingerprint"].startswith("LlavaForConditionalGeneration:4x32x")
    assert origin["benchmark"] == {"id": "tiny", "forget": 5, "render_seed": 3}
    assert (origin["seed"], origin["limit"], origin["n"]) == (4, 3, {"image": 1, "text": 3})
    assert {"rmuse-interp", "torch", "transformer-lens"} <= origin["versions"].keys()
    assert {(r["preset"], r["modality"], r["layer"]) for r in record["geometry"]} == {
        (p, m, i) for p in ("paper", "calibrated") for m in ("image", "text") for i in range(4)
    }


def test_protection_shows_in_the_record(results):
    """The positive and the negative control of the whole pipeline."""
    _, _, record = results
    for row in record["geometry"]:
        assert len(row["direction"]["before"]["dots"]) == row["rank_rrs"]
        assert row["direction"]["after"]["share"] < 1e-10 < row["direction"]["before"]["share"]
        assert len(row["angles_degrees"]) == min(row["rank_unlearning"], row["rank_rrs"])
        assert math.isclose(
            row["kernel"], sum(math.cos(math.radians(a)) ** 2 for a in row["angles_degrees"]), rel_tol=1e-4
        )
    updates = [r for r in record["updates"] if r["measure"] == "update" and r["gate"] == "open"]
    assert {r["protection"] for r in updates if r["preset"] == "paper"} == {"none", "direction", "rotation"}
    for row in updates:
        assert row["n_updated"] == row["n"]
        assert row["low"] <= row["share"] <= row["high"]
        assert (row["share"] < 1e-9) == (row["protection"] == "rotation"), row
    own = {(r["preset"], r["protection"]) for r in updates if r["own"]}
    assert ("paper", "direction") in own
    assert own - {("paper", "direction")} <= {
        ("calibrated", p) for p in ("none", "room", "rotation")
    }  # by trial
    # A plan's lowest block steered with others is that block steered alone.
    key = ("preset", "modality", "layer", "protection")
    alone = {tuple(r[k] for k in key): r for r in updates if r["run"] == "alone"}
    own = record["provenance"]["layers"]
    lowest = [r for r in updates if r["run"] == "plan" and r["layer"] == own[r["preset"]][r["modality"]][0]]
    assert {(r["preset"], r["modality"]) for r in lowest} == {(p, m) for p in own for m in ("image", "text")}
    for row in lowest:
        if row["preset"] == "paper":  # trials of calibrated may choose otherwise where all blocks are steered
            same = alone[tuple(row[k] for k in key)]
            assert math.isclose(row["share"], same["share"], rel_tol=1e-3, abs_tol=1e-9)
        assert len(row["per_example"]) == row["n_updated"]
    arrived = [r for r in record["updates"] if r["measure"] == "arrived"]
    assert arrived
    assert all(r["layer"] >= own[r["preset"]][r["modality"]][0] for r in arrived)


def test_a_single_example_cannot_be_resampled_and_is_named(results):
    _, _, record = results
    assert record["stability"] == []
    assert record["not_resampled"].keys() == {"image", "text"}
    assert all("at least 2 clusters" in why for why in record["not_resampled"].values())


@pytest.fixture(scope="module")
def resampled(results, tmp_path_factory):
    """At 10 % two people are to be forgotten: enough to draw them again."""
    _, data, _ = results
    out = tmp_path_factory.mktemp("ten")
    assert analysis.main(words(data, out, limit=3, forget=10, resamples=20)) == 0
    return out, json.loads((out / "orthogonality.json").read_text())


def test_resamples_are_told_by_preset_kind_and_block(resampled):
    _, record = resampled
    assert record["not_resampled"] == {}
    geometry = {(r["preset"], r["modality"], r["layer"]): r for r in record["geometry"]}
    stable = {(r["preset"], r["modality"], r["layer"]): r for r in record["stability"]}
    assert stable.keys() == geometry.keys()
    for key, row in stable.items():
        assert row["clusters_forget"] == 2
        for name in ("kernel_normalised", "direction_share", "unlearning_angle_degrees", "rrs_angle_degrees"):
            cell = row[name]
            assert cell["low"] <= cell["median"] <= cell["high"]
            assert cell["n"] == 20
        assert 1 <= len(row["angles_degrees"]) <= max(geometry[key]["rank_unlearning"], 2)
        assert 0 < row["chance_degrees"][0] < 90
        # Half of the resamples of two people hold both: those are the fit itself.
        assert row["direction_angle_degrees"]["low"] < 1


def test_the_figure_shows_resamples_where_there_are_some(resampled, results, tmp_path):
    for (out, *_), there in ((resampled, True), (results, False)):
        drawn("orthogonality", out, tmp_path / str(there))
        assert (tmp_path / str(there) / "orthogonality_stability.pdf").exists() is there


def test_the_same_seed_gives_the_same_record(results, tmp_path):
    _, data, record = results
    assert analysis.main(words(data, tmp_path, limit=3, seed=4)) == 0
    again = json.loads((tmp_path / "orthogonality.json").read_text())
    assert again["geometry"] == record["geometry"]
    assert again["updates"] == record["updates"]


def test_the_figures_are_drawn_from_the_record_alone(results, tmp_path):
    out, _, record = results
    for caption in drawn("orthogonality", out, tmp_path, "orthogonality", "orthogonality_plan"):
        assert "n = 1 image and 3 text" in caption
        assert record["provenance"]["model"]["fingerprint"] in caption


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--model", "/nowhere"], "does not exist"),
        (["--data", "/nowhere"], "no such folder"),
        (["--forget", "20"], "forget_20"),
        (["--limit", "0"], "--limit of at least 1"),
        (["--bundle", "/nowhere"], "rmuse.json"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(results, change, said, tmp_path, capsys):
    _, data, _ = results
    assert said in refused(analysis, [*words(data, tmp_path), *change], tmp_path, capsys)


def test_a_bundle_is_measured_as_it_is(results, tmp_path, capsys):
    from rmuse_interp import fit, load_benchmark, load_model

    _, data, record = results
    lens = load_model(str(tiny_llava()))
    fit(lens, load_benchmark(data), "calibrated", seed=4).save(tmp_path / "bundle")
    argv = words(data, tmp_path, seed=4, bundle=tmp_path / "bundle")
    assert analysis.main(argv) == 0
    mine = json.loads((tmp_path / "orthogonality.json").read_text())
    blocks = mine["provenance"]["layers"]["calibrated"]
    same = [
        r for r in record["geometry"] if r["preset"] == "calibrated" and r["layer"] in blocks[r["modality"]]
    ]
    assert mine["geometry"] == same
    assert analysis.main([*argv, "--forget", "10"]) == 2
    assert "add --forget 5" in capsys.readouterr().err
    assert analysis.main([*argv[:1], str(tiny_llava(seed=1)), *argv[2:]]) == 2
    assert "fitted on another model" in capsys.readouterr().err
