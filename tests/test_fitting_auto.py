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
from rmuse_interp.fitting import LIMIT, TARGETS, Choice, assemble, enough, gather, search, try_layers
from rmuse_interp.fitting.collect import Query, trajectories
from rmuse_interp.fitting.search import ENERGIES, _ranked
from rmuse_interp.lens.lens import load_model
from rmuse_interp.method.rmuse import ENERGY

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
    usual = Choice(layers, "step", ENERGY, (2,) * len(layers), 0.0, 50.0, 50.0, 1.0, 4)
    return replace(usual, **changes)


def by(found, **wanted):
    return [t for t in found.trials if all(getattr(t, key) == value for key, value in wanted.items())]


# What is tried


def test_each_coordinate_is_tried_once(found):
    """Single blocks, pairs next to the best of them, then targets and energies at the best so far."""
    start = by(found, target="step", energy=ENERGY)
    assert [t.layers for t in start[:3]] == [(1,), (2,), (3,)]
    pairs = [t.layers for t in start if len(t.layers) == 2]
    assert pairs
    assert all(second == first + 1 for first, second in pairs)
    assert {t.target for t in by(found, layers=found.best.layers, energy=ENERGY)} == set(TARGETS)
    ranks = by(found, layers=found.best.layers, target=found.best.target)
    assert {t.energy for t in ranks} == set(ENERGIES)
    ordered = sorted(ranks, key=lambda t: t.energy)
    assert [t.ranks for t in ordered] == sorted(t.ranks for t in ordered)
    assert ordered[0].ranks < ordered[-1].ranks
    assert len(found.trials) == len(pairs) + 3 + len(TARGETS) - 1 + len(ENERGIES) - 1
    assert len({(t.layers, t.target, t.energy) for t in found.trials}) == len(found.trials)


def test_layers_are_the_special_case(lens, benchmark, evidence, found):
    alone = try_layers(lens, benchmark, evidence, MODALITY, gate_layer=0)
    assert {t.layers: t for t in alone} == {
        t.layers: t for t in by(found, target="step", energy=ENERGY) if len(t.layers) == 1
    }


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
    assert set(read) == {"forget"}


# By what it chooses


def test_what_is_said_decides(lens, benchmark, evidence, found):
    """The taught model refuses when it is steered to refusal states, and says something else when it is not."""
    asked = [e for e in benchmark.fit_forget if e.modality == MODALITY]
    pool = {*benchmark.refusals_cot, *benchmark.refusals_direct}
    free = lens.respond([e.prompt() for e in asked], [e.image for e in asked], max_new_tokens=48)
    assert not any(r.text in pool for r in free)
    assert found.best.verbatim > 50
    assert found.best.words == min(t.words for t in found.trials)
    assert found.best.words < max(t.words for t in found.trials)
    assert f"target {found.best.target}: " in found.why[1]


def test_the_update_stays_out_of_the_rrs_that_is_protected(found):
    widest, others = max(ENERGIES), [t for t in found.trials if t.energy != 0.95]
    (protected,) = by(found, layers=found.best.layers, target=found.best.target, energy=widest)
    assert protected.inside < 1e-6
    assert min(t.inside for t in others) > 1e-3


def test_ties_go_to_one_pass_few_blocks_and_depth():
    low, deep, pair = trial((1,)), trial((3,)), trial((2, 3))
    assert _ranked([pair, low, deep], gate_layer=0) == [deep, low, pair]
    assert _ranked([low, deep, pair], gate_layer=3)[0] == deep
    assert _ranked([low, pair], gate_layer=2) == [pair, low]  # block 1 would need a pass of its own
    assert _ranked([deep, trial((1,), verbatim=60.0)], 0)[0].layers == (1,)
    assert _ranked([trial((1,), verbatim=60.0), trial((2,), leaked=10.0, verbatim=90.0)], 0)[0].layers == (1,)


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
    assert len(chosen["why"]) == 3
    again = RMuse.load(fitted.save(tmp_path), lens)
    assert again.report == json.loads(json.dumps(fitted.report))
    plain = assemble(lens, benchmark, some)
    assert "chosen" not in plain.report[MODALITY]
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
