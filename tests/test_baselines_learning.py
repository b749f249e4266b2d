"""What every baseline learns from which rows, and how its setting is chosen."""

from dataclasses import replace

import pytest
import torch
from helpers.baselines import course, epochs, held_out, nats, trial

from rmuse_interp.baselines import BASELINES, batches, training
from rmuse_interp.baselines.batches import Row, encode, refused, rows_of
from rmuse_interp.baselines.losses import divergence, token_loss
from rmuse_interp.baselines.methods import build, read_states, steered_layer
from rmuse_interp.baselines.trainables import LowRank, linear_names
from rmuse_interp.baselines.trials import best, next_setting


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Validation with short responses."""
    monkeypatch.setattr(training, "hold_out", held_out)


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
