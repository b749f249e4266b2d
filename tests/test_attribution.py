"""Span attribution: exact where it can be, a planted source is found by all three ways, an idle one by none."""

from dataclasses import replace

import pytest
import torch
from helpers.attribution import CLOSE, OTHERS, bridge_of, leaks_of, reference_of, statement
from helpers.plans import gated_plan, lens_of, vector
from helpers.tiny import tiny_llama, tiny_llava

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.diagnostics import gradients as slopes
from rmuse_interp.diagnostics.attribution import decided
from rmuse_interp.diagnostics.direct import direct_effects
from rmuse_interp.diagnostics.gradients import along_path, integrated_gradients
from rmuse_interp.diagnostics.knockout import Hold, knock_out
from rmuse_interp.diagnostics.leaks import embedded, entering, find_leaks, log_prob, place
from rmuse_interp.diagnostics.reference import mean_query
from rmuse_interp.edits.plan import as_plan

# Places.


@pytest.mark.parametrize("seen", [None, 3])
def test_every_token_has_its_place(seen):
    lens = lens_of(tiny_llava())
    placed = place(lens, statement("Mara Venn", "baker", seen=seen, prefix="Answer directly."))
    said = {}
    for token, (span, offset) in zip(placed.ids[0].tolist(), placed.places, strict=True):
        assert offset == len(said.setdefault(span, []))
        said[span].append(token)
    text = {span: lens.tokenizer.decode(ids) for span, ids in said.items()}
    assert text["question"].strip() == placed.statement.question
    assert text["turn"].strip() == "ASSISTANT:"
    assert text["reasoning"].strip() == "<think> Mara Venn works as a baker."
    assert text["answer"].strip() == "</think> baker"
    assert text["prefix"].startswith("USER:")
    assert text["prefix"].strip().endswith("Answer directly.")
    assert ("image" in said) == (seen is not None)
    assert placed.places[placed.prompt_end][0] == "turn"


def test_the_leaked_token_is_the_first_that_tells():
    lens = lens_of(tiny_llama())
    own = lens.tokenizer

    def leaked(value, *among):
        found = find_leaks(lens, [statement("Mara Venn", value, among=among)]).leaks
        assert [leak.part for leak in found] == ["reasoning", "answer"]
        assert all(leak.placed.places[-1][0] == leak.part for leak in found)
        return [own.decode([leak.token]).strip() for leak in found]

    digits = [own.decode([i]).strip() for i in own(text=" 2758", add_special_tokens=False)["input_ids"]]
    digits = [d for d in digits if d]
    assert len(digits) > 2
    # Alone, or among values that begin otherwise, the first digit tells; else the one that differs.
    assert leaked("2758") == [digits[0]] * 2
    assert leaked("2758", "7777", "6666") == [digits[0]] * 2
    assert leaked("2758", "2757", "2756", "2753") == [digits[-1]] * 2


def test_what_comes_before_is_kept_and_nothing_else():
    lens = lens_of(tiny_llama())
    for leak in leaks_of(tiny_llama()):
        whole = place(lens, leak.placed.statement)
        at = leak.placed.ids.shape[1]
        assert torch.equal(leak.placed.ids, whole.ids[:, :at])
        assert int(whole.ids[0, at]) == leak.token
        assert sorted(p for ps in leak.sources.values() for p in ps) == list(range(at - 1))


def test_a_value_that_is_not_there_is_listed_and_none_at_all_is_an_error():
    lens = lens_of(tiny_llama())
    row = statement("Mara Venn", "baker")
    silent = replace(
        row, query=replace(row.query, id="silent", response="<think> I see a hat. </think> baker")
    )
    found = find_leaks(lens, [row, silent])
    assert found.missing == {"reasoning": ["silent"], "answer": []}
    assert [(leak.id, leak.part) for leak in found.leaks] == [
        (row.query.id, "reasoning"),
        (row.query.id, "answer"),
        ("silent", "answer"),
    ]
    # At word boundaries alone: a bakery is no baker.
    bakery = replace(row.query, response="<think> a bakery </think> bakery")
    with pytest.raises(RMuseError, match="states its value"):
        find_leaks(lens, [replace(row, query=bakery)])


def test_embeddings_that_enter_give_the_logits_of_the_tokens():
    for folder, seen in ((tiny_llava(), 0), (tiny_llama(), None)):
        lens = lens_of(folder)
        leak = leaks_of(folder, seen)[0]
        own = embedded(lens, leak.placed)
        with torch.no_grad():
            logits = lens.hf(**leak.placed.inputs).logits[0, -1].log_softmax(dim=-1)
            found = log_prob(lens, leak, own)
            other = log_prob(lens, leak, own.roll(1, dims=1))
        torch.testing.assert_close(found[0], logits[leak.token], **CLOSE)
        assert abs(float(other - found)) > 1e-3
        with entering(lens, leak.placed, own):
            pass
        assert not lens.hf.get_submodule(lens.layout.path.rpartition(".")[0])._forward_pre_hooks


# The average query.


def test_the_average_query_is_the_mean_by_place():
    lens = lens_of(tiny_llama())
    one, two = (mean_query(lens, [row]) for row in OTHERS[:2])
    both = mean_query(lens, OTHERS[:2])
    shared = sorted(one.by_place.keys() & two.by_place.keys())
    assert shared
    for at in shared:
        torch.testing.assert_close(both.by_place[at], (one.by_place[at] + two.by_place[at]) / 2, **CLOSE)
    alone = sorted(one.by_place.keys() ^ two.by_place.keys())
    for at in alone:
        torch.testing.assert_close(both.by_place[at], (one.by_place | two.by_place)[at])
    assert both.of([("question", 999)]).shape == (1, lens.n_layers + 1, lens.d_model)
    with pytest.raises(RMuseError, match="image"):
        both.of([("image", 0)])
    with pytest.raises(RMuseError, match="got none"):
        mean_query(lens, [])


def test_its_states_are_those_after_the_plan():
    lens = lens_of(tiny_llama())
    plan = as_plan(
        op.Add(vector(3)).at(layers=[1]).on("generated").when(gated_plan().gates[0].at_threshold(1e9))
    )
    plain, steered = mean_query(lens, OTHERS), mean_query(lens, OTHERS, plan)
    # The gate would never fire: an average query that is steered is steered by force.
    moved = steered.by_place["reasoning", 0] - plain.by_place["reasoning", 0]
    torch.testing.assert_close(moved[2], vector(3), atol=1e-4, rtol=1e-4)
    assert float(moved[:2].abs().max()) < 1e-5
    torch.testing.assert_close(steered.by_place["question", 0], plain.by_place["question", 0])


# Integrated gradients.


def test_a_linear_function_is_attributed_exactly():
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    own, base = torch.randn(1, 5, 3), torch.randn(1, 5, 3)
    weight[2] = 0
    found = along_path(lambda x: (x * weight).sum(dim=(1, 2)), own, base)
    torch.testing.assert_close(found.tokens, ((own - base)[0] * weight).sum(dim=-1), **CLOSE)
    assert found.complete
    assert float(found.tokens[2]) == 0
    assert found.nodes == slopes.NODES * slopes.INTERVALS


def test_a_steep_function_takes_more_nodes_and_is_right_all_the_same():
    own, base = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    found = along_path(lambda x: torch.tanh(500 * (x[:, 0, 0] - 0.3)), own, base)
    assert found.complete
    assert found.nodes > slopes.NODES * slopes.INTERVALS
    assert abs(float(found.tokens) - 2) < 0.04


def test_a_jump_is_called_one():
    own, base = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    found = along_path(lambda x: x[:, 0, 0] + 3 * (x[:, 0, 0] > 0.4).float(), own, base)
    assert not found.complete
    assert abs(float(found.tokens) - 1) < 1e-3
    assert abs(found.jumps - 3) < 1e-3
    assert found.nodes <= slopes.BUDGET


@pytest.mark.parametrize(("folder", "seen"), [(tiny_llava, 0), (tiny_llama, None)])
def test_gradients_add_up_to_the_difference(folder, seen):
    lens = lens_of(folder())
    for leak in leaks_of(folder(), seen):
        own = embedded(lens, leak.placed)
        means = reference_of(folder(), seen).of(leak.placed.places)
        found = integrated_gradients(lens, leak, own, means[None, :, 0])
        with torch.no_grad():
            ends = log_prob(lens, leak, torch.cat([own, means[None, :, 0]]))
        assert abs(found.difference - float(ends[0] - ends[1])) < 1e-4
        assert abs(float(found.tokens.sum()) - found.difference) <= 0.02 * abs(found.difference)
        assert found.complete
        # The template's words are the same in every query.
        assert abs(leak.summed(found.tokens)["prefix"]) < 1e-5


# Direct logit attribution.


@pytest.mark.parametrize(("folder", "seen"), [(tiny_llava, 0), (tiny_llama, None)])
@pytest.mark.parametrize("steered", [False, True])
def test_shares_add_up_to_the_logit(folder, seen, steered):
    lens, bridge = lens_of(folder()), bridge_of(folder())
    plan = as_plan(op.Add(vector(3), scale=3.0).at(layers=[1, 3]).on("generated")) if steered else None
    for leak in leaks_of(folder(), seen):
        found = direct_effects(bridge, leak, plan, None if plan is None else decided(lens, plan, leak))
        total = sum(found.attention.values()) + found.embedding + found.mlp + found.edits
        # Llama's heads have no biases: all that attention adds is moved from some token.
        assert abs(found.bias) < 1e-4
        assert abs(total - found.logit) < 1e-4
        assert (abs(found.edits) > 1e-2) == steered
        with torch.no_grad():
            if plan is None:
                logits = lens.hf(**leak.placed.inputs).logits[0, -1]
            else:
                with plan.attach(lens.hf) as h, h.expecting(leak.placed.ids, None, [leak.placed.prompt_end]):
                    logits = lens.hf(**leak.placed.inputs).logits[0, -1]
        assert abs(float(logits[leak.token] - logits.mean()) - found.logit) < 1e-3


# Knockout.


def test_hold_replaces_its_steps_alone():
    h, states = torch.randn(2, 5, 4), torch.randn(2, 4)
    step = torch.tensor([[-1, 0, 1, 2, 3], [-2, -1, 0, 1, 2]])
    out = Hold(states, torch.tensor([1, -2]))(h, step)
    assert torch.equal(out[0, 2], states[0])
    assert torch.equal(out[1, 3], states[0])
    assert torch.equal(out[1, 0], states[1])
    kept = torch.ones(2, 5, dtype=torch.bool)
    kept[0, 2] = kept[1, 3] = kept[1, 0] = False
    assert torch.equal(out[kept], h[kept])


@pytest.mark.parametrize("seen", [None, 0])
def test_knockout_is_a_plain_hook_that_replaces_states(seen):
    """Against hooks written down directly, one span at a time, on the embeddings and every block."""
    lens = lens_of(tiny_llava())
    leak = leaks_of(tiny_llava(), seen)[-1]
    own, means = embedded(lens, leak.placed), reference_of(tiny_llava(), seen).of(leak.placed.places)
    hooked = [dict(block._forward_hooks) for block in lens.layout.blocks]
    found = knock_out(lens, leak, own, means)
    assert set(found.without) == set(leak.sources)
    assert "image" in found.without or seen is None
    for span, at in leak.sources.items():
        hooks = []
        for layer, block in enumerate(lens.layout.blocks[:-1]):

            def put(_m, _i, out, layer=layer, at=at):
                h = (out[0] if isinstance(out, tuple) else out).clone()
                h[:, at] = means[at, layer + 1]
                return (h, *out[1:]) if isinstance(out, tuple) else h

            hooks.append(block.register_forward_hook(put))
        entered = own.clone()
        entered[0, at] = means[at, 0]
        with torch.no_grad():
            expected = float(log_prob(lens, leak, entered))
        for hook in hooks:
            hook.remove()
        assert abs(found.without[span] - expected) < 1e-4
    assert [dict(block._forward_hooks) for block in lens.layout.blocks] == hooked


def test_states_held_at_their_own_change_nothing():
    """Held at the average of one query, itself, every span is worth nothing; and with it the template always."""
    lens = lens_of(tiny_llama())
    leak = leaks_of(tiny_llama())[0]
    own = embedded(lens, leak.placed)
    same = mean_query(lens, [leak.placed.statement]).of(leak.placed.places)
    assert max(abs(v) for v in knock_out(lens, leak, own, same).drops.values()) < 1e-4
    other = reference_of(tiny_llama()).of(leak.placed.places)
    drops = knock_out(lens, leak, own, other).drops
    assert abs(drops["prefix"]) < 1e-4
    assert max(abs(v) for v in drops.values()) > 0.05
