"""What single families need of encoding, sites and plans: right values, or one line that says why not."""

from contextlib import ExitStack, nullcontext
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from helpers.plans import lens_of
from helpers.tiny import tiny_llama
from torch import nn

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.data.spans import locate
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.edits.spoken import Said
from rmuse_interp.lens.bridge import to_bridge
from rmuse_interp.lens.lens import LensModel, load_model
from rmuse_interp.models.batches import reading
from rmuse_interp.models.encoding import Encoder
from rmuse_interp.models.prompts import Conversation
from rmuse_interp.models.site import terms_of
from rmuse_interp.studies.families.making import make, picture
from rmuse_interp.studies.families.recipes import RECIPES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """The loaded tiny model of a family, by name."""

    @cache
    def load(name: str) -> LensModel:
        recipe = next(recipe for recipe in RECIPES if recipe.name == name)
        return load_model(make(recipe, tmp_path_factory.mktemp(recipe.config)))

    return load


REFUSED = {
    "PaliGemma without a picture": (
        "PaliGemma",
        lambda on: on.encode("Who?"),
        "row 0: PaliGemma's processor takes no row",
    ),
    "PaliGemma, one row without": (
        "PaliGemma",
        lambda on: on.encode(["Who?", "Where?"], [picture(0), None]),
        "row 1: PaliGemma's processor takes no row",
    ),
    "a chat with PaliGemma": (
        "PaliGemma",
        lambda on: on.encode(Conversation((("Hi?", "Hello."),), "Who?"), [picture(0)]),
        "PaliGemma has no chat",
    ),
    "Mllama, mixed": (
        "Mllama",
        lambda on: on.encode(["Who?", "Where?"], [picture(0), None]),
        "encode rows with and without pictures apart",
    ),
    "Mllama, two pictures beside one": (
        "Mllama",
        lambda on: on.encode(["Who?", "Where?"], [[picture(0), picture(1)], picture(2)]),
        "encode rows with other numbers of pictures apart",
    ),
    "a placeholder in the words": (
        "Gemma 3",
        lambda on: on.encode("What is <start_of_image>?"),
        "row 0: 0 pictures were given for 1 placeholders <start_of_image>",
    ),
    "an edit at a cross-attention block": (
        "Mllama",
        lambda on: as_plan(op.Add(torch.ones(on.d_model)).at(1)).attach(on.hf),
        "skips its cross-attention blocks where no row has a picture",
    ),
    "a site of a skipped block": (
        "Mllama",
        lambda on: on.run_with_cache("Who?", names="blocks.1.hook_resid_post"),
        "blocks.1.hook_resid_post: Mllama skips",
    ),
    "a picture for Phi-4": (
        "Phi-4-multimodal",
        lambda on: on.encode("Who?", [picture(0)]),
        "Phi-4-multimodal is loaded as a text model",
    ),
    "resid_mid of Pythia": (
        "Pythia",
        lambda on: on.run_with_cache("Who?", names="blocks.1.hook_resid_mid"),
        "exposes resid_pre, attn_out, mlp_out, resid_post",
    ),
    "attn_out of Granite": (
        "Granite",
        lambda on: on.run_with_cache("Who?", names="blocks.1.hook_attn_out"),
        "exposes resid_pre, resid_mid, resid_post",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_family_cannot_do_is_refused_in_one_line(family, case):
    name, call, said = REFUSED[case]
    with pytest.raises(RMuseError) as raised:
        call(family(name))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_family_of_mllama_answers_rows_of_both_kinds_in_batches_of_their_own(family):
    on = family("Mllama")
    asked = ["Who is Oren Tal?", "Where?", "Who?"], [None, picture(1), None]
    together = on.respond(*asked, max_new_tokens=4)
    alone = [on.respond(q, [i], max_new_tokens=4)[0] for q, i in zip(*asked, strict=True)]
    assert [r.text for r in together] == [r.text for r in alone]


def test_paligemma_answers_behind_its_own_newline(family):
    on = family("PaliGemma")
    encoding = on.encode(["Who is Oren Tal?", "Where?"], [picture(0), picture(1)], ["Oslo", None])
    rows = [
        ids[mask.bool()] for ids, mask in zip(encoding["input_ids"], encoding["attention_mask"], strict=True)
    ]
    assert [
        on.tokenizer.decode(row[int(end)]) for row, end in zip(rows, encoding.prompt_end, strict=True)
    ] == ["\n"] * 2
    assert on.tokenizer.decode(rows[0][int(encoding.prompt_end[0]) + 1 :]) == "Oslo"
    assert encoding["token_type_ids"][0].tolist()[-2:] == [0, 1] or "Oslo" in on.tokenizer.decode(rows[0])
    bare = on.encode("Who is Oren Tal?", [picture(0)])
    said = on.hf.generate(
        **bare, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    new = on.tokenizer.decode(said.sequences[0, -3:-1])
    forced = on.encode("Who is Oren Tal?", [picture(0)], [new])
    if torch.equal(forced["input_ids"][0, :-2], bare["input_ids"][0]):  # the same tokens were found again
        logits = on.hf(**forced).logits[0, -3:]
        torch.testing.assert_close(logits, torch.cat(said.logits), atol=1e-4, rtol=1e-4)


def states(on, inputs, plan=None, told=None):
    """Block 1's output, after a plan."""
    with ExitStack() as inside:
        inside.enter_context(torch.no_grad())
        if plan is not None:
            handle = inside.enter_context(plan.attach(on.hf, layout=on.layout))
            inside.enter_context(handle.expecting(*told) if told else nullcontext())
        found = inside.enter_context(reading(on.layout, [1], lambda _, h: h[0].clone()))
        on.hf(**inputs)
    return found[1]


FRAMES = {
    "Idefics3": {"<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "<row_1_col_2>"},
    "Mistral 3": {"[IMG_BREAK]", "[IMG_END]"},
    "Aya Vision": {"<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE_GLOBAL", "TILE_1", "TILE_2"},
    "Gemma 3": {"<start_of_image>", "<end_of_image>"},
    "InternVL": {"<img>", "</img>"},
    "Qwen2-VL": {"<|vision_start|>", "<|vision_end|>"},
}


@pytest.mark.parametrize("name", FRAMES)
def test_edits_on_all_tokens_leave_pictures_and_what_frames_them_alone(family, name):
    on = family(name)
    inputs = on.encode("What is this person's occupation?", [picture(1, (48, 24))])
    plan = as_plan(op.Add(torch.ones(on.d_model)).at(1).on("all"))
    before, after = states(on, inputs), states(on, inputs, plan)
    tokens = on.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    left = {token for token, a, b in zip(tokens, before, after, strict=True) if torch.equal(a, b)}
    assert left == FRAMES[name] | {on.tokenizer.convert_ids_to_tokens(on.image_token_id)}


SEPARATORS = {
    "LLaVA-1.5": " ",
    "Qwen2-VL": "",
    "Gemma 3": "",
    "Mistral 3": "",
    "Idefics3": " ",
    "Llama": "",
    "GPT-2": " ",
}


@pytest.mark.parametrize("name", SEPARATORS)
def test_what_stands_between_prompt_and_response_is_the_templates(family, name):
    on = family(name)
    assert on.encoder.separator == SEPARATORS[name]
    assert on.encode("Who?", None, ["Oslo"]).tails == [SEPARATORS[name] + "Oslo"]


# -- templates and tokenizers ---------------------------------------------------------------------------------------

R1 = (
    "{% for m in messages %}{{ '<User>' if m['role'] == 'user' else '<Bot>' }}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<Bot><think>\n{% endif %}"
)


@pytest.fixture
def thinking():
    """A text model whose template opens the reasoning, as DeepSeek-R1's."""
    on = load_model(tiny_llama())
    on.tokenizer.chat_template = R1
    return on


def test_a_template_may_open_the_reasoning(thinking):
    said = "<think> She lives in Oslo. </think> Oslo"
    encoding = thinking.encode("Where?", None, [said])
    assert encoding.texts == ["<User>Where?<Bot><think>\nShe lives in Oslo. </think> Oslo"]
    ids = encoding["input_ids"][0]
    spans = locate(
        thinking.processor,
        encoding.heads[0],
        encoding.tails[0],
        input_ids=ids.tolist(),
        expansion=encoding.expansions[0],
    )
    assert thinking.tokenizer.decode(ids[slice(*spans.reasoning)]).strip() == "She lives in Oslo."
    assert thinking.tokenizer.decode(ids[slice(*spans.answer)]).strip() == "Oslo"
    assert thinking.respond("Where?", max_new_tokens=2)[0].text.startswith("<think> ")
    begun = thinking.respond("Where?", max_new_tokens=2, prefill="<think> She")[0].text
    assert begun.startswith("<think> She")
    assert begun.count("<think>") == 1


def test_an_edit_on_the_chain_acts_from_the_first_token_where_the_prompt_has_opened_it(thinking):
    encoding = thinking.encode("Where?", None, ["<think> She lives in Oslo. </think> Oslo"])
    plan = as_plan(op.Add(torch.ones(thinking.d_model)).at(1).on("chain"))
    told = encoding["input_ids"], encoding["attention_mask"], encoding.prompt_end
    before, after = states(thinking, encoding), states(thinking, encoding, plan, told)
    moved = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert moved[0] == int(encoding.prompt_end[0]) + 1
    assert "She lives in Oslo." in thinking.tokenizer.decode(encoding["input_ids"][0, moved])
    assert "</think> Oslo" not in thinking.tokenizer.decode(encoding["input_ids"][0, moved])


def test_a_response_that_repeats_the_opener_is_no_second_chain():
    said = Said().after("…<think>", "<think>")
    then, span = said.then("<think>", ("<think>", "</think>"))
    assert (then.span, span) == ("chain", None)
    assert said.then("She", ("<think>", "</think>"))[1] == "chain"
    assert Said().after("Bot:", "<think>").then("She", ("<think>", "</think>"))[1] == "answer"


@pytest.mark.parametrize("template", [R1, None])
def test_a_tokenizer_that_ends_every_text_does_not_end_a_prompt(template):
    from tokenizers.processors import TemplateProcessing

    on = load_model(tiny_llama())
    tokenizer = on.tokenizer
    tokenizer.chat_template = template
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    encoder = Encoder(tokenizer)
    encoding = encoder.encode(["Where?", "Who is Oren Tal?"], None, ["Oslo", None])
    rows = [
        i[m.bool()].tolist() for i, m in zip(encoding["input_ids"], encoding["attention_mask"], strict=True)
    ]
    assert all(2 not in row for row in rows)
    assert [row.count(1) for row in rows] == ([0, 0] if template else [1, 1])
    assert int(encoding.prompt_end[1]) == len(rows[1]) - 1
    assert tokenizer.decode(rows[0][int(encoding.prompt_end[0]) + 1 :]).strip() == "Oslo"
    if template:
        told = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Who is Oren Tal?"}], add_generation_prompt=True, return_dict=True
        )
        assert rows[1] == told["input_ids"]


# -- blocks ---------------------------------------------------------------------------------------------------------


def block(*children: str, **settings: object) -> nn.Module:
    """A block with modules of these names."""
    made = nn.Module()
    for name in children:
        made.add_module(name, nn.Identity())
    for name, value in settings.items():
        setattr(made, name, value)
    return made


NORMS = ("input_layernorm", "post_attention_layernorm")
BLOCKS = {
    "plain": (block("self_attn", "mlp", *NORMS), {"attn_out", "resid_mid", "mlp_out"}),
    "Granite": (block("self_attn", "mlp", *NORMS, residual_multiplier=0.2), {"resid_mid"}),
    "Pythia": (block("attention", "mlp", *NORMS, use_parallel_residual=True), {"attn_out", "mlp_out"}),
    "cross-attention": (block("cross_attn", "mlp", *NORMS), {"resid_mid"}),
    "GLM-4": (
        block("self_attn", "mlp", *NORMS, "post_self_attn_layernorm", "post_mlp_layernorm"),
        {"attn_out", "resid_mid", "mlp_out"},
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_sites_inside_a_block_are_those_that_exist(name):
    made, hooks = BLOCKS[name]
    assert {*terms_of(made)} == hooks
    if name == "GLM-4":
        assert terms_of(made)["attn_out"] == ("post_self_attn_layernorm", "output")


def test_positions_of_a_left_padded_batch_count_from_its_first_word(family):
    on = family("GPT-2")
    encoding = on.encode(["Who is Oren Tal?", "Where?"])
    assert encoding["position_ids"][1].tolist()[-4:] == list(range(int(encoding.prompt_end[1]) + 1))[-4:]
    assert "position_ids" not in lens_of(tiny_llama()).encode("Where?")
    assert SimpleNamespace(**encoding).position_ids.shape == encoding["input_ids"].shape


def test_a_bridge_that_hides_the_mask_is_told_the_padding_or_refuses(family):
    """Attention scores of Qwen-VL's bridge come before the mask; those of LLaVA's with it."""
    plan = as_plan(op.Add(torch.ones(32), scale=3.0).at(1))
    for name, hidden in (("Qwen2.5-VL", True), ("LLaVA-1.5", False)):
        on = family(name)
        bridge = to_bridge(on)
        inputs = on.encode(["Who is Oren Tal?", "Where?"], [picture(0), None])
        mask, rest = inputs["attention_mask"].bool(), {k: v for k, v in inputs.items() if k != "input_ids"}
        with torch.no_grad(), plan.attach(on.hf):
            expected = on.hf(**inputs).logits[mask]
        for told in ({"encoding": inputs}, {}):
            hooks = plan.fwd_hooks(bridge, **told)
            with (
                torch.no_grad(),
                pytest.raises(RMuseError, match="padding") if hidden and not told else nullcontext(),
            ):
                found = bridge.run_with_hooks(inputs["input_ids"], fwd_hooks=hooks, **rest)[mask]
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
