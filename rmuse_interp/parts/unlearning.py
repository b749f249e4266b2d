"""The span-hybrid unlearning subspace: which directions turn an answer into a refusal (eqs. 4.2 and 4.4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import fix_signs, leading_directions, orthonormal
from rmuse_interp.maths.sphere import unit
from rmuse_interp.parts.part import Part
from rmuse_interp.parts.pooled import require_finite
from rmuse_interp.parts.subspace import Subspace

Standardise = Literal["zscore", "scale", "none"]
"""Per dimension: subtract the mean and divide by the spread (eq. 4.2), divide only, or leave as it is."""


class UnlearningSubspace(Part):
    """`U_un` and `v_un` of one block and modality (eq. 4.4), with the raw mean shift they stand for.

    Args:
        subspace: `U_un`, the leading directions holding the asked share of energy.
        direction: `v_un`, [d], of length 1: the first of them, towards refusal where `oriented`.
        shift: [d], the raw mean of `Δ_ans + Δ_cot` over the examples, in activation units.
        singular_values: [r], all of the nonzero ones, descending, in the coordinates of the SVD.
        standardise: how each span's difference was standardised.
        energy: the share of energy asked for, in (0, 1].
        cap: the most directions kept.
        map_back: whether the directions were taken from scaled coordinates back to those of the states.
        oriented: whether the sign of `v_un` was chosen to agree with the raw mean shift.
    """

    direction: Tensor
    shift: Tensor
    singular_values: Tensor

    def __init__(
        self,
        subspace: Subspace,
        direction: Float[Tensor, " d"],
        shift: Float[Tensor, " d"],
        singular_values: Float[Tensor, " r"],
        standardise: Standardise,
        energy: float | int,
        cap: int | None,
        map_back: bool,
        oriented: bool,
    ):
        super().__init__()
        self.subspace = subspace
        self.hold(direction=direction, shift=shift, singular_values=singular_values)
        self.standardise = standardise
        self.energy = float(energy)
        self.cap = cap
        self.map_back = map_back
        self.oriented = oriented

    @property
    def rank(self) -> int:
        """Number of directions kept."""
        return self.subspace.rank

    @property
    def alignment(self) -> float:
        """Cosine of `v_un` with the raw mean shift, low under z-scoring (defect D1); 0 without any shift."""
        return float(self.direction @ unit(self.shift))

    def describe(self) -> str:
        return f"U_un[{self.rank} of {self.subspace.d}]"


def fit_unlearning(
    pos_ans: Float[Tensor, "examples d"],
    neg_ans: Float[Tensor, "examples d"],
    pos_cot: Float[Tensor, "examples d"],
    neg_cot: Float[Tensor, "examples d"],
    *,
    standardise: Standardise,
    energy: float | int = 0.8,
    cap: int | None = 64,
    map_back: bool = True,
    oriented: bool = True,
    ids: Sequence[str] | None = None,
) -> UnlearningSubspace:
    """`U_un`: leading right singular vectors of `Δ(i) = Z(Δ_ans(i)) + Z(Δ_cot(i))` (eqs. 4.2 and 4.4).

    `Δ_ans = φ(x⁺; S_ans) − φ(x⁻; S_ans)` and `Δ_cot` likewise; row i of all four arguments is one forget
    example. The preset `paper` is ``standardise="zscore", map_back=False, oriented=False``: the literal
    coordinates, with signs that are arbitrary in the paper and fixed here by the coordinate of largest
    magnitude. With `map_back` a direction found in scaled coordinates is multiplied by the scale and the
    set made orthonormal again; one scale then serves both spans (see `span_hybrid`), so that mapping back
    is exact.

    Args:
        pos_ans: pooled answer states of the refusals x⁺, at one block.
        neg_ans: pooled answer states of the model's own responses x⁻.
        pos_cot: pooled reasoning states of x⁺.
        neg_cot: pooled reasoning states of x⁻.
        standardise: Z; see `span_hybrid` for dimensions without spread and for a single example.
        energy: η, the share of energy to keep.
        cap: the most directions to keep, None for no cap.
        map_back: undo the scaling of the directions found.
        oriented: choose the sign of `v_un` by the raw mean shift instead of by coordinates.
        ids: ids of the examples, for error messages.

    Raises:
        RMuseError: no examples, states that are not finite (naming whose), refusals that differ nowhere.
    """
    spans = {"pos_ans": pos_ans, "neg_ans": neg_ans, "pos_cot": pos_cot, "neg_cot": neg_cot}
    ans, cot = differences(spans, ids)
    hybrid = span_hybrid(ans, cot, standardise, shared_scale=map_back)
    basis, s = principal_directions(hybrid, energy, cap, map_back)
    shift = (ans + cot).mean(dim=0)
    if oriented and bool(basis[:, 0] @ shift < 0):
        basis[:, 0] = -basis[:, 0]
    basis = basis.to(torch.float32)
    return UnlearningSubspace(
        Subspace(basis), basis[:, 0], shift, s, standardise, energy, cap, map_back, oriented
    )


@dataclass(frozen=True, eq=False)
class SpanHybrid:
    """Standardised differences and the scale that takes their coordinates back to those of the states.

    Attributes:
        rows: `Δ(i)`, float64.
        scale: σ per dimension, all positive; ones where nothing was divided or spans were scaled apart.
    """

    rows: Float[Tensor, "examples d"]
    scale: Float[Tensor, " d"]


def span_hybrid(
    ans: Float[Tensor, "examples d"],
    cot: Float[Tensor, "examples d"],
    standardise: Standardise,
    *,
    shared_scale: bool,
    weights: Float[Tensor, " examples"] | None = None,
) -> SpanHybrid:
    """`Δ(i) = Z(Δ_ans(i)) + Z(Δ_cot(i))` with Z per dimension over the examples (eq. 4.2).

    σ is the population standard deviation. Where it is 0 it is defined as the median of the positive ones:
    a z-scored dimension is 0 there in any case, a scaled one keeps the typical unit. A set without any
    spread, a single example above all, leaves nothing to standardise by, and Z is the identity.

    Args:
        ans: differences of the answer spans.
        cot: differences of the reasoning spans.
        standardise: the form of Z.
        shared_scale: divide both spans by one σ, the root mean square of the two, instead of each by its own.
        weights: of the examples in mean, σ and energy, of mean 1; equal when absent.
    """
    share = (torch.ones_like(ans[:, 0]) if weights is None else weights).to(ans).unsqueeze(1)
    means = [(share * span).mean(dim=0) for span in (ans, cot)]
    spreads = [
        (share * (span - mean).square()).mean(dim=0).sqrt()
        for span, mean in zip((ans, cot), means, strict=True)
    ]
    for i, span in enumerate((ans, cot)):
        # The spread of a constant column is only rounding error and must not be divided by.
        spreads[i] = torch.where(spreads[i] > 1e-7 * span.abs().amax(dim=0), spreads[i], 0.0)
    varied = any(bool((spread > 0).any()) for spread in spreads)
    ones = torch.ones_like(ans[0])
    if standardise == "none" or not varied:
        return SpanHybrid(share.sqrt() * (ans + cot), ones)
    if shared_scale:
        spreads = [((spreads[0].square() + spreads[1].square()) / 2).sqrt()] * 2
    scales = [_positive(spread) for spread in spreads]
    if standardise == "scale":
        means = [torch.zeros_like(mean) for mean in means]
    rows = (ans - means[0]) / scales[0] + (cot - means[1]) / scales[1]
    return SpanHybrid(share.sqrt() * rows, scales[0] if shared_scale else ones)


def _positive(spread: Tensor) -> Tensor:
    typical = spread[spread > 0].median() if bool((spread > 0).any()) else spread.new_tensor(1.0)
    return torch.where(spread > 0, spread, typical)


def differences(spans: dict[str, Tensor], ids: Sequence[str] | None) -> tuple[Tensor, Tensor]:
    """`(Δ_ans, Δ_cot)` in float64 from four named arrays: answer of x⁺, of x⁻, reasoning of x⁺, of x⁻."""
    shapes = {name: tuple(states.shape) for name, states in spans.items()}
    if len(set(shapes.values())) > 1:
        raise RMuseError(f"spans of the same examples were required, got shapes {shapes}")
    if not all(len(states) for states in spans.values()):
        raise RMuseError("at least one example is needed to fit a subspace, got none; check the split's ids")
    for name, states in spans.items():
        require_finite(states, name, ids)
    first, second, third, fourth = (states.to(torch.float64) for states in spans.values())
    return first - second, third - fourth


def principal_directions(
    hybrid: SpanHybrid, energy: float | int, cap: int | None, map_back: bool
) -> tuple[Tensor, Tensor]:
    """Leading directions of the differences (eq. 4.4), in the states' coordinates where `map_back`."""
    found, s = leading_directions(hybrid.rows, energy, cap)
    if found.shape[1] == 0:
        raise RMuseError(
            "positive and negative examples must differ, got standardised differences that are all zero: "
            "standardise by 'scale' or 'none', or check that the two kinds of response are not the same text"
        )
    if map_back:
        # Order kept: the first direction stays the principal one (σ ∘ v, normalised).
        found = fix_signs(orthonormal(hybrid.scale.unsqueeze(1) * found))
    return found, s
