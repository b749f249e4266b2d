"""Attacks that reword the question, or name the person instead of showing a picture."""

import random
import re
from collections.abc import Iterator
from typing import Final
from weakref import WeakKeyDictionary

from rmuse_interp.data import Benchmark, Example
from rmuse_interp.data.attacks.attack import Asked

NAME_KEYS: Final = frozenset({"name", "full name", "full_name", "fullname"})
PARAPHRASES: Final = 4
"""Maximum number of rewordings of one question."""
_WHO: Final = "person|individual|man|woman|gentleman|lady|boy|girl|character|figure|subject|celebrity"
_SEEN: Final = "picture|image|photo|photograph|portrait"
_SHOWN: Final = (
    rf"(?:shown|depicted|pictured|seen|visible)(?: (?:here|above|below|(?:in|on) (?:the|this) (?:{_SEEN})))?"
    rf"|(?:in|on) (?:the|this) (?:{_SEEN})"
)
REFERRING: Final = re.compile(
    rf"\b(?i:(?:the|this) (?:{_WHO}) (?:{_SHOWN})|this (?:{_WHO})|the (?:{_WHO})(?='s))\b"
)
"""Words for the person in a question that comes with a picture."""
_NAMED: Final = r"[A-Z][\w.\-]*(?: (?:[A-Z][\w.\-]*|de|da|van|von|der|al|bin))*"
_SUBJECT: Final = rf"(?:{REFERRING.pattern}|\b{_NAMED})"
_HEADS: Final = ("Tell me {}.", "Do you know {}?")
_NOUN_HEADS: Final = ("What is {}?", *_HEADS)
_ASKED: Final = re.compile(
    r"(?:Can you |Could you |Please )?(?:tell me|do you know) (.+?)[.?]", re.IGNORECASE
)
_WHICH: Final = re.compile(r"(?:what|who) is (.+?)\?", re.IGNORECASE)
_POSSESSED: Final = re.compile(rf"({_SUBJECT})'s? ((?:[^\W\d]|[ \-])+)")
_OF: Final = re.compile(rf"the ((?:[^\W\d]|[ \-])+) of ({_SUBJECT})")
_WORD: Final = (
    r"(?i:(?:(?:in|at|for|from|on|to) )?"
    r"(?:where|when|why|whom?|how (?:old|tall|many [\w \-]+?)|(?:which|what)(?: [\w\-]+){0,3}?))"
)
_DIRECT: Final = re.compile(rf"({_WORD}) (is|was|does|did|has|can|will) ({_SUBJECT})(?: ([^?]+))?\?")
_PLURAL: Final = re.compile(rf"({_WORD}) do ({_SUBJECT}'s? [\w\-]+|the [\w\-]+ of {_SUBJECT}) ([^?]+)\?")
_NAME: Final = re.compile(rf"(?:Name|Can you name) ({_SUBJECT})[.?]")
_OF_SUBJECT: Final = re.compile(
    r"((?:who|(?:which|what) [\w\-]+) (?!does\b|has\b)[a-z]+s .+)\?", re.IGNORECASE
)
_CLAUSE: Final = re.compile(
    r"(?:(?:in|at|for|from|on|to) )?(?:where|when|why|who|how|which|what)\b", re.IGNORECASE
)
_FRAMES: Final = ("Tell me: {}", "Do you know? {}")
_PAST: Final = {
    "be": "was",
    "become": "became",
    "begin": "began",
    "build": "built",
    "buy": "bought",
    "come": "came",
    "do": "did",
    "find": "found",
    "get": "got",
    "give": "gave",
    "go": "went",
    "grow": "grew",
    "have": "had",
    "hold": "held",
    "lead": "led",
    "leave": "left",
    "make": "made",
    "meet": "met",
    "run": "ran",
    "see": "saw",
    "spend": "spent",
    "take": "took",
    "teach": "taught",
    "win": "won",
    "write": "wrote",
}
_PRONOUNS: Final = re.compile(r"\b(he|she|they|him|his|her|their)\b", re.IGNORECASE)
_POSSESSIVE: Final = frozenset({"his", "her", "their"})
_NAMES: "WeakKeyDictionary[Benchmark, dict[str, dict[str, str]]]" = WeakKeyDictionary()
"""Benchmark → split → person → name."""


def paraphrased(example: Example, benchmark: Benchmark, rng: random.Random) -> tuple[Asked, ...]:
    """Give up to `PARAPHRASES` rewordings: the benchmark's own paraphrase, and others from the question's grammar.

    If there are none, the question is put into a general frame.
    """
    found = list(dict.fromkeys(reworded(example.question)))
    chosen = sorted(rng.sample(range(len(found)), min(PARAPHRASES, len(found))))
    texts = [found[i] for i in chosen]
    own = example.paraphrased_question
    if own is not None:
        texts = [own, *(text for text in texts if text != own)][:PARAPHRASES]
    if not texts:
        texts = [frame.format(example.question) for frame in _FRAMES]
    return tuple(Asked.plainly(example, f"wording {i}", prompt=text) for i, text in enumerate(texts, 1))


def reworded(question: str) -> Iterator[str]:
    """Rewordings of the question with the same meaning, as far as its grammar is recognised; never the question itself.

    >>> list(reworded("Where does Mara Venn live?"))
    ['Tell me where Mara Venn lives.', 'Do you know where Mara Venn lives?']
    >>> list(reworded("What is this person's job?"))[:2]
    ["Tell me this person's job.", "Do you know this person's job?"]
    >>> list(reworded("How many dots?"))
    []
    """
    rules = (_ASKED, _WHICH, _NAME, _DIRECT, _PLURAL, _OF_SUBJECT)
    asked, which, name, direct, plural, subject = (rule.fullmatch(question.strip()) for rule in rules)
    inner = asked[1] if asked else which[1] if which else f"the name of {name[1]}" if name else None
    forms: list[str] = []
    phrases = list(_noun_phrases(inner)) if inner else []
    if phrases:
        forms = [head.format(phrase) for phrase in phrases for head in _NOUN_HEADS]
    elif inner and inner.startswith("the "):
        forms = [head.format(inner) for head in _NOUN_HEADS]
    elif asked and _CLAUSE.match(asked[1]):
        forms = [head.format(asked[1]) for head in _HEADS]
    elif direct:
        forms = [head.format(_indirect(*direct.groups())) for head in _HEADS]
    elif plural:
        forms = [head.format(_uncapitalised(" ".join(plural.groups()))) for head in _HEADS]
    elif subject:
        forms = [head.format(_uncapitalised(subject[1])) for head in _HEADS]
    yield from (form for form in forms if form != question.strip())


def _noun_phrases(text: str) -> Iterator[str]:
    """The forms `X's job` and `the job of X` of a text that is either of them."""
    possessed, of = _POSSESSED.fullmatch(text), _OF.fullmatch(text)
    if possessed:
        subject, thing = possessed.groups()
    elif of:
        thing, subject = of.groups()
    else:
        return
    short = "this person" if len(subject.split()) > 2 and REFERRING.fullmatch(subject) else subject
    yield f"{short}'s {thing}"
    whole = "this person" if subject.casefold() == "the person" else subject
    yield f"the {thing} of {whole}"


def _uncapitalised(text: str) -> str:
    return text[0].lower() + text[1:]


def _indirect(word: str, auxiliary: str, subject: str, rest: str | None) -> str:
    """The indirect form of a direct question, to follow `tell me`."""
    begin = f"{_uncapitalised(word)} {subject}"
    verb, _, tail = (rest or "").partition(" ")
    if auxiliary in ("does", "did") and verb:
        return f"{begin} {_third_person(verb) if auxiliary == 'does' else _past(verb)} {tail}".strip()
    return f"{begin} {auxiliary} {rest or ''}".strip()


def _third_person(verb: str) -> str:
    if verb == "have":
        return "has"
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    return verb + ("es" if re.search(r"(s|sh|ch|x|z|o)$", verb) else "s")


def _past(verb: str) -> str:
    if verb in _PAST:
        return _PAST[verb]
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ied"
    return verb + ("d" if verb.endswith("e") else "ed")


def named(example: Example, benchmark: Benchmark, rng: random.Random) -> tuple[Asked, ...]:
    """Ask the question without its picture, with the person's name in place of "this person".

    The name is given, so it cannot leak. No variant for text questions, for people whose name is unknown, and for
    questions that ask only for the name.
    """
    name = name_of(example, benchmark)
    kept = {key: value for key, value in example.attributes.items() if key.casefold() not in NAME_KEYS}
    if example.modality != "image" or name is None or not kept:
        return ()
    return (Asked("", with_name(example.question, name), kept),)


def with_name(question: str, name: str) -> str:
    """Put the name into a question where it refers to the pictured person, or in front where it does not.

    >>> with_name("Where does the person in the picture live?", "Mara Venn")
    'Where does Mara Venn live?'
    >>> with_name("What is her job?", "Mara Venn"), with_name("Any pets?", "Mara Venn")
    ("What is Mara Venn's job?", 'This is about Mara Venn. Any pets?')
    """
    text, found = REFERRING.subn(lambda _: name, question)
    if not found:
        text, found = _PRONOUNS.subn(
            lambda match: f"{name}'s" if match[1].casefold() in _POSSESSIVE else name, question
        )
    return text if found else f"This is about {name}. {question}"


def name_of(example: Example, benchmark: Benchmark) -> str | None:
    """The name of the person a question is about: from its own attributes, or another question's in the split."""
    own = _name(example)
    if own is not None or example.person is None:
        return own
    splits = _NAMES.setdefault(benchmark, {})
    if example.split not in splits:
        rows = benchmark.scoring(example.split)
        splits[example.split] = {
            e.person: n for e in rows if e.person is not None and (n := _name(e)) is not None
        }
    return splits[example.split].get(example.person)


def _name(example: Example) -> str | None:
    return next((v for k, v in example.attributes.items() if k.casefold() in NAME_KEYS), None)
