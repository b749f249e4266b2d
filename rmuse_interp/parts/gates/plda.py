"""The open-set identity gate: is a query about a person to forget, another known person, or an unknown one?"""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import working
from rmuse_interp.parts.gates.gate import Gate, Read, Readout, require_both
from rmuse_interp.parts.gates.identity import (
    IdentityScorer,
    Side,
    cluster_means,
    grouped,
    require_labels,
    require_people,
    shrunk_covariance,
    within,
)

_NEGLIGIBLE: Final = 1e-3
"""Between-person variance, in units of the within-person variance, below which a direction carries no identity."""


class IdentityRatio(IdentityScorer):
    """`score(h) = max_k log p(h | forget k) − max(max_j log p(h | other j), log p(h | nobody known))`, in nats.

    Probabilistic linear discriminant analysis (Ioffe 2006; Prince and Elder 2007), as used for open sets in speaker
    verification: a person is `m ~ N(c, B)`, a query about them `h ~ N(m, W)`. In the coordinates `z = T(h − c)`, where
    W is the identity and B diagonal, n states of a person with mean z̄ predict that person's next state as
    `N(b/(b + 1/n) z̄, 1 + b/(nb + 1))`; a state of an unknown person is `N(0, 1 + b)`. Two advantages over plain
    clusters: a person seen once has a wide distribution and a person seen often a narrow one; and a state that is close
    to nobody, such as one of a person outside the fitting data, is not steered, whoever is nearest.

    Args:
        forget: [clusters, r], z̄ of the people to forget.
        counts: [clusters], n of each.
        labels: one label per person to forget. Labels are saved with the gate: use hashes.
        others: [others, r], z̄ of everything else.
        other_counts: [others], n of each.
        other_labels: one label per other cluster.
        center: [d], c.
        transform: [d, r], Tᵀ.
        between: [r], b, between-person variances in units of the within-person variances.

    Raises:
        RMuseError: an empty side, labels or counts that are missing, labels that are not distinct.
    """

    forget: Tensor
    counts: Tensor
    others: Tensor
    other_counts: Tensor
    center: Tensor
    transform: Tensor
    between: Tensor
    weight: Tensor
    curvature: Tensor
    bias: Tensor

    def __init__(
        self,
        forget: Float[Tensor, "clusters r"],
        counts: Float[Tensor, " clusters"],
        labels: Sequence[str],
        others: Float[Tensor, "others r"],
        other_counts: Float[Tensor, " others"],
        other_labels: Sequence[str],
        center: Float[Tensor, " d"],
        transform: Float[Tensor, "d r"],
        between: Float[Tensor, " r"],
    ):
        super().__init__()
        require_labels("forget", labels, len(forget))
        require_labels("other", other_labels, len(others))
        if len(counts) != len(forget) or len(other_counts) != len(others):
            raise RMuseError(f"one count per cluster was required, got {len(counts)} and {len(other_counts)}")
        self.labels = list(labels)
        self.other_labels = list(other_labels)
        self.hold(
            forget=forget,
            counts=counts,
            others=others,
            other_counts=other_counts,
            center=center,
            transform=transform,
            between=between,
        )
        # Derived from the above: every log density is a quadratic form of z. The last row is the unknown person.
        b = self.between.double()
        n = torch.cat([self.counts, self.other_counts]).double().unsqueeze(1)
        mean = b / (b + 1 / n) * torch.cat([self.forget, self.others]).double()
        mean = torch.cat([mean, torch.zeros_like(mean[:1])])
        variance = torch.cat([1 + b / (n * b + 1), (1 + b).unsqueeze(0)])
        bias = -(mean.square() / variance + variance.log()).sum(dim=1) / 2
        self.hold(weight=mean / variance, curvature=-0.5 / variance, bias=bias)

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Log likelihood ratio in nats, one per state: likeliest person to forget against likeliest alternative."""
        exact = working(h)
        kind = exact.dtype
        z = (exact - self.center.to(kind)) @ self.transform.to(kind)
        logs = z.square() @ self.curvature.to(kind).mT + z @ self.weight.to(kind).mT + self.bias.to(kind)
        return logs[..., : len(self.labels)].amax(dim=-1) - logs[..., len(self.labels) :].amax(dim=-1)

    def _grown(self, side: Side, label: str, states: Float[Tensor, "examples d"]) -> dict[str, Tensor]:
        means, counts = self._side(side)
        z = ((states.to(means.device) - self.center.double()) @ self.transform.double()).mean(dim=0)
        new = counts.new_tensor([float(len(states))])
        grown = torch.cat([means, z.to(means.dtype).unsqueeze(0)]), torch.cat([counts, new])
        return dict(zip(_KEYWORDS[side], grown, strict=True))

    def _kept(self, side: Side, rows: list[int]) -> dict[str, Tensor]:
        return {name: tensor[rows] for name, tensor in zip(_KEYWORDS[side], self._side(side), strict=True)}

    def _side(self, side: Side) -> tuple[Tensor, Tensor]:
        return (self.forget, self.counts) if side == "forget" else (self.others, self.other_counts)

    def describe(self) -> str:
        known = len(self.labels) + len(self.other_labels)
        return f"identity likelihood ratio, {len(self.labels)} to forget of {known} known,"


_KEYWORDS: Final[dict[Side, tuple[str, str]]] = {
    "forget": ("forget", "counts"),
    "other": ("others", "other_counts"),
}


def fit_identity_ratio(
    states: Float[Tensor, "examples d"],
    people: Sequence[str],
    others: Float[Tensor, "others d"],
    other_people: Sequence[str],
    *,
    layer: int,
    readout: Readout,
) -> Gate:
    """Fit the identity likelihood ratio gate to labelled states.

    W is the covariance within clusters, shrunk by Ledoit and Wolf (2004); B is the covariance of the clusters' means
    minus the contribution of W, per direction of `W^{-½} B W^{-½}` and clamped at 0. Directions where B is zero carry
    no information and are left out.

    Args:
        states: [examples, d] states of forget queries.
        people: the person each forget query is about; these become labels of the gate, so use hashes.
        others: [others, d] states of queries that must not be steered.
        other_people: one label per other query, shared by queries that belong together.
        layer: 0-based block where the states were read.
        readout: tokens over which they were read.

    Raises:
        RMuseError: an empty side, states that are not finite, or labels of another length.
    """
    require_both(states, others)
    require_people(states, people, others, other_people)
    x = torch.cat([states, others]).double()
    labels, near = grouped(people, x.device)
    other_labels, far = grouped(other_people, x.device)
    rows = torch.cat([near, far + len(labels)])
    means, count = cluster_means(x, rows, len(labels) + len(other_labels))
    center = means.mean(dim=0)
    root = torch.linalg.cholesky(shrunk_covariance(within(x, means, rows, count)))
    white = torch.linalg.solve_triangular(root, (means - center).mT, upper=False)
    values, axes = torch.linalg.eigh(white @ white.mT / len(means))
    between = values - (1 / count).mean()
    kept = between > _NEGLIGIBLE
    if not bool(kept.any()):  # no one differs from anyone: one direction keeps the gate defined
        kept = between == between.max()
    transform = torch.linalg.solve_triangular(root.mT, axes[:, kept], upper=True)
    z = (means - center) @ transform
    scorer = IdentityRatio(
        z[: len(labels)],
        count[: len(labels)],
        labels,
        z[len(labels) :],
        count[len(labels) :],
        other_labels,
        center,
        transform,
        between[kept].clamp_min(_NEGLIGIBLE),
    )
    return Gate(scorer, Read(layer, readout))
