"""Sampling independent of a batch's size and order: every row has its own random generator."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor


class GumbelNoise(LogitsProcessor):
    """Makes greedy decoding sample: argmax(logits/T + G), G standard Gumbel, is a draw from softmax(logits/T).

    The noise of a row follows from its seed and the number of tokens drawn, whatever rows are beside it.

    Args:
        temperature: T.
        seeds: one per row.
    """

    def __init__(self, temperature: float | int, seeds: Sequence[int]):
        self.temperature = temperature
        self._drawing = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(
        self, input_ids: Int[Tensor, "batch tokens"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """The logits over T with fresh noise on them, in float32."""
        # −log of a standard exponential variable is standard Gumbel.
        drawn = [torch.empty(scores.shape[1]).exponential_(generator=draw) for draw in self._drawing]
        return scores.float() / self.temperature - torch.stack(drawn).log().to(scores.device)
