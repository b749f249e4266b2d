"""What a plan's gates say of questions, from unsteered passes: prefixed prompts, drafts and conversations too."""

from collections.abc import Sequence
from typing import Final

from rmuse_interp.edits.hooks import decide as decide_encoded
from rmuse_interp.edits.hooks import paused
from rmuse_interp.edits.sentence import Sentence
from rmuse_interp.edits.state import Decision
from rmuse_interp.models.encoding import Conversation, Encoding, Picture, Prompt, behind, listed, per_row
from rmuse_interp.models.generation import continued
from rmuse_interp.models.loaded import LoadedModel

DRAFT_TOKENS: Final = 96
"""The most tokens of a draft that a gate reads."""


def decide(
    model: LoadedModel,
    plan: Sentence,
    prompts: Prompt | Sequence[Prompt],
    images: Picture | Sequence[Picture] = None,
) -> Decision:
    """What the plan's gates say of the prompts, from unsteered passes; the literal gate's over `g ⊕ q`.

    For gates that read the draft, the model first answers unsteered, in at most `DRAFT_TOKENS` tokens. A conversation is
    asked about twice, whole and by its question alone with the picture, and either fires: gates know questions as they
    are fitted on them, and no harmless turn in front may hide one.

    Raises:
        RMuseError: a plan that was fitted on another model.
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
    """`decide`, where a question that stands in several rows is asked once; None where the pass itself decides."""
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
    """The model's own greedy responses, of at most `DRAFT_TOKENS` tokens; attached plans do not act."""
    with paused(model.hf):
        return continued(model, model.encode(prompts, images), DRAFT_TOKENS)
