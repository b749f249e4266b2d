"""The algebra of edits: order, names, ablations of the expression, the sentence it prints."""

import pytest
import torch
from helpers.plans import gated_plan, lens_of, linear_gate, subspace, vector
from helpers.tiny import tiny_llava

import rmuse_interp.operators as op
from rmuse_interp import Edit, Plan, RMuseError
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.maths.sphere import unit
from rmuse_interp.parts.angle import ACS, FixedFraction
from rmuse_interp.parts.part import all_same
from rmuse_interp.parts.prototypes import Prototypes


def push(seed: int, layer: int = 2) -> Edit:
    return op.Add(vector(seed)).at(layers=[layer])


def test_chaining_is_associative_and_keeps_the_order():
    a, b, c = push(1), push(2), push(3)
    left, right = (a >> b) >> c, a >> (b >> c)
    assert all_same(left, right)
    assert list(left) == [a, b, c]
    assert not all_same(a >> b, b >> a)
    assert len(Plan([a]) >> b >> (c >> push(4))) == 4


def test_order_at_one_site_matters_and_is_the_written_one():
    turn = op.SlerpToward(vector(1), FixedFraction(1.0)).at(layers=[2])
    lens = lens_of(tiny_llava())
    inputs = lens.encode("Who is Oren Tal?")
    norms = []
    for plan in (turn >> push(2), push(2) >> turn):
        _, cache = lens.run_with_cache("Who is Oren Tal?", names="blocks.2.hook_resid_post", plan=plan)
        norms.append(cache["resid_post", 2][0, -1])
    with torch.no_grad():
        plain = lens.hf(**inputs, output_hidden_states=True).hidden_states[3][0, -1]
    torch.testing.assert_close(norms[0], plain.norm() * unit(vector(1)) + vector(2), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(unit(norms[1]), unit(vector(1)), atol=1e-5, rtol=1e-5)


def test_edits_are_values():
    edit = push(1)
    refined = edit.on("all").given("image").when(linear_gate(), per="token").named("one")
    assert (edit.tokens, edit.modality, edit.gate, edit.per, edit.name) == (
        "generated",
        None,
        None,
        "query",
        None,
    )
    assert (refined.tokens, refined.modality, refined.per, refined.name) == ("all", "image", "token", "one")


def test_layerwise_shares_an_operator_that_serves_several_layers():
    one, other = op.Add(vector(1)), op.Add(vector(2))
    edit = op.layerwise({5: one, 2: other, 3: one})
    assert edit.layers == [2, 3, 5]
    assert len(edit.operators) == 2
    assert edit.operator_at(3) is one
    assert edit.operator_at(5) is one
    assert edit.operator_at(2) is other
    assert edit.operator_at(4) is None


@pytest.mark.parametrize("layers", [[], [-1], [True and -3, 2]])
def test_impossible_layers_are_refused(layers):
    with pytest.raises(RMuseError, match="layers"):
        op.Add(vector(1)).at(layers=layers)


def test_layers_beyond_the_model_are_refused_where_they_are_attached():
    lens = lens_of(tiny_llava())
    for attempt in (
        lambda plan: plan.attach(lens.hf),
        lambda plan: plan.install(lens),
        lambda plan: lens.trace("Where?", plan=plan),
        lambda plan: lens.generate("Where?", plan=plan),
        lambda plan: lens.respond("Where?", plan=plan),
        lambda plan: plan.decide(lens, "Where?"),
    ):
        with pytest.raises(RMuseError, match=r"must lie in 0\.\.3, got \[9\]"):
            attempt(Plan([push(1, layer=9)]))
    with pytest.raises(RMuseError, match=r"gates' layers must lie in 0\.\.3, got \[4\]"):
        Plan([push(1, layer=3).when(linear_gate(layer=4))]).attach(lens.hf)


def test_the_same_plan_twice_raises():
    edit = push(1)
    with pytest.raises(RMuseError, match="twice"):
        edit >> edit
    with pytest.raises(RMuseError, match="twice"):
        edit >> push(1)  # equal, though another object
    plan = gated_plan()
    with pytest.raises(RMuseError, match="twice"):
        plan >> plan
    with pytest.raises(RMuseError, match="named 'x'"):
        push(1).named("x") >> push(2).named("x")
    assert len(push(1) >> push(1, layer=3)) == 2


def test_without_and_replace_address_parts_by_name():
    plan = gated_plan()
    open_plan = plan.without("gate")
    assert open_plan[0].gate is None
    assert plan[0].gate is not None
    assert len(plan.without("turn")) == 1
    assert plan.without("rrs")[0].operators[0].rrs is None
    weaker = plan.replace(angle=FixedFraction(0.1))
    assert weaker[0].operators[0].angle.value == 0.1
    assert weaker[0].gate is plan[0].gate
    new = linear_gate(seed=77)
    assert plan.replace(gate=new)[0].gate is new
    assert plan.replace(push=push(8))[1].operators[0].vector.equal(vector(8))
    assert plan.replace(**{"push.operator": op.Add(vector(9))})[1].tokens == "response"
    # Negative control: replacing by the same thing changes nothing.
    assert all_same(plan.replace(angle=FixedFraction(0.6)), plan)


def test_ambiguous_and_unknown_names_are_refused_with_the_names_there_are():
    plan = gated_plan().replace(push=push(8).when(linear_gate(seed=6)).named("push"))
    with pytest.raises(RMuseError, match=r"'gate' is ambiguous; choose one of: push\.gate, turn\.gate"):
        plan.without("gate")
    assert plan.without("push.gate")[1].gate is None
    assert [edit.gate for edit in plan.without("*.gate")] == [None, None]
    with pytest.raises(RMuseError, match=r"'gait' names nothing here; choose one of: .*turn\.operator\.rrs"):
        plan.replace(gait=linear_gate())
    with pytest.raises(RMuseError, match="'angle' is required"):
        plan.without("angle")
    with pytest.raises(RMuseError, match="'operator' is required"):
        plan.without("turn.operator")
    with pytest.raises(RMuseError, match="cannot stand"):
        plan.replace(angle=linear_gate())


def test_a_gate_shared_by_edits_is_one_part():
    gate = linear_gate()
    plan = push(1).when(gate) >> push(2).when(gate).given("text")
    assert [edit.gate for edit in plan.without("gate")] == [None, None]
    assert len(plan.gates) == 1


def test_ablations_of_acs_reach_its_prototypes():
    acs = ACS(Prototypes(unit(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)))))
    plan = as_plan(op.SlerpToward(vector(1), acs).keeping(subspace(2)).at(layers=[1]))
    bare = plan.without("rrs")
    assert all_same(bare, as_plan(op.SlerpToward(vector(1), acs).at(layers=[1])))
    fewer = Prototypes(acs.prototypes.points[:2])
    assert len(plan.replace(prototypes=fewer)[0].operators[0].angle.prototypes.points) == 2


def test_single_pass_needs_gates_below_and_without_prefix():
    assert gated_plan().single_pass
    assert Plan(
        [push(1, layer=2).when(linear_gate(layer=2))]
    ).single_pass  # a gate reads before any edit at its site
    assert not Plan([push(1, layer=2).when(linear_gate(layer=3))]).single_pass
    assert not Plan([push(1, layer=2).when(linear_gate(layer=1, prefix="I cannot help."))]).single_pass
    assert not (push(1, layer=0) >> push(2, layer=2).when(linear_gate(layer=1))).single_pass
    with pytest.raises(RMuseError, match="per token must read at or below"):
        push(1, layer=2).when(linear_gate(layer=3), per="token")


def test_the_plan_prints_as_sentences():
    assert str(gated_plan()).splitlines() == [
        "turn: all queries · last prompt token on",
        "  if linear discriminant at block 1, last > 0",
        "  blocks 1, 2: rotate toward v̂ by λ = 0.6, inside the complement of the RRS (rank 4)",
        "push: text queries · generated tokens",
        f"  block 2: add 2 × a vector of length {vector(3).norm():.3g}",
    ]
    assert "where" in str(push(1).when(linear_gate(), per="token"))
    assert str(Plan([])) == "no edits"


def test_what_is_no_plan_is_refused():
    with pytest.raises(RMuseError, match=r"\.at\(layers=…\)"):
        as_plan(op.Add(vector(1)))
