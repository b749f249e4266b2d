"""Checkpoints that are damaged, incomplete, adapted, quantised, offloaded or too large: right, or refused by name."""

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import accelerate
import pytest
import torch
from helpers.plans import gated_plan, lens_of, vector
from helpers.tiny import picture, tiny_llama, tiny_llava
from safetensors.torch import load_file, save_file

import rmuse_interp.operators as op
from rmuse_interp import Plan, RMuseError, Site, load_model
from rmuse_interp.edits.interpreter import Interpreter
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.lens import check
from rmuse_interp.lens.check import _sound

WEIGHTS = "model.safetensors"


@pytest.fixture
def changed(tmp_path) -> Callable[..., Path]:
    """A copy of a checkpoint whose weights, or one of whose JSON files, were changed by a function."""

    def made(source: Path, change: Callable[..., object], file: str = WEIGHTS) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(source, folder)
        path = folder / file
        if file == WEIGHTS:
            tensors = load_file(path)
            change(tensors)
            save_file(tensors, path, {"format": "pt"})
        else:
            held = json.loads(path.read_text())
            change(held)
            path.write_text(json.dumps(held))
        return folder

    return made


def without_block_two(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if ".layers.2." in name and "vision" not in name]:
        del tensors[name]


@pytest.mark.parametrize("source", [tiny_llava, tiny_llama])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_block_two, r"the checkpoint lacks .*layers\.2\.input_layernorm\.weight.* and 5 more"),
        (lambda t: t.update({"model.extra.weight": torch.ones(2)}), r"has no place for .*extra\.weight"),
        (
            lambda t: t.update({n: torch.ones(7, 32) for n in t if "lm_head" in n}),
            "has other shapes for lm_head.weight",
        ),
    ],
)
def test_weights_missing_left_over_or_of_another_shape_are_named(changed, source, change, said):
    with pytest.raises(RMuseError, match=said):
        load_model(changed(source(), change))


def test_an_incomplete_checkpoint_can_be_asked_for(changed):
    folder = changed(tiny_llama(), without_block_two)
    assert load_model(folder, check=False).n_layers == 4


def test_tied_weights_are_not_missing():
    assert load_model("organism").n_layers == 8


def test_pointers_of_git_lfs_are_named(changed):
    folder = changed(tiny_llama(), lambda tensors: None)
    (folder / WEIGHTS).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 14000000000\n"
    )
    with pytest.raises(
        RMuseError, match=r"git-lfs has left pointers in place of model\.safetensors; run `git lfs"
    ):
        load_model(folder)


def test_a_file_cut_off_is_named(changed):
    folder = changed(tiny_llama(), lambda tensors: None)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(RMuseError, match=rf"of {len(whole)} bytes was required, got {len(whole) - 100}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("quantisation", "named"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "(gptq|GPTQ)"),
        ({"quant_method": "awq", "bits": 4}, "(awq|AWQ|gptqmodel)"),
        ({"quant_method": "no-such-method"}, "no-such-method"),
    ],
)
def test_quantised_weights_without_their_library_are_refused_by_its_name(changed, quantisation, named):
    folder = changed(tiny_llama(), lambda held: held.update(quantization_config=quantisation), "config.json")
    with pytest.raises(RMuseError, match=f"could not be loaded.*{named}"):
        load_model(folder)


def test_a_processor_without_patch_size_takes_it_from_the_model(changed):
    def forget(held):
        for name in ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy"):
            del held[name]

    folder = changed(tiny_llava(), forget, "processor_config.json")
    own, old = (lens.encode("Who?", picture()) for lens in (lens_of(tiny_llava()), load_model(folder)))
    assert old["input_ids"].tolist() == own["input_ids"].tolist()


# -- what every model is asked ------------------------------------------------------------------------------------


def idle(lens, monkeypatch):
    return replace(lens.layout, blocks=copy.deepcopy(lens.layout.blocks))


def unedited(lens, monkeypatch):
    act = Interpreter._act
    monkeypatch.setattr(
        Interpreter,
        "_act",
        lambda self, site, h, *rest: act(self, Site(9) if site.layer == 2 else site, h, *rest),
    )


def another_template(lens, monkeypatch):
    own = lens.processor.apply_chat_template

    def with_begin(messages, *, tokenize, **settings):
        found = own(messages, tokenize=tokenize, **settings)
        return {"input_ids": torch.cat([torch.tensor([[1]]), found["input_ids"]], 1)} if tokenize else found

    monkeypatch.setattr(lens.processor, "apply_chat_template", with_begin)


def without_picture(lens, monkeypatch):
    return replace(lens.layout, vocabulary=replace(lens.layout.vocabulary, image=7))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (idle, r"the modules at blocks\.0\.hook_resid_pre, .* take no part in its forward pass"),
        (
            unedited,
            r"not act as a hook on the module does, at blocks\.2\.hook_resid_pre, .*\.2\.hook_resid_post;",
        ),
        (
            another_template,
            r"apply_chat_template\(tokenize=True\) gives \d+ tokens .* they differ at token 0",
        ),
        (without_picture, "no image token 7 in a prompt with a picture"),
    ],
)
def test_a_model_that_is_not_read_as_it_works_is_refused(monkeypatch, fault, said):
    lens = load_model(tiny_llava(), check=False)
    lens.layout = fault(lens, monkeypatch) or lens.layout
    with pytest.raises(RMuseError, match=f"is not read as it works: .*{said}"):
        _sound(lens)


def test_a_model_is_asked_once(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(check, "_sound", lambda model: asked.append(model.name) or True)
    folder = str(tiny_llama())
    for changes in ({}, {}, {"dtype": "bfloat16"}, {}, {"check": False, "dtype": "float16"}):
        load_model(folder, **changes)
    assert asked == [folder, folder]


# -- weights that lie elsewhere -----------------------------------------------------------------------------------

IN_MEMORY = (
    "model.vision_tower",
    *(f"model.language_model.{part}" for part in ("embed_tokens", "norm", "rotary_emb")),
)
ON_DISK = ("lm_head", "model.multi_modal_projector")
LAYERS = {f"model.language_model.layers.{layer}": ("cpu", "disk")[layer % 2] for layer in range(4)}
SPREAD = {**dict.fromkeys(ON_DISK, "disk"), **dict.fromkeys(IN_MEMORY, "cpu"), **LAYERS}


def spread(tmp_path, device_map):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not checked, see below
        return load_model(tiny_llava(), device_map=device_map)


def kept_in_memory(tmp_path, _):
    lens = load_model(tiny_llava())
    accelerate.cpu_offload(lens.hf, torch.device("cpu"))
    return lens


def kept_on_disk(tmp_path, _):
    lens = load_model(tiny_llava())
    accelerate.disk_offload(lens.hf, tmp_path / "weights", torch.device("cpu"))
    return lens


@pytest.mark.parametrize(
    ("placed", "device_map"),
    [(spread, "auto"), (spread, SPREAD), (kept_in_memory, None), (kept_on_disk, None)],
)
def test_a_model_spread_over_memory_and_disk_answers_as_one_in_memory(tmp_path, placed, device_map):
    lens, base = placed(tmp_path, device_map), lens_of(tiny_llava())
    assert lens.device.type == "cpu"
    asked = ("Who is this?", picture())
    for plan in (None, gated_plan()):
        said, expected = (one.respond(*asked, plan, max_new_tokens=6)[0] for one in (lens, base))
        assert said.text == expected.text
    scores = [one.decide(gated_plan(), *asked).score for one in (lens, base)]
    torch.testing.assert_close(scores[0], scores[1], equal_nan=True)
    if next(lens.hf.parameters()).device.type == "meta":
        with pytest.raises(RMuseError, match=r"a trace needs the first weights of LlavaFor.* in memory"):
            lens.run_with_cache(*asked)
        return
    mine, theirs = (one.run_with_cache(*asked, plan=gated_plan())[1] for one in (lens, base))
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name])


def test_a_plan_is_not_moved_to_where_weights_lie(tmp_path):
    lens, plan = kept_in_memory(tmp_path, None), gated_plan()
    before = [tensor.clone() for edit in plan for tensor in edit.buffers()]
    with plan.attach(lens.hf):
        lens.hf(**lens.encode("Who?"))
    after = [tensor for edit in plan for tensor in edit.buffers()]
    assert all(map(torch.equal, before, after))


def test_a_model_on_the_disk_is_not_checked_and_says_so():
    with pytest.warns(
        UserWarning, match="not checked while loading, since its weights lie in memory or on the disk"
    ):
        load_model(tiny_llava(), device_map=SPREAD)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"device": "cpu", "device_map": "auto"}, "one of device and device_map was required"),
        ({"device_map": "everywhere"}, "could not be loaded.*everywhere"),
        ({"device_map": {"": "nowhere"}}, "could not be loaded.*nowhere"),
    ],
)
def test_a_device_map_that_does_not_fit_is_refused(asked, said):
    with pytest.raises(RMuseError, match=said):
        load_model(tiny_llava(), **asked)


# -- adapters -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """A lively adapter of the tiny Llama."""
    import peft

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapter")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(load_model(tiny_llama()).hf, config)
    adapted.save_pretrained(folder)
    return folder


def test_an_adapter_folder_is_its_base_model_with_the_adapter_merged(adapter):
    import peft

    lens, base = load_model(adapter), load_model(tiny_llama())
    inputs = base.encode("Where?")
    with torch.no_grad():
        plain = base.hf(**inputs).logits
        expected = peft.PeftModel.from_pretrained(base.hf, str(adapter))(**inputs).logits
        got = lens.hf(**inputs).logits
    torch.testing.assert_close(got, expected)
    assert (got - plain).abs().max() > 0.1


def test_what_was_fitted_on_the_base_model_is_refused_on_the_adapted(adapter):
    lens, base = load_model(adapter), lens_of(tiny_llama())
    assert lens.fingerprint.differences(base.fingerprint.as_record())
    with pytest.raises(RMuseError, match="was fitted on another model"):
        lens.fingerprint.require(base.fingerprint.as_record(), "this plan")


def test_a_plan_of_the_base_model_is_refused_on_a_model_with_an_adapter_on_it(adapter, tmp_path):
    import peft

    base = load_model(tiny_llama())
    as_plan(op.Add(vector(3)).at([2])).save(tmp_path / "plan", base)
    plan = Plan.load(tmp_path / "plan", base)
    adapted = peft.PeftModel.from_pretrained(base.hf, str(adapter))
    with pytest.raises(RMuseError, match="was fitted on another model"):
        plan.attach(adapted)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_model_name_or_path": None}, "a base model's name was required, got None"),
        ({"base_model_name_or_path": "/no/such/model"}, "/no/such/model does not exist"),
        (
            {"target_modules": ["q_proj", "up_proj"]},
            r"the checkpoint lacks .*up_proj.*; it has no place for .*down_proj",
        ),
        ({"peft_type": "NONE_SUCH"}, "could not be merged into its base model"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(adapter, tmp_path, change, said):
    shutil.copytree(adapter, tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | change))
    with pytest.raises(RMuseError, match=said):
        load_model(tmp_path / "adapter")
