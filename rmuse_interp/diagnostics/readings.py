"""Readings: the states, steered or not, in which something might still be read, and their places in the sequence.

A response that states a value reveals it to every later token: a probe there reads words. So a response is read only at
tokens *strictly before the first mention* of anything secret (`mention`), and `Readings.words` keeps the tokens shown
to the model by then, for the control probe on words alone. Places:

* ``prompt_end``: the last prompt token; the same whatever is said afterwards;
* ``image``: mean over the image tokens;
* ``reasoning``, ``answer``: mean over the tokens of that span before the first mention, or all if there is none;
* ``recall``: the one token that predicts the first mention.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, get_args

import torch
from jaxtyping import Bool
from rich.progress import Progress
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.data.spans import DEFAULT_DELIMITERS, SpanMasks
from rmuse_interp.edits.plan import Plan
from rmuse_interp.fitting.collect import Query, batched, pooled_by, shown, spans_of
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.lens.respond import asking, heard, running
from rmuse_interp.models.batches import reading
from rmuse_interp.parts.pooled import Pooled

Place = Literal["prompt_end", "image", "reasoning", "recall", "answer"]
PLACES: Final[tuple[Place, ...]] = get_args(Place)


@dataclass(frozen=True, eq=False)
class Readings:
    """States of a set of queries, by place.

    Attributes:
        states: mean state per query and block; a query without tokens at a place is not in that record.
        words: by place and query, the text tokens shown up to the last one read, prompt included.
        said: by query, the id of the token that ``recall`` predicts.
        fired: by query, whether a gate let an edit act on it; None if no gate applies or nothing was steered.
    """

    states: dict[Place, Pooled]
    words: dict[Place, dict[str, tuple[int, ...]]]
    said: dict[str, int]
    fired: dict[str, bool | None]


def mention(text: str, secrets: Sequence[str]) -> int | None:
    """Find where the first of some values begins in a text, as whole words, ignoring case; None if none occurs.

    >>> mention("This is Lena Womer. She lives in Oslo.", ["Oslo", "Lena Womer", "Womer"])
    8
    >>> mention("I cannot say.", ["Oslo", ""]) is None
    True
    """
    found = [re.search(rf"(?<!\w){re.escape(s)}(?!\w)", text, re.IGNORECASE) for s in secrets if s.strip()]
    return min((hit.start() for hit in found if hit is not None), default=None)


def empty_places(
    queries: Sequence[Query],
    secrets: Mapping[str, Sequence[str]],
    places: Sequence[Place],
    delimiters: tuple[str, str] = DEFAULT_DELIMITERS,
) -> dict[Place, list[str]]:
    """List, by place, the ids of the queries with nothing to read there, from the text and before any pass.

    Places that all queries have are left out.
    """
    empty: dict[Place, list[str]] = {}
    for query in queries:
        text = query.response or ""
        first = mention(text, secrets.get(query.id, ()))
        read = text if first is None else text[:first]
        chain, _, answer = read.partition(delimiters[1]) if query.stepwise else ("", "", read)
        there = {
            "prompt_end": True,
            "image": query.image is not None,
            "reasoning": bool(chain.replace(delimiters[0], "").strip()),
            "recall": first is not None,
            "answer": bool(answer.strip()),
        }
        for place in places:
            if not there[place]:
                empty.setdefault(place, []).append(query.id)
    return empty


def read_out(
    lens: LensModel,
    queries: Sequence[Query],
    places: Sequence[Place],
    *,
    secrets: Mapping[str, Sequence[str]] | None = None,
    plan: Plan | None = None,
    delimiters: tuple[str, str] = DEFAULT_DELIMITERS,
    batch_size: int = 32,
    progress: Progress | None = None,
    label: str = "readings",
) -> Readings:
    """Read the states of every block at some places, with the responses given (teacher forcing).

    Args:
        lens: the model.
        queries: queries with the responses to read along; without one there is no reasoning, recall or answer.
        places: places to read at.
        secrets: by query, the values; reading stops before their first mention.
        plan: plan to run, with its gates' own decisions; None for the unsteered model.
        delimiters: delimiters of reasoning and answer.
        batch_size: queries per batch.
        progress: a running progress bar to add a line to.
        label: label of that line.

    Raises:
        RMuseError: an unknown place, a response that is not well formed, states that are not finite.
    """
    for place in places:
        if place not in PLACES:
            raise RMuseError(f"a place is one of {', '.join(PLACES)}, got {place!r}")
    rows: dict[Place, dict[str, Tensor]] = {place: {} for place in places}
    words: dict[Place, dict[str, tuple[int, ...]]] = {place: {} for place in places}
    said: dict[str, int] = {}
    fired: dict[str, bool | None] = {}
    every = range(lens.n_layers)
    with running(lens, plan) as handle, torch.no_grad():
        for batch in batched(queries, batch_size, progress, label):
            with asking(lens, handle, *shown(batch)) as encoded:
                spans = spans_of(lens, encoded, batch, delimiters)
                ids, mask = encoded["input_ids"].cpu(), encoded["attention_mask"].bool().cpu()
                first = [
                    _first_token(lens, text, query, (secrets or {}).get(query.id, ()), len(ids[i]))
                    for i, (text, query) in enumerate(zip(encoded.texts, batch, strict=True))
                ]
                taken = _taken(spans, torch.tensor(first), mask)
                masks = {place: taken[place] for place in places}
                with reading(lens.layout, every, partial(pooled_by, masks)) as found:
                    lens.hf(**encoded, use_cache=False, logits_to_keep=1)
            if handle is not None:
                fired |= {query.id: one.fired for query, one in zip(batch, heard(handle), strict=True)}
            for place in places:
                stacked = torch.stack([found[layer][place] for layer in every], dim=1)
                for i, query in enumerate(batch):
                    columns = taken[place][i].nonzero().flatten()
                    if not len(columns):
                        continue
                    rows[place][query.id] = stacked[i]
                    seen = ids[i, : int(columns[-1]) + 1][mask[i, : int(columns[-1]) + 1]].tolist()
                    words[place][query.id] = tuple(t for t in seen if t != lens.image_token_id)
                if place == "recall":
                    said |= {q.id: int(ids[i, first[i]]) for i, q in enumerate(batch) if q.id in rows[place]}
    states: dict[Place, Pooled] = {}
    for place in places:
        there = tuple(q.id for q in queries if q.id in rows[place])
        one = [rows[place][name] for name in there]
        kept = torch.stack(one) if one else torch.zeros(0, lens.n_layers, lens.d_model)
        states[place] = Pooled(kept, there, tuple(every), place)
    return Readings(states, words, said, {q.id: fired.get(q.id) for q in queries})


def _taken(
    spans: SpanMasks, first: Tensor, mask: Bool[Tensor, "batch tokens"]
) -> dict[Place, Bool[Tensor, "batch tokens"]]:
    """Return the mask of the tokens read at every place."""
    column = torch.arange(mask.shape[1]).unsqueeze(0)
    before = column < first.unsqueeze(1)
    said = (first < mask.shape[1]).unsqueeze(1)
    return {
        "prompt_end": column == spans.prompt_end.cpu().unsqueeze(1),
        "image": spans.image.cpu(),
        "reasoning": spans.reasoning.cpu() & before,
        "recall": (column == first.unsqueeze(1) - 1) & said,
        "answer": spans.answer.cpu() & before,
    }


def _first_token(lens: LensModel, text: str, query: Query, secrets: Sequence[str], width: int) -> int:
    """Return the column of the first token of the first mention in the response; `width` if there is none.

    It is counted from the right end, where there are no image tokens and no padding.
    """
    response = query.response or ""
    begin = mention(response, secrets)
    if begin is None:
        return width
    at = len(text) - len(response) + begin
    offsets = lens.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return width - sum(end > at for _, end in offsets)
