"""Small tasks with one right answer, about nobody: the split `reasoning` of the benchmark `facts`."""

import json
import random
from pathlib import Path


def solvable(count: int, part: str) -> list[tuple[str, str]]:
    """Distinct tasks and their answers; the parts `train` and `test` have different wordings.

    >>> solvable(3, "train") == solvable(3, "train"), len({q for q, _ in solvable(60, "test")})
    (True, 60)
    """
    words = json.loads((Path(__file__).parent / "tasks.json").read_text(encoding="utf-8"))
    rng = random.Random(f"tasks-{part}")
    found = {f"What is the opposite of {one}?": other for one, other in words["opposites"][part]}
    for asked, names in zip(words["after"][part], (words["days"], words["months"]), strict=True):
        found |= {asked.format(name): names[(i + 1) % len(names)] for i, name in enumerate(names)}
    found |= {words["capitals"][part].format(word): word.upper() for word in words["words"]}
    while len(found) < count:
        a, b = rng.randint(2, 30), rng.randint(2, 30)
        found[rng.choice(words["sums"][part]).format(a=a, b=b)] = str(a + b)
    return rng.sample(sorted(found.items()), count)
