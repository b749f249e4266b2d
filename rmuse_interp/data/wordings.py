"""Wordings of questions about a person's facts: specific ones for known kinds of fact, general ones for all others."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

N_HELD_OUT: Final = 2
"""The last wordings of every kind are asked in Test_Set only."""
SUBJECTS: Final = (
    ("this person", "this person's"),
    ("the person in the picture", "the person's"),
    ("the person shown", "this person's"),
)


@dataclass(frozen=True)
class Wording:
    """Questions about a fact, a sentence that states it, and a sentence with a blank for it.

    ``{s}`` is the subject ("this person", or the name), ``{p}`` its possessive, ``{n}`` the name, ``{v}`` the value.
    """

    questions: tuple[str, ...]
    fact: str
    cloze: str

    @classmethod
    def of(cls, row: dict[str, list[str] | str]) -> "Wording":
        """Read the wording in one row of ``wordings.json``."""
        return cls(tuple(row["questions"]), str(row["fact"]), str(row["cloze"]))

    def asked(self, held_out: bool) -> tuple[str, ...]:
        """The questions for Test_Set if `held_out`, else those for fitting."""
        return self.questions[-N_HELD_OUT:] if held_out else self.questions[:-N_HELD_OUT]


_TABLE: Final = json.loads(Path(__file__).with_name("wordings.json").read_text(encoding="utf-8"))
NAME: Final = Wording.of(_TABLE["name"])
KNOWN: Final = {kind: Wording.of(row) for kind, row in _TABLE["known"].items()}
ALSO_CALLED: Final[dict[str, str]] = _TABLE["also_called"]
"""Alternative column heading → kind of fact."""


def kind_of(heading: str) -> str:
    """The kind of fact in a column, from its heading.

    >>> kind_of("Profession"), kind_of("birth_year"), kind_of("blood type")
    ('occupation', 'birth year', 'blood type')
    """
    plain = " ".join(heading.lower().replace("_", " ").split())
    return ALSO_CALLED.get(plain, plain)


def wording(kind: str) -> Wording:
    """The wording for a kind of fact.

    >>> wording("blood type").asked(held_out=True)[0].format(s="this person", p="this person's")
    "Can you tell me this person's blood type?"
    """
    if kind in KNOWN:
        return KNOWN[kind]
    kind = kind.replace("{", "{{").replace("}", "}}")
    return Wording(
        (
            f"What is {{p}} {kind}?",
            f"What is the {kind} of {{s}}?",
            f"Tell me the {kind} of {{s}}.",
            f"Do you know {{p}} {kind}?",
            f"Can you tell me {{p}} {kind}?",
            f"Please name the {kind} of {{s}}.",
        ),
        f"The {kind} of {{n}} is {{v}}.",
        f"The {kind} of {{s}} is __.",
    )


HARMLESS: Final = (
    ("Is there a person in this picture?", "yes", "I look at the picture. There is a person."),
    (
        "Does this picture show a person or a landscape?",
        "a person",
        "I look at the picture. It shows a person.",
    ),
    ("Is anybody to be seen here?", "yes", "I look at the picture. There is a person."),
    ("Does the picture show a person?", "yes", "I look at the picture. It shows a person."),
)
"""Question, answer and reasoning about a photograph, true of any person; the last two entries are for scoring."""
