"""The choice of a gate: grouped cross-validation leaks nothing, and what it finds is kept with the gate."""

import numpy as np
import pytest
import torch
from helpers.gates import people, random

from rmuse_interp import RMuseError
from rmuse_interp.maths.statistics import auroc
from rmuse_interp.parts.gates import GATE_KINDS, GateStates, fit_contrast, held_out_scores, select_gate


def test_held_out_scores_come_from_gates_that_never_saw_the_group():
    """A gate that remembers gives every fitted state a cosine of 1; held out, pure noise is not separable."""
    noise = GateStates(
        random(40, 30), random(60, 30, seed=1), [str(i) for i in range(40)], [str(i) for i in range(60)]
    )
    forget, others, held_out = held_out_scores(noise, "contrast", 0, "last")
    assert held_out
    assert 0.3 < auroc(forget, others) < 0.7
    fitted = fit_contrast(noise.forget, noise.others, layer=0, readout="last")
    assert auroc(fitted.score(noise.forget), fitted.score(noise.others)) == 1.0


def grouped(by_row: bool) -> GateStates:
    """A state says which group it is of and nothing else; every person is one group."""
    group = torch.arange(80).repeat_interleave(4)
    states = 3 * random(80, 60)[group] + 0.3 * random(320, 60, seed=1)
    names = [f"p{i}" for i in group.tolist()]
    held = [str(i) for i in range(320)] if by_row else names
    return GateStates(states[:160], states[160:], held[:160], held[160:], names[:160], names[160:])


@pytest.mark.parametrize("kind", GATE_KINDS)
def test_what_identifies_the_group_only_is_worth_nothing(kind: str):
    """By rows such states leak, by group they do not (but for CAST, whose one direction remembers little)."""
    honest = auroc(*held_out_scores(grouped(by_row=False), kind, 0, "last")[:2])
    assert 0.35 < honest < 0.65
    if kind != "condition":
        assert auroc(*held_out_scores(grouped(by_row=True), kind, 0, "last")[:2]) > 0.95


@pytest.mark.parametrize("kind", GATE_KINDS)
def test_a_held_out_group_is_not_seen_in_fitting(kind: str):
    """Another state in a group changes no score of the rest of that group, to the bit, and those of other groups."""
    data = grouped(by_row=False)
    altered = data.others.clone()
    altered[5] = altered[5] * -7 + 2
    other = GateStates(
        data.forget, altered, data.forget_groups, data.other_groups, data.forget_people, data.other_people
    )
    (forget, others, _), (again_f, again_o, _) = (held_out_scores(s, kind, 0, "last") for s in (data, other))
    mates = [i for i, g in enumerate(data.other_groups) if g == data.other_groups[5] and i != 5]
    assert torch.equal(others[mates], again_o[mates])
    assert others[5] != again_o[5]
    assert not torch.equal(others, again_o)
    assert not torch.equal(forget, again_f)


def test_selection_finds_where_and_how_to_read():
    good, noise = people(), people(noise=30.0)
    candidates = {(1, "last"): noise, (4, "question"): good, (6, "image"): noise}
    chosen = select_gate(candidates)
    assert (chosen.gate.layer, chosen.gate.readout) == (4, "question")
    assert len(chosen.table) == 3 * len(GATE_KINDS)
    assert chosen.row.auroc > 0.99
    assert chosen.row.fpr_at_99_tpr < 0.1
    assert chosen.row is chosen.table[0]
    assert chosen.gate.threshold == chosen.row.threshold.value
    assert chosen.gate.expected["false_alarms"] == chosen.row.threshold.fpr.__dict__
    assert chosen.gate.expected["misses"]["value"] == pytest.approx(1 - chosen.row.threshold.tpr.value)
    assert chosen.gate.scale != 1.0
    fresh = people(noise=0.55)
    assert float(chosen.gate.fires(fresh.forget).double().mean()) > 0.95
    assert float(chosen.gate.fires(fresh.others).double().mean()) < 0.05
    ranks = [(round(row.error, 9), -row.separation) for row in chosen.table]
    assert ranks == sorted(ranks)
    again = select_gate(dict(reversed(list(candidates.items()))))
    assert again.table == chosen.table


def test_selection_prefers_the_lower_block_among_equals():
    data = people()
    assert select_gate({(5, "last"): data, (2, "last"): data}, kinds=["contrast"]).gate.layer == 2


@pytest.mark.parametrize("n", [1, 2])
def test_selection_works_for_one_forgotten_example(n: int):
    data = people()
    few = GateStates(data.forget[:n], data.others, ["a"] * n, data.other_groups)
    chosen = select_gate({(4, "question"): few}, kinds=["contrast", "discriminant"])
    assert chosen.row.held_out == (n > 1)
    assert (chosen.gate.expected["misses"] is None) == (n == 1)
    if n == 1:
        assert bool(chosen.gate.fires(data.forget[0]))
    assert np.isfinite(chosen.gate.threshold)


def test_selection_refuses_nothing_to_choose_from():
    with pytest.raises(RMuseError, match="needed"):
        select_gate({})
    three = ["a", "b", "c"]
    with pytest.raises(RMuseError, match="one group per forget state"):
        GateStates(random(3, 4), random(3, 4), ["a"], three)
    with pytest.raises(RMuseError, match="one person per other state"):
        GateStates(random(3, 4), random(3, 4), three, three, three, ["a"])
    with pytest.raises(RMuseError, match="one side only"):
        GateStates(random(3, 4), random(3, 4), three, three, three)
    nameless = GateStates(random(3, 4), random(3, 4), three, three)
    with pytest.raises(RMuseError, match="need people's labels"):
        select_gate({(0, "last"): nameless}, kinds=["vmf"])
    with pytest.raises(RMuseError, match="needs people's labels"):
        held_out_scores(nameless, "mahalanobis", 0, "last")


def test_selection_leaves_out_what_needs_people_where_there_are_no_labels():
    data = people()
    nameless = GateStates(data.forget, data.others, data.forget_groups, data.other_groups)
    table = select_gate({(0, "last"): nameless, (1, "last"): data}).table
    assert {row.kind for row in table if row.layer == 0} == {"contrast", "discriminant", "condition"}
    assert {row.kind for row in table if row.layer == 1} == set(GATE_KINDS)


def test_selection_takes_clusters_where_wordings_drown_people():
    # Wordings differ along two directions, so that one which is held out is not foreign altogether.
    data, wording = people(noise=0.3), 4.0 * random(5, 2, seed=7) @ random(2, 24, seed=8)
    sides = ((data.forget, data.forget_groups), (data.others, data.other_groups))
    moved = [states + wording[[int(g[-1]) for g in groups]] for states, groups in sides]
    rest = (data.forget_groups, data.other_groups, data.forget_people, data.other_people)
    chosen = select_gate({(0, "last"): GateStates(*moved, *rest)})
    assert chosen.row.kind == "mahalanobis"
    assert chosen.gate.scorer.labels == [f"p{i}" for i in range(6)]
    assert chosen.row.error < min(row.error for row in chosen.table if row.kind in ("contrast", "vmf"))


def test_selection_judges_by_the_rule_it_was_given():
    """What counts is the error at the threshold asked for, which another candidate may do better at."""
    data = people(noise=1.2)
    for rule, level in (("target_fpr", 0.02), ("target_tpr", 0.95)):
        chosen = select_gate({(0, "last"): data}, rule=rule, level=level)
        assert chosen.row.error == min(row.error for row in chosen.table)
        assert chosen.gate.expected["rule"] == f"{rule} {level:g}"
        rate = chosen.row.threshold.fpr if rule == "target_fpr" else chosen.row.threshold.tpr
        assert rate.value <= level if rule == "target_fpr" else rate.value >= level
