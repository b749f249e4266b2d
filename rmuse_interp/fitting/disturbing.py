"""Queries as they might come in use: read with rounded weights, and with their photograph changed."""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from rmuse_interp.data.attacks.photographs import disturbed
from rmuse_interp.fitting.collect import Query
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.lens.quantised import roundable, rounding

PooledT = TypeVar("PooledT")

ROUNDED: Final = 0.08
"""Share of the gate's queries that it is shown with rounded weights as well. More was no better on the organism."""
CHANGED: Final = (0.5, 0.15)
"""Shares of the gate's queries about people to forget, and of all others, that it is shown with the photograph changed
as well. A person missed leaks, so theirs are more. Chosen on portraits of other seeds than those that are scored."""


def disturbed_states(
    model: LensModel,
    queries: Sequence[Query],
    forget: Collection[str],
    seed: int,
    read: Callable[[list[Query], str], PooledT],
) -> list[PooledT]:
    """What is read of some of the queries as they might come in use: their weights rounded, their photograph changed.

    A person's states scatter by that too, and a gate that has seen how does not take the scatter for another person.
    Which queries they are, and what becomes of their photograph, follows from the seed and a query's id alone.

    Args:
        model: whose weights are rounded to 4 bits while they are read; afterwards they are what they were.
        queries: with their ids; those disturbed have `~` and how behind theirs.
        forget: the ids of those about people to forget.
        seed: of the choice.
        read: from queries and a label to states.
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
    return [*found, read(changed, "changed photographs")] if changed else found
