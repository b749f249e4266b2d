"""Responses to many questions, natively: batches of similar length, early stop per row, plans attached."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from transformers.generation.streamers import BaseStreamer

from rmuse_interp import RMuseError
from rmuse_interp.edits.deciding import decided
from rmuse_interp.edits.engines import turn
from rmuse_interp.edits.fits import require_any_batch
from rmuse_interp.edits.hooks import Attached, Session, attach
from rmuse_interp.edits.plan import Plan
from rmuse_interp.edits.sentence import Sentence
from rmuse_interp.edits.state import Decision
from rmuse_interp.edits.trace import Recorder, SteeringTrace
from rmuse_interp.lens.sampling import GumbelNoise
from rmuse_interp.models.batches import alike
from rmuse_interp.models.encoding import Encoding, Picture, per_row
from rmuse_interp.models.generation import continued
from rmuse_interp.models.loaded import LoadedModel
from rmuse_interp.models.prompts import Prompt, Prompts, listed
from rmuse_interp.models.records import opened


@dataclass(frozen=True)
class Response:
    """One response.

    Args:
        text: the assistant's words, prefill included, and the delimiter that the prompt has opened for them, if any;
            delimiters kept, special tokens and padding stripped.
        fired: whether a gate let an edit act on this query; None where no gate applies to it.
        score: the raw score of `gate` (larger = steer), None where no gate decides per query or it had nothing to read.
        trace: its steering trace, token by token; None if it was not recorded.
        margin: `(score − threshold)/scale` of `gate`, comparable across gates: positive where it fires.
        gate: address of the first gate that scored the query (`pictures.gate`), as accepted by `plan.without`.
        ended: whether the model ended the response itself; False where the token limit cut it off, None if not known.
    """

    text: str
    fired: bool | None
    score: float | None
    trace: SteeringTrace | None = None
    margin: float | None = None
    gate: str | None = None
    ended: bool | None = None


class Verdict(NamedTuple):
    """The decision of a plan's gates about one query; fields as in `Response`."""

    fired: bool | None
    score: float | None = None
    margin: float | None = None
    gate: str | None = None


def respond(
    model: LoadedModel,
    prompts: Prompts,
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

    Rows are grouped by length, and every row stops at its own end. A two-pass plan is decided first, batch by batch. A
    row's random draws depend on its seed only; its batch and place affect no more than the rounding of logits.

    Args:
        model: the model.
        prompts: plain questions, or conversations.
        images: one picture or None per row.
        plan: the plan to run; None for the unedited model.
        max_new_tokens: maximum number of tokens per response, without the prefill.
        prefill: text with which responses begin, the same for all rows, or one text or None per row; the gate and
            "generated" still count from the prompt's end.
        batch_size: rows per batch.
        recorder: records the responses' traces.
        temperature: sampling temperature; 0 is greedy.
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
    if plan is not None and len(questions) > 1:
        require_any_batch(plan)

    def length(i: int) -> tuple[bool, int]:
        return pictures[i] is None, len(questions[i]) + len(begun[i] or "")

    found: dict[int, Response] = {}
    with running(model, plan, recorder) as handle:
        for rows in alike(range(len(questions)), batch_size, length, mixed=model.mixes):
            noise = GumbelNoise(temperature, [seeds[i] for i in rows]) if temperature else None
            said = answered(
                model,
                handle,
                [questions[i] for i in rows],
                [pictures[i] for i in rows],
                max_new_tokens,
                begun=[begun[i] for i in rows],
                noise=noise,
            )
            found |= zip(rows, said, strict=True)
    return [found[i] for i in range(len(questions))]


@contextmanager
def running(
    model: LoadedModel, plan: Plan | None, recorder: Recorder | None = None
) -> Iterator[Attached | None]:
    """Context in which a plan runs natively on the model; yields its handle, or None without a plan.

    Other threads wait for their turn: a plan acts on whatever the model is asked while it is attached.
    """
    with turn(model.hf), ExitStack() as stack:
        yield (
            None
            if plan is None
            else stack.enter_context(attach(model.hf, plan, layout=model.layout, recorder=recorder))
        )


@contextmanager
def asking(
    model: LoadedModel,
    handle: Attached | None,
    prompts: Sequence[Prompt],
    images: Sequence[Picture],
    responses: Sequence[str | None] | None = None,
) -> Iterator[Encoding]:
    """Context in which forward calls are about these questions; yields their inputs, after deciding if needed.

    Args:
        model: the model.
        handle: handle of the plan that runs on it; None for the unedited model.
        prompts: plain questions, or conversations.
        images: one picture or None per row.
        responses: the assistant's words, one text per row; edits on "generated" still count from the prompt's end.
    """
    if handle is not None:
        handle.decision = decided(model, handle.plan, prompts, images)
    encoding = model.encode(prompts, images, responses)
    if handle is None:
        yield encoding
        return
    with handle.expecting(encoding["input_ids"], encoding["attention_mask"], encoding.prompt_end):
        yield encoding


def answered(
    model: LoadedModel,
    handle: Attached | None,
    prompts: Sequence[Prompt],
    images: Sequence[Picture],
    max_new_tokens: int,
    *,
    begun: Sequence[str | None] | None = None,
    noise: GumbelNoise | None = None,
    streamer: BaseStreamer | None = None,
) -> list[Response]:
    """The responses to one batch, after deciding if the plan needs it.

    Args:
        model: the model.
        handle: handle of the plan that runs on it; None for the unedited model.
        prompts: plain questions, or conversations.
        images: one picture or None per row.
        max_new_tokens: maximum number of tokens per response, without prefills.
        begun: text with which the response begins, one per row.
        noise: turns greedy decoding into sampling; None for greedy responses.
        streamer: transformers' streamer, for a batch of one.
    """
    with asking(model, handle, prompts, images, begun) as encoding:
        new = continued(model, encoding, max_new_tokens, noise, streamer)
    texts, ended = [one.text for one in new], [one.ended for one in new]
    if begun is not None:
        texts = [f"{words or ''} {text}".strip() for words, text in zip(begun, texts, strict=True)]
    openers = [opened(head) for head in encoding.heads]
    texts = [
        text if text.startswith(opener) else f"{opener} {text}"
        for text, opener in zip(texts, openers, strict=True)
    ]
    if handle is None:
        return [Response(text, None, None, ended=end) for text, end in zip(texts, ended, strict=True)]
    said = heard(handle)
    trace = None if handle.recorder is None else handle.recorder.trace()
    return [
        Response(
            text, one.fired, one.score, None if trace is None else trace.row(row), one.margin, one.gate, end
        )
        for row, (text, one, end) in enumerate(zip(texts, said, ended, strict=True))
    ]


def heard(handle: Session) -> list[Verdict]:
    """`verdicts` of the batch that a plan has just run on."""
    if handle.state is None:
        raise RMuseError(
            "a plan that has run on a batch was required, got one that saw none; call the model first"
        )
    query = handle.state.query
    return verdicts(handle.plan, query.decision, query.has_image.tolist())


def verdicts(plan: Sentence, decision: Decision, has_image: Sequence[bool]) -> list[Verdict]:
    """One verdict per row: whether a gate that applies to it fired, and the result of the first gate that scored it."""
    found: list[Verdict] = []
    fired, scores = decision.fired.tolist(), decision.score.tolist()
    for row, image in enumerate(has_image):
        gates = {
            i: edit.gate
            for i, edit in enumerate(plan)
            if edit.gate is not None and edit.modality in (None, "image" if image else "text")
        }
        first = next((i for i in gates if math.isfinite(scores[row][i])), None)
        acted = any(fired[row][i] for i in gates) if gates else None
        if first is None:
            found.append(Verdict(acted))
            continue
        score, gate = scores[row][first], gates[first]
        name = f"{plan[first].name or f'edit{first}'}.gate"
        found.append(Verdict(acted, score, (score - gate.threshold) / gate.scale, name))
    return found
