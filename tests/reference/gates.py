"""Gates in naive NumPy and SciPy, float64: written from the formulas, normalisers included, one state at a time."""

import numpy as np
from scipy.linalg import eigh
from scipy.stats import multivariate_normal, vonmises_fisher
from sklearn.covariance import LedoitWolf

Array = np.ndarray


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x)


def center(forget: Array, others: Array) -> Array:
    """The mean of the two sides' means."""
    return (forget.mean(axis=0) + others.mean(axis=0)) / 2


def clusters(states: Array, people: list[str]) -> dict[str, Array]:
    """Person → their states."""
    return {name: np.stack([s for s, p in zip(states, people, strict=True) if p == name]) for name in people}


def concentration(groups: list[Array]) -> float:
    """κ = ρ(d − ρ²)/(1 − ρ²), ρ² the mean over states of the mean cosine to the others of their cluster."""
    cosines = []
    for group in groups:
        for i in range(len(group)):
            others = [float(group[i] @ group[j]) for j in range(len(group)) if j != i]
            cosines += [np.mean(others)] if others else []
    square = float(np.mean(cosines))
    return np.sqrt(square) * (groups[0].shape[1] - square) / (1 - square)


def vmf_score(h: Array, forget: Array, people: list[str], others: Array, other_people: list[str]) -> float:
    """Best forget log density minus best other one, von Mises–Fisher on `u(h − c)`."""
    c = center(forget, others)
    sides = [
        [np.stack([unit(s - c) for s in group]) for group in clusters(states, names).values()]
        for states, names in ((forget, people), (others, other_people))
    ]
    kappa = concentration([*sides[0], *sides[1]])
    near, far = (
        max(vonmises_fisher(unit(group.mean(axis=0)), kappa).logpdf(unit(h - c)) for group in side)
        for side in sides
    )
    return float(near - far)


def mahalanobis_score(
    h: Array, forget: Array, people: list[str], others: Array, other_people: list[str]
) -> float:
    """Best forget log density minus best other one, Gaussians with one shrunk covariance within clusters."""
    sides = [clusters(forget, people), clusters(others, other_people)]
    residuals = []
    for side in sides:
        for group in side.values():
            if len(group) > 1:
                unbiased = np.sqrt(len(group) / (len(group) - 1))
                residuals += [unbiased * (s - group.mean(axis=0)) for s in group]
    covariance = LedoitWolf(assume_centered=True).fit(np.stack(residuals)).covariance_
    near, far = (
        max(multivariate_normal(group.mean(axis=0), covariance).logpdf(h) for group in side.values())
        for side in sides
    )
    return float(near - far)


def condition(forget: Array, others: Array) -> Array:
    """First principal component of both sides about the mean of their means, each side of weight one (CAST)."""
    c = center(forget, others)
    covariance = np.zeros((len(c), len(c)))
    for side in (forget, others):
        for state in side:
            covariance += np.outer(state - c, state - c) / len(side)
    return np.linalg.eigh(covariance)[1][:, -1]


def condition_score(h: Array, c: Array) -> float:
    """sim(h, proj_c h), the projection as the matrix (c ⊗ c)/(c · c) (CAST, section 3.1)."""
    projected = (np.outer(c, c) / (c @ c)) @ h
    return float(h @ projected / (np.linalg.norm(h) * np.linalg.norm(projected)))


def identity_ratio(
    h: Array, forget: Array, people: list[str], others: Array, other_people: list[str]
) -> float:
    """Best forget log density minus the best of the others and of nobody known: PLDA with full covariances."""
    sides = [list(clusters(forget, people).values()), list(clusters(others, other_people).values())]
    groups = sides[0] + sides[1]
    residuals = [
        np.sqrt(len(g) / (len(g) - 1)) * (s - g.mean(axis=0)) for g in groups if len(g) > 1 for s in g
    ]
    W = LedoitWolf(assume_centered=True).fit(np.stack(residuals)).covariance_
    means = np.stack([group.mean(axis=0) for group in groups])
    c = means.mean(axis=0)
    C = (means - c).T @ (means - c) / len(means)
    # B = C − mean(1/n) W, without its negative part, in the metric of W.
    values, axes = eigh(C, W)
    dual = W @ axes
    B = dual @ np.diag(np.maximum(values - np.mean([1 / len(g) for g in groups]), 0.0)) @ dual.T

    def known(group: Array) -> float:
        gain = B @ np.linalg.inv(B + W / len(group))
        return multivariate_normal(c + gain @ (group.mean(axis=0) - c), W + B - gain @ B).logpdf(h)

    near, far = (max(known(group) for group in side) for side in sides)
    return float(near - max(far, multivariate_normal(c, W + B).logpdf(h)))
