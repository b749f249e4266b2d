"""One plan, three places, equal logits: an nnsight context, a stored nnsight edit, hooks on the plain model.

The reference is a forward hook written here from the semantics alone: no cache, one row at a time, gates scored on
states taken with `output_hidden_states` from a plain forward pass.
"""

from functools import cache

import pytest
import torch
from plans import PICTURES, gated_plan, lens_of, linear_gate, questions, subspace, vector
from tiny import IMAGE_TOKENS, tiny_llama, tiny_llava

import rmuse_interp.operators as op
from rmuse_interp import Plan, RMuseError, Site
from rmuse_interp.edits import deciding
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.edits.trace import Recorder
from rmuse_interp.maths.sphere import unit
from rmuse_interp.parts.angle import ACS, FixedFraction
from rmuse_interp.parts.prototypes import Prototypes

STEPS = 7


def turn(layers=(2, 3), share: float = 0.7):
    return op.SlerpToward(vector(1), FixedFraction(share)).protecting(subspace(2)).at(layers=list(layers))


def split_gate(
    lens, layer: int = 1, readout: str = "last", prompts=None, images=None, prefix: str | None = None
):
    """A gate that fires for some of the questions and not for others."""
    asked = (prompts, images) if prompts else questions()
    scores = Plan([turn().when(linear_gate(layer, readout, prefix=prefix))]).decide(lens, *asked).score[:, 0]
    finite = scores[scores.isfinite()].sort().values
    return linear_gate(
        layer,
        readout,
        threshold=float(finite[len(finite) // 2 - 1 : len(finite) // 2 + 1].mean()),
        prefix=prefix,
    )


@cache
def plans(lens):
    """Plans that differ in everything a plan can say."""
    prototypes = Prototypes(unit(torch.randn(6, 32, generator=torch.Generator().manual_seed(4))))
    move = op.Transport(prototypes.points, torch.arange(6), window=1, beyond="nearest")
    acs = op.SlerpToward(vector(1), ACS(prototypes), signed=True).shielding(subspace(2))
    push = op.Add(vector(3), scale=3.0)
    return {
        "ungated": as_plan(turn()),
        "gated": as_plan(turn().when(split_gate(lens))),
        "question": as_plan(turn([1, 2]).when(split_gate(lens, 1, "question"))),
        "image": as_plan(turn([2]).when(split_gate(lens, 2, "image"))),
        "acs": as_plan(acs.at(layers=[1, 3]).when(split_gate(lens))),
        "by position": as_plan(move.at(layers=[3]).when(split_gate(lens, 0))),
        "by modality": turn([2]).given("image").when(split_gate(lens, 1))
        >> push.at(layers=[2]).given("text"),
        "prompt end": as_plan(push.at(layers=[1]).on("prompt_end")),
        "prompt": as_plan(push.at(layers=[1]).on("prompt").when(split_gate(lens, 1))),
        "response": as_plan(push.at(layers=[1]).on("response")),
        "all": as_plan(push.at(layers=[2]).on("all").when(split_gate(lens, 1))),
        "per token": as_plan(push.at(layers=[2]).when(split_gate(lens, 1), per="token")),
        "rival": op.Ablate(subspace(3)).at(layers=[0, 1]) >> push.at(layers=[2]).on("response"),
    }


NAMES = list(plans(lens_of(tiny_llava())))


# -- the reference ------------------------------------------------------------------------------------------------


def reference_logits(lens, plan: Plan, prompt: str, image, response_ids: list[int]) -> torch.Tensor:
    """Logits at the prompt's end and at every response token, for one row, by plain hooks and without a cache."""
    inputs = dict(lens.encode([prompt], [image]))
    prompt_ids = inputs["input_ids"]
    end = prompt_ids.shape[1] - 1
    with torch.no_grad():
        states = lens.hf(
            **inputs, output_hidden_states=True
        ).hidden_states  # [l + 1] is the output of block l
    is_image = prompt_ids[0] == lens.image_token_id
    special = torch.tensor([token in lens.tokenizer.all_special_ids for token in prompt_ids[0].tolist()])
    behind = torch.arange(end + 1) > (int(is_image.nonzero().max()) if is_image.any() else -1)
    reading = {"last": torch.arange(end + 1) == end, "question": behind & ~special, "image": is_image}
    ids = torch.cat([prompt_ids, torch.tensor([response_ids], dtype=torch.long)], dim=1)
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    position = torch.arange(ids.shape[1])
    on = {
        "generated": position >= end,
        "prompt_end": position == end,
        "prompt": (position == end) | torch.cat([behind & ~special, torch.zeros(len(response_ids)).bool()]),
        "response": position > end,
        "all": ids[0] != lens.image_token_id,
    }
    fires: dict[int, torch.Tensor] = {}

    def hook_for(layer):
        def hook(module, args, output):
            h = output.clone()
            for i, edit in enumerate(plan):
                if edit.gate is not None and edit.gate.layer == layer and edit.per == "token":
                    fires[i] = torch.stack([edit.gate.fires(state) for state in output[0]])
            for i, edit in enumerate(plan):
                chosen = on[edit.tokens].clone()
                if layer not in edit.sites:
                    continue
                if edit.modality is not None and (edit.modality == "image") != (image is not None):
                    continue
                if edit.gate is not None and edit.per == "token":
                    chosen &= fires[i]
                elif edit.gate is not None:
                    read = reading[edit.gate.readout]
                    # Gates of these plans read where nothing below has been edited: plain states will do.
                    state = states[edit.gate.layer + 1][0][read]
                    if not bool(read.any()) or not bool(edit.gate.fires(state.mean(dim=0))):
                        continue
                for t in chosen.nonzero().flatten().tolist():
                    h[0, t] = edit.operator_at(layer)(h[0, t], torch.tensor(t - end))
            return h

        return hook

    hooks = [block.register_forward_hook(hook_for(i)) for i, block in enumerate(lens.layout.blocks)]
    try:
        with torch.no_grad():
            return lens.hf(**inputs).logits[0, end:]
    finally:
        for hook in hooks:
            hook.remove()


# -- the places ---------------------------------------------------------------------------------------------------

SETTINGS = {
    "max_new_tokens": STEPS,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
    "suppress_tokens": [lens_of(tiny_llava()).image_token_id],
}


def in_a_context(lens, plan, prompts, images, **more):
    with torch.no_grad(), lens.generate(prompts, images, plan=plan, **SETTINGS, **more) as tracer:
        result = tracer.result.save()
    return result  # noqa: RET504  (nnsight binds it when the block ends)


def installed(lens, plan, prompts, images, **more):
    inputs = lens.encode(prompts, images)
    with plan.install(lens), torch.no_grad(), lens.nn.generate(**inputs, **SETTINGS, **more) as tracer:
        result = tracer.result.save()
    return result  # noqa: RET504  (nnsight binds it when the block ends)


def installed_and_asked_by_name(lens, plan, prompts, images, **more):
    with plan.install(lens), torch.no_grad(), lens.generate(prompts, images, **SETTINGS, **more) as tracer:
        result = tracer.result.save()
    return result  # noqa: RET504  (nnsight binds it when the block ends)


def native(lens, plan, prompts, images, **more):
    with plan.attach(lens.hf):
        return lens.hf.generate(**lens.encode(prompts, images), **SETTINGS, **more)


def plain(lens, plan, prompts, images, **more):
    return lens.hf.generate(**lens.encode(prompts, images), **SETTINGS, **more)


PLACES = {f.__name__: f for f in (in_a_context, installed, installed_and_asked_by_name, native)}


@cache
def early_end(lens, plan) -> int:
    """A token that ends one row early, and not all of them: the second one of some row."""
    steered = native(lens, plan, *questions()).sequences[:, -STEPS:]
    for row in range(len(steered)):
        token = int(steered[row, 1])
        if sum(token in steered[other].tolist() for other in range(len(steered))) < len(steered):
            return token
    raise AssertionError("every token occurs in every row")


def new_tokens(result) -> torch.Tensor:
    return result.sequences[:, -len(result.logits) :]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_every_step_equals_a_plain_forward_hook(name, place):
    lens = lens_of(tiny_llava())
    plan = plans(lens)[name]
    prompts, images = questions()
    end = early_end(lens, plan)
    more = {"eos_token_id": end, "pad_token_id": 0}
    result = PLACES[place](lens, plan, prompts, images, **more)
    tokens, logits = new_tokens(result), torch.stack(result.logits, dim=1)
    lengths = [row.index(end) + 1 if end in row else len(row) for row in tokens.tolist()]
    assert min(lengths) < max(lengths), "one row was to end early"
    unsteered = torch.stack(plain(lens, plan, prompts, images, **more).logits, dim=1)
    moved = False
    for row, length in enumerate(lengths):
        expected = reference_logits(lens, plan, prompts[row], images[row], tokens[row, : length - 1].tolist())
        torch.testing.assert_close(logits[row, :length], expected, atol=1e-5, rtol=1e-5)
        shared = min(length, unsteered.shape[1])
        moved |= not torch.allclose(logits[row, :shared], unsteered[row, :shared], atol=1e-3)
    assert moved, "the plan was to do something"


@pytest.mark.parametrize("name", NAMES)
def test_the_places_agree_to_the_bit_and_undo_themselves(name):
    lens = lens_of(tiny_llava())
    plan = plans(lens)[name]
    asked = questions()
    before, hooks = plain(lens, plan, *asked), hooks_of(lens)
    found = {place: run(lens, plan, *asked) for place, run in PLACES.items()}
    for result in found.values():
        assert torch.equal(result.sequences, found["native"].sequences)
        torch.testing.assert_close(
            torch.stack(result.logits), torch.stack(found["native"].logits), atol=1e-5, rtol=0
        )
    after = plain(lens, plan, *asked)
    assert torch.equal(torch.stack(before.logits), torch.stack(after.logits))
    with torch.no_grad(), lens.generate(*asked, **SETTINGS) as tracer:
        traced = tracer.result.save()
    assert torch.equal(torch.stack(before.logits), torch.stack(traced.logits))
    assert "generate" not in vars(lens.hf)
    assert hooks_of(lens) == hooks


def hooks_of(lens) -> int:
    # transformers leaves hooks of its own behind after `output_hidden_states=True`.
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lens.hf.modules())


@pytest.mark.parametrize("place", PLACES)
def test_a_closed_gate_returns_its_rows_bit_for_bit(place):
    lens = lens_of(tiny_llava())
    gate = split_gate(lens)
    plan = as_plan(turn().when(gate))
    prompts, images = questions()
    fired = plan.decide(lens, prompts, images).fired[:, 0]
    assert fired.any()
    assert not fired.all()
    result, untouched = PLACES[place](lens, plan, prompts, images), plain(lens, plan, prompts, images)
    for row, steered in enumerate(fired.tolist()):
        same = torch.equal(torch.stack(result.logits)[:, row], torch.stack(untouched.logits)[:, row])
        assert same != steered
    shut = as_plan(turn().when(gate.at_threshold(float("inf"))))
    result = PLACES[place](lens, shut, prompts, images)
    assert torch.equal(torch.stack(result.logits), torch.stack(untouched.logits))


def test_an_edit_that_does_nothing_is_told_from_one_that_does():
    lens = lens_of(tiny_llava())
    asked = questions()
    untouched = torch.stack(plain(lens, None, *asked).logits)
    for edit, acts in ((op.Add(vector(3), scale=0.0), False), (op.Add(vector(3), scale=1e-2), True)):
        steered = torch.stack(native(lens, as_plan(edit.at(layers=[2])), *asked).logits)
        assert torch.equal(steered, untouched) != acts


def test_rows_are_decided_one_by_one_and_alone_they_are_decided_the_same():
    lens = lens_of(tiny_llava())
    plan = plans(lens)["by modality"]
    prompts, images = questions()
    together = lens.respond(prompts, images, plan, max_new_tokens=STEPS)
    for row, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        alone = lens.respond(prompt, [image], plan, max_new_tokens=STEPS)[0]
        assert (alone.text, alone.fired) == (together[row].text, together[row].fired)
        assert (
            alone.score == pytest.approx(together[row].score, abs=1e-4) or alone.score is together[row].score
        )
        assert (together[row].fired is None) == (PICTURES[row] is None)
    assert {response.fired for response in together} == {True, False, None}


# -- teacher forcing, prefills and chunks -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gated", "question", "by modality", "by position", "response", "per token"])
def test_given_responses_are_steered_from_the_prompts_end(name):
    lens = lens_of(tiny_llava())
    plan = plans(lens)[name]
    prompts, images = questions()
    responses = [
        "<think> The person in the picture is Mara Venn. </think> baker",
        "",
        "It is green.",
        "<think> I do",
    ]
    inputs = lens.encode(prompts, images, responses)
    with torch.no_grad():
        with lens.trace(prompts, images, responses, plan=plan):
            traced = lens.nn.output.logits.save()
        with (
            plan.attach(lens.hf) as handle,
            handle.expecting(inputs["input_ids"], inputs["attention_mask"], inputs.prompt_end),
        ):
            attached = lens.hf(**inputs).logits
        with plan.install(lens), lens.trace(prompts, images, responses):
            stored = lens.nn.output.logits.save()
    for row, prompt in enumerate(prompts):
        real = inputs["attention_mask"][row].bool()
        end = int(inputs.prompt_end[row])
        ids = inputs["input_ids"][row][real][end + 1 :].tolist()
        expected = reference_logits(lens, plan, prompt, images[row], ids)
        for logits in (traced, attached, stored):
            torch.testing.assert_close(logits[row][real][end:], expected, atol=1e-5, rtol=1e-5)


def test_without_word_of_it_the_prompt_ends_at_the_last_unmasked_token():
    lens = lens_of(tiny_llava())
    plan = as_plan(turn())
    left = lens.encode(*questions())
    right_ids, right_mask = left["input_ids"].clone(), left["attention_mask"].clone()
    for row in range(len(right_ids)):
        n = int(left["attention_mask"][row].sum())
        right_ids[row] = torch.cat([left["input_ids"][row, -n:], left["input_ids"][row, :-n]])
        right_mask[row] = torch.arange(right_mask.shape[1]) < n
    with plan.attach(lens.hf), torch.no_grad():
        one = lens.hf(**left).logits
        other = lens.hf(**{**left, "input_ids": right_ids, "attention_mask": right_mask}).logits
    for row in range(len(one)):
        n = int(right_mask[row].sum())
        torch.testing.assert_close(one[row, -n:], other[row, :n], atol=1e-5, rtol=1e-5)


def test_a_prefill_of_the_assistants_turn_is_not_part_of_the_prompt():
    lens = lens_of(tiny_llava())
    plan = as_plan(turn().when(split_gate(lens)))
    prompts, images = questions()
    bare = plan.decide(lens, prompts, images)
    responses = lens.respond(prompts, images, plan, max_new_tokens=3, prefill="<think> I")
    assert [r.fired for r in responses] == bare.fired[:, 0].tolist()
    assert [r.score for r in responses] == pytest.approx(bare.score[:, 0].tolist(), abs=1e-4)
    assert all(r.text.startswith("<think> I") for r in responses)
    with (
        torch.no_grad(),
        lens.generate(prompts, images, plan=plan, prefill="<think> I", **SETTINGS) as tracer,
    ):
        result = tracer.result.save()
    inputs = lens.encode(prompts, images, ["<think> I"] * 4)
    for row, prompt in enumerate(prompts):
        given = inputs["input_ids"][row, inputs["attention_mask"][row].bool()][
            int(inputs.prompt_end[row]) + 1 :
        ].tolist()
        ids = given + new_tokens(result)[row, :-1].tolist()
        expected = reference_logits(lens, plan, prompt, images[row], ids)[len(given) :]
        torch.testing.assert_close(torch.stack(result.logits, 1)[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("place", ["in_a_context", "installed", "installed_and_asked_by_name", "native"])
@pytest.mark.parametrize("name", ["gated", "question", "image", "by modality", "per token"])
@pytest.mark.parametrize("size", [4, 11])
def test_prefill_in_chunks(place, name, size):
    lens = lens_of(tiny_llava())
    plan = plans(lens)[name]
    whole = native(lens, plan, *questions())
    chunked = PLACES[place](lens, plan, *questions(), prefill_chunk_size=size)
    assert torch.equal(whole.sequences, chunked.sequences)
    torch.testing.assert_close(torch.stack(whole.logits), torch.stack(chunked.logits), atol=1e-5, rtol=1e-5)


def test_chunks_by_hand_and_decode_steps_of_several_tokens():
    lens = lens_of(tiny_llava())
    plan = plans(lens)["question"]
    prompts, images = questions()
    inputs = dict(lens.encode(prompts, images))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    extra = torch.randint(5, 200, (len(ids), 5), generator=torch.Generator().manual_seed(0))
    full = torch.cat([ids, extra], dim=1)
    full_mask = torch.cat([mask, torch.ones_like(extra)], dim=1)
    end = mask.sum(dim=1) - 1
    positions = (full_mask.cumsum(dim=1) - 1).clamp_min(0)
    pictures = inputs["pixel_values"]
    with plan.attach(lens.hf) as handle, torch.no_grad(), handle.expecting(ids, mask):
        at_once = lens.hf(
            input_ids=full, attention_mask=full_mask, pixel_values=pictures, position_ids=positions
        ).logits
        cut = ids.shape[1]
        first = lens.hf(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=pictures,
            position_ids=positions[:, :cut],
            use_cache=True,
        )
        rest = []
        for start, stop in ((cut, cut + 3), (cut + 3, cut + 5)):
            step = lens.hf(
                input_ids=full[:, start:stop],
                attention_mask=full_mask[:, :stop],
                position_ids=positions[:, start:stop],
                past_key_values=first.past_key_values,
                use_cache=True,
            )
            rest.append(step.logits)
    in_steps = torch.cat([first.logits[:, -1:], *rest], dim=1)
    torch.testing.assert_close(in_steps, at_once[:, cut - 1 :], atol=1e-5, rtol=1e-5)
    for row, prompt in enumerate(prompts):
        expected = reference_logits(lens, plan, prompt, images[row], extra[row].tolist())
        torch.testing.assert_close(in_steps[row], expected, atol=1e-5, rtol=1e-5)
    assert int(end[0]) != int(end[1])


@pytest.mark.parametrize("size", [4, 11, None])
def test_the_prompt_is_its_question_whatever_the_chunks(size):
    """Where the image ends is known from the whole prompt, not from the chunk; the first tokens stay as they were."""
    lens = lens_of(tiny_llava())
    plan = as_plan(op.Add(vector(3), scale=3.0).at(layers=[1]).on("prompt"))
    prompts, images = questions()
    found = native(lens, plan, prompts, images, prefill_chunk_size=size)
    for row, prompt in enumerate(prompts):
        ids = new_tokens(found)[row, :-1].tolist()
        expected = reference_logits(lens, plan, prompt, images[row], ids)
        torch.testing.assert_close(torch.stack(found.logits, 1)[row], expected, atol=1e-5, rtol=1e-5)
    for other in ("prompt_end", "all"):  # a scope of its own
        different = native(lens, as_plan(plan[0].on(other)), prompts, images)
        assert not torch.allclose(found.logits[0], different.logits[0], atol=1e-3)


def test_a_generated_placeholder_is_no_image():
    lens = lens_of(tiny_llava())
    plan = as_plan(op.Add(vector(3)).at(layers=[2]).on("all").given("text"))
    inputs = lens.encode("Who is Oren Tal?", None, "It is")
    ids = inputs["input_ids"].clone()
    ids[0, -1] = lens.image_token_id
    with plan.attach(lens.hf) as handle, torch.no_grad(), handle.expecting(ids, None, inputs.prompt_end):
        steered = lens.hf(input_ids=ids).logits
        assert not bool(handle.state.query.has_image)
    untouched = lens.hf(input_ids=ids).logits
    assert not torch.allclose(steered[:, -1], untouched[:, -1], atol=1e-3)


def test_generation_without_a_cache():
    lens = lens_of(tiny_llava())
    plan = plans(lens)["question"]
    cached, bare = native(lens, plan, *questions()), native(lens, plan, *questions(), use_cache=False)
    assert torch.equal(cached.sequences, bare.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(bare.logits), atol=1e-5, rtol=1e-5)


# -- beams, samples, turns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["gated", "by modality", "per token"])
def test_beams_and_several_sequences(place, name):
    lens = lens_of(tiny_llava())
    plan = plans(lens)[name]
    prompts, images = questions()
    more = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5, "do_sample": False}
    with plan.attach(lens.hf):
        expected = lens.hf.generate(**lens.encode(prompts, images), **more)
        alone = [
            lens.hf.generate(**lens.encode(p, [i]), **more)[:, -5:]
            for p, i in zip(prompts, images, strict=True)
        ]
    assert torch.equal(expected[:, -5:], torch.cat(alone))
    settings = {k: v for k, v in SETTINGS.items() if k not in more} | more
    if place == "native":
        return
    with torch.no_grad():
        if place == "in_a_context":
            with lens.generate(prompts, images, plan=plan, **settings) as tracer:
                found = tracer.result.save()
        else:
            with plan.install(lens), lens.generate(prompts, images, **settings) as tracer:
                found = tracer.result.save()
    assert torch.equal(found.sequences, expected)
    assert not torch.equal(expected, lens.hf.generate(**lens.encode(prompts, images), **more))


def test_token_traces_follow_the_beams_that_won():
    lens = lens_of(tiny_llava())
    plan = plans(lens)["per token"]
    gate = plan[0].gate
    prompts, images = questions()
    more = {"num_beams": 4, "max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    recorder = Recorder()
    with plan.attach(lens.hf, recorder=recorder):
        out = lens.hf.generate(**lens.encode(prompts, images), **more)
    trace = recorder.trace(beam_indices=out.beam_indices)
    assert len(set(out.beam_indices.flatten().tolist())) > len(prompts), "some beam was to change places"
    for row, prompt in enumerate(prompts):
        # Alone and without beams, the same tokens give the same states.
        inputs = lens.encode([prompt], [images[row]])
        n = inputs["input_ids"].shape[1]
        ids = torch.cat([inputs["input_ids"], out.sequences[row : row + 1, -6:]], dim=1)
        with plan.attach(lens.hf) as handle, handle.expecting(inputs["input_ids"]), torch.no_grad():
            states = []
            hook = lens.layout.blocks[gate.layer].register_forward_hook(
                lambda m, a, o, kept=states: kept.append(o)
            )
            lens.hf(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
            hook.remove()
        length = int(trace.valid[row].sum())
        assert torch.equal(trace.fired[row, 0, :length], gate.fires(states[0][0, n - 1 : n - 1 + length]))
        assert trace.ids[row, 1:length].tolist() == out.sequences[row, -6:][: length - 1].tolist()
    assert trace.fired.any()
    assert not trace.fired[:, 0][trace.valid].all()


def test_each_turn_decides_anew():
    lens = lens_of(tiny_llava())
    prompts, images = questions()
    plan = as_plan(turn().when(split_gate(lens)))
    fired = plan.decide(lens, prompts, images).fired[:, 0].tolist()
    on, off = fired.index(True), fired.index(False)
    with plan.attach(lens.hf) as handle:
        for row in (on, off, on):
            lens.hf.generate(**lens.encode(prompts[row], [images[row]]), max_new_tokens=2, do_sample=False)
            assert bool(handle.state.query.decision.fired[0, 0]) == fired[row]


def test_a_second_turn_on_a_cache_decides_on_the_whole_conversation():
    lens = lens_of(tiny_llava())
    inputs = lens.encode("Who is Oren Tal?")
    last = as_plan(turn().when(linear_gate(1, "last", threshold=float("-inf"))))
    question = as_plan(turn().when(linear_gate(1, "question")))
    settings = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    first = lens.hf.generate(**inputs, **settings)
    more = lens.tokenizer(" Where does this person live?", return_tensors="pt")["input_ids"]
    ids = torch.cat([first.sequences, more], dim=1)
    cache = {"past_key_values": first.past_key_values, "attention_mask": torch.ones_like(ids)}
    with last.attach(lens.hf) as handle:
        lens.hf.generate(input_ids=ids, **cache, **settings)
        assert int(handle.state.query.prompt_end[0]) == ids.shape[1] - 1
    first = lens.hf.generate(**inputs, **settings)
    cache["past_key_values"] = first.past_key_values
    with question.attach(lens.hf), pytest.raises(RMuseError, match="whole conversation"):
        lens.hf.generate(input_ids=ids, **cache, **settings)


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


TWO_PASS = {"above": (3, "last", None), "prefix": (1, "last", "I refuse."), "draft": (1, "draft", None)}


def two_pass(lens, kind: str) -> Plan:
    layer, readout, prefix = TWO_PASS[kind]
    plan = as_plan(turn([1, 2]).when(split_gate(lens, layer, readout, prefix=prefix)))
    assert not plan.single_pass
    return plan


def decided_first(lens, plan, prompts, images, **more):
    """The reference: what the plan does with a decision that was made by hand."""
    decision = plan.decide(lens, prompts, images)
    assert decision.fired.any()
    assert not decision.fired.all()
    with plan.attach(lens.hf, decision=decision):
        return lens.hf.generate(**lens.encode(prompts, images), **SETTINGS, **more)


@pytest.mark.parametrize("kind", TWO_PASS)
@pytest.mark.parametrize("place", ["in_a_context", "installed_and_asked_by_name"])
def test_generations_begun_by_name_decide_by_themselves(place, kind, monkeypatch):
    monkeypatch.setattr(deciding, "DRAFT_TOKENS", 4)
    lens = lens_of(tiny_llava())
    plan, asked = two_pass(lens, kind), questions()
    found = PLACES[place](lens, plan, *asked)
    expected = decided_first(lens, plan, *asked)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", TWO_PASS)
def test_traces_and_caches_decide_by_themselves(kind, monkeypatch):
    monkeypatch.setattr(deciding, "DRAFT_TOKENS", 4)
    lens = lens_of(tiny_llava())
    plan, asked = two_pass(lens, kind), questions()
    decision = plan.decide(lens, *asked)
    expected, _ = lens.run_with_cache(*asked, names=Site(3), plan=plan, decision=decision)
    found, _ = lens.run_with_cache(*asked, names=Site(3), plan=plan)
    with torch.no_grad(), lens.trace(*asked, plan=plan):
        traced = lens.nn.output.logits.save()
    with plan.install(lens):
        stored, _ = lens.run_with_cache(*asked, names=Site(3))
    with plan.install(lens, decision=decision), torch.no_grad(), lens.nn.trace(**lens.encode(*asked)):
        told = lens.nn.output.logits.save()
    for logits in (found, traced, stored, told):
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    untouched, _ = lens.run_with_cache(*asked, names=Site(3))
    assert not torch.allclose(expected, untouched)


@pytest.mark.parametrize("more", [{}, {"num_beams": 2}, {"prefill_chunk_size": 4}])
def test_an_attached_plan_decides_inside_generate_from_ids_and_pictures(more):
    lens = lens_of(tiny_llava())
    plan, asked = two_pass(lens, "above"), questions()
    expected = decided_first(lens, plan, *asked, **more)
    with plan.attach(lens.hf) as handle:
        found = lens.hf.generate(**lens.encode(*asked), **SETTINGS, **more)
        again = lens.hf.generate(**lens.encode("Where?"), max_new_tokens=1)  # decided anew: one row, not four
    assert handle.decision is None
    assert torch.equal(found.sequences, expected.sequences)
    assert len(again) == 1


@pytest.mark.parametrize("kind", ["prefix", "draft"])
def test_an_attached_plan_says_what_to_pass_where_generate_shows_too_little(kind):
    lens = lens_of(tiny_llava())
    plan = as_plan(turn([1]).when(linear_gate(*TWO_PASS[kind][:2], prefix=TWO_PASS[kind][2])))
    with pytest.raises(RMuseError, match=r"plan\.decide"), plan.attach(lens.hf):
        lens.hf.generate(**lens.encode("Where?"), max_new_tokens=1)


def test_a_two_pass_plan_without_prompts_to_decide_about_raises():
    lens = lens_of(tiny_llava())
    plan = as_plan(turn([1]).when(linear_gate(3)))
    inputs = lens.encode("Where?")
    with pytest.raises(RMuseError, match=r"plan\.decide"), plan.attach(lens.hf):
        lens.hf(**inputs)
    with pytest.raises(RMuseError, match=r"plan\.decide"), plan.install(lens), lens.nn.trace(**inputs):
        pass
    with pytest.raises(RMuseError, match=r"plan\.decide"), plan.attach(lens.hf):
        lens.generate("Where?")
    decision = plan.decide(lens, ["Where?", "Who?"])
    with (
        pytest.raises(RMuseError, match="2 queries were announced or decided"),
        plan.attach(lens.hf, decision=decision),
    ):
        lens.hf(**lens.encode(["Where?"] * 3))


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
