"""Sample a few questions: spread evenly, and the same ones every time."""

import random
from collections import defaultdict
from collections.abc import Iterable

from rmuse_interp import RMuseError
from rmuse_interp.data.example import Example


def sample(examples: Iterable[Example], limit: int | None, seed: int = 0) -> list[Example]:
    """Choose at most `limit` examples, spread evenly over kinds, modalities and people; the same for the same seed.

    The choice does not depend on the order of `examples`; the result keeps that order. ``None`` keeps all.

    >>> rows = [Example(f"x/{p}/{k}", "forget", "generation", "text", "?", "!", person=p)
    ...         for p in "ab" for k in range(3)]
    >>> sorted(e.person for e in sample(rows, 2))
    ['a', 'b']
    """
    rows = list(examples)
    if limit is None or limit >= len(rows):
        return rows
    if limit < 1:
        raise RMuseError(f"required a limit of at least 1, got {limit}")
    shuffled = sorted(rows, key=lambda e: e.id)
    random.Random(seed).shuffle(shuffled)
    strata: dict[tuple[str, str], dict[str, list[Example]]] = defaultdict(lambda: defaultdict(list))
    for example in shuffled:
        strata[example.kind, example.modality][example.person or example.id].append(example)
    taken: dict[str, int] = defaultdict(int)
    chosen: set[str] = set()
    while len(chosen) < limit:
        for key in sorted(strata):
            people = {p: queue for p, queue in strata[key].items() if queue}
            if people and len(chosen) < limit:
                person = min(people, key=lambda p: taken[p])  # ties are broken by the shuffled order
                taken[person] += 1
                chosen.add(people[person].pop().id)
    return [e for e in rows if e.id in chosen]
