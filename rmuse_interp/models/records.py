"""What a processor did to a chat string, by its own record; and the reasoning that a template opens."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, Final

from rmuse_interp.data.expansion import Moves

_OPENER: Final = re.compile(r"[<\[](?:think|thinking|thought|reason|reasoning)[>\]]\s*$", re.IGNORECASE)
"""What a template ends a prompt with that opens the reasoning itself (DeepSeek-R1, QwQ)."""


def opened(head: str) -> str:
    """The delimiter with which a rendered prompt already opens the reasoning; "" if the response opens it.

    >>> opened("<|Assistant|><think>\\n"), opened("ASSISTANT:")
    ('<think>', '')
    """
    found = _OPENER.search(head)
    return found[0].strip() if found else ""


_ONE_AT_A_TIME: Final = Lock()


@contextmanager
def recording(processor: Any) -> Iterator[list[Moves]]:
    """Context in which a processor's own record of what replaced each placeholder is kept, one entry per row."""
    kept: list[Moves] = []
    expand = processor.get_text_with_replacements

    def record(*args: object, **settings: object) -> object:
        texts, rows = expand(*args, **settings)
        kept[:] = [
            tuple((*one["span"], one["new_span"][1] - one["new_span"][0]) for one in row) for row in rows
        ]
        return texts, rows

    with _ONE_AT_A_TIME:
        processor.get_text_with_replacements = record
        try:
            yield kept
        finally:
            del processor.get_text_with_replacements
