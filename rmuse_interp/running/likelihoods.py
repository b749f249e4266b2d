"""What a model holds likely, method by method: truth ratios against a gold model, membership, fluency of responses."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.progress import Progress

from rmuse_interp.data import Benchmark, Example
from rmuse_interp.edits import Plan
from rmuse_interp.errors import RMuseError
from rmuse_interp.evaluate.fluency import perplexity
from rmuse_interp.evaluate.forgetting import forget_quality, perturbed_answers, truth_ratio
from rmuse_interp.evaluate.membership import ATTACKS, membership
from rmuse_interp.evaluate.text import Lexicon
from rmuse_interp.models.lens import LensModel
from rmuse_interp.models.likelihood import token_nll
from rmuse_interp.results import Transcript
from rmuse_interp.running import Method

Nats = dict[str, list[list[float]]]
"""Question id → nats per token of the right answer, then of each wrong one."""
GOLD: Final = "gold"


def answer_nats(
    model: LensModel,
    examples: Sequence[Example],
    wrong: Mapping[str, Sequence[str]],
    plan: Plan | None = None,
    *,
    batch_size: int = 32,
) -> Nats:
    """Nats of the right and the wrong answers alone, each to the direct form of its question.

    Args:
        model: the model.
        examples: open questions.
        wrong: question id → wrong answers, from `perturbed_answers`; questions without are left out.
        plan: what runs on the model.
        batch_size: rows per batch.
    """
    rows = [(e, answer) for e in examples if e.id in wrong for answer in (e.answer, *wrong[e.id])]
    found = token_nll(
        model,
        [e.prompt(direct=True) for e, _ in rows],
        [answer for _, answer in rows],
        [e.image for e, _ in rows],
        plan,
        batch_size=batch_size,
    )
    nats: Nats = {}
    for (example, _), tokens in zip(rows, found, strict=True):
        nats.setdefault(example.id, []).append(tokens)
    return nats


def forgetting(
    methods: Sequence[Method],
    gold: LensModel,
    benchmark: Benchmark,
    *,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Forget quality and membership inference of each method on the open questions about the people to forget.

    Wrong answers are other people's answers to the same question, retained people's too. Members are the right answers,
    the others the wrong ones to the same questions: the gold model, listed as ``gold``, shows what never having known
    them looks like.

    Args:
        methods: with distinct names.
        gold: the model trained without the people.
        benchmark: the one scored.
        limit: most questions.
        batch_size: rows per batch.
        seed: of drawing wrong answers and resampling.
        progress: a running progress bar.

    Raises:
        RMuseError: no question with wrong answers.
    """
    from rmuse_interp.data import sample

    everyone = [*benchmark.scoring("forget"), *benchmark.scoring("retain")]
    open_ = [e for e in everyone if e.kind == "generation" and e.person is not None]
    wrong = perturbed_answers(open_, Lexicon(benchmark.aliases, benchmark.entails), seed=seed)
    asked = [e for e in open_ if e.split == "forget" and e.id in wrong]
    if not asked:
        raise RMuseError(
            "open questions about the people to forget, with other people's answers to draw wrong ones from, were "
            "required, got none: leave --gold out"
        )
    if limit is not None and limit < len(asked):
        asked = sample(asked, limit, seed)
    people = {e.id: str(e.person) for e in asked}
    rows = [(method.name, method.model, method.plan) for method in methods] + [(GOLD, gold, None)]
    task = None if progress is None else progress.add_task("likelihoods", total=len(rows))
    nats: dict[str, Nats] = {}
    for name, model, plan in rows:
        nats[name] = answer_nats(model, asked, wrong, plan, batch_size=batch_size)
        if progress is not None and task is not None:
            progress.advance(task)
    ratios = {
        name: {i: truth_ratio(right, others) for i, (right, *others) in found.items()}
        for name, found in nats.items()
    }
    return {
        "methods": {
            name: {
                "forget_quality": asdict(forget_quality(ratios[name], ratios[GOLD], people, seed=seed)),
                "membership": {attack: asdict(_attacked(found, people, attack, seed)) for attack in ATTACKS},
                "truth_ratio": dict(sorted(ratios[name].items())),
            }
            for name, found in nats.items()
        },
        "gold": {"id": gold.name, "fingerprint": str(gold.fingerprint)},
    }


def _attacked(nats: Nats, people: Mapping[str, str], attack: Any, seed: int) -> Any:
    members = {i: right for i, (right, *_) in nats.items()}
    others = {f"{i}#{k}": one for i, (_, *wrong) in nats.items() for k, one in enumerate(wrong)}
    who = {**people, **{i: people[i.rsplit("#", 1)[0]] for i in others}}
    return membership(members, others, who, attack, seed=seed)


def fluency(
    transcripts: Sequence[Transcript],
    examples: Mapping[str, Example],
    model: LensModel,
    *,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Perplexity of each method's responses by split, under the model that no plan runs on.

    Args:
        transcripts: of any methods and splits.
        examples: id → the question, for its picture.
        model: the unsteered model.
        batch_size: rows per batch.
        seed: of the intervals.
    """
    said = [t for t in transcripts if t.response.strip()]
    found = token_nll(
        model, [t.prompt for t in said], [t.response for t in said], [examples[t.id].image for t in said],
        batch_size=batch_size,
    )  # fmt: skip
    nats = {(t.method, t.id): row for t, row in zip(said, found, strict=True)}
    scores: dict[str, Any] = {}
    for method, split in sorted({(t.method, t.split) for t in transcripts}):
        rows = [t for t in transcripts if (t.method, t.split) == (method, split)]
        metric = perplexity(rows, {t.id: nats[method, t.id] for t in rows if (method, t.id) in nats}, seed)
        low, high = metric.interval or (None, None)
        scores.setdefault(method, {})[split] = {
            "perplexity": metric.value, "low": low, "high": high, "n": metric.n, "parse_failures": metric.parse_failures,
        }  # fmt: skip
    return scores
