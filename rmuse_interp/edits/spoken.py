"""Chain and answer of a response, told from the tokens so far: what one cannot know yet is not waited for.

A token counts to the span that it stands in by what was said up to and including itself. A delimiter of several tokens is
recognised with its last one; the tokens of a closer before that one still count to the chain. A response that does not
begin with the opener is all answer, as in `rmuse_interp.data.spans`. Blanks do not count, special tokens are in no span.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Delimiters = tuple[str, str]
"""What opens a response's chain, and what closes it."""
Span = Literal["chain", "answer"]


@dataclass(frozen=True)
class Said:
    """How far one response has come.

    Attributes:
        span: what it is in; None before the opener is complete.
        text: what the response, or the span, has said so far, without blanks.
    """

    span: Span | None = None
    text: str = ""

    def then(self, piece: str, delimiters: Delimiters) -> tuple["Said", Span | None]:
        """What has been said after a further piece, and the span that the piece itself stands in."""
        opener, closer = delimiters
        text = self.text + "".join(piece.split())
        if self.span is None:
            if opener.startswith(text):
                return (Said("chain") if text == opener else Said(None, text)), None
            if text.startswith(opener):
                return Said("chain", text.removeprefix(opener)), "chain"
            return Said("answer", text), "answer"
        if self.span == "chain" and closer in text:
            rest = text.split(closer, 1)[1]
            return Said("answer", rest), "answer" if rest else None
        return replace(self, text=text), self.span if text else None


@dataclass(frozen=True, eq=False)
class Spoken:
    """The spans of one call's tokens, and how far every row has come with it."""

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
        said: how far each row had come before.
        ids: the tokens.
        response: which of them are of the response.
        delimiters: opener and closer of the chain.
        piece: the text of a token.
        special: ids in no span, unless they are (a part of) a delimiter.
    """
    opener, closer = delimiters
    now, found = [], {name: torch.zeros(ids.shape, dtype=torch.bool) for name in ("chain", "answer")}
    for row, (state, tokens, there) in enumerate(zip(said, ids.tolist(), response.tolist(), strict=True)):
        for column, token in enumerate(tokens):
            if not there[column]:
                continue
            text = piece(token)
            if token in special and text.strip() not in opener and text.strip() not in closer:
                continue
            state, span = state.then(text, delimiters)
            if span is not None:
                found[span][row, column] = True
        now.append(state)
    return Spoken(tuple(now), {name: mask.to(ids.device) for name, mask in found.items()})
