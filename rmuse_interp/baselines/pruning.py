"""MANU's neurons: the MLP neurons that are more active on forget rows than on retain rows.

A neuron is one input of the last linear layer of a block's MLP; pruning sets its column of that layer's weight to 0.
Four measures of its activations have equal weight (arXiv 2502.15910): mean absolute value, share of tokens on which it
is active, variance, root mean square.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rmuse_interp.baselines.batches import Row, batches, encode
from rmuse_interp.baselines.trainables import linear_names
from rmuse_interp.lens.lens import LensModel

ACTIVE: Final = 1e-1
"""Absolute activation from which a neuron counts as active, as a share of the block's root mean square."""
EPSILON: Final = 1e-6


def measures(
    activations: Float[Tensor, "tokens neurons"], active: float
) -> Float[Tensor, "measures neurons"]:
    """The four measures of each neuron: mean |z|, share of |z| > `active`, variance, root mean square."""
    size = activations.abs()
    return torch.stack(
        [
            size.mean(dim=0),
            (size > active).to(size.dtype).mean(dim=0),
            activations.var(dim=0, unbiased=False),
            activations.square().mean(dim=0).sqrt(),
        ]
    )


def importance(
    forget: Float[Tensor, "measures neurons"], retain: Float[Tensor, "measures neurons"]
) -> Float[Tensor, " neurons"]:
    """Sum over the measures of `I_forget / (I_retain + ε)`, each measure relative to its mean over the neurons."""
    relative = [side / (side.mean(dim=1, keepdim=True) + EPSILON) for side in (forget, retain)]
    return (relative[0] / (relative[1] + EPSILON)).sum(dim=0)


def output_names(lens: LensModel) -> list[str]:
    """List the last linear layer of each block's MLP, which maps its neurons to the residual stream, by name."""
    return [linear_names(lens, [layer])[-1] for layer in range(lens.n_layers)]


def neuron_scores(
    lens: LensModel, forget: Sequence[Row], retain: Sequence[Row], batch_size: int
) -> Float[Tensor, "layers neurons"]:
    """Importance of every neuron, summed over the kinds of query, so that neither image nor text alone decides."""
    total: Tensor | None = None
    for seen in (True, False):
        sides = [[r for r in rows if (r.example.modality == "image") == seen] for rows in (forget, retain)]
        if not all(sides):
            continue
        read = [_activations(lens, rows, batch_size) for rows in sides]
        scores = []
        for mine, other in zip(*read, strict=True):
            active = ACTIVE * float(other.square().mean().sqrt())
            scores.append(importance(measures(mine, active), measures(other, active)))
        total = torch.stack(scores) if total is None else total + torch.stack(scores)
    assert total is not None  # the caller has rows of some kind on both sides
    return total


def _activations(
    lens: LensModel, rows: Sequence[Row], batch_size: int
) -> list[Float[Tensor, "tokens neurons"]]:
    """Collect the inputs of the last linear layer of each block's MLP, at the response tokens of all rows."""
    found: list[list[Tensor]] = [[] for _ in range(lens.n_layers)]
    said: Tensor | None = None

    def keeper(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[layer].append(inputs[0].detach()[said].float().cpu())

        return keep

    with ExitStack() as undo, torch.no_grad():
        for layer, name in enumerate(output_names(lens)):
            handle = lens.hf.get_submodule(name).register_forward_pre_hook(keeper(layer))
            undo.callback(handle.remove)
        for some in batches(rows, batch_size, 0):
            batch = encode(lens, some)
            said = batch.response
            lens.hf(**batch.encoding, use_cache=False)
    return [torch.cat(parts) for parts in found]


def prune(
    weights: Sequence[Float[Tensor, "d neurons"]], scores: Float[Tensor, "layers neurons"], share: float
) -> int:
    """Set the columns with the highest scores over all blocks to 0; return their number."""
    count = max(1, round(share * scores.numel()))
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    chosen[scores.flatten().argsort(descending=True, stable=True)[:count]] = True
    with torch.no_grad():
        for weight, columns in zip(weights, chosen.view_as(scores), strict=True):
            weight[:, columns.to(weight.device)] = 0
    return count
