"""A row beside longer ones is the row alone: positions of padded rows, and everything that a model is told of a query."""

from functools import cache

import pytest
import torch
import transformers
from helpers.plans import lens_of, linear_gate, vector
from helpers.tiny import tiny_gpt2, tiny_llama, tiny_llava

import rmuse_interp.operators as op
from rmuse_interp import Plan
from rmuse_interp.diagnostics.leaks import Leak, Placed, Statement, _cut, embedded, log_prob
from rmuse_interp.fitting.collect import Query, pooled_states
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.lens.likelihood import token_nll
from rmuse_interp.models.layout import find_layout
from rmuse_interp.models.positions import positions

PROMPTS = ["Who?", "How many red circles are there? Two plus three is five. What colour is the hat?"]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.mark.parametrize("folder", [tiny_gpt2, tiny_llama])
def test_a_row_alone_is_the_row_in_a_batch(folder):
    lens = lens_of(folder())
    plan = Plan([op.Add(vector(1)).at(layers=[1]).when(linear_gate(0))])
    two_pass = Plan([op.Add(vector(1)).at(layers=[0]).when(linear_gate(1))])
    alone, both = (plan.decide(lens, some).score[0, 0] for some in (PROMPTS[:1], PROMPTS))
    torch.testing.assert_close(alone, both, **CLOSE)
    asked = lens.encode(PROMPTS)
    with two_pass.attach(lens.hf) as handle:  # decides inside generate, from its ids and mask
        lens.hf.generate(asked["input_ids"], attention_mask=asked["attention_mask"], max_new_tokens=1)
    inside = handle.state.query.decision.score[0, 0]
    torch.testing.assert_close(inside, two_pass.decide(lens, PROMPTS[:1]).score[0, 0], **CLOSE)
    with plan.attach(lens.hf) as handle, torch.no_grad():  # decides while it generates
        lens.hf.generate(**asked, max_new_tokens=1)
        torch.testing.assert_close(handle.state.query.decision.score[0, 0], alone, **CLOSE)
        lens.hf(**asked)
    torch.testing.assert_close(handle.state.query.decision.score[0, 0], alone, **CLOSE)
    words = ["It is green.", "I cannot help with that."]
    one, two = (token_nll(lens, some, words[: len(some)])[0] for some in (PROMPTS[:1], PROMPTS))
    assert one == pytest.approx(two, abs=1e-4)
    queries = [
        Query(str(i), prompt, None, word, stepwise=False)
        for i, (prompt, word) in enumerate(zip(PROMPTS, words, strict=True))
    ]
    single, pair = (
        pooled_states(lens, some, ["last"], layers=[1])["last"].states[0] for some in (queries[:1], queries)
    )
    torch.testing.assert_close(single, pair, **CLOSE)


def test_positions_are_given_where_a_model_does_not_find_them_by_itself():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    given = positions(lens_of(tiny_gpt2()).hf, mask)
    assert given["position_ids"].tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    for folder in (
        tiny_llama(),
        tiny_llava(),
    ):  # distances only: padding changes nothing, and neither may rounding
        assert positions(lens_of(folder).hf, mask) == {}
    assert positions(_qwen2_vl(), mask) == {}


# -- everything that a model is told of a query -------------------------------------------------------------------

IMAGE, TEXT = 9, {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
TEXT |= {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IDS = torch.tensor([[1, 20, 10, IMAGE, IMAGE, IMAGE, IMAGE, 11, 30, 31, 32, 33, 34]])


@cache
def _qwen2_vl():
    """Positions on three axes, from the picture's grid."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    eyes = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config=eyes,
        image_token_id=IMAGE,
        vision_start_token_id=10,
        vision_end_token_id=11,
    )
    return transformers.Qwen2VLForConditionalGeneration(config).eval()


@cache
def _gemma3():
    """A picture's tokens see each other in both directions."""
    eyes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config={**TEXT, "head_dim": 8, "sliding_window": 64},
        vision_config={**eyes, "image_size": 16, "patch_size": 4},
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=10,
        eoi_token_index=11,
    )
    return transformers.Gemma3ForConditionalGeneration(config).eval()


@cache
def _mllama():
    """Blocks that attend to the picture beside the residual stream."""
    eyes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_global_layers": 1}
    eyes |= {"attention_heads": 2, "image_size": 16, "patch_size": 4, "max_num_tiles": 1}
    eyes |= {"supported_aspect_ratios": [[1, 1]], "intermediate_layers_indices": [0], "vision_output_dim": 32}
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = transformers.MllamaConfig(
        text_config={**TEXT, "cross_attention_layers": [1], "rope_parameters": rope},
        vision_config=eyes,
        image_token_index=IMAGE,
    )
    model = transformers.MllamaForConditionalGeneration(config).eval()
    for name, weight in model.named_parameters():
        if "gate" in name and weight.numel() == 1:
            weight.data.fill_(1.0)  # closed at first, so that the picture would be seen nowhere
    return model


def _told(name):
    noise = torch.Generator().manual_seed(0)
    told = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    kinds = (IDS == IMAGE).long()
    if name == "qwen2_vl":
        grid = torch.tensor([[1, 4, 4]])
        pixels = torch.randn(16, 3 * 2 * 4 * 4, generator=noise)
        return {**told, "pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": kinds.int()}
    if name == "gemma3":
        return {**told, "pixel_values": torch.randn(1, 3, 16, 16, generator=noise), "token_type_ids": kinds}
    seen = torch.ones(1, IDS.shape[1], 1, 1, dtype=torch.long)
    tiles = {
        "aspect_ratio_ids": torch.tensor([[1]]),
        "aspect_ratio_mask": torch.ones(1, 1, 1, dtype=torch.long),
    }
    pixels = torch.randn(1, 1, 1, 3, 16, 16, generator=noise)
    return {**told, "pixel_values": pixels, **tiles, "cross_attention_mask": seen}


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3", "mllama"])
def test_a_leak_is_explained_in_the_model_that_saw_the_picture(name):
    """The log-probability at the query's own embeddings is the model's, for one row and for several nodes at once."""
    torch.manual_seed(0)
    hf = {"qwen2_vl": _qwen2_vl, "gemma3": _gemma3, "mllama": _mllama}[name]()
    lens = LensModel(hf, lens_of(tiny_llama()).processor, find_layout(hf), name)
    statement = Statement(Query("q", "Who?", None, "It is green."), "Who?", "green", "p")
    whole = Placed(statement, _told(name), 9, (("question", 0),) * IDS.shape[1], "")
    leak = Leak(_cut(whole, 12), "answer", 40)
    with torch.no_grad():
        told = _told(name)
        full = hf(**told).logits[0, 11].log_softmax(dim=-1)[40]
        bare = hf(input_ids=IDS, attention_mask=told["attention_mask"]).logits[0, 11].log_softmax(dim=-1)[40]
        own = embedded(lens, leak.placed)
        found = log_prob(lens, leak, own.repeat(3, 1, 1))
    torch.testing.assert_close(found, full.expand(3), **CLOSE)
    assert abs(float(bare - full)) > 1e-3  # the picture matters here
