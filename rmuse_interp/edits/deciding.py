"""Decide about questions with a plan's gates, in unsteered passes; includes prefixed prompts, drafts, conversations."""

from collections.abc import Sequence
from typing import Final

from rmuse_interp.edits.hooks import decide as decide_encoded
from rmuse_interp.edits.hooks import paused
from rmuse_interp.edits.sentence import Sentence
from rmuse_interp.edits.state import Decision
from rmuse_interp.models.encoding import Encoding, Picture, per_row
from rmuse_interp.models.generation import continued
from rmuse_interp.models.loaded import LoadedModel
from rmuse_interp.models.prompts import Conversation, Prompt, Prompts, behind, listed

DRAFT_TOKENS: Final = 96
"""Maximum number of tokens of a draft."""


def decide(
    model: LoadedModel,
    plan: Sentence,
    prompts: Prompts,
    images: Picture | Sequence[Picture] = None,
) -> Decision:
    """The decision of the plan's gates about the prompts, from unsteered passes (over `g ⊕ q` for the literal gate).

    For gates that read the draft, the model first answers unsteered, with at most `DRAFT_TOKENS` tokens. A conversation
    is scored twice, as a whole and as its last question alone with the picture, and fires if either does: gates are
    fitted on single questions, and a harmless earlier turn must not hide one.

    Raises:
        RMuseError: the plan was fitted on another model.
    """
    if plan.fingerprint is not None:
        model.fingerprint.require(plan.fingerprint, "this plan")
    questions = listed(prompts)
    pictures = per_row(images, len(questions), "images")
    found = _decide(model, plan, questions, pictures)
    rows = [i for i, q in enumerate(questions) if isinstance(q, Conversation)]
    if not rows:
        return found
    alone = [q.question if isinstance(q, Conversation) else q for q in questions]
    return found.either(rows, _decide(model, plan, [alone[i] for i in rows], [pictures[i] for i in rows]))


def _decide(
    model: LoadedModel, plan: Sentence, prompts: Sequence[Prompt], images: Sequence[Picture]
) -> Decision:
    def encode(prefix: str | None, draft: bool) -> Encoding:
        asked = prompts if prefix is None else [behind(prefix, q) for q in prompts]
        return model.encode(asked, images, drafts(model, asked, images) if draft else None)

    return decide_encoded(model.hf, plan, encode, model.layout)


def decided(
    model: LoadedModel, plan: Sentence, prompts: Sequence[Prompt], images: Sequence[Picture]
) -> Decision | None:
    """`decide` with repeated questions scored once; None for single-pass plans, which decide while they run."""
    if plan.single_pass and not (plan.gates and any(isinstance(prompt, Conversation) for prompt in prompts)):
        return None
    first: dict[tuple[Prompt, bytes | int], int] = {}
    shown = [image if isinstance(image, bytes) else id(image) for image in images]
    place = [
        first.setdefault((prompt, image), len(first)) for prompt, image in zip(prompts, shown, strict=True)
    ]
    rows = [place.index(i) for i in range(len(first))]
    return decide(model, plan, [prompts[row] for row in rows], [images[row] for row in rows]).rows(place)


def drafts(model: LoadedModel, prompts: Sequence[Prompt], images: Sequence[Picture]) -> list[str]:
    """The model's own greedy responses of at most `DRAFT_TOKENS` tokens, with attached plans paused."""
    with paused(model.hf):
        return [draft.text for draft in continued(model, model.encode(prompts, images), DRAFT_TOKENS)]
