"""`Expansion`: what a processor made of a chat string, by its own record: placeholders expanded, texts added."""

from dataclasses import dataclass
from difflib import SequenceMatcher

from rmuse_interp import RMuseError

CharSpan = tuple[int, int]
"""Start and end (exclusive) in a string."""

Moves = tuple[tuple[int, int, int], ...]
"""What was put into a string, in order: start and end of what was replaced there, and the length of what replaced it."""


@dataclass(frozen=True)
class Expansion:
    """What a processor made of one chat string, by its own record.

    Args:
        offsets: start and end of each token, padding left out, in the string that was tokenized.
        steps: how the chat string became that string, one set of moves after the other.
    """

    offsets: tuple[CharSpan, ...]
    steps: tuple[Moves, ...] = ()

    def moved(self, position: int) -> int:
        """Where a position of the chat string lies in the tokenized one."""
        for moves in self.steps:
            position += sum(length - (end - start) for start, end, length in moves if end <= position)
        return position

    def behind(self, position: int) -> int:
        """Number of tokens that extend beyond a position of the chat string."""
        at = self.moved(position)
        return sum(end > at for _, end in self.offsets)


def inserted(text: str, longer: str) -> Moves:
    """What was inserted into a string to make a longer one.

    >>> inserted("<image>Who?", "<image><s>Who?")
    ((7, 7, 3),)

    Raises:
        RMuseError: `longer` is not `text` with insertions.
    """
    if text == longer:
        return ()
    found = []
    for kind, start, _, low, high in SequenceMatcher(None, text, longer, autojunk=False).get_opcodes():
        if kind == "insert":
            found.append((start, start, high - low))
        elif kind != "equal":
            raise RMuseError(
                f"a processor that only adds to a text was required, {text[:80]!r} became {longer[:80]!r}"
            )
    return tuple(found)
