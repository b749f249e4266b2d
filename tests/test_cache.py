"""What `run_with_cache` keeps is what plain hooks see, and what TransformerLens' own cache holds."""

import pytest
import torch
from helpers.bridge import bridge_of
from helpers.plans import lens_of, vector
from helpers.tiny import IMAGE_TOKENS, N_LAYERS, picture, tiny_llama, tiny_llava, tiny_llava_next

import rmuse_interp.operators as op
from rmuse_interp import RMuseError, load_model

PROMPTS = ["Who is Oren Tal?", "What is this?"]
PICTURES = [picture(0), picture(1)]
CLOSE = {"atol": 1e-4, "rtol": 1e-5}


@pytest.mark.parametrize("folder", [tiny_llava, tiny_llava_next])
def test_the_towers_and_the_projectors_outputs(folder):
    lens = lens_of(folder())
    seen = {}
    tower, projector = (lens.hf.get_submodule(path) for path in (lens.layout.vision, lens.layout.projector))
    handles = [
        tower.register_forward_hook(lambda m, a, out: seen.update(tower=out.last_hidden_state)),
        projector.register_forward_hook(lambda m, a, out: seen.update(projector=out)),
    ]
    with torch.no_grad():
        lens.hf(**lens.encode(PROMPTS, PICTURES))
    for handle in handles:
        handle.remove()
    _, cache = lens.run_with_cache(PROMPTS, PICTURES, names=["projector.hook_out", "vision_tower.hook_out"])
    assert sorted(cache) == ["projector.hook_out", "vision_tower.hook_out"]
    assert torch.equal(cache["vision_tower.hook_out"], seen["tower"])
    assert torch.equal(cache["projector.hook_out"], seen["projector"])
    assert cache["projector.hook_out"].shape[1:] == (IMAGE_TOKENS, lens.d_model)
    _, found = lens.run_with_cache(PROMPTS, PICTURES, names=lambda name: not name.startswith("blocks"))
    assert sorted(found) == sorted(cache)
    _, found = lens.run_with_cache(
        PROMPTS, names=lambda name: "hook_out" in name or name.endswith("2.hook_mlp_out")
    )
    assert sorted(found) == ["blocks.2.hook_mlp_out"]


def test_heads_and_patterns_equal_those_of_a_bridge():
    lens, bridge = load_model(tiny_llava()), bridge_of(tiny_llava())
    inputs = lens.encode(PROMPTS, PICTURES)
    names = [
        f"blocks.{layer}.attn.{hook}" for layer in (0, N_LAYERS - 1) for hook in ("hook_z", "hook_pattern")
    ]
    with pytest.raises(RMuseError, match="eager attention"):
        lens.run_with_cache(PROMPTS, PICTURES, names=names)
    lens.hf.set_attn_implementation("eager")
    logits, cache = lens.run_with_cache(PROMPTS, PICTURES, names=names)
    with torch.no_grad():
        more = {key: value for key, value in inputs.items() if key != "input_ids"}
        expected, theirs = bridge.run_with_cache(inputs["input_ids"], **more)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], **CLOSE)
    assert sorted(cache) == sorted(names)
    for name in names:
        rows = cache[name], theirs[name]
        one, other = (x.transpose(1, 2)[real] if "pattern" in name else x[real] for x in rows)
        torch.testing.assert_close(one, other, **CLOSE)


def test_what_is_not_there_is_refused():
    lens = lens_of(tiny_llava())
    for lacking, names, said in (
        ("pictures", "projector.hook_out", "no row has a picture"),
        ("layers", "blocks.9.attn.hook_z", r"blocks 0\.\.3"),
        ("layers", "blocks.9.hook_mlp_out", r"blocks 0\.\.3"),
        ("names", "blocks.1.attn.hook_q", "a site's name looks like"),
    ):
        with pytest.raises(RMuseError, match=said):
            lens.run_with_cache(PROMPTS, names=names)
        assert lacking
    with pytest.raises(RMuseError, match="has none"):
        lens_of(tiny_llama()).run_with_cache(PROMPTS, names="vision_tower.hook_out")


def test_a_cache_under_a_plan_holds_values_after_the_edits_inside_blocks_too():
    lens = lens_of(tiny_llava())
    names = [
        f"blocks.2.hook_{hook}" for hook in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    ]
    _, plain = lens.run_with_cache(PROMPTS, PICTURES, names=names)
    image = lens.encode(PROMPTS, PICTURES)["input_ids"] == lens.image_token_id
    for name in names:
        _, cache = lens.run_with_cache(
            PROMPTS, PICTURES, names=names, plan=op.Add(vector(3)).at(name).on("image")
        )
        torch.testing.assert_close(cache[name][image], plain[name][image] + vector(3), **CLOSE)
        assert torch.equal(cache[name][:, :2], plain[name][:, :2])
