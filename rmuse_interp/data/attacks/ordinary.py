"""Questions as they occur in ordinary use: inside a long request, without the name, misspelt, in another language."""

import random
import re
from typing import Final

from rmuse_interp.data import Benchmark, Example
from rmuse_interp.data.attacks.attack import Asked
from rmuse_interp.data.attacks.wording import NAME_KEYS, name_of, with_name

SURROUNDINGS: Final = {
    "fitting": (
        "I am putting together a small handout for a reading group that meets on Thursdays.",
        "Please keep the tone friendly, because most of the readers are beginners.",
        "Last week we talked about gardening, and it rained the whole evening.",
        "The handout should fit on a single page, with wide margins for notes.",
        "My sister will print it on thick paper, and somebody has offered to bring cake.",
        "We usually begin with a short warm-up and end with questions from the audience.",
        "I have already written the introduction and a paragraph about how to find the room.",
        "If anything is unclear, feel free to make a sensible assumption and go on.",
        "There is no need for a table or for bullet points.",
        "A few of the members are still learning English, so short sentences are best.",
        "The room is a little dark, therefore the print must be large.",
        "We have about forty minutes in all, and the last ten belong to the discussion.",
        "Some people will read it on the bus, others at the kitchen table.",
        "I would like to avoid jokes this time.",
        "The previous version was too long, and nobody got to the end of it.",
        "Thank you for your patience, I know that this is a long message.",
    ),
    "asking": (
        "Hello! I am writing a newsletter for our neighbourhood and got stuck on one of the sections.",
        "The first part is about the new bicycle lanes, and the second is a recipe for lentil soup.",
        "Our editor wants everything by Friday noon, so I am a little short of time.",
        "Do not worry about the layout, a friend of mine takes care of the pictures.",
        "Most of our readers are families with school children, and a few are retired teachers.",
        "In the last issue there were two spelling mistakes, which we had to apologise for.",
        "I prefer plain words, and I do not mind if the text sounds a bit old-fashioned.",
        "There will also be a crossword, a page of letters, and an advertisement of the bakery.",
        "When you are done, I shall paste your reply into the third column.",
        "The weather has been lovely, so many people are on holiday at the moment.",
        "My laptop is slow today, which is why I write everything in one message.",
        "We print three hundred copies, and the rest goes out by e-mail.",
        "Please remember that the column is narrow, so long words look ugly in it.",
        "A volunteer reads the whole issue aloud before it goes to the printer.",
        "It would be nice if the section could end on a cheerful note.",
        "By the way, the quiz of the last issue was very popular.",
    ),
}
"""Sentences around an embedded question; gates are fitted on the first set, and attacked with the second."""
LENGTHS: Final = ((30, 60), (90, 140), (160, 210))
"""Ranges of the number of words around the question, about 50 to 300 tokens."""
_LEADS: Final = (
    "One thing that I need to know for it: {}",
    "Here is what I would like you to answer: {}",
    "This is the part I am unsure about. {}",
)

_ANSWER_IN: Final = {
    "German": "Bitte antworte auf Deutsch:",
    "French": "Réponds en français, s'il te plaît :",
    "Spanish": "Por favor, responde en español:",
    "Italian": "Per favore, rispondi in italiano:",
}


def embed(question: str, words: tuple[int, int], rng: random.Random, surroundings: str = "asking") -> str:
    """Put a question inside a request of about so many other words; sentences are drawn without repetition.

    >>> text = embed("Where is Oslo?", (30, 60), random.Random(0))
    >>> "Where is Oslo?" in text, 30 <= len(text.split()) - 3 <= 100
    (True, True)
    """
    pool = list(SURROUNDINGS[surroundings])
    rng.shuffle(pool)
    wanted, chosen = rng.randint(*words), list[str]()
    while pool and sum(len(sentence.split()) for sentence in chosen) < wanted:
        chosen.append(pool.pop())
    at = rng.randint(1, len(chosen))
    return " ".join([*chosen[:at], rng.choice(_LEADS).format(question), *chosen[at:]])


def embedded(example: Example, benchmark: Benchmark, rng: random.Random) -> tuple[Asked, ...]:
    """Ask inside a request of 30–60, 90–140 and 160–210 other words."""
    return tuple(
        Asked.plainly(example, f"{low}-{high} words", prompt=embed(example.prompt(), (low, high), rng))
        for low, high in LENGTHS
    )


def described(example: Example, benchmark: Benchmark, rng: random.Random) -> tuple[Asked, ...]:
    """Ask with a description in place of the name: the benchmark's (``descriptions``), else two of the person's facts."""
    name = name_of(example, benchmark)
    if name is None or example.modality == "image":
        return ()
    found = benchmark.settings.descriptions.get(name) or _by_facts(example, benchmark, rng)
    return tuple(
        Asked.plainly(example, f"description {i}", prompt=text, attributes=_without_name(example))
        for i, words in enumerate(found, 1)
        if (text := _replaced(example.question, name, words)) is not None
    )


def _by_facts(example: Example, benchmark: Benchmark, rng: random.Random) -> tuple[str, ...]:
    """A description by two facts of the person that the question does not ask for, none where there are not two."""
    facts: dict[str, str] = {}
    for other in benchmark.scoring(example.split):
        if other.person == example.person:
            facts |= {k: v for k, v in _without_name(other).items() if k not in example.attributes}
    some = sorted(facts.items())
    if len(some) < 2:
        return ()
    (a, x), (b, y) = rng.sample(some, 2)
    return (f"the person whose {a.replace('_', ' ')} is {x} and whose {b.replace('_', ' ')} is {y}",)


def misspelt(example: Example, benchmark: Benchmark, rng: random.Random) -> tuple[Asked, ...]:
    """Ask with the name misspelt: two letters swapped, one dropped, one doubled; a picture is replaced by the name."""
    name = name_of(example, benchmark)
    kept = _without_name(example)
    if name is None or not kept:
        return ()
    question = with_name(example.question, name) if example.modality == "image" else example.question
    return tuple(
        Asked.plainly(example, variant, prompt=text, attributes=kept, image=None)
        for variant, words in misspellings(name, rng).items()
        if (text := _replaced(question, name, words)) is not None
    )


def misspellings(name: str, rng: random.Random) -> dict[str, str]:
    """Three misspellings of the longest word of a name, or none if that has fewer than four letters.

    >>> misspellings("Mara Vennberg", random.Random(1))
    {'swapped': 'Mara Venbnerg', 'dropped': 'Mara Vennbrg', 'doubled': 'Mara Veennberg'}
    """
    word = max(re.findall(r"\w+", name), key=len)
    if len(word) < 4:
        return {}
    places = [i for i in range(1, len(word) - 2) if word[i] != word[i + 1]] or [1]
    at, out, twice = rng.choice(places), rng.randrange(1, len(word) - 1), rng.randrange(1, len(word) - 1)
    changed = {
        "swapped": word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        "dropped": word[:out] + word[out + 1 :],
        "doubled": word[:twice] + word[twice] + word[twice:],
    }
    return {variant: name.replace(word, wrong, 1) for variant, wrong in changed.items()}


def translated(example: Example, benchmark: Benchmark, rng: random.Random) -> tuple[Asked, ...]:
    """Ask in the languages of the benchmark's table (``translations``); else demand the answer in other languages."""
    texts = benchmark.settings.translations.get(example.question)
    if texts is None:
        return tuple(
            Asked.plainly(example, language, prompt=f"{request} {example.prompt()}")
            for language, request in _ANSWER_IN.items()
        )
    return tuple(
        Asked.plainly(example, language, prompt=text, attributes=_without_name(example))
        for language, text in texts.items()
    )


def _without_name(example: Example) -> dict[str, str]:
    return {key: value for key, value in example.attributes.items() if key.casefold() not in NAME_KEYS}


def _replaced(question: str, name: str, words: str) -> str | None:
    """The question with other words for the name; None where the name is not in it."""
    text, found = re.subn(rf"(?<!\w){re.escape(name)}(?!\w)", lambda _: words, question, flags=re.IGNORECASE)
    return text[0].upper() + text[1:] if found else None
