"""Rivals tuned: blocks and strength of each by the same procedure and budget, on fitting questions held out.

Every rival of `steering.RIVALS` is fitted on the evidence without the validation questions, tried at every choice of
blocks (`choices`) times every strength of its own, and kept at the best (`choose_strength`). What was validated is what
runs: nothing is fitted again afterwards. `Test_Set`, `test` files and celebrities are never read.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

from rich.progress import Progress

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example, sample
from rmuse_interp.edits.plan import Modality, Plan
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.evaluate.scores import measure, transcribe
from rmuse_interp.evaluate.text import Lexicon
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.method.rivals import RIVALS, Trial, choose_strength
from rmuse_interp.method.rmuse import Evidence, middle_third
from rmuse_interp.parts.pooled import Pooled

HELD_OUT: Final = 16
"""Validation questions about people to forget, of all kinds of query together; and as many others."""
SLACK: Final = 4
"""Tokens a response may have beyond the longest reference response or refusal."""
_MODALITIES: Final[tuple[Modality, ...]] = get_args(Modality)


@dataclass(frozen=True, eq=False)
class Validation:
    """The fitting questions that rivals are tuned on, and that none is fitted on.

    Attributes:
        forget: about people to forget.
        others: about people to retain, general reasoning, and harmless ones about anybody.
        max_new_tokens: the most tokens of a response to any of them.
    """

    forget: tuple[Example, ...]
    others: tuple[Example, ...]
    max_new_tokens: int

    @property
    def ids(self) -> frozenset[str]:
        """Ids of all of them."""
        return frozenset(e.id for e in (*self.forget, *self.others))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Kinds of query that are steered."""
        return tuple(m for m in _MODALITIES if any(e.modality == m for e in self.forget))


@dataclass(frozen=True, eq=False)
class Tuned:
    """A rival after tuning.

    Attributes:
        name: in `RIVALS`.
        plan: the edits of all kinds of query, at the blocks and strengths chosen.
        trials: of each kind of query, all that was tried.
        chosen: of each kind of query, the trial that was best.
        responses: generated for these trials.
    """

    name: str
    plan: Plan
    trials: Mapping[Modality, Sequence[Trial]]
    chosen: Mapping[Modality, Trial]
    responses: int


def choices(n_layers: int) -> list[tuple[int, ...]]:
    """The choices of blocks that every rival is tried at: three single ones, the middle third, the upper half.

    >>> choices(8)
    [(4,), (6,), (7,), (2, 3, 4), (4, 5, 6, 7)]
    """
    found = [
        (n_layers // 2,),
        (3 * n_layers // 4,),
        (n_layers - 1,),
        tuple(middle_third(n_layers)),
        tuple(range(n_layers // 2, n_layers)),
    ]
    return [blocks for blocks in dict.fromkeys(found) if blocks]


def hold_out(model: LensModel, benchmark: Benchmark, seed: int = 0) -> Validation:
    """The validation part: open fitting questions, spread over kinds of query and people, half of a group at most.

    Args:
        model: whose tokens are counted.
        benchmark: whose fitting views are read.
        seed: of the sampling.

    Raises:
        RMuseError: too few fitting questions to hold any out.
    """
    open_ = [e for e in benchmark.fit_forget if e.kind == "generation"]
    forget = _some(open_, HELD_OUT, seed)
    benign: tuple[list[Example], list[Example]] = ([], [])
    for example in benchmark.fit_benign:
        benign[example.person in benchmark.forget_people].append(example)
    # Half of them about people to retain; harmless ones about people to forget are the hardest to keep apart.
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
    """At most `limit` of them and at most half of each kind of query."""
    found: list[Example] = []
    kinds = [[e for e in examples if e.modality == modality] for modality in _MODALITIES]
    kinds = [kind for kind in kinds if len(kind) > 1]
    for kind in kinds:
        found += sample(kind, min(limit // len(kinds), len(kind) // 2) or 1, seed)
    return found


def without(evidence: Evidence, ids: Collection[str]) -> Evidence:
    """The evidence without what was read of these questions.

    The states along refusals (`tokens`), which no rival is built from, are known by no id: there are none left.

    Args:
        evidence: of one kind of query.
        ids: of examples.

    Returns:
        the very same evidence where it holds none of them.

    Raises:
        RMuseError: nothing is left of the questions to forget, or of the others.
    """
    sides = (*evidence.readouts.values(), *evidence.step.values(), evidence.refusal["answer"])
    if not any(_example(name) in ids for pooled in sides for name in pooled.ids):
        return evidence

    def rest(pooled: Pooled) -> Pooled:
        return pooled.select([name for name in pooled.ids if _example(name) not in ids])

    def each(pools: Mapping[Any, Pooled]) -> dict[Any, Pooled]:
        return {span: rest(pooled) for span, pooled in pools.items()}

    def of(table: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in table.items() if _example(name) not in ids}

    spans = ("own", "refusal", "step", "direct", "step_prefixed", "direct_prefixed", "readouts")
    tables = ("refused_with", "groups", "forget", "others", "people")
    parts: dict[str, Any] = {name: each(getattr(evidence, name)) for name in spans}
    parts |= {name: of(getattr(evidence, name)) for name in tables}
    parts |= {name: getattr(evidence, name)[:0] for name in ("tokens", "position", "template")}
    left = replace(evidence, prefixed=rest(evidence.prefixed), **parts)
    if not left.refusal["answer"].ids or not left.forget or not left.others:
        raise RMuseError(
            f"forget and other questions beside the {len(ids)} held out were required, got "
            f"{len(left.refusal['answer'].ids)} and {len(left.others)}; collect more of them (limit=…)"
        )
    return left


def _example(name: str) -> str:
    """The example's id of a row: prompts are kept as ``ID@PICTURE``, disturbed ones as ``ID@PICTURE~HOW``."""
    head, _, number = name.rpartition("@")
    return head if head and number.partition("~")[0].isdigit() else name


def tune(
    model: LensModel,
    benchmark: Benchmark,
    evidence: Mapping[Modality, Evidence],
    name: str,
    *,
    validation: Validation,
    unsteered: Mapping[str, Transcript],
    batch_size: int = 2 * HELD_OUT,
    done: Mapping[Modality, Sequence[Trial]] | None = None,
    tell: Callable[[Mapping[Modality, Sequence[Trial]]], None] | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """A rival at the blocks and strength that do best on the validation part, chosen for each kind of query.

    Edits of one kind of query leave the others alone, so the responses of one pass serve all of them.

    Args:
        model: from `load_model`.
        benchmark: from `load_benchmark`.
        evidence: from `gather`; what it holds of the validation part is left out (see `without`).
        name: in `RIVALS`.
        validation: from `hold_out`, the same for all rivals.
        unsteered: from `answer_unsteered`, the same for all rivals.
        batch_size: questions per batch.
        done: trials of an interrupted tuning; they are not tried again.
        tell: gets all trials so far after each new one.
        progress: a running progress bar to add a line to.

    Raises:
        RMuseError: an unknown name; evidence that a rival cannot be built from.
    """
    require_names([name])
    rival, kinds = RIVALS[name], [m for m in validation.modalities if m in evidence]
    left = {m: without(evidence[m], validation.ids) for m in kinds}
    tried: dict[Modality, list[Trial]] = {m: list((done or {}).get(m, ())) for m in kinds}

    def plan_at(settings: Mapping[Modality, tuple[tuple[int, ...], float]]) -> Plan:
        edits = [rival.build(left[m], m, blocks, strength) for m, (blocks, strength) in settings.items()]
        return Plan(edits).bound_to(model)

    grid = [(blocks, strength) for blocks in choices(model.n_layers) for strength in rival.strengths]
    task = None if progress is None else progress.add_task(name, total=len(grid))
    for setting in grid:
        if not all(any((t.layers, t.strength) == setting for t in tried[m]) for m in kinds):
            said = _answers(model, benchmark, validation, plan_at(dict.fromkeys(kinds, setting)), batch_size)
            for m in kinds:
                tried[m] = [t for t in tried[m] if (t.layers, t.strength) != setting]
                tried[m].append(_trial(benchmark, validation, m, said, unsteered, *setting))
            if tell is not None:
                tell(tried)
        if progress is not None and task is not None:
            progress.advance(task)
    chosen = {m: choose_strength(tried[m]) for m in kinds}
    plan = plan_at({m: (t.layers, t.strength) for m, t in chosen.items()})
    return Tuned(name, plan, tried, chosen, len(grid) * len(validation.ids))


def require_names(names: Sequence[str]) -> None:
    """Raise unless each name is that of a rival, and none is given twice.

    Raises:
        RMuseError: says which names there are.
    """
    unknown = [name for name in names if name not in RIVALS]
    if unknown:
        raise RMuseError(f"a rival is one of {', '.join(RIVALS)}, got {', '.join(map(repr, unknown))}")
    if len(set(names)) != len(names):
        raise RMuseError(f"each rival once was required, got {', '.join(names)}")


def answer_unsteered(
    model: LensModel, benchmark: Benchmark, validation: Validation, batch_size: int = 2 * HELD_OUT
) -> dict[str, Transcript]:
    """What the model says to the validation questions by itself, by id: what steering should keep of the others."""
    return _answers(model, benchmark, validation, None, batch_size)


def _answers(
    model: LensModel, benchmark: Benchmark, validation: Validation, plan: Plan | None, batch_size: int
) -> dict[str, Transcript]:
    asked = [*validation.forget, *validation.others]
    responses = model.respond(
        [e.prompt() for e in asked],
        [e.image for e in asked],
        plan,
        max_new_tokens=validation.max_new_tokens,
        batch_size=batch_size,
    )
    rows = [
        transcribe(e, "trial", r.text, benchmark.delimiters) for e, r in zip(asked, responses, strict=True)
    ]
    return {row.id: row for row in rows}


def _trial(
    benchmark: Benchmark,
    validation: Validation,
    modality: Modality,
    said: Mapping[str, Transcript],
    unsteered: Mapping[str, Transcript],
    layers: tuple[int, ...],
    strength: float,
) -> Trial:
    forget = [e for e in validation.forget if e.modality == modality]
    found = measure([said[e.id] for e in forget], benchmark, {e.id: e for e in forget})
    leak, malformed = ((found[name].value or 0.0) / 100 for name in ("ril", "malformed_rate"))
    others = [e.id for e in validation.others if e.modality == modality]
    lexicon = Lexicon(benchmark.aliases, benchmark.entails)
    kept = sum(is_kept(said[name], unsteered[name], lexicon) for name in others) / len(others)
    return Trial(strength, leak, kept, malformed, layers)


def is_kept(steered: Transcript, unsteered: Transcript, lexicon: Lexicon) -> bool:
    """Whether a response says what the model says by itself: the same answer, and a chain where there was one."""
    if steered.response == unsteered.response:
        return True
    formed = steered.well_formed or not unsteered.well_formed
    return formed and bool(steered.answer) and lexicon.same(steered.answer, unsteered.answer)
