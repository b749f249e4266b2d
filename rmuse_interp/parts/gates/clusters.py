"""The cluster gate: one cluster per person to forget, so that forgetting one more is adding a cluster."""

from collections.abc import Sequence
from typing import Final, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import working
from rmuse_interp.maths.sphere import unit
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

ClusterKind = Literal["vmf", "mahalanobis"]
"""von Mises–Fisher clusters of directions with one concentration, or Gaussian clusters with one covariance."""

_KINDS: Final = get_args(ClusterKind)


class Clusters(IdentityScorer):
    """`score(h) = max_k log p(h | forget cluster k) − max_j log p(h | other cluster j)`, in nats.

    With `x = u(h − c)` and one concentration κ for all (von Mises–Fisher),
    `log p(x | k) = κ⟨m_k, x⟩ + const`, `m_k` the mean direction. With `x = h − c` and one covariance Σ for
    all (Mahalanobis), `log p(x | k) = −(x − m_k)ᵀ Σ⁻¹ (x − m_k)/2 + const`, `m_k` the mean. The constants
    and xᵀ Σ⁻¹ x are the same for all clusters and cancel: each cluster is a linear form of x.

    Estimating κ or Σ per cluster would need many states per person, and most people have few. The score is
    not that of a mixture: only the best cluster on each side counts.

    Args:
        forget: [clusters, d], `m_k` of the people to forget.
        labels: one label per person to forget. Labels are saved with the gate: use hashes.
        others: [others, d], `m_j` of everything else.
        other_labels: one label per other cluster.
        center: [d], c.
        concentration: κ; None for Mahalanobis clusters.
        precision: [d, d], Σ⁻¹; None for von Mises–Fisher clusters.

    Raises:
        RMuseError: an empty side, labels that are missing or not distinct, both κ and Σ⁻¹ or neither.
    """

    forget: Tensor
    others: Tensor
    center: Tensor
    precision: Tensor | None
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        forget: Float[Tensor, "clusters d"],
        labels: Sequence[str],
        others: Float[Tensor, "others d"],
        other_labels: Sequence[str],
        center: Float[Tensor, " d"],
        concentration: float | int | None = None,
        precision: Float[Tensor, "d d"] | None = None,
    ):
        super().__init__()
        require_labels("forget", labels, len(forget))
        require_labels("other", other_labels, len(others))
        if (concentration is None) == (precision is None):
            raise RMuseError("clusters need either a concentration (vmf) or a precision (mahalanobis)")
        self.labels = list(labels)
        self.other_labels = list(other_labels)
        self.concentration = None if concentration is None else float(concentration)
        self.hold(forget=forget, others=others, center=center, precision=precision)
        # Derived from the above: kept for speed, not part of the record.
        means = torch.cat([self.forget, self.others]).double()
        if self.precision is None:
            assert self.concentration is not None
            weight, bias = self.concentration * means, means.new_zeros(len(means))
        else:
            weight = means @ self.precision.double()
            bias = -(weight * means).sum(dim=1) / 2
        self.hold(weight=weight, bias=bias)

    kind = "ClusterGate"

    @property
    def density(self) -> ClusterKind:
        """`vmf` or `mahalanobis`."""
        return "vmf" if self.precision is None else "mahalanobis"

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Log density of the best forget cluster minus that of the best other cluster, in nats, one per state."""
        exact = working(h)
        x = _coordinates(exact, self.center.to(exact.dtype), self.density)
        logs = x @ self.weight.to(exact.dtype).mT + self.bias.to(exact.dtype)
        return logs[..., : len(self.labels)].amax(dim=-1) - logs[..., len(self.labels) :].amax(dim=-1)

    def _grown(self, side: Side, label: str, states: Float[Tensor, "examples d"]) -> dict[str, Tensor]:
        name, means = self._side(side)
        x = _coordinates(states.to(means.device), self.center.double(), self.density)
        new, _ = _means(x, torch.zeros(len(x), dtype=torch.int64, device=x.device), 1, self.density)
        return {name: torch.cat([means, new.to(means.dtype)])}

    def _kept(self, side: Side, rows: list[int]) -> dict[str, Tensor]:
        name, means = self._side(side)
        return {name: means[rows]}

    def _side(self, side: Side) -> tuple[str, Tensor]:
        return ("forget", self.forget) if side == "forget" else ("others", self.others)

    def describe(self) -> str:
        name = "von Mises–Fisher" if self.density == "vmf" else "Mahalanobis"
        return (
            f"{name} clusters, {len(self.labels)} to forget of {len(self.labels) + len(self.other_labels)},"
        )


def fit_clusters(
    states: Float[Tensor, "examples d"],
    people: Sequence[str],
    others: Float[Tensor, "others d"],
    other_people: Sequence[str],
    *,
    layer: int,
    readout: Readout,
    kind: ClusterKind = "vmf",
) -> Gate:
    """Fit the cluster gate to labelled states, centred at the midpoint of the two sides' means.

    `κ = ρ(d − ρ²)/(1 − ρ²)`, where ρ² is the mean cosine between states of one cluster (Banerjee et al. 2005,
    eq. 4.4; using pairs avoids the bias that resultants of few states have). Σ is the covariance within
    clusters, pooled over both sides and shrunk by Ledoit and Wolf (2004). Clusters of a single state inform
    neither; if there are no others, κ is 1 and Σ the identity.

    Args:
        states: [examples, d] states of forget queries.
        people: the person each forget query is about; these become labels of the gate, so use hashes.
        others: [others, d] states of queries that must not be steered.
        other_people: one label per other query, shared by queries that belong together.
        layer: 0-based block where the states were read.
        readout: tokens over which they were read.
        kind: `vmf` (von Mises–Fisher) or `mahalanobis`.

    Raises:
        RMuseError: an empty side, states that are not finite, labels of another length, an unknown kind.
    """
    require_both(states, others)
    require_people(states, people, others, other_people)
    if kind not in _KINDS:
        raise RMuseError(f"a kind out of {', '.join(_KINDS)} was required, got {kind!r}")
    # In the precision that is stored, so that a person added later gets the same cluster as if fitted now.
    center = ((states.double().mean(dim=0) + others.double().mean(dim=0)) / 2).float().double()
    sides, pairs, residuals = [], [], []
    for side, owners in ((states, people), (others, other_people)):
        x = _coordinates(side.double(), center, kind)
        labels, rows = grouped(owners, x.device)
        means, count = _means(x, rows, len(labels), kind)
        sides.append((labels, means))
        if kind == "vmf":
            several = count[rows] > 1
            total = torch.zeros_like(means).index_add(0, rows, x)
            # Mean cosine between each state and the others of its cluster.
            cosine = ((x * total[rows]).sum(dim=1) - 1) / (count[rows] - 1)
            pairs.append(cosine[several])
        else:
            residuals.append(within(x, means, rows, count))
    (labels, near), (other_labels, far) = sides
    concentration = precision = None
    if kind == "vmf":
        concentration = _concentration(torch.cat(pairs), states.shape[1])
    else:
        precision = torch.cholesky_inverse(torch.linalg.cholesky(shrunk_covariance(torch.cat(residuals))))
    scorer = Clusters(near, labels, far, other_labels, center, concentration, precision)
    return Gate(scorer, Read(layer, readout))


def _coordinates(h: Tensor, center: Tensor, kind: ClusterKind) -> Tensor:
    return unit(h - center) if kind == "vmf" else h - center


def _means(
    x: Float[Tensor, "examples d"], rows: Int[Tensor, " examples"], clusters: int, kind: ClusterKind
) -> tuple[Float[Tensor, "clusters d"], Float[Tensor, " clusters"]]:
    """Mean of each cluster (the mean direction for von Mises–Fisher) and its number of states."""
    means, count = cluster_means(x, rows, clusters)
    return (unit(means) if kind == "vmf" else means), count


def _concentration(cosines: Tensor, d: int) -> float:
    """κ from the mean cosine within clusters, at least 1: lower values are close to a uniform distribution."""
    if not len(cosines):
        return 1.0
    square = min(max(float(cosines.mean()), 0.0), 1 - 1e-6)
    return max(1.0, square**0.5 * (d - square) / (1 - square))
