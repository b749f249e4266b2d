"""Training batches: questions with the response to learn or unlearn, and masks of its tokens."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rmuse_interp.baselines.losses import IGNORED
from rmuse_interp.data import Example
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.models.encoding import Encoding


@dataclass(frozen=True)
class Row:
    """A question and a response to it.

    Attributes:
        example: the question, with its picture.
        response: the response to learn or unlearn, including any reasoning.
        trace: number of characters of its leading reasoning, delimiters included; 0 without reasoning.
    """

    example: Example
    response: str
    trace: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows as a model's inputs.

    Attributes:
        encoding: left-padded inputs, with the end token after every response.
        labels: [batch, tokens] the response's own tokens, its end included; `IGNORED` elsewhere.
        trace: [batch, tokens] the tokens of the reasoning, delimiters included.
        text: [batch, tokens] words: no padding, image placeholder or special token (whose states are outliers).
    """

    encoding: Encoding
    labels: Int[Tensor, "batch tokens"]
    trace: Bool[Tensor, "batch tokens"]
    text: Bool[Tensor, "batch tokens"]

    @property
    def response(self) -> Bool[Tensor, "batch tokens"]:
        """The response's own tokens."""
        return self.labels != IGNORED

    @property
    def rest(self) -> Bool[Tensor, "batch tokens"]:
        """The text tokens outside the reasoning: question and answer."""
        return self.text & ~self.trace


def rows_of(examples: Sequence[Example], delimiters: tuple[str, str]) -> list[Row]:
    """Pair the examples with their reference responses, reasoning included."""
    found = []
    for example in examples:
        response = example.response(delimiters)
        closes = response.rfind(delimiters[1]) if example.reasoning is not None else -1
        found.append(Row(example, response, closes + len(delimiters[1]) if closes >= 0 else 0))
    return found


def refused(examples: Sequence[Example], refusals: Sequence[str], seed: int) -> list[Row]:
    """Pair each example with a refusal drawn from a pool."""
    drawn = random.Random(seed)
    return [Row(example, drawn.choice(list(refusals))) for example in examples]


def batches(rows: Sequence[Row], size: int, seed: int) -> list[list[Row]]:
    """Split the rows into random batches of `size`; rows with and without a picture are kept apart."""
    order = random.Random(seed)
    found = []
    for seen in (True, False):
        some = [row for row in rows if (row.example.modality == "image") == seen]
        order.shuffle(some)
        found += [some[i : i + size] for i in range(0, len(some), size)]
    order.shuffle(found)
    return found


def encode(lens: LensModel, rows: Sequence[Row]) -> Batch:
    """Encode the rows as inputs and labels, on the model's device."""
    end = lens.tokenizer.eos_token or ""
    encoding = lens.encode(
        [row.example.prompt() for row in rows],
        [row.example.image for row in rows],
        [row.response + end for row in rows],
    )
    ids, mask = encoding["input_ids"], encoding["attention_mask"].bool()
    place = mask.long().cumsum(dim=1) - 1
    ends = torch.as_tensor(encoding.prompt_end, device=ids.device).unsqueeze(1)
    own = (place > ends) & mask
    # Number of tokens of the answer and the end, encoded on their own.
    tails = [
        len(lens.tokenizer(r.response[r.trace :] + end, add_special_tokens=False).input_ids) for r in rows
    ]
    reach = mask.sum(dim=1, keepdim=True) - torch.tensor(tails, device=ids.device).unsqueeze(1)
    reasoned = torch.tensor([row.trace > 0 for row in rows], device=ids.device).unsqueeze(1)
    special = torch.tensor(sorted(lens.layout.vocabulary.special), device=ids.device)
    text = mask & ~torch.isin(ids, special)
    return Batch(encoding, ids.masked_fill(~own, IGNORED), text & own & (place < reach) & reasoned, text)
