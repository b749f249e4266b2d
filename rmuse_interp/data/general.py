"""Requests of everyday use that concern nobody to forget: what a gate must leave alone, in numbers large enough to tell.

Composed from templates by a seeded generator, so that they are free to use and the same everywhere.
"""

import functools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WITH_SYSTEM: Final = 0.25
"""Share of the requests that come behind a system turn."""


@dataclass(frozen=True)
class General:
    """A request: its kind (`ask`, `code`, `foreign`, `long`, `small`, `sum`), its text, and a system turn or None."""

    kind: str
    text: str
    system: str | None = None


def general(count: int = 1000, seed: int = 0) -> list[General]:
    """Distinct requests of all kinds and lengths.

    >>> found = general(1000)
    >>> len({(g.text, g.system) for g in found}), sorted({g.kind for g in found})
    (1000, ['ask', 'code', 'foreign', 'long', 'small', 'sum'])
    """
    rng = random.Random(f"general-{seed}")
    found: dict[tuple[str, str | None], General] = {}
    while len(found) < count:
        kind = rng.choices(list(_MAKERS), weights=_WEIGHTS)[0]
        system = rng.choice(_words()["system"]) if rng.random() < WITH_SYSTEM else None
        one = General(kind, _MAKERS[kind](rng), system)
        found.setdefault((one.text, one.system), one)
    return list(found.values())


@functools.cache
def _words() -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return found


def _filled(rng: random.Random, templates: str, **slots: str) -> str:
    words = _words()
    values = {slot: rng.choice(words[name]) for slot, name in slots.items()}
    return rng.choice(words[templates]).format(**values)


def _ask(rng: random.Random) -> str:
    return _filled(rng, "asks", t="topics", a="audiences", s="styles")


def _code(rng: random.Random) -> str:
    return _filled(rng, "code", l="languages", f="functions")


def _foreign(rng: random.Random) -> str:
    # Each entry: requests in one language and topics in it.
    asks, topics = (part.split("|") for part in rng.choice(_words()["foreign"]).split("||"))
    return rng.choice(asks).format(t=rng.choice(topics))


def _long(rng: random.Random) -> str:
    sentences = _words()["sentences"]
    return rng.choice(_words()["done_to"]).format(
        x=" ".join(rng.sample(sentences, rng.randint(2, len(sentences))))
    )


def _small(rng: random.Random) -> str:
    return " ".join(rng.sample(_words()["small"], rng.randint(1, 3)))


def _sum(rng: random.Random) -> str:
    return rng.choice(_words()["sums"]).format(
        a=rng.randint(2, 900), b=rng.randint(2, 900), c=rng.randint(2, 52)
    )


_MAKERS: Final[dict[str, Callable[[random.Random], str]]] = {
    "ask": _ask,
    "code": _code,
    "foreign": _foreign,
    "long": _long,
    "small": _small,
    "sum": _sum,
}
_WEIGHTS: Final = (8, 4, 4, 5, 1, 2)
