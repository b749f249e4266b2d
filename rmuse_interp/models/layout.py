"""Paths of decoder blocks and vision tower in each family of models, and the search for them."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final
from weakref import WeakKeyDictionary

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
"""Paths searched for decoder blocks, in order; the first list of modules found is used."""

PROJECTOR_PATHS: Final = ("model.multi_modal_projector", "multi_modal_projector", "model.connector")
"""Paths searched for the projector from the tower's width to that of the residual stream."""

VISION_PATHS: Final = ("model.vision_tower", "vision_tower", "model.visual", "visual", "model.vision_model")
"""Paths searched for the vision tower; text-only models have none."""

_IMAGE_TOKEN: Final = ("image_token_id", "image_token_index")
_FRAME: Final = re.compile(r"img|image|vision|video|^<row_\d+_col_\d+>$|^TILE", re.IGNORECASE)
"""Added tokens that stand around or between the pieces of a picture."""
_SPECIAL: Final = (
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
)


@dataclass(frozen=True)
class Vocabulary:
    """The token ids that decide where edits act and gates read: image placeholders and special tokens.

    Args:
        image: id of the image placeholder; None for text-only models.
        special: ids of special tokens, including the image placeholder.
        piece: function from a token id to its text; None without a known tokenizer.
        frame: ids of the tokens around and between the pieces of a picture: its start and end, breaks, rows, tiles.
    """

    image: int | None
    special: frozenset[int]
    piece: Callable[[int], str] | None = field(default=None, compare=False)
    frame: frozenset[int] = frozenset()

    def as_record(self) -> dict[str, object]:
        """The ids as plain JSON."""
        return {"image": self.image, "special": sorted(self.special), "frame": sorted(self.frame)}

    def known(self, record: object) -> "Vocabulary":
        """The ids of a record, if this vocabulary was read from a configuration alone; else its own."""
        if self.piece is not None or not isinstance(record, Mapping):
            return self
        return Vocabulary(record["image"], frozenset(record["special"]), None, frozenset(record["frame"]))


@dataclass(frozen=True, eq=False)
class Layout:
    """Paths and sizes of a model that plans need.

    Args:
        path: dotted path of the list of decoder blocks.
        blocks: the decoder blocks, in order; the output of block l is `blocks.{l}.hook_resid_post`.
        vision: dotted path of the vision tower, or None.
        projector: dotted path of the projector after it, or None.
        d_model: width of the residual stream.
        arguments: names of the forward's arguments, in order.
        vocabulary: image and special token ids.
        family: `model_type` of the configuration.
        skipped: blocks that do not run where no row has a picture (cross-attention blocks of Mllama).
    """

    path: str
    blocks: nn.ModuleList
    vision: str | None
    projector: str | None
    d_model: int
    arguments: tuple[str, ...]
    vocabulary: Vocabulary
    family: str = ""
    skipped: frozenset[int] = frozenset()

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def always(self) -> list[int]:
        """The blocks that run for every query, with and without a picture."""
        return [layer for layer in range(self.n_layers) if layer not in self.skipped]


_FOUND: Final[WeakKeyDictionary[nn.Module, Layout]] = WeakKeyDictionary()
"""Layouts found with a tokenizer, reused when a plan is attached to the model later."""


def find_layout(hf_model: nn.Module, blocks: str | None = None, tokenizer: Any = None) -> Layout:
    """The layout of a Hugging Face model; if it was loaded with its tokenizer, the layout found then.

    Args:
        hf_model: the model with its head, e.g. `LlavaForConditionalGeneration`.
        blocks: dotted path of the decoder blocks, for families not listed in `BLOCK_PATHS`.
        tokenizer: gives the special tokens and the text of tokens; without it, the special tokens named in the
            configuration are used.

    Raises:
        RMuseError: no list of modules under any known path, or none under `blocks`.
    """
    hf_model = unwrapped(hf_model)
    if blocks is None and tokenizer is None and hf_model in _FOUND:
        return _FOUND[hf_model]
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
    ids = _configured(config, text) if tokenizer is None else set(tokenizer.all_special_ids)
    layout = Layout(
        path=found,
        blocks=_at(hf_model, found),
        vision=_first(hf_model, VISION_PATHS),
        projector=_first(hf_model, PROJECTOR_PATHS),
        d_model=int(getattr(text, "hidden_size", 0) or getattr(text, "n_embd", 0)),
        # Of the class: nnsight replaces `forward` on the instance, and its signature begins with self.
        arguments=tuple(inspect.signature(type(hf_model).forward).parameters)[1:],
        vocabulary=Vocabulary(
            image,
            frozenset(ids if image is None else ids | {image}),
            None if tokenizer is None else cache(lambda token: tokenizer.decode([token])),
            frozenset() if image is None or tokenizer is None else _frame(tokenizer) - {image},
        ),
        family=str(getattr(config, "model_type", "")),
        skipped=frozenset(getattr(text, "cross_attention_layers", None) or ()),
    )
    if tokenizer is not None:
        _FOUND[hf_model] = layout
    return layout


def unwrapped(hf_model: nn.Module) -> nn.Module:
    """The Hugging Face model inside `torch.compile(...)` or a PEFT model; any other model itself.

    Raises:
        RMuseError: an adapter that puts virtual tokens before the prompt (prompt tuning, prefix tuning).
    """
    inner = getattr(hf_model, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        return unwrapped(inner)
    base = getattr(hf_model, "get_base_model", None)
    if base is None:
        return hf_model
    if getattr(getattr(hf_model, "active_peft_config", None), "is_prompt_learning", False):
        raise RMuseError(
            "an adapter that changes weights (such as LoRA) was required, this one puts virtual tokens before the "
            "prompt, which a plan cannot tell from its own"
        )
    return unwrapped(base())


def _frame(tokenizer: Any) -> frozenset[int]:
    return frozenset(i for token, i in tokenizer.get_added_vocab().items() if _FRAME.search(token))


def _configured(*configs: Any) -> set[int]:
    ids: set[int] = set()
    for config in configs:
        for name in _SPECIAL:
            value = getattr(config, name, None)
            ids |= set(value if isinstance(value, list | tuple) else [] if value is None else [value])
    return ids


def _first(module: nn.Module, paths: tuple[str, ...]) -> str | None:
    return next((path for path in paths if _at(module, path) is not None), None)


def _at(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
        if module is None:
            return None
    return module
