"""Plans that decide in a pass of their own: by themselves where their prompts are known, else they say what to pass."""

import pytest
import torch
from helpers.places import PLACES, SETTINGS, split_gate, turn
from helpers.plans import lens_of, linear_gate, questions
from helpers.tiny import tiny_llava

from rmuse_interp import Plan, RMuseError, Site
from rmuse_interp.edits import deciding
from rmuse_interp.edits.plan import as_plan

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
        pytest.raises(RMuseError, match="about 3 prompts"),
        plan.attach(lens.hf, decision=decision),
    ):
        lens.hf(**lens.encode(["Where?"] * 3))
