"""Overlaps with the RRS: exact where geometry says so, within chance for random subspaces, found where planted."""

import math

import pytest
import torch
from helpers.plans import gated_plan, lens_of, linear_gate, subspace, vector
from helpers.tiny import D_MODEL, picture, tiny_llava
from transformer_lens.tools.analysis.projection_kernel import random_projection_kernel_moments

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.data.world.portraits import png
from rmuse_interp.diagnostics import (
    direction_overlap,
    random_kernel,
    random_share,
    subspace_overlap,
    update_share,
)
from rmuse_interp.diagnostics.steered import steered
from rmuse_interp.fitting.collect import Query, trajectories
from rmuse_interp.parts.angle import FixedFraction
from rmuse_interp.parts.subspace import Subspace
from rmuse_interp.studies.updates import applied, in_forms

D = 24


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def haar(seed, k, d=D):
    return Subspace.span(drawn(seed, d, k))


# Geometry.


@pytest.mark.parametrize(("d", "rank"), [(8, 1), (24, 3), (192, 64)])
def test_the_null_is_that_of_transformer_lens_at_equal_ranks(d, rank):
    theirs, ours = random_projection_kernel_moments(d, rank), random_kernel(d, rank, rank)
    assert math.isclose(ours.mean, theirs.mean)
    assert math.isclose(ours.sd**2, theirs.variance, abs_tol=1e-15)


def planes(k, n=3000):
    """Orthonormal bases of random subspaces, [n, D, k]."""
    return torch.linalg.qr(drawn(k, n, D, k)).Q


def close_to(null, values):
    """Whether samples have the null's mean (to four standard errors) and spread."""
    assert abs(float(values.mean()) - null.mean) < 4 * null.sd / len(values) ** 0.5 + 1e-12
    assert abs(float(values.std()) / null.sd - 1) < 0.1


@pytest.mark.parametrize(("first", "second"), [(1, 5), (3, 8), (5, 20)])
def test_the_null_at_unequal_ranks_is_what_random_subspaces_show(first, second):
    kernels = (planes(first).mT @ planes(second)).square().sum(dim=(1, 2))
    close_to(random_kernel(D, first, second), kernels)


def test_the_null_of_a_share_knows_how_many_directions_the_updates_fill():
    stretch = torch.linspace(1, 4, D, dtype=torch.float64)
    for vectors in (drawn(0, 1, D), drawn(1, 5, D) * stretch, drawn(2, 500, D)):
        h = torch.zeros_like(vectors)
        null = update_share({"q": h}, {"q": vectors}, haar(1, 6)).null
        w = torch.linalg.eigvalsh(vectors.mT @ vectors)
        assert math.isclose(null.sd, random_share(D, 6, float(w.square().sum() / w.sum() ** 2)).sd)
        close_to(null, (vectors @ planes(6)).square().sum(dim=(1, 2)) / vectors.square().sum())
    assert random_share(D, 6, 1 / D).sd == 0.0
    assert random_share(D, 6, 1 / D).z(0.3) is None


def test_a_random_pair_is_within_chance_and_a_planted_overlap_is_not():
    for seed in range(10):
        rrs, other = haar(100 + seed, 6), haar(200 + seed, 4)
        overlap = subspace_overlap(other, rrs)
        assert abs(overlap.null.z(overlap.kernel)) < 4
        planted = Subspace.span(torch.cat([rrs.basis[:, :2].double(), drawn(seed, D, 2)], dim=1))
        found = subspace_overlap(planted, rrs)
        assert found.null.z(found.kernel) > 4
        assert torch.allclose(found.angles[:2], torch.zeros(2, dtype=torch.float64), atol=1e-6)


def test_orthogonal_by_construction_is_orthogonal():
    eye = torch.eye(D)
    one, two = Subspace(eye[:, :5]), Subspace(eye[:, 5:9])
    overlap = subspace_overlap(one, two)
    assert overlap.kernel == overlap.normalised == 0.0
    assert torch.allclose(overlap.angles, torch.full((4,), math.pi / 2, dtype=torch.float64))
    same = subspace_overlap(one, one)
    assert math.isclose(same.kernel, 5.0, rel_tol=1e-12)
    assert math.isclose(same.normalised, 1.0, rel_tol=1e-12)
    assert subspace_overlap(one, Subspace.zero(D)).kernel == 0.0
    with pytest.raises(RMuseError, match="widths 24 and 8"):
        subspace_overlap(one, Subspace.zero(8))


def test_the_kernel_is_the_sum_of_squared_cosines_whatever_the_bases():
    one, two = haar(1, 4), haar(2, 7)
    overlap = subspace_overlap(one, two)
    assert math.isclose(overlap.kernel, float(overlap.angles.cos().square().sum()), rel_tol=1e-6)
    assert math.isclose(overlap.kernel, float((one.basis.mT @ two.basis).square().sum()), rel_tol=1e-5)
    assert math.isclose(overlap.normalised, overlap.kernel / math.sqrt(28), rel_tol=1e-9)
    turned = Subspace(one.basis @ torch.linalg.qr(drawn(3, 4, 4)).Q.to(one.basis.dtype))
    assert math.isclose(subspace_overlap(turned, two).kernel, overlap.kernel, rel_tol=1e-5)


def test_dot_products_of_a_direction_before_and_after_protection():
    rrs, v = haar(1, 6), drawn(5, D)
    before, after = direction_overlap(7 * v, rrs), direction_overlap(rrs.remove(v), rrs)
    assert torch.allclose(before.dots, rrs.basis.double().mT @ v / v.norm())
    assert math.isclose(before.share, float(before.dots.square().sum()))
    assert before.share > 0.05
    assert after.dots.abs().max() < 1e-6
    inside = direction_overlap(rrs.basis[:, 2], rrs)
    assert math.isclose(inside.share, 1.0, rel_tol=1e-6)
    assert inside.null == random_share(D, 6)
    with pytest.raises(RMuseError, match="zero vector"):
        direction_overlap(torch.zeros(D), rrs)


# Updates.


def states(n=6, tokens=5):
    return {f"q{i}": drawn(50 + i, tokens, D) for i in range(n)}


def test_updates_outside_inside_and_anywhere():
    rrs, before = haar(1, 6), states()
    push = {name: drawn(80 + i, *h.shape) for i, (name, h) in enumerate(before.items())}
    outside = update_share(before, {k: h + rrs.remove(push[k]) for k, h in before.items()}, rrs)
    assert outside.share.value < 1e-12
    assert outside.change.value < 1e-12
    assert outside.null.z(outside.share.value) < -4
    inside = update_share(before, {k: h + rrs.project(push[k]) for k, h in before.items()}, rrs)
    assert math.isclose(inside.share.value, 1.0, rel_tol=1e-7)
    any_ = update_share(before, {k: h + push[k] for k, h in before.items()}, rrs)
    assert abs(any_.null.z(any_.share.value)) < 4
    assert any_.share.low <= any_.share.value <= any_.share.high
    total = sum(float(p.square().sum()) for p in push.values())
    expected = sum(float(rrs.project(p).square().sum()) for p in push.values()) / total
    assert math.isclose(any_.share.value, expected, rel_tol=1e-6)
    kept = sum(float(rrs.project(h).square().sum()) for h in before.values())
    assert math.isclose(any_.change.value, any_.share.value * total / kept, rel_tol=1e-6)
    doubled = update_share(before, {k: 2 * h for k, h in before.items()}, rrs)
    assert math.isclose(doubled.change.value, 1.0)


def test_closed_gates_are_no_updates_and_counted_as_no_change():
    rrs, before = haar(1, 6), states()
    after = {k: h + drawn(9, *h.shape) if k in ("q1", "q4") else h.clone() for k, h in before.items()}
    found = update_share(before, after, rrs)
    assert (found.n, found.updated) == (6, 2)
    assert found.per_example.keys() == {"q1", "q4"}
    only = update_share({k: before[k] for k in ("q1", "q4")}, {k: after[k] for k in ("q1", "q4")}, rrs)
    assert math.isclose(found.share.value, only.share.value)
    assert found.change.value < only.change.value
    assert found.change.low < found.change.value < found.change.high
    none = update_share(before, before, rrs)
    assert (none.share, none.updated, none.per_example) == (None, 0, {})
    assert none.change.value == 0.0


def test_updates_need_the_same_tokens_on_both_sides():
    before = states(2)
    with pytest.raises(RMuseError, match="ids or shapes differ"):
        update_share(before, {"q0": before["q0"]}, haar(1, 2))
    with pytest.raises(RMuseError, match="ids or shapes differ"):
        update_share(before, {k: h[1:] for k, h in before.items()}, haar(1, 2))
    with pytest.raises(RMuseError, match="at least one query"):
        update_share({}, {}, haar(1, 2))


# Forms of protection.


def test_every_form_of_protection_does_what_it_says():
    rrs, h = subspace(7), drawn(11, 9, D_MODEL).float()
    turn = op.SlerpToward(vector(1), FixedFraction(0.6))
    move = op.Transport(drawn(3, 12, D_MODEL).float(), torch.arange(12), window=1)
    for start in (turn, turn.keeping(rrs, "direction"), turn.keeping(rrs), move, move.keeping(rrs)):
        forms, own = in_forms(start, rrs)
        assert [in_forms(form, rrs)[1] for form in forms.values()] == list(forms)
        assert forms[own] is start
        updates = {name: applied(form, "generated", h) - h for name, form in forms.items()}
        assert rrs.project(updates["rotation"]).abs().max() < 1e-5
        assert rrs.project(updates["none"]).abs().max() > 1e-2
        if "direction" in forms:  # the goal is free of the RRS, the rotation still shrinks what h has there
            assert direction_overlap(forms["direction"].toward, rrs).share < 1e-10
            assert rrs.project(updates["direction"]).abs().max() > 1e-2
        # Whatever the form it came from, the operator is the same.
        bare = turn if isinstance(start, op.SlerpToward) else move
        for name, form in forms.items():
            again = in_forms(bare, rrs)[0][name]
            assert torch.equal(applied(form, "generated", h), applied(again, "generated", h))
    assert list(in_forms(turn, rrs)[0]) == ["none", "direction", "rotation"]
    assert list(in_forms(move, rrs)[0]) == ["none", "rotation"]


def test_an_edit_takes_its_tokens_only():
    h, push = torch.zeros(4, D_MODEL), op.Add(torch.ones(D_MODEL))
    taken = {
        tokens: applied(push, tokens, h)[:, 0].tolist() for tokens in ("generated", "prompt_end", "response")
    }
    assert taken == {"generated": [1, 1, 1, 1], "prompt_end": [1, 0, 0, 0], "response": [0, 1, 1, 1]}


# States of a steered pass.


def queries():
    words = "<think> Two plus three is five. </think> five"
    return [
        Query("a", "How many red circles are there?", png(picture(1)), words),
        Query("b", "Two plus three?", None, words + " and some more words, and more, and more"),
        Query("c", "Where?", None, words),
        Query("d", "What colour is the hat? It is green.", png(picture(2)), "<think> I see. </think> green"),
    ]


def test_states_before_and_after_edits_are_those_of_the_pass():
    """One block steered alone: before is the unsteered state, after is the operator of it, nothing else moves."""
    lens, rrs = lens_of(tiny_llava()), subspace(2)
    edit = op.SlerpToward(vector(1), FixedFraction(0.6)).keeping(rrs).at(layers=[2]).on("generated")
    plain = {t.id: t.states for t in trajectories(lens, queries())}
    found = steered(lens, op_plan(edit), queries(), batch_size=3)
    assert found.fired == dict.fromkeys("abcd")
    for name, states_ in plain.items():
        for layer in (0, 1, 2):
            assert torch.allclose(found.before[layer][name], states_[:, layer], atol=2e-5)
        for layer in (0, 1, 3):
            assert torch.equal(found.before[layer][name], found.after[layer][name])
        expected = applied(edit.operator_at(2), "generated", found.before[2][name])
        assert torch.allclose(found.after[2][name], expected, atol=1e-5)
        assert not torch.allclose(found.after[3][name], states_[:, 3], atol=1e-2)
    assert list(found.after[0]) == list("abcd")


def op_plan(edit):
    from rmuse_interp.edits.plan import Plan

    return Plan([edit])


@pytest.mark.parametrize("prefix", [None, "Please refuse."])
def test_a_gated_pass_is_the_open_one_where_the_gate_fires(prefix):
    """Also for two-pass plans, whose gate scores a prefixed prompt."""
    lens = lens_of(tiny_llava())
    push = op.SlerpToward(vector(1), FixedFraction(0.6)).at(layers=[1, 2]).on("generated")
    scores = lens.decide(
        push.when(linear_gate(1, prefix=prefix)), [q.prompt for q in queries()], [q.image for q in queries()]
    )
    middle = float(scores.score.flatten().median()) + 1e-4
    gated = steered(
        lens, op_plan(push.when(linear_gate(1, threshold=middle, prefix=prefix))), queries(), batch_size=2
    )
    open_ = steered(lens, op_plan(push), queries(), batch_size=2)
    assert set(gated.fired.values()) == {True, False}
    plain = {t.id: t.states for t in trajectories(lens, queries())}
    for name, fired in gated.fired.items():
        for layer in range(lens.n_layers):
            expected = open_.after[layer][name] if fired else plain[name][:, layer]
            assert torch.allclose(gated.after[layer][name], expected, atol=2e-5)


def test_nothing_stays_on_the_model():
    lens = lens_of(tiny_llava())
    start = {t.id: t.states for t in trajectories(lens, queries())}
    # transformers hangs recorders of its own there, once hidden states have been asked for.
    before = [list(block._forward_hooks.values()) for block in lens.layout.blocks]
    steered(lens, gated_plan(), queries())
    assert all(torch.equal(t.states, start[t.id]) for t in trajectories(lens, queries()))
    assert [list(block._forward_hooks.values()) for block in lens.layout.blocks] == before
    with pytest.raises(RMuseError, match="a response each"):
        steered(lens, gated_plan(), [Query("a", "Where?")])
