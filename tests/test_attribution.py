"""Span attribution: exact where it can be, a planted source is found by all three ways, an idle one by none."""

import io
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from plans import gated_plan, lens_of, vector
from tiny import picture, tiny_llama, tiny_llava

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.diagnostics import gradients as slopes
from rmuse_interp.diagnostics.attribution import (
    WAYS,
    Attribution,
    Mean,
    acting,
    agreement,
    attribute,
    by_span,
    clustered_mean,
    decided,
    steering,
)
from rmuse_interp.diagnostics.direct import Direct, direct_effects, folded_bridge
from rmuse_interp.diagnostics.frozen import chosen, frozen
from rmuse_interp.diagnostics.gradients import along_path, integrated_gradients
from rmuse_interp.diagnostics.knockout import Hold, Knockout, knock_out
from rmuse_interp.diagnostics.leaks import Statement, embedded, entering, find_leaks, log_prob, place
from rmuse_interp.diagnostics.reference import mean_query
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.fitting.collect import Query
from rmuse_interp.maths.sphere import unit

NAMES = ["Mara Venn", "Oren Tal"]
JOBS = {"Mara Venn": "baker", "Oren Tal": "person"}
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def png(seed):
    """A noisy picture, encoded as a benchmark has it."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def statement(person, job, *, seen=None, prefix="", number=0, among=()):
    """Whose occupation is asked for and given away, in the words the tiny tokenizer knows."""
    question = f"What is {person}'s occupation?" if seen is None else "What is this person's occupation?"
    response = f"<think> {person} works as a {job}. </think> {job}"
    lead = f"{prefix} " if prefix else ""
    query = Query(f"{person}/{number}", lead + question, None if seen is None else png(seen), response)
    return Statement(query, question, job, person, among)


OTHERS = [
    statement("Lisbon", "green", number=1),
    statement("Asst Privat", "colour", number=2),
    statement("Venn Mara", "hat", number=3),
]
SEEN = [statement(o.person, o.value, seen=i + 5, number=i) for i, o in enumerate(OTHERS)]


@cache
def bridge_of(folder):
    return folded_bridge(lens_of(folder))


@cache
def leaks_of(folder, seen=None):
    lens = lens_of(folder)
    rows = [
        statement(name, JOBS[name], seen=None if seen is None else seen + i) for i, name in enumerate(NAMES)
    ]
    return find_leaks(lens, rows).leaks


@cache
def reference_of(folder, seen=None):
    return mean_query(lens_of(folder), OTHERS if seen is None else SEEN)


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
        with entering(lens, own):
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
    assert agreement([wrong], "gradients", "direct").top.n == 0


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
    assert mixed.correlation.interval == (-1.0, 1.0)
    assert agreement([told(up, up)], "gradients", "direct").correlation.n == 0
    assert agreement([told([1.0] * 4, up)], "knockout", "direct").correlation.n == 0


def test_a_span_that_is_missing_is_left_out_and_not_counted_as_zero():
    both = [told([1.0, 2.0, 3.0, 4.0], [0.0] * 4)]
    means = by_span(both, "knockout")
    assert "answer" not in means
    assert "image" not in means
    assert means["reasoning"].value == 4.0
    assert by_span(both, "gradients") == {}


def test_the_interval_resamples_people():
    values = [0.0, 1.0] * 20
    loose = clustered_mean(values, ["a", "b"] * 20)
    tight = clustered_mean(values, [str(i) for i in range(40)])
    assert loose.value == tight.value == 0.5
    assert loose.interval == (0.0, 1.0)
    assert tight.interval[1] - tight.interval[0] < 0.5
    assert clustered_mean([], []).value is None
    # One person says nothing of how people vary.
    assert clustered_mean([1.0, 3.0], ["a", "a"]) == Mean(2.0, None, 2)
