"""The memory that passes over a batch need, estimated before the first one."""

from collections.abc import Sequence

import torch

from rmuse_interp.data import Example
from rmuse_interp.models.devices import Room, free_memory, gigabytes
from rmuse_interp.models.loaded import LoadedModel


def bytes_per_token(model: LoadedModel, logits: bool) -> int:
    """Bytes that a token of a batch takes while a model runs, beside the weights.

    `b · (2 · L · k · w + 4 · d + 3 · f + v)`: keys and values of L blocks with k heads of width w, the activations of one
    block of width d with an MLP of width f, and the logits over v entries if they are kept for all tokens; b bytes each.

    Args:
        model: the model.
        logits: whether logits are computed for all tokens, and not for the last ones only.
    """
    config = model.hf.config.get_text_config()
    heads = int(getattr(config, "num_attention_heads", 1))
    width = int(getattr(config, "head_dim", None) or model.d_model // heads)
    held = 2 * model.n_layers * int(getattr(config, "num_key_value_heads", None) or heads) * width
    inner = int(getattr(config, "intermediate_size", None) or 4 * model.d_model)
    values = held + 4 * model.d_model + 3 * inner + (int(config.vocab_size) if logits else 0)
    return values * model.dtype.itemsize


def require_room(
    model: LoadedModel, examples: Sequence[Example], batch_size: int, more: int, logits: bool = False
) -> None:
    """Raise unless a batch of the longest of some examples fits into memory; see `bytes_per_token`.

    Args:
        model: the model.
        examples: the questions to come.
        batch_size: most rows per batch.
        more: most tokens per row behind the prompt.
        logits: whether logits are computed for all tokens.

    Raises:
        RMuseError: needed, free, and the batch size that would fit.
    """
    if not examples:
        return
    longest = max(examples, key=lambda e: (e.image is not None, len(e.prompt())))
    tokens = model.encoder.encode([longest.prompt()], [longest.image])["input_ids"].shape[1] + more
    row = tokens * bytes_per_token(model, logits)
    rows = min(batch_size, len(examples))
    place: torch.device = model.device
    free = free_memory(place)
    fits = (
        0 if free is None else next((n for n in range(rows, 0, -1) if Room("", n * row, free, place).fits), 0)
    )
    instead = f"batch_size={fits} (--batch-size {fits}) fits" if fits else "a smaller dtype, or a GPU, may do"
    Room(f"a batch of {rows} rows of {tokens} tokens on {model.name}", rows * row, free, place).require(
        f"{instead}; one row needs {gigabytes(row)}"
    )
