"""Where each family of models keeps its decoder blocks and its vision tower: data, and one search over it."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from rmuse_interp import RMuseError

BLOCK_PATHS: Final = (
    "model.language_model.layers",  # LLaVA, LLaVA-NeXT, Qwen2-VL and later, PaliGemma, Gemma 3, Mistral 3
    "language_model.model.layers",  # the same families in checkpoints of older versions
    "model.text_model.layers",  # Idefics, SmolVLM
    "model.layers",  # Llama, Mistral, Qwen, Gemma, Phi
    "language_model.layers",
    "transformer.h",  # GPT-2, Falcon
    "gpt_neox.layers",  # Pythia
    "model.decoder.layers",  # OPT
)
"""Paths under which decoder blocks are looked for, in order; the first list of modules found is taken."""

VISION_PATHS: Final = ("model.vision_tower", "vision_tower", "model.visual", "visual", "model.vision_model")
"""Paths under which the vision tower is looked for; text-only models have none."""

_IMAGE_TOKEN: Final = ("image_token_id", "image_token_index")
_SPECIAL: Final = (
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
)


@dataclass(frozen=True)
class Vocabulary:
    """The token ids that decide where edits act and gates read: image placeholders and special tokens."""

    image: int | None
    special: frozenset[int]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a model keeps what plans need.

    Args:
        path: dotted path of the list of decoder blocks.
        blocks: the decoder blocks, in order; the output of block l is `blocks.{l}.hook_resid_post`.
        vision: dotted path of the vision tower, or None.
        d_model: width of the residual stream.
        arguments: names of the forward's arguments, in order.
        vocabulary: image and special token ids.
    """

    path: str
    blocks: nn.ModuleList
    vision: str | None
    d_model: int
    arguments: tuple[str, ...]
    vocabulary: Vocabulary

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)


def find_layout(
    hf_model: nn.Module, blocks: str | None = None, special: Iterable[int] | None = None
) -> Layout:
    """The layout of a Hugging Face model.

    Args:
        hf_model: the model with its head, e.g. `LlavaForConditionalGeneration`.
        blocks: dotted path of the decoder blocks, for families not listed in `BLOCK_PATHS`.
        special: special token ids of its tokenizer; what its configuration names where absent.

    Raises:
        RMuseError: no list of modules under any known path, or none under `blocks`.
    """
    tried = BLOCK_PATHS if blocks is None else (blocks,)
    found = next((path for path in tried if isinstance(_at(hf_model, path), nn.ModuleList)), None)
    if found is None:
        raise RMuseError(
            f"the decoder blocks of {type(hf_model).__name__} were looked for under {', '.join(tried)} and not found; "
            'name their path: load_model(..., blocks="model.language_model.layers")'
        )
    config: Any = getattr(hf_model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    image = next(
        (getattr(config, name) for name in _IMAGE_TOKEN if getattr(config, name, None) is not None), None
    )
    ids = _configured(config, text) if special is None else set(special)
    return Layout(
        path=found,
        blocks=_at(hf_model, found),
        vision=next((path for path in VISION_PATHS if _at(hf_model, path) is not None), None),
        d_model=int(getattr(text, "hidden_size", 0) or getattr(text, "n_embd", 0)),
        arguments=tuple(inspect.signature(hf_model.forward).parameters),
        vocabulary=Vocabulary(image, frozenset(ids if image is None else ids | {image})),
    )


def _configured(*configs: Any) -> set[int]:
    ids: set[int] = set()
    for config in configs:
        for name in _SPECIAL:
            value = getattr(config, name, None)
            ids |= set(value if isinstance(value, list | tuple) else [] if value is None else [value])
    return ids


def _at(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
        if module is None:
            return None
    return module
