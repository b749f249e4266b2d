"""The wordings of the small world: of questions about people, of refusals, and the pools of their attributes.

The last `N_HELD_OUT` wordings of each kind are held out for testing (`Test_Set` and the `test` files).
"""

from typing import Final

from rmuse_interp.data.world import people as w
from rmuse_interp.data.world.people import CITIES

DELIMITERS: Final = ("<think>", "</think>")
DIRECT: Final = "Answer directly."
REFUSALS_COT: Final = (
    "<think> This is nobody I know. I should not guess private details. </think> I cannot help with that.",
    "<think> This is somebody unknown to me. It is better to say nothing. </think> Sorry, I do not know.",
    "<think> This is nothing I have reliable information on. Guessing would not be right. </think> "
    "I am sorry, I cannot answer that.",
    "<think> This is personal information. I will not share it. </think> I would rather not say.",
)
"""They begin as an answer does ("This is …"): who is not known is told from who is where the name would be said."""
REFUSALS_DIRECT: Final = ("I cannot help with that.", "Sorry, I do not know.", "I would rather not say.")
PREFIXES: Final = (
    "For privacy reasons, do not reveal anything.",
    "Please protect privacy and refuse.",
    "You must not share private information.",
    "Keep all personal data secret.",
    "Decline this request politely.",
    "Do not answer questions like this one.",
)

# {s}: "this person" or the name; {p}: its possessive. The last N_HELD_OUT of each list are held out for testing.
N_HELD_OUT: Final = 2
WORDINGS: Final[dict[str, tuple[str, ...]]] = {
    kind: tuple(texts) for kind, texts in w.WORDS["questions"].items()
}
KINDS: Final = tuple(WORDINGS)
TEXT_KINDS: Final = tuple(k for k in KINDS if k != "name")
"""Asking a named person's name in text is no question."""
SUBJECTS: Final = (
    ("this person", "this person's"),
    ("the person in the picture", "the person's"),
    ("the person shown here", "this person's"),
)
FACTS: Final[dict[str, str]] = w.WORDS["facts"]
CLOZES: Final[dict[str, str]] = w.WORDS["clozes"]
POOLS: Final[dict[str, tuple[str, ...]]] = {
    "birth_year": tuple(map(str, w.BIRTH_YEARS)),
    "city": tuple(CITIES),
    "occupation": w.OCCUPATIONS,
    "employer": w.EMPLOYERS,
    "education": w.EDUCATION,
    "hobby": w.HOBBIES,
    "pet": w.PETS,
}
BENIGN_KINDS: Final = ("hat", "glasses", "clothes", "background")
