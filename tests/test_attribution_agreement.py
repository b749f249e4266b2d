"""Three attributions of one leaked token agree where the truth is planted; plans with their choices made; summaries."""

import sys
from dataclasses import replace

import pytest
import torch
from helpers.attribution import CLOSE, OTHERS, SEEN, bridge_of, leaks_of, reference_of, statement
from helpers.plans import gated_plan, lens_of, vector
from helpers.tiny import tiny_llama, tiny_llava

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.diagnostics.attribution import (
    WAYS,
    Attribution,
    acting,
    agreement,
    attribute,
    by_span,
    decided,
    steering,
)
from rmuse_interp.diagnostics.direct import Direct, folded_bridge
from rmuse_interp.diagnostics.frozen import chosen, frozen
from rmuse_interp.diagnostics.gradients import along_path
from rmuse_interp.diagnostics.knockout import Knockout
from rmuse_interp.diagnostics.leaks import embedded, find_leaks, log_prob, place
from rmuse_interp.diagnostics.reference import mean_query
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.maths.sphere import unit

# All three.


def copying(lens, span_token, value_token):
    """A model that says what one token of the context is, by one head: attention and nothing else.

    Only block 0 keeps a head: its values carry the embedding of `span_token` to wherever the query is, and the
    unembedding of `value_token` reads it. All tokens but that one have values of 0.
    """
    text = lens.hf.get_submodule(lens.layout.path.rpartition(".")[0])
    with torch.no_grad():
        for block in text.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        embeddings = lens.hf.get_input_embeddings().weight
        embeddings[:, 0] = 0.0
        embeddings[span_token] = 0.0
        embeddings[span_token, 0] = 4.0
        first = text.layers[0].self_attn
        first.q_proj.weight.zero_()
        first.k_proj.weight.zero_()
        first.v_proj.weight.zero_()
        first.v_proj.weight[0, 0] = 1.0
        first.o_proj.weight[1, 0] = 8.0
        lens.hf.lm_head.weight[:, 1] = 0.0
        lens.hf.lm_head.weight[value_token] = 0.0
        lens.hf.lm_head.weight[value_token, 1] = 30.0


ASKED = statement("Oren Tal", "baker")


ASKED = replace(
    ASKED, query=replace(ASKED.query, response="<think> The person works as a baker. </think> baker")
)
"""Only the question names the person."""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A checkpoint whose answer hangs on the question's name alone, saved so that the bridge loads the same."""
    from rmuse_interp import load_model

    lens = load_model(tiny_llama())
    whole = place(lens, ASKED)
    tokens = list(zip(whole.ids[0].tolist(), whole.places, strict=True))
    elsewhere = {token for token, (span, _) in tokens if span != "question"}
    elsewhere |= {token for other in OTHERS for token in place(lens, other).ids[0].tolist()}
    cue = next(token for token, (span, _) in tokens if span == "question" and token not in elsewhere)
    copying(lens, cue, find_leaks(lens, [ASKED]).leaks[0].token)
    folder = tmp_path_factory.mktemp("planted")
    lens.hf.save_pretrained(folder)
    lens.tokenizer.save_pretrained(folder)
    return folder


def test_all_three_find_the_planted_source_and_nothing_in_idle_spans(planted):
    lens = lens_of(planted)
    leaks = find_leaks(lens, [ASKED]).leaks
    found = attribute(lens, leaks, lambda _: mean_query(lens, OTHERS), folded_bridge(lens))
    for one in found:
        assert set(one.by_way) == set(WAYS)
        for way, spans in one.by_way.items():
            sources = {span: value for span, value in spans.items() if span != "here"}
            assert max(sources, key=lambda s: sources[s]) == "question", way
            assert sources["question"] > 0.3, way
            assert all(abs(v) < 0.25 * sources["question"] for s, v in sources.items() if s != "question"), (
                way
            )
            assert abs(sources["prefix"]) < 1e-4, way
        assert one.gradients.complete
    for first, second in (("gradients", "knockout"), ("gradients", "direct"), ("knockout", "direct")):
        assert agreement(found, first, second).top.value == 1.0


def test_a_closed_gate_leaves_everything_as_it_was():
    lens, bridge = lens_of(tiny_llama()), bridge_of(tiny_llama())
    leaks = leaks_of(tiny_llama())[:2]
    gate = gated_plan().gates[0]
    turn = op.Add(vector(3), scale=4.0).at(layers=[2]).on("generated")
    closed, opened = (as_plan(turn.when(gate.at_threshold(t))) for t in (1e9, -1e9))
    reference = reference_of(tiny_llama())
    plain = attribute(lens, leaks, lambda _: reference, bridge, gradients=lambda _: False)
    same = attribute(
        lens, leaks, lambda _: reference, bridge, closed, gradients=lambda _: False, before=plain
    )
    assert same == plain
    assert not any(one.steered for one in same)
    steered = mean_query(lens, OTHERS, opened)
    moved = attribute(lens, leaks, lambda _: steered, bridge, opened, before=plain)
    assert all(one.steered for one in moved)
    for one, was in zip(moved, plain, strict=True):
        query = one.leak.placed.statement.query
        told = one.leak.placed.ids, None, [one.leak.placed.prompt_end]
        with opened.attach(lens.hf) as handle, handle.expecting(*told), torch.no_grad():
            logits = lens.hf(**one.leak.placed.inputs).logits[0, -1]
        assert abs(one.knockout.log_prob - float(logits.log_softmax(-1)[one.leak.token])) < 1e-4, query.id
        assert abs(one.knockout.log_prob - was.knockout.log_prob) > 1e-3
        assert one.gradients.complete
        assert set(one.by_way) == set(WAYS)
        assert "gradients" not in was.by_way


def test_an_edit_for_other_queries_does_not_act():
    lens = lens_of(tiny_llama())
    leak = leaks_of(tiny_llama())[0]
    for modality, acts in (("image", False), ("text", True), (None, True)):
        plan = as_plan(op.Add(vector(3)).at(layers=[1]).given(modality))
        assert acting(plan, decided(lens, plan, leak), leak) == acts


def test_a_reference_about_the_person_or_of_another_kind_is_refused_before_any_work():
    lens = lens_of(tiny_llava())
    leaks = leaks_of(tiny_llava(), 0)
    own = mean_query(lens, [SEEN[0], replace(SEEN[1], person="Mara Venn")])
    with pytest.raises(RMuseError, match="Mara Venn/0: a reference about other people"):
        attribute(lens, leaks, lambda _: own, None)
    with pytest.raises(RMuseError, match="image"):
        attribute(lens, leaks, lambda _: reference_of(tiny_llava()), None)


def test_without_captum_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(RMuseError, match=r"rmuse-interp\[attribution\]"):
        along_path(lambda x: x.sum(dim=(1, 2)), torch.ones(1, 1, 1), torch.zeros(1, 1, 1))


# Plans with their choices made.


def transport(seed=0, layer=1):
    """A transport to the nearest of many random states, at every step: a jumpy one."""
    points = torch.randn(60, 32, generator=torch.Generator().manual_seed(seed))
    return op.Transport(points, torch.arange(60) % 20).at(layers=[layer]).on("generated")


def test_a_frozen_plan_gives_the_same_on_its_query_and_keeps_its_choices():
    lens = lens_of(tiny_llama())
    plan = as_plan(transport(0, 1).named("a")) >> transport(1, 2)
    for leak in leaks_of(tiny_llama()):
        decision = decided(lens, plan, leak)
        still = frozen(lens, plan, decision, leak)
        assert [edit.layers for edit in still] == [edit.layers for edit in plan]
        own = embedded(lens, leak.placed)
        steps = own.shape[1] - leak.placed.prompt_end
        assert [len(edit.operators[0].points) for edit in still] == [steps] * 2
        with torch.no_grad():
            with steering(lens, plan, decision, leak):
                expected = log_prob(lens, leak, own)
            with steering(lens, still, decision, leak):
                found = log_prob(lens, leak, own)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            assert abs(float(expected - log_prob(lens, leak, own))) > 1e-3
        assert not any(len(o._forward_pre_hooks) for edit in plan for o in edit.operators)


def test_a_frozen_transport_does_not_choose_anew():
    generator = torch.Generator().manual_seed(3)
    h, other = torch.randn(2, 6, 32, generator=generator)
    step, operator = torch.arange(6), transport().operator_at(1)
    still = chosen(operator, h, step)
    torch.testing.assert_close(still(h, step), operator(h, step), **CLOSE)
    # From elsewhere the one chooses otherwise; the other moves to the same all the same.
    torch.testing.assert_close(unit(still(other, step)), unit(operator(h, step)), **CLOSE)
    assert not torch.allclose(unit(operator(other, step)), unit(operator(h, step)), atol=1e-2)
    add = op.Add(vector(3))
    assert chosen(add, h, step) is add


def test_gradients_add_up_under_a_plan_that_jumps():
    lens, bridge = lens_of(tiny_llama()), bridge_of(tiny_llama())
    plan = as_plan(transport(0, 2))
    average = mean_query(lens, OTHERS, plan)
    found = attribute(lens, leaks_of(tiny_llama()), lambda _: average, bridge, plan)
    assert all(one.gradients.complete and one.steered for one in found)
    assert all("gradients" in one.sound for one in found)


def test_gradients_that_do_not_add_up_are_not_summarised():
    one = attribute(
        lens_of(tiny_llama()),
        leaks_of(tiny_llama())[:1],
        lambda _: reference_of(tiny_llama()),
        bridge_of(tiny_llama()),
    )[0]
    wrong = replace(one, gradients=replace(one.gradients, error=0.021))
    assert set(one.sound) == set(WAYS)
    assert set(wrong.by_way) == set(WAYS)
    assert set(wrong.sound) == {"knockout", "direct"}
    assert by_span([one, wrong], "gradients")["question"].n == 1
    assert by_span([one, wrong], "direct")["question"].n == 2
    assert agreement([wrong], "gradients", "direct").top is None


# Summaries.


def told(values, other, person="a"):
    """An attribution with given numbers, everything else real."""
    leak = replace(leaks_of(tiny_llama())[0])
    leak = replace(leak, placed=replace(leak.placed, statement=replace(leak.placed.statement, person=person)))
    spans = list(leak.sources)
    knockout = Knockout(0.0, {s: -v for s, v in zip(spans, values, strict=True)})
    return Attribution(
        leak, knockout, Direct(0.0, dict(zip(spans, other, strict=True)), 0.0, 0.0, 0.0, 0.0), None, False
    )


def test_agreement_is_that_of_ranks_and_of_the_largest():
    up, down = [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]
    assert len(leaks_of(tiny_llama())[0].sources) == 4
    same = agreement([told(up, [v**3 for v in up])], "knockout", "direct")
    assert (same.correlation.value, same.top.value, same.chance) == (1.0, 1.0, 0.25)
    turned = agreement([told(up, down)], "knockout", "direct")
    assert (turned.correlation.value, turned.top.value) == (-1.0, 0.0)
    mixed = agreement([told(up, up, "a"), told(up, down, "b")], "knockout", "direct")
    assert mixed.correlation.value == 0
    assert (mixed.correlation.low, mixed.correlation.high, mixed.correlation.clusters) == (-1.0, 1.0, 2)
    assert agreement([told(up, up)], "gradients", "direct").correlation is None
    assert agreement([told([1.0] * 4, up)], "knockout", "direct").correlation is None


def test_a_span_that_is_missing_is_left_out_and_not_counted_as_zero():
    both = [told([1.0, 2.0, 3.0, 4.0], [0.0] * 4)]
    means = by_span(both, "knockout")
    assert "answer" not in means
    assert "image" not in means
    assert means["reasoning"].value == 4.0
    assert by_span(both, "gradients") == {}
