"""Traces of edits inside blocks, and margins in the gate's own scale."""

import pytest
import torch
from helpers.plans import lens_of, linear_gate, vector
from helpers.tiny import picture, tiny_llava

import rmuse_interp.operators as op
from rmuse_interp import Recorder, Site
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.edits.trace import TraceSite

PROMPTS, PICTURES = ["Who is Oren Tal?", "Where does this person live?"], [picture(0), None]
# An edit at resid_mid shows in what a cache holds of attn_out, where it is made: it is measured alone.
TOGETHER = [("resid_pre", "attn_out", "mlp_out", "resid_post"), ("resid_mid",)]


@pytest.mark.parametrize("hooks", TOGETHER)
def test_states_inside_a_block_are_measured_before_and_after_their_own_edit(hooks):
    lens = lens_of(tiny_llava())
    plan = as_plan(op.Add(vector(3), scale=0.5).at([Site(2, hook) for hook in hooks]).on("prompt_end"))
    recorder = Recorder()
    with torch.no_grad(), lens.trace(PROMPTS, PICTURES, plan=plan, recorder=recorder):
        lens.nn.output.logits.save()
    trace = recorder.trace()
    assert trace.sites == tuple(TraceSite("edit0", 2, hook) for hook in hooks)
    assert trace.acted[:, :, 0].all()
    names = [str(Site(2, hook)) for hook in hooks]
    _, cache = lens.run_with_cache(PROMPTS, PICTURES, names=names, plan=plan)
    for place, name in enumerate(names):
        after = cache[name][:, -1]
        torch.testing.assert_close(trace.norm_after[:, place, 0], after.norm(dim=-1), atol=1e-4, rtol=1e-5)
        before = (after - 0.5 * vector(3)).norm(dim=-1)
        torch.testing.assert_close(trace.norm_before[:, place, 0], before, atol=1e-4, rtol=1e-5)
    assert {record["hook"] for record in trace.records()} == set(hooks)


def test_margins_of_queries_and_of_tokens_are_scores_in_the_gates_scale():
    lens = lens_of(tiny_llava())
    gate = linear_gate(1, threshold=0.7).changed(scale=3.0)
    add = op.Add(vector(3))
    plan = add.at(2).when(gate).named("query") >> add.at(3).when(gate, per="token").named("token")
    plan = plan >> op.Add(vector(4)).at(2).named("always")
    recorder = Recorder()
    with plan.attach(lens.hf, recorder=recorder):
        lens.hf.generate(**lens.encode(PROMPTS, PICTURES), max_new_tokens=4, do_sample=False)
    trace = recorder.trace()
    torch.testing.assert_close(trace.margin[:, :2], (trace.score[:, :2] - 0.7) / 3.0)
    assert trace.margin[:, 2].isnan().all()
    seen = ~trace.margin[:, :2].isnan()
    assert torch.equal((trace.margin[:, :2] > 0)[seen], trace.fired[:, :2][seen])
    assert seen.any()
