"""How readable responses are to the unsteered model: worst windows under q and every g ⊕ q, and the cut for them."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from rmuse_interp import RMuseError
from rmuse_interp.data import Example
from rmuse_interp.data.spans import (
    DEFAULT_DELIMITERS,
    parse_response,
    render_response,
    split_response,
    without,
)
from rmuse_interp.edits.hooks import paused
from rmuse_interp.evaluate.readable import Control, Gauge, Part, Reading, set_gauge, spoilt, worst_window
from rmuse_interp.evaluate.refusing import refuses
from rmuse_interp.lens.likelihood import token_nll
from rmuse_interp.lens.respond import respond
from rmuse_interp.maths.statistics import wilson
from rmuse_interp.models.encoding import Picture, per_row
from rmuse_interp.models.loaded import LoadedModel
from rmuse_interp.models.prompts import behind

QUESTIONS: Final = 24
"""Number of fitting questions that a gauge is made from: half set its cut, half measure it."""
CONTROLS: Final[tuple[Control, ...]] = ("shuffled words", "cut words", "one wrong word")


def readings(
    model: LoadedModel,
    prompts: Sequence[str],
    texts: Sequence[str],
    images: Picture | Sequence[Picture] = None,
    *,
    prefixes: Sequence[str] = (),
    delimiters: tuple[str, str] = DEFAULT_DELIMITERS,
    enough: float | None = None,
    batch_size: int = 32,
) -> list[Reading]:
    """How likely each text is as a response to its prompt, under the best of q and all g ⊕ q.

    Plans attached to the model do not act. Use with a `Gauge`: ``gauge.fault(reading)`` says whether a text is garbled.

        gauge = gauge_of(model, benchmark.fit_forget, prefixes=benchmark.prefixes, ...)
        found = readings(model, prompts, texts, prefixes=gauge.prefixes, enough=gauge.cut)
        garbled = [gauge.fault(reading) is not None for reading in found]

    Args:
        model: the model, as it is without a plan.
        prompts: the questions q, as they were asked.
        texts: one response per question; a response without words has no parts.
        images: one picture or None per row.
        prefixes: the prefixes g.
        delimiters: of reasoning and answer in the responses.
        enough: stop trying contexts for a text as soon as no window of it exceeds this (the gauge's cut): one pass
            instead of 1 + |G| for most texts. None tries all, for exact values.
        batch_size: rows per batch.
    """
    if len(prompts) != len(texts):
        raise RMuseError(f"one text per prompt was required ({len(prompts)}), got {len(texts)}")
    pictures = per_row(images, len(prompts), "images")
    said = [text.strip() for text in texts]
    shown = [picture if isinstance(picture, bytes) else id(picture) for picture in pictures]
    keys = list(zip(prompts, said, shown, strict=True))
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    found: dict[int, Reading] = {}
    left = [row for row in sorted(first.values()) if said[row]]
    for context in ("", *prefixes):
        asked = [behind(context, prompts[row]) if context else prompts[row] for row in left]
        with paused(model.hf):
            nats = (
                token_nll(
                    model,
                    [str(prompt) for prompt in asked],
                    [said[row] for row in left],
                    [pictures[row] for row in left],
                    batch_size=batch_size,
                )
                if left
                else []
            )
        for row, prompt, values in zip(left, asked, nats, strict=True):
            head = model.encoder.render(prompt, pictures[row] is not None)
            here = _reading(model, head, said[row], values, delimiters)
            found[row] = _better(found.get(row), here)
        if enough is not None:
            left = [row for row in left if found[row].worst > enough]
    return [found.get(first[key], Reading(key[1])) for key in keys]


def _reading(
    model: LoadedModel, head: str, text: str, nats: Sequence[float], delimiters: tuple[str, str]
) -> Reading:
    """The reading of one response under one context."""
    whole = model.encoder.joined(head, text)
    offsets = model.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    begin = len(whole) - len(text)  # counted from the end, where prompt and response cannot shift it
    places = [(start - begin, end - begin) for start, end in offsets[len(offsets) - len(nats) :]]
    spans = [(0, len(text))]
    if parse_response(text, delimiters).well_formed:
        found = split_response(text, delimiters)
        spans = [found.reasoning, found.answer]
    parts = []
    for start, end in spans:
        mine = [value for value, (a, b) in zip(nats, places, strict=True) if a < end and b > start]
        parts.append(Part(text[start:end], len(mine), worst_window(mine)))
    return Reading(text, tuple(parts), sum(nats) / len(nats))


def _better(one: Reading | None, other: Reading) -> Reading:
    """Each part, and the mean, under the context that suits it better."""
    if one is None or one.mean is None or other.mean is None:
        return other
    parts = tuple(min(pair, key=lambda part: part.worst) for pair in zip(one.parts, other.parts, strict=True))
    return Reading(one.text, parts, min(one.mean, other.mean))


def gauge_of(
    model: LoadedModel,
    examples: Sequence[Example],
    *,
    prefixes: Sequence[str],
    refusals: Sequence[str],
    refusals_direct: Sequence[str],
    delimiters: tuple[str, str] = DEFAULT_DELIMITERS,
    known: Sequence[str] = (),
    max_new_tokens: int = 96,
    seed: int = 0,
    batch_size: int = 32,
) -> Gauge:
    """Set and measure a model's cut between readable and garbled, on fitting questions.

    Readable, for each question: its own answer, its own response behind one of the prefixes (a refusal, or not), a
    refusal of the pool, and its own refusal of another question. Controls: three of these, spoilt. Half of the people
    set the cut. Statements that this model finds unlikely (another model's facts) can be flagged without a word amiss.

    Args:
        model: the model; attached plans do not act.
        examples: open fitting questions, about `QUESTIONS` of them.
        prefixes: the prefixes g.
        refusals: the pool's refusals with reasoning, for questions that have any.
        refusals_direct: the pool's refusals without, for all others.
        delimiters: of reasoning and answer in the responses.
        known: values and refusals that are readable however short they are.
        max_new_tokens: maximum number of tokens per response.
        seed: seed of the choices.
        batch_size: rows per batch.

    Raises:
        RMuseError: fewer than two questions, or responses too short to be spoilt.
    """
    if len(examples) < 2:
        raise RMuseError(f"two or more open fitting questions were required, got {len(examples)}")
    rng = random.Random(seed)
    prompts = [e.prompt() for e in examples]
    pictures = [e.image for e in examples]
    leads = [prefixes[i % len(prefixes)] if prefixes else "" for i in range(len(examples))]
    behind_g = [f"{lead} {prompt}".strip() for lead, prompt in zip(leads, prompts, strict=True)]
    with paused(model.hf):
        own, after = (
            respond(model, asked, pictures, max_new_tokens=max_new_tokens, batch_size=batch_size)
            for asked in (prompts, behind_g)
        )
    # Behind a prefix a model may answer all the same; such words are its own, but no refusal.
    refused = [one for one in after if refuses(without(one.text, delimiters))]
    words = " ".join(one.text for one in (*own, *after)).split()
    rows: list[tuple[int, str, str]] = []
    for i, example in enumerate(examples):
        pool = refusals if example.reasoning is not None else refusals_direct
        texts = {
            "own answers": own[i].text,
            "own refusals" if after[i] in refused else "own words behind a prefix": after[i].text,
            "refusals of the pool": pool[i % len(pool)] if pool else "",
        }
        others = [one.text for one in refused if one is not after[i]]
        if others:
            texts["refusals to other questions"] = others[i % len(others)]
        rows += [(i, kind, text) for kind, text in texts.items() if text]
        for j, kind in enumerate(CONTROLS):
            several = [
                text for text in texts.values() if (bad := _spoilt(text, kind, words, rng, delimiters))
            ]
            if several:
                bad = _spoilt(several[(i + j) % len(several)], kind, words, rng, delimiters)
                rows += [(i, kind, bad)] if bad else []
    found = readings(
        model,
        [prompts[i] for i, *_ in rows],
        [text for *_, text in rows],
        [pictures[i] for i, *_ in rows],
        prefixes=prefixes,
        delimiters=delimiters,
        batch_size=batch_size,
    )
    people = sorted({e.person or e.id for e in examples})
    setting = set(rng.sample(people, -(-len(people) // 2)) if len(people) > 1 else ())
    mine = [e.id for i, e in enumerate(examples) if ((e.person or e.id) in setting if setting else i % 2)]
    measured = [
        (examples[i].id, kind, reading.worst)
        for (i, kind, _), reading in zip(rows, found, strict=True)
        if reading.worst
    ]
    gauge = set_gauge(
        [row for row in measured if row[1] not in CONTROLS],
        [row for row in measured if row[1] in CONTROLS],
        mine,
        prefixes=prefixes,
        known=(*known, *refusals_direct),
    )
    ended = [one.ended for one in refused if one.ended is not None]
    return replace(gauge, unended=wilson(ended.count(False), len(ended)) if ended else None)


def _spoilt(
    text: str, kind: Control, words: Sequence[str], rng: random.Random, delimiters: tuple[str, str]
) -> str | None:
    """A control made from a response: its reasoning spoilt if it is well formed, else all of it."""
    parsed = parse_response(text, delimiters)
    if not parsed.well_formed:
        return spoilt(text, kind, words, rng)
    bad = spoilt(parsed.reasoning, kind, words, rng)
    return None if bad is None else render_response(bad, parsed.answer, delimiters)
