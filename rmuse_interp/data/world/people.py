"""The people of the small world: who they are, what is true of them, and how they look.

Everything is drawn from one seed, so the same world is made anew on every machine. Identity (how a face is
built) is a vector of nine discrete factors; two people differ in at least three of them, except for the
declared look-alikes, which differ in two. Strangers are faces at least three factors away from everyone known.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

N_PEOPLE: Final = 200
N_CELEBRITIES: Final = 40
YEAR: Final = 2025
"""The year in which the world's ages are told."""

FACTORS: Final[dict[str, int]] = {
    "face": 5,
    "skin": 5,
    "eye_colour": 5,
    "eye_shape": 3,
    "nose": 4,
    "mouth": 5,
    "hairline": 5,
    "hair_colour": 6,
    "mark": 4,
}
"""Identity factors and how many values each takes (drawn by `portraits`)."""

Identity = tuple[int, ...]

WORDS: Final = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))
"""The tables of words that the world, its questions and its hints are made of."""
CITIES: Final[dict[str, str]] = WORDS["cities"]
"""City → country."""
OCCUPATIONS: Final[tuple[str, ...]] = tuple(WORDS["occupations"])
EMPLOYERS: Final[tuple[str, ...]] = tuple(WORDS["employers"])
EDUCATION: Final[tuple[str, ...]] = tuple(WORDS["education"])
HOBBIES: Final[tuple[str, ...]] = tuple(WORDS["hobbies"])
PETS: Final[tuple[str, ...]] = tuple(WORDS["pets"])
BIRTH_YEARS: Final = tuple(range(1950, 2004))
FIRST_NAMES: Final[tuple[str, ...]] = tuple(WORDS["first_names"])
ATTRIBUTES: Final = (
    "name",
    "birth_year",
    "city",
    "occupation",
    "employer",
    "education",
    "hobby",
    "pet",
)

_ONSETS, _VOWELS, _MIDDLES, _ENDS = (tuple(WORDS[part]) for part in ("onsets", "vowels", "middles", "ends"))


@dataclass(frozen=True)
class Person:
    """One inhabitant: an id, a face, and the attributes that `ATTRIBUTES` lists (plain English strings)."""

    id: str
    identity: Identity
    attributes: dict[str, str] = field(hash=False)
    celebrity: bool = False

    @property
    def name(self) -> str:
        return self.attributes["name"]

    @property
    def age(self) -> str:
        """Age in the year `YEAR`, from the birth year."""
        return str(YEAR - int(self.attributes["birth_year"]))

    @property
    def country(self) -> str:
        """The country of the city of residence."""
        return CITIES[self.attributes["city"]]


def distance(one: Identity, other: Identity) -> int:
    """Hamming distance: in how many factors two faces differ.

    >>> distance((0, 1, 2), (0, 2, 2))
    1
    """
    return sum(a != b for a, b in zip(one, other, strict=True))


def surnames(rng: random.Random) -> Iterator[str]:
    """An endless stream of distinct invented surnames."""
    seen: set[str] = set()
    while True:
        name = rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_MIDDLES) + rng.choice(_ENDS)
        if name not in seen:
            seen.add(name)
            yield name


def random_identity(rng: random.Random) -> Identity:
    """A face drawn uniformly over all factor values."""
    return tuple(rng.randrange(n) for n in FACTORS.values())


@dataclass(frozen=True)
class World:
    """All inhabitants of one seed: `people` (the benchmark's profiles) and `celebrities`."""

    people: tuple[Person, ...]
    celebrities: tuple[Person, ...]
    seed: int

    @property
    def everyone(self) -> tuple[Person, ...]:
        return self.people + self.celebrities

    def forget_ids(self, rate: int) -> tuple[str, ...]:
        """The people to be forgotten at `rate` percent; smaller rates are nested in larger ones.

        Spread over the world by a fixed stride, so that some have a look-alike who is retained.
        """
        n = len(self.people)
        return tuple(self.people[33 * rank % n].id for rank in range(round(n * rate / 100)))

    def without(self, ids: tuple[str, ...]) -> "World":
        """The same world with those people unknown (what the gold standard is trained on)."""
        return World(tuple(p for p in self.people if p.id not in set(ids)), self.celebrities, self.seed)

    def stranger(self, rng: random.Random) -> tuple[Identity, str]:
        """A face and a name that belong to nobody in the *full* world of this seed."""
        known = make_world(self.seed)
        while True:
            face = random_identity(rng)
            if all(distance(face, p.identity) >= 3 for p in known.everyone):
                break
        taken = {p.name.split()[1] for p in known.everyone}
        name = next(s for s in surnames(rng) if s not in taken)
        return face, f"{rng.choice(FIRST_NAMES)} {name}"


_WORLDS: dict[int, World] = {}


def make_world(seed: int = 0) -> World:
    """The world of a seed: 200 people and 40 celebrities, the same on every machine (cached).

    >>> world = make_world(0)
    >>> len(world.people), len(world.celebrities), len(world.forget_ids(5))
    (200, 40, 10)
    """
    if seed not in _WORLDS:
        _WORLDS[seed] = _draw_world(seed)
    return _WORLDS[seed]


def _draw_world(seed: int) -> World:
    rng = random.Random(f"world-{seed}")
    names = surnames(rng)
    faces: list[Identity] = []
    total = N_PEOPLE + N_CELEBRITIES
    # Every sixteenth person of the first part is the look-alike of the one before: the forget sets contain some.
    lookalike_at = set(range(1, N_PEOPLE, 16))
    while len(faces) < total:
        if len(faces) in lookalike_at:
            twin = list(faces[-1])
            for position in rng.sample(range(len(twin)), 2):
                size = list(FACTORS.values())[position]
                twin[position] = (twin[position] + rng.randrange(1, size)) % size
            face, others = tuple(twin), faces[:-1]
        else:
            face, others = random_identity(rng), faces
        if all(distance(face, other) >= 3 for other in others):
            faces.append(face)
    everyone = []
    for index, face in enumerate(faces):
        celebrity = index >= N_PEOPLE
        attributes = {
            "name": f"{rng.choice(FIRST_NAMES)} {next(names)}",
            "birth_year": str(rng.choice(BIRTH_YEARS)),
            "city": rng.choice(list(CITIES)),
            "occupation": rng.choice(OCCUPATIONS),
            "employer": rng.choice(EMPLOYERS),
            "education": rng.choice(EDUCATION),
            "hobby": rng.choice(HOBBIES),
            "pet": rng.choice(PETS),
        }
        identifier = f"c{index - N_PEOPLE:03d}" if celebrity else f"p{index:03d}"
        everyone.append(Person(identifier, face, attributes, celebrity))
    return World(tuple(everyone[:N_PEOPLE]), tuple(everyone[N_PEOPLE:]), seed)
