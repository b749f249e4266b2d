"""`relearned`: an attack on trained baselines by plain fine-tuning on a few forgotten rows."""

from collections.abc import Sequence
from typing import Final

import torch

from rmuse_interp import RMuseError
from rmuse_interp.baselines.batches import batches, encode, rows_of
from rmuse_interp.baselines.losses import token_loss
from rmuse_interp.baselines.store import merged
from rmuse_interp.baselines.trainables import LowRank
from rmuse_interp.data import Example
from rmuse_interp.data.spans import DEFAULT_DELIMITERS
from rmuse_interp.lens.lens import LensModel

STEPS: Final = 20
"""Number of optimiser steps."""
RATE: Final = 1e-3
"""Learning rate."""
BATCH: Final = 8
"""Rows per step."""


def relearned(
    lens: LensModel,
    examples: Sequence[Example],
    *,
    steps: int = STEPS,
    rate: float = RATE,
    batch_size: int = BATCH,
    seed: int = 0,
    delimiters: tuple[str, str] = DEFAULT_DELIMITERS,
) -> LensModel:
    """Fine-tune a copy of the model (LoRA, AdamW) on the reference responses of a few examples.

    Its responses to other questions, worded differently from the examples, then show whether knowledge was removed or
    only covered.

    Args:
        lens: an unlearned model; not changed.
        examples: questions about the forgotten people, none of which is scored.
        steps: number of optimiser steps.
        rate: learning rate.
        batch_size: rows per step.
        seed: seed of adapters, order and dropout.
        delimiters: delimiters of the responses.

    Raises:
        RMuseError: no examples, or no steps.
    """
    if not examples or steps < 1 or batch_size < 1 or rate <= 0:
        raise RMuseError(
            "at least one example to learn again, one step, one row in it and a positive rate were required, got "
            f"{len(examples)}, {steps}, {batch_size} and {rate}"
        )
    rows, mode = rows_of(examples, delimiters), lens.hf.training
    adapters = LowRank(lens, seed=seed)
    try:
        optimiser = torch.optim.AdamW(adapters.parameters(), lr=rate, weight_decay=0.0)
        lens.hf.train()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            done = 0
            while done < steps:
                for some in batches(rows, batch_size, seed + done)[: steps - done]:
                    batch = encode(lens, some)
                    loss = token_loss(lens.hf(**batch.encoding, use_cache=False).logits, batch.labels)
                    optimiser.zero_grad(set_to_none=True)
                    loss.backward()
                    optimiser.step()
                    done += 1
        state = adapters.state()
    finally:
        adapters.undo()
        lens.hf.train(mode)
    return merged(lens, state, adapters.config, "relearned")
