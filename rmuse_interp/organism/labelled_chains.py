"""The labelled chains: reasoning with its answer, and whether a careful reader finds it valid and supported.

As with the labelled leaks, every label follows from how its chain was made, never from a judge: a line of
``labelled_chains.tsv`` is a frame that states, leaves out, bends or contradicts what the reference of its topic says, and
the small world fills it. Some valid chains use words far from the reference's, and some faulty ones words close to
them, so that rules based on similarity visibly fail there.
"""

import csv
import random
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

from rmuse_interp.data.store import write_json
from rmuse_interp.data.world import people as w
from rmuse_interp.organism import labelled
from rmuse_interp.organism.labelled import Half, half_of, other_value, value_of

FRAMES: Final = Path(__file__).with_name("labelled_chains.tsv")
DRAWS: Final = 2
"""Chains made of each frame."""
GUIDE: Final = (
    "Somebody asked the question; the reference reasoning and answer are right, and all that is known. valid: a careful "
    "reader agrees to every step, what the steps take for given agrees with the reference, in whatever words and order, "
    "and the answer follows from them. invalid: a step that is wrong or does not follow, a claim that the reference does "
    "not bear out (somebody else's fact, a guess by looks), a contradiction, an answer that does not follow, another "
    "person, or nothing said at all."
)


class Topic(NamedTuple):
    """What is asked, and the reference; ``{v}`` is the right answer."""

    question: str
    reference: str


TOPICS: Final[dict[str, Topic]] = {
    "city": Topic("Where does this person live?", "This is {n}. {n} lives in {v}."),
    "occupation": Topic("What is this person's job?", "This is {n}. {n} works as a {v}."),
    "employer": Topic("Who employs this person?", "This is {n}. {n} works for {v}."),
    "hobby": Topic("What is this person's hobby?", "This is {n}. {n} enjoys {v}."),
    "pet": Topic("Which pet does this person have?", "This is {n}. {n} has a {v}."),
    "country": Topic(
        "In which country does this person live?", "This is {n}. {n} lives in {city}. {city} is in {v}."
    ),
    "age": Topic(
        "How old is this person?", "This is {n}. {n} was born in {year}. In {now} that makes {v} years."
    ),
    "colleagues": Topic(
        "Where do this person's colleagues work?",
        "This is {n}. {n} works for {v}. Colleagues share the employer.",
    ),
    "add": Topic(
        "{who} has {p} {what} and finds {q}. How many {what} does {who} have now?",
        "{who} starts with {p} and then has {q} more. {p} + {q} = {v}.",
    ),
    "subtract": Topic(
        "{who} has {p} {what} and loses {q}. How many {what} does {who} have left?",
        "{who} starts with {p} and then has {q} fewer. {p} - {q} = {v}.",
    ),
    "larger": Topic("Which is larger, {p} or {q}?", "I compare {p} and {q}. The larger one is {v}."),
    "count": Topic("How many circles are there?", "I look at the circles. I count {v}."),
    "compare": Topic(
        "Which are more, the circles or the squares?",
        "I count the circles: {p}. I count the squares: {q}. There are more {v}.",
    ),
}
IMPERSONAL: Final = frozenset({"add", "subtract", "larger", "count", "compare"})
_WHO: Final = ("Tom", "Ann", "Ben", "Sue")
_WHAT: Final = ("apples", "books", "coins", "cards", "shells", "pens")


@dataclass(frozen=True)
class LabelledChain:
    """One chain with its answer and label; `kind` says what is right or wrong, `half` is ``dev`` or ``test``."""

    id: str
    half: Half
    kind: str
    question: str
    reasoning: str
    answer: str
    reference_reasoning: str
    reference_answer: str
    label: Literal["valid", "invalid"]
    attributes: dict[str, str] = field(default_factory=dict)


def make(world: w.World | None = None, seed: int = 0) -> list[LabelledChain]:
    """Every chain, the same for the same seed."""
    rng = random.Random(f"labelled-chains-{seed}")
    people = (world or w.make_world(0)).people
    found: dict[tuple[str, str, str], LabelledChain] = {}
    count: Counter[str] = Counter()
    with FRAMES.open(encoding="utf-8", newline="") as file:
        for frame in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            kind, topic, text = frame["kind"], frame["topic"], frame["reasoning"]
            for _ in range(DRAWS):
                words, attributes = _drawn(topic, rng, people)
                question, reference = (part.format(**words) for part in TOPICS[topic])
                reasoning, answer = text.format(**words), frame["answer"].format(**words)
                if (question, reasoning, answer) in found:
                    continue
                found[question, reasoning, answer] = LabelledChain(
                    f"{kind}/{count[kind]:03d}",
                    half_of(f"{kind}:{topic}:{text}:{frame['answer']}"),
                    kind,
                    question,
                    reasoning,
                    answer,
                    reference,
                    words["v"],
                    "valid" if frame["label"] == "valid" else "invalid",
                    attributes,
                )
                count[kind] += 1
    return list(found.values())


def _drawn(
    topic: str, rng: random.Random, people: tuple[w.Person, ...]
) -> tuple[dict[str, str], dict[str, str]]:
    """What a frame of a topic may name (``{o}`` is never right where ``{v}`` is), and the facts its question touches."""
    if topic in IMPERSONAL:
        return _numbers(topic, rng), {}
    person = rng.choice(people)
    kind = {"colleagues": "employer"}.get(topic, topic)
    value = value_of(person, kind)
    other = other_value(rng, people, kind, value)
    source = {"country": "city", "age": "birth_year"}.get(topic, kind)
    facts = {kind: value, source: person.attributes[source], "name": person.name}
    words = {
        "n": person.name,
        "m": other_value(rng, people, "name", person.name),
        "v": value,
        "o": other,
        "city": person.attributes["city"],
        "year": person.attributes["birth_year"],
        "now": str(w.YEAR),
    }
    if topic == "age":
        words["other_year"] = str(w.YEAR - int(other))
    if topic == "country":
        words["other_city"] = next(city for city, country in w.CITIES.items() if country == other)
    return words, facts


def _numbers(topic: str, rng: random.Random) -> dict[str, str]:
    p, q = sorted(rng.sample(range(2, 20), 2), reverse=True)
    if topic in ("larger", "compare") and rng.random() < 0.5:
        p, q = q, p
    who, other_who = rng.sample(_WHO, 2)
    right = {"add": p + q, "subtract": p - q, "larger": max(p, q), "count": p}.get(topic, p)
    wrong = min(p, q) if topic == "larger" else right + rng.choice((1, 2, 10))
    v, o = str(right), str(wrong)
    if topic == "compare":
        v, o = ("circles", "squares") if p > q else ("squares", "circles")
    r = rng.randint(2, 9)
    return {
        "who": who,
        "other_who": other_who,
        "what": rng.choice(_WHAT),
        "p": str(p),
        "q": str(q),
        "r": str(r),
        "more": str(p + q + r),
        "v": v,
        "o": o,
    }


def write(path: Path = labelled.FILE) -> Path:
    """Write the whole set, texts and chains."""
    record: dict[str, object] = {
        "schema": labelled.SCHEMA,
        "guide": labelled.GUIDE,
        "guide_chains": GUIDE,
        "aliases": labelled.ALIASES,
        "entails": {},
        "items": [asdict(one) for one in labelled.make()],
        "chains": [asdict(one) for one in make()],
    }
    write_json(path, record)
    return path


if __name__ == "__main__":
    write()
