"""Steered passes of every shape: given responses, prefills, chunks, beams, samples and turns."""

import pytest
import torch
from helpers.places import PLACES, SETTINGS, native, new_tokens, plans, reference_logits, split_gate, turn
from helpers.plans import lens_of, linear_gate, questions, vector
from helpers.tiny import tiny_llava

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.edits.trace import Recorder

# -- teacher forcing, prefills and chunks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["gated", "question", "by modality", "by position", "response", "per token", "kept to"]
)
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
@pytest.mark.parametrize("name", ["gated", "question", "image", "by modality", "per token", "kept to"])
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
@pytest.mark.parametrize("name", ["gated", "by modality", "per token", "kept to"])
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
    last = as_plan(turn().when(linear_gate(1, "last", threshold=-1e30)))
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
