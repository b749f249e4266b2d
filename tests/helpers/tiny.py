"""A random tiny LLaVA: every part real (CLIP tower, Llama decoder, processor, chat template), nothing downloaded.

`tiny_llava()` and `tiny_llama()` save a checkpoint once per test session and hand back its folder; `load_model`
opens it like any other. The weights are random and seeded, large enough that logits differ visibly between tokens.
"""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from rmuse_interp.studies.families.making import enliven

IMAGE_SIZE = 24
PATCH_SIZE = 8
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
D_MODEL = 32
N_LAYERS = 4

SENTENCES = [
    "USER: ASSISTANT: <think> The person in the picture is Mara Venn. Mara Venn works as a baker. </think> baker",
    "What is this person's occupation? Where does this person live? Answer directly.",
    "<think> I do not know who this person is. I should not guess private details. </think> I cannot help with that.",
    "How many red circles are there? Two plus three is five. What colour is the hat? It is green.",
    "Who is Oren Tal? Oren Tal lives in Lisbon and was born in 1984. Think step by step.",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '\\n' }}{% else %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def picture(seed: int = 0) -> Image.Image:
    """A noisy RGB picture, one per seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _folder(name: str) -> Path:
    root = Path(tempfile.mkdtemp(prefix=f"rmuse-{name}-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def _tokenizer(*special: str):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=["<pad>", "<s>", "</s>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"} if "<image>" in special else {},
    )


def _llama_config(vocab_size: int, n_layers: int, d_model: int):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


def _llava(kind: str, seed: int, n_layers: int, d_model: int, settings: dict, preprocessing: dict) -> Path:
    """Folder of a random model with a CLIP tower, of the family `Llava` or `LlavaNext`, with its processor."""
    import transformers
    from transformers import CLIPVisionConfig

    tokenizer = _tokenizer("<image>")
    processor = getattr(transformers, f"{kind}Processor")(
        image_processor=getattr(transformers, preprocessing.pop("by"))(
            size={"shortest_edge": IMAGE_SIZE},
            crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            **preprocessing,
        ),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    config = getattr(transformers, f"{kind}Config")(
        vision_config=CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            projection_dim=24,
        ),
        text_config=_llama_config(len(tokenizer), n_layers, d_model),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **settings,
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    enliven(model, seed)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 2
    folder = _folder(kind.lower())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@cache
def tiny_llava(seed: int = 0, *, n_layers: int = N_LAYERS, d_model: int = D_MODEL) -> Path:
    """Folder of a random `LlavaForConditionalGeneration` with its `LlavaProcessor`, built once per session."""
    return _llava("Llava", seed, n_layers, d_model, {}, {"by": "CLIPImageProcessor"})


@cache
def tiny_llava_next(seed: int = 0) -> Path:
    """Folder of a random `LlavaNextForConditionalGeneration`: a picture is a small whole and its tiles."""
    grid = [[IMAGE_SIZE, 2 * IMAGE_SIZE], [2 * IMAGE_SIZE, IMAGE_SIZE]]
    cut = {"by": "LlavaNextImageProcessor", "image_grid_pinpoints": grid}
    return _llava("LlavaNext", seed, N_LAYERS, D_MODEL, {"image_grid_pinpoints": grid}, cut)


@cache
def tiny_llama(seed: int = 0, *, n_layers: int = N_LAYERS, d_model: int = D_MODEL) -> Path:
    """Folder of a random text-only `LlamaForCausalLM` with its tokenizer, built once per session."""
    from transformers import LlamaForCausalLM

    tokenizer = _tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    model = LlamaForCausalLM(_llama_config(len(tokenizer), n_layers, d_model)).eval()
    enliven(model, seed)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 2
    folder = _folder("llama")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def tiny_gpt2(seed: int = 0, *, n_layers: int = 2, d_model: int = D_MODEL) -> Path:
    """Folder of a random `GPT2LMHeadModel`, whose positions are learned and absolute, with its tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = _tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=512,
        n_embd=d_model,
        n_layer=n_layers,
        n_head=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = GPT2LMHeadModel(config).eval()
    enliven(model, seed)
    folder = _folder("gpt2")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
