"""The unit sphere: slerp, geodesics, log and exp maps, the Fréchet mean, at the degenerate ends too."""

import math

import numpy as np
import pytest
import torch
from reference import naive

from rmuse_interp import RMuseError
from rmuse_interp.maths.sphere import exp_map, frechet_mean, geodesic, log_map, norm, slerp, tangent, unit


def points(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return unit(torch.randn(*shape, generator=draw, dtype=torch.float64)).to(dtype)


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-12) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=0, atol=atol)


def at_angle(theta: float, d: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = points(d, seed=seed)
    w = points(d, seed=seed + 1)
    w = unit(w - (w @ x) * x)
    return x, math.cos(theta) * x + math.sin(theta) * w


ANGLES = [0.0, 1e-14, 1e-9, 1e-5, 0.3, math.pi / 2, 3.0, math.pi - 1e-5, math.pi - 1e-9, math.pi]


@pytest.mark.parametrize("theta", ANGLES)
@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp_turns_by_its_share_and_stays_on_the_sphere(theta: float, t: float):
    x, y = at_angle(theta)
    z = slerp(x, y, t)
    assert abs(float(z.norm()) - 1) < 1e-14
    assert abs(float(geodesic(x, z)) - t * theta) < 1e-12
    if t in (0.0, 1.0):
        assert close(z, x if t == 0.0 else y)


def test_slerp_is_the_papers_formula_away_from_the_ends():
    x, y = points(20, 5), points(20, 5, seed=1)
    for t in (0.1, 0.5, 0.9):
        expected = [naive.slerp(a, b, t) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
        assert close(slerp(x, y, t), torch.as_tensor(np.array(expected)))


def test_slerp_between_antipodes_takes_one_fixed_great_circle():
    x = points(4, 6)
    half = slerp(x, -x, 0.5)
    assert close((half * x).sum(-1), torch.zeros(4))
    assert close(half.norm(dim=-1), torch.ones(4))
    assert torch.equal(half, slerp(x, -x, 0.5))
    axis = torch.zeros(6).double()
    axis[int(x[0].abs().argmin())] = 1.0
    assert close(half[0], unit(axis - (axis @ x[0]) * x[0]))
    e = torch.eye(3, dtype=torch.float64)
    assert close(slerp(e[0], -e[0], 0.5), e[1])  # the first among equally distant axes, in its positive sense
    assert torch.isfinite(slerp(x.float(), -x.float(), 0.5)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_slerp_keeps_dtype_and_lengths(dtype: torch.dtype):
    x, y = points(50, 64, dtype=dtype), points(50, 64, seed=1, dtype=dtype)
    z = slerp(x, y, 0.3)
    assert z.dtype == dtype
    eps = {torch.float64: 1e-14, torch.float32: 5e-7}.get(dtype, 2e-2)
    assert float((z.double().norm(dim=-1) - 1).abs().max()) < eps
    exact = slerp(x.double(), y.double(), 0.3)
    assert close(z, exact, 1e-2 if eps > 1e-3 else 1e-6)


def test_slerp_composes_along_one_great_circle():
    x, y = points(7, 9), points(7, 9, seed=1)
    assert close(slerp(slerp(x, y, 0.5), y, 0.5), slerp(x, y, 0.75))
    assert close(slerp(x, y, 0.3), slerp(y, x, 0.7))


def test_slerp_broadcasts_points_and_shares():
    x, y, t = points(3, 4, 8), points(8, seed=1), torch.rand(3, 4, dtype=torch.float64)
    z = slerp(x, y, t)
    assert z.shape == x.shape
    assert close(z[1, 2], slerp(x[1, 2], y, float(t[1, 2])))
    assert close(slerp(x, y, t.unsqueeze(-1)), z)
    assert close(slerp(y, x, 1), x)


def test_geodesic_is_exact_where_arccos_is_not():
    for theta in ANGLES:
        x, y = at_angle(theta)
        assert abs(float(geodesic(x, y)) - theta) < 2e-15 + 1e-14 * (theta < 1e-6)
    x, y = points(30, 5), points(30, 5, seed=1)
    assert close(geodesic(x, y), (x * y).sum(-1).arccos())
    assert geodesic(x.bfloat16(), y.bfloat16()).dtype == torch.float32
    assert float(geodesic(torch.zeros(5), points(5).float())) == pytest.approx(math.pi / 2)


@pytest.mark.parametrize("theta", ANGLES)
def test_log_and_exp_undo_each_other(theta: float):
    x, y = at_angle(theta)
    v = log_map(x, y)
    assert abs(float(v.norm()) - theta) < 1e-12
    assert abs(float(v @ x)) < 1e-12
    assert close(exp_map(x, v), y)
    assert close(exp_map(x, torch.zeros_like(x)), x)


def test_tangent_is_unit_orthogonal_or_zero():
    x, y = points(9, 5), points(9, 5, seed=1)
    w = tangent(x, y)
    assert close((w * x).sum(-1), torch.zeros(9))
    assert close(w.norm(dim=-1), torch.ones(9))
    assert torch.equal(tangent(x, x), torch.zeros_like(x))


def test_unit_and_norm_know_zero_tiny_and_huge():
    h = torch.tensor([[0.0, 0.0], [3e-38, 4e-38], [3e38, 1e38], [3.0, 4.0]])
    assert torch.equal(unit(h)[0], torch.zeros(2))
    assert close(unit(h)[1:].norm(dim=-1), torch.ones(3), 1e-6)
    assert torch.isfinite(norm(h)).all()
    assert close(norm(h)[3], torch.tensor([5.0]))
    assert unit(torch.tensor([1e-7, 0.0], dtype=torch.float16)).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("seed", range(5))
def test_frechet_mean_is_first_order_optimal_and_the_reference_agrees(seed: int):
    p = unit(points(12, 6, seed=seed) + 1.5 * points(6, seed=seed + 9))
    w = torch.rand(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = frechet_mean(p, w)
    assert float((w @ log_map(z, p)).norm()) < 1e-9
    assert close(z, torch.as_tensor(naive.frechet_mean(p.numpy(), w.numpy())), 1e-7)
    assert not close(z, unit(w @ p), 1e-4)  # not the normalised Euclidean mean
    assert close(frechet_mean(p, 5 * w), z, 1e-9)


def test_frechet_mean_at_its_borders():
    p = points(4, 5)
    assert close(frechet_mean(p[:1]), p[0])
    assert close(frechet_mean(p, torch.tensor([0.0, 1.0, 0.0, 0.0]).double()), p[1])
    pair = torch.stack([p[0], -p[0]])
    z = frechet_mean(pair)  # a whole sphere of minima: any unit vector of least cost will do
    assert abs(float(z.norm()) - 1) < 1e-12
    assert float(geodesic(z, pair).square().sum()) <= math.pi**2 + 1e-9
    with pytest.raises(RMuseError, match="weights"):
        frechet_mean(p, torch.zeros(4).double())
    with pytest.raises(RMuseError, match="points"):
        frechet_mean(p[:0])
