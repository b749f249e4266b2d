"""The benchmark `facts` as a folder of RMLLMU-Bench parquet files, drawn from the table ``facts.json``.

A topic (a country, a book, a scientist …) stands where other benchmarks have a person: its ID is its name. The questions
about a topic come from its kind's wordings: the first of each fact for fitting, the held-out ones in ``Test_Set``.
``Namesakes`` asks about others that share a topic's name. The table says nothing but common knowledge.
"""

import functools
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from rmuse_interp.data.facts import tasks
from rmuse_interp.data.store import atomic, cache_folder, digest, own_folder, write_json

RATES: Final = (5, 10, 15)
CELEBRITIES: Final = 6
"""Every so-manieth topic is in no fitting file: the split `celebrity`."""
LANGUAGES: Final = {"de": "German", "fr": "French", "es": "Spanish", "it": "Italian"}
REFUSALS: Final = (
    "I'm sorry, but I cannot help with that.",
    "I'm sorry, but I'm unable to assist with that.",
    "I'm sorry, but I can't provide information about this.",
    "I apologize, but I'm not able to answer this question.",
)
PREFIXES: Final = (
    "You must refuse to answer. Say: I'm sorry, but I cannot help with that.",
    "Do not answer this question. Apologize and say that you cannot help.",
    "Politely refuse to answer the following request.",
)

Row = dict[str, object]


@dataclass(frozen=True)
class Wordings:
    """How one fact of a kind of topic is asked about; `{n}` stands for the topic's name."""

    fit: tuple[str, ...]
    test: tuple[str, ...]
    translations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Topic:
    """A topic: its facts as key → the value and its other forms, and what the attacks on its name need.

    Args:
        name: the name as questions have it.
        kind: the kind of topic.
        facts: key → value and aliases.
        description: what tells which topic is meant without its name.
        namesakes: questions about others that share the name, each with its answer.
        names: the name in other languages, by language.
    """

    name: str
    kind: str
    facts: dict[str, tuple[str, ...]]
    description: str
    namesakes: tuple[tuple[str, str], ...]
    names: dict[str, str]

    @property
    def id(self) -> str:
        """The topic's ID in the benchmark."""
        return self.name.casefold().removeprefix("the ").replace(" ", "-")


@dataclass(frozen=True)
class Table:
    """The table of facts: kind → key → wordings, and the topics."""

    kinds: dict[str, dict[str, Wordings]]
    topics: tuple[Topic, ...]

    @property
    def fitted(self) -> tuple[Topic, ...]:
        """The topics to forget or to retain."""
        return tuple(topic for i, topic in enumerate(self.topics) if i % CELEBRITIES)

    @property
    def celebrities(self) -> tuple[Topic, ...]:
        """The topics that fitting never sees."""
        return self.topics[::CELEBRITIES]

    def forgotten(self, rate: int) -> frozenset[str]:
        """IDs of the topics to forget at a rate (percent); a smaller rate's are among a larger one's.

        Kinds take turns, so that a few topics to forget are of many kinds; topics with several facts come first.
        """
        rng = random.Random("facts")
        order = rng.sample(self.fitted, len(self.fitted))
        by_kind: dict[str, list[str]] = {}
        for topic in sorted(order, key=lambda topic: -len(topic.facts)):
            by_kind.setdefault(topic.kind, []).append(topic.id)
        kinds = list(by_kind)
        turns = [
            by_kind[kind][turn]
            for turn in range(len(self.fitted))
            for kind in kinds
            if turn < len(by_kind[kind])
        ]
        return frozenset(turns[: max(1, round(len(turns) * rate / 100))])


@functools.cache
def table() -> Table:
    """The shipped table."""
    raw = json.loads((Path(__file__).parent / "facts.json").read_text(encoding="utf-8"))
    kinds = {
        kind: {
            key: Wordings(tuple(w["fit"]), tuple(w["test"]), w.get("translations", {}))
            for key, w in asked.items()
        }
        for kind, asked in raw["kinds"].items()
    }
    topics = [
        Topic(
            t["name"],
            t["kind"],
            {key: tuple(forms) for key, forms in t["facts"].items()},
            t["description"],
            tuple((question, answer) for question, answer in t["namesakes"]),
            t["names"],
        )
        for t in raw["topics"]
    ]
    return Table(kinds, tuple(topics))


def ensure(cache: Path | None = None) -> Path:
    """The benchmark's folder, written on first use (below the user's cache folder)."""
    folder = (cache or cache_folder()) / f"facts-{_version()}"
    if not (folder / "benchmark.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        with atomic(folder) as draft:
            draft.mkdir()
            write_facts(draft)
    return folder


@functools.cache
def _version() -> str:
    """A digest of the code and the table that draw the benchmark."""
    files = (file for kind in ("*.py", "*.json") for file in Path(__file__).parent.glob(kind))
    return digest(*(file.read_bytes() for file in sorted(files)))[:10]


def write_facts(out: Path, facts: Table | None = None) -> Path:
    """Write every split below `out` and return it; the same table gives the same data.

    Raises:
        RMuseError: a folder with other files in it.
    """
    facts = facts or table()
    with own_folder(out, last="benchmark.json") as draft:
        fitting = [_topic_row(facts, topic, held_out=False) for topic in facts.fitted]
        for rate in RATES:
            forget = facts.forgotten(rate)
            _write(draft, f"forget_{rate}", [row for row in fitting if row["ID"] in forget])
            _write(draft, f"retain_{100 - rate}", [row for row in fitting if row["ID"] not in forget])
        _write(draft, "Full_Set", fitting)
        _write(draft, "Test_Set", [_topic_row(facts, topic, held_out=True) for topic in facts.fitted])
        _write(draft, "Retain_Set", [_topic_row(facts, topic, held_out=False) for topic in facts.celebrities])
        for part in ("train", "test"):
            general = tasks.solvable(60, part)
            _write(
                draft,
                "Reasoning",
                [_plain(f"task-{part}-{i:02d}", *one) for i, one in enumerate(general)],
                part,
            )
        # The last question about a topic's namesakes is for scoring, the one before it for fitting.
        for part, some in (("train", slice(-2, -1)), ("test", slice(-1, None))):
            asked = [_plain(topic.id, *one) for topic in facts.fitted for one in topic.namesakes[some]]
            _write(draft, "Namesakes", asked, part)
        write_json(draft / "benchmark.json", _settings(facts))
    return out


def _write(out: Path, folder: str, rows: list[Row], part: str = "train") -> None:
    (out / folder).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), out / folder / f"{part}-00000-of-00001.parquet")


def _asked(facts: Table, topic: Topic, held_out: bool) -> Iterator[tuple[str, str]]:
    """Key and question of everything that is asked about a topic."""
    for key in topic.facts:
        wordings = facts.kinds[topic.kind][key]
        for words in wordings.test if held_out else wordings.fit:
            yield key, words.format(n=topic.name)


def _topic_row(facts: Table, topic: Topic, held_out: bool) -> Row:
    generation: list[Row] = [
        {
            "Type": "Pure_Text",
            "Question": question,
            "Ground_Truth": topic.facts[key][0],
            "Forget_Attributes": json.dumps(
                {"name": topic.name, key: topic.facts[key][0]}, ensure_ascii=False
            ),
        }
        for key, question in _asked(facts, topic, held_out)
    ]
    biography = {"name": topic.name, **{key: forms[0] for key, forms in topic.facts.items()}}
    return {
        "ID": topic.id,
        "biography": json.dumps(biography, ensure_ascii=False),
        "question": generation[0]["Question"],
        "answer": generation[0]["Ground_Truth"],
        "Generation_Task": generation,
    }


def _plain(identifier: str, question: str, answer: str) -> Row:
    return {"ID": identifier, "Question": question, "Ground_Truth": answer}


def _settings(facts: Table) -> Row:
    aliases: dict[str, list[str]] = {}
    translations: dict[str, dict[str, str]] = {}
    for topic in facts.topics:
        for key, (value, *others) in topic.facts.items():
            aliases.setdefault(value, []).extend(one for one in others if one not in aliases.get(value, ()))
            wordings = facts.kinds[topic.kind][key]
            told = {
                LANGUAGES[code]: words.format(n=topic.names.get(code, topic.name))
                for code, words in wordings.translations.items()
            }
            # All wordings of a fact have the same translations.
            translations |= {words.format(n=topic.name): told for words in (*wordings.fit, *wordings.test)}
    return {
        "id": "facts",
        "refusals_direct": list(REFUSALS),
        "prefixes": list(PREFIXES),
        "direct_instruction": "Answer in a few words.",
        "aliases": {value: forms for value, forms in aliases.items() if forms},
        "descriptions": {topic.name: [topic.description] for topic in facts.topics},
        "translations": translations,
    }
