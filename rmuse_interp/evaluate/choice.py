"""Which option a reply to a multiple-choice question chooses, however it says so."""

import re
from collections.abc import Sequence
from typing import Final

from rmuse_interp.evaluate.metrics import Metric, summarise
from rmuse_interp.evaluate.results import Transcript

_CUED: Final = re.compile(
    r"(?i:answer|option|choice|choose|correct|pick|select)(?i: (?:is|would be|letter|option|one is))*\s*[:=]?\s*"
    r"[*_`\"'(\[]*(?!I\s+[a-z])([A-Z])(?![\w'’])"
)
"""A letter behind a cue: "Answer: D", "The correct option is (B)"."""
_MARKED: Final = re.compile(
    r"[(\[]([A-Za-z])[)\]]"
    r"|(?<![\w'’])([A-Z])(?=[).:,*\]]|\s*$|\s*\n| (?:or|and) [A-Z]\b)"
    r"|^\s*([A-Z])(?=\s+[A-Z0-9])"
    r"|^\s*([a-z])(?=[).:]|\s*$)"
)
"""A letter that stands alone: "(b)", "D.", "**C**", "B Oslo"."""


def chosen(text: str) -> str:
    """The option that a reply chooses, in upper case: letters behind cues first, then letters that stand alone.

    Empty if there is none, or if the reply names several.

    >>> [chosen(t) for t in ("Answer: D", "(b) Oslo", "A person like her lives in B.", "A or B.", "Oslo")]
    ['D', 'B', 'B', '', '']
    """
    for pattern in (_CUED, _MARKED):
        letters = {next(filter(None, found.groups())).upper() for found in pattern.finditer(text)}
        if letters:
            return letters.pop() if len(letters) == 1 else ""
    return ""


def choice(transcripts: Sequence[Transcript], seed: int = 0) -> Metric:
    """Share of multiple-choice replies that choose the right option, by `chosen`; ambiguous ones are parse failures."""
    rows = [(t, chosen(t.answer)) for t in transcripts if t.kind == "classification"]
    right = [(t, 100.0 * (letter == t.expected.strip().upper())) for t, letter in rows]
    return summarise("choice", right, seed, parse_failures=sum(not letter for _, letter in rows))
