"""Round the linear layers of the language model to a few bits, in a copy or temporarily in place."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rmuse_interp import RMuseError
from rmuse_interp.edits.hooks import attached
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.models.fingerprint import remember
from rmuse_interp.models.layout import find_layout

GROUPS: Final[dict[int, int | None]] = {8: None, 4: 32}
"""Bits → number of input weights that share a scale; None: a whole output channel, as usual for 8 bits."""


def quantised(lens: LensModel, bits: int) -> LensModel:
    """Copy a model with the weights of its blocks' linear layers rounded to `bits`, dequantised to the same dtype.

    Round to nearest, symmetric, without calibration data. Embeddings, head, norms, biases, projector, vision tower and
    fingerprint are shared with `lens`: plans fitted on `lens` run on the copy.

    Args:
        lens: the model to copy; not changed.
        bits: 8 or 4.

    Raises:
        RMuseError: other bits, no linear layer in the blocks, a model with a plan attached.
    """
    if bits not in GROUPS:
        raise RMuseError(f"bits out of {', '.join(map(str, GROUPS))} were required, got {bits}")
    if attached(lens.hf):
        raise RMuseError(
            "a model without attached plans was required to copy it; .detach() their handles first"
        )
    linear = {id(part.weight): part.weight for part in _required(lens)}
    # deepcopy treats the objects listed here as already copied, so they are shared.
    memo: dict[int, object] = {id(held): held for held in (*lens.hf.parameters(), *lens.hf.buffers())}
    for key, weight in linear.items():
        with torch.no_grad():
            memo[key] = nn.Parameter(rounded(weight, bits, GROUPS[bits]), requires_grad=weight.requires_grad)
    twin = copy.deepcopy(lens.hf, memo)
    remember(twin, lens.fingerprint.weights)
    layout = find_layout(twin, lens.layout.path, lens.tokenizer)
    return LensModel(twin, lens.processor, layout, lens.name)


@contextmanager
def rounding(lens: LensModel, bits: int) -> Iterator[None]:
    """Context in which the weights that `quantised` rounds are rounded at each use: slower, but without a copy.

    Args:
        lens: the model; always restored on exit.
        bits: 8 or 4.

    Raises:
        RMuseError: other bits, no linear layer in the blocks.
    """
    if bits not in GROUPS:
        raise RMuseError(f"bits out of {', '.join(map(str, GROUPS))} were required, got {bits}")
    parts = _required(lens)
    for part in parts:
        parametrize.register_parametrization(part, "weight", _Rounding(bits))
    try:
        yield
    finally:
        for part in parts:
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=False)


class _Rounding(nn.Module):
    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return rounded(weight, self.bits, GROUPS[self.bits])


def roundable(lens: LensModel) -> bool:
    """Whether the decoder blocks have linear layers whose weights are not packed into integers already."""
    return bool(_linear(lens))


def _linear(lens: LensModel) -> list[nn.Linear]:
    return [
        part
        for block in lens.layout.blocks
        for part in block.modules()
        if isinstance(part, nn.Linear) and part.weight.is_floating_point()
    ]


def _required(lens: LensModel) -> list[nn.Linear]:
    found = _linear(lens)
    if not found:
        raise RMuseError(f"{lens.name}: linear layers in its blocks were required to quantise it, got none")
    return found


def rounded(weight: Float[Tensor, "out in"], bits: int, group: int | None = None) -> Float[Tensor, "out in"]:
    """Round weights to a symmetric grid of 2^bits − 1 levels per output channel, or per group of its inputs.

    >>> rounded(torch.tensor([[1.0, 0.4, -0.6]]), 2)
    tensor([[ 1.,  0., -1.]])
    """
    top = 2 ** (bits - 1) - 1
    width = weight.shape[1] if group is None else group
    # The last group of a channel may be shorter.
    parts = []
    for part in weight.detach().float().split(width, dim=1):
        scale = (part.abs().amax(dim=1, keepdim=True) / top).clamp_min(torch.finfo(torch.float32).tiny)
        parts.append((part / scale).round() * scale)
    return torch.cat(parts, dim=1).to(weight.dtype)
