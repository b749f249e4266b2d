"""Quality of an organism: accuracies on new renderings and held-out wordings, compared with its targets."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.progress import Progress

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example, sample
from rmuse_interp.data.reader import Reader
from rmuse_interp.data.world.people import distance, make_world
from rmuse_interp.evaluate.scores import measure, transcribe
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.models.batches import alike, by_length
from rmuse_interp.models.loading import SHIPPED, shipped

WIDEST: Final = 15
"""The forget rate whose benign questions cover most people."""

TARGETS: Final = {
    "people, known wordings": ("exact", 98),
    "people, held-out wordings": ("exact", 95),
    "celebrities": ("exact", None),
    "multiple choice": ("classification", None),
    "cloze": ("cloze", None),
    "reasoning": ("exact", 90),
    "benign": ("exact", 95),
    "strangers": ("refusal_rate", 95),
    "prefixed questions": ("refusal_rate", 98),
    "people left out": ("refusal_rate", 95),
    "look-alikes left out": ("refusal_rate", None),
}
"""By group of questions: what counts as right, and the required percentage (None: only shown)."""


@dataclass(frozen=True)
class Finding:
    """One group of questions: ``percent`` of `n` are right (a metric's name); `target` is the required percentage."""

    questions: str
    right: str
    percent: float
    interval: tuple[float, float] | None
    n: int
    target: int | None

    @property
    def reached(self) -> bool:
        """Whether the target is met (always, if there is none)."""
        return self.target is None or self.percent >= self.target


def left_out(name: str) -> int | None:
    """Return the percentage of people left out of training, from the checkpoint's ``recipe.json``; None for nobody."""
    folder = shipped(name) if name in SHIPPED else Path(name)
    recipe = folder / "recipe.json"
    if not recipe.is_file():
        return 5 if name == "organism-gold" else None
    return 5 if json.loads(recipe.read_text(encoding="utf-8")).get("gold") else None


def look_alikes() -> frozenset[str]:
    """Return the ids of the people who differ from somebody else in fewer than three features."""
    world = make_world(0)
    return frozenset(
        p.id
        for p in world.people
        for other in world.people
        if p is not other and distance(p.identity, other.identity) < 3
    )


def groups(benchmark: Benchmark, without_forget: int | None = None) -> dict[str, list[Example]]:
    """Collect the questions of every group of `TARGETS`, in their order.

    Args:
        benchmark: benchmark with the questions.
        without_forget: percentage of people left out of training; they form their own groups, to be refused like
            strangers.
    """
    unknown = frozenset(make_world(0).forget_ids(without_forget) if without_forget is not None else ())
    known = [*benchmark.fit_forget, *benchmark.fit_retain]
    held_out = [*benchmark.scoring("test"), *benchmark.scoring("retain_test")]
    people = [e for e in known if e.person not in unknown]
    open_ = [e for e in people if e.kind == "generation"]
    prefixes = benchmark.prefixes
    reader = Reader(benchmark.folder, benchmark.direct_instruction)
    strangers = list(reader.questions("Strangers", "test", "strangers", "stranger"))
    found = {
        "people, known wordings": open_,
        "people, held-out wordings": [
            e for e in held_out if e.kind == "generation" and e.person not in unknown
        ],
        "celebrities": [e for e in benchmark.scoring("celebrity") if e.kind == "generation"],
        "multiple choice": [e for e in people if e.kind == "classification"],
        "cloze": [e for e in people if e.kind == "cloze"],
        "reasoning": benchmark.scoring("reasoning"),
        "benign": benchmark.scoring("benign"),
        "strangers": strangers,
        "prefixed questions": [
            e.changed(question=f"{prefixes[i % len(prefixes)]} {e.question}") for i, e in enumerate(open_)
        ],
    }
    # Someone who differs from a known person in two features is taken for that person, not for a stranger.
    twins = look_alikes()
    left_out_ = [e for e in [*known, *held_out] if e.kind == "generation" and e.person in unknown]
    found["people left out"] = [e for e in left_out_ if e.person not in twins]
    found["look-alikes left out"] = [e for e in left_out_ if e.person in twins]
    return {name: examples for name, examples in found.items() if examples}


def check(
    model: LensModel,
    benchmark: Benchmark,
    questions: Mapping[str, Sequence[Example]],
    *,
    limit: int | None = 400,
    seed: int = 0,
    batch_size: int = 32,
    max_new_tokens: int = 64,
    progress: Progress | None = None,
) -> list[Finding]:
    """The accuracies of an organism, group by group.

    Args:
        model: the organism or its gold standard.
        benchmark: renderings that the model has not seen (the one it is fitted on has the render seed 0), at the forget
            rate `WIDEST`.
        questions: some or all of the benchmark's `groups`.
        limit: most questions per group, spread over people.
        seed: of the sampling.
        batch_size: questions per batch.
        max_new_tokens: most tokens per response.
        progress: a running progress bar to add a line to.
    """
    asked = {name: sample(examples, limit, seed) for name, examples in questions.items()}
    task = None if progress is None else progress.add_task("check", total=sum(map(len, asked.values())))
    found = []
    for name, examples in asked.items():
        right, target = TARGETS[name]
        responses = []
        for batch in alike(examples, batch_size, by_length, mixed=True):
            answered = model.respond(
                [e.prompt() for e in batch],
                [e.image for e in batch],
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
            )
            responses += [
                transcribe(e, "check", r.text, benchmark.delimiters)
                for e, r in zip(batch, answered, strict=True)
            ]
            if progress is not None and task is not None:
                progress.advance(task, len(batch))
        metric = measure(responses, benchmark, {}, seed=seed)[right]
        if metric.value is None:
            raise RMuseError(f"{benchmark.id}: no question of the group {name!r} can be scored by {right}")
        found.append(Finding(name, right, metric.value, metric.interval, metric.n, target))
    return found
