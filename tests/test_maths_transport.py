"""Transport to prototypes: each of the three targets by the property that defines it, against POT."""

import numpy as np
import ot
import pytest
import torch

from rmuse_interp import RMuseError
from rmuse_interp.maths import transport
from rmuse_interp.maths.sphere import frechet_mean, geodesic, log_map, unit
from rmuse_interp.maths.transport import (
    barycentric_projection,
    entropic_targets,
    k_medoids,
    semi_relaxed_nearest,
    transport_cost,
)


def points(*shape: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return unit(torch.randn(*shape, generator=draw, dtype=torch.float64))


def test_cost_is_the_squared_angle():
    a, b = points(5, 4), points(3, 4, seed=1)
    cost = transport_cost(a, b)
    assert cost.shape == (5, 3)
    assert torch.allclose(cost, (a @ b.T).arccos().square())


def test_plan_has_its_marginals_and_the_least_cost():
    a, b = points(7, 5), points(4, 5, seed=1)
    w = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    result = barycentric_projection(a, b, w)
    assert torch.allclose(result.plan.sum(1), torch.full((7,), 1 / 7, dtype=torch.float64))
    assert torch.allclose(result.plan.sum(0), w / w.sum())
    expected = ot.emd2(np.full(7, 1 / 7), (w / w.sum()).numpy(), transport_cost(a, b).numpy())
    assert result.cost == pytest.approx(float(expected), abs=1e-12)


def test_projected_targets_are_frechet_means_of_their_rows():
    a, b = points(5, 6), unit(points(3, 6, seed=1) + points(6, seed=2))
    result = barycentric_projection(a, b)
    gradient = torch.stack([row @ log_map(z, b) for row, z in zip(result.plan, result.targets, strict=True)])
    assert float(gradient.norm(dim=1).max()) < 1e-9
    assert torch.allclose(result.targets.norm(dim=1), torch.ones(5, dtype=torch.float64))


def test_a_single_state_is_sent_to_the_mean_of_the_prototypes_wherever_it_is():
    b = unit(points(4, 6, seed=1) + points(6, seed=2))
    for seed in (3, 4):
        result = barycentric_projection(points(1, 6, seed=seed), b)
        assert torch.allclose(result.plan, torch.full((1, 4), 0.25, dtype=torch.float64))
        assert torch.allclose(result.targets[0], frechet_mean(b), atol=1e-8)


def test_semi_relaxed_transport_is_the_nearest_prototype():
    a, b = points(9, 5), points(4, 5, seed=1)
    cost = transport_cost(a, b)
    # POT's semi-relaxed solver without its Gromov term: rows keep their marginal, columns are free.
    plan = ot.gromov.semirelaxed_fused_gromov_wasserstein(
        cost.numpy(), np.zeros((9, 9)), np.zeros((4, 4)), np.full(9, 1 / 9), alpha=0.0
    )
    nearest = semi_relaxed_nearest(a, b)
    assert torch.equal(torch.as_tensor(plan.argmax(axis=1)), nearest)
    free = cost.gather(1, nearest.unsqueeze(1)).mean()
    assert float((torch.as_tensor(plan) * cost).sum()) == pytest.approx(float(free), abs=1e-12)
    assert barycentric_projection(a, b).cost >= float(free)  # balanced transport is bounded below by it
    assert torch.equal(semi_relaxed_nearest(17.0 * a, b), nearest)
    assert semi_relaxed_nearest(a.reshape(3, 3, 5).bfloat16(), b.float()).shape == (3, 3)


def test_entropic_plans_keep_both_marginals_and_tend_to_the_exact_one():
    a, b = points(7, 5), points(4, 5, seed=1)
    w = torch.tensor([1.0, 2.2, 0.0, 3.6], dtype=torch.float64)
    exact = barycentric_projection(a, b, w)
    costs = []
    for entropy in (1.0, 0.5, 0.1):
        blurred = barycentric_projection(a, b, w, entropy=entropy)
        assert torch.allclose(blurred.plan.sum(1), torch.full((7,), 1 / 7, dtype=torch.float64), atol=1e-8)
        assert torch.allclose(blurred.plan.sum(0), w / w.sum(), atol=1e-8)
        costs.append(blurred.cost)
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == pytest.approx(exact.cost, abs=0.1)
    assert costs[0] > exact.cost + 1e-2
    # The form of every minimiser: π = diag(u) (a μᵀ ⊙ exp(−C/ε)) diag(v), so that double ratios are those of the kernel.
    log = barycentric_projection(a, b, entropy=0.5).plan.log() + transport_cost(a, b) / 0.5
    double = log[:1, :1] - log[:1] - log[:, :1] + log
    assert float(double.abs().max()) < 1e-6


def test_relaxed_weights_lie_between_balanced_and_nearest():
    a, b = points(9, 5), points(4, 5, seed=1)
    entropy = 0.05
    balanced = barycentric_projection(a, b, entropy=entropy)
    rows = torch.full((9,), 1 / 9, dtype=torch.float64)
    for relaxation in (1e-4, 0.2, 1e4):
        plan = barycentric_projection(a, b, entropy=entropy, relaxation=relaxation).plan
        assert torch.allclose(plan.sum(1), rows, atol=1e-6)
        if relaxation == 1e4:
            assert torch.allclose(plan, balanced.plan, atol=1e-4)
        if relaxation == 1e-4:
            # Free columns: each row is the softmax of its own costs.
            free = (-transport_cost(a, b) / entropy).softmax(dim=1) / 9
            assert torch.allclose(plan, free, atol=1e-3)
            assert torch.equal(plan.argmax(dim=1), semi_relaxed_nearest(a, b))


@pytest.mark.parametrize("entropy", [0.02, 0.3, 5.0])
def test_entropic_targets_are_pots_for_a_state_alone_balanced_in_nothing_but_the_state(entropy: float):
    b = unit(points(4, 6, seed=1) + points(6, seed=2))
    states = points(3, 6, seed=5) + 2 * points(6, seed=2)
    found = entropic_targets(states, b, entropy)
    for state, target in zip(unit(states), found, strict=True):
        # ε and ρ of one state add up: this is unbalanced transport with half of either.
        plan = barycentric_projection(state[None], b, entropy=entropy / 2, relaxation=entropy / 2)
        assert torch.allclose(plan.targets[0], target, atol=1e-5)
        share = (-transport_cost(state[None], b)[0] / entropy).softmax(dim=0)
        assert torch.allclose(plan.plan[0], share, atol=1e-5)
        assert float((share @ log_map(target, b)).norm()) < 1e-9  # what defines a Fréchet mean
    assert entropic_targets(states.reshape(3, 1, 6).float(), b, entropy).shape == (3, 1, 6)


def test_entropic_targets_lie_between_the_nearest_prototype_and_the_mean_of_all():
    b = unit(points(4, 6, seed=1) + points(6, seed=2))
    states = points(8, 6, seed=5) + points(6, seed=2)
    nearest = b[semi_relaxed_nearest(states, b)]
    assert torch.allclose(entropic_targets(states, b, 1e-4), nearest, atol=1e-6)
    assert torch.allclose(entropic_targets(states, b, 1e6), frechet_mean(b).expand(8, 6), atol=1e-5)
    away = [geodesic(entropic_targets(states, b, entropy), nearest).mean() for entropy in (0.01, 0.1, 1.0)]
    assert away == sorted(away)
    opposite = torch.stack([b[0], -b[0]])
    assert bool(torch.isfinite(entropic_targets(states, opposite, 1e6)).all())


def test_prototypes_that_contradict_each_other_have_a_mean():
    """Antipodes: every point at right angles to both is one, and the same is chosen every time."""
    x = points(6)
    for y in (-x, unit(-x + 1e-9 * points(6, seed=3)), unit(-x + 1e-3 * points(6, seed=3))):
        pair = torch.stack([x, y])
        mean = frechet_mean(pair)
        assert torch.equal(mean, frechet_mean(pair))
        assert float(mean.norm()) == pytest.approx(1.0)
        assert torch.allclose(geodesic(mean, pair), torch.full((2,), torch.pi / 2).double(), atol=2e-3)
    result = barycentric_projection(points(1, 6, seed=4), torch.stack([x, -x]))
    assert bool(torch.isfinite(result.targets).all())


def test_transport_refuses_what_it_cannot_move():
    a = points(3, 4)
    with pytest.raises(RMuseError, match="prototypes"):
        barycentric_projection(a, a[:0])
    with pytest.raises(RMuseError, match="weights"):
        barycentric_projection(a, a, torch.zeros(3).double())
    for wrong in ({"entropy": -1.0}, {"relaxation": 1.0}, {"entropy": 0.1, "relaxation": 0.0}):
        with pytest.raises(RMuseError, match="entropy"):
            barycentric_projection(a, a, **wrong)


def test_k_medoids_are_distinct_members_and_deterministic():
    p = points(60, 5)
    kept = k_medoids(p, 7, seed=3)
    assert len(kept) == len(set(kept.tolist())) == 7
    assert torch.equal(kept, kept.sort().values)
    assert torch.equal(kept, k_medoids(p, 7, seed=3))
    assert torch.equal(k_medoids(p, 100), torch.arange(60))
    with pytest.raises(RMuseError, match="medoid"):
        k_medoids(p, 0)


def test_k_medoids_are_a_local_minimum_and_find_clear_clusters():
    centers = torch.eye(4, dtype=torch.float64)
    p = unit(centers.repeat_interleave(10, dim=0) + 0.05 * points(40, 4))
    kept = k_medoids(p, 4)
    assert sorted((kept // 10).tolist()) == [0, 1, 2, 3]
    for j, medoid in enumerate(kept.tolist()):
        members = p[10 * (medoid // 10) : 10 * (medoid // 10) + 10]
        own = geodesic(p[medoid], members).square().sum()
        assert all(own <= geodesic(m, members).square().sum() + 1e-9 for m in members), j


def test_k_medoids_do_not_depend_on_the_table_of_costs(monkeypatch: pytest.MonkeyPatch):
    p = points(50, 5, seed=2)
    kept = k_medoids(p, 6)
    monkeypatch.setattr(transport, "_TABLE", 10)
    assert torch.equal(k_medoids(p, 6), kept)


def test_k_medoids_return_fewer_where_fewer_points_differ():
    p = torch.eye(3).repeat(5, 1)
    kept = k_medoids(p, 6)
    assert len(kept) == 3
    assert sorted((kept % 3).tolist()) == [0, 1, 2]
