"""`IdentityScorer`, the interface of gates with one cluster per person: adding a cluster forgets one more person."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import ledoit_wolf
from rmuse_interp.parts.gates.gate import Scorer
from rmuse_interp.parts.pooled import require_finite

Side = Literal["forget", "other"]
"""What a cluster represents: a person to forget, or anything that must not be steered."""


class IdentityScorer(Scorer):
    """Abstract score from labelled clusters: one per person to forget, and one per thing that must not be steered.

    A subclass keeps `labels` and `other_labels`, distinct and not empty, besides the tensors of its clusters.
    """

    labels: list[str]
    other_labels: list[str]

    def with_cluster(
        self, label: str, states: Float[Tensor, "examples d"], *, side: Side = "forget"
    ) -> "IdentityScorer":
        """The same scorer with one more cluster; everything else stays bit-identical.

        Args:
            label: label of the new cluster.
            states: [examples, d] states of the person's queries, read where the gate reads.
            side: `other` adds someone who must not be steered, such as a restored person.

        Raises:
            RMuseError: a label already used on that side, no states, or states that are not finite.
        """
        names = self._names(side)
        if label in names or not len(states):
            raise RMuseError(
                f"a new label and at least one state were required, got {label!r}"
                + (f", a {side} cluster already: remove it first" if label in names else " without states")
            )
        require_finite(states, f"{side} queries")
        return self._changed(side, [*names, label], self._grown(side, label, states.double()))

    def without_cluster(self, label: str, *, side: Side = "forget") -> "IdentityScorer":
        """The same scorer without one cluster; everything else stays bit-identical.

        Raises:
            RMuseError: an unknown label, or that of the last cluster of its side.
        """
        names = self._names(side)
        if label not in names or len(names) == 1:
            problem = (
                f"{label!r} is not among its {len(names)} labels" if label not in names else "it is the last"
            )
            raise RMuseError(f"one of several {side} clusters was to be removed: {problem}")
        keep = [i for i, name in enumerate(names) if name != label]
        return self._changed(side, [names[i] for i in keep], self._kept(side, keep))

    def _names(self, side: Side) -> list[str]:
        return self.labels if side == "forget" else self.other_labels

    def _changed(self, side: Side, names: list[str], tensors: dict[str, Tensor]) -> "IdentityScorer":
        what = "labels" if side == "forget" else "other_labels"
        return self.changed(**{what: names}, **tensors)

    @abstractmethod
    def _grown(self, side: Side, label: str, states: Float[Tensor, "examples d"]) -> dict[str, Tensor]:
        """The tensors of a side's clusters, by keyword, with one cluster appended."""

    @abstractmethod
    def _kept(self, side: Side, rows: list[int]) -> dict[str, Tensor]:
        """The tensors of a side's clusters, by keyword, restricted to some rows."""


def require_labels(side: Side, labels: Sequence[str], clusters: int) -> None:
    """Raise `RMuseError` unless a side has one distinct label per cluster."""
    if not labels or len(set(labels)) < len(labels) or len(labels) != clusters:
        raise RMuseError(
            f"one distinct label per {side} cluster was required, at least one, got {len(set(labels))} for "
            f"{clusters} clusters"
        )


def grouped(owners: Sequence[str], device: torch.device) -> tuple[list[str], Int[Tensor, " examples"]]:
    """The distinct labels in order of first appearance, and the index of each state's label."""
    labels = list(dict.fromkeys(owners))
    number = {name: i for i, name in enumerate(labels)}
    return labels, torch.tensor([number[name] for name in owners], device=device)


def cluster_means(
    x: Float[Tensor, "examples d"], rows: Int[Tensor, " examples"], clusters: int
) -> tuple[Float[Tensor, "clusters d"], Float[Tensor, " clusters"]]:
    """Mean and number of states of each cluster."""
    count = torch.bincount(rows, minlength=clusters).to(x.dtype)
    total = x.new_zeros(clusters, x.shape[1]).index_add(0, rows, x)
    return total / count.unsqueeze(1), count


def within(
    x: Float[Tensor, "examples d"],
    means: Float[Tensor, "clusters d"],
    rows: Int[Tensor, " examples"],
    count: Float[Tensor, " clusters"],
) -> Float[Tensor, "residuals d"]:
    """Residuals of states about the mean of their own cluster, scaled to be unbiased; single states have none."""
    several = count[rows] > 1
    unbiased = (count / (count - 1).clamp_min(1)).sqrt()[rows].unsqueeze(1)
    return ((x - means[rows]) * unbiased)[several]


def shrunk_covariance(residuals: Float[Tensor, "residuals d"]) -> Float[Tensor, "d d"]:
    """Covariance of residuals shrunk by Ledoit and Wolf (2004); the identity if they have no spread."""
    identity = torch.eye(residuals.shape[1], dtype=residuals.dtype, device=residuals.device)
    variance = residuals.square().mean()
    if not bool(variance > 1e-20):  # not <=, for the mean of no rows is NaN
        return identity
    share = max(ledoit_wolf(residuals), 1e-6)
    return (1 - share) / len(residuals) * (residuals.mT @ residuals) + share * variance * identity


def require_people(
    states: Tensor, people: Sequence[str], others: Tensor, other_people: Sequence[str]
) -> None:
    """Raise `RMuseError` unless every state has the label of its person."""
    if len(people) != len(states) or len(other_people) != len(others):
        raise RMuseError(
            f"one person per state was required, got {len(people)} for {len(states)} forget states and "
            f"{len(other_people)} for {len(others)} others"
        )
