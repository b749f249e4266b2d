"""Position ids of padded rows, where a model does not find them by itself."""

import inspect
from collections.abc import Mapping
from typing import Final

from torch import Tensor, nn

_SHIFTED_ALIKE: Final = frozenset({"default", "linear", "llama3", "yarn", "proportional"})
"""Rotary embeddings whose attention depends on distances only, so that padding on the left changes nothing."""


def positions(hf_model: nn.Module, attention_mask: Tensor | None) -> dict[str, Tensor]:
    """`{"position_ids": …}` [batch, tokens], counting each row's unmasked tokens from 0; {} where it is not needed.

    Called directly, a model counts columns, padding included, whereas `generate` counts unmasked tokens. This matters to
    learned absolute positions (GPT-2): a row padded on the left would be another row. Rotary embeddings see distances
    only, and families with several axes of positions (Qwen-VL) compute their own: both are left alone.
    """
    if attention_mask is None or attention_mask.ndim != 2 or not _absolute(hf_model):
        return {}
    return {"position_ids": (attention_mask.long().cumsum(dim=1) - 1).clamp_min(0)}


def _absolute(hf_model: nn.Module) -> bool:
    if "position_ids" not in inspect.signature(type(hf_model).forward).parameters:
        return False
    config = getattr(hf_model, "config", None)
    rope = getattr(config.get_text_config(), "rope_parameters", None) if config is not None else None
    if not isinstance(rope, Mapping) or not rope:
        return True
    # One record, or one for each type of layer.
    every = [one for one in rope.values() if isinstance(one, Mapping)] or [rope]
    return not all(
        one.get("rope_type", "default") in _SHIFTED_ALIKE and "llama_4_scaling_beta" not in one
        for one in every
    )
