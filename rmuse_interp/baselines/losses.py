"""The baselines' losses: pure functions of logits, labels and hidden states, all to be minimised.

Labels are aligned with the input tokens: `labels[b, t]` is token t itself where it belongs to the response, `IGNORED`
elsewhere. Logits at t − 1 predict it.
"""

from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

IGNORED: Final = -100
"""Label of tokens that are left out of the loss."""


def token_loss(
    logits: Float[Tensor, "batch tokens vocab"], labels: Int[Tensor, "batch tokens"]
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood (nats) of a batch's response tokens: the loss L of all baselines."""
    predicted, target = _response(logits, labels)
    return functional.cross_entropy(predicted.float(), target)


def row_loss(
    logits: Float[Tensor, "batch tokens vocab"], labels: Int[Tensor, "batch tokens"]
) -> Float[Tensor, " batch"]:
    """Mean negative log-likelihood (nats) of the response tokens, one per row."""
    nats = functional.cross_entropy(
        logits[:, :-1].transpose(1, 2).float(), labels[:, 1:], reduction="none", ignore_index=IGNORED
    )
    return nats.sum(dim=1) / (labels[:, 1:] != IGNORED).sum(dim=1)


def npo(loss: Float[Tensor, " batch"], reference: Float[Tensor, " batch"], beta: float) -> Float[Tensor, ""]:
    """Negative preference optimisation, `−(2/β) log σ(β (L − L_ref))`, averaged over rows (arXiv 2404.05868, Eq. 3).

    Args:
        loss: L of each row, from `row_loss`.
        reference: the same of the original model.
        beta: how fast the gradient fades as a row becomes unlikely; for β → 0 it is that of gradient ascent.
    """
    return -(2 / beta) * functional.logsigmoid(beta * (loss - reference)).mean()


def divergence(
    logits: Float[Tensor, "batch tokens vocab"],
    reference: Float[Tensor, "batch tokens vocab"],
    labels: Int[Tensor, "batch tokens"],
) -> Float[Tensor, ""]:
    """KL(original ‖ trained) of the next token, averaged over response positions (nats)."""
    log_trained = functional.log_softmax(_response(logits, labels)[0].float(), dim=-1)
    log_original = functional.log_softmax(_response(reference, labels)[0].float(), dim=-1)
    return (log_original.exp() * (log_original - log_trained)).sum(dim=-1).mean()


def distance(
    states: Float[Tensor, "batch tokens d"],
    target: Float[Tensor, "*batch_tokens d"],
    mask: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, ""]:
    """Mean squared difference per coordinate between the masked tokens' states and a target; 0 if no token counts.

    Args:
        states: states of the model in training.
        target: one vector for all tokens (the random direction c·u), or the original model's states.
        mask: tokens that count.
    """
    if not bool(mask.any()):
        return states.sum() * 0.0
    difference = states - target
    return difference[mask].float().square().mean()


def _response(
    logits: Float[Tensor, "batch tokens vocab"], labels: Int[Tensor, "batch tokens"]
) -> tuple[Float[Tensor, "n vocab"], Int[Tensor, " n"]]:
    """Return the logits that predict response tokens, and these tokens."""
    chosen = labels[:, 1:] != IGNORED
    return logits[:, :-1][chosen], labels[:, 1:][chosen]


def random_direction(d: int, seed: int, like: Tensor) -> Float[Tensor, " d"]:
    """The unit vector u of RMU and R2MU: uniform on [0, 1) in every coordinate, normalised (arXiv 2403.03218)."""
    drawn = torch.rand(d, generator=torch.Generator().manual_seed(seed))
    return (drawn / drawn.norm()).to(like.device, like.dtype)
