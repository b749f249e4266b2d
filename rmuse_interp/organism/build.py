"""The organism's untrained parts: tokenizer, processor and an initialised `LlavaForConditionalGeneration`.

Everything is ordinary Hugging Face: a CLIP vision tower, a Llama decoder, a `LlavaProcessor` with a chat template
in LLaVA's form (`USER: <image>\\n{question}\\nASSISTANT: {response}`). Only the sizes are small.
"""

import random
from typing import Final

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import rmuse_interp.models  # noqa: F401  (before transformers: a broken torchvision does no harm)

# isort: split
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from rmuse_interp.data.prompts import classification_prompt, cloze_prompt
from rmuse_interp.data.world import phrases
from rmuse_interp.data.world import questions as q
from rmuse_interp.data.world.people import World
from rmuse_interp.data.world.portraits import Look

IMAGE_SIZE: Final = 48
PATCH: Final = 8
IMAGE_TOKENS: Final = (IMAGE_SIZE // PATCH) ** 2
VOCABULARY: Final = 1536
PAD, BOS, EOS, IMAGE = "<pad>", "<s>", "</s>", "<image>"

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{{ '\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}{{ '\\n' }}"
    "{% else %}ASSISTANT: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def corpus(world: World, seed: int) -> list[str]:
    """Sentences to train the tokenizer on: every name, value, wording and refusal of the world, and strangers' names."""
    rng = random.Random(f"corpus-{seed}")
    lines = [*phrases.REFUSALS_COT, *phrases.REFUSALS_DIRECT, *phrases.PREFIXES] * 20
    for person in world.everyone:
        for kind in phrases.KINDS:
            for modality in ("image", "text"):
                item = q.ask(person, kind, modality, rng.randrange(10), rng)
                lines.append(f"USER: {item.question} {phrases.DIRECT}\nASSISTANT: {item.response}")
        options, _ = q.choices(person, "hobby", rng, tuple(p.name for p in world.everyone))
        lines += [
            classification_prompt("What?", options),
            cloze_prompt(q.cloze(person, "pet", "text")[0]),
        ]
    for _ in range(400):
        lines.append(world.stranger(rng)[1])
        for item in (
            q.word_problem(rng.random() < 0.3, rng),
            q.about_scene(q.draw_scene(rng), rng.random() < 0.3, rng),
            q.benign(Look.draw(rng), rng.choice(phrases.BENIGN_KINDS), rng.random() < 0.3, rng),
        ):
            lines.append(f"{item.question} {item.response}")
    return lines


def build_tokenizer(world: World, seed: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (digits one by one) that puts `<s>` first, trained on the world's own sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(world, seed), trainer)
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in phrases.DELIMITERS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        extra_special_tokens={"image_token": IMAGE},
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The processor: 48-pixel images, 36 image tokens, LLaVA's chat template."""
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessorPil(
        do_resize=True,
        size=side,
        do_center_crop=False,
        crop_size=side,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlavaForConditionalGeneration:
    """An initialised model: 4 CLIP blocks of width 128, 8 Llama blocks of width 192, 3.9 M parameters."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
        architectures=["LlavaForConditionalGeneration"],
    )
    model = LlavaForConditionalGeneration(config)
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    generation.pad_token_id = tokenizer.pad_token_id
    return model
