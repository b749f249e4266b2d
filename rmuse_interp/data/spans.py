"""Spans of a sequence: image, question, reasoning and answer, by character and by token.

Characters first: `split_response` (strict, for fitting) and `parse_response` (lenient, for scoring) cut a
response at its delimiters. Then tokens: `locate` and `span_masks` carry those cuts over to token positions
with the tokenizer's own offsets, on the string the model really saw (image placeholders expanded, padding on
either side). A token belongs to a span when it covers at least one of its characters.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.data.expansion import CharSpan, Expansion

DEFAULT_DELIMITERS: Final = ("<think>", "</think>")

TokenRange = tuple[int, int]
"""Start and end (exclusive) in a row of tokens, padding counted."""


@dataclass(frozen=True)
class ResponseSpans:
    """Character spans of reasoning and answer in a response, without surrounding whitespace."""

    reasoning: CharSpan
    answer: CharSpan


@dataclass(frozen=True)
class ParsedResponse:
    """Reasoning and answer read from a response, well formed or not.

    ``well_formed``: opener, chain, closer, answer, in this order, each once and none empty. Without any
    delimiter, the whole text is the answer. In every other case ``reasoning`` is the whole response (so that a
    leak cannot hide) and ``answer`` is what follows the last closer.
    """

    reasoning: str
    answer: str
    well_formed: bool


def render_response(
    reasoning: str | None, answer: str, delimiters: tuple[str, str] = DEFAULT_DELIMITERS
) -> str:
    """Chain and answer as the model writes them, separated by single spaces; without a chain, the answer alone.

    >>> render_response("She lives in Oslo.", "Oslo")
    '<think> She lives in Oslo. </think> Oslo'
    >>> render_response("She lives in Oslo.", "Oslo", ("Reasoning:", "Answer:"))
    'Reasoning: She lives in Oslo. Answer: Oslo'
    """
    if reasoning is None:
        return answer.strip()
    return " ".join([delimiters[0], reasoning.strip(), delimiters[1], answer.strip()])


def _fault(text: str, delimiters: tuple[str, str]) -> str | None:
    """Why a response is not well formed; None if it is."""
    opener, closer = delimiters
    if not text.lstrip().startswith(opener):
        return f"required {opener!r} at the start"
    if closer not in text:
        return f"required {closer!r} after the reasoning"
    if text.count(opener) > 1 or text.count(closer) > 1:
        return f"required {opener!r} and {closer!r} once each"
    reasoning, answer = text.split(closer)
    if not reasoning.replace(opener, "").strip():
        return "required a reasoning that is not empty"
    if not answer.strip():
        return f"required an answer after {closer!r}"
    return None


def split_response(
    text: str, delimiters: tuple[str, str] = DEFAULT_DELIMITERS, name: str = "response"
) -> ResponseSpans:
    """Character spans of reasoning and answer in a well-formed response.

    Args:
        name: what to call the response in the error, e.g. the example's id.

    Raises:
        RMuseError: a delimiter is missing, doubled or out of place, or a span is empty.

    >>> text = "<think> She lives in Oslo. </think> Oslo"
    >>> spans = split_response(text)
    >>> text[slice(*spans.reasoning)], text[slice(*spans.answer)]
    ('She lives in Oslo.', 'Oslo')
    """
    fault = _fault(text, delimiters)
    if fault is not None:
        shown = text if len(text) <= 80 else text[:77] + "…"
        raise RMuseError(
            f"{name}: {fault}, got {shown!r}; set `delimiters` in benchmark.json or mend the text"
        )
    opener, closer = delimiters
    start, cut = text.index(opener) + len(opener), text.index(closer)
    return ResponseSpans(_stripped(text, start, cut), _stripped(text, cut + len(closer), len(text)))


def _stripped(text: str, start: int, end: int) -> CharSpan:
    inner = text[start:end]
    left = len(inner) - len(inner.lstrip())
    return start + left, start + left + len(inner.strip())


def parse_response(text: str, delimiters: tuple[str, str] = DEFAULT_DELIMITERS) -> ParsedResponse:
    """Reasoning and answer of any response; never raises.

    >>> parse_response("<think> I see a hat. </think> red")
    ParsedResponse(reasoning='I see a hat.', answer='red', well_formed=True)
    >>> parse_response("red")
    ParsedResponse(reasoning='', answer='red', well_formed=False)
    >>> parse_response("<think> She lives in Oslo")
    ParsedResponse(reasoning='<think> She lives in Oslo', answer='', well_formed=False)
    """
    if _fault(text, delimiters) is None:
        spans = split_response(text, delimiters)
        return ParsedResponse(text[slice(*spans.reasoning)], text[slice(*spans.answer)], True)
    opener, closer = delimiters
    if opener not in text and closer not in text:
        return ParsedResponse("", text.strip(), False)
    answer = text.rsplit(closer, 1)[1].strip() if closer in text else ""
    return ParsedResponse(text.strip(), answer, False)


def without(text: str, delimiters: tuple[str, str]) -> str:
    """A response without the delimiters of its reasoning.

    >>> without("<think> No. </think> Oslo", ("<think>", "</think>"))
    'No. Oslo'
    """
    for delimiter in delimiters:
        text = text.replace(delimiter, " ")
    return " ".join(text.split())


@dataclass(frozen=True)
class TokenSpans:
    """Token ranges of one row; ``None`` for spans the row does not have.

    ``image``: first to last image token. ``question``: the question's own words. ``prompt_text``: all text of
    the user's turn after the last image token, up to and including ``prompt_end``, the last token of the
    prompt. ``reasoning``, ``answer``: inside the response, without delimiters.
    """

    image: TokenRange | None
    question: TokenRange | None
    prompt_text: TokenRange
    reasoning: TokenRange | None
    answer: TokenRange | None
    prompt_end: int


@dataclass(frozen=True, eq=False)
class SpanMasks:
    """The spans of a padded batch as masks; where a row lacks a span, its mask is all False.

    ``prompt_text`` leaves out special tokens (a gate's "question" read-out averages over it).
    """

    image: Bool[Tensor, "batch tokens"]
    question: Bool[Tensor, "batch tokens"]
    prompt_text: Bool[Tensor, "batch tokens"]
    reasoning: Bool[Tensor, "batch tokens"]
    answer: Bool[Tensor, "batch tokens"]
    prompt_end: Int[Tensor, " batch"]


def locate(
    processor: Any,
    prompt_text: str,
    response_text: str = "",
    *,
    input_ids: Sequence[int],
    padding: int = 0,
    question: str | None = None,
    delimiters: tuple[str, str] | None = DEFAULT_DELIMITERS,
    name: str = "row",
    expansion: Expansion | None = None,
    image_id: int | None = None,
) -> TokenSpans:
    """Token ranges of the spans of one chat string.

    Args:
        processor: a processor with a fast tokenizer, or that tokenizer.
        prompt_text: the rendered prompt, including the generation prompt, image placeholder not expanded.
        response_text: the text directly after the prompt, including its leading space.
        input_ids: the row's tokens without padding, as the processor made them.
        padding: number of padding tokens on the left; added to every index.
        question: the user's words, to find in the prompt; None leaves ``question`` out.
        delimiters: of reasoning and answer; None for a direct answer (no reasoning, the whole response is the answer).
            A prompt that ends in the first one has opened the reasoning.
        expansion: the processor's own record; without it, each placeholder is repeated as often as its token occurs.
        image_id: the token that stands for a piece of a picture, by the model's configuration; by default the
            processor's.

    Raises:
        RMuseError: the response is not well formed, the question is not in the prompt, or the tokens do not match
            the string (names the row).
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    ids = [int(i) for i in input_ids]
    offsets: Sequence[CharSpan]
    if expansion is None:
        image_token, own = _image_token(processor)
        image_id = own if image_id is None else image_id
        text, moved = _expand(prompt_text + response_text, image_token, ids.count(image_id), name)
        offsets = _offsets(tokenizer, text, ids, name)
    else:
        offsets, moved = expansion.offsets, expansion.moved
        if len(offsets) != len(ids):
            raise RMuseError(
                f"{name}: required the {len(offsets)} tokens of one encoding, got {len(ids)}; pass its own rows"
            )
    positions = [i for i, token in enumerate(ids) if token == image_id]

    def tokens(start: int, end: int) -> TokenRange | None:
        hit = [i for i, (a, b) in enumerate(offsets) if b > a and a < end and b > start]
        return (hit[0] + padding, hit[-1] + 1 + padding) if hit else None

    boundary = moved(len(prompt_text))
    inside = [i for i, (a, b) in enumerate(offsets) if b > a and b <= boundary]
    if not inside:
        raise RMuseError(f"{name}: required a prompt with at least one token, got {prompt_text!r}")
    # A special token that the tokenizer adds in front covers no characters; it is in the prompt, but never ends it.
    prompt_end = inside[-1]
    if question is not None:
        at = prompt_text.rfind(question.strip())
        if at < 0:
            raise RMuseError(f"{name}: required the question in the rendered prompt, got {prompt_text!r}")
        asked = tokens(moved(at), moved(at + len(question.strip())))
    else:
        asked = None
    reasoning = answer = None
    if response_text:
        if delimiters is None:
            answer = _stripped(response_text, 0, len(response_text))
        else:
            lead = opened_by(prompt_text, response_text, delimiters)
            spans = split_response(lead + response_text, delimiters, name)
            reasoning, answer = (
                (start - len(lead), end - len(lead)) for start, end in (spans.reasoning, spans.answer)
            )
    return TokenSpans(
        image=(positions[0] + padding, positions[-1] + 1 + padding) if positions else None,
        question=asked,
        prompt_text=((positions[-1] + 1 if positions else inside[0]) + padding, prompt_end + 1 + padding),
        reasoning=tokens(boundary + reasoning[0], boundary + reasoning[1]) if reasoning else None,
        answer=tokens(boundary + answer[0], boundary + answer[1]) if answer else None,
        prompt_end=prompt_end + padding,
    )


def opened_by(prompt: str, response: str, delimiters: tuple[str, str]) -> str:
    """The opening delimiter if the prompt ends in it and the response does not repeat it, else "".

    >>> opened_by("<|Assistant|><think>\\n", "She lives in Oslo. </think> Oslo", DEFAULT_DELIMITERS)
    '<think>'
    """
    opener = delimiters[0]
    return opener if prompt.rstrip().endswith(opener) and not response.lstrip().startswith(opener) else ""


def span_masks(
    processor: Any,
    encoded: Mapping[str, Any],
    prompts: Sequence[str],
    responses: Sequence[str] | None = None,
    *,
    questions: Sequence[str] | None = None,
    delimiters: tuple[str, str] | None = DEFAULT_DELIMITERS,
    names: Sequence[str] | None = None,
    expansions: Sequence[Expansion] | None = None,
    image_id: int | None = None,
) -> SpanMasks:
    """Masks of the spans of a padded batch.

    Args:
        encoded: what the processor returned for these rows: ``input_ids`` and ``attention_mask``, each
            ``[batch, tokens]``, padded on either side.
        prompts: rendered prompts, one per row, image placeholders not expanded.
        responses: the text directly after each prompt (including its leading space); None for prompts alone.
        questions: the user's words, one text per row; None leaves the ``question`` mask empty.
        delimiters: delimiters of reasoning and answer in the responses; None for direct answers.
        names: what to call the rows in errors, e.g. example ids.
        expansions: the processor's own record of each row; see `locate`.
        image_id: the image token's id by the model's configuration; see `locate`.

    Raises:
        RMuseError: as `locate`, naming the row.
    """
    ids, attention = encoded["input_ids"], encoded["attention_mask"].bool()
    batch, width = ids.shape
    if len(prompts) != batch:
        raise RMuseError(f"required one rendered prompt per row ({batch}), got {len(prompts)}")
    special = set(getattr(processor, "tokenizer", processor).all_special_ids)
    masks = {
        k: torch.zeros(batch, width, dtype=torch.bool)
        for k in ("image", "question", "prompt_text", "reasoning", "answer")
    }
    ends = torch.zeros(batch, dtype=torch.long)
    image_id = _image_token(processor)[1] if image_id is None else image_id
    for row in range(batch):
        kept = attention[row].nonzero().flatten()
        spans = locate(
            processor,
            prompts[row],
            responses[row] if responses is not None else "",
            input_ids=ids[row, kept].tolist(),
            padding=int(kept[0]) if len(kept) else 0,
            question=questions[row] if questions is not None else None,
            delimiters=delimiters,
            name=names[row] if names is not None else f"row {row}",
            expansion=expansions[row] if expansions else None,
            image_id=image_id,
        )
        for key, mask in masks.items():
            span = getattr(spans, key)
            if span is not None:
                mask[row, slice(*span)] = True
        masks["image"][row] &= ids[row].cpu() == image_id
        is_special = torch.tensor([int(token) in special for token in ids[row]])
        masks["prompt_text"][row] &= ~is_special
        ends[row] = spans.prompt_end
    return SpanMasks(**{k: m.to(ids.device) for k, m in masks.items()}, prompt_end=ends.to(ids.device))


def _image_token(processor: Any) -> tuple[str, int]:
    """The image placeholder and its token id; ("", -1) for a tokenizer without images."""
    token = getattr(processor, "image_token", None)
    if token is None:
        return "", -1
    tokenizer = getattr(processor, "tokenizer", processor)
    known = getattr(processor, "image_token_id", None)
    return token, int(tokenizer.convert_tokens_to_ids(token) if known is None else known)


def _expand(text: str, image_token: str, n_tokens: int, name: str) -> tuple[str, Any]:
    """Repeat each placeholder as often as the processor did; also return a function from old to new positions."""
    places = (
        [m.start() for m in re.finditer(re.escape(image_token), text)] if image_token and n_tokens else []
    )
    if n_tokens and (not places or n_tokens % len(places)):
        raise RMuseError(
            f"{name}: required a placeholder for {n_tokens} image tokens, got {len(places)} in {text!r}"
        )
    extra = (n_tokens // len(places) - 1) * len(image_token) if places else 0

    def moved(position: int) -> int:
        return position + extra * sum(place < position for place in places)

    return (text.replace(image_token, image_token * (n_tokens // len(places))) if places else text), moved


def _offsets(tokenizer: Any, text: str, ids: list[int], name: str) -> list[CharSpan]:
    """Character offsets of each token; raise unless the text's tokens are `ids`."""
    if not getattr(tokenizer, "is_fast", False):
        raise RMuseError(f"{name}: spans require a fast tokenizer (offsets), got {type(tokenizer).__name__}")
    for add_special_tokens in (True, False):
        found = tokenizer(text, return_offsets_mapping=True, add_special_tokens=add_special_tokens)
        if found["input_ids"] == ids:
            return [(int(a), int(b)) for a, b in found["offset_mapping"]]
    raise RMuseError(
        f"{name}: required the tokens of {text[:80]!r}, got {len(ids)} others; encode the same string, untruncated"
    )
