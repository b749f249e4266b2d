"""How often a gate fires in ordinary use: on long requests, other words for a name, namesakes, and general prompts.

Only gates are read: one token is generated per prompt, and what leaks under these attacks is told by `runs.attacked`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from rich.progress import Progress

from rmuse_interp.data import Benchmark, Example
from rmuse_interp.data.attacks import ATTACKS
from rmuse_interp.data.general import general
from rmuse_interp.data.store import JSON
from rmuse_interp.evaluate.metrics import OPEN_KINDS
from rmuse_interp.evaluate.scores import TO_STEER
from rmuse_interp.lens.respond import Response
from rmuse_interp.maths.statistics import upper_bound
from rmuse_interp.models.batches import alike
from rmuse_interp.models.prompts import Conversation, Prompt
from rmuse_interp.runs.run import Method, counted, kept_of, said

IN_USE: Final = ("embedded", "described", "misspelt", "translated")
"""Attacks that change what surrounds or stands for a name; gates should fire on `embedded` as on plain questions."""
GENERAL: Final = 1000
"""Number of general prompts."""

_Asked = tuple[Prompt, bytes | None]


def prompts_in_use(
    questions: Mapping[str, Sequence[Example]], benchmark: Benchmark, seed: int = 0, count: int = GENERAL
) -> dict[str, list[_Asked]]:
    """The prompts of each group with their pictures: the attacks of `IN_USE`, `namesakes`, and `general` ones by kind."""
    found: dict[str, list[_Asked]] = {
        name: [
            (asked.prompt, asked.image)
            for split in sorted(TO_STEER)
            for example in questions.get(split, ())
            if example.kind in OPEN_KINDS
            for asked in ATTACKS[name].variants(example, benchmark, seed)
        ]
        for name in IN_USE
    }
    found["namesakes"] = [(e.prompt(), e.image) for e in benchmark.scoring("namesakes")]
    for one in general(count, seed):
        prompt = one.text if one.system is None else Conversation((), one.text, one.system)
        found.setdefault(f"general, {one.kind}", []).append((prompt, None))
    return {name: asked for name, asked in found.items() if asked}


def firing(
    method: Method,
    groups: Mapping[str, Sequence[_Asked]],
    *,
    batch_size: int = 32,
    max_new_tokens: int = 1,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> JSON:
    """Count how often the gates of a method fire on each group, and on all general prompts together.

    Args:
        method: a method with a plan.
        groups: name → prompts with their pictures, as from `prompts_in_use`.
        batch_size: prompts per batch.
        max_new_tokens: length of the unsteered draft, for gates that read one.
        folder: the run's folder, which keeps finished batches; None keeps nothing.
        progress: a running progress bar to add a line to.

    Returns:
        group → ``fired``, ``n``, ``rate`` and ``upper`` (one-sided 95 % Clopper–Pearson bound), rates in percent.
        Prompts of a kind that no gate of the method decides on count as not fired.
    """
    kept = kept_of(folder, method, "in use", max_new_tokens)
    advance = counted(progress, f"{method.name} in use", sum(map(len, groups.values())))
    counts: dict[str, tuple[int, int]] = {}
    for name, prompts in groups.items():
        fired = 0
        for batch in alike(prompts, batch_size, lambda one: (one[1] is None, len(one[0])), mixed=True):
            key = [(str(prompt), image) for prompt, image in batch]
            responses, _ = said(kept, key, partial(_ask, method, batch, max_new_tokens))
            fired += sum(bool(response.fired) for response in responses)
            advance(len(batch))
        counts[name] = (fired, len(prompts))
    every = [count for name, count in counts.items() if name.startswith("general")]
    if every:
        counts["general"] = (sum(fired for fired, _ in every), sum(n for _, n in every))
    return {name: _rate(fired, n) for name, (fired, n) in counts.items()}


def _rate(fired: int, n: int) -> dict[str, float | int]:
    return {"fired": fired, "n": n, "rate": 100 * fired / n, "upper": 100 * upper_bound(fired, n)}


def _ask(method: Method, batch: Sequence[_Asked], max_new_tokens: int) -> list[Response]:
    return method.model.respond(
        [prompt for prompt, _ in batch],
        [image for _, image in batch],
        method.plan,
        max_new_tokens=max_new_tokens,
        batch_size=len(batch),
    )
