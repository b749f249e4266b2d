"""Encode questions, pictures and responses as model inputs: chat template, left padding, prompt ends."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from jinja2 import TemplateError
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from transformers import BatchFeature

from rmuse_interp import RMuseError

Picture = Image.Image | bytes | str | Path | None
"""A PIL image, encoded bytes, a path, or None."""


@dataclass(frozen=True)
class Conversation:
    """A question with earlier turns; accepted wherever a plain question is. A picture belongs to the first turn.

    Args:
        history: earlier questions and the assistant's replies, oldest first.
        question: the question to be answered.
        system: a system turn before all others, for chat templates that have one.
    """

    history: tuple[tuple[str, str], ...]
    question: str
    system: str | None = None

    def __len__(self) -> int:
        """Number of characters in all turns."""
        return (
            len(self.question)
            + len(self.system or "")
            + sum(len(words) for turn in self.history for words in turn)
        )

    @property
    def turns(self) -> list[tuple[str, str]]:
        """Role and text of every turn, the question last."""
        earlier = [turn for asked, said in self.history for turn in (("user", asked), ("assistant", said))]
        first = [] if self.system is None else [("system", self.system)]
        return [*first, *earlier, ("user", self.question)]


Prompt = str | Conversation
"""A plain question, or one with earlier turns."""


def listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """The prompts of a batch; a single one is a batch of one."""
    return [prompts] if isinstance(prompts, str | Conversation) else list(prompts)


def behind(prefix: str, prompt: Prompt) -> Prompt:
    """`g ⊕ q`: put a text in front of the question; in a conversation, in front of the last question.

    >>> behind("Refuse.", Conversation((("Hi?", "Hello."),), "Who?")).question
    'Refuse. Who?'
    """
    if isinstance(prompt, Conversation):
        return replace(prompt, question=f"{prefix} {prompt.question}")
    return f"{prefix} {prompt}"


def joined(head: str, response: str) -> str:
    """A rendered prompt and the response to it, as the model itself would begin it.

    >>> joined("ASSISTANT:", "Oslo"), joined("assistant\\n", "Oslo")
    ('ASSISTANT: Oslo', 'assistant\\nOslo')
    """
    return head + response if head[-1:].isspace() else f"{head} {response}"


class Encoding(BatchFeature):
    """Left-padded inputs of a model, for ``model(**encoding)``, with the end of each prompt.

    Attributes:
        prompt_end: [batch] position of the last prompt token, counting the row's unmasked tokens from 0; after it
            comes the response or a prefill of the assistant's turn.
        texts: the tokenized strings, with image placeholders not expanded.
        heads: the rendered prompts that `texts` begin with; what follows in a text is the response and its leading space.
    """

    prompt_end: Int[Tensor, " batch"]
    texts: list[str]
    heads: list[str]

    @property
    def tails(self) -> list[str]:
        """What follows each prompt: a space where the template needs one, and the response; "" without a response."""
        return [text[len(head) :] for text, head in zip(self.texts, self.heads, strict=True)]


@dataclass(frozen=True, eq=False)
class Encoder:
    """Renders and tokenizes with a processor (or a bare tokenizer, for text-only models).

    Args:
        processor: the processor of an image-text model, or the tokenizer of a text model.
    """

    processor: Any

    @property
    def tokenizer(self) -> Any:
        """The tokenizer itself."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def sees(self) -> bool:
        """Whether pictures can be encoded."""
        return getattr(self.processor, "image_processor", None) is not None

    def render(self, question: Prompt, with_image: bool) -> str:
        """Format the question and earlier turns with the chat template, up to the start of the assistant's turn.

        Where the template has no system turn, its words stand before the first question.
        """
        turns = question.turns if isinstance(question, Conversation) else [("user", question)]
        (role, words), *rest = turns
        if role == "system":
            try:
                rendered = self._rendered(turns, with_image)
            except (TemplateError, ValueError):
                rendered = ""
            if words in rendered and getattr(self.processor, "chat_template", None) is not None:
                return rendered
            turns = [("user", f"{words}\n\n{rest[0][1]}"), *rest[1:]]
        return self._rendered(turns, with_image)

    def _rendered(self, turns: Sequence[tuple[str, str]], with_image: bool) -> str:
        if getattr(self.processor, "chat_template", None) is None:
            image = f"{getattr(self.processor, 'image_token', '<image>')}\n" if with_image else ""
            said = [f"{'USER' if role == 'user' else 'ASSISTANT'}: {words}" for role, words in turns]
            return "\n".join([said[0].replace(": ", f": {image}", 1), *said[1:], "ASSISTANT:"])
        messages: list[dict[str, object]] = []
        shown = not with_image
        for role, words in turns:
            content: object = words
            if self.sees:
                picture = [{"type": "image"}] * (role == "user" and not shown)
                shown = shown or role == "user"
                content = [*picture, {"type": "text", "text": words}]
            messages.append({"role": role, "content": content})
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        images: Picture | Sequence[Picture] = None,
        responses: str | Sequence[str | None] | None = None,
    ) -> Encoding:
        """Inputs for a batch of questions; rows with and without a picture may be mixed.

        Args:
            prompts: plain questions, or conversations.
            images: one picture or None per row.
            responses: the assistant's words so far (a whole response, or a prefill), one per row, appended to the
                prompt after one space, or directly if the prompt ends in white space (a template whose turns begin with
                a new line): there no model would begin its response with a space. None or "" for none.

        Raises:
            RMuseError: unequal numbers of rows, a picture that cannot be read, pictures for a text-only model.
        """
        rows = listed(prompts)
        pictures = per_row(images, len(rows), "images")
        given = per_row(responses, len(rows), "responses")
        if not rows:
            raise RMuseError("at least one prompt was required, got none")
        loaded = [_picture(item, row) for row, item in enumerate(pictures)]
        if any(item is not None for item in loaded) and not self.sees:
            raise RMuseError("this model reads text only, a picture was given; leave images out")
        heads = [self.render(q, item is not None) for q, item in zip(rows, loaded, strict=True)]
        texts = [head if not r else joined(head, r) for head, r in zip(heads, given, strict=True)]
        begin = self.tokenizer.bos_token
        settings: dict[str, object] = {
            "padding": True,
            "return_tensors": "pt",
            "add_special_tokens": not (begin and heads[0].startswith(begin)),
        }
        if self.sees:
            present = [item for item in loaded if item is not None]
            inputs = self.processor(text=texts, images=present or None, **settings)
        else:
            inputs = self.tokenizer(texts, return_token_type_ids=False, **settings)
        encoding = Encoding(dict(inputs))
        tail = torch.tensor([self._tail(h, t) for h, t in zip(heads, texts, strict=True)])
        encoding.prompt_end = encoding["attention_mask"].sum(dim=1) - 1 - tail
        encoding.texts, encoding.heads = texts, heads
        return encoding

    def _tail(self, head: str, text: str) -> int:
        """Number of tokens of `text` that extend beyond `head`."""
        if text == head:
            return 0
        if not self.tokenizer.is_fast:
            raise RMuseError("a response needs a fast tokenizer (character offsets); load the model with one")
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        return sum(end > len(head) for _, end in offsets)

    def decode(self, ids: Sequence[int], drop: frozenset[int], stop: frozenset[int]) -> str:
        """The text of generated ids up to the first id in `stop`, without ids in `drop`; delimiters are kept."""
        kept: list[int] = []
        for token in ids:
            if token in stop:
                break
            if token not in drop:
                kept.append(token)
        return self.tokenizer.decode(
            kept, skip_special_tokens=False, clean_up_tokenization_spaces=False
        ).strip()


def per_row(items: object, rows: int, what: str) -> list[Any]:
    """Return one item per row, all None if there are no items.

    Raises:
        RMuseError: the number of items differs from the number of rows.
    """
    if items is None:
        return [None] * rows
    listed = list(items) if isinstance(items, Sequence) and not isinstance(items, str | bytes) else [items]
    if len(listed) != rows:
        raise RMuseError(
            f"one entry of {what} per prompt was required ({rows}), got {len(listed)}; use None for none"
        )
    return listed


def _picture(item: Picture, row: int) -> Image.Image | None:
    if item is None or isinstance(item, Image.Image):
        return None if item is None else item.convert("RGB")
    source = io.BytesIO(item) if isinstance(item, bytes) else Path(item)
    try:
        with Image.open(source) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError) as error:
        named = f"{len(item)} bytes" if isinstance(item, bytes) else str(item)
        raise RMuseError(
            f"row {row}: a readable picture (PNG, JPEG, …) was required, got {named}: {error}"
        ) from error
