"""Every way of generating, with every kind of mask, position and cache: steered as plain hooks are, or refused."""

import copy
from functools import cache

import pytest
import torch
from helpers.places import PLANS, PUSH, TEXTS, new_tokens, reference_logits, steered, turn
from helpers.plans import lens_of, linear_gate, questions, vector
from helpers.tiny import tiny_llama, tiny_llava
from transformers import DynamicCache, GenerationConfig, GenerationMixin
from transformers.cache_utils import Cache, QuantizedLayer

import rmuse_interp.operators as op
from rmuse_interp import Plan, RMuseError, load_model
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.edits.trace import Recorder
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.models.layout import find_layout

CLOSE = {"atol": 1e-5, "rtol": 1e-5}

# -- ways of generating -------------------------------------------------------------------------------------------

GREEDY = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


@cache
def _windowed():
    """A model whose attention, and cache, reach back for eight tokens only."""
    from transformers import MistralConfig, MistralForCausalLM

    plain = lens_of(tiny_llama())
    kept = {
        key: value
        for key, value in plain.hf.config.to_dict().items()
        if key not in ("model_type", "architectures")
    }
    model = MistralForCausalLM(MistralConfig(**{**kept, "sliding_window": 8})).eval()
    model.load_state_dict(plain.hf.state_dict())
    model.generation_config = plain.hf.generation_config
    return LensModel(model, plain.processor, find_layout(model, tokenizer=plain.tokenizer), "windowed")


class _Rounded(QuantizedLayer):
    """A cache that keeps old states in another form, as quantised caches do, here without loss."""

    def _quantize(self, tensor, axis):
        return tensor.double()

    def _dequantize(self, tensor):
        return tensor.float()


def _by_hand(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """A decoding loop of one's own, for `custom_generate`."""
    return GenerationMixin._sample(
        model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs
    )


def _rounded_cache(lens):
    return Cache(layers=[_Rounded(residual_length=4) for _ in range(lens.n_layers)])


WAYS = {
    "without a cache": lambda lens: {"use_cache": False},
    "a static cache": lambda lens: {"cache_implementation": "static"},
    "a quantised cache": lambda lens: {"past_key_values": _rounded_cache(lens)},
    "a cache of one's own": lambda lens: {"past_key_values": DynamicCache()},
    "chunks": lambda lens: {"prefill_chunk_size": 4},
    "a static cache in chunks": lambda lens: {"cache_implementation": "static", "prefill_chunk_size": 4},
    "prompt lookup": lambda lens: {"prompt_lookup_num_tokens": 3},
    "an assistant": lambda lens: {"assistant_model": lens_of(tiny_llama(1)).hf},
    "oneself as assistant": lambda lens: {"assistant_model": lens.hf},
    "a loop of one's own": lambda lens: {"custom_generate": _by_hand},
    "stop words": lambda lens: {"stop_strings": ["zzz"], "tokenizer": lens.tokenizer},
    "sampling of the likeliest": lambda lens: {"do_sample": True, "top_k": 1},
}


@pytest.mark.parametrize("model", ["llama", "windowed"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_generating_is_steered_as_plain_hooks_are(way, model):
    lens = _windowed() if model == "windowed" else lens_of(tiny_llama())
    texts = TEXTS[1:] if way in ("prompt lookup", "an assistant", "oneself as assistant") else TEXTS
    for plan in PLANS.values():
        with plan.attach(lens.hf):
            out = lens.hf.generate(**lens.encode(texts), **{**GREEDY, **WAYS[way](lens)})
        new = out.sequences[:, -len(out.logits) :]
        for row, text in enumerate(texts):
            expected = reference_logits(lens, plan, text, None, new[row, :-1].tolist())
            torch.testing.assert_close(torch.stack(out.logits, 1)[row], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_kind_of_attention_is_steered(attention):
    lens, plan = load_model(tiny_llama()), PLANS["gated"]
    expected = steered(lens.hf, plan=plan, **lens.encode(TEXTS))[:, -1]
    lens.hf.set_attn_implementation(attention)
    found = steered(lens.hf, plan=plan, **lens.encode(TEXTS))[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_embeddings_are_steered_as_their_tokens_or_refused():
    lens, plan = lens_of(tiny_llama()), PLANS["gated"]
    asked = lens.encode(TEXTS)
    mask, embeds = asked["attention_mask"], lens.hf.get_input_embeddings()(asked["input_ids"])
    for more in ({}, {"cache_implementation": "static"}, {"num_beams": 2}):
        with plan.attach(lens.hf):
            expected = lens.hf.generate(**asked, **GREEDY, **more)
            found = lens.hf.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY, **more)
        assert torch.equal(found.sequences, new_tokens(expected))
    seeing = lens_of(tiny_llava())
    prompts, images = questions()
    both = seeing.encode(prompts, images)
    embeds = seeing.hf.get_input_embeddings()(both["input_ids"])
    pictured = as_plan(turn([2]).given("image"))
    with pictured.attach(seeing.hf), pytest.raises(RMuseError, match="pass all input_ids"):
        seeing.hf.generate(inputs_embeds=embeds, attention_mask=both["attention_mask"], max_new_tokens=1)


REFUSED = {
    "guidance": ({"guidance_scale": 2.0}, "guidance_scale", PUSH),
    "token healing": ({"token_healing": True}, "token_healing", PUSH),
    "paged": ({"cache_implementation": "paged"}, "continuous batching", PUSH),
    "lookup with spans": ({"prompt_lookup_num_tokens": 3}, "take tokens back", as_plan(PUSH[0].on("answer"))),
    "more rows by hand": (
        {"custom_generate": lambda model, input_ids, **_: model(input_ids.repeat(3, 1))},
        "rows",
        PUSH,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_ways_of_generating_that_a_plan_cannot_follow_are_refused(name):
    lens = lens_of(tiny_llama())
    settings, match, plan = REFUSED[name]
    with plan.attach(lens.hf), pytest.raises(RMuseError, match=match):
        lens.hf.generate(**lens.encode(TEXTS[:1]), max_new_tokens=2, **settings)
    with plan.attach(lens.hf):  # and the next question is answered as ever
        lens.hf.generate(**lens.encode(TEXTS[:1]), max_new_tokens=2)


def test_continuous_batching_and_traces_of_drafts_are_refused():
    lens = lens_of(tiny_llama())
    asked = lens.encode(TEXTS[:1])
    with PUSH.attach(lens.hf):
        for method in (lens.hf.generate_batch, lens.hf.init_continuous_batching):
            with pytest.raises(RMuseError, match="continuous batching"):
                method([[1, 50, 60]])
        with pytest.raises(RMuseError, match="hold several"):
            lens.hf(**asked, cu_seq_lens_q=torch.tensor([0, 3]))
    assert "generate_batch" not in vars(lens.hf)
    with PUSH.attach(lens.hf, recorder=Recorder()), pytest.raises(RMuseError, match="take tokens back"):
        lens.hf.generate(**asked, max_new_tokens=2, prompt_lookup_num_tokens=3)


# -- masks, positions and caches ----------------------------------------------------------------------------------


def test_the_mask_is_guessed_as_generate_guesses_it():
    """Padding that may be an end of turn, settings by position, by name and by configuration."""
    lens = lens_of(tiny_llama())
    ids = torch.tensor(
        [[1, 50, 2, 2, 60, 70, 2, 80], [2, 2, 50, 51, 52, 2, 53, 54], [0, 0, 0, 50, 51, 0, 52, 53]]
    )
    ways = [
        {},
        {"pad_token_id": 2},
        {"pad_token_id": 2, "eos_token_id": None},
        {"pad_token_id": 70},
        {"generation_config": GenerationConfig(pad_token_id=2, eos_token_id=80)},
        {"attention_mask": torch.ones_like(ids)},
    ]
    for settings in ways:
        seen: list[torch.Tensor] = []

        def look(_module, _args, kwargs, seen=seen):
            seen.append(kwargs["position_ids"][:, -1])

        hook = lens.hf.model.register_forward_pre_hook(look, with_kwargs=True)
        with PUSH.attach(lens.hf) as handle:
            lens.hf.generate(ids, **settings, max_new_tokens=1)
        hook.remove()
        # transformers counts positions with the mask it has guessed.
        assert handle.state.query.prompt_end.tolist() == seen[0].expand(3).tolist(), settings
    with PUSH.attach(lens.hf) as handle:
        lens.hf.generate(ids, GenerationConfig(pad_token_id=70, eos_token_id=80, max_new_tokens=1))
    assert handle.state.query.prompt_end.tolist() == [6, 7, 7]


def test_masks_with_holes_keep_their_positions_where_the_model_gets_another_form():
    lens, plan = lens_of(tiny_llama()), PLANS["gated"]
    asked = lens.encode(TEXTS)
    mask = asked["attention_mask"].clone()
    mask[:, -4] = 0
    found = {}
    for name in (None, "static"):
        with plan.attach(lens.hf) as handle:
            out = lens.hf.generate(
                asked["input_ids"], attention_mask=mask, cache_implementation=name, **GREEDY
            )
        found[name] = handle.state.call.position, out.sequences
    assert torch.equal(found[None][0], found["static"][0])
    assert torch.equal(found[None][1], found["static"][1])


def test_given_positions_tell_where_tokens_are():
    """Without a mask: steps by hand on a cache, rows of unlike lengths."""
    lens, plan = lens_of(tiny_llama()), as_plan(op.Add(vector(3), scale=3.0).at(layers=[1]).on(positions=[7]))
    ids = torch.tensor([[50, 51, 52]])
    step = torch.tensor([[53]])
    with torch.no_grad():
        plain = lens.hf(ids, use_cache=True)
        bare = lens.hf(step, past_key_values=plain.past_key_values, position_ids=torch.tensor([[7]])).logits
        with plan.attach(lens.hf):
            first = lens.hf(ids, position_ids=torch.tensor([[3, 4, 5]]), use_cache=True)
            at = {}
            for position in (7, 6):
                cache = first.past_key_values
                told = torch.tensor([[position]])
                at[position] = lens.hf(step, past_key_values=cache, position_ids=told).logits
                cache.crop(-1) if hasattr(cache, "crop") else None
    assert bare.shape == at[7].shape
    moved = at[7] - at[6]
    assert float(moved.abs().max()) > 0.1  # steered at position 7 only
    with plan.attach(lens.hf), pytest.raises(RMuseError, match="start again"):
        lens.hf(ids, position_ids=torch.tensor([[0, 1, 0]]))


def test_a_part_of_a_conversation_in_a_cache_is_announced_or_refused():
    lens, plan = lens_of(tiny_llama()), PLANS["gated"]
    ids = lens.encode(TEXTS[1:])["input_ids"]
    with torch.no_grad():
        cache = lens.hf(ids[:, :6], use_cache=True).past_key_values
        expected = steered(lens.hf, ids, plan=plan)[:, -1]
        with plan.attach(lens.hf) as handle:
            with pytest.raises(RMuseError, match="6 of its tokens are in a cache"):
                lens.hf(ids[:, 6:], past_key_values=copy.deepcopy(cache))
            with handle.expecting(ids):
                found = lens.hf(ids[:, 6:], past_key_values=copy.deepcopy(cache)).logits[:, -1]
            with pytest.raises(RMuseError, match="counts its tokens"):
                lens.hf(ids[:, 6:], past_key_values=((torch.zeros(1), torch.zeros(1)),))
            with pytest.raises(RMuseError, match="mask of the whole"):
                lens.hf(ids[:, 6:], past_key_values=cache, attention_mask=torch.ones_like(ids[:, 6:]))
            with pytest.raises(RMuseError, match="got one of attention"):
                lens.hf(ids, attention_mask=torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool))
    torch.testing.assert_close(found, expected, **CLOSE)


def test_conversations_that_take_turns_keep_their_own_decisions():
    lens = lens_of(tiny_llama())
    plan = Plan([turn([2]).when(linear_gate(1))])
    scores = plan.decide(lens, TEXTS).score[:, 0]
    plan = Plan([turn([2]).when(linear_gate(1, threshold=float(scores.mean())))])
    asked = [lens.encode([text])["input_ids"] for text in TEXTS]
    more = torch.tensor([[50, 60, 70]])
    expected = [reference_logits(lens, plan, text, None, more[0].tolist()) for text in TEXTS]
    with plan.attach(lens.hf), torch.no_grad():
        begun = [lens.hf(ids, use_cache=True) for ids in asked]
        found = [[one.logits[:, -1]] for one in begun]
        for step in more.T:
            for one, said in zip(begun, found, strict=True):
                said.append(lens.hf(step[None], past_key_values=one.past_key_values).logits[:, -1])
    for said, right in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.cat(said), right, **CLOSE)
