"""Know before you forget: ask the unsteered model for every fact about the people to forget, in three wordings."""

from dataclasses import replace
from typing import Final

from rich.progress import Progress

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example
from rmuse_interp.data.attacks import ATTACKS
from rmuse_interp.data.store import JSON
from rmuse_interp.evaluate.known import facts_of, knowledge
from rmuse_interp.evaluate.metrics import OPEN_KINDS
from rmuse_interp.evaluate.text import Lexicon
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.runs.run import Method, run

WORDINGS: Final = 3
"""Number of wordings in which a fact is asked for."""


def in_wordings(benchmark: Benchmark, seed: int = 0) -> list[Example]:
    """Open questions about the people to forget, up to `WORDINGS` per fact: the benchmark's own, then paraphrases."""
    found: dict[tuple[object, ...], list[Example]] = {}
    asked = [e for e in benchmark.fit_forget if e.kind in OPEN_KINDS and e.attributes]
    for example in asked:
        found.setdefault((example.person, tuple(sorted(example.attributes)), example.modality), []).append(
            example
        )
    for own in found.values():
        reworded = [
            replace(own[0], id=f"{own[0].id}~{variant.variant}", question=variant.prompt)
            for variant in ATTACKS["paraphrase"].variants(own[0], benchmark, seed)
        ]
        own[:] = [*own, *reworded][:WORDINGS]
    return [example for own in found.values() for example in own]


def known_before(
    model: LensModel,
    benchmark: Benchmark,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> JSON:
    """What the unsteered model knows of the facts about people to forget, as `evaluate.known.knowledge` tells it.

    Args:
        model: the model as it is.
        benchmark: source of the fitting questions.
        max_new_tokens: maximum number of tokens per response.
        batch_size: questions per batch.
        seed: seed of the choice among paraphrases.
        progress: a running progress bar to add a line to.

    Raises:
        RMuseError: no question about a person to forget has attributes.
    """
    questions = in_wordings(benchmark, seed)
    if not questions:
        raise RMuseError(
            f"{benchmark.id}: open questions about people to forget with 'Forget_Attributes' were required to ask what "
            "the model knows, got none; `rmuse data annotate` writes them"
        )
    answers = run(
        [Method("vanilla", model)],
        {"forget": questions},
        delimiters=benchmark.delimiters,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    return knowledge(facts_of(answers.transcripts, Lexicon(benchmark.aliases, benchmark.entails)))
