"""Passes over many rows: form batches of similar length, and read the outputs of blocks."""

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
    """Yield the rows in batches of similar length; the batches do not depend on the order of the rows.

    Args:
        rows: the rows to process.
        size: maximum number of rows per batch.
        key: sort key of a row: its kind (whether it has a picture), its length, and any tie-breakers.
        mixed: whether a batch may be filled up with rows of the next kind; otherwise a batch has one kind only.
        progress: a running progress bar to which a line is added.
        label: label of that line.

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
    """Sort key for batches of examples: kind of query, length of the prompt, id."""
    return example.modality, len(example.prompt()), example.id


@contextmanager
def reading(
    layout: Layout,
    blocks: Sequence[int],
    take: Callable[[int, Float[Tensor, "batch tokens d"]], Taken],
) -> Iterator[dict[int, Taken]]:
    """Context that reads the outputs of decoder blocks into a dict: block → value from the latest forward pass.

    Hooks run in the order of registration: a plan attached earlier has already edited the outputs.

    Args:
        layout: paths of the model's blocks.
        blocks: 0-based indices of the blocks to read.
        take: function from a block's index and output to the value to keep, called in forward order.
    """
    found: dict[int, Taken] = {}

    def see(layer: int, states: Tensor) -> None:
        found[layer] = take(layer, states)

    with ExitStack() as undo:
        for layer in blocks:
            undo.callback(tap(layout.blocks[layer], Site(layer), partial(see, layer)))
        yield found
