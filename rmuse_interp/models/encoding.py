"""Encode questions, pictures and responses as model inputs: chat template, left padding, prompt ends."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from rmuse_interp import RMuseError
from rmuse_interp.data.expansion import Expansion, Moves, inserted
from rmuse_interp.data.pictures import rgb
from rmuse_interp.models.families import lacks, require
from rmuse_interp.models.prompts import Conversation, Prompt, Prompts, listed
from rmuse_interp.models.records import opened, recording

Picture = (
    Image.Image
    | bytes
    | bytearray
    | memoryview
    | str
    | Path
    | BinaryIO
    | io.BytesIO
    | Mapping[str, object]
    | np.ndarray
    | Tensor
    | list["Image.Image | bytes | str | Path"]
    | None
)
"""A row's picture in any form that `data.pictures.rgb` reads; several pictures as a list; None for none."""


class Encoding(BatchFeature):
    """Left-padded inputs of a model, for ``model(**encoding)``, with the end of each prompt.

    Attributes:
        prompt_end: [batch] position of the last prompt token, counting the row's unmasked tokens from 0; after it
            comes the response or a prefill of the assistant's turn.
        texts: the tokenized strings, with image placeholders not expanded.
        heads: the rendered prompts that `texts` begin with; what follows in a text is the response and its leading space.
        expansions: what the processor made of each text, by its own record; empty with a slow tokenizer.
    """

    prompt_end: Int[Tensor, " batch"]
    texts: list[str]
    heads: list[str]
    expansions: list[Expansion]

    @property
    def tails(self) -> list[str]:
        """What follows each prompt: a space where the template needs one, and the response; "" without a response."""
        return [text[len(head) :] for text, head in zip(self.texts, self.heads, strict=True)]


@dataclass(frozen=True, eq=False)
class Encoder:
    """Renders and tokenizes with a processor (or a bare tokenizer, for text-only models).

    Args:
        processor: the processor of an image-text model, or the tokenizer of a text model.
        family: `model_type` of the model's configuration, to refuse what the family cannot do.
    """

    processor: Any
    family: str = ""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer itself."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def sees(self) -> bool:
        """Whether pictures can be encoded."""
        return getattr(self.processor, "image_processor", None) is not None

    @property
    def _chats(self) -> bool:
        return getattr(self.processor, "chat_template", None) is not None

    @cached_property
    def separator(self) -> str:
        """The white space between a prompt and the response to it, as the chat template writes it in an earlier turn.

        One space without a template, and nothing where earlier turns are written otherwise than the one to come.
        """
        if not self._chats:
            return "" if lacks(self.family, "chats") else " "
        word = "Lisbon"
        head = self.render("Where?", 0)
        try:
            said = self._applied([("user", "Where?"), ("assistant", word)], 0, to_come=False)
        except Exception:  # a template may refuse such a chat with any error
            said = ""
        if not said.startswith(head):
            return "" if head[-1:].isspace() or opened(head) else " "
        between = said[len(head) : max(said.rfind(word), len(head))]
        return "" if between.strip() else between

    @cached_property
    def _added(self) -> tuple[str, bool]:
        """The special tokens that the tokenizer puts before a text, and whether it puts any behind."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        before = "".join(self.tokenizer.convert_ids_to_tokens(whole[:at]))
        return before, len(whole) > at + len(bare)

    @cached_property
    def _has_system(self) -> bool:
        """Whether the chat template has a system turn: some refuse one, or write whoever is no user as the assistant."""
        chats = [[(role, "Lisbon"), ("user", "Where?")] for role in ("system", "assistant")]
        try:
            said, other = (self._applied(turns, False, to_come=True) for turns in chats)
        except Exception:  # a template may refuse such a chat with any error
            return False
        return self._chats and "Lisbon" in said and said != other

    def render(self, question: Prompt, images: int) -> str:
        """Format the question and earlier turns with the chat template, up to the start of the assistant's turn.

        Args:
            question: a plain question, or a conversation.
            images: number of pictures, which stand before the first question's words.
        """
        turns = question.turns if isinstance(question, Conversation) else [("user", question)]
        if turns[0][0] == "system" and not self._has_system:
            turns = [("user", f"{turns[0][1]}\n\n{turns[1][1]}"), *turns[2:]]
        if self._chats:
            return self._applied(turns, images, to_come=True)
        image = getattr(self.processor, "image_token", "<image>") * images
        if lacks(self.family, "chats"):
            if len(turns) > 1:
                require(self.family, "chats")
            return f"{image}{turns[0][1]}"
        said = [f"{'USER' if role == 'user' else 'ASSISTANT'}: {words}" for role, words in turns]
        lead = f": {image}\n" if images else ": "
        return "\n".join([said[0].replace(": ", lead, 1), *said[1:], "ASSISTANT:"])

    def _applied(self, turns: Sequence[tuple[str, str]], images: int, *, to_come: bool) -> str:
        """The turns as the chat template writes them, pictures before the first question's words."""
        messages: list[dict[str, object]] = []
        for role, words in turns:
            content: object = words
            if self.sees:
                first = role == "user" and all(one["role"] != "user" for one in messages)
                content = [*([{"type": "image"}] * (images if first else 0)), {"type": "text", "text": words}]
            messages.append({"role": role, "content": content})
        return self.processor.apply_chat_template(messages, add_generation_prompt=to_come, tokenize=False)

    def joined(self, head: str, response: str | None) -> str:
        """A rendered prompt and the response to it, as the model itself would begin it.

        A delimiter that the prompt has opened is not opened again.
        """
        opener = opened(head)
        if opener and response and response.lstrip().startswith(opener):
            rest = response.lstrip()[len(opener) :]
            return head + (rest.lstrip() if head[-1:].isspace() else rest)
        return f"{head}{self.separator}{response}" if response else head

    def encode(
        self,
        prompts: Prompts,
        images: Picture | Sequence[Picture] = None,
        responses: str | Sequence[str | None] | None = None,
    ) -> Encoding:
        """Inputs for a batch of questions; rows with and without a picture may be mixed.

        Args:
            prompts: plain questions, conversations, or chat turns (`conversation`).
            images: one picture, a list of several, or None per row; they stand before the first question's words.
            responses: the assistant's words so far (a whole response, or a prefill), one per row, appended to the
                prompt after what the chat template writes there (`separator`). None or "" for none.

        Raises:
            RMuseError: unequal numbers of rows, a picture that cannot be read, pictures for a text-only model, or what
                the family cannot do (`rmuse_interp.models.families`).
        """
        rows = listed(prompts)
        pictures = per_row(images, len(rows), "images")
        given = per_row(responses, len(rows), "responses")
        if not rows:
            raise RMuseError("at least one prompt was required, got none")
        several = [item if isinstance(item, list) else [] if item is None else [item] for item in pictures]
        shown = [[rgb(item, f"row {row}") for item in items] for row, items in enumerate(several)]
        self._require(shown)
        heads = [self.render(q, len(items)) for q, items in zip(rows, shown, strict=True)]
        texts = [self.joined(head, response) for head, response in zip(heads, given, strict=True)]
        self._require_placeholders(texts, shown)
        if any(given) and not self.tokenizer.is_fast:
            raise RMuseError("a response needs a fast tokenizer (character offsets); load the model with one")
        return self._encoded(heads, texts, shown)

    def _require(self, shown: Sequence[Sequence[Image.Image]]) -> None:
        """Raise unless the family can read rows with these pictures in one batch."""
        with_image = [bool(items) for items in shown]
        if any(with_image):
            require(self.family, "pictures")
            if not self.sees:
                raise RMuseError("this model reads text only, a picture was given; leave images out")
        if not all(with_image):
            if self.sees:
                require(self.family, "rows without a picture", f"row {with_image.index(False)}")
            if any(with_image):
                require(self.family, "mixed batches")
        if len({len(items) for items in shown}) > 1:
            require(self.family, "unequal numbers of pictures")

    def _require_placeholders(self, texts: Sequence[str], shown: Sequence[Sequence[Image.Image]]) -> None:
        """Raise unless each text holds one placeholder for each of its pictures."""
        token = getattr(self.processor, "image_token", None)
        if token is None:
            return
        for row, (text, items) in enumerate(zip(texts, shown, strict=True)):
            if text.count(token) != len(items):
                raise RMuseError(
                    f"row {row}: {len(items)} pictures were given for {text.count(token)} placeholders {token}: write it "
                    "otherwise in the words, and pass pictures as images=[…] (a list of lists for several in a row); the "
                    "template must write one for each"
                )

    def _encoded(
        self, heads: list[str], texts: list[str], shown: Sequence[Sequence[Image.Image]]
    ) -> Encoding:
        """The processor's inputs for these strings, and where each prompt ends in them."""
        before, behind_too = self._added
        # As transformers' own `apply_chat_template(tokenize=True)`: a template writes the special tokens that it wants,
        # except that processors have always added a begin where the template has none.
        adds = not self._chats or (self.sees and not (before and heads[0].startswith(before)))
        if adds and behind_too:  # a prompt goes on: nothing belongs behind it
            heads, texts = [before + head for head in heads], [before + text for text in texts]
            adds = False
        fast = bool(self.tokenizer.is_fast)
        settings: dict[str, object] = {
            "padding": True,
            "return_tensors": "pt",
            "add_special_tokens": adds,
            "return_offsets_mapping": fast,
        }
        ends = lacks(
            self.family, "chats"
        )  # such a processor writes behind the text: responses go behind that
        laid: list[str] = texts
        replaced: list[Moves] = []
        if not self.sees:
            inputs = dict(self.tokenizer(texts, return_token_type_ids=False, **settings))
        else:
            pictures = [list(items) for items in shown] if any(shown) else None
            told = heads if ends else texts
            laid = list(self.processor.prepare_inputs_layout(images=pictures, text=list(told))[1])
            with recording(self.processor) as replaced:
                inputs = dict(self.processor(text=told, images=pictures, **settings))
            if ends:
                tails = [text[len(head) :] for head, text in zip(heads, texts, strict=True)]
                inputs = self._with_tails(inputs, tails)
        offsets = inputs.pop("offset_mapping", None)
        inputs.pop("labels", None)  # a processor's own, for training: the model would compute a loss
        encoding = Encoding(inputs)
        encoding.texts, encoding.heads, encoding.expansions = texts, heads, []
        last = encoding["attention_mask"].sum(dim=1) - 1
        if offsets is not None:
            real = encoding["attention_mask"].bool()
            for row, (text, after) in enumerate(zip(heads if ends else texts, laid, strict=True)):
                placed = tuple((int(a), int(b)) for a, b in offsets[row][real[row]].tolist())
                moves = replaced[row] if replaced else ()
                encoding.expansions.append(Expansion(placed, (inserted(text, after), moves)))
            tail = [one.behind(len(head)) for one, head in zip(encoding.expansions, heads, strict=True)]
            last = last - torch.tensor(tail)
        encoding.prompt_end = last
        return encoding

    def _with_tails(self, inputs: dict[str, Tensor], tails: list[str]) -> dict[str, Tensor]:
        """The inputs with each row's response behind its prompt, left-padded again."""
        said = [self.tokenizer(tail, add_special_tokens=False, return_offsets_mapping=True) for tail in tails]
        mask = inputs["attention_mask"].bool()
        width = max(int(row.sum()) + len(one["input_ids"]) for row, one in zip(mask, said, strict=True))
        fill = {"input_ids": int(self.tokenizer.pad_token_id), "token_type_ids": 0, "attention_mask": 0}
        added = {"token_type_ids": 1, "attention_mask": 1}
        found = {
            key: value for key, value in inputs.items() if key not in (*fill, "offset_mapping", "labels")
        }
        for key in (*fill, "offset_mapping"):
            rows = []
            for there, one, values in zip(mask, said, inputs[key], strict=True):
                kept = values[there]
                end = int(kept.max()) if key == "offset_mapping" else 0
                new = [added[key]] * len(one["input_ids"]) if key in added else one[key]
                more = torch.tensor(new, dtype=kept.dtype).reshape(-1, *kept.shape[1:]) + end
                row = torch.cat([kept, more])
                empty = row.new_full((width - len(row), *row.shape[1:]), fill.get(key, 0))
                rows.append(torch.cat([empty, row]))
            found[key] = torch.stack(rows)
        return found

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
    single = str | bytes | bytearray | memoryview
    listed = list(items) if isinstance(items, Sequence) and not isinstance(items, single) else [items]
    if len(listed) != rows:
        raise RMuseError(
            f"one entry of {what} per prompt was required ({rows}), got {len(listed)}; use None for none"
        )
    return listed
