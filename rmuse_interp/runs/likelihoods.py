"""Likelihoods under a model, method by method: truth ratios against a gold model, membership, fluency of responses.

As in `run`, every finished batch is written to disk immediately if a folder is given. Pictures are read batch by batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

from rich.progress import Progress

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example, sample
from rmuse_interp.data.store import JSON
from rmuse_interp.evaluate.fluency import perplexity
from rmuse_interp.evaluate.forgetting import forget_quality, perturbed_answers, truth_ratio
from rmuse_interp.evaluate.membership import SCORES, Attack, Membership, membership
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.evaluate.text import Lexicon
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.lens.likelihood import token_nll
from rmuse_interp.models.batches import alike
from rmuse_interp.runs.run import Method, kept_of

Nats = dict[str, list[list[float]]]
"""Question id → nats per token of the right answer, then of each wrong one."""
GOLD: Final = "gold"
Row = tuple[str, str, Example]
"""A question as asked, a response to it, and the example whose picture belongs to it."""


def answer_nats(
    method: Method,
    examples: Sequence[Example],
    wrong: Mapping[str, Sequence[str]],
    *,
    batch_size: int = 32,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Nats:
    """Compute the nats of the right and wrong answers without reasoning, as replies to the question's direct form.

    Args:
        method: the model, and the plan that runs on it.
        examples: open questions.
        wrong: question id → wrong answers, from `perturbed_answers`; questions without any are left out.
        batch_size: rows per batch.
        folder: the run's folder, where batches are kept; None keeps nothing.
        progress: a running progress bar to add a line to.
    """
    asked = [(e, answer) for e in examples if e.id in wrong for answer in (e.answer, *wrong[e.id])]
    rows = [(e.prompt(direct=True), answer, e) for e, answer in asked]
    nats: Nats = {}
    found = _nats(method, rows, f"answers--{method.name}", batch_size, folder, progress)
    for (example, _), tokens in zip(asked, found, strict=True):
        nats.setdefault(example.id, []).append(tokens)
    return nats


def _nats(
    method: Method,
    rows: Sequence[Row],
    name: str,
    batch_size: int,
    folder: Path | None,
    progress: Progress | None,
) -> list[list[float]]:
    """`token_nll` of every row, in the order of the rows; batches kept in the folder are not computed again."""
    kept = kept_of(folder, method, "nats")

    def length(i: int) -> tuple[bool, int]:
        prompt, response, example = rows[i]
        return example.picture is None, len(prompt + response)

    found: dict[int, list[float]] = {}
    label = f"likelihoods, {name}"
    for batch in alike(range(len(rows)), batch_size, length, progress=progress, label=label):
        some = [rows[i] for i in batch]
        nats = kept.once(
            [(prompt, response, example.image) for prompt, response, example in some],
            partial(_computed, method, some),
        )
        found |= zip(batch, nats, strict=True)
    return [found[i] for i in range(len(rows))]


def _computed(method: Method, rows: Sequence[Row]) -> list[list[float]]:
    prompts, responses, examples = zip(*rows, strict=True)
    pictures = [e.image for e in examples]
    return token_nll(method.model, prompts, responses, pictures, method.plan, batch_size=len(rows))


def forgetting(
    methods: Sequence[Method],
    gold: LensModel,
    benchmark: Benchmark,
    *,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> JSON:
    """Compute each method's forget quality and membership inference on the open questions about people to forget.

    Wrong answers are other people's answers to the same question, including retained people's. Right answers are the
    members, wrong answers to the same questions the others; the gold model, listed as ``gold``, shows the result for a
    model that never knew the people.

    Args:
        methods: methods with distinct names.
        gold: the model trained without the people.
        benchmark: the benchmark to score.
        limit: maximum number of questions.
        batch_size: rows per batch.
        seed: seed for drawing wrong answers and resampling.
        folder: the run's folder, where batches are kept until `finish`; None keeps nothing.
        progress: a running progress bar to add one line per method to.

    Raises:
        RMuseError: no question has wrong answers.
    """
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
    nats = {
        method.name: answer_nats(
            method, asked, wrong, batch_size=batch_size, folder=folder, progress=progress
        )
        for method in (*methods, Method(GOLD, gold))
    }
    ratios = {
        name: {i: truth_ratio(right, others) for i, (right, *others) in found.items()}
        for name, found in nats.items()
    }
    return {
        "methods": {
            name: {
                "forget_quality": asdict(forget_quality(ratios[name], ratios[GOLD], people, seed=seed)),
                "membership": {attack: asdict(_attacked(found, people, attack, seed)) for attack in SCORES},
                "truth_ratio": dict(sorted(ratios[name].items())),
            }
            for name, found in nats.items()
        },
        "gold": {"id": gold.name, "fingerprint": str(gold.fingerprint)},
    }


def _attacked(nats: Nats, people: Mapping[str, str], attack: Attack, seed: int) -> Membership:
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
    folder: Path | None = None,
    progress: Progress | None = None,
) -> JSON:
    """Compute the perplexity of each method's responses by split, under the unsteered model.

    Args:
        transcripts: transcripts of any methods and splits.
        examples: id → the question, for its picture.
        model: the unsteered model.
        batch_size: rows per batch.
        seed: seed of the intervals.
        folder: the run's folder, where batches are kept until `finish`; None keeps nothing.
        progress: a running progress bar to add a line to.
    """
    said = [t for t in transcripts if t.response.strip()]
    asked = [(t.prompt, t.response, examples[t.id]) for t in said]
    found = _nats(Method("responses", model), asked, "responses", batch_size, folder, progress)
    nats = {(t.method, t.id): row for t, row in zip(said, found, strict=True)}
    scores: JSON = {}
    for method, split in sorted({(t.method, t.split) for t in transcripts}):
        rows = [t for t in transcripts if (t.method, t.split) == (method, split)]
        metric = perplexity(rows, {t.id: nats[method, t.id] for t in rows if (method, t.id) in nats}, seed)
        low, high = metric.interval or (None, None)
        scores.setdefault(method, {})[split] = {
            "perplexity": metric.value,
            "low": low,
            "high": high,
            "n": metric.n,
            "parse_failures": metric.parse_failures,
        }
    return scores
