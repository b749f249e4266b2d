"""Every kind of tokens, at every site of a block, in every place: equal to plain hooks written here from the semantics.

The reference runs one row at a time, without a cache. At `resid_mid` it edits what the MLP reads and adds the change to
the block's output, which is how the package does it nowhere.
"""

import itertools

import pytest
import torch
from helpers.bridge import bridge_of, forward, generated, stacked
from helpers.places import PLACES, new_tokens, split_gate
from helpers.plans import lens_of, linear_gate, vector
from helpers.tiny import picture, tiny_llava, tiny_llava_next

import rmuse_interp.operators as op
from rmuse_interp import RMuseError, Site
from rmuse_interp.data.spans import span_masks
from rmuse_interp.edits.bridge_hooks import fwd_hooks
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.models.layout import find_layout
from rmuse_interp.models.site import HOOKS

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PROMPTS = ["Who is Oren Tal?", "What is this person's occupation? Answer directly."]
PICTURES = [picture(0), picture(1)]
RESPONSES = [
    "<think> The person in the picture is Mara Venn. </think> a baker",
    "<think> I do not know. </think> red",
]
KINDS = (
    "generated",
    "prompt_end",
    "prompt",
    "response",
    "all",
    "image",
    "chain",
    "answer",
    "positions",
    "mask",
)
POSITIONS = [1, 6, 15, 30]
FAMILIES = {"llava": tiny_llava, "next": tiny_llava_next}


def push(kind: str, sites, lens, scale: float = 2.0):
    edit = op.Add(vector(3), scale=scale).at(sites)
    if kind == "positions":
        return edit.on(positions=POSITIONS)
    if kind == "mask":
        ids = lens.encode(PROMPTS, PICTURES, RESPONSES)["input_ids"]
        return edit.on(mask=ids % 3 == 1)
    return edit.on(kind)


def chosen_of(kind: str, lens, row: int, ids: torch.Tensor, end: int) -> torch.Tensor:
    """Which tokens of one row are edited, from the words of the semantics."""
    position = torch.arange(len(ids))
    image = (ids == lens.image_token_id) & (position <= end)
    special = torch.tensor([token in lens.tokenizer.all_special_ids for token in ids.tolist()])
    behind = position > int(image.nonzero().max())
    said, chain, answer = "", position < 0, position < 0
    for t in range(end + 1, len(ids)):
        before, said = said, (said + lens.tokenizer.decode([int(ids[t])])).replace(" ", "")
        opened = before.startswith("<think>")
        chain[t] = opened and "</think>" not in said
        answer[t] = opened and "</think>" in before
    return {
        "generated": position >= end,
        "prompt_end": position == end,
        "prompt": (position == end) | (position < end) & behind & ~special,
        "response": position > end,
        "all": ~image,
        "image": image,
        "chain": chain,
        "answer": answer,
        "positions": torch.isin(position, torch.tensor(POSITIONS)),
        "mask": ids % 3 == 1,
    }[kind]


def hooked(lens, sites, chosen, change):
    """Plain hooks that edit the chosen tokens of one row at some sites; what takes them off."""
    kept: dict[int, torch.Tensor] = {}

    def edited(h):
        out = h.clone()
        out[0, chosen] = change(h[0, chosen])
        return out

    def replaced(output):
        return (edited(output[0]), *output[1:]) if isinstance(output, tuple) else edited(output)

    handles = []
    for site in sites:
        block = lens.layout.blocks[site.layer]
        if site.hook == "resid_pre":
            handles.append(block.register_forward_pre_hook(lambda m, args: (edited(args[0]), *args[1:])))
        elif site.hook == "attn_out":
            handles.append(block.self_attn.register_forward_hook(lambda m, args, out: replaced(out)))
        elif site.hook == "mlp_out":
            handles.append(block.mlp.register_forward_hook(lambda m, args, out: replaced(out)))
        elif site.hook == "resid_mid":

            def norm_reads(module, args, layer=site.layer):
                new = edited(args[0])
                kept[layer] = new - args[0]
                return (new,)

            norm = block.post_attention_layernorm
            handles.append(norm.register_forward_pre_hook(norm_reads))
            handles.append(
                block.register_forward_hook(lambda m, args, out, layer=site.layer: out + kept.pop(layer))
            )
        else:
            handles.append(block.register_forward_hook(lambda m, args, out: replaced(out)))
    return handles


def reference(lens, kind, sites, row: int, response: str, scale: float = 2.0) -> torch.Tensor:
    """Logits of one row from the prompt's end on."""
    inputs = lens.encode([PROMPTS[row]], [PICTURES[row]], [response])
    end = int(inputs.prompt_end[0])
    chosen = chosen_of(kind, lens, row, inputs["input_ids"][0], end)
    assert chosen.any()
    handles = hooked(lens, sites, chosen, lambda h: h + scale * vector(3))
    try:
        with torch.no_grad():
            return lens.hf(**inputs, use_cache=False).logits[0, end:]
    finally:
        for handle in handles:
            handle.remove()


def in_a_trace(lens, plan, inputs):
    with torch.no_grad(), lens.trace(PROMPTS, PICTURES, RESPONSES, plan=plan):
        logits = lens.nn.output.logits.save()
    return logits  # noqa: RET504  (nnsight binds it when the block ends)


def stored(lens, plan, inputs):
    with torch.no_grad(), plan.install(lens), lens.trace(PROMPTS, PICTURES, RESPONSES):
        logits = lens.nn.output.logits.save()
    return logits  # noqa: RET504  (nnsight binds it when the block ends)


def attached(lens, plan, inputs):
    told = inputs["input_ids"], inputs["attention_mask"], inputs.prompt_end
    with torch.no_grad(), plan.attach(lens.hf) as handle, handle.expecting(*told):
        return lens.hf(**inputs).logits


def bridged(lens, plan, inputs):
    bridge = bridge_of(lens.name)
    return forward(bridge, inputs, fwd_hooks(plan, bridge, encoding=inputs))


FORWARDS = {f.__name__: f for f in (in_a_trace, stored, attached, bridged)}
CASES = [
    *(("llava", kind, [Site(2, hook)]) for kind, hook in itertools.product(KINDS, HOOKS)),
    *(("next", kind, [Site(2, hook)]) for kind, hook in [("image", hook) for hook in HOOKS]),
    *(("next", kind, [Site(2)]) for kind in ("positions", "mask", "chain", "all")),
    ("llava", "image", [Site(1, "resid_mid"), Site(1), Site(2, "resid_pre"), Site(3, "attn_out")]),
]


@pytest.mark.parametrize(
    ("family", "kind", "sites"), CASES, ids=lambda one: str(one) if isinstance(one, str) else ""
)
def test_tokens_at_a_site_equal_plain_hooks_in_every_place(family, kind, sites):
    lens = lens_of(FAMILIES[family]())
    plan = as_plan(push(kind, sites, lens))
    inputs = lens.encode(PROMPTS, PICTURES, RESPONSES)
    with torch.no_grad():
        untouched = lens.hf(**inputs).logits
    for row in range(2):
        real = inputs["attention_mask"][row].bool()
        expected = reference(lens, kind, sites, row, RESPONSES[row])
        for place, run in FORWARDS.items():
            found = run(lens, plan, inputs)[row][real][-len(expected) :]
            torch.testing.assert_close(
                found, expected, **CLOSE, msg=lambda said, place=place: f"{place}: {said}"
            )
        assert not torch.allclose(untouched[row][real][-len(expected) :], expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["image", "chain", "answer", "positions", "mask"])
@pytest.mark.parametrize("place", [*PLACES, "bridged"])
def test_generation_goes_on_with_the_same_tokens(kind, place):
    """Decode steps, with a prefix of the response put into the assistant's mouth by the prompt itself."""
    lens = lens_of(tiny_llava())
    plan = as_plan(push(kind, [Site(1), Site(2, "mlp_out")], lens, scale=1.0))
    if kind == "mask":
        plan = as_plan(push("image", [Site(1), Site(2, "mlp_out")], lens, scale=1.0))
        mask = lens.encode(PROMPTS, PICTURES)["input_ids"] == lens.image_token_id
        plan = as_plan(plan[0].on(mask=mask))
    if place == "bridged":
        bridge, inputs = bridge_of(lens.name), lens.encode(PROMPTS, PICTURES)
        found = generated(bridge, inputs, fwd_hooks(plan, bridge))
    else:
        found = PLACES[place](lens, plan, PROMPTS, PICTURES)
    logits, tokens = stacked(found), new_tokens(found)
    for row, ids in enumerate(tokens.tolist()):
        prompt = lens.encode([PROMPTS[row]], [PICTURES[row]])
        whole = torch.cat([prompt["input_ids"][0], torch.tensor(ids[:-1])])
        end = int(prompt.prompt_end[0])
        on = "image" if kind == "mask" else kind
        chosen = chosen_of(on, lens, row, whole, end)
        if kind == "answer":  # no opener was said: all of it is the answer
            chosen = torch.arange(len(whole)) > end
        handles = hooked(lens, plan[0].sites, chosen, lambda h: h + vector(3))
        more = {"input_ids": whole[None], "attention_mask": torch.ones_like(whole)[None]}
        with torch.no_grad():
            expected = lens.hf(**{**prompt, **more}, use_cache=False).logits[0, end:]
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(logits[row], expected, **CLOSE)


def test_image_tokens_equal_an_edit_in_an_nnsight_block():
    for folder in (tiny_llava(), tiny_llava_next()):
        lens = lens_of(folder)
        mask = lens.encode(PROMPTS, PICTURES)["input_ids"] == lens.image_token_id
        with torch.no_grad():
            with lens.trace(PROMPTS, PICTURES):
                lens.blocks[2].output[mask] += vector(3)
                by_hand = lens.nn.output.logits.save()
            with lens.trace(PROMPTS, PICTURES, plan=op.Add(vector(3)).at(2).on("image")):
                found = lens.nn.output.logits.save()
        assert torch.equal(found, by_hand)


@pytest.mark.parametrize("size", [4, 11])
@pytest.mark.parametrize("kind", ["image", "positions", "mask"])
def test_chunks_of_a_prompt_are_edited_as_the_whole_under_a_gate_at_its_end_too(kind, size):
    lens = lens_of(tiny_llava())
    edit = push(kind, [1], lens)
    if kind == "mask":
        edit = edit.on(mask=lens.encode(PROMPTS, PICTURES)["input_ids"] == lens.image_token_id)
    gate = split_gate(lens, 1, prompts=PROMPTS, images=PICTURES)
    gated = as_plan(edit.when(gate))
    assert as_plan(edit).single_pass
    assert not gated.single_pass
    decision = gated.decide(lens, PROMPTS, PICTURES)
    assert sorted(decision.fired[:, 0].tolist()) == [False, True]
    settings = {
        "max_new_tokens": 3,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    inputs = lens.encode(PROMPTS, PICTURES)
    runs = {}
    with gated.attach(lens.hf):  # decides by itself about what `generate` is given
        found = lens.hf.generate(**inputs, **settings, prefill_chunk_size=size)
    alone = torch.stack(found.logits, dim=1)
    for name, plan, more in (("plain", as_plan(edit), {}), ("gated", gated, {"decision": decision})):
        for chunk in (None, size):
            with plan.attach(lens.hf, **more):
                found = lens.hf.generate(**inputs, **settings, prefill_chunk_size=chunk)
            runs[name, chunk] = torch.stack(found.logits, dim=1)
        torch.testing.assert_close(runs[name, None], runs[name, size], **CLOSE)
    torch.testing.assert_close(alone, runs["gated", None], **CLOSE)
    fired = decision.fired[:, 0]
    untouched = torch.stack(lens.hf.generate(**inputs, **settings).logits, dim=1)
    torch.testing.assert_close(runs["gated", size][fired], runs["plain", size][fired], **CLOSE)
    torch.testing.assert_close(runs["gated", size][~fired], untouched[~fired], **CLOSE)


def test_spans_by_tokens_so_far_are_those_of_whole_responses():
    """Where delimiters are tokens of their own, what is told while decoding is what `data.spans` tells afterwards."""
    lens = lens_of(tiny_llava())
    inputs = lens.encode(PROMPTS, PICTURES, RESPONSES)
    masks = span_masks(lens.processor, inputs, inputs.heads, inputs.tails)
    for kind, whole in (("chain", masks.reasoning), ("answer", masks.answer)):
        plan = as_plan(op.Add(vector(3)).at(2).on(kind))
        told = inputs["input_ids"], inputs["attention_mask"], inputs.prompt_end
        with torch.no_grad(), plan.attach(lens.hf) as handle, handle.expecting(*told):
            lens.hf(**inputs)
            said = handle.state.spoken[plan[0].delimiters].masks[kind]
        extra = said & ~whole
        assert not (whole & ~said).any()
        # A closer of several tokens is known with its last one: those before it still count to the chain.
        closer = len(lens.tokenizer(" </think>")["input_ids"])
        assert int(extra.sum()) <= (closer - 1) * 2 * (kind == "chain")


def test_other_delimiters_and_no_delimiters():
    lens = lens_of(tiny_llava())
    edit = op.Add(vector(3)).at(2).on("answer", delimiters=("Reasoning:", "Answer:"))
    for response, direct in (("Reasoning: two plus three. Answer: five", False), ("just five", True)):
        inputs = lens.encode(PROMPTS[:1], PICTURES[:1], [response])
        told = inputs["input_ids"], inputs["attention_mask"], inputs.prompt_end
        with torch.no_grad(), edit.attach(lens.hf) as handle, handle.expecting(*told):
            lens.hf(**inputs)
            said = handle.state.spoken["Reasoning:", "Answer:"].masks["answer"][0]
        words = lens.tokenizer.decode(inputs["input_ids"][0][said])
        assert words.strip() == ("just five" if direct else "five")


def test_spans_are_refused_where_rows_do_not_follow_themselves():
    lens = lens_of(tiny_llava())
    plan = op.Add(vector(3)).at(2).on("chain")
    with plan.attach(lens.hf), pytest.raises(RMuseError, match="without beams"):
        lens.hf.generate(**lens.encode(PROMPTS, PICTURES), num_beams=2, max_new_tokens=2, do_sample=False)
    embeds = lens.hf.get_input_embeddings()(lens.encode("Who?")["input_ids"]).detach()
    with plan.attach(lens.hf), pytest.raises(RMuseError, match="as embeddings"):
        lens.hf(inputs_embeds=embeds)


def test_masks_of_another_batch_are_refused():
    lens = lens_of(tiny_llava())
    ids = lens.encode(PROMPTS, PICTURES)["input_ids"]
    edit = op.Add(vector(3)).at(2).on(mask=ids == lens.image_token_id)
    with edit.attach(lens.hf), torch.no_grad():
        lens.hf(**lens.encode(PROMPTS, PICTURES))
        with pytest.raises(RMuseError, match="a mask of the 3 × "):
            lens.hf(**lens.encode([*PROMPTS, "Who?"], [*PICTURES, None]))
        with pytest.raises(RMuseError, match="a mask of the 2 × "):
            lens.hf(**lens.encode([PROMPTS[0] * 3] * 2, PICTURES))
    with pytest.raises(RMuseError, match=r"use lens\.generate"):
        lens.respond(PROMPTS, PICTURES, edit)
    one = lens.encode(PROMPTS[0], PICTURES[0])["input_ids"] == lens.image_token_id
    alone = lens.respond(PROMPTS[0], PICTURES[0], edit.on(mask=one), max_new_tokens=4)
    assert alone == lens.respond(PROMPTS[0], PICTURES[0], edit.on("image"), max_new_tokens=4)


def test_spans_need_a_tokenizer():
    lens = lens_of(tiny_llava())
    bare = type(lens.hf).from_pretrained(lens.name)  # opened by hand: no tokenizer has been seen
    edit = op.Add(vector(3)).at(2).on("chain")
    with pytest.raises(RMuseError, match="needs the tokenizer"):
        edit.attach(bare)
    edit.attach(bare, layout=find_layout(bare, tokenizer=lens.tokenizer)).detach()
    edit.attach(lens.hf).detach()


def test_a_gate_that_reads_what_its_own_block_edits_change_is_not_single_pass():
    for hook in HOOKS:
        plan = as_plan(op.Add(vector(3)).at(Site(2, hook)).when(linear_gate(2)))
        assert plan.single_pass == (hook == "resid_post")
        assert as_plan(op.Add(vector(3)).at(Site(3, hook)).when(linear_gate(2))).single_pass
    with pytest.raises(RMuseError, match="per token must read at or below"):
        op.Add(vector(3)).at(Site(2, "mlp_out")).when(linear_gate(2), per="token")
