"""The rival methods in naive NumPy, float64: one state at a time, full matrices, straight from the formulas.

It shares no code with the package and is kept slow and plain on purpose.
"""

import numpy as np

Array = np.ndarray


def mean(rows: Array) -> Array:
    """Average of the rows, summed one by one."""
    total = np.zeros(rows.shape[1])
    for row in rows:
        total = total + row
    return total / len(rows)


def unit(x: Array) -> Array:
    """x/‖x‖."""
    return x / np.sqrt(sum(value**2 for value in x))


def caa(h: Array, own: Array, refusal: Array, alpha: float) -> Array:
    """h + α v, v the mean of the paired differences."""
    v = mean(np.stack([r - o for o, r in zip(own, refusal, strict=True)]))
    return h + alpha * v


def ablation(h: Array, forget: Array, others: Array, alpha: float) -> Array:
    """h − α r̂ r̂ᵀ h, r the difference of the two means."""
    r = unit(mean(forget) - mean(others))
    return h - alpha * np.outer(r, r) @ h


def covariance(x: Array, y: Array) -> Array:
    """Σ_xy of rows, population form, summed one by one."""
    total = np.zeros((x.shape[1], y.shape[1]))
    for a, b in zip(x - mean(x), y - mean(y), strict=True):
        total = total + np.outer(a, b)
    return total / len(x)


def shrunk(x: Array) -> Array:
    """Σ_xx after Ledoit and Wolf (2004): b²/d² of the identity's multiple m, from the sums of their lemma 3.2 ff."""
    s, d = covariance(x, x), x.shape[1]
    m = np.trace(s) / d
    distance = np.sum((s - m * np.eye(d)) ** 2)
    noise = sum(np.sum((np.outer(row, row) - s) ** 2) for row in x - mean(x)) / len(x) ** 2
    share = min(noise, distance) / distance
    return (1 - share) * s + share * m * np.eye(d)


def root(sigma: Array) -> Array:
    """Σ^½, symmetric."""
    values, vectors = np.linalg.eigh(sigma)
    return vectors @ np.diag(np.sqrt(np.clip(values, 0, None))) @ vectors.T


def leace(h: Array, x: Array, z: Array, sigma: Array, alpha: float) -> Array:
    """h − α W⁺ P W (h − E x), W = (Σ^½)⁺, P onto the columns of W Σ_xz."""
    w = np.linalg.pinv(root(sigma), rcond=1e-7)
    crossed = w @ covariance(x, z)
    onto = crossed @ np.linalg.pinv(crossed, rcond=1e-7)
    return h - alpha * np.linalg.pinv(w, rcond=1e-7) @ onto @ w @ (h - mean(x))


def first_component(rows: Array) -> Array:
    """Eigenvector of the largest eigenvalue of Σ x xᵀ."""
    total = sum(np.outer(row, row) for row in rows)
    return np.linalg.eigh(total)[1][:, -1]


def cast_vector(own: Array, refusal: Array) -> Array:
    """First principal component of the pairs, each centred at its midpoint, as long as the mean difference along it."""
    middles = (own + refusal) / 2
    axis = first_component(np.concatenate([own - middles, refusal - middles]))
    return axis * (axis @ (mean(refusal) - mean(own)))


def cast_similarity(h: Array, forget: Array, others: Array) -> float:
    """cos(h, P_c h), c the first component of both sides, weighing the same, centred between them."""
    middle = (mean(forget) + mean(others)) / 2
    rows = [(f - middle) / np.sqrt(len(forget)) for f in forget]
    rows += [(o - middle) / np.sqrt(len(others)) for o in others]
    c = first_component(np.stack(rows))
    projected = np.outer(c, c) @ h / (c @ c)
    return float(h @ projected / (np.linalg.norm(h) * np.linalg.norm(projected)))


def angular_plane(sides: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """(b₁, b₂) from (own, refusal) of every block."""
    candidates = []
    for own, refusal in sides:
        here = unit(mean(np.stack([unit(row) for row in own])))
        there = unit(mean(np.stack([unit(row) for row in refusal])))
        candidates.append(here - there)
    alike = [np.mean([unit(a) @ unit(b) for b in candidates]) for a in candidates]
    b1 = unit(candidates[int(np.argmax(alike))])
    second = first_component(np.stack(candidates) - mean(np.stack(candidates)))
    return b1, unit(second - (second @ b1) * b1)


def angular(h: Array, b1: Array, b2: Array, degrees: float, adaptive: bool = True) -> Array:
    """h − P h + ‖P h‖ [b₁ b₂] R_θ [1 0]ᵀ, where ⟨h, b₁⟩ > 0."""
    if adaptive and h @ b1 <= 0:
        return h
    theta = np.pi * degrees / 180
    turn = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    projection = np.outer(b1, b1) + np.outer(b2, b2)
    inside = projection @ h
    return h - inside + np.linalg.norm(inside) * np.stack([b1, b2], axis=1) @ turn @ np.array([1.0, 0.0])


def spherical(h: Array, mu: Array, alpha: float, beta: float = 0.0, kappa: float = 20.0) -> Array:
    """Softmax of κ cos over μ and −μ, doubt δ = p(−μ) − p(μ), angle to μ shrunk by t = clip(α(δ − β)/(1 − β))."""
    length = np.linalg.norm(h)
    heading = h / length
    cosine = float(heading @ mu)
    weights = np.exp(kappa * np.array([cosine, -cosine]))
    near, far = weights / weights.sum()
    doubt = far - near
    if doubt <= beta:
        return h
    t = min(max(alpha * (doubt - beta) / (1 - beta), 0.0), 1.0)
    theta = np.arccos(cosine)
    aside = (heading - cosine * mu) / np.sin(theta)
    return length * (np.cos((1 - t) * theta) * mu + np.sin((1 - t) * theta) * aside)


def null_projection(retain: Array, share: float) -> Array:
    """Projection onto the directions of least energy in the rows: a share of them, or all without energy."""
    u, s, _ = np.linalg.svd(sum(np.outer(row, row) for row in retain))
    d = retain.shape[1]
    without = sum(value <= s[0] * d * np.finfo(float).eps for value in s)
    keep = max(int(without), int(np.ceil(share * d)))
    return u[:, d - keep :] @ u[:, d - keep :].T


def null_steer(
    h: Array, forget: Array, retain: Array, r: Array, lam: float, share: float, ridge: float
) -> Array:
    """h + λ Δ P h, Δ = R Hᵀ Pᵀ (P H Hᵀ Pᵀ + α P Pᵀ)⁺, every column of R equal to r, α relative to mean ‖P h‖²."""
    p, columns = null_projection(retain, share), forget.T
    alpha = ridge * np.mean([np.sum((p @ f) ** 2) for f in forget])
    targets = np.stack([r] * len(forget), axis=1)
    gram = p @ columns @ columns.T @ p.T + alpha * p @ p.T
    delta = targets @ columns.T @ p.T @ np.linalg.pinv(gram, rcond=1e-10)
    return h + lam * delta @ p @ h


def linear_act(h: Array, own: Array, refusal: Array, lam: float) -> Array:
    """(1 − λ) h_j + λ (ω_j h_j + β_j), by least squares between the sorted centred values of coordinate j."""
    out = np.zeros_like(h)
    for j in range(len(h)):
        a, b = sorted(own[:, j]), sorted(refusal[:, j])
        at, to = sum(a) / len(a), sum(b) / len(b)
        omega = sum((x - at) * (y - to) for x, y in zip(a, b, strict=True)) / sum((x - at) ** 2 for x in a)
        out[j] = (1 - lam) * h[j] + lam * (omega * h[j] + to - omega * at)
    return out
