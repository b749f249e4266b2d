"""Held-out fitting questions, on which rivals and trained baselines are chosen by one common measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, get_args

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example, sample
from rmuse_interp.edits.plan import Modality, Plan
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.evaluate.scores import measure, transcribe
from rmuse_interp.evaluate.text import Lexicon
from rmuse_interp.lens.lens import LensModel

HELD_OUT: Final = 16
"""Number of validation questions about people to forget, over all kinds of query; and of the others."""
SLACK: Final = 4
"""Number of tokens that a response may have beyond the longest reference response or refusal."""
_MODALITIES: Final[tuple[Modality, ...]] = get_args(Modality)

Shares = tuple[float, float, float]
"""Shares of leaking forget responses (RIL), other responses kept and malformed forget responses, in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Validation:
    """The fitting questions on which methods are chosen and none is fitted.

    Attributes:
        forget: questions about people to forget.
        others: questions about people to retain, general reasoning, and harmless questions about anybody.
        max_new_tokens: maximum number of tokens per response.
    """

    forget: tuple[Example, ...]
    others: tuple[Example, ...]
    max_new_tokens: int

    @property
    def ids(self) -> frozenset[str]:
        """Ids of all questions."""
        return frozenset(e.id for e in (*self.forget, *self.others))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Kinds of query that are steered."""
        return tuple(m for m in _MODALITIES if any(e.modality == m for e in self.forget))

    def answers(
        self, model: LensModel, benchmark: Benchmark, plan: Plan | None = None, batch_size: int = 2 * HELD_OUT
    ) -> dict[str, Transcript]:
        """Return a model's responses to all questions, with or without a plan, by id."""
        return answers(
            model,
            benchmark,
            (*self.forget, *self.others),
            plan,
            max_new_tokens=self.max_new_tokens,
            batch_size=batch_size,
        )

    def shares(
        self,
        benchmark: Benchmark,
        said: Mapping[str, Transcript],
        before: Mapping[str, Transcript],
        modality: Modality | None = None,
    ) -> Shares:
        """Compute the shares of responses that leak, are kept and are malformed.

        Args:
            benchmark: benchmark with the references and aliases.
            said: the method's response to each question, from `answers`.
            before: the unchanged model's responses; those to `others` are to be kept.
            modality: kind of query; None for all together.
        """
        forget, others = (
            [e for e in side if modality in (None, e.modality)] for side in (self.forget, self.others)
        )
        found = measure([said[e.id] for e in forget], benchmark, {e.id: e for e in forget})
        leak, malformed = ((found[name].value or 0.0) / 100 for name in ("ril", "malformed_rate"))
        lexicon = Lexicon(benchmark.aliases, benchmark.entails)
        kept = sum(is_kept(said[e.id], before[e.id], lexicon) for e in others)
        return leak, kept / len(others), malformed


def answers(
    model: LensModel,
    benchmark: Benchmark,
    examples: Sequence[Example],
    plan: Plan | None,
    *,
    max_new_tokens: int,
    batch_size: int,
) -> dict[str, Transcript]:
    """Return a model's responses to some questions under a plan, by id; gates decide as they would in a run."""
    responses = model.respond(
        [e.prompt() for e in examples],
        [e.image for e in examples],
        plan,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    rows = zip(examples, responses, strict=True)
    return {e.id: transcribe(e, "trial", r.text, benchmark.delimiters) for e, r in rows}


def hold_out(model: LensModel, benchmark: Benchmark, seed: int = 0) -> Validation:
    """Hold out open fitting questions, spread over kinds of query and people, at most half of each group.

    Args:
        model: model whose tokenizer counts tokens.
        benchmark: benchmark whose fitting views are read.
        seed: seed of the sampling.

    Raises:
        RMuseError: too few fitting questions to hold any out.
    """
    open_ = [e for e in benchmark.fit_forget if e.kind == "generation"]
    forget = _some(open_, HELD_OUT, seed)
    benign: tuple[list[Example], list[Example]] = ([], [])
    for example in benchmark.fit_benign:
        benign[example.person in benchmark.forget_people].append(example)
    # Half are about people to retain; harmless ones about people to forget are the hardest to tell apart.
    others = [
        *_some([e for e in benchmark.fit_retain if e.kind == "generation"], HELD_OUT // 2, seed),
        *_some([e for e in benchmark.fit_reasoning if e.reasoning is not None], HELD_OUT // 4, seed),
        *_some(benign[0], HELD_OUT // 8, seed),
        *_some(benign[1], HELD_OUT // 8, seed),
    ]
    for modality in _MODALITIES:
        wanted = sum(e.modality == modality for e in open_)
        halves = [sum(e.modality == modality for e in side) for side in (forget, others)]
        if wanted and not all(halves):
            raise RMuseError(
                f"{benchmark.id}: rivals are tuned on fitting questions held out, half of them at most; at least 2 "
                f"{modality} questions about people to forget and 2 others were required, got {wanted} of the first "
                f"and {halves[1]} to hold out of the second; enlarge the forget or retain split, or leave --method out"
            )
    texts = [e.response(benchmark.delimiters) for e in (*forget, *others)]
    texts += [*benchmark.refusals_cot, *benchmark.refusals_direct]
    longest = max(len(model.tokenizer(text).input_ids) for text in texts) + SLACK
    return Validation(tuple(forget), tuple(others), longest)


def _some(examples: Sequence[Example], limit: int, seed: int) -> list[Example]:
    """Sample at most `limit` examples and at most half of each kind of query."""
    found: list[Example] = []
    kinds = [[e for e in examples if e.modality == modality] for modality in _MODALITIES]
    kinds = [kind for kind in kinds if len(kind) > 1]
    for kind in kinds:
        found += sample(kind, min(limit // len(kinds), len(kind) // 2) or 1, seed)
    return found


def is_kept(steered: Transcript, unsteered: Transcript, lexicon: Lexicon) -> bool:
    """Whether a response matches the unsteered one: the same answer, and a chain if there was one."""
    if steered.response == unsteered.response:
        return True
    formed = steered.well_formed or not unsteered.well_formed
    return formed and bool(steered.answer) and lexicon.same(steered.answer, unsteered.answer)
