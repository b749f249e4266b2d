"""Span attribution and span ablation as analyses: small runs, what must hold in their records, and their figures."""

import json
import sys

import pytest
import torch
from helpers.studies import drawn, refused, words
from helpers.tiny import tiny_llava

from analyses import span_ablation as ablation_script
from analyses import span_attribution as attribution_script
from rmuse_interp import RMuseError, load_benchmark, load_model
from rmuse_interp.diagnostics import gradients
from rmuse_interp.fitting import assemble, gather
from rmuse_interp.method.rmuse import subspaces_at
from rmuse_interp.studies import span_ablation, span_attribution
from rmuse_interp.studies.common import options

pytestmark = pytest.mark.slow

ANALYSES = {
    "span_attribution": (attribution_script, ["--gradients", "1", "--reference", "4"]),
    "span_ablation": (ablation_script, ["--max-new-tokens", "6"]),
}


def arguments(data, out, *more):
    return [*words(data, out, forget=10, limit=6, fit_limit=6), *more]


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    for module, more in ANALYSES.values():
        assert module.main(arguments(data, out, *more)) == 0
    return out


@pytest.fixture(scope="module")
def records(results):
    return {stem: json.loads((results / f"{stem}.json").read_text()) for stem in ANALYSES}


@pytest.fixture(scope="module")
def world(data):
    lens, benchmark = load_model(str(tiny_llava())), load_benchmark(data, forget=10)
    return lens, benchmark, gather(lens, benchmark, limit=6)


@pytest.mark.parametrize("stem", ANALYSES)
def test_the_record_says_where_it_comes_from(records, stem):
    record = records[stem]
    assert record["schema"] == f"rmuse-{stem.replace('_', '-')}/1"
    assert record["provenance"]["seed"] == 0
    assert record["provenance"]["n"]


@pytest.mark.parametrize(
    ("stem", "other"),
    [("span_attribution", "span_attribution_agreement"), ("span_ablation", "span_ablation_geometry")],
)
def test_figures_are_drawn_from_the_record_alone(results, stem, other, tmp_path):
    assert all("n = " in caption for caption in drawn(stem, results, tmp_path, stem, other))


@pytest.mark.parametrize(
    ("stem", "change", "said"),
    [
        ("span_attribution", ["--limit", "0"], "--limit of at least 1"),
        ("span_attribution", ["--reference", "0"], "--reference of at least 1"),
        ("span_attribution", ["--gradients", "-1"], "--gradients of at least 0"),
        ("span_attribution", ["--bundle", "/nowhere"], "rmuse.json"),
        ("span_attribution", ["--model", "/nowhere"], "does not exist"),
        ("span_ablation", ["--max-new-tokens", "0"], "--max-new-tokens of at least 1"),
        ("span_ablation", ["--forget", "20"], "forget_20"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(data, tmp_path, stem, change, said, capsys):
    module, more = ANALYSES[stem]
    assert said in refused(module, [*arguments(data, tmp_path, *more), *change], tmp_path, capsys)


def test_without_captum_nothing_long_is_begun(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    assert attribution_script.main(arguments(data, tmp_path)) == 2
    assert "rmuse-interp[attribution]" in capsys.readouterr().err


# Span attribution.


def test_every_leak_is_there_on_both_sides_and_in_the_means(records):
    record = records["span_attribution"]
    keys = [(r["group"], r["id"], r["what"], r["part"], r["side"]) for r in record["leaks"]]
    assert len(keys) == len(set(keys))
    assert {k[:4] for k in keys if k[4] == "before"} == {k[:4] for k in keys if k[4] == "after"}
    assert {r["group"] for r in record["leaks"]} == {"forget", "retain"}
    assert {r["what"] for r in record["leaks"] if r["modality"] == "image"} == {"attribute", "identity"}
    assert {r["what"] for r in record["leaks"] if r["modality"] == "text"} == {"attribute"}
    for row in record["means"]:
        values = [
            leak[row["way"]][row["span"]]
            for leak in record["leaks"]
            if leak[row["way"]] is not None
            and (row["way"] != "gradients" or leak["completeness"]["reached"])
            and all(leak[k] == row[k] for k in ("group", "modality", "what", "part", "side"))
        ]
        values = [v for v in values if v is not None]
        assert row["n"] == len(values)
        if values:
            assert row["value"] == pytest.approx(sum(values) / len(values), rel=1e-4, abs=1e-5)
            if row["low"] is not None:
                assert row["low"] - 1e-6 <= row["value"] <= row["high"] + 1e-6
        else:
            assert row["value"] is None


def test_gradients_are_of_as_many_questions_as_asked_and_checked(records):
    record = records["span_attribution"]
    for group in ("forget", "retain"):
        for side in ("before", "after"):
            taken = {
                r["id"]
                for r in record["leaks"]
                if r["gradients"] and (r["group"], r["side"]) == (group, side)
            }
            assert len(taken) == 1
    short = []
    for row in record["leaks"]:
        assert (row["gradients"] is None) == (row["completeness"] is None)
        if row["gradients"] is not None:
            total = sum(v for v in row["gradients"].values() if v is not None)
            check = row["completeness"]
            missed = abs(total - check["difference"]) / max(abs(check["difference"]), 0.05)
            assert missed == pytest.approx(check["error"], abs=1e-3)
            assert check["reached"] == (check["error"] <= gradients.TOLERANCE)
            short += (
                [] if check["reached"] else [(row["group"], row["side"], row["id"], row["what"], row["part"])]
            )
    listed = [(r["group"], r["side"], r["id"], r["what"], r["part"]) for r in record["incomplete"]]
    assert sorted(listed) == sorted(short)


def test_a_span_without_tokens_is_null_and_listed(records):
    record = records["span_attribution"]
    for group, spans in record["empty"].items():
        rows = [r for r in record["leaks"] if r["group"] == group and r["side"] == "before"]
        for span, leaks in spans.items():
            listed = {(r["id"], r["what"], r["part"]) for r in leaks}
            null = {(r["id"], r["what"], r["part"]) for r in rows if r["knockout"][span] is None}
            assert listed == null
    assert all(r["knockout"]["image"] is None for r in record["leaks"] if r["modality"] == "text")
    assert all(r["knockout"]["image"] is not None for r in record["leaks"] if r["modality"] == "image")
    assert record["empty"]["forget"]["image"]
    assert not record["empty"]["forget"]["question"]


def test_where_the_plan_does_not_act_after_is_before(records):
    record = records["span_attribution"]
    before = {
        (r["group"], r["id"], r["what"], r["part"]): r for r in record["leaks"] if r["side"] == "before"
    }
    after = [r for r in record["leaks"] if r["side"] == "after"]
    for row in after:
        was = before[row["group"], row["id"], row["what"], row["part"]]
        same = all(row[k] == was[k] for k in ("log_prob", "knockout", "direct", "logit"))
        assert same != row["steered"]
    assert any(r["steered"] for r in after)
    counted = record["provenance"]["steered"]
    assert counted == {g: sum(r["steered"] for r in after if r["group"] == g) for g in counted}


def test_nobody_who_is_explained_is_in_the_average_query(data):
    parser_given = options(None, limit=6, what="", small=None).parse_args([])
    parser_given.limit, parser_given.reference = 6, 4
    asked, others = span_attribution.chosen(load_benchmark(data, forget=10), parser_given)
    explained = {e.person for rows in asked.values() for e in rows}
    averaged = {e.person for rows in others.values() for e in rows}
    assert averaged
    assert explained
    assert not averaged & explained


def test_a_benchmark_without_values_or_with_one_retained_person_is_refused(data):
    given = options(None, limit=6, what="", small=None).parse_args([])
    given.limit, given.reference = 6, 4
    benchmark = load_benchmark(data, forget=10)
    rows = benchmark.scoring("retain_test")
    one = next(e.person for e in rows)
    benchmark._cache["retain_test"] = [e for e in rows if e.person == one]
    with pytest.raises(RMuseError, match="at least 2 retained people"):
        span_attribution.chosen(benchmark, given)
    benchmark._cache["test"] = []
    with pytest.raises(RMuseError, match="people to forget"):
        span_attribution.chosen(benchmark, given)


# Span ablation.


def test_every_span_answers_every_split_and_overlaps_with_every_other(records):
    record = records["span_ablation"]
    names = [v["span"] for v in record["variants"]]
    assert names == ["prompt_end", "reasoning", "answer", "hybrid", "random"]
    splits = set(record["provenance"]["n"])
    assert {(r["span"], r["split"]) for r in record["rows"]} == {
        (n, s) for n in [*names, "vanilla"] for s in splits
    }
    assert {"forget", "test", "retain"} <= splits
    pairs = {(r["modality"], r["layer"], r["first"], r["second"]) for r in record["geometry"]}
    assert len(pairs) == len(record["geometry"]) == 2 * 4 * 6
    for row in record["geometry"]:
        assert 0 <= row["kernel_normalised"] <= 1 + 1e-6
        assert abs(row["direction_cosine"]) <= 1 + 1e-6
        assert len(row["angles"]) == min(row["ranks"])
        assert row["angles"] == sorted(row["angles"])


def test_each_subspace_is_that_of_its_span(world):
    _, _, evidence = world
    for found in evidence.values():
        for layer in (0, 2):
            hybrid = subspaces_at(found, layer, literal=False)[0]
            assert torch.equal(span_ablation.fitted_at(found, layer, "hybrid").direction, hybrid.direction)
            shifts = {s: span_ablation.fitted_at(found, layer, s).shift for s in span_ablation.SPANS}
            # The spans' mean shifts add up to the hybrid's: each has its own states and nothing of the other's.
            torch.testing.assert_close(
                shifts["reasoning"] + shifts["answer"], shifts["hybrid"], rtol=1e-4, atol=1e-4
            )
            ids = span_ablation.both_prompts(found)
            moved = found.prefixed.select(ids).at(layer) - found.readouts["last"].select(ids).at(layer)
            torch.testing.assert_close(shifts["prompt_end"], moved.mean(dim=0), rtol=1e-3, atol=1e-4)


def test_only_the_direction_differs_between_the_plans(world):
    lens, benchmark, evidence = world
    fitted = assemble(lens, benchmark, evidence, "calibrated")
    subspaces = span_ablation.by_span(evidence)
    plans = span_ablation.variants(fitted, evidence, subspaces, seed=0)
    for own in fitted.plan:
        for layer in own.layers:
            rrs = fitted.subspaces.at(own.modality, layer)[1].subspace
            turns = {
                n: next(e for e in p if e.modality == own.modality).operator_at(layer)
                for n, p in plans.items()
            }
            for name, turn in turns.items():
                assert torch.equal(turn.rrs.basis, rrs.basis)
                assert torch.equal(turn.angle.prototypes.points, turns["hybrid"].angle.prototypes.points)
                if name != "random":
                    assert torch.equal(turn.direction, subspaces[own.modality, layer, name].direction)
            assert len({tuple(turn.direction.tolist()) for turn in turns.values()}) == len(turns)
        for plan in plans.values():
            edit = next(e for e in plan if e.modality == own.modality)
            assert (edit.layers, edit.tokens, edit.gate) == (own.layers, own.tokens, own.gate)
