"""Which weights matter more to the forget rows than to the retain rows: MMUnlearner's mask."""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rmuse_interp.baselines.batches import Row, batches, encode
from rmuse_interp.baselines.losses import token_loss
from rmuse_interp.baselines.trainables import Trainable
from rmuse_interp.lens.lens import LensModel

THRESHOLD: Final = 1.0
"""Least ratio of the two saliencies for a weight to move."""


def mask_of(
    forget: Float[Tensor, "*shape"], retain: Float[Tensor, "*shape"], threshold: float = THRESHOLD
) -> Bool[Tensor, "*shape"]:
    """Weights at least `threshold` times as salient to the forget rows as to the retain rows (arXiv 2502.11051).

    Weights that neither side has a gradient for do not move.
    """
    return (forget >= threshold * retain) & (forget > 0)


def relative(saliencies: Sequence[Float[Tensor, "..."]]) -> list[Float[Tensor, "..."]]:
    """Saliencies relative to their mean over all weights.

    Squared gradients shrink with the loss: rows that are known by heart would have no salient weight beside others.
    """
    mean = sum(float(s.sum()) for s in saliencies) / sum(s.numel() for s in saliencies)
    return [s / mean if mean > 0 else s for s in saliencies]


def saliency(
    lens: LensModel, trainable: Trainable, rows: Sequence[Row], batch_size: int, seed: int
) -> list[Float[Tensor, "..."]]:
    """Diagonal of the empirical Fisher information: mean squared gradient of L over batches, per trained parameter.

    Args:
        lens: the model.
        trainable: whose parameters are looked at.
        rows: what L is taken on.
        batch_size: rows per gradient.
        seed: of the batches.
    """
    parameters = trainable.parameters()
    found = [torch.zeros_like(p) for p in parameters]
    drawn = batches(rows, batch_size, seed)
    for some in drawn:
        batch = encode(lens, some)
        loss = token_loss(lens.hf(**batch.encoding, use_cache=False).logits, batch.labels)
        for total, gradient in zip(found, torch.autograd.grad(loss, parameters), strict=True):
            total += gradient.square() / len(drawn)
    return found
