"""Cluster gates and the condition gate: parity with full densities, people added and removed, CAST's formula."""

import numpy as np
import pytest
import torch
from helpers.gates import people, random
from reference import gates as naive

from rmuse_interp import RMuseError
from rmuse_interp.maths.statistics import auroc
from rmuse_interp.parts.gates import (
    Clusters,
    Condition,
    Gate,
    GateStates,
    Read,
    fit_clusters,
    fit_condition,
    fit_contrast,
)
from rmuse_interp.parts.part import to_record

KINDS = ("vmf", "mahalanobis")


def fitted(data: GateStates, kind: str) -> Clusters:
    sides = (data.forget, data.forget_people, data.others, data.other_people)
    return fit_clusters(*sides, layer=2, readout="question", kind=kind).scorer


def bits(gate: Clusters) -> dict[str, torch.Tensor]:
    return to_record(gate)[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [6, 24])
def test_clusters_score_differences_of_full_log_densities(kind: str, d: int):
    data, h = people(d, known=12, renderings=3), random(10, d, seed=5) + 5.0
    # One person has a single state: it tells where they are and nothing of the spread.
    data = GateStates(
        data.forget[2:],
        data.others,
        data.forget_groups[2:],
        data.other_groups,
        data.forget_people[2:],
        data.other_people,
    )
    gate = fitted(data, kind)
    reference = naive.vmf_score if kind == "vmf" else naive.mahalanobis_score
    sides = (data.forget.numpy(), data.forget_people, data.others.numpy(), data.other_people)
    expected = [reference(x, *sides) for x in h.numpy()]
    assert np.allclose(gate.score(h).numpy(), expected, rtol=1e-4, atol=1e-3)
    assert gate.score(h.reshape(2, 5, d)).shape == (2, 5)
    assert gate.score(h.bfloat16()).dtype == torch.float32
    assert gate.density == kind
    assert "6 to forget of 18" in gate.describe()


@pytest.mark.parametrize("kind", KINDS)
def test_one_person_more_or_less_changes_nothing_else(kind: str):
    data, stranger = people(), random(24, seed=9) * 1.5 + 5.0
    shown = stranger + 0.3 * random(4, 24, seed=10)
    before = fitted(data, kind)
    after = before.with_cluster("stranger", shown)
    assert after.labels == [*before.labels, "stranger"]
    for name, tensor in bits(before).items():
        kept = bits(after)[name]
        assert torch.equal(kept[: len(tensor)] if name == "forget" else kept, tensor), name
    fresh = stranger + 0.3 * random(20, 24, seed=11)
    assert bool((after.score(fresh) > before.score(fresh)).all())
    assert bool((after.score(fresh) > 0).all())
    # A cluster more can only add to what is forgotten.
    everyone = torch.cat([data.forget, data.others])
    assert bool((after.score(everyone) >= before.score(everyone) - 1e-4).all())

    restored = after.without_cluster("stranger")
    assert to_record(restored)[0] == to_record(before)[0]
    for name, tensor in bits(before).items():
        assert torch.equal(bits(restored)[name], tensor), name
    assert torch.equal(restored.score(everyone), before.score(everyone))


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_person_can_be_told_from_the_forgotten(kind: str):
    data = people(noise=0.3)
    mine = torch.tensor([name == "p2" for name in data.forget_people])
    gate = fitted(data, kind)
    assert bool((gate.score(data.forget) > 0).all())
    restored = gate.without_cluster("p2").with_cluster("p2", data.forget[mine], side="other")
    assert not bool((restored.score(data.forget[mine]) > 0).any())
    assert bool((restored.score(data.forget[~mine]) > 0).all())
    assert restored.without_cluster("p2", side="other").other_labels == gate.other_labels
    # Added again, the cluster is the one that was fitted.
    again = restored.without_cluster("p2", side="other").with_cluster("p2", data.forget[mine])
    assert torch.equal(again.forget[-1], gate.forget[2])


def test_covariance_discounts_what_varies_within_people():
    """Wordings move every state more than people differ: directions are drowned, Mahalanobis clusters are not."""
    wording = 3.0 * random(5, 24, seed=7)
    data, fresh = people(noise=0.3), people(noise=0.4)

    def worded(x: GateStates) -> tuple[torch.Tensor, torch.Tensor]:
        sides = ((x.forget, x.forget_groups), (x.others, x.other_groups))
        forget, others = (s + wording[[int(g[-1]) for g in groups]] for s, groups in sides)
        return forget, others

    forget, others = worded(data)
    gate = fit_clusters(
        forget, data.forget_people, others, data.other_people, layer=0, readout="last", kind="mahalanobis"
    )
    contrast = fit_contrast(forget, others, layer=0, readout="last")
    # The wordings come in other proportions than in fitting.
    new_forget, new_others = (side + wording[1] - wording[3] for side in worded(fresh))
    assert auroc(gate.score(new_forget), gate.score(new_others)) > 0.99
    assert auroc(contrast.score(new_forget), contrast.score(new_others)) < 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_clusters_of_single_or_equal_states_are_defined(kind: str):
    forget, others = random(3, 8), random(5, 8, seed=1)
    names, other_names = [f"f{i}" for i in range(3)], [f"o{i}" for i in range(5)]
    alone = fit_clusters(forget, names, others, other_names, layer=0, readout="last", kind=kind)
    scorer = alone.scorer
    assert scorer.concentration == 1.0 if kind == "vmf" else torch.equal(scorer.precision, torch.eye(8))
    assert bool(alone.fires(forget).all())
    assert not bool(alone.fires(others).any())
    twice = fit_clusters(
        forget.repeat(2, 1),
        names * 2,
        others.repeat(2, 1),
        other_names * 2,
        layer=0,
        readout="last",
        kind=kind,
    )
    assert bool(torch.isfinite(twice.score(random(9, 8, seed=2))).all())
    assert bool(twice.fires(forget).all())


def test_clusters_refuse_what_is_wrong():
    data = people()
    gate = fitted(data, "vmf")
    with pytest.raises(RMuseError, match="one person per state"):
        fit_clusters(data.forget, ["a"], data.others, data.other_people, layer=0, readout="last")
    with pytest.raises(RMuseError, match="forget and of other"):
        fit_clusters(data.forget[:0], [], data.others, data.other_people, layer=0, readout="last")
    with pytest.raises(RMuseError, match="'p0', a forget cluster already"):
        gate.with_cluster("p0", data.forget)
    with pytest.raises(RMuseError, match="without states"):
        gate.with_cluster("new", data.forget[:0])
    with pytest.raises(RMuseError, match="NaN"):
        gate.with_cluster("new", data.forget * torch.nan)
    with pytest.raises(RMuseError, match="'p9' is not among"):
        gate.without_cluster("p9")
    with pytest.raises(RMuseError, match="the last"):
        fitted(people(forgotten=1), "vmf").without_cluster("p0")
    means = random(2, 4)
    with pytest.raises(RMuseError, match="distinct label per forget"):
        Clusters(means, ["a", "a"], means, ["b", "c"], means[0], 1.0)
    with pytest.raises(RMuseError, match="either"):
        Clusters(means, ["a", "d"], means, ["b", "c"], means[0])


def test_condition_is_casts_formula():
    data, h = people(), random(12, 24, seed=5) + 5.0
    gate = fit_condition(data.forget, data.others, layer=3, readout="last")
    c = naive.condition(data.forget.numpy(), data.others.numpy())
    assert abs(float(gate.scorer.direction.double() @ torch.as_tensor(c))) == pytest.approx(1.0, abs=1e-5)
    for above in (True, False):
        gate = Gate(Condition(7.0 * torch.as_tensor(c), above), Read(3), 0.2 if above else -0.2)
        similarity = np.array([naive.condition_score(x, c) for x in h.numpy()])
        assert np.allclose(gate.score(h).numpy(), similarity if above else -similarity, atol=1e-6)
        assert gate.fires(h).tolist() == (similarity > 0.2 if above else similarity < 0.2).tolist()
        assert ("> 0.2" if above else "< 0.2") in gate.describe()
        assert torch.allclose(gate.score(-3 * h), gate.score(h), atol=1e-6)  # neither sign nor length counts
        assert float(gate.score(torch.zeros(24))) == 0.0


@pytest.mark.parametrize("turned", [False, True])
def test_condition_fires_on_the_side_that_it_was_fitted_for(turned: bool):
    axis = torch.eye(16, dtype=torch.float64)[0]
    along, across = 6 * axis + random(30, 16), 6 * axis.roll(1) + random(40, 16, seed=1)
    forget, others = (across, along) if turned else (along, across)
    gate = fit_condition(forget, others, layer=0, readout="last").calibrate(forget, others)
    fresh = 6 * axis + random(50, 16, seed=2), 6 * axis.roll(1) + random(50, 16, seed=3)
    hit, miss = (fresh[1], fresh[0]) if turned else fresh
    # Both sides lie along c = (e₀ − e₁)/√2, one on either end: the formula cannot tell them by the sign.
    assert auroc(gate.score(hit), gate.score(miss)) < 0.75
    # Away from the origin the sign is not needed.
    shift = 6 * (axis - axis.roll(1))
    gate = fit_condition(forget + shift, others + shift, layer=0, readout="last").calibrate(
        forget + shift, others + shift
    )
    assert gate.scorer.above is not turned
    assert float(gate.fires(hit + shift).double().mean()) > 0.95
    assert float(gate.fires(miss + shift).double().mean()) < 0.05


def test_condition_of_equal_states_is_defined():
    point = torch.ones(3, 5)
    assert float(fit_condition(point, point, layer=0, readout="last").score(point[0])) == pytest.approx(1.0)
