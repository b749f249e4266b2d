"""Greedy responses to many questions, natively: batches of similar length, early stop per row, plans attached."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch

from rmuse_interp.edits import Plan
from rmuse_interp.errors import RMuseError
from rmuse_interp.models.encoding import Picture, _per_row
from rmuse_interp.models.native import attach, paused
from rmuse_interp.models.state import Decision
from rmuse_interp.models.tracing import Recorder, SteeringTrace

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
    prompts: str | Sequence[str],
    images: Picture | Sequence[Picture] = None,
    plan: Plan | None = None,
    *,
    max_new_tokens: int = 128,
    prefill: str | None = None,
    batch_size: int = 32,
    recorder: Recorder | None = None,
) -> list[Response]:
    """Greedy responses in the order of the prompts.

    Rows are grouped by length, and every row stops at its own end. A two-pass plan is decided first, batch by batch.

    Args:
        lens: the `LensModel`.
        prompts: plain questions.
        images: one picture or None per row.
        plan: what to run; None for the model as it is.
        max_new_tokens: the most tokens per response, prefill not counted.
        prefill: words put into the assistant's mouth; the gate and "generated" still count from the prompt's end.
        batch_size: rows per batch.
        recorder: what keeps the responses' traces.

    Raises:
        RMuseError: no token or no row asked for; a recorder without a plan.
    """
    questions = [prompts] if isinstance(prompts, str) else list(prompts)
    pictures = _per_row(images, len(questions), "images")
    if max_new_tokens < 1 or batch_size < 1:
        raise RMuseError(
            f"max_new_tokens and batch_size ≥ 1 were required, got {max_new_tokens} and {batch_size}"
        )
    if recorder is not None and plan is None:
        raise RMuseError("a plan was required to record its steering, got none; leave the recorder out")
    order = sorted(range(len(questions)), key=lambda i: (pictures[i] is None, len(questions[i])))
    found: dict[int, Response] = {}
    with ExitStack() as undo:
        handle = None
        if plan is not None:
            handle = undo.enter_context(attach(lens.hf, plan, layout=lens.layout, recorder=recorder))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            asked, seen = [questions[i] for i in rows], [pictures[i] for i in rows]
            if handle is not None and not handle.plan.single_pass:
                handle.decision = lens.decide(handle.plan, asked, seen)
            texts = _generate(lens, handle, asked, seen, max_new_tokens, prefill)
            verdicts: list[tuple[bool | None, float | None]] = [(None, None)] * len(rows)
            if handle is not None and handle.state is not None:
                query = handle.state.query
                verdicts = verdict(handle.plan, query.decision, query.has_image.tolist())
            trace = None if recorder is None else recorder.trace()
            for row, (i, text, (fired, score)) in enumerate(zip(rows, texts, verdicts, strict=True)):
                found[i] = Response(text, fired, score, None if trace is None else trace.row(row))
    return [found[i] for i in range(len(questions))]


def _generate(
    lens: Any, handle: Any, prompts: list[str], images: list[Any], max_new_tokens: int, prefill: str | None
) -> list[str]:
    encoding = lens.encode(prompts, images, None if prefill is None else [prefill] * len(prompts))
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
        )
    new = out[:, encoding["input_ids"].shape[1] :].tolist()
    own = lens.tokenizer
    drop = {own.pad_token_id, own.bos_token_id, own.eos_token_id, lens.image_token_id} - {None}
    texts = [lens._encoder.decode(ids, frozenset(drop), stop) for ids in new]
    return texts if not prefill else [f"{prefill} {text}".strip() for text in texts]


def drafts(lens: Any, prompts: list[str], images: Picture | Sequence[Picture] = None) -> list[str]:
    """The model's own greedy responses, of at most `DRAFT_TOKENS` tokens; attached plans do not act."""
    with paused(lens.hf):
        return _generate(lens, None, prompts, _per_row(images, len(prompts), "images"), DRAFT_TOKENS, None)


def verdict(
    plan: Plan, decision: Decision, has_image: Sequence[bool]
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
