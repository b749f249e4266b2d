"""The search for blocks, target and rank: what it tries, by what it chooses, and that it reads fitting data alone.

A random model is taught by its unembedding alone: on a state of a refusal it says the refusal's next token, on a state of
a reference answer the answer's. Left alone it answers, and steered to refusal states it refuses.
"""

import json
from dataclasses import replace

import pytest
import torch
from helpers import parquet_fixture, tiny
from typer.testing import CliRunner

import rmuse_interp.operators as op
from rmuse_interp import RMuse, RMuseError, fit
from rmuse_interp.cli import app
from rmuse_interp.data import Benchmark, load_benchmark
from rmuse_interp.fitting import LIMIT, TARGETS, Choice, assemble, enough, gather, search
from rmuse_interp.fitting.collect import Query, trajectories
from rmuse_interp.fitting.search import STRENGTHS, ranked
from rmuse_interp.fitting.trials import ENERGIES, Setting, Trials
from rmuse_interp.lens.lens import load_model
from rmuse_interp.method.rmuse import ENERGY
from rmuse_interp.method.targets import PROTECTIONS

pytestmark = pytest.mark.slow

WIDTH = 192
MODALITY = "image"


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return load_benchmark(parquet_fixture.write_benchmark(tmp_path_factory.mktemp("data")), forget=10)


@pytest.fixture(scope="module")
def lens(benchmark):
    lens = load_model(tiny.tiny_llava(d_model=WIDTH), device="cpu")
    teach(lens, benchmark)
    return lens


@pytest.fixture(scope="module")
def evidence(lens, benchmark):
    return gather(lens, benchmark)


@pytest.fixture(scope="module")
def found(lens, benchmark, evidence):
    return search(lens, benchmark, evidence, MODALITY, gate_layer=0)


def teach(lens, benchmark):
    """Fits the unembedding by least squares, so that states of the last block predict the next tokens."""
    refusals = [*benchmark.refusals_cot, *benchmark.refusals_direct]
    taught = [Query(e.id, e.prompt(), e.image, e.response(), False) for e in benchmark.fit_forget]
    taught += [
        Query(f"{e.id} {n}", f"{benchmark.prefixes[0]} {e.prompt()}", e.image, text, False)
        for e in benchmark.fit_forget
        for n, text in enumerate(refusals)
    ]
    states, following = [], []
    begin = lens.encode(["Who?"])["input_ids"].shape[1]
    for query, run in zip(taught, trajectories(lens, taught), strict=True):
        tokens = lens.encode(["Who?"], None, [query.response])["input_ids"][0, begin:].tolist()
        tokens.append(lens.tokenizer.eos_token_id)
        states += run.states[: len(tokens), -1]
        following += tokens[: len(run.states)]
    with torch.no_grad():
        normed = lens.hf.model.language_model.norm(torch.stack(states)).double()
        wanted = torch.nn.functional.one_hot(torch.tensor(following), lens.hf.lm_head.out_features).double()
        gram = normed.T @ normed + 0.1 * torch.eye(WIDTH)
        lens.hf.lm_head.weight.copy_(torch.linalg.solve(gram, normed.T @ wanted).T)


def trial(layers=(1,), **changes):
    usual = Choice(
        layers,
        "follow",
        ENERGY,
        "room",
        1.0,
        (2,) * len(layers),
        0.0,
        50.0,
        0.0,
        0.0,
        50.0,
        1.0,
        50.0,
        1.0,
        4,
    )
    return replace(usual, **changes)


def by(found, **wanted):
    return [t for t in found.trials if all(getattr(t, key) == value for key, value in wanted.items())]


# What is tried


def test_each_coordinate_is_tried_once(found):
    """Single blocks, pairs next to the best of them, then targets, protections, energies and strengths."""
    start = by(found, target="follow", energy=ENERGY, protect="room", strength=1.0)
    assert [t.layers for t in start[:3]] == [(3,), (2,), (1,)]
    pairs = [t.layers for t in start if len(t.layers) == 2]
    assert pairs
    assert all(second == first + 1 for first, second in pairs)
    here = {"layers": found.best.layers}
    assert {t.target for t in by(found, **here, energy=ENERGY)} == set(TARGETS)
    here["target"] = found.best.target
    assert {t.protect for t in by(found, **here, energy=ENERGY)} == set(PROTECTIONS)
    here["protect"] = found.best.protect
    ranks = by(found, **here, strength=1.0)
    assert {t.energy for t in ranks} == set(ENERGIES)
    ordered = sorted(ranks, key=lambda t: t.energy)
    assert [t.ranks for t in ordered] == sorted(t.ranks for t in ordered)
    assert ordered[0].ranks < ordered[-1].ranks
    assert {t.strength for t in by(found, **here, energy=found.best.energy)} == set(STRENGTHS)
    keys = {(t.layers, t.target, t.energy, t.protect, t.strength) for t in found.trials}
    assert len(keys) == len(found.trials)


def test_a_narrow_search_stops_when_answers_are_whole(lens, benchmark, evidence, found):
    """It tries the same blocks, from the last one down; targets and protections only where answers are faulty."""
    narrow = search(lens, benchmark, evidence, MODALITY, gate_layer=0, wide=False)
    assert narrow.trials[0].layers == (3,)
    same = {(t.layers, t.target, t.energy, t.protect, t.strength): t for t in found.trials}
    assert all(same.get((t.layers, t.target, t.energy, t.protect, t.strength), t) == t for t in narrow.trials)
    assert (narrow.best.faulty == 0) == (len(narrow.why) == 1)
    assert 0 <= narrow.steady <= 100


def test_given_blocks_are_not_searched(lens, benchmark, evidence):
    found = search(lens, benchmark, evidence, MODALITY, 0, layers=[1, 3])
    assert {t.layers for t in found.trials} == {(1, 3)}
    assert found.best.layers == (1, 3)
    assert "given" in found.why[0]


def test_a_search_reads_fitting_data_alone(lens, benchmark, evidence, monkeypatch):
    read: list[str] = []
    scoring = Benchmark.scoring

    def watched(self, split):
        read.append(split)
        return scoring(self, split)

    monkeypatch.setattr(Benchmark, "scoring", watched)
    search(lens, benchmark, evidence, MODALITY, 0, layers=[3])
    assert set(read) == {"forget", "retain"}  # both are fitting views


# By what it chooses


def test_what_is_said_decides(lens, benchmark, evidence, found):
    """The taught model refuses when it is steered to refusal states, and says something else when it is not."""
    asked = [e for e in benchmark.fit_forget if e.modality == MODALITY]
    pool = {*benchmark.refusals_cot, *benchmark.refusals_direct}
    free = lens.respond([e.prompt() for e in asked], [e.image for e in asked], max_new_tokens=48)
    assert not any(r.text in pool for r in free)
    assert found.best.verbatim > 50
    assert found.best.refused > 50
    assert found.best.words == min(t.words for t in found.trials)
    assert found.best.words < max(t.words for t in found.trials)
    assert f"target {found.best.target}: " in found.why[1]


def test_the_update_stays_out_of_the_rrs_that_is_protected(lens, benchmark, evidence):
    tried = Trials(lens, benchmark, evidence[MODALITY], MODALITY, 0, None, 4)
    inside = {
        (protect, energy): tried(Setting((3,), "follow", energy, protect)).inside
        for protect, energy in (("rrs", max(ENERGIES)), ("rrs", 0.5), ("room", 0.5), ("nothing", 0.5))
    }
    assert inside["rrs", max(ENERGIES)] < 1e-6
    assert 1e-3 < inside["rrs", 0.5] <= inside["room", 0.5] + 1e-6
    assert inside["room", 0.5] <= inside["nothing", 0.5] + 1e-6


def test_ties_go_to_one_pass_few_blocks_and_depth():
    low, deep, pair = trial((1,)), trial((3,)), trial((2, 3))
    assert ranked([pair, low, deep], gate_layer=0) == [deep, low, pair]
    assert ranked([low, deep, pair], gate_layer=3)[0] == deep
    assert ranked([low, pair], gate_layer=2) == [pair, low]  # block 1 would need a pass of its own
    assert ranked([deep, trial((1,), verbatim=60.0)], 0)[0].layers == (1,)
    assert ranked([trial((1,), verbatim=60.0), trial((2,), leaked=10.0, verbatim=90.0)], 0)[0].layers == (1,)
    assert ranked([deep, trial((1,), faulty=10.0, ratio=9.0)], 0)[0].layers == (1,)  # whole before fluent
    assert ranked([trial((3,), ratio=1.3), trial((1,), ratio=1.1, verbatim=0.0)], 0)[0].layers == (1,)


def test_one_target_more_is_one_entry_more(lens, benchmark, evidence, monkeypatch):
    """One that leaves everything as it is loses; one that can't be built is left out, and named."""

    def still(known, layer, unlearning):
        return op.Transport(known.tokens[:1, layer], fraction=0.0)

    def broken(known, layer, unlearning):
        raise RMuseError("no such state")

    monkeypatch.setitem(TARGETS, "still", still)
    monkeypatch.setitem(TARGETS, "broken", broken)
    found = search(lens, benchmark, evidence, MODALITY, 0, layers=[3])
    (idle,) = by(found, target="still")
    assert (idle.refused, idle.verbatim, idle.inside) == (0.0, 0.0, 0.0)
    assert found.best.target not in ("still", "broken")
    assert any("broken" in why and "no such state" in why for why in found.why)


# What is fitted


def test_the_plan_is_what_was_chosen(lens, benchmark, evidence, tmp_path):
    some = {MODALITY: evidence[MODALITY]}
    fitted = assemble(lens, benchmark, some, auto=True)
    (edit,) = fitted.plan
    chosen = fitted.report[MODALITY]["chosen"]
    assert tuple(edit.layers) == tuple(chosen["layers"]) == tuple(fitted.report[MODALITY]["steered"])
    assert tuple(edit.operator_at(layer).rrs.rank for layer in edit.layers) == tuple(chosen["ranks"])
    assert len(chosen["why"]) >= 5
    again = RMuse.load(fitted.save(tmp_path), lens)
    assert again.report == json.loads(json.dumps(fitted.report))
    plain = assemble(lens, benchmark, some)
    assert plain.report[MODALITY]["refusals"]["of"] == len(evidence[MODALITY].run_own)
    assert {t["energy"] for t in plain.report[MODALITY]["trials"]} == {ENERGY}


def test_the_literal_method_is_not_searched(lens, benchmark):
    with pytest.raises(RMuseError, match=r"the preset calibrated, got paper.*leave --auto out"):
        fit(lens, benchmark, "paper", auto=True)


def test_the_command_prints_what_was_tried(benchmark, tmp_path):
    def rmuse(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    fitting = ("fit", "--model", tiny.tiny_llava(), "--data", benchmark.folder, "--limit", 4)
    said = rmuse(*fitting, "--auto", "--layers", "3", "--out", tmp_path / "auto")
    assert said.exit_code == 0, said.output
    assert "tried on image questions" in said.stdout
    assert "block 3: given" in said.stdout
    assert all(name in said.stdout for name in (*TARGETS, "0.95"))
    told = rmuse("info", tmp_path / "auto").stdout
    assert "chosen" in told
    assert "target " in told
    refused = rmuse(*fitting, "--auto", "--preset", "paper", "--out", tmp_path / "paper")
    assert refused.exit_code == 2
    assert "leave --auto out" in refused.stderr
    assert not (tmp_path / "paper").exists()


def test_a_fit_without_anybody_to_retain_says_what_is_missing(lens, tmp_path):
    def bare(row):
        return row if row["ID"] == "p0" else {**row, "Generation_Task": []}

    folder = parquet_fixture.write_benchmark(tmp_path, bare)
    (folder / "Reasoning" / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(
        RMuseError, match="retain_95: required questions of a Generation_Task, got none; no preset"
    ):
        fit(lens, load_benchmark(folder, forget=5), limit=4)


def test_what_is_read_grows_with_the_people_to_forget(benchmark):
    assert enough(benchmark) == LIMIT
    assert enough(benchmark, 3) == 12 * len(benchmark.forget_people) == 24
