"""Decisions that have to come first, misuse that is refused, and nnsight contexts of the user's own."""

import pytest
import torch
from helpers.places import (
    PLACES,
    SETTINGS,
    STEPS,
    hooks_of,
    in_a_context,
    native,
    new_tokens,
    plain,
    plans,
    split_gate,
    turn,
)
from helpers.plans import gated_plan, lens_of, linear_gate, questions, vector
from helpers.tiny import IMAGE_TOKENS, tiny_llama, tiny_llava

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import as_plan

# -- decisions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [None, "I cannot help with that."])
def test_two_pass_plans_decide_first(prefix):
    lens = lens_of(tiny_llava())
    gate = split_gate(lens, 3, "last", prefix=prefix)
    plan = as_plan(turn([1, 2]).when(gate))
    prompts, images = questions()
    assert not plan.single_pass
    decision = plan.decide(lens, prompts, images)
    said = prompts if prefix is None else [f"{prefix} {prompt}" for prompt in prompts]
    for row, (prompt, image) in enumerate(zip(said, images, strict=True)):
        with torch.no_grad():
            lens.hf(**lens.encode([prompt], [image]))
            state = lens.run_with_cache(prompt, [image], names="blocks.3.hook_resid_post")[1][
                "resid_post", 3
            ][0, -1]
        assert float(decision.score[row, 0]) == pytest.approx(float(gate.score(state)), abs=1e-4)
    assert decision.fired.any()
    assert not decision.fired.all()
    expected = native(lens, as_plan(turn([1, 2])), prompts, images)
    untouched = plain(lens, None, prompts, images)
    with plan.attach(lens.hf, decision=decision):
        found = lens.hf.generate(**lens.encode(prompts, images), **SETTINGS)
    with torch.no_grad(), lens.generate(prompts, images, plan=plan, decision=decision, **SETTINGS) as tracer:
        traced = tracer.result.save()
    for row, fired in enumerate(decision.fired[:, 0].tolist()):
        wanted = torch.stack((expected if fired else untouched).logits)[:, row]
        torch.testing.assert_close(torch.stack(found.logits)[:, row], wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.stack(traced.logits)[:, row], wanted, atol=1e-5, rtol=1e-5)
    answers = lens.respond(prompts, images, plan, max_new_tokens=STEPS)
    assert [answer.fired for answer in answers] == decision.fired[:, 0].tolist()


def test_the_scoring_pass_is_not_steered_and_leaves_nothing_behind():
    lens = lens_of(tiny_llava())
    asked, hooks = questions(), hooks_of(lens)
    plan = as_plan(turn([0]).when(linear_gate(3)))
    alone = plan.decide(lens, *asked)
    with as_plan(op.Add(vector(9), scale=5.0).at(layers=[0]).on("all")).attach(lens.hf):
        under_another = plan.decide(lens, *asked)
    assert torch.equal(alone.score, under_another.score)
    assert hooks_of(lens) == hooks


def test_an_edit_on_all_tokens_cannot_wait_for_a_gate_in_a_later_chunk():
    lens = lens_of(tiny_llava())
    with pytest.raises(RMuseError, match=r"plan\.decide"):
        native(lens, plans(lens)["prompt"], *questions(), prefill_chunk_size=4)
    plan = plans(lens)["all"]
    with pytest.raises(RMuseError, match=r"plan\.decide"):
        native(lens, plan, *questions(), prefill_chunk_size=4)
    decision = plan.decide(lens, *questions())
    with plan.attach(lens.hf, decision=decision):
        chunked = lens.hf.generate(**lens.encode(*questions()), prefill_chunk_size=4, **SETTINGS)
    torch.testing.assert_close(
        torch.stack(chunked.logits),
        torch.stack(native(lens, plan, *questions()).logits),
        atol=1e-5,
        rtol=1e-5,
    )


# -- misuse -------------------------------------------------------------------------------------------------------


def test_the_same_plan_twice_on_one_model_raises():
    lens = lens_of(tiny_llava())
    plan = gated_plan()
    with plan.attach(lens.hf):
        for again in (
            lambda: plan.attach(lens.hf),
            lambda: gated_plan().attach(lens.hf),
            lambda: plan.install(lens),
        ):
            with pytest.raises(RMuseError, match="already"):
                again()
        with pytest.raises(RMuseError, match="already"):
            lens.trace("Where?", plan=plan)
    with plan.install(lens), pytest.raises(RMuseError, match="already"):
        lens.generate("Where?", plan=plan)
    plan.attach(lens.hf).detach()


def test_handles_come_off_in_any_order():
    lens = lens_of(tiny_llava())
    one, other = as_plan(turn([1])), as_plan(op.Add(vector(3)).at(layers=[2]))

    def run():
        return torch.stack(plain(lens, None, *questions()).logits)

    untouched, chained = run(), torch.stack(native(lens, one >> other, *questions()).logits)
    lone = torch.stack(native(lens, other, *questions()).logits)
    first, second = one.attach(lens.hf), other.attach(lens.hf)
    assert torch.equal(run(), chained)
    first.detach()
    first.detach()
    assert torch.equal(run(), lone)
    assert not torch.equal(lone, chained)
    second.detach()
    assert torch.equal(run(), untouched)


def test_a_prompt_end_outside_the_row_is_refused():
    lens = lens_of(tiny_llava())
    inputs = lens.encode(*questions())
    with as_plan(turn()).attach(lens.hf) as handle:
        for bad in ([0, 0], inputs.prompt_end + 1, [-1] * 4):
            with pytest.raises(RMuseError, match="one prompt_end per row"):
                handle.expecting(inputs["input_ids"], inputs["attention_mask"], bad).__enter__()


def test_errors_in_a_context_come_out_as_they_are():
    lens = lens_of(tiny_llava())
    plan = plans(lens)["all"]
    with pytest.raises(RMuseError, match=r"plan\.decide"):
        in_a_context(lens, plan, *questions(), prefill_chunk_size=4)
    assert torch.equal(
        in_a_context(lens, plan, *questions()).sequences, native(lens, plan, *questions()).sequences
    )


def test_a_part_of_the_model_cannot_be_called_alone():
    lens = lens_of(tiny_llava())
    inputs = lens.encode("Where?")
    with as_plan(turn()).attach(lens.hf):
        with pytest.raises(RMuseError, match="call the model"):
            lens.hf.model(**inputs)
        lens.hf(**inputs)
        with pytest.raises(RMuseError, match="call the model"):
            lens.hf.model(**lens.encode("Where does this person live?"))


# -- nnsight contexts for the user --------------------------------------------------------------------------------


def test_the_block_sees_post_edit_values_and_its_saves_work():
    lens = lens_of(tiny_llava())
    edit = op.Add(vector(3), scale=4.0).at(layers=[2]).on("prompt_end")
    prompts, images = questions()
    with torch.no_grad():
        with lens.trace(prompts, images):
            early = lens.blocks[1].output.save()
            before = lens.blocks[2].output.save()
        with lens.trace(prompts, images, plan=edit):
            vision = lens.nn.model.vision_tower.output.last_hidden_state.save()
            early_again = lens.blocks[1].output.save()
            after = lens.blocks[2].output.save()
            logits = lens.nn.output.logits.save()
        with lens.generate(prompts, images, plan=edit, max_new_tokens=3, do_sample=False) as tracer:
            seen = [].save()
            for _ in tracer.iter[:3]:
                seen.append(lens.blocks[2].output)
            ids = tracer.result.save()
    assert torch.equal(early, early_again)
    torch.testing.assert_close(after[:, -1], before[:, -1] + 4.0 * vector(3), atol=1e-5, rtol=1e-5)
    assert torch.equal(after[:, :-1], before[:, :-1])
    assert vision.shape[1] == IMAGE_TOKENS + 1
    assert logits.shape[0] == len(prompts)
    assert [tuple(state.shape[:2]) for state in seen] == [tuple(after.shape[:2]), (4, 1), (4, 1)]
    torch.testing.assert_close(seen[0], after, atol=1e-5, rtol=1e-5)
    assert ids.shape[1] == after.shape[1] + 3


def test_a_users_own_stored_edit_goes_on_beside_a_plan():
    lens = lens_of(tiny_llava())
    plan = as_plan(op.Add(vector(3)).at(layers=[2]))
    with lens.nn.edit(inplace=True):
        lens.blocks[1].output[:] = 0
    try:
        with torch.no_grad():
            with plan.install(lens), lens.trace("Where?"):
                zero = lens.blocks[1].output.save()
                after = lens.blocks[2].output.save()
            with lens.trace("Where?"):
                before = lens.blocks[2].output.save()
        assert not zero.any()
        assert len(lens.nn._edits) == 1
        torch.testing.assert_close(after[:, -1], before[:, -1] + vector(3), atol=1e-5, rtol=1e-5)
    finally:
        lens.nn.clear_edits()


def test_early_end_of_all_rows_keeps_the_block_alive():
    lens = lens_of(tiny_llava())
    plan = as_plan(turn())
    end = int(new_tokens(native(lens, plan, "Where?", None))[0, 1])
    with (
        torch.no_grad(),
        lens.generate("Where?", plan=plan, max_new_tokens=20, do_sample=False, eos_token_id=end) as tracer,
    ):
        ids = tracer.result.save()
    assert ids[0, -1] == end
    assert ids.shape[1] <= lens.encode("Where?")["input_ids"].shape[1] + 2


def test_text_only_models_take_the_same_plans():
    lens = lens_of(tiny_llama())
    plan = turn().given("text").when(linear_gate(1, "question")) >> op.Add(vector(3)).at(layers=[3]).given(
        "image"
    )
    prompts = questions()[0]
    found = [run(lens, plan, prompts, None) for run in PLACES.values()]
    for result in found[1:]:
        torch.testing.assert_close(
            torch.stack(result.logits), torch.stack(found[0].logits), atol=1e-5, rtol=1e-5
        )
    with pytest.raises(RMuseError, match="text only"):
        lens.respond("Where?", [questions()[1][0]])


def test_plans_keep_their_precision_in_a_half_precision_model():
    from rmuse_interp import load_model

    lens = load_model(tiny_llava(), dtype="bfloat16")
    plan = gated_plan()
    handle = plan.attach(lens.hf)
    lens.hf.to(torch.bfloat16)
    assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in plan.buffers())
    assert lens.hf(**lens.encode(*questions())).logits.dtype == torch.bfloat16
    handle.detach()
