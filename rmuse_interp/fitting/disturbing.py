"""Queries as they may occur in use: with rounded weights, with a changed photograph, inside a long request."""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from rmuse_interp.data.attacks.ordinary import LENGTHS, embed
from rmuse_interp.data.attacks.photographs import disturbed
from rmuse_interp.fitting.collect import Query
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.lens.quantised import roundable, rounding

EMBEDDED: Final = (1.0, 0.2)
"""Shares of the gate's queries about people to forget, and of all others, that are also read inside a long request."""
PooledT = TypeVar("PooledT")

ROUNDED: Final = 0.08
"""Share of the gate's queries that are also read with rounded weights. More did not help on the organism."""
CHANGED: Final = (0.5, 0.15)
"""Shares of the gate's queries about people to forget, and of all others, that are also read with a changed photograph.
The first is larger because a missed person leaks. Chosen on portraits with other seeds than the scored ones."""


def disturbed_states(
    model: LensModel,
    queries: Sequence[Query],
    forget: Collection[str],
    seed: int,
    read: Callable[[list[Query], str], PooledT],
    embedding: bool = False,
) -> list[PooledT]:
    """Read some of the queries again, with rounded weights, with a changed photograph, and inside a long request.

    Such changes scatter a person's states; a gate that has seen this does not take the scatter for another person. The
    seed and a query's id alone determine which queries are chosen and how their photographs change.

    Args:
        model: the model; its weights are rounded to 4 bits during the reading and restored afterwards.
        queries: the queries; the id of a disturbed one ends in `~` and the kind of disturbance.
        forget: ids of the queries about people to forget.
        seed: seed of the choice.
        read: function that maps queries and a label to states.
        embedding: whether to read queries inside long requests too; for benchmarks without pictures.
    """
    found = []
    drawn = [(q, random.Random(f"{seed}/{q.id}").random()) for q in queries]
    rounded = [replace(q, id=f"{q.id}~rounded") for q, at in drawn if at < ROUNDED]
    if rounded and roundable(model):
        with rounding(model, 4):
            found.append(read(rounded, "rounded weights"))
    changed = [
        replace(q, id=f"{q.id}~changed", image=disturbed(q.image, random.Random(f"{seed}/{q.id}/photograph")))
        for q, at in drawn
        if q.image is not None and at < CHANGED[q.id not in forget]
    ]
    if changed:
        found.append(read(changed, "changed photographs"))
    embedded = [
        replace(q, id=f"{q.id}~embedded", prompt=embed(q.prompt, rng.choice(LENGTHS), rng, "fitting"))
        for q, at in drawn
        if embedding and at < EMBEDDED[q.id not in forget]
        for rng in [random.Random(f"{seed}/{q.id}/request")]
    ]
    return [*found, read(embedded, "long requests")] if embedded else found
