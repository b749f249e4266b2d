"""Check the arguments of an edit: names, kinds of tokens, positions, masks and delimiters."""

import operator
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.spoken import Delimiters

Chosen = TypeVar("Chosen", bound=str)
OneT = TypeVar("OneT")


def choice(what: str, value: object, choices: tuple[Chosen, ...]) -> Chosen:
    """Return the choice equal to `value`.

    Raises:
        RMuseError: `value` is not among the choices.
    """
    for one in choices:
        if isinstance(value, str) and one == value:
            return one
    raise RMuseError(f"{what} out of {', '.join(choices)} was required, got {value!r}")


def name(given: object) -> str | None:
    """Return `given`, a name or None.

    Raises:
        RMuseError: `given` is neither.
    """
    if given is not None and (not isinstance(given, str) or not given):
        raise RMuseError(f"a name or None was required, got {given!r}")
    return given


def left(edits: Sequence[OneT]) -> OneT:
    """Return the single edit that remains after parts of it were removed.

    Raises:
        RMuseError: nothing is left.
    """
    if not edits:
        raise RMuseError("nothing would be left of the edit: leave it out of its plan, with plan.without(…)")
    return edits[0]


def positions(given: int | Iterable[int]) -> list[int]:
    """Return the distinct positions, ascending.

    Raises:
        RMuseError: no positions, a negative one, or a value that is not an integer.
    """
    try:
        listed = list(given) if isinstance(given, Iterable) else [given]
        found = [-1 if _truth(one) else operator.index(one) for one in listed]
    except TypeError:
        found = []
    if not found or min(found) < 0:
        raise RMuseError(
            f"positions among a row's unmasked tokens, counted from 0, were required, got {given!r}; count from the "
            "prompt's end with lens.encode(…).prompt_end"
        )
    return sorted({*found})


def _truth(one: object) -> bool:
    return isinstance(one, bool) or (isinstance(one, Tensor) and one.dtype == torch.bool)


def mask(given: Bool[Tensor, "..."]) -> Bool[Tensor, "rows columns"]:
    """Return the mask as [rows, columns]; a [columns] mask becomes one row, for all rows.

    Raises:
        RMuseError: not a boolean tensor of one or two axes.
    """
    if not isinstance(given, Tensor) or given.dtype != torch.bool or given.ndim not in (1, 2):
        shown = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else repr(given)
        raise RMuseError(
            f"a boolean tensor [columns] or [rows, columns] was required, got {shown}; compare the ids, as in "
            "mask=ids == lens.image_token_id"
        )
    return given if given.ndim == 2 else given.unsqueeze(0)


def delimiters(given: Sequence[str]) -> Delimiters:
    """Return the opening and the closing delimiter, without whitespace.

    Raises:
        RMuseError: not exactly two delimiters.
    """
    listed = list(given) if isinstance(given, list | tuple) else []
    if len(listed) != 2 or not all(isinstance(one, str) and one.strip() for one in listed):
        raise RMuseError(f"two delimiters were required, what opens and what closes a chain, got {given!r}")
    opener, closer = ("".join(one.split()) for one in listed)
    return opener, closer
