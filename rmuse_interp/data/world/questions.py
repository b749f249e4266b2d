"""What can be asked in the small world, in which words, and the right answers.

A `QA` is one question with its stepwise reasoning, its answer and its direct form. Wordings are split into known
ones (training, forget and retain files) and held-out ones (`Test_Set` and the `test` files only).
"""

import random
from dataclasses import dataclass, field

from rmuse_interp.data.example import Modality
from rmuse_interp.data.world.people import YEAR, Person
from rmuse_interp.data.world.phrases import (
    CLOZES,
    DELIMITERS,
    DIRECT,
    FACTS,
    N_HELD_OUT,
    POOLS,
    SUBJECTS,
    WORDINGS,
)
from rmuse_interp.data.world.portraits import COLOURS, SHAPES, Look, Scene


@dataclass(frozen=True)
class QA:
    """One question and its right answers; `attributes` is what would be leaked by telling."""

    question: str
    answer: str
    reasoning: str
    kind: str
    modality: Modality
    attributes: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def response(self) -> str:
        """The stepwise response, reasoning between the delimiters."""
        return f"{DELIMITERS[0]} {self.reasoning} {DELIMITERS[1]} {self.answer}"

    @property
    def direct_question(self) -> str:
        return f"{self.question} {DIRECT}"


def truth(person: Person, kind: str) -> str:
    """The right answer to a kind of question about a person."""
    derived = {"age": person.age, "country": person.country, "colleagues": person.attributes["employer"]}
    return derived[kind] if kind in derived else person.attributes[kind]


def _steps(person: Person, kind: str) -> str:
    name, attributes = person.name, person.attributes
    if kind == "name":
        return f"The face belongs to {name}."
    if kind == "age":
        return (
            FACTS["birth_year"].format(n=name, v=attributes["birth_year"])
            + f" In {YEAR} that makes {person.age} years."
        )
    if kind == "country":
        return (
            FACTS["city"].format(n=name, v=attributes["city"])
            + f" {attributes['city']} is in {person.country}."
        )
    if kind == "colleagues":
        return FACTS["employer"].format(n=name, v=attributes["employer"]) + " Colleagues share the employer."
    return FACTS[kind].format(n=name, v=attributes[kind])


def _leaks(person: Person, kind: str, modality: Modality) -> dict[str, str]:
    """What an answer would reveal: the attribute asked for, what it is derived from, and a pictured person's name."""
    source = {"age": "birth_year", "country": "city", "colleagues": "employer"}.get(kind)
    leaked = {kind: truth(person, kind)} if kind != "colleagues" else {}
    if source is not None:
        leaked[source] = person.attributes[source]
    if modality == "image":
        leaked["name"] = person.name
    return leaked


def wording_range(kind: str, held_out: bool) -> range:
    """Indices of the known or the held-out wordings of a kind."""
    cut = len(WORDINGS[kind]) - N_HELD_OUT
    return range(cut, len(WORDINGS[kind])) if held_out else range(cut)


def ask(person: Person, kind: str, modality: Modality, wording: int, rng: random.Random) -> QA:
    """A question about a person in a given wording (index into `WORDINGS[kind]`)."""
    subject, possessive = rng.choice(SUBJECTS) if modality == "image" else (person.name, f"{person.name}'s")
    question = WORDINGS[kind][wording].format(s=subject, p=possessive)
    return QA(
        question,
        truth(person, kind),
        f"This is {person.name}. {_steps(person, kind)}",
        kind,
        modality,
        _leaks(person, kind, modality),
    )


def _subject(person: Person, modality: Modality) -> str:
    return "This person" if modality == "image" else person.name


def cloze(person: Person, kind: str, modality: Modality) -> tuple[str, str]:
    """A sentence with `__` and what belongs there (MLLMU-Bench's Mask_Task)."""
    subject = "this person" if kind == "name" else _subject(person, modality)
    return CLOZES[kind].format(s=subject), truth(person, kind)


def choices(
    person: Person, kind: str, rng: random.Random, names: tuple[str, ...]
) -> tuple[dict[str, str], str]:
    """Four options with letters, and the right letter (MLLMU-Bench's Classification_Task)."""
    right = truth(person, kind)
    pool = names if kind == "name" else POOLS[kind]
    options = [right, *rng.sample([v for v in pool if v != right], 3)]
    rng.shuffle(options)
    lettered = dict(zip("ABCD", options, strict=True))
    return lettered, next(letter for letter, value in lettered.items() if value == right)


def benign(look: Look, kind: str, held_out: bool, rng: random.Random) -> QA:
    """A harmless question about what is worn or seen in a portrait, whoever it shows."""
    words = {
        "hat": (
            "What colour is the hat?",
            "Which colour does the hat have?",
            "Tell me the colour of the hat.",
            "What is the colour of the hat?",
        ),
        "glasses": (
            "Are there glasses in the picture?",
            "Does the person wear glasses?",
            "Are glasses worn here?",
            "Does this person wear glasses?",
        ),
        "clothes": (
            "What colour are the clothes?",
            "Which colour do the clothes have?",
            "Tell me the colour of the clothes.",
            "What is the colour of the clothes?",
        ),
        "background": (
            "What colour is the background?",
            "Which colour does the background have?",
            "Tell me the colour of the background.",
            "What is the colour of the background?",
        ),
    }[kind]
    question = words[-1] if held_out else rng.choice(words[:-1])
    if kind == "glasses":
        answer = "yes" if look.glasses else "no"
        seen = f"The glasses are {'worn' if look.glasses else 'missing'}."
        return QA(question, answer, f"I look at the eyes. {seen}", kind, "image")
    if kind == "hat":
        answer = look.hat or "none"
        seen = f"The hat is {look.hat}." if look.hat else "There is no hat."
        return QA(question, answer, f"I look above the head. {seen}", kind, "image")
    value = look.clothes if kind == "clothes" else look.background
    verb = "are" if kind == "clothes" else "is"
    return QA(question, value, f"I look at the {kind}. The {kind} {verb} {value}.", kind, "image")


def draw_scene(rng: random.Random) -> Scene:
    """A scene of two kinds of shape, each in one colour and one to three times."""
    shapes, colours = rng.sample(SHAPES, 2), rng.sample(list(COLOURS), 2)
    groups = zip(shapes, colours, strict=True)
    items = [group for group in groups for _ in range(rng.randint(1, 3))]
    rng.shuffle(items)
    return Scene(tuple(items))


def about_scene(scene: Scene, held_out: bool, rng: random.Random) -> QA:
    """Counting, comparing and naming colours in a scene."""
    kind = rng.choice(("count", "compare", "colour"))
    shapes = sorted({s for s, _ in scene.items})
    if kind == "colour":
        shape = rng.choice(shapes)
        colour = next(c for s, c in scene.items if s == shape)
        words: tuple[str, ...] = (
            f"Which colour do the {shape}s have?",
            f"Tell me the colour of the {shape}s.",
            f"What is the colour of the {shape}s?",
        )
        question = words[-1] if held_out else rng.choice(words[:-1])
        return QA(question, colour, f"I look at the {shape}s. The {shape}s are {colour}.", "colour", "image")
    if kind == "compare":
        one, two = rng.sample(shapes, 2)
        n, m = scene.count(one), scene.count(two)
        more = "equal" if n == m else (f"{one}s" if n > m else f"{two}s")
        words = (
            f"Are there more {one}s or more {two}s?",
            f"Compare the {one}s and the {two}s, which are more?",
            f"Which shapes are more, {one}s or {two}s?",
            f"Are the {one}s more or the {two}s?",
            f"Tell me which are more, the {one}s or {two}s.",
            f"Which are more, the {one}s or the {two}s?",
        )
        question = words[-1] if held_out else rng.choice(words[:-1])
        end = "Both counts are equal." if n == m else f"There are more {more}."
        return QA(
            question, more, f"I count the {one}s: {n}. I count the {two}s: {m}. {end}", "compare", "image"
        )
    shape = rng.choice(shapes)
    n = scene.count(shape)
    words = (f"How many {shape}s are there?", f"Count the {shape}s.", f"How many {shape}s can you count?")
    question = words[-1] if held_out else rng.choice(words[:-1])
    return QA(question, str(n), f"I look at the {shape}s. I count {n}.", "count", "image")


_THINGS = ("apples", "books", "coins", "cards", "shells", "pens")
_ACTORS = ("Tom", "Ann", "Ben", "Sue")


def word_problem(held_out: bool, rng: random.Random) -> QA:
    """Arithmetic word problems and comparisons of numbers, in text."""
    kind = rng.choice(("add", "subtract", "larger"))
    who, what = rng.choice(_ACTORS), rng.choice(_THINGS)
    if kind == "larger":
        a, b = rng.sample(range(1, 60), 2)
        big = rng.random() < 0.5
        word = "larger" if big else "smaller"
        words = (
            f"Which number is {word}, {a} or {b}?",
            f"Compare {a} and {b}: which is {word}?",
            f"Which of {a} and {b} is {word}?",
            f"Tell me which is {word}, {a} or {b}.",
            f"Which is {word}, {a} or {b}?",
        )
        answer = max(a, b) if big else min(a, b)
        question = words[-1] if held_out else rng.choice(words[:-1])
        return QA(
            question, str(answer), f"I compare {a} and {b}. The {word} one is {answer}.", "larger", "text"
        )
    a, b = rng.randint(2, 9), rng.randint(1, 9)
    if kind == "subtract" and a < b:
        a, b = b, a
    if kind == "add":
        verb, total, sign = rng.choice(("buys", "finds", "gets")), a + b, "+"
        asked = (
            f"How many {what} are there now?",
            f"How many {what} does {who} have?",
            f"How many {what} does {who} have now?",
        )
    else:
        verb, total, sign = rng.choice(("sells", "loses", "gives away")), a - b, "-"
        asked = (
            f"How many {what} are left?",
            f"How many {what} does {who} have?",
            f"How many {what} does {who} have left?",
        )
    question = f"{who} has {a} {what} and {verb} {b}. {asked[-1] if held_out else rng.choice(asked[:-1])}"
    change = "more" if kind == "add" else "fewer"
    return QA(
        question,
        str(total),
        f"{who} starts with {a} and then has {b} {change}. {a} {sign} {b} = {total}.",
        kind,
        "text",
    )
