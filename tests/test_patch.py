"""Activation patching and plain functions: equal to hooks of TransformerLens and to plain ones, in every place."""

import pytest
import torch
from helpers.bridge import bridge_of, forward
from helpers.plans import lens_of, vector
from helpers.tiny import D_MODEL, picture, tiny_llava

import rmuse_interp.operators as op
from rmuse_interp import Plan, RMuseError, Site
from rmuse_interp.edits.bridge_hooks import fwd_hooks
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.parts.part import same, to_record

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
CLEAN = ["Who is Oren Tal?", "What is this person's occupation?"]
PICTURES = [picture(0), picture(1)]
OTHERS = [picture(2), picture(3)]
HOOKS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


def places(lens, plan, pictures):
    """Logits of the same batch in all four places."""
    inputs = lens.encode(CLEAN, pictures)
    with torch.no_grad():
        with lens.trace(CLEAN, pictures, plan=plan):
            traced = lens.nn.output.logits.save()
        with plan.install(lens), lens.trace(CLEAN, pictures):
            stored = lens.nn.output.logits.save()
        with plan.attach(lens.hf):
            attached = lens.hf(**inputs).logits
    bridge = bridge_of(lens.name)
    return [traced, stored, attached, forward(bridge, inputs, fwd_hooks(plan, bridge))]


@pytest.mark.parametrize("hook", HOOKS)
def test_states_of_another_run_at_given_positions_equal_transformerlens_patching(hook):
    lens, bridge, name = lens_of(tiny_llava()), bridge_of(tiny_llava()), str(Site(2, hook))
    other = lens.encode(CLEAN, OTHERS)
    _, cache = lens.run_with_cache(CLEAN, PICTURES, names=name)
    positions = [5, 20]
    plan = as_plan(op.Set(cache[name]).at(name).on(positions=positions))
    real = other["attention_mask"].bool()
    padding = (~real).sum(dim=1)

    def patch(h, hook):
        h = h.clone()
        for row in range(2):
            for position in positions:
                h[row, position + padding[row]] = cache[name][row, position + padding[row]]
        return h

    found = places(lens, plan, OTHERS)
    if hook != "resid_mid":  # where TransformerLens changes what the MLP reads alone
        found.append(forward(bridge, other, [(name, patch)]))
    untouched = lens.hf(**other).logits
    for logits in found:
        torch.testing.assert_close(logits[real], found[0][real], **CLOSE)
        assert not torch.allclose(logits[real], untouched[real], atol=1e-3)


def test_all_states_of_another_run_make_it_that_run():
    lens = lens_of(tiny_llava())
    inputs = lens.encode(CLEAN, PICTURES)
    real = inputs["attention_mask"].bool()
    expected, cache = lens.run_with_cache(CLEAN, PICTURES, names="blocks.1.hook_resid_post")
    everything = torch.ones_like(real)
    plan = as_plan(op.Set(cache["resid_post", 1]).at(1).on(mask=everything))
    for logits in places(lens, plan, OTHERS):
        torch.testing.assert_close(logits[real], expected[real], **CLOSE)


def test_states_of_one_sequence_go_by_position_to_every_row():
    lens = lens_of(tiny_llava())
    states = torch.randn(30, D_MODEL, generator=torch.Generator().manual_seed(0))
    plan = op.Set(states).at(3).on(positions=[4, 7])
    inputs = lens.encode(CLEAN, PICTURES)
    _, cache = lens.run_with_cache(CLEAN, PICTURES, names="blocks.3.hook_resid_post", plan=plan)
    for row in range(2):
        found = cache["resid_post", 3][row][inputs["attention_mask"][row].bool()]
        assert torch.equal(found[[4, 7]], states[[4, 7]])
        assert not torch.isin(found[[5, 6]], states).any()


def test_what_cannot_be_put_in_is_refused():
    lens = lens_of(tiny_llava())
    _, cache = lens.run_with_cache(CLEAN, PICTURES, names="blocks.1.hook_resid_post")
    plan = op.Set(cache["resid_post", 1]).at(1).on("all")
    with plan.attach(lens.hf), torch.no_grad():
        with pytest.raises(RMuseError, match="states of the 3 × "):
            lens.hf(**lens.encode([*CLEAN, "Who?"], [*PICTURES, None]))
        with pytest.raises(RMuseError, match="states of the 2 × "):
            lens.hf(**lens.encode([CLEAN[0] * 4] * 2, PICTURES))
    short = op.Set(torch.zeros(3, D_MODEL)).at(1).on(positions=[2, 5])
    with short.attach(lens.hf), pytest.raises(RMuseError, match=r"position 5 was required, op\.Set has 3"):
        lens.hf(**lens.encode("Who is Oren Tal?"))
    with pytest.raises(RMuseError, match=r"\[batch, tokens, d\]"):
        op.Set(torch.zeros(2, 0, D_MODEL))
    with pytest.raises(RMuseError, match="which tokens"):
        op.Set(torch.zeros(3, D_MODEL))(torch.zeros(2, D_MODEL))


def test_a_plain_function_runs_in_every_place():
    lens = lens_of(tiny_llava())
    real = lens.encode(CLEAN, PICTURES)["attention_mask"].bool()
    turned = as_plan(op.Call(lambda h, step: h - 0.5 * step.unsqueeze(-1) * vector(3)).at(2).on("image"))
    scaled = as_plan(op.Call(lambda h, step: 1.5 * h).at(Site(1, "mlp_out")).on("all"))
    for plan in (turned, scaled):
        found = places(lens, plan, PICTURES)
        for logits in found[1:]:
            torch.testing.assert_close(logits[real], found[0][real], **CLOSE)
        with torch.no_grad():
            assert not torch.allclose(
                found[0][real], lens.hf(**lens.encode(CLEAN, PICTURES)).logits[real], atol=1e-3
            )
    negated = as_plan(op.Call(lambda h, step: -h).at(2))
    reflected = as_plan(op.Call(lambda h, step: h.neg_()).at(2))  # writes to what it is given, a copy
    one, other = (
        lens.respond("Who is Oren Tal?", plan=plan, max_new_tokens=4)[0] for plan in (negated, reflected)
    )
    assert one.text == other.text


def test_a_plain_function_is_equal_to_itself_alone_and_keeps_no_record(tmp_path):
    def function(h, step):
        return h

    def twin(h, step):
        return h

    edit = op.Call(function).at(2)
    assert same(edit, op.Call(function).at(2))
    assert not same(edit, op.Call(twin).at(2))
    with pytest.raises(RMuseError, match="holds each edit once"):
        edit >> op.Call(function).at(2)
    assert len(edit >> op.Call(twin).at(2)) == 2
    for record in (lambda: to_record(edit), lambda: edit.save(tmp_path / "plan")):
        with pytest.raises(RMuseError, match="cannot be saved, hashed or resumed"):
            record()
    assert not (tmp_path / "plan").exists()
    kept = (edit >> op.Add(vector(1)).at(3)).without(op.Call)
    kept.save(tmp_path / "plan")
    assert same(Plan.load(tmp_path / "plan"), kept)


def test_what_is_no_function_of_states_is_refused():
    for thing in (lambda: 1, lambda h: h):
        with pytest.raises(RMuseError, match="function of the states"):
            op.Call(thing)
    lens = lens_of(tiny_llava())
    for function in (lambda h, step: h[:, :2], lambda h, step: 3):
        with (
            op.Call(function).at(1).attach(lens.hf),
            pytest.raises(RMuseError, match="had to give states of shape"),
        ):
            lens.hf(**lens.encode("Who?"))
