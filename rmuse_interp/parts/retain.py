"""The reasoning retain subspace (RRS): directions that separate reasoning from direct answers (eq. 4.6)."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.parts.part import Part
from rmuse_interp.parts.subspace import Subspace
from rmuse_interp.parts.unlearning import (
    Standardise,
    UnlearningSubspace,
    differences,
    principal_directions,
    span_hybrid,
)


class RetainSubspace(Part):
    """`U_rrs` of one block and modality (eq. 4.6).

    Args:
        subspace: `U_rrs`, the leading directions holding the asked share of energy.
        singular_values: [r], all of the nonzero ones, descending, in the coordinates of the SVD.
        standardise: how each span's difference was standardised.
        energy: the share of energy asked for, in (0, 1].
        cap: the most directions kept.
        map_back: whether the directions were taken from scaled coordinates back to those of the states.
    """

    singular_values: Tensor

    def __init__(
        self,
        subspace: Subspace,
        singular_values: Float[Tensor, " r"],
        standardise: Standardise,
        energy: float | int,
        cap: int | None,
        map_back: bool,
    ):
        super().__init__()
        self.subspace = subspace
        self.hold(singular_values=singular_values)
        self.standardise = standardise
        self.energy = float(energy)
        self.cap = cap
        self.map_back = map_back

    @property
    def rank(self) -> int:
        """Number of directions kept."""
        return self.subspace.rank

    def describe(self) -> str:
        return f"RRS[{self.rank} of {self.subspace.d}]"


def fit_retain(
    step_ans: Float[Tensor, "examples d"],
    direct_ans: Float[Tensor, "examples d"],
    step_cot: Float[Tensor, "examples d"],
    direct_any: Float[Tensor, "examples d"],
    *,
    standardise: Standardise,
    energy: float | int = 0.8,
    cap: int | None = 64,
    map_back: bool = True,
    groups: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
) -> RetainSubspace:
    """`U_rrs`: the pipeline of `fit_unlearning` on stepwise against direct responses (eq. 4.6).

    `Δ_ans = φ(stepwise; S_ans) − φ(direct; S_ans)`. A direct answer has no reasoning span, on which the
    paper is silent; here its whole response stands in: `Δ_cot = φ(stepwise; S_cot) − φ(direct; whole
    response)`. Where the direct response is nothing but its answer, `direct_any` equals `direct_ans`.

    Whether the prompts carry the refusal prefix g (`paper`) or not (`calibrated`) is settled in collecting
    the states.

    Args:
        step_ans: pooled answer states of the stepwise responses, at one block.
        direct_ans: pooled answer states of the direct responses.
        step_cot: pooled reasoning states of the stepwise responses.
        direct_any: pooled states of the whole direct response.
        standardise: Z of eq. 4.2.
        energy: the share of energy to keep.
        cap: the most directions to keep, None for no cap.
        map_back: undo the scaling of the directions found.
        groups: one label per example (say, `people` and `reasoning`); every group then weighs the same.
        ids: ids of the examples, for error messages.

    Raises:
        RMuseError: no examples, states that are not finite (naming whose), responses that differ nowhere.
    """
    spans = {"step_ans": step_ans, "direct_ans": direct_ans, "step_cot": step_cot, "direct_any": direct_any}
    ans, cot = differences(spans, ids)
    weights = None if groups is None else balance(groups)
    if weights is not None and len(weights) != len(ans):
        raise RMuseError(f"one group per example was required, got {len(weights)} for {len(ans)} examples")
    hybrid = span_hybrid(ans, cot, standardise, shared_scale=map_back, weights=weights)
    basis, s = principal_directions(hybrid, energy, cap, map_back)
    return RetainSubspace(Subspace(basis.to(torch.float32)), s, standardise, energy, cap, map_back)


def balance(groups: Sequence[str]) -> Float[Tensor, " examples"]:
    """Weights of mean 1 under which every group has the same total.

    Examples:
        >>> balance(["people", "people", "people", "reasoning"]).tolist() == [2 / 3, 2 / 3, 2 / 3, 2.0]
        True
    """
    size = Counter(groups)
    return torch.tensor([len(groups) / (len(size) * size[name]) for name in groups], dtype=torch.float64)


class Subspaces(Part):
    """`U_un` and `U_rrs` of every steered block and kind of query, kept with a plan for diagnostics.

    Args:
        unlearning: by ``"image-5"``: modality and 0-based block.
        retain: likewise.
    """

    unlearning: Mapping[str, UnlearningSubspace]
    retain: Mapping[str, RetainSubspace]

    def __init__(
        self, unlearning: Mapping[str, UnlearningSubspace], retain: Mapping[str, RetainSubspace]
    ) -> None:
        super().__init__()
        self.hold_parts("unlearning", unlearning)
        self.hold_parts("retain", retain)

    def at(self, modality: str, layer: int) -> tuple[UnlearningSubspace, RetainSubspace]:
        """The two subspaces of one block.

        Raises:
            RMuseError: a block or modality that was not fitted.
        """
        key = f"{modality}-{layer}"
        if key not in self.unlearning:
            raise RMuseError(f"subspaces of {key} were not fitted, only {', '.join(self.unlearning)}")
        return self.unlearning[key], self.retain[key]
