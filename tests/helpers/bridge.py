"""The TransformerLens bridge of a tiny model, and the same runs on it and on the plain model."""

from functools import cache

import torch
from helpers.places import STEPS
from helpers.plans import lens_of
from helpers.tiny import tiny_llava

from rmuse_interp.lens.bridge import to_bridge

GREEDY = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
# States are some ten times larger than logits, and so is their rounding.
CLOSE_STATES = {"atol": 1e-4, "rtol": 1e-5}


@cache
def bridge_of(folder):
    """The bridge of a tiny model, built once per session."""
    return to_bridge(lens_of(folder))


def pair(folder=None):
    """A model in nnsight's hands and the bridge of the same checkpoint."""
    folder = folder or tiny_llava()
    return lens_of(folder), bridge_of(folder)


def generated(bridge, inputs, hooks=(), **settings):
    """TransformerLens' own greedy generation under these hooks."""
    with bridge.hooks(fwd_hooks=list(hooks)):
        return bridge.generate(
            inputs["input_ids"],
            **{key: value for key, value in inputs.items() if key != "input_ids"},
            **(GREEDY | {"stop_at_eos": False, "verbose": False} | settings),
        )


def native(lens, plan, inputs, **settings):
    """The same generation on the plain model with the plan attached."""
    more = GREEDY | {"return_dict_in_generate": True, "eos_token_id": None} | settings
    with plan.attach(lens.hf):
        return lens.hf.generate(**inputs, **more)


def forward(bridge, inputs, hooks=(), **settings):
    """One forward pass under these hooks."""
    more = {key: value for key, value in inputs.items() if key != "input_ids"} | settings
    with torch.no_grad():
        return bridge.run_with_hooks(inputs["input_ids"], fwd_hooks=list(hooks), **more)


def attached(lens, plan, inputs, prompt_end=None):
    """The same forward pass on the plain model with the plan attached."""
    told = inputs["input_ids"], inputs["attention_mask"], prompt_end
    with plan.attach(lens.hf) as handle, handle.expecting(*told), torch.no_grad():
        return lens.hf(**inputs).logits


def n_hooks(bridge) -> int:
    return sum(len(point.fwd_hooks) + len(point._forward_hooks) for point in bridge.hook_dict.values())


def stacked(result) -> torch.Tensor:
    return torch.stack(result.logits, dim=1)
