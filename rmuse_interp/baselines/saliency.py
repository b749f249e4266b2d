"""MMUnlearner's mask: the weights that matter more to the forget rows than to the retain rows."""

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
"""Minimum ratio of the two saliencies for a weight to be trained."""


def mask_of(
    forget: Float[Tensor, "*shape"], retain: Float[Tensor, "*shape"], threshold: float = THRESHOLD
) -> Bool[Tensor, "*shape"]:
    """Mask weights at least `threshold` times as salient to the forget as to the retain rows (arXiv 2502.11051).

    Weights without a gradient on either side are not trained.
    """
    return (forget >= threshold * retain) & (forget > 0)


def relative(saliencies: Sequence[Float[Tensor, "..."]]) -> list[Float[Tensor, "..."]]:
    """Divide saliencies by their mean over all weights.

    Squared gradients shrink with the loss: otherwise memorised rows would have no salient weights beside other rows.
    """
    mean = sum(float(s.sum()) for s in saliencies) / sum(s.numel() for s in saliencies)
    return [s / mean if mean > 0 else s for s in saliencies]


def saliency(
    lens: LensModel, trainable: Trainable, rows: Sequence[Row], batch_size: int, seed: int
) -> list[Float[Tensor, "..."]]:
    """Diagonal of the empirical Fisher information: mean squared gradient of L over batches, per trained parameter.

    Args:
        lens: the model.
        trainable: trainable with the parameters.
        rows: rows on which L is computed.
        batch_size: rows per gradient.
        seed: seed of the batches.
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
