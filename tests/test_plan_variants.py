"""Variants of a fitted plan that analyses compare: what each changes, and answers put together from them."""

import argparse

import pytest
import torch
from helpers.tiny import tiny_llava

import rmuse_interp.lens.lens as lens_room
from rmuse_interp import RMuseError, load_benchmark, load_model
from rmuse_interp.evaluate.scores import transcribe
from rmuse_interp.fitting import assemble, gather
from rmuse_interp.method.rmuse import SPANS, Evidence, paper_edit, subspaces_at
from rmuse_interp.parts.pooled import Pooled
from rmuse_interp.runs.run import Method, choose, run
from rmuse_interp.studies import ablations, acceptance, common, fits, prototype_cap
from rmuse_interp.studies.gated import composed, fires, probes, scored
from rmuse_interp.studies.variants import operators_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(data):
    """The tiny model, its benchmark at 10 % and everything fitted on it."""
    lens, benchmark = load_model(str(tiny_llava())), load_benchmark(data, forget=10)
    evidence = gather(lens, benchmark, limit=6)
    return (
        lens,
        benchmark,
        evidence,
        {p: assemble(lens, benchmark, evidence, p) for p in ("paper", "calibrated")},
    )


def test_a_broken_run_goes_on_where_it_stopped(world, tmp_path, monkeypatch):
    lens, benchmark, _, fitted = world
    given = argparse.Namespace(out=tmp_path, max_new_tokens=6, batch_size=4)
    questions = choose(benchmark, 4)
    methods = [Method("vanilla", lens), Method("calibrated", lens, fitted["calibrated"].plan)]
    first = common.answered(given, "some", methods, questions, benchmark)

    def unable(*_args, **_settings):
        raise RMuseError("asked again")

    monkeypatch.setattr(lens_room.LensModel, "respond", unable)
    assert common.answered(given, "some", methods, questions, benchmark).transcripts == first.transcripts
    other = argparse.Namespace(out=tmp_path, max_new_tokens=7, batch_size=4)
    with pytest.raises(RMuseError, match="asked again"):
        common.answered(other, "some", methods, questions, benchmark)


def test_evidence_comes_back_from_the_folder_as_it_was(world, tmp_path, monkeypatch):
    lens, benchmark, evidence, _ = world
    given = argparse.Namespace(fits=tmp_path, fit_limit=6, batch_size=32, seed=0)
    monkeypatch.setattr(fits, "gather", lambda *_args, **_settings: evidence)
    assert fits.World(given, lens, benchmark).evidence
    monkeypatch.delattr(fits, "gather")
    found = fits.World(given, lens, benchmark).evidence
    (kept,) = tmp_path.rglob("evidence.*")
    assert kept.suffix == ".safetensors"  # which runs no code when it is read

    def same(one, other):
        assert type(one) is type(other)
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        elif isinstance(one, dict):
            assert list(one) == list(other)
            for key in one:
                same(one[key], other[key])
        elif isinstance(one, (Evidence, Pooled)):
            same(vars(one), vars(other))
        else:
            assert one == other

    same(evidence, found)


# Answers put together.


@pytest.mark.parametrize("preset", ["paper", "calibrated"])
def test_composed_answers_are_those_of_the_gated_plan(world, preset):
    lens, benchmark, _, fitted = world
    plan, questions = fitted[preset].plan, choose(benchmark, 6)
    everything = [e for examples in questions.values() for e in examples]

    def answers(name, some):
        found = run(
            [Method(name, lens, some)],
            {"all": everything},
            delimiters=benchmark.delimiters,
            max_new_tokens=8,
            batch_size=8,
        )
        return {t.id: t for t in found.transcripts}

    scores = scored(lens, probes(fitted[preset], {"g": fitted[preset].gates}), everything, 8)["g"]
    gates = {}
    for modality, gate in fitted[preset].gates.items():
        # Halfway, so that both sides of the gate are seen.
        own = sorted(scores[e.id] for e in everything if e.modality == modality)
        gates[modality] = gate.at_threshold((own[len(own) // 2 - 1] + own[len(own) // 2]) / 2)
    gated = plan.replace(**{f"{modality}.gate": gate for modality, gate in gates.items()})
    fired = fires(scores, gates, everything)
    assert 0 < sum(fired.values()) < len(fired)
    open_, plain, real = (answers(*o) for o in (("o", plan.without("*.gate")), ("v", None), ("g", gated)))
    together = {t.id: t for t in composed("g", open_.values(), plain.values(), fired)}
    assert {i: t.response for i, t in together.items()} == {i: t.response for i, t in real.items()}
    assert {i: t.fired for i, t in together.items()} == {i: t.fired for i, t in real.items()}
    # The other way round it is another plan.
    turned = composed("g", open_.values(), plain.values(), {i: not f for i, f in fired.items()})
    assert {t.id: t.response for t in turned} != {i: t.response for i, t in real.items()}
    with pytest.raises(RMuseError, match="the same questions"):
        composed("g", list(open_.values())[1:], plain.values(), fired)


# Ablations.


def test_each_ablation_removes_what_it_names_and_nothing_else(world):
    lens, benchmark, evidence, fitted = world
    begins = {m: ablations.answer_begins(lens, benchmark, one.refusals) for m, one in evidence.items()}
    assert all(any(b.values()) for b in begins.values())
    found = {
        "paper": ablations.of_paper(fitted["paper"], evidence, benchmark.prefixes[0]),
        "calibrated": ablations.of_calibrated(fitted["calibrated"], evidence, begins),
    }
    plans = {(preset, name): plan for preset, edited in found.items() for name, _, plan in edited}
    assert len(plans) == 12
    assert all(len({edit for _, edit, _ in edited}) == 6 for edited in found.values())
    for (preset, ablation), plan in plans.items():
        full = plans[preset, "full"]
        assert [e.modality for e in plan] == [e.modality for e in full]
        assert [e.layers for e in plan] == [e.layers for e in full]
        kept = [None if e.gate is None else e.gate.describe() for e in plan]
        assert kept == ([None, None] if ablation == "w/o gate" else [e.gate.describe() for e in full])
    for operator in operators_of(plans["paper", "w/o RRS"]).values():
        assert operator.rrs is None
    for operator in operators_of(plans["paper", "w/o ACS"]).values():
        assert operator.angle.describe() == "λ = 0.5"
        assert operator.rrs is not None
        assert operator.kept == "direction"
    for operator in operators_of(plans["calibrated", "w/o RRS"]).values():
        assert operator.rrs is None
    for operator in operators_of(plans["calibrated", "full"]).values():
        assert operator.rrs is not None
    for operator in operators_of(plans["calibrated", "w/o ACS"]).values():
        assert operator.fraction == 0.5
    by_step = prototype_cap.by_step(fitted["calibrated"], evidence)  # the tokens of a span: moved one by one
    counts = [
        sum(len(o.points) for o in operators_of(plan).values())
        for plan in (by_step, *(plans["calibrated", f"w/o {span} span"] for span in ("reasoning", "answer")))
    ]
    assert counts[0] == counts[1] + counts[2]
    assert min(counts) > 0


def test_a_span_left_out_counts_as_no_difference(world):
    _, _, evidence, _ = world
    one = evidence["image"]
    both, _ = subspaces_at(one, 1, literal=False)
    only, rrs = subspaces_at(one, 1, literal=False, spans=("cot",))
    shift = (one.refusal["cot"].at(1) - one.own["cot"].select(one.refusal["cot"].ids).at(1)).mean(dim=0)
    assert torch.allclose(only.shift, shift, atol=1e-5)
    assert not torch.allclose(both.direction, only.direction, atol=1e-3)
    assert torch.equal(rrs.subspace.basis, subspaces_at(one, 1, literal=False)[1].subspace.basis)
    default = paper_edit(one, "image", [1], "p")[0]
    assert default.describe() == paper_edit(one, "image", [1], "p", SPANS)[0].describe()
    for wrong in ((), ("draft",)):
        with pytest.raises(RMuseError, match="spans out of cot, answer"):
            subspaces_at(one, 1, literal=True, spans=wrong)


def test_the_answer_begins_behind_the_reasoning(world):
    lens, benchmark, _, _ = world
    closer = benchmark.delimiters[1]
    said = ["No.", *reversed(benchmark.refusals_cot)]
    begins = ablations.answer_begins(lens, benchmark, said)
    assert list(begins) == list(range(1, len(said)))  # a refusal without reasoning is all answer
    for number, begin in begins.items():
        head, _, _ = said[number].partition(closer)
        least = len(lens.tokenizer(head, add_special_tokens=False).input_ids)
        assert least < begin <= len(lens.tokenizer(said[number]).input_ids)
    assert ablations.answer_begins(lens, benchmark, ["No."]) == {}


def test_caps_keep_some_of_the_prototypes_with_their_steps(world):
    _, _, evidence, fitted = world
    plan = prototype_cap.by_step(fitted["calibrated"], evidence)
    before, after = (prototype_cap.transports(p) for p in (plan, prototype_cap.capped(plan, 5)))
    for address, operator in after.items():
        assert len(operator.points) == 5
        pairs = [
            {(int(p), tuple(x.tolist())) for p, x in zip(one.positions, one.points, strict=True)}
            for one in (operator, before[address])
        ]
        assert pairs[0] <= pairs[1]
        assert (operator.rrs is None) == (before[address].rrs is None)
    assert prototype_cap.counts(prototype_cap.capped(plan, 10**6)) == prototype_cap.counts(plan)
    with pytest.raises(RMuseError, match="a transport to prototypes"):
        prototype_cap.capped(fitted["paper"].plan, 5)


def test_figures_asked_of_calibrated_are_differences_on_the_same_questions(world):
    """Exact by hand: one answer lost of two, one refusal, one leak told apart from none."""
    _, benchmark, _, _ = world
    mine = [e for e in benchmark.scoring("retain_test") if e.kind == "generation"][:2]
    said = [
        transcribe(
            e,
            method,
            e.response(benchmark.delimiters) if kept else "<think> No. </think> nothing",
            benchmark.delimiters,
        )
        for method, keeps in (("vanilla", (True, True)), (acceptance.OURS, (True, False)))
        for e, kept in zip(mine, keeps, strict=True)
    ]
    cell = acceptance.Cell(benchmark, said, {e.id: e for e in mine})
    assert sorted(value for _, value in cell.lost("exact", "retain_test")) == [0.0, 100.0]
    found = acceptance.figures([cell])
    assert found["retain_test, lost"]["value"] == 50.0
    assert found["retain_test, lost"]["n"] == 2
    assert set(found) <= set(acceptance.TARGETS)
    assert "gate AUROC" not in found  # nothing was scored
