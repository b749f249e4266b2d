"""The places a plan runs in, plans that differ in everything they can say, and a naive reference."""

from functools import cache

import torch
from helpers.plans import lens_of, linear_gate, questions, subspace, vector
from helpers.tiny import tiny_llava

import rmuse_interp.operators as op
from rmuse_interp import Plan
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.maths.sphere import unit
from rmuse_interp.parts.angle import ACS, FixedFraction
from rmuse_interp.parts.frame import Frame
from rmuse_interp.parts.prototypes import Prototypes

STEPS = 7


def turn(layers=(2, 3), share: float = 0.7):
    return op.SlerpToward(vector(1), FixedFraction(share)).keeping(subspace(2)).at(layers=list(layers))


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


def refusals():
    """Three trajectories of unequal length, and a frame, at random."""
    made = torch.Generator().manual_seed(11)
    frame = Frame(torch.randn(32, generator=made), torch.rand(32, generator=made) + 0.5)
    keys = torch.randn(9, 32, generator=made)
    points = torch.randn(3, 5, 32, generator=made)
    lengths, owner = torch.tensor([5, 3, 4]), torch.arange(9) % 3
    return op.Follow(points, lengths, keys, owner, fraction=0.7, frame=frame).keeping(subspace(2)), frame


@cache
def plans(lens):
    """Plans that differ in everything a plan can say."""
    prototypes = Prototypes(unit(torch.randn(6, 32, generator=torch.Generator().manual_seed(4))))
    move = op.Transport(prototypes.points, torch.arange(6), window=1, beyond="nearest")
    acs = op.SlerpToward(vector(1), ACS(prototypes), signed=True).keeping(subspace(2), "direction")
    push = op.Add(vector(3), scale=3.0)
    follow, frame = refusals()
    falling = op.Fading(op.Framed(op.SlerpToward(vector(1), FixedFraction(0.6)), frame), until=1, decay=0.5)
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
        "kept to": as_plan(follow.at(layers=[2, 3]).when(split_gate(lens, 1))),
        "falling": as_plan(falling.at(layers=[1]).when(split_gate(lens, 1))),
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
    placeholder = -1 if lens.image_token_id is None else lens.image_token_id
    is_image = prompt_ids[0] == placeholder
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
        "all": ids[0] != placeholder,
    }
    fires: dict[int, torch.Tensor] = {}
    kept: dict[int, torch.Tensor] = {}

    def hook_for(layer):
        def hook(module, args, output):
            h = output.clone()
            for i, edit in enumerate(plan):
                if edit.gate is not None and edit.gate.layer == layer and edit.per == "token":
                    fires[i] = torch.stack([edit.gate.fires(state) for state in output[0]])
            for i, edit in enumerate(plan):
                chosen = on[edit.tokens].clone()
                if layer not in edit.layers:
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
                operator = edit.operator_at(layer)
                # What an answer keeps to is chosen once, at the prompt's end and the first of the edit's blocks.
                operator = operator.along(kept.setdefault(i, operator.starting(h[0, end : end + 1])[0]))
                for t in chosen.nonzero().flatten().tolist():
                    h[0, t] = operator(h[0, t], torch.tensor(t - end))
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


def hooks_of(lens) -> int:
    # transformers leaves hooks of its own behind after `output_hidden_states=True`.
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lens.hf.modules())


# -- plans for engines, and questions without a picture -----------------------------------------------------------

PUSH = as_plan(op.Add(vector(3), scale=3.0).at(layers=[1]))
PLANS = {
    "gated": Plan([turn([2]).when(linear_gate(1, threshold=-100.0))]),
    "two passes": Plan([turn([1]).when(linear_gate(2, threshold=-100.0))]),
    "response": as_plan(op.Add(vector(3), scale=3.0).at(layers=[1]).on("response")),
    "per token": as_plan(op.Add(vector(3), scale=3.0).at(layers=[2]).when(linear_gate(1), per="token")),
}
TEXTS = ["Who is Oren Tal?", "How many red circles are there? Two plus three is five."]


@torch.no_grad()
def steered(call, *args, plan=None, to=None, **kwargs):
    """Logits of one call, with the plan attached for its time."""
    if plan is None:
        return call(*args, **kwargs).logits
    with plan.attach(to or call):
        return call(*args, **kwargs).logits
