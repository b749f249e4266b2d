"""Optimal transport from states to refusal prototypes, with the squared geodesic cost of eq. 4.16.

The paper's notes call several things "the target"; they are kept apart here:

* `frechet_mean` (in `sphere`): the target of a *single* state under balanced transport, whose plan is
trivially μ;
* `semi_relaxed_nearest`: the target if only the states' marginal is kept, that is, the nearest prototype;
`entropic_targets`: the same, smoothed by an entropy term;
* `barycentric_projection`: the targets of a *batch* of states under balanced, entropic or semi-relaxed transport.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.sphere import frechet_mean, geodesic, unit

_STEPS: Final = 200
"""Maximum number of gradient steps towards a Fréchet mean in `entropic_targets`."""
_TABLE: Final = 4096
"""Maximum number of points whose pairwise costs k-medoids keeps in memory (128 MiB)."""


@dataclass(frozen=True, eq=False)
class Transport:
    """A transport plan and the targets it assigns.

    Attributes:
        plan: [n, prototypes] mass moved from each state to each prototype. Rows sum to 1/n. Columns sum to the
            prototypes' weights, unless these were relaxed.
        targets: [n, d] unit vectors: the Fréchet mean of the prototypes under each state's row of the plan.
        cost: `Σ plan · ∠²`, in radians².
    """

    plan: Float[Tensor, "n prototypes"]
    targets: Float[Tensor, "n d"]
    cost: float


def transport_cost(
    states: Float[Tensor, "n d"], prototypes: Float[Tensor, "prototypes d"]
) -> Float[Tensor, "n prototypes"]:
    """`c(a, b) = ∠(a, b)²` of eq. 4.16, for unit vectors, in radians²."""
    return torch.stack([geodesic(point, states) for point in prototypes], dim=1).square()


def semi_relaxed_nearest(
    states: Float[Tensor, "*n d"], prototypes: Float[Tensor, "prototypes d"]
) -> Int[Tensor, "*n"]:
    """Index of each state's nearest prototype: optimal transport that constrains only the states' marginal.

    Without a target marginal the problem separates into one per state, solved by the smallest cost, so POT is
    not called; ties go to the first prototype. The states' lengths do not matter.

    Examples:
        >>> semi_relaxed_nearest(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.eye(2)).tolist()
        [0, 1]
    """
    # The largest inner product belongs to the smallest angle, whatever the state's length.
    return (states.to(prototypes.dtype) @ prototypes.mT).argmax(dim=-1)


def entropic_targets(
    states: Float[Tensor, "*n d"], prototypes: Float[Tensor, "prototypes d"], entropy: float
) -> Float[Tensor, "*n d"]:
    """Fréchet mean of the prototypes for each state a, with weights `π_j ∝ exp(−∠(a, p_j)²/ε)`.

    This is entropic transport that constrains only the states' marginal and so separates into one problem per state.
    A single state under unbalanced transport (`barycentric_projection` with relaxation ρ) has the same form with ε + ρ
    in place of ε; both are POT's solution in closed form. As ε → 0 the target becomes the nearest prototype (the mean
    of several equally near); as ε → ∞, the mean of all. Computed in float64, in the coordinates of the prototypes.

    Args:
        states: [..., d] nonzero vectors.
        prototypes: [prototypes, d] unit vectors.
        entropy: ε > 0, in radians².

    Examples:
        >>> x, y = torch.eye(2, dtype=torch.float64)
        >>> entropic_targets(unit(x + y), torch.stack([x, y]), 0.1).allclose(unit(x + y))
        True
    """
    support = prototypes.to(torch.float64)
    gram = support @ support.mT
    cosines = (unit(states.to(torch.float64)) @ support.mT).clamp(-1.0, 1.0)
    share = (-cosines.arccos().square() / entropy).softmax(dim=-1)
    # z = Σ c_j p_j. The cost is 1-smooth along geodesics (θ cot θ ≤ 1), so steps of size 1 always descend.
    mean = torch.nn.functional.one_hot(cosines.argmax(dim=-1), len(support)).to(torch.float64)
    for _ in range(_STEPS):
        angles = (mean @ gram).clamp(-1.0, 1.0).arccos()
        pull = share / (angles / torch.pi).sinc()
        step = pull - (pull * angles.cos()).sum(dim=-1, keepdim=True) * mean
        length = (step * (step @ gram)).sum(dim=-1, keepdim=True).clamp_min(0.0).sqrt()
        mean = length.cos() * mean + (length / torch.pi).sinc() * step
        if not bool((length > 1e-10).any()):
            break
    return unit(mean @ support).to(states.dtype)


def barycentric_projection(
    states: Float[Tensor, "n d"],
    prototypes: Float[Tensor, "prototypes d"],
    weights: Float[Tensor, " prototypes"] | None = None,
    *,
    entropy: float = 0.0,
    relaxation: float | None = None,
) -> Transport:
    """Optimal transport of a batch of states onto μ (POT), reduced to one target per state.

    Minimises `Σ_ij π_ij ∠(a_i, p_j)² + ε KL(π | a μᵀ) + ρ KL(πᵀ 1 | μ)` over plans π ≥ 0 with `π 1 = 1/n`, and with
    `πᵀ 1 = μ` if ρ is None; target i is the Fréchet mean of the prototypes with weights `π_i`. Meant for fitting: a
    single state gets the mean of μ. As ρ → 0 each state goes to its nearest prototypes, smoothed by ε.

    Args:
        states: [n, d] unit vectors.
        prototypes: [prototypes, d] unit vectors, the support of μ.
        weights: [prototypes] weights, normalised here; equal by default.
        entropy: ε in radians²; 0 solves exactly.
        relaxation: ρ in radians²; None keeps the prototypes' weights. Needs an entropy.

    Raises:
        RMuseError: no states, no prototypes, weights that are negative or all zero, a negative entropy, or a
            relaxation that is not positive or comes without an entropy.

    Examples:
        >>> barycentric_projection(torch.eye(2), torch.eye(2)).targets.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    import ot  # here: importing POT takes as long as importing torch

    if not len(states) or not len(prototypes):
        raise RMuseError(f"transport needs states and prototypes, got {len(states)} and {len(prototypes)}")
    if entropy < 0 or (relaxation is not None and not (relaxation > 0 and entropy > 0)):
        raise RMuseError(
            f"an entropy ≥ 0, and > 0 beside a relaxation > 0, were required, got {entropy} and {relaxation}"
        )
    mass = torch.ones(len(prototypes)) if weights is None else weights.detach().cpu()
    mass = mass.to(torch.float64)
    if bool((mass < 0).any()) or not bool(mass.sum() > 0):
        raise RMuseError(
            "prototype weights must be nonnegative and not all zero; leave them out for equal ones"
        )
    used = mass > 0  # a prototype of weight 0 receives no mass, and log 0 is undefined
    support, mass = prototypes[used.to(prototypes.device)], mass[used] / mass.sum()
    cost = transport_cost(states.to(torch.float64), support.to(torch.float64)).cpu()
    rows = torch.full((len(states),), 1.0 / len(states), dtype=torch.float64)
    if entropy == 0:
        found = ot.emd(rows.numpy(), mass.numpy(), cost.numpy())
    else:
        kept = None if relaxation is None else (float("inf"), relaxation)
        solved = ot.solve(
            cost.numpy(), rows.numpy(), mass.numpy(), reg=entropy, unbalanced=kept, max_iter=20_000, tol=1e-12
        )
        found = solved.plan
    part = torch.as_tensor(found)
    targets = torch.stack([_mean(row, support) for row in part])
    plan = part.new_zeros(len(states), len(prototypes))
    plan[:, used] = part
    return Transport(plan.to(states), targets.to(states), float((part * cost).sum()))


def _mean(row: Tensor, prototypes: Tensor) -> Tensor:
    used = row > 0
    points = prototypes[used.to(prototypes.device)]
    return points[0] if len(points) == 1 else frechet_mean(points, row[used].to(points))


def k_medoids(
    points: Float[Tensor, "n d"], cap: int, seed: int = 0, max_steps: int = 50
) -> Int[Tensor, " prototypes"]:
    """Indices, ascending, of at most `cap` representative points: a local minimum of `Σ min_j ∠(p, m_j)²`.

    Starts from k-means++ with the seed, then alternates between assigning points and taking each cluster's
    medoid. Deterministic for a given seed. Medoids are distinct points of the set: fewer than `cap` are
    returned if fewer points are distinct.

    Args:
        points: [n, d] vectors, compared by angle.
        cap: maximum number of medoids, at least 1.
        seed: seed of the k-means++ start.
        max_steps: maximum number of alternations.

    Raises:
        RMuseError: cap below 1.

    Examples:
        >>> k_medoids(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]]), cap=2).tolist()
        [1, 3]
    """
    if cap < 1:
        raise RMuseError(f"at least one medoid is needed, got cap={cap}; pass None where a cap is optional")
    exact = unit(points.to(torch.float64))
    if len(exact) <= cap:
        return torch.arange(len(exact), device=points.device)
    whole = _quick_cost(exact, exact) if len(exact) <= _TABLE else None

    def cost(rows: Tensor, columns: Tensor) -> Tensor:
        if whole is not None:
            return whole[rows.unsqueeze(1), columns]
        return _quick_cost(exact[rows], exact[columns])

    everything = torch.arange(len(exact), device=points.device)
    medoids = _spread_out(cost, everything, cap, seed)
    for _ in range(max_steps):
        nearest = cost(everything, medoids).argmin(dim=1)
        nearest[medoids] = torch.arange(len(medoids), device=points.device)  # no cluster is empty
        clusters = [(nearest == j).nonzero().squeeze(1) for j in range(len(medoids))]
        moved = torch.stack([members[cost(members, members).sum(dim=0).argmin()] for members in clusters])
        if torch.equal(moved, medoids):
            break
        medoids = moved
    return medoids.sort().values


def _quick_cost(first: Tensor, second: Tensor) -> Tensor:
    """Squared angles by one matrix product: accurate to 1e-8 radians in float64, enough to choose representatives."""
    return (first @ second.mT).clamp(-1.0, 1.0).arccos().square()


def _spread_out(cost: Callable[[Tensor, Tensor], Tensor], everything: Tensor, cap: int, seed: int) -> Tensor:
    """k-means++: draw each next start with probability proportional to its squared angle to the nearest chosen one."""
    draw = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(everything), (1,), generator=draw))]
    distance = cost(everything, everything[chosen]).squeeze(1)
    while len(chosen) < cap and bool(distance.max() > 1e-14):  # below this, points coincide
        chosen.append(int(torch.multinomial(distance.cpu(), 1, generator=draw)))
        distance = torch.minimum(distance, cost(everything, everything[chosen[-1:]]).squeeze(1))
    return everything[chosen]
