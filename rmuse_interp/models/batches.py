"""Passes over many rows: the one way to form batches of like length, and the one way to read blocks' outputs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

from jaxtyping import Float
from rich.progress import Progress
from torch import Tensor

from rmuse_interp.data import Example
from rmuse_interp.models.layout import Layout
from rmuse_interp.models.site import Site, tap

Row = TypeVar("Row")
Taken = TypeVar("Taken")


def alike(
    rows: Iterable[Row],
    size: int,
    key: Callable[[Row], tuple[Any, ...]],
    *,
    mixed: bool = False,
    progress: Progress | None = None,
    label: str = "",
) -> Iterator[list[Row]]:
    """The rows in batches of similar length; rows of one kind, whatever their order, give the same batches.

    Args:
        rows: what is to be passed over.
        size: most rows per batch.
        key: a row's kind (whether it has a picture), its length, and whatever else settles the order.
        mixed: fill a batch up with rows of the next kind, so that one batch may hold both; else none does.
        progress: a running progress bar to add a line to, which moves as batches are done.
        label: of that line.

    >>> list(alike(["ccc", "a", "bb", "d"], 3, lambda row: (row == "d", len(row))))
    [['a', 'bb', 'ccc'], ['d']]
    >>> list(alike(["ccc", "a", "bb", "d"], 2, lambda row: (row == "d", len(row)), mixed=True))
    [['a', 'bb'], ['ccc', 'd']]
    """
    ordered = sorted(rows, key=key)
    task = progress.add_task(label, total=len(ordered)) if progress is not None and ordered else None
    for _, group in groupby(ordered, key=lambda row: None if mixed else key(row)[0]):
        kind = list(group)
        for start in range(0, len(kind), size):
            batch = kind[start : start + size]
            yield batch
            if progress is not None and task is not None:
                progress.advance(task, len(batch))


def by_length(example: Example) -> tuple[str, int, str]:
    """The key by which examples are asked in batches: kind of query, length of the prompt, id."""
    return example.modality, len(example.prompt()), example.id


@contextmanager
def reading(
    layout: Layout,
    blocks: Sequence[int],
    take: Callable[[int, Float[Tensor, "batch tokens d"]], Taken],
) -> Iterator[dict[int, Taken]]:
    """The context in which decoder blocks' outputs are read: block → what the latest forward pass gave there.

    Hooks run in the order in which they were registered: a plan that was attached before has acted on what is read.

    Args:
        layout: where the model keeps its blocks.
        blocks: 0-based.
        take: from a block and its output to what is kept, called in forward order.
    """
    found: dict[int, Taken] = {}

    def see(layer: int, states: Tensor) -> None:
        found[layer] = take(layer, states)

    with ExitStack() as undo:
        for layer in blocks:
            undo.callback(tap(layout.blocks[layer], Site(layer), partial(see, layer)))
        yield found
