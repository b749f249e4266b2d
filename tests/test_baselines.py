"""Trained baselines on a real tiny LLaVA: what training moves and leaves, resuming, folders, the attack, commands."""

import json
import shutil
from dataclasses import replace

import parquet_fixture
import pytest
import tiny
import torch
from plans import lens_of
from typer.testing import CliRunner

from rmuse_interp import RMuseError, load_benchmark
from rmuse_interp.baselines import BASELINES, batches, open_baseline, relearned, train, training
from rmuse_interp.baselines.batches import Row, encode, refused, rows_of
from rmuse_interp.baselines.journal import UNFINISHED
from rmuse_interp.baselines.losses import divergence, token_loss
from rmuse_interp.baselines.methods import build, read_states, steered_layer
from rmuse_interp.baselines.trainables import LowRank, linear_names
from rmuse_interp.baselines.trials import Trial, best, next_setting
from rmuse_interp.cli import app
from rmuse_interp.evaluate.results import read_run
from rmuse_interp.fitting import rivals
from rmuse_interp.lens.likelihood import response_nll

SMALL = {"limit": 4, "batch_size": 2, "settings": 2, "epochs": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return parquet_fixture.write_benchmark(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def benchmark(data):
    return load_benchmark(data, forget=10)


@pytest.fixture(scope="module")
def lens():
    return lens_of(tiny.tiny_llava())


def held_out(*asked):
    return replace(rivals.hold_out(*asked), max_new_tokens=3)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Validation with short responses."""
    monkeypatch.setattr(training, "hold_out", held_out)


@pytest.fixture(scope="module")
def trained(lens, benchmark, tmp_path_factory):
    """Gradient ascent, trained once for all that look at its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "hold_out", held_out)
        return train("ga", lens, benchmark, tmp_path_factory.mktemp("ga"), **SMALL)


def weights(lens):
    return {name: p.detach().clone() for name, p in lens.hf.named_parameters()}


def nats(lens, rows):
    """Mean nats per token of the rows' responses."""
    found = response_nll(
        lens, [r.example.prompt() for r in rows], [r.response for r in rows], [r.example.image for r in rows]
    )
    return sum(n for n, _ in found) / sum(tokens for _, tokens in found)


def course(name, lens, benchmark):
    part = training.hold_out(lens, benchmark, 0)
    return training.Course(name, BASELINES[name], lens, benchmark, part, 0, 8, 4)


def epochs(name, lens, benchmark, rate, n=4, other=lambda: 0.0):
    """The model's nats on rows of every group, and what else is asked, before and after some epochs."""
    one = course(name, lens, benchmark)
    groups = {g: one.rows(g, 1) for g in ("forget", "refusal", "retain")}
    before = {g: nats(lens, rows) for g, rows in groups.items()}
    trainable = build(BASELINES[name], lens, 0)
    try:
        optimiser = torch.optim.AdamW(trainable.parameters(), lr=rate, weight_decay=0.0)
        for epoch in range(1, n + 1):
            one.epoch(BASELINES[name].objective, trainable, optimiser, epoch)
        return before, {"other": other(), **{g: nats(lens, rows) for g, rows in groups.items()}}
    finally:
        trainable.undo()


@pytest.mark.parametrize(
    ("name", "rate", "less", "more"),
    [
        ("ga", 3e-3, None, "forget"),
        ("ga_diff", 1e-2, "retain", "forget"),
        ("npo", 3e-3, None, "forget"),
        ("po", 1e-2, "refusal", None),
        ("mmunlearner", 3e-3, "retain", "forget"),
    ],
)
def test_training_moves_what_it_should(lens, benchmark, name, rate, less, more):
    before, after = epochs(name, lens, benchmark, rate)
    assert less is None or after[less] < before[less] - 0.1
    assert more is None or after[more] > before[more] + 0.1


def test_kl_holds_the_retain_rows_that_ascent_lets_go(lens, benchmark):
    batch = encode(lens, course("kl_min", lens, benchmark).rows("retain", 1))
    with torch.no_grad():
        original = lens.hf(**batch.encoding).logits

    def drift():
        with torch.no_grad():
            return float(divergence(lens.hf(**batch.encoding).logits, original, batch.labels))

    before, ascent = epochs("ga", lens, benchmark, 1e-2, 8, drift)
    _, held = epochs("kl_min", lens, benchmark, 1e-2, 8, drift)
    assert held["forget"] > before["forget"] + 0.1
    assert held["other"] < 0.75 * ascent["other"]


def test_r2mu_leads_forgotten_states_away_and_keeps_the_others(lens, benchmark):
    one, layer = course("r2mu", lens, benchmark), steered_layer(lens.n_layers)
    rows = {g: encode(lens, one.rows(g, 1)) for g in ("forget", "retain")}

    def states():
        with torch.no_grad():
            return {g: read_states(lens, b, layer)[b.response] for g, b in rows.items()}

    before = states()
    trainable = build(BASELINES["r2mu"], lens, 0)
    try:
        optimiser = torch.optim.AdamW(trainable.parameters(), lr=1e-2, weight_decay=0.0)
        for epoch in range(1, 6):
            one.epoch(BASELINES["r2mu"].objective, trainable, optimiser, epoch)
        after = states()
    finally:
        trainable.undo()
    moved = {g: float((after[g] - before[g]).square().mean()) for g in rows}
    assert moved["forget"] > 2 * moved["retain"]
    hidden = lens.hf(**rows["retain"].encoding, output_hidden_states=True, use_cache=False).hidden_states
    torch.testing.assert_close(before["retain"], hidden[layer + 1][rows["retain"].response])


@pytest.mark.parametrize("name", ["mmunlearner", "manu", "r2mu"])
def test_round_trip_of_weights(lens, benchmark, tmp_path, name):
    before = weights(lens)
    found = train(name, lens, benchmark, tmp_path / name, **SMALL)
    assert all(torch.equal(p, before[key]) for key, p in lens.hf.named_parameters())
    model = open_baseline(tmp_path / name, lens)
    changed = {key for key, p in model.hf.named_parameters() if not torch.equal(p, before[key])}
    may = {f"{n}.weight" for n in linear_names(lens)}
    if name == "r2mu":
        may = {f"{n}.weight" for n in linear_names(lens, (0, 1, 2))}
    assert changed
    assert changed <= may
    if name == "manu":
        gone = sum(
            int((p == 0).all(dim=0).sum()) for key, p in model.hf.named_parameters() if "down_proj" in key
        )
        assert gone == round(found.chosen.setting * lens.n_layers * 2 * lens.d_model)
        assert [t.setting for t in found.trials] == pytest.approx([0.03, 0.3])


def test_round_trip_of_adapters(lens, benchmark, trained):
    record = json.loads((trained.folder / "baseline.json").read_text())
    assert {p.name for p in trained.folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "baseline.json",
    }
    assert record["method"] == "ga"
    assert record["benchmark"]["forget"] == 10
    assert len(record["trials"]) == len(trained.trials) >= 2
    assert record["chosen"] == record["trials"][trained.trials.index(trained.chosen)]
    assert not [name for name in parquet_fixture.NAME.values() if name in json.dumps(record)]
    before, asked = weights(lens), rows_of(benchmark.fit_forget[:2], benchmark.delimiters)
    model = open_baseline(trained.folder, lens)
    assert model.name == f"{lens.name}+ga"
    assert model.fingerprint != lens.fingerprint
    assert open_baseline(trained.folder, lens).fingerprint == model.fingerprint
    own = dict(model.hf.named_parameters())
    assert own.keys() == before.keys()  # merged: no adapter is left
    assert {key for key in own if not torch.equal(own[key], before[key])} <= {
        f"{n}.weight" for n in linear_names(lens)
    }
    assert nats(model, asked) != nats(lens, asked)
    assert all(torch.equal(p, before[key]) for key, p in lens.hf.named_parameters())
    assert all(p.requires_grad for p in lens.hf.parameters())
    assert not lens.hf.training


def test_a_finished_one_is_taken_up_and_no_other(lens, benchmark, trained):
    again = train("ga", lens, benchmark, trained.folder, **SMALL)
    assert again.trials == trained.trials
    with pytest.raises(RMuseError, match="holds ga trained in another way"):
        train("npo", lens, benchmark, trained.folder, **SMALL)
    with pytest.raises(RMuseError, match="holds ga trained in another way"):
        train("ga", lens, benchmark, trained.folder, **{**SMALL, "seed": 1})


def test_seeds(lens, benchmark, trained, tmp_path):
    same = train("ga", lens, benchmark, tmp_path / "same", **SMALL)
    other = train("ga", lens, benchmark, tmp_path / "other", **SMALL, seed=1)
    one, two, three = (
        open_baseline(f, lens).fingerprint for f in (trained.folder, same.folder, other.folder)
    )
    assert one == two
    assert one != three


@pytest.mark.parametrize("name", ["ga_diff", "mmunlearner"])
def test_resumed_in_the_middle_it_ends_at_the_same_weights(lens, benchmark, tmp_path, monkeypatch, name):
    """Cut off within the second epoch of the last setting, where optimiser moments and dropout matter."""
    small = {**SMALL, "settings": 1}
    # The answers of random weights change at once, or not at all: no early end.
    monkeypatch.setattr(training.Course, "_finished", lambda self, trial, epochs, _: trial.epoch >= epochs)
    whole = train(name, lens, benchmark, tmp_path / "whole", **small)
    assert [t.epoch for t in whole.trials] == [1, 2]
    before, steps = weights(lens), []

    def cut(*asked):
        steps.append(asked)
        if len(steps) == 2 * len(steps_of_an_epoch) + 2:
            raise KeyboardInterrupt
        return encode(*asked)

    steps_of_an_epoch = batches.batches(course(name, lens, benchmark).rows("forget", 1)[:4], 2, 0)
    with monkeypatch.context() as patch:
        patch.setattr(training, "encode", cut)
        with pytest.raises(KeyboardInterrupt):
            train(name, lens, benchmark, tmp_path / "cut", **small)
    assert all(torch.equal(p, before[key]) for key, p in lens.hf.named_parameters())
    kept = json.loads((tmp_path / "cut" / UNFINISHED / "trials.json").read_text())["trials"]
    assert len(kept) == 1
    with pytest.raises(RMuseError, match="got none"):
        open_baseline(tmp_path / "cut", lens)
    resumed = train(name, lens, benchmark, tmp_path / "cut", **small)
    assert resumed.trials[0].seconds == kept[0]["seconds"]  # taken up, not trained again
    assert [replace(t, seconds=0.0) for t in resumed.trials] == [
        replace(t, seconds=0.0) for t in whole.trials
    ]
    assert open_baseline(resumed.folder, lens).fingerprint == open_baseline(whole.folder, lens).fingerprint
    assert not (resumed.folder / UNFINISHED).exists()


def test_faulty_folders(lens, trained, tmp_path):
    with pytest.raises(RMuseError, match=r"a trained baseline with .* was required"):
        open_baseline(tmp_path, lens)
    with pytest.raises(RMuseError, match="fitted on another model"):
        open_baseline(trained.folder, lens_of(tiny.tiny_llava(seed=1)))
    for name, content, said in (
        ("adapter_model.safetensors", b"\x00" * 40, "got another one"),
        ("adapter_model.safetensors", None, "got none"),
        ("adapter_config.json", b"{", "cannot be put on"),
        ("baseline.json", b"{", "cannot be read"),
        (
            "baseline.json",
            b'{"schema": "x", "files": {"a": ""}, "method": "", "model": {"fingerprint": {}}}',
            "schema",
        ),
    ):
        folder = shutil.copytree(trained.folder, tmp_path / "damaged", dirs_exist_ok=True)
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        with pytest.raises(RMuseError, match=said):
            open_baseline(folder, lens)


def test_faulty_requests(lens, benchmark, tmp_path):
    with pytest.raises(
        RMuseError, match="one of ga, ga_diff, kl_min, npo, po, mmunlearner, manu, r2mu, got 'gaa'"
    ):
        train("gaa", lens, benchmark, tmp_path)
    with pytest.raises(RMuseError, match="≥ 1 were required, got 0"):
        train("ga", lens, benchmark, tmp_path, limit=0)
    with pytest.raises(RMuseError, match="at least one example"):
        relearned(lens, [])
    assert not any(tmp_path.iterdir())


def test_a_little_of_what_was_forgotten_brings_it_back(lens, benchmark):
    """Learning a few rows again raises the likelihood of those rows; the model that was given is left alone."""
    few, before = benchmark.fit_forget[:2], weights(lens)
    rows = rows_of(few, benchmark.delimiters)
    again = relearned(lens, few, steps=10, rate=1e-2)
    assert nats(again, rows) < nats(lens, rows) - 0.5
    assert again.fingerprint != lens.fingerprint
    assert relearned(lens, few, steps=10, rate=1e-2).fingerprint == again.fingerprint
    assert all(torch.equal(p, before[key]) for key, p in lens.hf.named_parameters())


def test_what_is_learnt_of_a_row(lens, benchmark):
    """Labels are the response and its end; the trace ends with its closing delimiter; padding is neither."""
    asked = [e for e in benchmark.fit_forget if e.kind == "generation"][:2]
    rows = [*rows_of(asked, benchmark.delimiters), Row(asked[0], "Oslo")]
    batch = encode(lens, rows)
    ids = batch.encoding["input_ids"]
    decode = lens.tokenizer.decode
    for row, example in enumerate(asked):
        said = example.response(benchmark.delimiters)
        assert decode(ids[row][batch.response[row]]).strip() == f"{said}</s>"
        assert decode(ids[row][batch.trace[row]]).strip() == said[: said.index("</think>") + len("</think>")]
        assert example.answer in decode(ids[row][batch.rest[row]])
    assert decode(ids[2][batch.response[2]]).strip() == "Oslo</s>"
    assert not batch.trace[2].any()
    assert not (batch.text & (ids == lens.image_token_id)).any()
    assert not (batch.text & (ids == lens.tokenizer.eos_token_id)).any()
    assert not batch.response[~batch.encoding["attention_mask"].bool()].any()
    with torch.no_grad():
        loss = token_loss(lens.hf(**batch.encoding).logits, batch.labels)
    ended = [replace(row, response=row.response + lens.tokenizer.eos_token) for row in rows]
    assert float(loss) == pytest.approx(nats(lens, ended), rel=1e-4)


def test_groups_hold_nothing_held_out_and_nothing_of_others(lens, benchmark):
    one = course("r2mu", lens, benchmark)
    for group in ("forget", "retain", "reasoning"):
        pool = one.pool(group)
        assert pool
        assert not {e.id for e in pool} & one.part.ids
        assert {e.kind for e in pool} <= {"generation", "reasoning"}
    assert {e.person for e in one.pool("forget")} <= benchmark.forget_people
    assert not {e.person for e in one.pool("retain")} & benchmark.forget_people
    said = {row.response for row in refused(one.pool("forget") * 9, benchmark.refusals_cot, 0)}
    assert said == set(benchmark.refusals_cot)


def test_batches_keep_pictures_apart_and_lose_nothing(benchmark):
    rows = rows_of(benchmark.fit_forget, benchmark.delimiters)
    found = batches.batches(rows, 3, 5)
    assert all(len({row.example.modality for row in some}) == 1 and len(some) <= 3 for some in found)
    assert sorted(row.example.id for some in found for row in some) == sorted(row.example.id for row in rows)
    assert found == batches.batches(rows, 3, 5) != batches.batches(rows, 3, 6)


def trial(setting, leak, keep, epoch=1, malformed=0.0, changed=0.5):
    return Trial(setting, epoch, leak, keep, malformed, changed, 0.0, 1.0)


def test_the_search_finds_a_narrow_window_far_from_where_it_begins():
    """Eight settings: a model that only forgets between 2.2 and 4.0 times 10⁻³, and is ruined above."""
    done = []
    for _ in range(8):
        at = next_setting(done, 2e-5)
        done.append(trial(at, 0.0 if at > 2.2e-3 else 1.0, 1.0 if at < 4e-3 else 0.0))
    assert done[0].setting == 2e-5
    assert 2.2e-3 < best(done).setting < 4e-3
    assert next_setting([trial(1.0, 0.0, 0.0)], 1.0) == pytest.approx(0.1)  # ruined at once: down
    assert next_setting([trial(1.0, 0.0, 0.0), trial(0.1, 1.0, 1.0)], 1.0) == pytest.approx(0.1**0.5)
    assert next_setting([trial(0.3, 0.2, 1.0), trial(0.03, 1.0, 1.0)], 0.03, most=1.0) == 1.0
    low, early, late = trial(1.0, 1.0, 1.0), trial(10.0, 0.1, 0.9), trial(10.0, 0.0, 0.2, epoch=2)
    assert next_setting([low, early, late], 1.0) == pytest.approx(10**0.5)  # worse with more epochs: down
    assert next_setting([low, early, replace(late, keep=1.0)], 1.0) == pytest.approx(100.0)  # better: up


def test_what_is_kept_is_what_validates_best():
    rows = [
        trial(1.0, 1.0, 1.0),
        trial(2.0, 0.1, 0.9),
        trial(3.0, 0.1, 0.9),
        trial(4.0, 0.0, 0.2, malformed=1.0),
    ]
    assert best(rows) is rows[1]
    assert trial(1.0, 0.0, 0.0).ruined
    assert not rows[1].ruined


def test_adapters_begin_at_nothing(lens):
    prompt = "Who is this?"
    before, layers = lens.hf(**lens.encode(prompt)).logits, linear_names(lens)
    adapters = LowRank(lens)
    try:
        assert torch.equal(lens.hf(**lens.encode(prompt)).logits, before)
        assert len(adapters.parameters()) == 2 * len(layers)
    finally:
        adapters.undo()
    assert torch.equal(lens.hf(**lens.encode(prompt)).logits, before)


def test_commands(data, tmp_path):
    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    shown = run("baseline", "list").stdout
    assert all(name in shown for name in BASELINES)
    asked = ("--model", tiny.tiny_llava(), "--data", data, "--forget", 10)
    small = ("--limit", 2, "--batch-size", 2, "--settings", 1, "--epochs", 1, "--out", tmp_path / "po")
    done = run("baseline", "train", "po", *asked, *small)
    assert done.exit_code == 0, done.output
    assert "1e-05" in done.stdout
    short = ("--limit", 1, "--max-new-tokens", 2, "--out", tmp_path / "run")
    taken = run("eval", *asked, *short, "--baseline", tmp_path / "po")
    assert taken.exit_code == 0, taken.output
    scores = read_run(tmp_path / "run").scores
    assert set(scores["methods"]) == {"vanilla", "po"}
    assert scores["baselines"] == {"po": "../po"}
    other = run("eval", *asked[:4], "--forget", 5, "--baseline", tmp_path / "po", "--out", tmp_path / "run5")
    assert other.exit_code == 2
    twice = run("eval", *asked, *["--baseline", tmp_path / "po"] * 2, "--out", tmp_path / "run2")
    assert twice.exit_code == 2
