"""Responses to many questions, natively: batches of similar length, early stop per row, plans attached."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch

from rmuse_interp import RMuseError
from rmuse_interp.edits.hooks import attach, paused
from rmuse_interp.edits.plan import Plan
from rmuse_interp.edits.sentence import Sentence
from rmuse_interp.edits.state import Decision
from rmuse_interp.edits.trace import Recorder, SteeringTrace
from rmuse_interp.lens.sampling import GumbelNoise
from rmuse_interp.models.encoding import Conversation, Picture, Prompt, listed, per_row

DRAFT_TOKENS: Final = 96
"""The most tokens of a draft that a gate reads."""


@dataclass(frozen=True)
class Response:
    """One response.

    Args:
        text: the assistant's words, prefill included; delimiters kept, special tokens and padding stripped.
        fired: whether a gate let an edit act on this query; None where no gate applies to it.
        score: the gate's score (larger = steer), None where no gate decides per query or it had nothing to read.
        trace: how it was steered, token by token; None where it was not recorded.
    """

    text: str
    fired: bool | None
    score: float | None
    trace: SteeringTrace | None = None


def respond(
    lens: Any,
    prompts: Prompt | Sequence[Prompt],
    images: Picture | Sequence[Picture] = None,
    plan: Plan | None = None,
    *,
    max_new_tokens: int = 128,
    prefill: str | Sequence[str | None] | None = None,
    batch_size: int = 32,
    recorder: Recorder | None = None,
    temperature: float | int = 0.0,
    seeds: Sequence[int] = (),
) -> list[Response]:
    """Responses in the order of the prompts: greedy ones, or one sample per row.

    Rows are grouped by length, and every row stops at its own end. A two-pass plan is decided first, batch by batch. What
    a row's sample draws depends on its seed alone, not on its batch or place; only the logits' rounding does.

    Args:
        lens: the `LensModel`.
        prompts: plain questions, or conversations.
        images: one picture or None per row.
        plan: what to run; None for the model as it is.
        max_new_tokens: the most tokens per response, prefill not counted.
        prefill: words put into the assistant's mouth, the same for all rows or one or None per row; the gate and
            "generated" still count from the prompt's end.
        batch_size: rows per batch.
        recorder: what keeps the responses' traces.
        temperature: of sampling; 0 is greedy.
        seeds: one per row, for sampling.

    Raises:
        RMuseError: no token or no row asked for; a recorder without a plan; seeds that do not fit the rows.
    """
    questions = listed(prompts)
    pictures = per_row(images, len(questions), "images")
    begun = (
        [prefill] * len(questions)
        if isinstance(prefill, str)
        else per_row(prefill, len(questions), "prefill")
    )
    if temperature < 0 or len(seeds) != (len(questions) if temperature else 0):
        raise RMuseError(
            f"a temperature ≥ 0 and, above 0, one seed per prompt ({len(questions)}) were required, got {temperature:g} "
            f"and {len(seeds)} seeds"
        )
    if max_new_tokens < 1 or batch_size < 1:
        raise RMuseError(
            f"max_new_tokens and batch_size ≥ 1 were required, got {max_new_tokens} and {batch_size}"
        )
    if recorder is not None and plan is None:
        raise RMuseError("a plan was required to record its steering, got none; leave the recorder out")
    order = sorted(
        range(len(questions)), key=lambda i: (pictures[i] is None, len(questions[i]) + len(begun[i] or ""))
    )
    found: dict[int, Response] = {}
    with ExitStack() as undo:
        handle = None
        if plan is not None:
            handle = undo.enter_context(attach(lens.hf, plan, layout=lens.layout, recorder=recorder))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            asked, seen = [questions[i] for i in rows], [pictures[i] for i in rows]
            if handle is not None:
                handle.decision = _decided(lens, handle.plan, asked, seen)
            noise = GumbelNoise(temperature, [seeds[i] for i in rows]) if temperature else None
            texts = _generate(lens, handle, asked, seen, max_new_tokens, [begun[i] for i in rows], noise)
            verdicts: list[tuple[bool | None, float | None]] = [(None, None)] * len(rows)
            if handle is not None and handle.state is not None:
                query = handle.state.query
                verdicts = verdict(handle.plan, query.decision, query.has_image.tolist())
            trace = None if recorder is None else recorder.trace()
            for row, (i, text, (fired, score)) in enumerate(zip(rows, texts, verdicts, strict=True)):
                found[i] = Response(text, fired, score, None if trace is None else trace.row(row))
    return [found[i] for i in range(len(questions))]


def _decided(lens: Any, plan: Sentence, prompts: list[Prompt], images: list[Any]) -> Decision | None:
    """`lens.decide`, where a question that stands in several rows is asked once; None where the pass itself decides."""
    if plan.single_pass and not (plan.gates and any(isinstance(prompt, Conversation) for prompt in prompts)):
        return None
    first: dict[tuple[Prompt, bytes | int], int] = {}
    shown = [image if isinstance(image, bytes) else id(image) for image in images]
    place = [
        first.setdefault((prompt, image), len(first)) for prompt, image in zip(prompts, shown, strict=True)
    ]
    rows = [place.index(i) for i in range(len(first))]
    found = lens.decide(plan, [prompts[row] for row in rows], [images[row] for row in rows])
    return Decision(found.fired[place], found.score[place], found.known[place])


def _generate(
    lens: Any,
    handle: Any,
    prompts: Sequence[Prompt],
    images: list[Any],
    max_new_tokens: int,
    begun: list[str | None],
    noise: GumbelNoise | None = None,
) -> list[str]:
    encoding = lens.encode(prompts, images, begun)
    config = lens.hf.generation_config
    ends = config.eos_token_id
    stop = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
    with ExitStack() as undo:
        undo.enter_context(torch.inference_mode())
        if handle is not None:
            ids, mask = encoding["input_ids"], encoding["attention_mask"]
            undo.enter_context(handle.expecting(ids, mask, encoding.prompt_end))
        out = lens.hf.generate(
            **encoding,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=lens.tokenizer.pad_token_id,
            logits_processor=None if noise is None else [noise],
        )
    new = out[:, encoding["input_ids"].shape[1] :].tolist()
    own = lens.tokenizer
    drop = {own.pad_token_id, own.bos_token_id, own.eos_token_id, lens.image_token_id} - {None}
    texts = [lens._encoder.decode(ids, frozenset(drop), stop) for ids in new]
    return [f"{words or ''} {text}".strip() for words, text in zip(begun, texts, strict=True)]


def drafts(lens: Any, prompts: Sequence[Prompt], images: Picture | Sequence[Picture] = None) -> list[str]:
    """The model's own greedy responses, of at most `DRAFT_TOKENS` tokens; attached plans do not act."""
    with paused(lens.hf):
        pictures = per_row(images, len(prompts), "images")
        return _generate(lens, None, prompts, pictures, DRAFT_TOKENS, [None] * len(prompts))


def verdict(
    plan: Sentence, decision: Decision, has_image: Sequence[bool]
) -> list[tuple[bool | None, float | None]]:
    """Per row: whether a gate that applies to it fired, and the score of the first gate that scored it."""
    found: list[tuple[bool | None, float | None]] = []
    fired, scores = decision.fired.tolist(), decision.score.tolist()
    for row, image in enumerate(has_image):
        columns = [
            i
            for i, edit in enumerate(plan)
            if edit.gate is not None and edit.modality in (None, "image" if image else "text")
        ]
        finite = [scores[row][i] for i in columns if abs(scores[row][i]) < float("inf")]
        found.append(
            (any(fired[row][i] for i in columns) if columns else None, finite[0] if finite else None)
        )
    return found
