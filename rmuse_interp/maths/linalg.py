"""Orthonormal bases, choosing a rank by energy, principal angles, leading directions, shrunk covariances."""

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError


def working(h: Tensor) -> Tensor:
    """Convert `h` to the precision of the geometry: float64 stays, anything else becomes float32."""
    return h if h.dtype == torch.float64 else h.to(torch.float32)


def fix_signs(basis: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
    """Flip columns so that the coordinate of largest magnitude in each is positive.

    Among equal magnitudes the first coordinate decides. A zero column stays zero.

    Examples:
        >>> fix_signs(torch.tensor([[0.6], [-0.8]])).squeeze(1).tolist() == torch.tensor([-0.6, 0.8]).tolist()
        True
    """
    if basis.shape[0] == 0 or basis.shape[1] == 0:
        return basis
    top = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    return torch.where(top < 0, -basis, basis)


def orthonormal(
    vectors: Float[Tensor, "d n"], *, tol: float = 1e-6, scale: float | None = None
) -> Float[Tensor, "d k"]:
    """Orthonormal columns with the span of `vectors`, built from left to right.

    Gram–Schmidt, applied twice, in float64: the first column keeps its direction and sign, and linearly dependent
    columns are dropped. (A QR factorisation would put arbitrary columns in their place.)

    Args:
        vectors: [d, n] columns of any rank; zero columns are allowed.
        tol: a column is dependent when its remainder is no longer than `tol` times `scale`.
        scale: reference length; by default the length of the longest column.

    Returns:
        [d, k] with k ≤ min(d, n), in the dtype of `vectors`; k = 0 for zero input.

    Examples:
        >>> orthonormal(torch.tensor([[2.0, 4.0, 1.0], [0.0, 0.0, 3.0]])).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    exact = vectors.to(torch.float64)
    lengths = exact.norm(dim=0)
    reach = scale if scale is not None else (float(lengths.max()) if lengths.numel() else 0.0)
    basis = exact.new_zeros(exact.shape[0], 0)
    for column in exact.unbind(dim=1):
        if basis.shape[1] == exact.shape[0]:
            break
        rest = column - basis @ (basis.T @ column)
        rest = rest - basis @ (basis.T @ rest)
        length = rest.norm()
        if length > tol * reach:  # not >=, or zero columns would enter as NaN
            rest = rest / length
            rest = rest - basis @ (basis.T @ rest)
            basis = torch.cat([basis, (rest / rest.norm()).unsqueeze(1)], dim=1)
    return basis.to(vectors.dtype)


def energy_rank(s: Float[Tensor, " n"], eta: float | int) -> int:
    """The smallest k with `sum(s[:k]²) ≥ eta · sum(s²)`, s in descending order (eqs. 4.4 and 4.6).

    Args:
        s: singular values, descending.
        eta: share of the energy to keep, in (0, 1].

    Returns:
        k ≥ 1, or 0 where all singular values are zero.

    Raises:
        RMuseError: eta outside (0, 1].

    Examples:
        >>> energy_rank(torch.tensor([3.0, 1.0, 1.0]), 0.8)
        1
        >>> energy_rank(torch.tensor([1.0, 1.0, 1.0]), 0.8)
        3
    """
    if not 0.0 < eta <= 1.0:
        raise RMuseError(f"the energy to keep must lie in (0, 1], got {eta}; the paper's value is 0.8")
    energy = s.to(torch.float64).square().cumsum(dim=0)
    if energy.numel() == 0 or not bool(energy[-1] > 0):
        return 0
    # The slack forgives the rounding of the sum, so that eta = 1 keeps no trailing zeros.
    enough = energy >= eta * energy[-1] * (1 - 1e-12)
    return int(enough.to(torch.int64).argmax()) + 1


def principal_angles(A: Float[Tensor, "d k"], B: Float[Tensor, "d j"]) -> Float[Tensor, " m"]:
    """The min(rank A, rank B) principal angles between the column spans of A and B, in radians, ascending.

    Small angles come from sines and large ones from cosines (Björck and Golub 1973; Knyazev and Argentati
    2002): arccos alone loses half of the digits near 0. The columns need not be orthonormal.

    Returns:
        float64 angles in [0, π/2]; an empty tensor if one of the spans is {0}.

    Examples:
        >>> eye = torch.eye(3, dtype=torch.float64)
        >>> principal_angles(eye[:, :2], eye[:, 1:]).tolist() == [0.0, torch.pi / 2]
        True
    """
    first, second = orthonormal(A.to(torch.float64)), orthonormal(B.to(torch.float64))
    if first.shape[1] < second.shape[1]:
        first, second = second, first  # the residual below has as many columns as there are angles
    _, cosines, right = torch.linalg.svd(first.T @ second, full_matrices=False)
    turned = second @ right.mT  # principal vectors of the smaller span
    residual = turned - first @ (first.T @ turned)
    sines = residual.norm(dim=0)
    by_cosine = cosines.clamp(0.0, 1.0).arccos()
    by_sine = sines.clamp(0.0, 1.0).arcsin()
    return torch.where(cosines.square() < 0.5, by_cosine, by_sine).sort().values


def compact_svd(X: Float[Tensor, "examples d"]) -> tuple[Float[Tensor, "d k"], Float[Tensor, " k"]]:
    """Right singular vectors of X (columns, by descending singular value) and its nonzero singular values.

    If one side of X is small (≤ 256), eigenvectors of the float64 Gram matrix are used, which is much faster
    than a full SVD. A Gram matrix squares the condition number, so the result is checked: if X does not map
    the vectors to their singular values within 1e-6, the full SVD in float64 is used instead.

    Returns:
        float64 `(V [d, k], s [k])`, signs fixed by `fix_signs`.
    """
    exact = X.to(torch.float64)
    rows, width = exact.shape
    if rows == 0 or width == 0:
        return exact.new_zeros(width, 0), exact.new_zeros(0)
    found = _gram_svd(exact) if min(rows, width) <= 256 else None
    vectors, s = _full_svd(exact) if found is None else found
    return fix_signs(vectors), s


def _full_svd(X: Tensor) -> tuple[Tensor, Tensor]:
    _, s, right = torch.linalg.svd(X, full_matrices=False)
    keep = s > s[0] * max(X.shape) * torch.finfo(X.dtype).eps
    return right[keep].mT.contiguous(), s[keep]


def _gram_svd(X: Tensor) -> tuple[Tensor, Tensor] | None:
    wide = X.shape[0] < X.shape[1]
    values, vectors = torch.linalg.eigh(X @ X.mT if wide else X.mT @ X)
    s = values.flip(0).clamp_min(0.0).sqrt()
    vectors = vectors.flip(1)
    # A Gram matrix knows squared singular values to eps: below sqrt(eps) they are noise.
    keep = s > s[0] * 1e-6
    s, vectors = s[keep], vectors[:, keep]
    right = X.mT @ vectors / s if wide else vectors
    spread = right.mT @ right - torch.eye(right.shape[1], dtype=X.dtype, device=X.device)
    image = (X @ right).norm(dim=0)
    accurate = (
        bool(spread.abs().max() < 1e-6) and bool(((image - s).abs() <= 1e-6 * s[0]).all()) if len(s) else True
    )
    return (right, s) if accurate else None


def leading_directions(
    X: Float[Tensor, "examples d"], eta: float | int, cap: int | None
) -> tuple[Float[Tensor, "d k"], Float[Tensor, " r"]]:
    """Leading right singular vectors of X holding a share `eta` of its energy, at most `cap` (eqs. 4.4, 4.6).

    X is not centred: the mean of the differences is what the method looks for.

    Args:
        X: one difference per row.
        eta: share of the energy, in (0, 1].
        cap: maximum number of directions; None for no limit.

    Returns:
        `(basis [d, k], s [r])`: orthonormal columns with deterministic signs, and all r ≥ k nonzero
        singular values, descending; in the dtype of X. k = 0 where X is zero.
    """
    vectors, s = compact_svd(X)
    rank = energy_rank(s, eta) if cap is None else min(energy_rank(s, eta), cap)
    return vectors[:, :rank].to(X.dtype), s.to(X.dtype)


def ledoit_wolf(X: Float[Tensor, "n d"]) -> float:
    """Shrinkage weight that minimises the expected error of a shrunk covariance (Ledoit and Wolf 2004).

    X has centred rows. Computed from the [n, n] Gram matrix, so no [d, d] matrix is formed.

    Returns:
        The weight of the identity, in [0, 1]: 1 if the rows determine no more than the mean variance, 0 if X is zero.
    """
    exact = X.to(torch.float64)
    n, d = exact.shape
    gram = exact @ exact.mT
    trace = gram.diagonal().sum() / n
    square = gram.square().sum() / n**2  # ‖S‖² of the empirical covariance S
    noise = (gram.diagonal().square().sum() / n - square) / n
    distance = square - trace.square() / d
    if not bool(distance > 0):
        return 1.0 if bool(trace > 0) else 0.0
    return float((noise / distance).clamp(0.0, 1.0))


def solve_shrunk(
    X: Float[Tensor, "n d"], y: Float[Tensor, " d"], share: float | None = None
) -> Float[Tensor, " d"]:
    """Solve with a shrunk covariance: `((1 − s) XᵀX/n + s μ I)⁻¹ y`, μ the mean variance.

    Solved in the smaller of n and d (Woodbury's identity). If X is zero up to rounding, the covariance is
    unknown and y itself is returned. A share below 1e-6 is raised to 1e-6.

    Args:
        X: [n, d] centred rows.
        y: [d] right-hand side.
        share: s in [0, 1]; `ledoit_wolf(X)` by default.
    """
    exact, right = X.to(torch.float64), y.to(torch.float64)
    n, d = exact.shape
    variance = exact.square().sum() / (n * d)
    if not bool(variance > 1e-20 * right.square().mean()):
        return y.clone()
    s = max(ledoit_wolf(exact) if share is None else share, 1e-6)
    ridge, weight = s * variance, (1 - s) / n
    if n >= d:
        identity = torch.eye(d, dtype=exact.dtype, device=exact.device)
        solved = torch.linalg.solve(weight * (exact.mT @ exact) + ridge * identity, right)
    else:
        inner = weight * (exact @ exact.mT) + ridge * torch.eye(n, dtype=exact.dtype, device=exact.device)
        solved = (right - exact.mT @ (weight * torch.linalg.solve(inner, exact @ right))) / ridge
    return solved.to(y.dtype)
