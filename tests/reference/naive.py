"""R-MUSE in naive NumPy, float64, loops and all: written from the formulas, one function per equation.

It shares no code with the package and is kept slow and plain on purpose.
"""

import numpy as np

Array = np.ndarray


def angle(a: Array, b: Array) -> float:
    """∠(a, b) in radians."""
    return float(np.arccos(np.clip(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)), -1.0, 1.0)))


def zscore(delta: Array) -> Array:
    """Z of eq. 4.2: per dimension over the examples, population σ; 0 where σ = 0."""
    out = np.zeros_like(delta)
    for j in range(delta.shape[1]):
        mean = sum(delta[:, j]) / len(delta)
        sigma = np.sqrt(sum((x - mean) ** 2 for x in delta[:, j]) / len(delta))
        for i in range(len(delta)):
            out[i, j] = (delta[i, j] - mean) / sigma if sigma > 1e-9 else 0.0
    return out


def scale(delta: Array) -> Array:
    """Z without subtracting the mean (a repair of defect D1)."""
    return delta / delta.std(axis=0)


def span_hybrid(ans: Array, cot: Array, z=zscore) -> Array:
    """Δ(i) = Z(Δ_ans(i)) + Z(Δ_cot(i)) (eq. 4.2)."""
    return z(ans) + z(cot)


def energy_rank(s: Array, eta: float) -> int:
    """Smallest k with cumulative energy ≥ η."""
    total, running = sum(x**2 for x in s), 0.0
    for k, x in enumerate(s, start=1):
        running += x**2
        if running >= eta * total:
            return k
    return len(s)


def subspace(delta: Array, eta: float = 0.8, cap: int = 64) -> Array:
    """Leading right singular vectors [d, k] of the stacked differences (eqs. 4.4 and 4.6)."""
    _, s, vt = np.linalg.svd(delta, full_matrices=False)
    return vt[: min(energy_rank(s, eta), cap)].T


def projector(basis: Array) -> Array:
    """P_U = U Uᵀ."""
    return basis @ basis.T


def gate(h: Array, rrs: Array) -> float:
    """s_gate = ‖P_rrs h‖/‖h‖ (eq. 4.7)."""
    return float(np.linalg.norm(projector(rrs) @ h) / np.linalg.norm(h))


def protected_direction(h: Array, v: Array, rrs: Array) -> Array:
    """Normalised Upd = (I − P_rrs)(v vᵀ) h (eq. 4.10), with the sign of vᵀh."""
    update = (np.eye(len(h)) - projector(rrs)) @ (np.outer(v, v) @ h)
    return update / np.linalg.norm(update)


def nearest(h: Array, prototypes: Array) -> Array:
    """The prototype at the least cost arccos² from h."""
    return min(prototypes, key=lambda p: angle(h, p) ** 2)


def acs(h: Array, direction: Array, target: Array) -> float:
    """λ = min(1, θ_tar/θ_dir) (eq. 4.16)."""
    theta_dir = angle(h, direction)
    return 0.0 if theta_dir == 0 else min(1.0, angle(h, target) / theta_dir)


def slerp(x: Array, y: Array, t: float) -> Array:
    """sin((1−t)θ)/sin θ · x + sin(tθ)/sin θ · y, away from θ = 0 and π."""
    theta = angle(x, y)
    return (np.sin((1 - t) * theta) * x + np.sin(t * theta) * y) / np.sin(theta)


def update(h: Array, direction: Array, lam: float) -> Array:
    """h̃ = ‖h‖ slerp(u(h), v̂; λ) (eq. 4.18)."""
    return np.linalg.norm(h) * slerp(h / np.linalg.norm(h), direction, lam)


def update_alpha(h: Array, direction: Array, lam: float) -> Array:
    """The other note's form, r (h + αv̂)/‖h + αv̂‖ with α = ‖h‖ sin(λθ)/sin((1−λ)θ), for λ < 1."""
    theta = angle(h, direction)
    alpha = np.linalg.norm(h) * np.sin(lam * theta) / np.sin((1 - lam) * theta)
    moved = h + alpha * direction
    return np.linalg.norm(h) * moved / np.linalg.norm(moved)


def update_in_complement(h: Array, direction: Array, prototypes: Array, rrs: Array) -> Array:
    """Defect D5 repaired: P_rrs h is kept, the complement rotates on its own sphere, its norm kept."""
    outside = np.eye(len(h)) - projector(rrs)
    kept, rest = projector(rrs) @ h, outside @ h
    if np.linalg.norm(rest) == 0:
        return h.copy()
    aim = outside @ direction
    aim = aim / np.linalg.norm(aim)
    points = np.stack([outside @ p / np.linalg.norm(outside @ p) for p in prototypes])
    return kept + update(rest, aim, acs(rest, aim, nearest(rest, points)))


def frechet_mean(points: Array, weights: Array, steps: int = 2000) -> Array:
    """argmin Σ w ∠², by small fixed Riemannian steps from the normalised mean."""
    z = weights @ points
    z = z / np.linalg.norm(z)
    for _ in range(steps):
        gradient = np.zeros_like(z)
        for w, p in zip(weights / weights.sum(), points, strict=True):
            theta, rejection = angle(z, p), p - np.dot(z, p) * z
            if np.linalg.norm(rejection) > 1e-15:
                gradient += w * theta * rejection / np.linalg.norm(rejection)
        length = np.linalg.norm(0.2 * gradient)
        if length < 1e-16:
            break
        z = np.cos(length) * z + np.sin(length) * gradient / np.linalg.norm(gradient)
        z = z / np.linalg.norm(z)
    return z


def contrast(h: Array, forget: Array, others: Array, top: int = 1) -> float:
    """Mean of the top cosines to centred forget states minus that to centred other states."""
    center = (forget.mean(axis=0) + others.mean(axis=0)) / 2

    def nearness(side: Array) -> float:
        cosines = sorted((np.cos(angle(h - center, s - center)) for s in side), reverse=True)
        return float(np.mean(cosines[:top]))

    return nearness(forget) - nearness(others)


# -- along a refusal, in a frame, with falling strength --------------------------------------------------------------


def frame_of(states: Array) -> tuple[Array, Array]:
    """c and s: mean and population σ per dimension, σ at least 1 % of the median one."""
    center = np.array([sum(states[:, j]) / len(states) for j in range(states.shape[1])])
    spread = np.array(
        [np.sqrt(sum((x - center[j]) ** 2 for x in states[:, j]) / len(states)) for j in range(len(center))]
    )
    return center, np.maximum(spread, 0.01 * np.sort(spread)[(len(spread) - 1) // 2])


def follow(
    h: Array, trajectories: list[Array], keys: Array, owner: list[int], center: Array, spread: Array, f: float
) -> Array:
    """`h̃_t = h_t + f (p_{j,t} − h_t)`, j the owner of the key nearest to h_0 in the frame; one answer, [steps, d]."""
    far = [np.linalg.norm((h[0] - center) / spread - (key - center) / spread) for key in keys]
    own = trajectories[owner[int(np.argmin(far))]]
    return np.array([state + f * (own[t] - state) if t < len(own) else state for t, state in enumerate(h)])


def falling(h: Array, edited: Array, until: int, decay: float, least: float) -> Array:
    """`h_t + w_t (f(h_t) − h_t)`, `w_t = max(γ^max(0, t − until), least)`."""
    out = []
    for t, (plain, moved) in enumerate(zip(h, edited, strict=True)):
        out.append(plain + max(decay ** max(0, t - until), least) * (moved - plain))
    return np.array(out)
