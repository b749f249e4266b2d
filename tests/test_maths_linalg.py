"""Orthonormal bases, the energy rule, principal angles, leading directions: their theorems in float64."""

import numpy as np
import pytest
import torch
from reference import naive
from sklearn.covariance import ledoit_wolf_shrinkage

from rmuse_interp import RMuseError
from rmuse_interp.maths import linalg
from rmuse_interp.maths.linalg import (
    compact_svd,
    energy_rank,
    fix_signs,
    leading_directions,
    ledoit_wolf,
    orthonormal,
    principal_angles,
    solve_shrunk,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-12) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=0, atol=atol)


def test_orthonormal_columns_span_the_same_in_order():
    A = random(9, 4)
    Q = orthonormal(A)
    assert close(Q.T @ Q, torch.eye(4))
    assert close(Q @ (Q.T @ A), A)
    for j in range(4):
        assert close(orthonormal(A[:, : j + 1]), Q[:, : j + 1])
    assert close(Q[:, 0] * A[:, 0].norm(), A[:, 0])


def test_orthonormal_leaves_out_dependent_and_zero_columns():
    A = random(9, 2)
    wide = torch.cat([torch.zeros(9, 1), A, A @ random(2, 20), 1e-9 * random(9, 3)], dim=1)
    Q = orthonormal(wide)
    assert Q.shape == (9, 2)
    assert close(Q, orthonormal(A))
    assert orthonormal(torch.zeros(9, 3)).shape == (9, 0)
    assert orthonormal(random(3, 8)).shape == (3, 3)


def test_orthonormal_survives_nearly_parallel_columns():
    first = random(50, 1)
    A = torch.cat([first, first + 1e-5 * random(50, 1, seed=1)], dim=1)
    Q = orthonormal(A)
    assert Q.shape[1] == 2
    assert close(Q.T @ Q, torch.eye(2))


@pytest.mark.parametrize("eta", [0.1, 0.5, 0.8, 0.99, 1.0])
def test_energy_rank_is_the_smallest_that_suffices(eta: float):
    s = torch.linalg.svdvals(random(12, 7))
    k = energy_rank(s, eta)
    share = s.square().cumsum(0) / s.square().sum()
    assert share[k - 1] >= eta - 1e-12
    assert k == 1 or share[k - 2] < eta
    assert k == naive.energy_rank(s.numpy(), eta - 1e-12)


def test_energy_rank_at_its_borders():
    assert energy_rank(torch.tensor([2.0, 1.0, 0.0, 0.0]), 1.0) == 2
    assert energy_rank(torch.tensor([2.0, 1.0]), 0.8) == 1  # exactly 0.8: at least, not more
    assert energy_rank(torch.zeros(3), 0.8) == 0
    for eta in (0.0, -1.0, 1.1):
        with pytest.raises(RMuseError, match="energy"):
            energy_rank(torch.ones(3), eta)


@pytest.mark.parametrize("theta", [0.0, 1e-12, 1e-8, 1e-4, 0.7, 1.5, torch.pi / 2 - 1e-9, torch.pi / 2])
def test_principal_angles_are_accurate_everywhere(theta: float):
    turn = orthonormal(random(8, 8))
    e = torch.eye(8, dtype=torch.float64)
    angle = torch.tensor(theta, dtype=torch.float64)
    A = turn @ e[:, :2]
    B = turn @ torch.stack([e[:, 0], angle.cos() * e[:, 1] + angle.sin() * e[:, 2]], dim=1)
    found = principal_angles(A, B)
    assert found[0] < 1e-14
    assert abs(float(found[1]) - theta) < 1e-14


def test_principal_angles_are_symmetric_and_know_only_spans():
    A, B = random(10, 3), random(10, 5, seed=1)
    found = principal_angles(A, B)
    assert found.shape == (3,)
    assert bool((found.diff() >= 0).all())
    assert close(found, principal_angles(B, A))
    assert close(found, principal_angles(A @ random(3, 3, seed=2), -2 * B))
    cosines = torch.linalg.svdvals(orthonormal(A).T @ orthonormal(B))
    assert close(found, cosines.arccos(), 1e-8)
    assert principal_angles(A, torch.zeros(10, 0, dtype=torch.float64)).shape == (0,)
    assert principal_angles(random(10, 3).float(), random(10, 2).float()).dtype == torch.float64


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8), (1, 5), (300, 290)])
def test_compact_svd_agrees_with_the_full_one(shape: tuple[int, int]):
    X = random(*shape)
    V, s = compact_svd(X)
    assert close(s, torch.linalg.svdvals(X), 1e-9)
    assert close(V.T @ V, torch.eye(V.shape[1]), 1e-9)
    assert close((X @ V).norm(dim=0), s, 1e-8)
    assert bool((V.gather(0, V.abs().argmax(0, keepdim=True)) > 0).all())


def test_compact_svd_falls_back_where_the_gram_matrix_is_too_coarse(monkeypatch: pytest.MonkeyPatch):
    U, V = orthonormal(random(30, 6)), orthonormal(random(40, 6, seed=1))
    s = torch.tensor([1.0, 1e-1, 1e-2, 1e-5, 1e-5, 3e-6], dtype=torch.float64)
    found_v, found_s = compact_svd(U @ torch.diag(s) @ V.T)
    assert close(found_v.T @ found_v, torch.eye(found_v.shape[1]), 1e-6)
    assert close(found_s[:3], s[:3], 1e-9)
    calls = []
    monkeypatch.setattr(linalg, "_gram_svd", lambda X: calls.append(X))
    again_v, again_s = compact_svd(U @ torch.diag(s) @ V.T)
    assert calls
    assert close(again_s, s, 1e-12)
    assert close(again_v[:, :3], found_v[:, :3], 1e-6)


def test_leading_directions_follow_energy_cap_and_reference():
    X = random(12, 30) @ torch.diag(torch.linspace(3, 0.01, 30).double())
    basis, s = leading_directions(X, 0.8, None)
    assert basis.shape[1] == energy_rank(s, 0.8)
    expected = torch.as_tensor(naive.subspace(X.numpy(), 0.8))
    assert close(naive_projector(basis), naive_projector(expected), 1e-9)
    assert leading_directions(X, 0.8, 2)[0].shape[1] == 2
    assert close(leading_directions(X, 0.8, 2)[0], basis[:, :2])
    assert leading_directions(torch.zeros(4, 6), 0.8, None)[0].shape == (6, 0)
    assert leading_directions(X.float(), 0.8, None)[0].dtype == torch.float32


def naive_projector(basis: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(naive.projector(np.asarray(basis)))


def test_signs_do_not_depend_on_the_solver():
    V = random(7, 3)
    flips = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    assert torch.equal(fix_signs(V), fix_signs(V * flips))
    assert torch.equal(fix_signs(V).abs(), V.abs())


@pytest.mark.parametrize("shape", [(10, 30), (30, 10), (500, 6), (2, 5)])
def test_shrinkage_is_sklearns(shape: tuple[int, int]):
    X = random(*shape) * torch.linspace(0.3, 2, shape[1]).double()
    X = X - X.mean(0)
    assert ledoit_wolf(X) == pytest.approx(ledoit_wolf_shrinkage(X.numpy(), assume_centered=True), abs=1e-10)
    assert ledoit_wolf(torch.zeros(shape)) == 0.0


@pytest.mark.parametrize("shape", [(10, 30), (30, 10)])
@pytest.mark.parametrize("share", [None, 0.0, 0.3, 1.0])
def test_shrunk_solve_is_the_inverse(shape: tuple[int, int], share: float | None):
    X, y = random(*shape), random(shape[1], seed=1)
    s = max(ledoit_wolf(X) if share is None else share, 1e-6)
    covariance = X.T @ X / len(X)
    shrunk = (1 - s) * covariance + s * covariance.diagonal().mean() * torch.eye(shape[1]).double()
    assert close(shrunk @ solve_shrunk(X, y, share), y, 1e-8)


def test_shrunk_solve_without_any_spread_returns_what_it_got():
    y = random(7)
    assert torch.equal(solve_shrunk(torch.zeros(3, 7).double(), y), y)
