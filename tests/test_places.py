"""One plan, three places, equal logits: an nnsight context, a stored nnsight edit, hooks on the plain model.

The reference is a forward hook written here from the semantics alone: no cache, one row at a time, gates scored on
states taken with `output_hidden_states` from a plain forward pass.
"""

import pytest
import torch
from helpers.places import (
    NAMES,
    PLACES,
    SETTINGS,
    STEPS,
    early_end,
    hooks_of,
    native,
    new_tokens,
    plain,
    plans,
    reference_logits,
    split_gate,
    turn,
)
from helpers.plans import PICTURES, lens_of, linear_gate, questions, vector
from helpers.tiny import tiny_llava

import rmuse_interp.operators as op
from rmuse_interp.edits.plan import as_plan


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_every_step_equals_a_plain_forward_hook(name, place):
    lens = lens_of(tiny_llava())
    plan = plans(lens)[name]
    prompts, images = questions()
    end = early_end(lens, plan)
    more = {"eos_token_id": end, "pad_token_id": 0}
    result = PLACES[place](lens, plan, prompts, images, **more)
    tokens, logits = new_tokens(result), torch.stack(result.logits, dim=1)
    lengths = [row.index(end) + 1 if end in row else len(row) for row in tokens.tolist()]
    assert min(lengths) < max(lengths), "one row was to end early"
    unsteered = torch.stack(plain(lens, plan, prompts, images, **more).logits, dim=1)
    moved = False
    for row, length in enumerate(lengths):
        expected = reference_logits(lens, plan, prompts[row], images[row], tokens[row, : length - 1].tolist())
        torch.testing.assert_close(logits[row, :length], expected, atol=1e-5, rtol=1e-5)
        shared = min(length, unsteered.shape[1])
        moved |= not torch.allclose(logits[row, :shared], unsteered[row, :shared], atol=1e-3)
    assert moved, "the plan was to do something"


@pytest.mark.parametrize("name", NAMES)
def test_the_places_agree_to_the_bit_and_undo_themselves(name):
    lens = lens_of(tiny_llava())
    plan = plans(lens)[name]
    asked = questions()
    before, hooks = plain(lens, plan, *asked), hooks_of(lens)
    found = {place: run(lens, plan, *asked) for place, run in PLACES.items()}
    for result in found.values():
        assert torch.equal(result.sequences, found["native"].sequences)
        torch.testing.assert_close(
            torch.stack(result.logits), torch.stack(found["native"].logits), atol=1e-5, rtol=0
        )
    after = plain(lens, plan, *asked)
    assert torch.equal(torch.stack(before.logits), torch.stack(after.logits))
    with torch.no_grad(), lens.generate(*asked, **SETTINGS) as tracer:
        traced = tracer.result.save()
    assert torch.equal(torch.stack(before.logits), torch.stack(traced.logits))
    assert "generate" not in vars(lens.hf)
    assert hooks_of(lens) == hooks


@pytest.mark.parametrize("place", PLACES)
def test_a_closed_gate_returns_its_rows_bit_for_bit(place):
    lens = lens_of(tiny_llava())
    gate = split_gate(lens)
    plan = as_plan(turn().when(gate))
    prompts, images = questions()
    fired = plan.decide(lens, prompts, images).fired[:, 0]
    assert fired.any()
    assert not fired.all()
    result, untouched = PLACES[place](lens, plan, prompts, images), plain(lens, plan, prompts, images)
    for row, steered in enumerate(fired.tolist()):
        same = torch.equal(torch.stack(result.logits)[:, row], torch.stack(untouched.logits)[:, row])
        assert same != steered
    shut = as_plan(turn().when(gate.at_threshold(1e30)))
    result = PLACES[place](lens, shut, prompts, images)
    assert torch.equal(torch.stack(result.logits), torch.stack(untouched.logits))


@pytest.mark.parametrize("per", ["query", "token"])
@pytest.mark.parametrize("place", PLACES)
def test_a_gate_without_a_finite_score_fires(place, per):
    """As if there were no gate, although no finite score would pass the threshold: the forgotten stay hidden."""
    lens, asked = lens_of(tiny_llava()), questions()
    gate = linear_gate(1, threshold=1e30)
    gate.scorer.weight.fill_(torch.nan)
    plan = as_plan(turn().when(gate, per))
    found = PLACES[place](lens, plan, *asked)
    wanted = PLACES[place](lens, as_plan(turn()), *asked)
    assert torch.equal(torch.stack(found.logits), torch.stack(wanted.logits))
    if per == "query":
        assert plan.decide(lens, *asked).fired.all()


def test_an_edit_that_does_nothing_is_told_from_one_that_does():
    lens = lens_of(tiny_llava())
    asked = questions()
    untouched = torch.stack(plain(lens, None, *asked).logits)
    for edit, acts in ((op.Add(vector(3), scale=0.0), False), (op.Add(vector(3), scale=1e-2), True)):
        steered = torch.stack(native(lens, as_plan(edit.at(layers=[2])), *asked).logits)
        assert torch.equal(steered, untouched) != acts


def test_rows_are_decided_one_by_one_and_alone_they_are_decided_the_same():
    lens = lens_of(tiny_llava())
    plan = plans(lens)["by modality"]
    prompts, images = questions()
    together = lens.respond(prompts, images, plan, max_new_tokens=STEPS)
    for row, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        alone = lens.respond(prompt, [image], plan, max_new_tokens=STEPS)[0]
        assert (alone.text, alone.fired) == (together[row].text, together[row].fired)
        assert (
            alone.score == pytest.approx(together[row].score, abs=1e-4) or alone.score is together[row].score
        )
        assert (together[row].fired is None) == (PICTURES[row] is None)
    assert {response.fired for response in together} == {True, False, None}
