"""`Recipe`: a tiny random checkpoint of one model family, of its own configuration and processor classes, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

Settings = Mapping[str, object]
"""Keyword arguments of a configuration or a processor; `<token>` strings that end in `_id` are looked up."""

BASE: Final = ("<pad>", "<s>", "</s>")
"""The tokens for padding, begin and end of all tiny vocabularies."""

TEXT: Final[Settings] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
WITH_HEADS: Final[Settings] = {**TEXT, "head_dim": 8}
TOWER: Final[Settings] = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
}
CHATML: Final = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen and InternVL write a chat; IMAGE stands for a picture's placeholder."""

GEMMA: Final = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<start_of_image>{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL: Final = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST]{% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}[IMG]{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}[/INST]"
    "{% else %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{{ m['content'][0]['text'] }}{% endif %}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)
IDEFICS: Final = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'] is not string and m['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
LLAMA: Final = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|image|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
VICUNA: Final = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}"
    "{% if m['role'] == 'user' %} {% else %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
COHERE: Final = (
    "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|>"
    "{{ '<|USER_TOKEN|>' if m['role'] == 'user' else '<|CHATBOT_TOKEN|>' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
TULU: Final = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
IM: Final = ("<|im_start|>", "<|im_end|>")
QWEN: Final = (*IM, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
GEMMA_TURNS: Final = ("<start_of_turn>", "<end_of_turn>")
LLAMA_TURNS: Final = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
ROWS: Final = tuple(f"<row_{i}_col_{j}>" for i in range(1, 4) for j in range(1, 4))


@dataclass(frozen=True, eq=False)
class Recipe:
    """A tiny random checkpoint of one family.

    Args:
        name: name of the family, as its papers write it.
        config: `model_type` of its configuration.
        text: settings of the decoder.
        template: chat template; None for families that come without one.
        special: special tokens beside `BASE`; the first of them that the template ends a turn with ends a response.
        vision: settings of the vision tower, for image families.
        settings: further settings of the configuration; strings that are tokens become their ids.
        processor: class of the processor; None for text families.
        reads: class and settings of the image processor.
        films: class of the video processor, where the processor wants one.
        processing: settings of the processor.
        named: special tokens that the tokenizer knows by name.
        end: the token that ends a turn.
    """

    name: str
    config: str
    text: Settings = field(default_factory=lambda: TEXT)
    template: str | None = None
    special: tuple[str, ...] = ()
    vision: Settings | None = None
    settings: Settings = field(default_factory=dict)
    processor: str | None = None
    reads: tuple[str, Settings] = ("", {})
    films: str | None = None
    processing: Settings = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    end: str = "</s>"

    @property
    def sees(self) -> bool:
        """Whether the family reads pictures."""
        return self.processor is not None
