"""The fourth place: a plan as hooks of a TransformerLens bridge gives the logits that it gives natively."""

import pytest
import torch
from helpers.bridge import (
    CLOSE,
    CLOSE_STATES,
    GREEDY,
    attached,
    bridge_of,
    forward,
    generated,
    n_hooks,
    native,
    pair,
    stacked,
)
from helpers.places import NAMES, new_tokens, plans, reference_logits, split_gate, turn
from helpers.plans import gated_plan, lens_of, linear_gate, questions, vector
from helpers.tiny import D_MODEL, N_LAYERS, tiny_llama, tiny_llava
from transformer_lens import ActivationCache
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import MistralConfig, MistralForCausalLM

import rmuse_interp.operators as op
from rmuse_interp import RMuseError, load_model
from rmuse_interp.edits import deciding
from rmuse_interp.edits.bridge_hooks import fwd_hooks
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.lens.bridge import to_bridge

# -- the bridge ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [tiny_llava, tiny_llama])
def test_the_bridge_is_the_same_model_and_leaves_the_first_one_alone(folder):
    lens = lens_of(folder())
    asked = questions() if folder is tiny_llava else questions()[:1]
    inputs = lens.encode(*asked)
    with torch.no_grad():
        before = lens.hf(**inputs).logits
        bridge = bridge_of(folder())
        after = lens.hf(**inputs).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(forward(bridge, inputs)[real], before[real], **CLOSE)
    assert torch.equal(before, after)
    assert lens.hf.config._attn_implementation != "eager"
    assert bridge.processor is not None
    assert not any("bridge" in type(module).__name__.lower() for module in lens.hf.modules())


# -- equal logits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_step_equals_the_native_place(name):
    lens, bridge = pair()
    plan, inputs = plans(lens)[name], lens.encode(*questions())
    before = n_hooks(bridge)
    found = generated(bridge, inputs, fwd_hooks(plan, bridge))
    expected = native(lens, plan, inputs)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(stacked(found), stacked(expected), **CLOSE)
    assert n_hooks(bridge) == before
    untouched = generated(bridge, inputs)
    assert not torch.allclose(stacked(found)[:, :2], stacked(untouched)[:, :2], atol=1e-3)


@pytest.mark.parametrize("name", ["gated", "by modality", "per token"])
def test_every_step_equals_the_reference(name):
    lens, bridge = pair()
    plan = plans(lens)[name]
    prompts, images = questions()
    found = generated(bridge, lens.encode(prompts, images), fwd_hooks(plan, bridge))
    for row, tokens in enumerate(new_tokens(found).tolist()):
        expected = reference_logits(lens, plan, prompts[row], images[row], tokens[:-1])
        torch.testing.assert_close(stacked(found)[row], expected, **CLOSE)


def test_a_text_only_model_takes_the_same_hooks():
    lens, bridge = pair(tiny_llama())
    inputs = lens.encode(questions()[0])
    plan = turn().given("text").when(linear_gate(1, "question")) >> op.Add(vector(3)).at(layers=[3])
    found, expected = generated(bridge, inputs, fwd_hooks(plan, bridge)), native(lens, plan, inputs)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(stacked(found), stacked(expected), **CLOSE)
    assert not torch.allclose(stacked(found), stacked(generated(bridge, inputs)), atol=1e-3)


def test_transformers_own_generation_runs_them_too_beams_included():
    lens, bridge = pair()
    plan, inputs = plans(lens)["by modality"], lens.encode(*questions())
    beams = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4, "do_sample": False}
    more = {key: value for key, value in inputs.items() if key != "input_ids"} | beams
    with bridge.hooks(fwd_hooks=fwd_hooks(plan, bridge)):
        found = bridge.hf_generate(inputs["input_ids"], **more)
    with plan.attach(lens.hf):
        expected = lens.hf.generate(**inputs, **beams)
    assert torch.equal(found, expected)
    assert not torch.equal(found, bridge.hf_generate(inputs["input_ids"], **more))


# -- rows ---------------------------------------------------------------------------------------------------------


def test_rows_are_decided_one_by_one_and_closed_ones_come_back_bit_for_bit():
    lens, bridge = pair()
    prompts, images = questions()
    plan, inputs = as_plan(turn().when(split_gate(lens))), lens.encode(prompts, images)
    fired = plan.decide(lens, prompts, images).fired[:, 0].tolist()
    assert len(set(fired)) == 2
    hooks = fwd_hooks(plan, bridge)
    found, untouched = generated(bridge, inputs, hooks), generated(bridge, inputs)
    for row, steered in enumerate(fired):
        assert torch.equal(stacked(found)[row], stacked(untouched)[row]) != steered
        # Alone, through the very same hooks, the row is decided the same.
        alone = generated(bridge, lens.encode(prompts[row], [images[row]]), hooks)
        assert torch.equal(new_tokens(alone)[0], new_tokens(found)[row])
        torch.testing.assert_close(stacked(alone)[0], stacked(found)[row], **CLOSE)


@pytest.mark.parametrize("name", ["question", "all", "by modality"])
def test_the_mask_is_read_off_the_scores_whatever_side_it_pads(name):
    lens, bridge = pair()
    plan, left = plans(lens)[name], lens.encode(*questions())
    width = left["attention_mask"].sum(dim=1)
    columns = (torch.arange(left["input_ids"].shape[1]) + left["input_ids"].shape[1] - width[:, None]) % (
        left["input_ids"].shape[1]
    )
    right = {
        **left,
        **{key: left[key].gather(1, columns) for key in ("input_ids", "attention_mask")},
    }
    assert not torch.equal(right["attention_mask"], left["attention_mask"])
    hooks = fwd_hooks(plan, bridge)
    session = hooks[0][1].__self__
    for inputs in (left, right):
        found, expected = forward(bridge, inputs, hooks), attached(lens, plan, inputs)
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(found[real], expected[real], **CLOSE)
        assert torch.equal(session.state.call.real, real)
        assert torch.equal(session.state.query.prompt_end, width - 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_hides_the_same_columns(dtype):
    lens = load_model(tiny_llama(), dtype=dtype)
    bridge, inputs = to_bridge(lens), lens.encode(questions()[0])
    assert bridge.cfg.dtype == lens.hf.dtype
    hooks = fwd_hooks(as_plan(turn()), bridge)
    logits = forward(bridge, inputs, hooks)
    assert torch.equal(hooks[0][1].__self__.state.call.real, inputs["attention_mask"].bool())
    assert logits.dtype == lens.hf.dtype


# -- what the calls do not tell -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gated", "by position", "response", "per token"])
def test_given_responses_are_steered_from_the_prompts_end(name):
    lens, bridge = pair()
    plan = plans(lens)[name]
    inputs = lens.encode(*questions(), ["<think> The person is a baker.", "", "It is green.", "<think> I do"])
    real = inputs["attention_mask"].bool()
    found = forward(bridge, inputs, fwd_hooks(plan, bridge, encoding=inputs))
    torch.testing.assert_close(found[real], attached(lens, plan, inputs, inputs.prompt_end)[real], **CLOSE)
    unsaid = forward(bridge, inputs, fwd_hooks(plan, bridge))
    assert not torch.allclose(found[real], unsaid[real], atol=1e-3), "the responses were to be told apart"


@pytest.mark.parametrize("per", ["query", "token"])
def test_a_gate_without_a_finite_score_fires(per):
    lens, bridge = pair(tiny_llama())
    inputs = lens.encode(questions()[0])
    gate = linear_gate(1, threshold=1e30)
    gate.scorer.weight.fill_(torch.nan)
    found, wanted = (
        forward(bridge, inputs, fwd_hooks(as_plan(edit), bridge)) for edit in (turn().when(gate, per), turn())
    )
    assert torch.equal(found, wanted)


def test_generation_without_a_cache_and_prompts_in_chunks():
    lens, bridge = pair(tiny_llama())
    inputs = lens.encode(questions()[0])
    plan = as_plan(turn().when(linear_gate(1, "question", threshold=-3.0)))
    expected = native(lens, plan, inputs)
    for said in (inputs, None):
        hooks = fwd_hooks(plan, bridge, encoding=said)
        bare = generated(bridge, inputs, hooks, use_past_kv_cache=False)
        with bridge.hooks(fwd_hooks=hooks):
            chunked = bridge.hf_generate(
                inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                prefill_chunk_size=4,
                stop_at_eos=False,
                **GREEDY,
            )
        for found in (bare, chunked):
            error = (stacked(found) - stacked(expected)).abs().max()
            assert error < 1e-5 if said else error > 1e-3


def test_embeddings_instead_of_ids():
    lens, bridge = pair(tiny_llama())
    inputs = lens.encode("Who is Oren Tal?")
    plan = as_plan(turn().when(linear_gate(1, "last", threshold=-1e30)))
    embeds = lens.hf.get_input_embeddings()(inputs["input_ids"]).detach()
    for cached in (True, False):
        hooks = fwd_hooks(plan, bridge, encoding=inputs)
        found = generated(bridge, {"input_ids": embeds}, hooks, use_past_kv_cache=cached)
        torch.testing.assert_close(stacked(found), stacked(native(lens, plan, inputs)), **CLOSE)


# -- caches of activations ----------------------------------------------------------------------------------------


def test_an_activation_cache_holds_values_after_the_edits():
    lens, bridge = pair()
    plan = as_plan(op.Add(vector(3), scale=4.0).at(layers=[2]).on("prompt_end"))
    inputs = lens.encode(*questions())
    more = {key: value for key, value in inputs.items() if key != "input_ids"}
    with torch.no_grad():
        _, before = bridge.run_with_cache(inputs["input_ids"], **more)
        with bridge.hooks(fwd_hooks=fwd_hooks(plan, bridge)):
            logits, after = bridge.run_with_cache(inputs["input_ids"], **more)
        _, traced = lens.run_with_cache(*questions(), plan=plan)
    assert isinstance(after, ActivationCache)
    real = inputs["attention_mask"].bool()
    for layer in range(N_LAYERS):
        name = f"blocks.{layer}.hook_resid_post"
        assert torch.equal(after[name], after["resid_post", layer])
        torch.testing.assert_close(after[name][real], traced[name][real], **CLOSE_STATES)
    name = "blocks.2.hook_resid_post"
    torch.testing.assert_close(after[name][:, -1], before[name][:, -1] + 4.0 * vector(3), **CLOSE)
    assert torch.equal(after[name][:, :-1], before[name][:, :-1])
    assert torch.equal(after["resid_pre", 3], after[name])
    torch.testing.assert_close(logits[real], attached(lens, plan, inputs)[real], **CLOSE)


# -- decisions ----------------------------------------------------------------------------------------------------


def test_a_two_pass_plan_needs_a_decision_and_runs_with_one():
    lens, bridge = pair()
    prompts, images = questions()
    plan, inputs = as_plan(turn([1, 2]).when(split_gate(lens, 3))), lens.encode(prompts, images)
    with pytest.raises(RMuseError, match=r"plan\.decide"):
        fwd_hooks(plan, bridge)
    decision = plan.decide(lens, prompts, images)
    assert decision.fired.any()
    assert not decision.fired.all()
    found = generated(bridge, inputs, fwd_hooks(plan, bridge, decision=decision))
    untouched = generated(bridge, inputs)
    with plan.attach(lens.hf, decision=decision):
        expected = lens.hf.generate(**inputs, **GREEDY, return_dict_in_generate=True, eos_token_id=None)
    torch.testing.assert_close(stacked(found), stacked(expected), **CLOSE)
    for row, fired in enumerate(decision.fired[:, 0].tolist()):
        assert torch.equal(stacked(found)[row], stacked(untouched)[row]) != fired
    by_itself = generated(bridge, inputs, plan.fwd_hooks(bridge, prompts, images))
    assert torch.equal(stacked(by_itself), stacked(found))
    with pytest.raises(RMuseError, match="required, got one about 4"):
        forward(bridge, lens.encode(["Where?"] * 3), fwd_hooks(plan, bridge, decision=decision))


@pytest.mark.parametrize(("readout", "prefix"), [("draft", None), ("last", "I refuse.")])
def test_hooks_decide_about_drafts_and_prefixed_prompts_too(readout, prefix, monkeypatch):
    monkeypatch.setattr(deciding, "DRAFT_TOKENS", 4)
    lens, bridge = pair()
    asked = questions()
    plan = as_plan(turn([1, 2]).when(split_gate(lens, 1, readout, prefix=prefix)))
    decision = plan.decide(lens, *asked)
    inputs = lens.encode(*asked)
    found = forward(bridge, inputs, plan.fwd_hooks(bridge, *asked))
    assert torch.equal(found, forward(bridge, inputs, plan.fwd_hooks(bridge, decision=decision)))
    assert not torch.equal(found, forward(bridge, inputs))


# -- misuse -------------------------------------------------------------------------------------------------------


def test_the_same_plan_twice_raises_and_two_plans_act_in_order():
    lens, bridge = pair()
    inputs = lens.encode(*questions())
    once = fwd_hooks(gated_plan(), bridge)
    for again in (once, fwd_hooks(gated_plan(), bridge)):
        with pytest.raises(RMuseError, match="already"):
            forward(bridge, inputs, [*once, *again])
    one, other = as_plan(turn([2])), as_plan(op.Add(vector(3)).at(layers=[2]))
    both = forward(bridge, inputs, [*fwd_hooks(one, bridge), *fwd_hooks(other, bridge)])
    assert torch.equal(both, forward(bridge, inputs, fwd_hooks(one >> other, bridge)))
    assert not torch.equal(both, forward(bridge, inputs, fwd_hooks(other >> one, bridge)))


def test_hooks_come_off_after_an_error_and_serve_the_next_call():
    lens, bridge = pair()
    inputs, hooks = lens.encode(*questions()), fwd_hooks(gated_plan(), bridge)
    untouched, steered = forward(bridge, inputs), forward(bridge, inputs, hooks)

    def broken(h, hook):
        raise KeyboardInterrupt

    before = n_hooks(bridge)
    with pytest.raises(KeyboardInterrupt):
        forward(bridge, inputs, [*hooks, ("blocks.1.hook_resid_post", broken)])
    assert n_hooks(bridge) == before
    assert torch.equal(forward(bridge, inputs), untouched)
    kept = []
    keep = ("blocks.2.hook_resid_pre", lambda h, hook: kept.append(h.clone()))
    assert torch.equal(forward(bridge, inputs, [*hooks, keep]), steered)
    assert torch.equal(forward(bridge, inputs, hooks, stop_at_layer=2), kept[0])
    assert torch.equal(forward(bridge, inputs, hooks), steered)
    assert not torch.equal(steered, untouched)


def test_calls_that_show_too_little_are_refused():
    lens, bridge = pair()
    inputs, hooks = lens.encode("Where?"), fwd_hooks(as_plan(turn([2])), bridge)
    with pytest.raises(RMuseError, match="remove_batch_dim"):
        forward(bridge, inputs, hooks, remove_batch_dim=True)
    residual = torch.randn(1, inputs["input_ids"].shape[1], D_MODEL)
    with pytest.raises(RMuseError, match="start_at_layer"), torch.no_grad():
        bridge.run_with_hooks(residual, fwd_hooks=hooks, start_at_layer=2)
    forward(bridge, inputs, hooks)
    with pytest.raises(RMuseError, match="start_at_layer"), torch.no_grad():
        bridge.run_with_hooks(residual, fwd_hooks=hooks, start_at_layer=2)


def test_plans_of_other_models_and_layers_out_of_range_are_refused():
    lens, bridge = pair()
    bound = as_plan(turn()).bound_to(lens)
    fwd_hooks(bound, bridge)
    with pytest.raises(RMuseError, match="another model"):
        fwd_hooks(bound, bridge_of(tiny_llama()))
    with pytest.raises(RMuseError, match=r"0\.\.3"):
        as_plan(turn([N_LAYERS])).fwd_hooks(bridge)


def test_windows_of_attention_are_refused_where_they_hide_the_mask():
    config = MistralConfig(
        vocab_size=64,
        hidden_size=D_MODEL,
        intermediate_size=D_MODEL,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        architectures=["MistralForCausalLM"],
    )
    torch.manual_seed(0)
    plain = MistralForCausalLM(config).eval()
    twin = MistralForCausalLM(config).eval()
    twin.load_state_dict(plain.state_dict())
    bridge = build_bridge_from_module(twin, "MistralForCausalLM", hf_config=config)
    plan = as_plan(op.Add(vector(3)).at(layers=[1]))
    hooks = fwd_hooks(plan, bridge)
    ids = torch.randint(3, 64, (2, 12))
    with torch.no_grad():
        with plan.attach(plain):
            expected = plain(ids[:, :7]).logits
        torch.testing.assert_close(bridge.run_with_hooks(ids[:, :7], fwd_hooks=hooks), expected, **CLOSE)
        with pytest.raises(RMuseError, match="fewer than 8 tokens"):
            bridge.run_with_hooks(ids, fwd_hooks=hooks)


def test_a_bridge_without_the_hook_points_is_refused():
    _, bridge = pair()
    point = bridge._hook_registry.pop("embed.hook_in")
    try:
        with pytest.raises(RMuseError, match=r"embed\.hook_in"):
            as_plan(turn()).fwd_hooks(bridge)
    finally:
        bridge._hook_registry["embed.hook_in"] = point
