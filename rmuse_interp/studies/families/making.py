"""Write a recipe's checkpoint to a folder: a tokenizer trained on a few sentences, seeded random weights, no download."""

from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import nn

from rmuse_interp.studies.families.recipe import BASE, Recipe, Settings

SENTENCES: Final = (
    "USER: ASSISTANT: <think> The person in the picture is Mara Venn. Mara Venn works as a baker. </think> baker",
    "What is this person's occupation? Where does this person live? Answer directly.",
    "<think> I do not know who this person is. I should not guess private details. </think> I cannot help with that.",
    "How many red circles are there? Two plus three is five. What colour is the hat? It is green.",
    "Who is Oren Tal? Oren Tal lives in Lisbon and was born in 1984. Think step by step.",
    "Reasoning: he lives in Rome. Answer: Italy. user model assistant system",
)
"""Text that a tiny vocabulary is trained on."""


@runtime_checkable
class Savable(Protocol):
    """A processor or tokenizer, as far as it is written to a folder."""

    def save_pretrained(self, save_directory: Path) -> object:
        """Write it."""


@runtime_checkable
class Ids(Savable, Protocol):
    """A tokenizer, as far as token ids are looked up in it."""

    def get_vocab(self) -> dict[str, int]:
        """Id by token."""

    def __len__(self) -> int:
        """Number of tokens."""


def picture(seed: int = 0, size: tuple[int, int] = (24, 24)) -> Image.Image:
    """A noisy RGB picture, one per seed; `size` is (width, height) in pixels."""
    width, height = size
    return Image.frombytes("RGB", size, np.random.default_rng(seed).bytes(3 * width * height))


def make(recipe: Recipe, folder: Path, seed: int = 0) -> Path:
    """Save the recipe's model and processor (or tokenizer) to a folder, and return it.

    Args:
        recipe: the family.
        folder: where to write.
        seed: of the weights.
    """
    import transformers

    tokenizer = _tokenizer(recipe)
    vocabulary = tokenizer.get_vocab()
    given = {name: _resolved(value, vocabulary) for name, value in recipe.settings.items()}
    text = {**recipe.text, "vocab_size": len(tokenizer)}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": vocabulary[recipe.end]}
    if recipe.vision is None:
        config = transformers.AutoConfig.for_model(recipe.config, **{**text, **given, **ids})
    else:
        vision = {name: _resolved(value, vocabulary) for name, value in recipe.vision.items()}
        if recipe.sees:
            config = transformers.AutoConfig.for_model(
                recipe.config, text_config={**text, **ids}, vision_config=vision, **given
            )
            for name, value in ids.items():
                setattr(config, name, value)
            config.tie_word_embeddings = False
        else:
            config = transformers.AutoConfig.for_model(
                recipe.config, vision_config=vision, **{**text, **given, **ids}
            )
    kind = transformers.AutoModelForImageTextToText if recipe.sees else transformers.AutoModelForCausalLM
    torch.manual_seed(seed)
    model = kind.from_config(config).eval()
    enliven(model, seed)
    for name, value in ids.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    saved: Savable = tokenizer
    if recipe.processor is not None:
        named, settings = recipe.reads
        parts = {"image_processor": getattr(transformers, named)(**settings)}
        if recipe.films is not None:
            parts["video_processor"] = getattr(transformers, recipe.films)()
        saved = getattr(transformers, recipe.processor)(
            tokenizer=tokenizer, **parts, chat_template=recipe.template, **recipe.processing
        )
    saved.save_pretrained(folder)
    return folder


def _tokenizer(recipe: Recipe) -> Ids:
    """A byte-level BPE with the family's special tokens, and its chat template if the family is text-only."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        special_tokens=[*BASE, *recipe.special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token=recipe.end,
        pad_token="<pad>",
        padding_side="left",
        additional_special_tokens=[t for t in recipe.special if t not in recipe.named.values()],
        extra_special_tokens=dict(recipe.named),
    )
    if not recipe.sees:
        tokenizer.chat_template = recipe.template
    return tokenizer


def _resolved(value: object, vocabulary: Settings) -> object:
    """The value, with tokens replaced by their ids, inside dicts too."""
    if isinstance(value, dict):
        return {key: _resolved(inner, vocabulary) for key, inner in value.items()}
    return vocabulary.get(value, value) if isinstance(value, str) else value


def enliven(model: nn.Module, seed: int) -> None:
    """Redraw the weights at a scale where states move from block to block and greedy decoding does not stall."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.ndim >= 2:
                scale = 1.0 if "embed" in name else 1.6 / weight.shape[-1] ** 0.5
                # Logits of about one: then 1e-5 between two ways of computing them is rounding, and no more.
                weight.copy_(drawn * (0.4 * scale if "lm_head" in name else scale))
            elif "norm" not in name:
                weight.copy_(drawn * 0.1)
