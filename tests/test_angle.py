"""How far to rotate: ACS by its theorems and against the reference, and a fixed fraction."""

import numpy as np
import pytest
import torch
from reference import naive

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.maths.sphere import frechet_mean, geodesic, norm, slerp, unit
from rmuse_interp.maths.transport import barycentric_projection, entropic_targets, semi_relaxed_nearest
from rmuse_interp.parts.angle import ACS, FixedFraction
from rmuse_interp.parts.part import from_record, to_record
from rmuse_interp.parts.prototypes import Prototypes
from rmuse_interp.parts.subspace import Subspace


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stored(points: torch.Tensor) -> torch.Tensor:
    """What a part keeps of float64 points."""
    return points.float().double()


@pytest.mark.parametrize("target", ["nearest", "frechet"])
def test_acs_agrees_with_the_reference(target: str):
    p, v, h = stored(unit(random(5, 7) + 1.0)), unit(random(7, seed=1)), 9 * random(30, 7, seed=2)
    found = ACS(Prototypes(p), target=target).angles(h, v)
    mean = frechet_mean(p).numpy()
    for i, state in enumerate(h.numpy()):
        aim = naive.nearest(state, p.numpy()) if target == "nearest" else mean
        assert float(found.theta_tar[i]) == pytest.approx(naive.angle(state, aim), abs=1e-6)
        assert float(found.theta_dir[i]) == pytest.approx(naive.angle(state, v.numpy()), abs=1e-9)
        assert float(found.fraction[i]) == pytest.approx(naive.acs(state, v.numpy(), aim), abs=1e-6)
        share = float(found.fraction[i])
        moved = naive.update(state, v.numpy(), share)
        mine = norm(h[i]) * slerp(unit(h[i]), v, share)
        assert np.allclose(mine.numpy(), moved, atol=1e-8)
        if share < 1:
            assert np.allclose(naive.update_alpha(state, v.numpy(), share), moved, atol=1e-8)


def test_the_rotation_is_the_lesser_angle_and_keeps_the_norm():
    p, v, h = unit(random(5, 7)), unit(random(7, seed=1)), 9 * random(200, 7, seed=2)
    found = ACS(Prototypes(p)).angles(h, v)
    moved = norm(h) * slerp(unit(h), v, found.fraction)
    turned = geodesic(unit(h), unit(moved))
    lesser = torch.minimum(found.theta_tar, found.theta_dir)
    assert torch.allclose(turned, lesser, atol=1e-12)
    assert torch.allclose(found.fraction * found.theta_dir, lesser, atol=1e-12)
    assert torch.allclose(norm(moved), norm(h))
    assert bool((found.fraction <= 1).all())
    assert bool((found.fraction < 1).any())
    assert bool((found.fraction == 1).any())


def test_lambda_is_zero_where_there_is_nothing_to_turn():
    p, v = unit(random(5, 7)), unit(random(7, seed=1))
    acs = ACS(Prototypes(p))
    h = torch.stack([3 * v, torch.zeros(7).double(), -3 * v])
    fraction = acs.fraction(h, v)
    assert fraction[:2].tolist() == [0.0, 0.0]
    assert 0 < float(fraction[2]) <= 1
    at_target = stored(p[0]).unsqueeze(0)
    assert float(acs.fraction(at_target, v)) < 1e-6  # θ_tar = 0


def test_acs_takes_one_direction_per_token_and_any_leading_axes():
    acs, h, v = ACS(Prototypes(unit(random(5, 7)))), random(2, 3, 7, seed=1), random(2, 3, 7, seed=2)
    each = acs.fraction(h, v)
    assert each.shape == (2, 3)
    assert float(each[1, 2]) == pytest.approx(float(acs.fraction(h[1, 2], v[1, 2])))
    assert acs.fraction(h.bfloat16(), v.bfloat16()).dtype == torch.float32
    assert torch.allclose(acs.fraction(h.bfloat16(), v).double(), each, atol=0.02)
    assert torch.allclose(acs.fraction(5 * h, v), each)


@pytest.mark.parametrize("target", ["nearest", "frechet"])
def test_acs_outside_a_subspace_is_acs_on_the_complements_sphere(target: str):
    p, rrs = stored(unit(random(5, 9) + 0.5)), Subspace.span(random(9, 3, seed=1))
    h, v = 4 * random(9, seed=2), unit(random(9, seed=3))
    acs = ACS(Prototypes(p), target=target).outside(rrs)
    rest, aim = rrs.remove(h), unit(rrs.remove(v))
    moved = rrs.project(h) + norm(rest) * slerp(unit(rest), aim, acs.fraction(rest, aim))
    basis = rrs.basis.double().numpy()
    if target == "nearest":
        expected = naive.update_in_complement(h.numpy(), v.numpy(), p.numpy(), basis)
        assert np.allclose(moved.numpy(), expected, atol=1e-5)
    assert torch.allclose(rrs.project(moved), rrs.project(h), rtol=1e-6, atol=1e-6)
    found = acs.angles(rest, aim)
    assert float(rrs.project(found.target).norm()) < 1e-6
    fixed = FixedFraction(0.5)
    assert fixed.outside(rrs) is fixed


def test_fixed_fraction():
    assert FixedFraction(0.25).fraction(random(2, 3), random(3)).tolist() == [0.25, 0.25]
    for value in (-0.1, 1.1):
        with pytest.raises(RMuseError, match="fraction"):
            FixedFraction(value)
    assert "0.25" in FixedFraction(0.25).describe()
    assert "nearest" in ACS(Prototypes(torch.eye(3))).describe()


def test_an_entropic_target_is_chosen_by_its_entropy():
    p, h, v = Prototypes(unit(random(5, 7) + 1.0)), random(30, 7, seed=2), unit(random(7, seed=1))
    acs = ACS(p, target="entropic", entropy=0.2)
    found = acs.angles(h, v)
    assert torch.allclose(found.target, entropic_targets(h, p.points, 0.2))
    assert torch.allclose(found.theta_tar, geodesic(unit(h), found.target))
    assert found.nearest is None
    assert "ε = 0.2" in acs.describe()
    rrs = Subspace.span(random(7, 2, seed=4))
    inside = acs.outside(rrs)
    assert inside.entropy == 0.2
    assert float(rrs.project(inside.angles(rrs.remove(h), v).target).norm()) < 1e-5
    tree, tensors = to_record(acs)
    assert torch.equal(from_record(tree, tensors).fraction(h, v), acs.fraction(h, v))
    for wrong in ({"target": "entropic"}, {"entropy": 0.1}, {"target": "entropic", "entropy": 0.0}):
        with pytest.raises(RMuseError, match="entropy > 0"):
            ACS(p, **wrong)


@pytest.mark.parametrize("settings", [{}, {"entropy": 0.1}, {"entropy": 0.1, "relaxation": 0.5}])
def test_targets_of_a_plan_of_many_states_are_prototypes_to_steer_to(settings):
    p, states = Prototypes(unit(random(4, 7) + 1.0)), 3 * random(9, 7, seed=2)
    found = p.transported(states, **settings)
    plan = barycentric_projection(unit(states), p.points, **settings)
    assert torch.allclose(found.points.double(), plan.targets.double(), atol=1e-6)
    moved = op.Transport(found.points)(states)
    assert torch.allclose(
        unit(moved), found.points[semi_relaxed_nearest(states, found.points)].double(), atol=1e-5
    )
    with pytest.raises(RMuseError, match="nonzero states"):
        p.transported(0 * states)
