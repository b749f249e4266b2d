"""The nine rivals, one function each: ``name(evidence, modality, layers, strength) -> Edit``.

Methods that describe *how the model speaks* contrast x⁻ with x⁺: pooled states of its own responses to forget queries,
and of ideal refusals to them. They act on the last prompt token and every generated one. Methods that describe *what is
asked* contrast forget queries with all others, at every read-out collected.
"""

from collections.abc import Mapping, Sequence

import torch

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Edit, Modality, Tokens
from rmuse_interp.maths.sphere import unit
from rmuse_interp.method.contrasts import asked, condition, leading, read_and_write, shift, spoken
from rmuse_interp.method.rmuse import Evidence
from rmuse_interp.parts.subspace import Subspace


def caa(evidence: Evidence, modality: Modality, layers: Sequence[int], strength: float = 1.0) -> Edit:
    """Contrastive Activation Addition: `h̃ = h + α v`, `v = mean(x⁺ − x⁻)` (arXiv 2312.06681; ActAdd 2308.10248).

    Faithful: the mean difference over paired responses, added at every token after the question, the last prompt token
    included. Ours: pooled spans (answer and reasoning) in place of the token of a letter; several blocks at once.

    Args:
        evidence: collected states of this kind of query.
        modality: the kind of query.
        layers: 0-based blocks to steer.
        strength: α, in units of the mean difference.
    """
    return _edit({at: op.Add(shift(evidence, at), strength) for at in layers}, "generated", modality)


def ablation(evidence: Evidence, modality: Modality, layers: Sequence[int], strength: float = 1.0) -> Edit:
    """Directional ablation: `h̃ = h − α r̂ r̂ᵀ h`, r the difference of two means (arXiv 2406.11717).

    Faithful: difference in means of prompts that should and should not be treated differently, removed at every token.
    Ours: r is *about someone to forget*, forget queries against others, at every read-out; one r per block, at the
    blocks given instead of all; α ≠ 1; image tokens are left alone.

    Args:
        evidence: see `caa`.
        modality: see `caa`.
        layers: see `caa`.
        strength: α; 1 removes the direction.
    """

    def at(layer: int) -> op.Operator:
        forget, others = asked(evidence, layer)
        direction = forget.mean(dim=0) - others.mean(dim=0)
        return op.Ablate(Subspace.span(direction.unsqueeze(1)), strength)

    return _edit({layer: at(layer) for layer in layers}, "all", modality)


def leace(evidence: Evidence, modality: Modality, layers: Sequence[int], strength: float = 1.0) -> Edit:
    """LEACE: `h̃ = h − α W⁺ P W (h − μ)`, `W = (Σ_xx^½)⁺`, P onto the span of `W Σ_xz` (arXiv 2306.03819).

    Faithful: the closed form, here with z = *about someone to forget*; with α = 1 both kinds of query have one mean.
    Ours: Σ_xx shrunk after Ledoit and Wolf (the erasure stays exact), where the authors' package `concept-erasure`
    shrinks otherwise (unshrunk both are equal: tested); the blocks given, each on unedited states, where concept
    scrubbing refits every block on edited ones; image tokens are left alone.

    Args:
        evidence: see `caa`.
        modality: see `caa`.
        layers: see `caa`.
        strength: α; 1 erases.
    """

    def at(layer: int) -> op.Operator:
        sides = asked(evidence, layer)
        concept = torch.cat([torch.full((len(side), 1), float(z)) for z, side in enumerate(sides)])
        return op.Affine.erasing(torch.cat(sides), concept, scale=strength)

    return _edit({layer: at(layer) for layer in layers}, "all", modality)


def cast(evidence: Evidence, modality: Modality, layers: Sequence[int], strength: float = 1.0) -> Edit:
    """Conditional Activation Steering: `h̃ = h + f(sim(h, P_c h)) α v` (arXiv 2409.05907).

    Faithful: `sim` is the cosine, `P_c = c cᵀ/cᵀc`; f compares it with a threshold in whichever sense separates better,
    once, on the mean over the prompt in the first forward; v and c are leading principal components. Ours: the prompt's
    mean is that of the question's tokens; no tanh around `P_c h`; block and sense by AUROC and the threshold by
    Youden's rule, in place of F1 over a grid; v has the length of its share in the mean difference; the prompt before
    its last token is not steered.

    Args:
        evidence: see `caa`.
        modality: see `caa`.
        layers: see `caa`.
        strength: α, in units of the mean difference's part along v.
    """

    def at(layer: int) -> op.Operator:
        own, refusal = spoken(evidence, layer)
        # The pairs, each centred at its own midpoint, are ±Δ/2: their leading component is that of the Δ.
        axis = leading(refusal - own, "responses and refusals")
        return op.Add((axis @ (refusal - own).mean(dim=0)) * axis, strength)

    edit = _edit({layer: at(layer) for layer in layers}, "generated", modality)
    return edit.when(condition(evidence))


def angular(evidence: Evidence, modality: Modality, layers: Sequence[int], strength: float = 180.0) -> Edit:
    """Angular Steering, adaptive: `h̃ = h − P h + ‖P h‖ (cos θ b₁ + sin θ b₂)` where ⟨h, b₁⟩ > 0 (arXiv 2510.26243).

    Faithful: one plane for all blocks; b₁ is the candidate direction, one per block, most alike to the others; b₂ the
    first principal component of the candidates, orthogonal to b₁; candidates are differences of the means of unit
    states. Ours: b₁ is *telling* (x⁻ − x⁺), so that θ = 180° is refusal; outputs of blocks in place of the inputs of
    both norms.

    Args:
        evidence: see `caa`; candidates come from all collected blocks, at least two.
        modality: see `caa`.
        layers: see `caa`.
        strength: θ in degrees, from telling.

    Raises:
        RMuseError: fewer than two blocks collected.
    """
    candidates = []
    for layer in evidence.layers:
        own, refusal = (unit(unit(side).mean(dim=0)) for side in spoken(evidence, layer))
        candidates.append(own - refusal)
    if len(candidates) < 2:
        raise RMuseError(
            f"Angular Steering takes its plane from two blocks or more, got {len(candidates)}: collect all of them"
        )
    stacked = torch.stack(candidates)
    alike = (unit(stacked) @ unit(stacked).mT).mean(dim=1)
    second = leading(stacked - stacked.mean(dim=0), "directions of all blocks")
    turn = op.RotateInPlane(stacked[int(alike.argmax())], second, strength)
    return _edit(dict.fromkeys(layers, turn), "generated", modality)


def spherical(evidence: Evidence, modality: Modality, layers: Sequence[int], strength: float = 0.6) -> Edit:
    """Spherical Steering: `h̃ = ‖h‖ slerp(u(h), μ; t)`, `t = clip(α (δ − β)/(1 − β))`, δ > β (arXiv 2602.08169).

    `δ = p(−μ) − p(μ)` is the softmax-weighted doubt, see `Confidence`. Faithful: μ the unit difference in means, −μ
    its antipode, κ = 20, the gate, the norm, the tokens. Ours: β = 0 fixed, so that the budget goes to α; several
    blocks.

    Args:
        evidence: see `caa`.
        modality: see `caa`.
        layers: see `caa`.
        strength: α.
    """
    angle = op.Confidence(strength)
    return _edit({at: op.SlerpToward(shift(evidence, at), angle) for at in layers}, "generated", modality)


def alphasteer(evidence: Evidence, modality: Modality, layers: Sequence[int], strength: float = 1.0) -> Edit:
    """AlphaSteer: `h̃ = h + λ Δ P h`, `Δ = argmin ‖Δ P H_f − R‖² + α ‖Δ P‖²` (arXiv 2506.07022).

    Every column of R is the refusal vector r, hence `Δ P h = r ⟨a, h⟩` with `a = P (P H_f H_fᵀ P + α P)⁺ P H_f 1`.
    P projects onto the directions of least energy in retain states. Faithful: the closed form and P. Ours: H_f and the
    retain states hold prompts and responses, as each steered token has its own coefficient ⟨a, h⟩, where the authors'
    code takes that of the last prompt token for the whole prompt and leaves generated tokens alone.

    Args:
        evidence: see `caa`.
        modality: see `caa`.
        layers: see `caa`.
        strength: λ; 1 adds about r to a forget state.

    Raises:
        RMuseError: forget states that lie outside the null space altogether.
    """

    def at(layer: int) -> op.Operator:
        forget, others = asked(evidence, layer)
        own, _ = spoken(evidence, layer)
        kept = [side[span].at(layer) for side in (evidence.step, evidence.direct) for span in side]
        return read_and_write(
            torch.cat([forget, own]), torch.cat([others, *kept]), shift(evidence, layer), strength
        )

    return _edit({layer: at(layer) for layer in layers}, "generated", modality)


def mllmeraser(evidence: Evidence, modality: Modality, layers: Sequence[int], strength: float = 1.0) -> Edit:
    """MLLMEraser: `h̃_t = h_t + λ W P h_end` in the prefill alone, W and P as in AlphaSteer (arXiv 2510.04217).

    Faithful: the closed form, fitted on last prompt tokens; the prompt is steered, generated tokens are not. Ours: the
    erasure direction is the mean of x⁺ − x⁻, without adversarially perturbed images on the recalling side; and
    `h̃_t = h_t + λ W P h_t`, each token of the question by its own coefficient, where the authors broadcast that of the
    last one: no operator sees another token's state. Image tokens and what stands before them are left alone.

    Args:
        evidence: see `caa`.
        modality: see `caa`.
        layers: see `caa`.
        strength: λ.

    Raises:
        RMuseError: see `alphasteer`.
    """

    def at(layer: int) -> op.Operator:
        return read_and_write(*asked(evidence, layer, "last"), shift(evidence, layer), strength)

    return _edit({layer: at(layer) for layer in layers}, "prompt", modality)


def linear_act(evidence: Evidence, modality: Modality, layers: Sequence[int], strength: float = 1.0) -> Edit:
    """Linear-AcT: `h̃ = (1 − λ) h + λ (ω ⊙ h + β)`, the optimal transport of each coordinate (arXiv 2410.23054).

    Faithful: ω and β by least squares between sorted pooled states of x⁻ and x⁺, interpolated. Ours: unlimited
    support; all blocks are fitted on unedited states, where the authors fit each block behind the edited ones before
    it; tokens before the last one of the prompt are left alone.

    Args:
        evidence: see `caa`.
        modality: see `caa`.
        layers: see `caa`.
        strength: λ; 1 transports all the way.
    """
    maps = {at: op.PerCoordinate.transporting(*spoken(evidence, at), strength) for at in layers}
    return _edit(maps, "generated", modality)


def _edit(operators: Mapping[int, op.Operator], tokens: Tokens, modality: Modality) -> Edit:
    return op.layerwise(operators).on(tokens).given(modality).named(modality)
