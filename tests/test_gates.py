"""Gates against the reference, defect D2, combinations, and the choice of a gate by grouped cross-validation."""

import numpy as np
import pytest
import torch
from reference import naive

from rmuse_interp.calibration import auroc
from rmuse_interp.errors import RMuseError
from rmuse_interp.gates import (
    ContrastGate,
    Gate,
    GateStates,
    LinearDiscriminantGate,
    RRSAlignmentGate,
    fit_contrast,
    fit_discriminant,
    held_out_scores,
    select_gate,
)
from rmuse_interp.subspace import Subspace


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def people(
    d: int = 24, forgotten: int = 6, known: int = 30, renderings: int = 5, noise: float = 0.5
) -> GateStates:
    """Each person is a direction of its own; every rendering adds noise. Groups are renderings."""
    center = random(forgotten + known, d)
    states = center.repeat_interleave(renderings, 0) + noise * random(
        (forgotten + known) * renderings, d, seed=1
    )
    groups = [f"rendering {i % renderings}" for i in range(len(states))]
    cut = forgotten * renderings
    return GateStates(states[:cut] + 5.0, states[cut:] + 5.0, groups[:cut], groups[cut:])


def test_the_literal_gate_is_eq_4_7_with_its_sign_turned():
    rrs, h = Subspace.span(random(12, 4)), 9 * random(20, 12, seed=1)
    gate = RRSAlignmentGate(rrs, layer=3)
    expected = [naive.gate(x, rrs.basis.double().numpy()) for x in h.numpy()]
    assert np.allclose(-gate.score(h).numpy(), expected, atol=1e-6)
    assert gate.tau == 0.85
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
    scores = -RRSAlignmentGate(rrs, layer=0).score(random(300, 400, seed=1))
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
    assert float(gate.score(gate.center)) == pytest.approx(0.0, abs=1e-4)


def test_contrast_separates_where_the_literal_gate_cannot():
    seen, fresh = people(), people(noise=0.6)
    gate = fit_contrast(seen.forget, seen.others, layer=2, readout="question")
    literal = RRSAlignmentGate(Subspace.span(random(24, 6, seed=3)), layer=2)
    assert auroc(gate.score(fresh.forget), gate.score(fresh.others)) > 0.99
    assert auroc(literal.score(fresh.forget), literal.score(fresh.others)) < 0.9


def test_contrast_can_be_thinned():
    data = people()
    gate = fit_contrast(data.forget, data.others, layer=2, readout="last", cap=12)
    assert (len(gate.forget), len(gate.others)) == (12, 12)
    assert auroc(gate.score(data.forget), gate.score(data.others)) > 0.8


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
        LinearDiscriminantGate(good[0], 0.0, -1, "last")
    with pytest.raises(RMuseError, match="scale"):
        LinearDiscriminantGate(good[0], 0.0, 1, "last", scale=0.0)
    with pytest.raises(NotImplementedError):
        Gate(0, "last", 0.0).score(good)


def two_gates() -> tuple[LinearDiscriminantGate, LinearDiscriminantGate, torch.Tensor]:
    a = LinearDiscriminantGate(random(6), 0.1, 2, "last", threshold=0.3, scale=2.0)
    b = LinearDiscriminantGate(random(6, seed=1), -0.2, 2, "last", threshold=-0.1)
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
    elsewhere = LinearDiscriminantGate(random(6), 0.0, 3, "last")
    for other in (elsewhere, LinearDiscriminantGate(random(6), 0.0, 2, "image")):
        with pytest.raises(RMuseError, match="one state"):
            a & other
    with pytest.raises(RMuseError, match="margin 0"):
        (a & b).at_threshold(1.0)
    assert a.at_threshold(7.0).threshold == 7.0
    assert a.threshold == 0.3


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


def test_groups_are_held_out_whole():
    """Every person has two identical renderings: by rows they leak, by person they do not."""
    forget, others = random(10, 40).repeat(2, 1), random(15, 40, seed=1).repeat(2, 1)
    by_row = GateStates(forget, others, [f"f{i}" for i in range(20)], [f"o{i}" for i in range(30)])
    by_person = GateStates(
        forget, others, [f"f{i % 10}" for i in range(20)], [f"o{i % 15}" for i in range(30)]
    )
    leaky, honest = (auroc(*held_out_scores(s, "contrast", 0, "last")[:2]) for s in (by_row, by_person))
    assert leaky > 0.95
    assert honest < 0.75


def test_selection_finds_where_and_how_to_read():
    good, noise = people(), people(noise=30.0)
    candidates = {(1, "last"): noise, (4, "question"): good, (6, "image"): noise}
    chosen = select_gate(candidates)
    assert (chosen.gate.layer, chosen.gate.readout) == (4, "question")
    assert isinstance(chosen.gate, ContrastGate)
    assert len(chosen.table) == 6
    assert chosen.row.auroc > 0.99
    assert chosen.row.fpr_at_99_tpr < 0.1
    assert chosen.row is chosen.table[0]
    assert chosen.gate.threshold == chosen.row.threshold.value
    fresh = people(noise=0.55)
    assert float(chosen.gate.fires(fresh.forget).double().mean()) > 0.95
    assert float(chosen.gate.fires(fresh.others).double().mean()) < 0.05
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
    if n == 1:
        assert bool(chosen.gate.fires(data.forget[0]))
    assert np.isfinite(chosen.gate.threshold)


def test_selection_refuses_nothing_to_choose_from():
    with pytest.raises(RMuseError, match="needed"):
        select_gate({})
    with pytest.raises(RMuseError, match="one group per forget state"):
        GateStates(random(3, 4), random(3, 4), ["a"], ["a", "b", "c"])
