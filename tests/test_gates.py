"""Gates against the reference, defect D2, combinations, calibration and what it makes one expect."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.gates import people, random
from reference import naive
from safetensors.torch import load_file, save_file

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.maths.statistics import FALSE_ALARM, auroc, choose_threshold, wilson
from rmuse_interp.parts.gates import (
    Clusters,
    Condition,
    Contrast,
    Gate,
    LinearDiscriminant,
    Read,
    RRSAlignment,
    Scorer,
    fit_contrast,
    fit_discriminant,
)
from rmuse_interp.parts.part import from_record, to_record
from rmuse_interp.parts.subspace import Subspace


def test_the_literal_gate_is_eq_4_7_with_its_sign_turned():
    rrs, h = Subspace.span(random(12, 4)), 9 * random(20, 12, seed=1)
    gate = Gate(RRSAlignment(rrs), Read(3), -0.85)
    expected = [naive.gate(x, rrs.basis.double().numpy()) for x in h.numpy()]
    assert np.allclose(-gate.score(h).numpy(), expected, atol=1e-6)
    assert gate.fires(h).tolist() == [s < 0.85 for s in expected]
    inside, outside = rrs.basis[:, 0], rrs.remove(h[0])
    assert not bool(gate.fires(inside))
    assert bool(gate.fires(outside))
    assert float(gate.score(torch.zeros(12))) == 0.0
    assert gate.score(h.bfloat16()).dtype == torch.float32
    assert torch.allclose(gate.score(5 * h), gate.score(h))
    assert "< 0.85" in gate.describe()


def test_the_literal_gate_hardly_depends_on_the_query():
    rrs = Subspace.span(random(400, 16))
    scores = -RRSAlignment(rrs).score(random(300, 400, seed=1))
    assert float(scores.mean()) == pytest.approx((16 / 400) ** 0.5, rel=0.05)  # sqrt(r/d)
    assert float(scores.std()) < 0.05
    assert bool((scores < 0.85).all())  # always on


@pytest.mark.parametrize("top", [1, 3, 50])
def test_contrast_agrees_with_the_reference(top: int):
    data, h = people(), random(10, 24, seed=5) + 5.0
    gate = fit_contrast(data.forget, data.others, layer=2, readout="question", top=top)
    expected = [naive.contrast(x, data.forget.numpy(), data.others.numpy(), top) for x in h.numpy()]
    assert np.allclose(gate.score(h).numpy(), expected, atol=1e-6)
    assert gate.score(h.reshape(2, 5, 24)).shape == (2, 5)
    assert float(gate.score(gate.scorer.center)) == pytest.approx(0.0, abs=1e-4)


def test_contrast_separates_where_the_literal_gate_cannot():
    seen, fresh = people(), people(noise=0.6)
    gate = fit_contrast(seen.forget, seen.others, layer=2, readout="question")
    literal = RRSAlignment(Subspace.span(random(24, 6, seed=3)))
    assert auroc(gate.score(fresh.forget), gate.score(fresh.others)) > 0.99
    assert auroc(literal.score(fresh.forget), literal.score(fresh.others)) < 0.9


def test_discriminant_separates_a_shift_and_is_linear():
    forget, others = random(30, 40) + 0.8, random(60, 40, seed=1)
    gate = fit_discriminant(forget, others, layer=1, readout="image")
    assert auroc(gate.score(random(50, 40, seed=2) + 0.8), gate.score(random(50, 40, seed=3))) > 0.95
    a, b = random(40, seed=4), random(40, seed=5)
    middle = gate.score((a + b) / 2)
    assert float(middle) == pytest.approx(float(gate.score(a) + gate.score(b)) / 2, abs=1e-5)
    balanced = gate.score(torch.stack([forget.mean(0), others.mean(0)]))
    assert float(balanced.sum()) == pytest.approx(0.0, abs=1e-3)  # equal priors: the middle scores 0


def test_gates_refuse_empty_sides_and_nan():
    good, bad = random(4, 6), random(4, 6).clone()
    bad[2, 1] = torch.nan
    for fit in (fit_contrast, fit_discriminant):
        with pytest.raises(RMuseError, match="forget and"):
            fit(good[:0], good, layer=0, readout="last")
        with pytest.raises(RMuseError, match="other queries has NaN"):
            fit(good, bad, layer=0, readout="last")
    with pytest.raises(RMuseError, match="block -1"):
        Read(-1)
    with pytest.raises(RMuseError, match="scale"):
        Gate(LinearDiscriminant(good[0], 0.0), Read(1), scale=0.0)
    with pytest.raises(NotImplementedError):
        Gate(Scorer(), Read(0)).score(good)


def two_gates() -> tuple[Gate, Gate, torch.Tensor]:
    a = Gate(LinearDiscriminant(random(6), 0.1), Read(2), threshold=0.3, scale=2.0)
    b = Gate(LinearDiscriminant(random(6, seed=1), -0.2), Read(2), threshold=-0.1)
    return a, b, random(200, 6, seed=2)


def test_combined_gates_follow_boolean_algebra():
    a, b, h = two_gates()
    assert torch.equal((a & b).fires(h), a.fires(h) & b.fires(h))
    assert torch.equal((a | b).fires(h), a.fires(h) | b.fires(h))
    assert torch.equal((~a).fires(h), ~a.fires(h))
    assert torch.equal((a & ~b).fires(h), a.fires(h) & ~b.fires(h))
    assert torch.equal((~(a | b)).score(h), (~a & ~b).score(h))  # De Morgan, score for score
    assert torch.equal((a & b).score(h), torch.minimum(a.margin(h), b.margin(h)))
    assert "and not" in (a & ~b).describe()


def test_combined_gates_must_read_one_state():
    a, b, _ = two_gates()
    elsewhere = Gate(LinearDiscriminant(random(6), 0.0), Read(3))
    for other in (elsewhere, Gate(LinearDiscriminant(random(6), 0.0), Read(2, "image"))):
        with pytest.raises(RMuseError, match="one state"):
            a & other
    with pytest.raises(RMuseError, match="margin 0"):
        (a & b).at_threshold(1.0)
    assert a.at_threshold(7.0).threshold == 7.0
    assert a.threshold == 0.3


def some_gates() -> list[Gate]:
    """One of every kind on states of width 6, and combinations of them."""
    means, square = random(3, 6), random(6, 6, seed=4)
    gates: list[Gate] = [
        Gate(RRSAlignment(Subspace.span(random(6, 2))), Read(2), -0.85),
        Gate(Contrast(means, random(2, 6, seed=1), random(6), top=2), Read(2)),
        Gate(LinearDiscriminant(random(6), 0.5), Read(2)),
        Gate(Clusters(means, list("abc"), means[:2] + 1, list("de"), random(6), concentration=4.0), Read(2)),
        Gate(
            Clusters(means, list("abc"), means[:2] + 1, list("de"), random(6), precision=square @ square.T),
            Read(2),
        ),
        Gate(Condition(random(6)), Read(2)),
        Gate(Condition(random(6), above=False), Read(2)),
    ]
    forget, others = random(30, 6, seed=2) + 0.5, random(40, 6, seed=3)
    gates = [gate.calibrate(forget, others) for gate in gates]
    return [*gates, gates[1] & gates[3], gates[0] | ~gates[5]]


@pytest.mark.parametrize("gate", some_gates(), ids=lambda gate: gate.kind)
def test_every_gate_comes_back_from_its_record(gate: Gate, tmp_path: Path):
    tree, tensors = to_record(gate)
    save_file(tensors, tmp_path / "x.safetensors")
    again = from_record(json.loads(json.dumps(tree, allow_nan=False)), load_file(tmp_path / "x.safetensors"))
    h = random(50, 6, seed=8)
    assert type(again) is type(gate)
    assert torch.equal(again.score(h), gate.score(h))
    assert torch.equal(again.fires(h), gate.fires(h))
    assert torch.equal(again.margin(h), gate.margin(h))
    assert torch.equal(gate.margin(h) > 0, gate.fires(h))
    assert again.describe() == gate.describe()
    assert again.expected == gate.expected
    assert "% false alarms" in gate.describe()


@pytest.mark.parametrize("rule", ["target_fpr", "target_tpr"])
@pytest.mark.parametrize("level", [0.05, 0.8])
def test_a_calibrated_gate_keeps_its_level_on_fresh_states(rule: str, level: float):
    gate = Gate(LinearDiscriminant(random(6), 0.1), Read(2))
    found = gate.calibrate(random(4000, 6) + 0.5, random(6000, 6, seed=1), rule=rule, level=level)
    fresh = {"target_tpr": random(20000, 6, seed=2) + 0.5, "target_fpr": random(20000, 6, seed=3)}
    assert float(found.fires(fresh[rule]).double().mean()) == pytest.approx(level, abs=0.02)
    expected = found.expected["false_alarms"]["value"], 1 - found.expected["misses"]["value"]
    assert expected[rule == "target_tpr"] == pytest.approx(level, abs=1e-3)
    assert found.expected["rule"] == f"{rule} {level:g}"


@pytest.mark.parametrize(("rule", "where"), [("youden", 1.0), ("midpoint", 1.0 + math.log(FALSE_ALARM) / 2)])
def test_a_calibrated_gate_stands_where_the_sides_part(rule: str, where: float):
    """Where the densities of two normal distributions are as 1 to the weight of a false alarm; the rates there hold."""
    gate = Gate(LinearDiscriminant(torch.tensor([1.0, 0.0]), 0.0), Read(2))
    shift = torch.tensor([2.0, 0.0])
    found = gate.calibrate(random(4000, 2) + shift, random(6000, 2, seed=1), rule=rule)
    assert found.threshold == pytest.approx(where, abs=0.2)
    misses = 1 - float(found.fires(random(20000, 2, seed=2) + shift).double().mean())
    alarms = float(found.fires(random(20000, 2, seed=3)).double().mean())
    assert misses == pytest.approx(found.expected["misses"]["value"], abs=0.02)
    assert alarms == pytest.approx(found.expected["false_alarms"]["value"], abs=0.02)


def test_calibration_says_what_to_expect():
    gate = Gate(LinearDiscriminant(random(6), 0.1), Read(2), threshold=9.0)
    forget, others = random(30, 6) + 0.5, random(40, 6, seed=1)
    assert gate.expected is None
    assert "expects" not in gate.describe()
    found = gate.calibrate(forget, others, rule="youden")
    chosen = choose_threshold(gate.score(forget), gate.score(others), "youden")
    missed = sum(score <= chosen.value for score in gate.score(forget).tolist())
    assert found.threshold == chosen.value
    assert found.expected["misses"] == wilson(missed, 30).__dict__
    assert found.expected["false_alarms"] == chosen.fpr.__dict__
    by_scores = gate.calibrate(gate.score(forget), gate.score(others), rule="youden")
    assert to_record(by_scores)[0] == to_record(found)[0]
    sides = [gate.score(x).double() for x in (forget, others)]
    deviations = torch.cat([side - side.mean() for side in sides])
    assert found.scale == pytest.approx(float(deviations.square().mean().sqrt()))
    low, high = (100 * found.expected["misses"][end] for end in ("low", "high"))
    sentence = f"{100 * missed / 30:.1f} % misses [{low:.1f}, {high:.1f}])"
    assert found.describe().endswith(sentence)
    assert sentence in op.Add(random(6)).at(layers=[3]).when(found).describe()
    assert torch.equal(found.score(forget), gate.score(forget))
    assert (gate.threshold, gate.expected) == (9.0, None)
    # Of another threshold nothing is known.
    assert found.at_threshold(0.0).expected is None
    seen = gate.calibrate(forget, others, held_out=False)
    assert "misses unknown" in seen.describe()
    with pytest.raises(RMuseError, match="margin 0"):
        (found & found).calibrate(forget, others)
    with pytest.raises(RMuseError, match="finite forget scores"):
        gate.calibrate(gate.score(forget)[:0], gate.score(others))


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_fires(broken):
    """Also behind a combination, where an infinite margin would be outvoted: what is forgotten stays hidden."""
    gate = Gate(LinearDiscriminant(torch.ones(2), 0.0), Read(1), 5.0)
    states = torch.tensor([[broken, 0.0], [1.0, 1.0], [9.0, 9.0]])
    assert gate.fires(states).tolist() == [True, False, True]
    assert gate.margin(states)[0].isnan()
    never = Gate(LinearDiscriminant(torch.tensor([0.0, 1.0]), 0.0), Read(1), 99.0)
    for combined in (gate & never, gate | never, ~gate, ~~gate, (gate & never) | never):
        assert bool(combined.fires(states)[0])
    assert (gate & never).fires(states).tolist() == [True, False, False]
