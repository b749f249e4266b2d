"""Both subspaces fitted again on some of their examples, or on some of them several times: no model is run.

A refit is a weighted fit on the differences of the examples, so that halves and bootstrap resamples are the same thing
with other weights, and every Gram matrix stays small.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import energy_rank
from rmuse_interp.maths.sphere import unit
from rmuse_interp.method.rmuse import Evidence
from rmuse_interp.parts.retain import RetainSubspace
from rmuse_interp.parts.unlearning import UnlearningSubspace, span_hybrid


@dataclass(frozen=True, eq=False)
class Side:
    """The differences that one subspace is fitted on, at one block.

    Args:
        ans: `Δ_ans` of each example.
        cot: `Δ_cot` of each example.
        clusters: person of each example; a person's examples are resampled together.
        groups: group of each example (`people`, `reasoning`); groups are resampled separately and weigh the same. None
            for one group.

    Raises:
        RMuseError: lengths that disagree, fewer than two clusters.
    """

    ans: Float[Tensor, "examples d"]
    cot: Float[Tensor, "examples d"]
    clusters: Sequence[str]
    groups: Sequence[str] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.ans), len(self.cot), len(self.clusters), len(self.groups or self.clusters)}
        if len(lengths) > 1:
            raise RMuseError(
                f"one cluster and one group per example were required, got {sorted(lengths)} of them"
            )
        if len(set(self.clusters)) < 2:
            raise RMuseError(
                f"at least 2 clusters of examples were required to resample them, got {len(set(self.clusters))}; "
                "fit on more people, or give each example a cluster of its own"
            )


@dataclass(frozen=True, eq=False)
class Refit:
    """Both subspaces of one resample, float64.

    Attributes:
        unlearning: orthonormal basis of `U_un`.
        direction: `v_un`, of length 1, its sign by the fit on all data.
        retain: orthonormal basis of `U_rrs`.
        retain_energy: squared singular value of each direction of `U_rrs`, descending.
    """

    unlearning: Float[Tensor, "d k"]
    direction: Float[Tensor, " d"]
    retain: Float[Tensor, "d j"]
    retain_energy: Float[Tensor, " j"]


def sides_at(evidence: Evidence, layer: int, literal: bool) -> tuple[Side, Side]:
    """Return the differences on which `subspaces_at` fits `U_un` and `U_rrs` of a block, clustered by person.

    If all forget examples are about one person, each example is its own cluster.
    """
    people = {name.rpartition("@")[0]: who for name, who in evidence.people.items()}

    def clusters(ids: Sequence[str]) -> list[str]:
        found = [people.get(name, name) for name in ids]
        return found if len(set(found)) > 1 else list(ids)

    ids = evidence.refusal["answer"].ids
    ans, cot = (
        (evidence.refusal[s].select(ids).at(layer).double() - evidence.own[s].select(ids).at(layer).double())
        for s in ("answer", "cot")
    )
    step = evidence.step_prefixed if literal else evidence.step
    direct = (evidence.direct_prefixed if literal else evidence.direct)["answer"]
    kept = step["answer"].ids
    whole = direct.select(kept).at(layer).double()
    first, second = (step[span].select(kept).at(layer).double() - whole for span in ("answer", "cot"))
    groups = [evidence.groups[name] for name in kept]
    return Side(ans, cot, clusters(ids)), Side(first, second, clusters(kept), groups)


def refit(
    unlearning: UnlearningSubspace,
    retain: RetainSubspace,
    forget: Side,
    kept: Side,
    counts: tuple[Float[Tensor, " examples"], Float[Tensor, " kept"]] | None = None,
) -> Refit:
    """Fit both subspaces on one resample, with the settings of the given fits.

    Args:
        unlearning: fit with the settings for `U_un`.
        retain: fit with the settings for `U_rrs`.
        forget: the examples of `U_un`.
        kept: the examples of `U_rrs`.
        counts: number of times that each example of either side is in the resample; None for once each.
    """
    often, kept_often = counts or (torch.ones(len(side.ans), dtype=torch.float64) for side in (forget, kept))
    un, _ = _directions(forget, unlearning, often)
    first = un[:, 0]
    sign = -1.0 if bool(first @ unlearning.direction.double() < 0) else 1.0
    rrs, energy = _directions(kept, retain, kept_often)
    return Refit(_basis(un), sign * unit(first), _basis(rrs), energy)


def _directions(
    side: Side, fitted: UnlearningSubspace | RetainSubspace, counts: Float[Tensor, " examples"]
) -> tuple[Float[Tensor, "d k"], Float[Tensor, " k"]]:
    """Return the leading directions of a resample in the states' coordinates, the principal one first; their energies."""
    there = counts > 0
    weights = counts.clone()
    if side.groups is not None:
        for group in set(side.groups):
            mine = torch.tensor([one == group for one in side.groups])
            weights[mine] /= (
                weights[mine].sum().clamp_min(1e-300)
            )  # half of the examples may hold none of a group
    weights = weights[there] * int(there.sum()) / weights.sum()
    hybrid = span_hybrid(
        side.ans[there], side.cot[there], fitted.standardise, shared_scale=fitted.map_back, weights=weights
    )
    found, energy = _leading(hybrid.rows, fitted.energy, fitted.cap)
    return (hybrid.scale.unsqueeze(1) * found if fitted.map_back else found), energy


def _leading(
    rows: Float[Tensor, "examples d"], energy: float, cap: int | None
) -> tuple[Float[Tensor, "d k"], Float[Tensor, " k"]]:
    """`leading_directions` from the smaller Gram matrix alone: those that hold most of the energy are accurate there."""
    wide = rows.shape[0] < rows.shape[1]
    values, vectors = torch.linalg.eigh(rows @ rows.mT if wide else rows.mT @ rows)
    squares, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    s = squares.sqrt()
    rank = max(1, min(energy_rank(s, energy), cap or len(s)))
    found = rows.mT @ vectors[:, :rank] / s[:rank].clamp_min(1e-300) if wide else vectors[:, :rank]
    return found, squares[:rank]


def _basis(directions: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
    return torch.linalg.qr(directions).Q
