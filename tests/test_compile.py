"""A plan under `torch.compile`: compiled and steered equals eager and steered, and differs from the plain model."""

import pytest
import torch
from helpers.plans import gated_plan, questions
from helpers.tiny import tiny_llava

from rmuse_interp import load_model


@pytest.mark.slow
def test_compiled_after_attaching_it_is_steered():
    lens = load_model(tiny_llava())
    inputs = lens.encode(*questions())
    plan = gated_plan()
    with torch.no_grad():
        plain = lens.hf(**inputs).logits
        with plan.attach(lens.hf):
            eager = lens.hf(**inputs).logits
            compiled = torch.compile(lens.hf, backend="eager")(**inputs).logits
    torch._dynamo.reset()
    torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(compiled, plain, atol=1e-3)
