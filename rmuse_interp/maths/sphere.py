"""The unit sphere in the residual stream: normalising, geodesics, slerp, log and exp maps, the Fréchet mean.

Every function works in float32 (float64 for float64 input) and along the last axis. Points come back in the
dtype of the first argument; angles, in radians, in the precision of the geometry.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import working

_SLACK: Final = 8.0
"""Length, in machine epsilons, below which the tangent between two points is only rounding error."""


def norm(x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n 1"]:
    """`‖x‖` along the last axis, which is kept; does not overflow or underflow unless x itself does."""
    exact = working(x)
    largest = exact.abs().amax(dim=-1, keepdim=True)
    safe = torch.where(largest > 0, largest, torch.ones_like(largest))
    return (exact / safe).norm(dim=-1, keepdim=True) * largest


def unit(x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """`u(x) = x/‖x‖`; the zero vector stays zero.

    Examples:
        >>> unit(torch.tensor([[0.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    exact = working(x)
    largest = exact.abs().amax(dim=-1, keepdim=True)
    scaled = exact / torch.where(largest > 0, largest, torch.ones_like(largest))
    length = scaled.norm(dim=-1, keepdim=True)
    return (scaled / torch.where(length > 0, length, torch.ones_like(length))).to(x.dtype)


def geodesic(x: Float[Tensor, "*#n d"], y: Float[Tensor, "*#n d"]) -> Float[Tensor, "*n"]:
    """`θ = ∠(x, y) = 2 atan2(‖x − y‖, ‖x + y‖)` in radians, in [0, π], for unit vectors.

    Equal to arccos⟨x, y⟩, but accurate near 0 and π, where arccos loses half of the digits. The zero vector,
    which is not on the sphere, is at π/2 from every point.

    Examples:
        >>> x = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> geodesic(x, -x).item() == torch.pi, geodesic(x, x).item()
        (True, 0.0)
    """
    first, second = _pair(x, y)
    return 2.0 * torch.atan2((first - second).norm(dim=-1), (first + second).norm(dim=-1))


def tangent(x: Float[Tensor, "*#n d"], y: Float[Tensor, "*#n d"]) -> Float[Tensor, "*n d"]:
    """Unit tangent w at x of the great circle through x and y: `y = cos(θ) x + sin(θ) w`.

    If y = −x, every great circle through x qualifies; the one used leads to the positive end of the coordinate
    axis farthest from x (the first such axis). If y = x, the tangent is 0.
    """
    first, second = _pair(x, y)
    dot = (first * second).sum(dim=-1, keepdim=True)
    rejection = second - dot * first
    length = rejection.norm(dim=-1, keepdim=True)
    noise = length <= _SLACK * torch.finfo(first.dtype).eps
    axis = torch.zeros_like(first).scatter(-1, first.abs().argmin(dim=-1, keepdim=True), 1.0)
    chosen = axis - (axis * first).sum(dim=-1, keepdim=True) * first
    w = unit(
        torch.where(noise & (dot < 0), chosen, torch.where(noise, torch.zeros_like(rejection), rejection))
    )
    # Near 0 and π the rejection is as short as its rounding error: make it orthogonal and unit once more.
    return unit(w - (w * first).sum(dim=-1, keepdim=True) * first)


def slerp(
    x: Float[Tensor, "*#n d"], y: Float[Tensor, "*#n d"], t: float | int | Float[Tensor, "..."]
) -> Float[Tensor, "... d"]:
    """`slerp(x, y; t) = sin((1−t)θ)/sin θ · x + sin(tθ)/sin θ · y` (eq. 4.18).

    The point at fraction t of the way from x to y along their great circle. Computed as `cos(tθ) x +
    sin(tθ) w` with the tangent w: the same where sin θ ≠ 0, and also defined at θ = 0 (the result is x)
    and θ = π (a fixed great circle, see `tangent`). The result is a unit vector.

    Args:
        x: [..., d] vectors; they are normalised, so their lengths are lost.
        y: [..., d] unit vectors, broadcast against x.
        t: fraction; a number, or one per vector (shape of x without the last axis, or with a last axis of 1).

    Returns:
        Unit vectors in the dtype of x.

    Examples:
        >>> x, y = torch.eye(2, dtype=torch.float64)
        >>> slerp(x, y, 1 / 3).allclose(torch.tensor([3**0.5 / 2, 0.5], dtype=torch.float64))
        True
    """
    first, second = _pair(unit(working(x)), unit(working(y)))
    share = torch.as_tensor(t, dtype=first.dtype, device=first.device)
    if share.ndim and not (share.ndim == first.ndim and share.shape[-1] == 1):
        share = share.unsqueeze(-1)
    angle = share * geodesic(first, second).unsqueeze(-1)
    return (angle.cos() * first + angle.sin() * tangent(first, second)).to(x.dtype)


def log_map(x: Float[Tensor, "*#n d"], y: Float[Tensor, "*#n d"]) -> Float[Tensor, "*n d"]:
    """`log_x(y) = θ w`: the tangent vector at x that leads to y, of length θ = ∠(x, y) radians.

    Examples:
        >>> x, y = torch.eye(2, dtype=torch.float64)
        >>> exp_map(x, log_map(x, y)).allclose(y)
        True
    """
    first, second = _pair(x, y)
    return (geodesic(first, second).unsqueeze(-1) * tangent(first, second)).to(x.dtype)


def exp_map(x: Float[Tensor, "*#n d"], v: Float[Tensor, "*#n d"]) -> Float[Tensor, "*n d"]:
    """`exp_x(v) = cos‖v‖ x + sin‖v‖ v/‖v‖`: the point reached from x along the tangent vector v (radians)."""
    point, step = _pair(x, v)
    length = norm(step)
    return (length.cos() * point + length.sin() * unit(step)).to(x.dtype)


def frechet_mean(
    points: Float[Tensor, "n d"],
    weights: Float[Tensor, " n"] | None = None,
    *,
    tol: float = 1e-10,
    max_steps: int = 200,
) -> Float[Tensor, " d"]:
    """Fréchet mean on the sphere, `argmin_z Σ w_i ∠(z, p_i)²`: the barycentre under the cost of eq. 4.16.

    Defining property: `Σ w_i log_z(p_i) = 0` (first-order optimality). Found in float64 by Riemannian
    gradient descent with step halving, from the normalised Euclidean mean and from the best of the points.
    Unique where the points lie within a ball of radius π/2; elsewhere the better of the two minima is
    returned. It is not the normalised Euclidean mean, which minimises the chordal cost.

    Args:
        points: [n, d] unit vectors.
        weights: [n] nonnegative weights, not all zero, of any sum; equal by default.
        tol: stop when the mean gradient is shorter than this, in radians.
        max_steps: maximum number of gradient steps from each start.

    Raises:
        RMuseError: no points, or weights that are negative or all zero.

    Examples:
        >>> x, y = torch.eye(2, dtype=torch.float64)
        >>> frechet_mean(torch.stack([x, y])).allclose(slerp(x, y, 0.5))
        True
    """
    exact = unit(points.to(torch.float64))
    share = torch.ones_like(exact[:, 0]) if weights is None else weights.to(exact)
    if not len(exact) or bool((share < 0).any()) or not bool(share.sum() > 0):
        raise RMuseError(
            "a Fréchet mean needs points with nonnegative weights, not all zero: got "
            f"{len(exact)} points of total weight {float(share.sum()):.3g}"
        )
    share = share / share.sum()
    costs = torch.stack([_spread(point, exact, share) for point in exact[:64]])
    starts = [unit(share @ exact), exact[costs.argmin()]]
    found = [_descend(start, exact, share, tol, max_steps) for start in starts if bool(start.norm() > 0.5)]
    return min(found, key=lambda z: float(_spread(z, exact, share))).to(points.dtype)


def _descend(z: Tensor, points: Tensor, share: Tensor, tol: float, max_steps: int) -> Tensor:
    cost, gradient = _spread(z, points, share), share @ log_map(z, points)
    for _ in range(max_steps):
        step = 1.0
        while gradient.norm() > tol and step > 1e-6:
            candidate = unit(exp_map(z, step * gradient))
            new_cost, new_gradient = _spread(candidate, points, share), share @ log_map(candidate, points)
            # Within rounding the cost is already flat where the gradient is still 1e-8; use the gradient there.
            flat = (new_cost - cost).abs() <= 1e-13
            if bool(new_gradient.norm() < gradient.norm()) if bool(flat) else bool(new_cost < cost):
                break
            step /= 2
        else:
            break  # arrived, or no descent left
        z, cost, gradient = candidate, new_cost, new_gradient
    return z


def _spread(z: Tensor, points: Tensor, share: Tensor) -> Tensor:
    return share @ geodesic(z, points).square()


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    first, second = working(x), working(y)
    kind = torch.promote_types(first.dtype, second.dtype)
    first, second = torch.broadcast_tensors(first.to(kind), second.to(kind))
    return first, second
