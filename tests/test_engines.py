"""Every way into a model, under an attached plan: steered as the plain hook of the reference is, or refused."""

import copy
import threading

import pytest
import torch
from helpers.places import PLANS, PUSH, TEXTS, plans, steered, turn
from helpers.plans import lens_of, linear_gate, questions, vector
from helpers.tiny import picture, tiny_llama, tiny_llava
from transformers import AutoModelForCausalLM

import rmuse_interp.operators as op
from rmuse_interp import Plan, RMuseError, load_model
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.edits.state import beside
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.models.layout import find_layout

pytestmark = pytest.mark.slow

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


# -- other wrappings of a model -----------------------------------------------------------------------------------


def test_compiled_graphs_are_steered_in_every_order_of_attaching_and_compiling():
    """Graphs are shared by the instances of a class: one made without a plan must not run in place of its hooks."""
    one, two = (load_model(tiny_llama(seed, n_layers=2)).hf for seed in (0, 1))
    ids = torch.tensor([[1, 50, 60, 70, 80]])
    plan = as_plan(op.Add(vector(4), scale=3.0).at(layers=[1]).when(linear_gate(0, threshold=-100.0)))
    plain, eager = (
        steered(two, ids),
        {name: steered(two, ids, plan=p) for name, p in (("a", plan), ("b", PUSH))},
    )
    assert min(float((plain - found).abs().max()) for found in eager.values()) > 0.1
    torch._dynamo.reset()
    torch._dynamo.config.skip_nnmodule_hook_guards = True  # as in a process that has attached nothing yet
    torch._dynamo.config._config["skip_nnmodule_hook_guards"].default = True
    first, second = (torch.compile(model, backend="eager") for model in (one, two))
    own = steered(first, ids)  # compiled before anything is attached
    torch.testing.assert_close(own, steered(one, ids), **CLOSE)
    torch.testing.assert_close(steered(second, ids, plan=plan, to=two), eager["a"], **CLOSE)
    torch.testing.assert_close(steered(second, ids), plain, **CLOSE)
    torch.testing.assert_close(
        steered(second, ids, plan=PUSH), eager["b"], **CLOSE
    )  # to what compile returned
    with plan.attach(two):
        torch.testing.assert_close(steered(first, ids), own, **CLOSE)
    seen = []
    asking = threading.Thread(target=lambda: seen.append(torch._dynamo.config.skip_nnmodule_hook_guards))
    asking.start()
    asking.join()
    assert seen == [False]
    torch._dynamo.reset()


def test_a_model_with_adapters_is_steered_through_any_of_its_wrappings():
    peft = pytest.importorskip("peft")
    hf = load_model(tiny_llama()).hf
    ids = torch.tensor([[1, 50, 60, 70, 80]])
    adapted = peft.get_peft_model(hf, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    plain, expected = steered(adapted, ids), steered(hf, ids, plan=PUSH)
    assert not torch.allclose(plain, expected, atol=0.1)
    torch.testing.assert_close(steered(adapted, ids, plan=PUSH), expected, **CLOSE)
    with PUSH.attach(adapted):
        tokens = adapted.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    with PUSH.attach(hf):
        assert torch.equal(tokens, hf.generate(ids, max_new_tokens=3, do_sample=False))
    virtual = peft.get_peft_model(
        load_model(tiny_llama()).hf, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(RMuseError, match="virtual tokens"):
        PUSH.attach(virtual)


def test_a_copy_of_an_attached_model_and_a_part_of_it_refuse_to_run():
    hf = load_model(tiny_llama()).hf
    ids = torch.tensor([[1, 50, 60]])
    with PUSH.attach(hf):
        hf(ids)
        twin = copy.deepcopy(hf)
        for call in (twin, twin.generate):
            with pytest.raises(RMuseError, match="copy"):
                call(ids)
        for part in (hf.forward, hf.model):  # the state of the call before would fit its shape
            with pytest.raises(RMuseError, match="call the model itself"):
                part(ids)
        assert hf(ids).logits.isfinite().all()


def test_arguments_by_position_are_those_of_the_class():
    """nnsight replaces `forward` on the instance by one whose signature begins with self."""
    lens = load_model(tiny_llava())
    inputs, plan = lens.encode(*questions()), plans(lens)["gated"]
    expected = steered(lens.hf, plan=plan, **inputs)
    with torch.no_grad(), lens.trace("Where?"):
        lens.nn.output.logits.save()
    layout = find_layout(lens.hf, tokenizer=lens.tokenizer)
    with torch.no_grad(), plan.attach(lens.hf, layout=layout):
        found = lens.hf(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"]).logits
    assert torch.equal(found, expected)


# -- decisions ----------------------------------------------------------------------------------------------------


def test_a_decision_is_about_its_own_prompts_pictures_and_plan():
    lens = lens_of(tiny_llava())
    plan, (prompts, images) = plans(lens)["gated"], questions()
    asked = lens.encode(prompts, images)
    right = plan.decide(lens, prompts, images)
    others = [prompts[0], "Who is Mara Venn?", *prompts[2:]]
    reweighed = Plan([turn().when(linear_gate(1, seed=9))])
    wrong = {
        "one for another number of rows": (right.rows([0]), "about 4 prompts"),
        "other questions": (plan.decide(lens, others, images), "about these prompts"),
        "another order": (right.rows([1, 0, 2, 3]), "about these prompts"),
        "other pictures": (
            plan.decide(lens, prompts, [picture(7), None, picture(8), None]),
            "these pictures",
        ),
        "another gate": (reweighed.decide(lens, prompts, images), "this plan's gates"),
        "another number of edits": (plans(lens)["by modality"].decide(lens, prompts, images), "for 1 edits"),
    }

    def traced(decision):
        with torch.no_grad(), lens.trace(prompts, images, plan=plan, decision=decision):
            lens.nn.output.logits.save()

    def generated(decision):
        with plan.attach(lens.hf, decision=decision):
            lens.hf.generate(**asked, max_new_tokens=1)

    def forwarded(decision):
        with torch.no_grad(), plan.attach(lens.hf, decision=decision):
            lens.hf(**asked)

    for decision, match in wrong.values():
        for place in (traced, generated, forwarded):
            with pytest.raises(RMuseError, match=match):
                place(decision)
    for more in ({}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
        with plan.attach(lens.hf, decision=right) as handle:
            lens.hf.generate(**asked, max_new_tokens=2, **more)
        rows = 2 if more else 1
        assert torch.equal(handle.state.query.decision.fired, right.fired.repeat_interleave(rows, dim=0))
    rounded = {k: v.bfloat16() if v.is_floating_point() else v for k, v in asked.items()}
    right.require_pictures(rounded)  # pixels as a half-precision model takes them


def test_two_prompts_of_one_decision_are_not_told_alike():
    """The case it is about: two retained questions after a decision about a forgotten one."""
    lens = lens_of(tiny_llava())
    plan = Plan([turn().when(linear_gate(1, threshold=-100.0))])
    decision = plan.decide(lens, ["Who is Oren Tal?"])
    with plan.attach(lens.hf, decision=decision), pytest.raises(RMuseError, match="one about 1"):
        lens.hf.generate(**lens.encode(["Where?", "How many?"]), max_new_tokens=1)


# -- threads ------------------------------------------------------------------------------------------------------


def test_two_threads_wait_for_their_turn_or_are_refused():
    """Two plans on one model at once would steer each other's questions; a second call in mid-pass is an error."""
    lens = load_model(tiny_llama())
    plans_of = [None, PUSH, PLANS["gated"], PLANS["two passes"]]
    alone = [lens.respond(TEXTS, None, plan, max_new_tokens=4) for plan in plans_of]
    found: dict[int, list] = {}

    def ask(i):
        found[i] = [lens.respond(TEXTS, None, plans_of[i], max_new_tokens=4) for _ in range(5)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(plans_of))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [one] * 5 for i, one in enumerate(alone)}

    errors: list[BaseException] = []

    def intrude(_module, _args):
        def call():
            try:
                lens.hf(torch.tensor([[1, 50]]))
            except RMuseError as error:
                errors.append(error)

        other = threading.Thread(target=call)
        other.start()
        other.join()

    with PUSH.attach(lens.hf), torch.no_grad():
        hook = lens.layout.blocks[0].register_forward_pre_hook(intrude)
        lens.hf(torch.tensor([[1, 50, 60]]))
        hook.remove()
        assert len(errors) == 1
        assert "one thread at a time" in str(errors[0])
        lens.hf(torch.tensor([[1, 50, 60]]))  # afterwards, the turn is free again
        intrude(None, None)
    assert len(errors) == 1


# -- one vocabulary per model -------------------------------------------------------------------------------------


def test_every_place_knows_the_same_special_tokens(tmp_path):
    """ChatML: delimiters of turns that the configuration does not name, beside a model loaded without its tokenizer."""
    plain = load_model(tiny_llama())
    tokenizer = plain.tokenizer
    ids = tokenizer.encode(" How red", add_special_tokens=False)
    marks = [tokenizer.convert_ids_to_tokens(token) for token in ids[:1]]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    lens = LensModel(plain.hf, tokenizer, find_layout(plain.hf, tokenizer=tokenizer), plain.name)
    other = AutoModelForCausalLM.from_pretrained(tiny_llama())
    assert find_layout(other).vocabulary.special < lens.layout.vocabulary.special
    gate = linear_gate(1, "question", threshold=-100.0)
    plan = Plan([turn([2]).when(gate)]).bound_to(lens)
    plan.save(tmp_path, lens)
    asked = lens.encode(TEXTS)
    expected = plan.decide(lens, TEXTS).score
    for kept in (plan, Plan.load(tmp_path)):
        for model in (lens.hf, other):
            with kept.attach(model) as handle:
                model.generate(**asked, max_new_tokens=1)
            torch.testing.assert_close(handle.state.query.decision.score, expected, **CLOSE)
    with Plan(list(plan)).attach(other) as handle:  # bound to no model, it knows the configuration only
        other.generate(**asked, max_new_tokens=1)
    assert not torch.allclose(handle.state.query.decision.score, expected, atol=1e-3)


# -- precision, devices, scores that are no numbers ---------------------------------------------------------------


def test_a_callers_plan_stays_where_it_is_and_its_parts_follow_the_states():
    state_of = lens_of(tiny_llama())
    with PUSH.attach(state_of.hf) as handle:
        state_of.hf(torch.tensor([[1, 50, 60]]))
    there = handle.state.beside(torch.empty(0, device="meta"))
    moved = [there.call.position, there.query.prompt_end, there.query.decision.fired]
    assert {one.device.type for one in moved} == {"meta"}
    assert handle.state.call.position.device.type == "cpu"
    assert beside(PUSH[0].operators[0], torch.empty(0, device="meta")).vector.is_meta
    assert not PUSH[0].operators[0].vector.is_meta
    hf = load_model(tiny_llama()).hf
    ids = torch.tensor([[1, 50, 60]])
    expected = steered(hf, ids, plan=PLANS["gated"])
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(hf, execution_device="cpu")  # weights on "meta" between calls
    torch.testing.assert_close(steered(hf, ids, plan=PLANS["gated"]), expected, **CLOSE)


@pytest.mark.parametrize("per", ["query", "token"])
def test_a_score_that_is_no_number_fires(per):
    lens = lens_of(tiny_llama())
    gate = linear_gate(0, threshold=100.0)
    plan = as_plan(PUSH[0].when(gate, per=per))
    gate.scorer.weight.fill_(torch.nan)  # as a damaged bundle would have it, were it loaded
    asked = torch.tensor([[1, 50, 60]])
    torch.testing.assert_close(
        steered(lens.hf, asked, plan=plan), steered(lens.hf, asked, plan=PUSH), **CLOSE
    )
