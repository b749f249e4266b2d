"""Collect activations: span-pooled block outputs of many queries, and token states along refusals.

States are pooled block by block as the model runs, so that memory grows with the number of queries, not of tokens.
Batches group queries of similar length to save padding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, TypeVar, get_args

import torch
from jaxtyping import Bool, Float, Int
from rich.progress import Progress
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.data.spans import DEFAULT_DELIMITERS, SpanMasks, span_masks
from rmuse_interp.edits.inputs import covered, largest_over, mean_over, of_prompt, read_call
from rmuse_interp.edits.state import Slice
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.models.batches import alike, reading
from rmuse_interp.models.encoding import Encoding
from rmuse_interp.parts.pooled import Pooled, require_finite

Where = TypeVar("Where", bound=str)
Span = Literal["last", "question", "peak", "image", "draft", "cot", "answer"]
"""The last prompt token; the prompt's text after the image (its mean, or each dimension's largest value); the image
tokens; from the last prompt token to the end of the response; reasoning and answer of a response."""

SPANS: Final[tuple[Span, ...]] = get_args(Span)


@dataclass(frozen=True)
class Query:
    """The model's input: a question, optionally a picture, and optionally a response along which states are read.

    ``stepwise``: the response holds reasoning between delimiters; a direct one is all answer.
    """

    id: str
    prompt: str
    image: bytes | None = None
    response: str | None = None
    stepwise: bool = True


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Block outputs from the last prompt token to the last token of the response; step 0 is the last prompt token."""

    id: str
    states: Float[Tensor, "steps layers d"]


def pooled_states(
    lens: LensModel,
    queries: Sequence[Query],
    spans: Sequence[Where],
    *,
    layers: Sequence[int] | None = None,
    delimiters: tuple[str, str] = DEFAULT_DELIMITERS,
    batch_size: int = 32,
    progress: Progress | None = None,
    label: str = "collect",
) -> dict[Where, Pooled]:
    """Compute `φ_l(x; S)` (eq. 4.1) for every query, span and block.

    Args:
        spans: spans to pool over; a query that lacks a span (no picture, no reasoning) is left out of that span's
            record, never filled in.
        layers: 0-based blocks; by default all that run for every query.
        delimiters: of reasoning and answer in the responses.
        progress: a running progress bar to add a line to.

    Returns:
        one `Pooled` per span, float32, in the order of `queries`.

    Raises:
        RMuseError: a response without the spans asked for, states that are not finite, an unknown span.
    """
    for span in spans:
        if span not in SPANS:
            raise RMuseError(f"a span is one of {', '.join(SPANS)}, got {span!r}")
    blocks = lens.layout.always if layers is None else list(layers)
    rows: dict[Where, dict[str, Tensor]] = {span: {} for span in spans}
    for batch in batched(queries, batch_size, progress, label):
        encoded = lens.encode(*shown(batch))
        masks = spans_of(lens, encoded, batch, delimiters)
        call = of_prompt(read_call(encoded, lens.layout.vocabulary), encoded.prompt_end)
        taken = {span: _taken(span, call, encoded.prompt_end, masks) for span in spans}
        with reading(lens.layout, blocks, partial(pooled_by, taken)) as found, torch.no_grad():
            lens.hf(**encoded, use_cache=False, logits_to_keep=1)
        for span in spans:
            stacked = torch.stack([found[block][span] for block in blocks], dim=1)
            present = taken[span].any(dim=1)
            rows[span].update({q.id: stacked[i] for i, q in enumerate(batch) if bool(present[i])})
    result: dict[Where, Pooled] = {}
    for span in spans:
        ids = tuple(q.id for q in queries if q.id in rows[span])
        states = (
            torch.stack([rows[span][i] for i in ids]) if ids else torch.zeros(0, len(blocks), lens.d_model)
        )
        result[span] = Pooled(states, ids, tuple(blocks), span)
    return result


def trajectories(
    lens: LensModel,
    queries: Sequence[Query],
    *,
    layers: Sequence[int] | None = None,
    delimiters: tuple[str, str] = DEFAULT_DELIMITERS,
    batch_size: int = 32,
    progress: Progress | None = None,
    label: str = "trajectories",
) -> list[Trajectory]:
    """Collect token states along each query's response, from the last prompt token on, in the order of `queries`.

    Raises:
        RMuseError: a query without a response, states that are not finite.
    """
    blocks = lens.layout.always if layers is None else list(layers)
    runs: dict[str, Trajectory] = {}
    for batch in batched(queries, batch_size, progress, label):
        encoded = lens.encode(*shown(batch))
        masks = spans_of(lens, encoded, batch, delimiters)
        with reading(lens.layout, blocks, lambda _, h: h.float().cpu()) as found, torch.no_grad():
            lens.hf(**encoded, use_cache=False, logits_to_keep=1)
        stacked = torch.stack([found[block] for block in blocks], dim=2)
        for i, query in enumerate(batch):
            if query.response is None:
                raise RMuseError(f"{query.id}: a trajectory needs a response to follow, got none")
            kept = encoded["attention_mask"][i].bool().cpu()
            after: Int[Tensor, " tokens"] = torch.arange(len(kept))
            states = stacked[i][kept & (after >= int(masks.prompt_end[i]))]
            runs[query.id] = Trajectory(query.id, require_finite(states, f"the trajectory of {query.id}"))
    return [runs[q.id] for q in queries]


def batched(
    queries: Sequence[Query], size: int, progress: Progress | None, label: str, *, mixed: bool = False
) -> Iterator[list[Query]]:
    """Yield batches of queries whose lengths, responses included, are similar; see `alike`.

    Raises:
        RMuseError: two queries with the same id.
    """
    if len({q.id for q in queries}) != len(queries):
        raise RMuseError("queries need distinct ids to be collected")

    def length(query: Query) -> tuple[bool, int]:
        return query.image is None, len(query.prompt) + len(query.response or "")

    return alike(queries, size, length, mixed=mixed, progress=progress, label=label)


def shown(batch: Sequence[Query]) -> tuple[list[str], list[bytes | None], list[str | None]]:
    """Return a batch's prompts, pictures and responses, in the form that a model encodes."""
    return [q.prompt for q in batch], [q.image for q in batch], [q.response for q in batch]


def spans_of(
    lens: LensModel, encoded: Encoding, batch: Sequence[Query], delimiters: tuple[str, str]
) -> SpanMasks:
    """Locate the spans of an encoded batch."""
    answers, rendered = encoded.tails, encoded.heads
    stepwise = [q.stepwise and q.response is not None for q in batch]
    masks = [
        span_masks(
            lens.processor,
            {k: encoded[k][i : i + 1] for k in ("input_ids", "attention_mask")},
            [rendered[i]],
            [answers[i]],
            delimiters=delimiters if stepwise[i] else None,
            names=[q.id],
            expansions=encoded.expansions[i : i + 1],
            image_id=lens.image_token_id,
        )
        for i, q in enumerate(batch)
    ]
    names = ("image", "question", "prompt_text", "reasoning", "answer", "prompt_end")
    return SpanMasks(**{name: torch.cat([getattr(m, name) for m in masks]) for name in names})


def pooled_by(
    masks: Mapping[Where, Bool[Tensor, "batch tokens"]],
    _layer: int,
    states: Float[Tensor, "batch tokens d"],
) -> dict[Where, Float[Tensor, "batch d"]]:
    """Average the states over the tokens of each mask (`peak`: take the largest), float32 on the CPU; for `reading`."""
    here = {where: mask.to(states.device) for where, mask in masks.items()}
    return {
        where: (
            largest_over(states, mask) if where == "peak" else mean_over(states, mask, mask.sum(dim=1))
        ).cpu()
        for where, mask in here.items()
    }


def _taken(
    span: str, call: Slice, prompt_end: Int[Tensor, " batch"], masks: SpanMasks
) -> Bool[Tensor, "batch tokens"]:
    """Mask the tokens of a span: a gate's readout as running plans read it, any other span by its text."""
    if span == "cot":
        return masks.reasoning
    return masks.answer if span == "answer" else covered(span, call, prompt_end)
