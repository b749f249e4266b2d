"""Tell a response's chain from its answer during generation, from the tokens so far.

A token's span depends only on the text up to and including that token. A delimiter of several tokens is recognised at
its last token; earlier tokens of a closing delimiter still belong to the chain. A response that does not begin with the
opening delimiter is all answer, as in `rmuse_interp.data.spans`, unless the prompt ends in that delimiter. Whitespace is
ignored; special tokens are in no span.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Delimiters = tuple[str, str]
"""The opening and the closing delimiter of a response's chain."""
Span = Literal["chain", "answer"]


@dataclass(frozen=True)
class Said:
    """The progress of one response.

    Attributes:
        span: its current span; None before the opening delimiter is complete.
        text: text of the response, or of the current span, so far, without whitespace.
        prompt: the end of the prompt before it, without whitespace.
    """

    span: Span | None = None
    text: str = ""
    prompt: str = ""

    def after(self, piece: str, opener: str) -> "Said":
        """The progress after a further piece of the prompt."""
        return replace(self, prompt=(self.prompt + "".join(piece.split()))[-len(opener) :])

    def then(self, piece: str, delimiters: Delimiters) -> tuple["Said", Span | None]:
        """The progress after a further piece of text, and the span of that piece."""
        opener, closer = delimiters
        text = self.text + "".join(piece.split())
        if self.span is None:
            if self.prompt == opener and not text.startswith(opener) and not opener.startswith(text):
                return Said("chain").then(text, delimiters)
            if opener.startswith(text):
                return (Said("chain") if text == opener else replace(self, text=text)), None
            if text.startswith(opener):
                return Said("chain", text.removeprefix(opener)), "chain"
            return Said("answer", text), "answer"
        if self.span == "chain" and closer in text:
            rest = text.split(closer, 1)[1]
            return Said("answer", rest), "answer" if rest else None
        return replace(self, text=text), self.span if text else None


@dataclass(frozen=True, eq=False)
class Spoken:
    """The spans of one call's tokens, and the progress of every row after the call."""

    said: tuple[Said, ...]
    masks: Mapping[str, Bool[Tensor, "batch tokens"]]


def listen(
    said: Sequence[Said],
    ids: Int[Tensor, "batch tokens"],
    response: Bool[Tensor, "batch tokens"],
    delimiters: Delimiters,
    piece: Callable[[int], str],
    special: frozenset[int],
) -> Spoken:
    """The spans of the tokens of one call.

    Args:
        said: progress of each row before the call.
        ids: [batch, tokens] token ids.
        response: whether a token belongs to the response.
        delimiters: opening and closing delimiter of the chain.
        piece: function from a token id to its text.
        special: ids that are in no span, unless they are (part of) a delimiter.
    """
    opener, closer = delimiters
    now, found = [], {name: torch.zeros(ids.shape, dtype=torch.bool) for name in ("chain", "answer")}
    for row, (state, tokens, there) in enumerate(zip(said, ids.tolist(), response.tolist(), strict=True)):
        for column, token in enumerate(tokens):
            text = piece(token)
            if not there[column]:
                state = state if state.span or state.text else state.after(text, opener)
                continue
            if token in special and text.strip() not in opener and text.strip() not in closer:
                continue
            state, span = state.then(text, delimiters)
            if span is not None:
                found[span][row, column] = True
        now.append(state)
    return Spoken(tuple(now), {name: mask.to(ids.device) for name, mask in found.items()})
