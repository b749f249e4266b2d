"""Loading, layouts, encoding, responses and caches of activations."""

import copy
import io
import json
import shutil
import subprocess
import sys

import pytest
import torch
from helpers.plans import gated_plan, lens_of, linear_gate, questions, vector
from helpers.tiny import D_MODEL, IMAGE_TOKENS, N_LAYERS, picture, tiny_llama, tiny_llava
from PIL import Image
from safetensors.torch import load_file

import rmuse_interp.operators as op
from rmuse_interp import RMuseError, Site, load_model
from rmuse_interp.data.store import digest
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.edits.state import Decision
from rmuse_interp.lens.identity import depends
from rmuse_interp.lens.respond import verdicts
from rmuse_interp.method.rmuse import RMuse
from rmuse_interp.models.fingerprint import Fingerprint, fingerprint
from rmuse_interp.models.layout import find_layout
from rmuse_interp.parts.retain import Subspaces

# -- loading ------------------------------------------------------------------------------------------------------


def test_a_llava_is_found_with_all_its_places():
    lens = lens_of(tiny_llava())
    assert (lens.n_layers, lens.d_model, lens.image_token_id) == (N_LAYERS, D_MODEL, 3)
    assert lens.layout.path == "model.language_model.layers"
    assert lens.layout.vision == "model.vision_tower"
    assert lens.layout.vocabulary.special == {0, 1, 2, 3}
    assert lens.tokenizer.padding_side == "left"
    assert next(lens.hf.parameters()).dtype == torch.float32
    assert not lens.hf.training


def test_a_loaded_model_says_what_it_is():
    folder = tiny_llava()
    assert repr(lens_of(folder)) == (
        f"LensModel {folder}: LlavaForConditionalGeneration, {N_LAYERS} blocks of width {D_MODEL} on cpu in float32, "
        "image token 3 (<image>), pictures by pil"
    )
    assert repr(lens_of(tiny_llama())).endswith("in float32, text only")


def test_a_bundle_says_what_it_is():
    plan = gated_plan()
    lines = repr(RMuse(plan, Subspaces({}, {}), {"preset": "calibrated", "people": ["a", "b"]})).split("\n")
    assert lines == [
        "RMuse calibrated, 2 people to forget",
        f"all queries: steered at blocks 1, 2, if {plan[0].gate.describe()}",
        "text queries: steered at blocks 2",
    ]


def test_a_text_model_is_found_too():
    lens = lens_of(tiny_llama())
    assert (lens.layout.path, lens.layout.vision, lens.image_token_id) == ("model.layers", None, None)
    assert lens.encode("Where?")["input_ids"].shape[0] == 1


def test_an_unknown_family_says_what_was_looked_for_and_how_to_name_it():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = torch.nn.ModuleDict({"stages": torch.nn.ModuleList([torch.nn.Identity()])})

    with pytest.raises(RMuseError, match=r"Odd were looked for under model\.language_model\.layers.*blocks="):
        find_layout(Odd())
    with pytest.raises(RMuseError, match=r"under trunk\.steps and not found"):
        find_layout(Odd(), "trunk.steps")
    with pytest.raises(RMuseError, match="not found"):
        load_model(tiny_llava(), blocks="model.nowhere")
    assert load_model(tiny_llava(), blocks="model.language_model.layers").n_layers == N_LAYERS


def test_what_cannot_be_loaded_is_told_in_one_line(tmp_path):
    for name, words in (
        (tmp_path / "absent", "does not exist"),
        (tmp_path, "has none"),
        ("./nowhere/at/all", "does not exist"),
    ):
        with pytest.raises(RMuseError, match=words):
            load_model(name)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such family"}))
    with pytest.raises(RMuseError, match="could not be loaded") as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(RMuseError, match="dtype"):
        load_model(tiny_llava(), dtype="float31")
    with pytest.raises(RMuseError, match="device"):
        load_model(tiny_llava(), device="abacus")


def test_the_fingerprint_knows_weights_and_shape(tmp_path):
    one, other = lens_of(tiny_llava()).fingerprint, lens_of(tiny_llava(seed=1)).fingerprint
    assert one.differences(other.as_record()) == [f"weights {other.weights} there, {one.weights} here"]
    assert one == load_model(tiny_llava(), dtype="bfloat16").fingerprint
    copied = tmp_path / "copy"
    shutil.copytree(tiny_llava(), copied)
    assert load_model(copied).fingerprint == one
    weights = copied / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert load_model(copied).fingerprint != one
    bare = Fingerprint(one.architecture, one.n_layers, one.d_model, one.vocabulary, "")
    assert bare.differences(one.as_record()) == []
    assert str(one).startswith("LlavaForConditionalGeneration:4x32x")


def test_the_fingerprint_reads_every_container_and_every_value(tmp_path):
    """One value in any of the files: another model; the same value back again, or another dtype: the same one."""
    home = tmp_path / "bin"
    shutil.copytree(tiny_llava(), home)
    (home / "model.safetensors").unlink()
    found = []
    for change in (0.0, 0.0, 1e-3):
        tensors = load_file(tiny_llava() / "model.safetensors")
        next(iter(tensors.values())).view(-1)[-1] += change
        torch.save(tensors, home / "pytorch_model.bin")
        lens = load_model(home)
        found.append((lens.fingerprint, digest(depends(lens))))
    assert found[0] == found[1]
    assert found[0][0].weights
    assert all(one != other for one, other in zip(found[0], found[2], strict=True))
    weight, first = lens.hf.lm_head.weight, lens.fingerprint
    before = weight[0, 0].item()
    for change in (lambda: weight.fill_(0), lambda: weight.data.mul_(2)):
        kept = weight.detach().clone()
        with torch.no_grad():
            change()
            assert lens.fingerprint.weights != first.weights
            weight.copy_(kept)
        assert lens.fingerprint == first
    assert weight[0, 0].item() == before
    lens.hf.bfloat16()
    assert lens.fingerprint == first
    assert copy.deepcopy(lens.hf).state_dict().keys() == lens.hf.state_dict().keys()
    assert fingerprint(copy.deepcopy(lens.hf), lens.layout) == first
    lens.hf.lm_head.weight.data.add_(1)
    assert lens.fingerprint != first


def test_loading_does_not_import_nnsight_and_tracing_does():
    code = (
        "import sys, rmuse_interp; from rmuse_interp import load_model; "
        f"lens = load_model({str(tiny_llava())!r}); lens.respond('Where?', max_new_tokens=1); "
        "assert 'nnsight' not in sys.modules; lens.nn; assert 'nnsight' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- encoding -----------------------------------------------------------------------------------------------------


def test_mixed_rows_are_padded_on_the_left_and_pictures_expanded():
    lens = lens_of(tiny_llava())
    prompts, images = questions()
    inputs = lens.encode(prompts, images)
    per_row = (inputs["input_ids"] == lens.image_token_id).sum(dim=1).tolist()
    assert per_row == [IMAGE_TOKENS if image is not None else 0 for image in images]
    assert inputs["pixel_values"].shape[0] == 2
    assert inputs["attention_mask"][:, -1].all()
    assert not inputs["attention_mask"].all()
    assert inputs.prompt_end.tolist() == (inputs["attention_mask"].sum(dim=1) - 1).tolist()
    assert inputs.texts[0] == "USER: <image>\nWhat is this person's occupation?\nASSISTANT:"
    assert inputs.texts[1] == "USER: Who is Oren Tal?\nASSISTANT:"
    assert "pixel_values" not in lens.encode(prompts)


@pytest.mark.parametrize("response", ["<think> I do </think> baker", "x", " leading", ""])
def test_responses_stand_behind_the_prompt_and_do_not_move_its_end(response):
    lens = lens_of(tiny_llava())
    prompts, images = questions()
    bare, given = lens.encode(prompts, images), lens.encode(prompts, images, [response] * 4)
    assert given.prompt_end.tolist() == bare.prompt_end.tolist()
    for row in range(4):
        ids = given["input_ids"][row][given["attention_mask"][row].bool()]
        end = int(given.prompt_end[row]) + 1
        assert torch.equal(ids[:end], bare["input_ids"][row][bare["attention_mask"][row].bool()])
        assert lens.tokenizer.decode(ids[end:]) == (f" {response}" if response else "")
    assert given.texts[1] == "USER: Who is Oren Tal?\nASSISTANT:" + (f" {response}" if response else "")


def test_a_response_is_led_by_a_space_only_where_the_template_leaves_none():
    """ChatML, Gemma and Llama 3 begin the assistant's turn with a new line: the model's first word has no space."""
    lens = lens_of(tiny_llama())
    turn = "{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] }}\n{% endfor %}<assistant>{{ '\\n' }}"
    lens.processor.chat_template = turn
    own = "I do not know."
    inputs = lens.encode(["Who?", "Where does she live?"], None, [own, None])
    assert inputs.heads == ["<user>\nWho?\n<assistant>\n", "<user>\nWhere does she live?\n<assistant>\n"]
    assert inputs.tails == [own, ""]
    shown = inputs["input_ids"][0][inputs["attention_mask"][0].bool()]
    after = shown[int(inputs.prompt_end[0]) + 1 :].tolist()
    assert after == lens.tokenizer(own, add_special_tokens=False).input_ids


def test_pictures_may_come_as_bytes_paths_or_images(tmp_path):
    lens = lens_of(tiny_llava())
    file = tmp_path / "x.png"
    picture(3).save(file)
    forms = [picture(3), file.read_bytes(), file, str(file)]
    pixels = [lens.encode("Where?", [form])["pixel_values"] for form in forms]
    assert all(torch.equal(pixels[0], other) for other in pixels[1:])
    grey = io.BytesIO()
    Image.new("L", (10, 30), 128).save(grey, format="PNG")
    assert lens.encode("Where?", grey.getvalue())["pixel_values"].shape == pixels[0].shape
    for bad in (b"no picture", tmp_path / "absent.png", file.read_bytes()[:60]):
        with pytest.raises(
            RMuseError, match=r"row 1: a (picture that Pillow can read|file with a picture) was required"
        ):
            lens.encode(["Where?", "Who?"], [None, bad])
    with pytest.raises(RMuseError, match=r"one entry of images per prompt was required \(2\), got 1"):
        lens.encode(["Where?", "Who?"], [picture(0)])
    with pytest.raises(RMuseError, match="at least one prompt"):
        lens.encode([])


# -- responses ----------------------------------------------------------------------------------------------------


def test_responses_equal_plain_greedy_generation_row_by_row():
    lens = lens_of(tiny_llava())
    prompts, images = questions()
    found = lens.respond(prompts, images, max_new_tokens=9)
    for prompt, image, response in zip(prompts, images, found, strict=True):
        inputs = lens.encode([prompt], [image])
        ids = lens.hf.generate(**inputs, max_new_tokens=9, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert response.text == lens.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert (response.fired, response.score) == (None, None)
    assert lens.respond(prompts, images, max_new_tokens=9, batch_size=3) == found
    assert [r.text for r in lens.respond(prompts, images, gated_plan(), max_new_tokens=9)] != [
        r.text for r in found
    ]


def test_rows_stop_at_their_own_end_and_special_tokens_are_stripped():
    lens = lens_of(tiny_llava())
    prompts, images = questions()
    texts = [response.text for response in lens.respond(prompts, images, max_new_tokens=9)]
    end = int(
        lens.hf.generate(**lens.encode(prompts[0], [images[0]]), max_new_tokens=3, do_sample=False)[0, -1]
    )
    config = lens.hf.generation_config
    before, config.eos_token_id = config.eos_token_id, [end, 2]
    try:
        cut = [response.text for response in lens.respond(prompts, images, max_new_tokens=9)]
    finally:
        config.eos_token_id = before
    assert len(cut[0]) < len(texts[0])
    assert all(text.startswith(short) for text, short in zip(texts, cut, strict=True))
    assert any(text == short for text, short in zip(texts, cut, strict=True))
    decode = lens.encoder.decode
    words = lens.tokenizer("<think> Mara </think> baker")["input_ids"]
    assert (
        decode([0, *words, 2, *words], frozenset({0, 1, 3}), frozenset({2})) == "<think> Mara </think> baker"
    )


def test_the_verdict_is_that_of_the_gates_that_apply_to_the_row():
    push = op.Add(vector(1)).at(layers=[2])
    plan = (
        push.given("image").when(linear_gate(seed=1))
        >> push.given("text").when(linear_gate(seed=2))
        >> op.Add(vector(2)).at(layers=[2])
    )
    decision = Decision(
        torch.tensor([[True, False, True], [True, False, True]]),
        torch.tensor([[1.0, 2.0, torch.nan], [1.0, -torch.inf, torch.nan]]),
        torch.ones(2, 3, dtype=torch.bool),
    )
    assert verdicts(plan, decision, [True, False]) == [
        (True, 1.0, 1.0, "edit0.gate"),
        (False, None, None, None),
    ]
    ungated = Decision(*(x[:1, 2:] for x in (decision.fired, decision.score, decision.known)))
    assert verdicts(as_plan(plan[2]), ungated, [True]) == [(None, None, None, None)]


def test_bad_limits_are_refused():
    lens = lens_of(tiny_llava())
    with pytest.raises(RMuseError, match="≥ 1"):
        lens.respond("Where?", max_new_tokens=0)
    with pytest.raises(RMuseError, match="≥ 1"):
        lens.respond("Where?", batch_size=0)


# -- caches of activations ----------------------------------------------------------------------------------------


def test_run_with_cache_speaks_transformerlens():
    from transformer_lens import ActivationCache

    lens = lens_of(tiny_llava())
    prompts, images = questions()
    logits, cache = lens.run_with_cache(prompts, images)
    with torch.no_grad():
        expected = lens.hf(**lens.encode(prompts, images), output_hidden_states=True)
    assert isinstance(cache, ActivationCache)
    assert torch.equal(logits, expected.logits)
    assert torch.equal(cache["resid_post", 1], expected.hidden_states[2])
    assert torch.equal(cache["blocks.0.hook_resid_pre"], expected.hidden_states[0])
    for layer in range(N_LAYERS):
        torch.testing.assert_close(
            cache["resid_pre", layer] + cache["attn_out", layer], cache["resid_mid", layer]
        )
        torch.testing.assert_close(
            cache["resid_mid", layer] + cache["mlp_out", layer], cache["resid_post", layer]
        )
    assert list(cache)[:2] == ["blocks.0.hook_resid_pre", "blocks.0.hook_attn_out"]
    assert len(cache) == 5 * N_LAYERS
    # Its own methods read the sizes of the model.
    stream, labels = cache.accumulated_resid(layer=-1, return_labels=True)
    assert labels == [*(f"{layer}_pre" for layer in range(N_LAYERS)), "final_post"]
    assert torch.equal(stream[-1], cache["resid_post", N_LAYERS - 1])


def test_names_choose_sites_in_any_form():
    lens = lens_of(tiny_llava())
    for names in (
        ["blocks.3.hook_resid_post", "blocks.1.hook_mlp_out"],
        [Site(3), Site(1, "mlp_out")],
        lambda name: name in ("blocks.1.hook_mlp_out", "blocks.3.hook_resid_post"),
    ):
        _, cache = lens.run_with_cache("Where?", names=names)
        assert list(cache) == ["blocks.1.hook_mlp_out", "blocks.3.hook_resid_post"]
    assert list(lens.run_with_cache("Where?", names=Site(2))[1]) == ["blocks.2.hook_resid_post"]
    with pytest.raises(RMuseError, match=r"blocks 0\.\.3 were required, got blocks\.4"):
        lens.run_with_cache("Where?", names="blocks.4.hook_resid_post")
    with pytest.raises(RMuseError, match="looks like"):
        lens.run_with_cache("Where?", names="layers.4")


def test_a_cache_with_a_plan_holds_steered_states():
    lens = lens_of(tiny_llava())
    edit = op.Add(vector(3)).at(layers=[1]).on("prompt_end")
    _, plain = lens.run_with_cache("Where?", [picture(0)])
    logits, steered = lens.run_with_cache("Where?", [picture(0)], plan=edit)
    torch.testing.assert_close(steered["resid_post", 1][:, -1], plain["resid_post", 1][:, -1] + vector(3))
    assert torch.equal(steered["resid_mid", 1], plain["resid_mid", 1])
    assert torch.equal(steered["resid_pre", 2], steered["resid_post", 1])
    with as_plan(edit).attach(lens.hf), torch.no_grad():
        assert torch.equal(lens.hf(**lens.encode("Where?", [picture(0)])).logits, logits)


def test_a_cache_of_given_responses():
    lens = lens_of(tiny_llava())
    logits, cache = lens.run_with_cache("Who is Oren Tal?", None, "<think> Mara", names=Site(0))
    length = lens.encode("Who is Oren Tal?", None, "<think> Mara")["input_ids"].shape[1]
    assert logits.shape[1] == cache["resid_post", 0].shape[1] == length
