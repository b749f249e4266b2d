"""Parts by address: what can be named, what a pattern and a type take, and what is required where it stands."""

import pytest
from helpers.plans import gated_plan, linear_gate, subspace, vector

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Edit, Plan
from rmuse_interp.parts.angle import FixedFraction
from rmuse_interp.parts.gates import Gate, Read, RRSAlignment
from rmuse_interp.parts.part import all_same, same
from rmuse_interp.parts.subspace import Subspace


def mixed() -> Plan:
    """One edit with a rotation and an addition at different layers, then a rotation alone."""
    turn = op.SlerpToward(vector(1), FixedFraction(0.6))
    both = op.layerwise({1: turn, 2: op.Add(vector(2)), 3: turn}).when(linear_gate()).named("both")
    return both >> turn.at(layers=[3]).on("response").named("turn")


def test_all_that_can_be_named_is_listed():
    plan = gated_plan()
    assert {"turn", "turn.operator", "turn.operator.rrs", "turn.gate", "push.operator"} <= set(plan.addresses)
    assert plan.addresses["turn.operator.rrs"].part is plan[0].operators[0].rrs
    required = {name for name, place in plan.addresses.items() if place.required}
    assert "turn.operator" in required
    assert not required & {"turn", "turn.gate", "turn.operator.rrs"}
    for name in set(plan.addresses) - required:
        assert not all_same(plan.without(name), plan)


def test_a_type_goes_wherever_it_stands():
    plan = mixed()
    left = plan.without(op.SlerpToward)
    assert [edit.name for edit in left] == ["both"]
    assert (left[0].layers, left[0].gate is not None) == ([2], True)
    assert plan.without(op.Add)[0].layers == [1, 3]
    assert [edit.gate for edit in plan.without(Gate)] == [None, None]
    assert gated_plan().without(Subspace)[0].operators[0].rrs is None
    assert len(plan.without(Edit)) == 0
    assert same(plan, mixed())  # the plan itself is as it was


def test_a_type_that_is_not_there_or_required_everywhere_is_refused():
    with pytest.raises(RMuseError, match=r"a Transport that can be removed was required.*SlerpToward"):
        mixed().without(op.Transport)
    with pytest.raises(RMuseError, match="a FixedFraction that can be removed"):
        mixed().without(FixedFraction)


def test_a_pattern_skips_what_is_required_and_an_exact_address_does_not():
    plan = Plan([op.Ablate(subspace(1)).at(layers=[1]).named("cut"), *gated_plan()])
    assert plan.addresses["cut.operator.subspace"].required
    left = plan.without("*.operator.*s*")  # the required subspace and the optional rrs
    assert left[0].operators[0].subspace is not None
    assert left[1].operators[0].rrs is None
    with pytest.raises(RMuseError, match="'subspace' is required where it stands"):
        plan.without("cut.operator.subspace")
    with pytest.raises(RMuseError, match=r"'cut\.operator\.subspace' is required"):
        plan.without("*.subspace")


def test_without_rrs_is_one_sentence_for_directions_rotations_and_the_literal_gate():
    turn = op.SlerpToward(vector(1), FixedFraction(0.6))
    literal = Gate(RRSAlignment(subspace(2)), Read(1), -0.85)
    paper = Plan([turn.keeping(subspace(2), "direction").at(layers=[1]).when(literal).named("image")])
    calibrated = Plan(
        [turn.keeping(subspace(2), "rotation").at(layers=[1]).when(linear_gate()).named("image")]
    )
    for plan in (paper, calibrated):
        left = plan.without("*.rrs")
        assert same(left, plan.replace(operator=turn))
    assert paper.without("*.rrs")[0].gate.scorer.rrs is not None
    with pytest.raises(RMuseError, match="'rrs' is required"):
        paper.without("image.gate.scorer.rrs")


def test_what_is_put_in_a_place_must_fit_there():
    plan = gated_plan()
    with pytest.raises(RMuseError, match="another Edit was required at 'turn', got Add"):
        plan.replace(turn=op.Add(vector(1)))
    with pytest.raises(RMuseError, match="cannot stand with 'angle' = Subspace"):
        plan.replace(angle=subspace(1))
