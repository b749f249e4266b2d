"""Material of leakage probes: questions by attribute and rendering, and their states before and after steering."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example
from rmuse_interp.data.spans import parse_response
from rmuse_interp.diagnostics.readings import Place, Readings, empty_places, mention, read_out
from rmuse_interp.edits.plan import Modality, Plan
from rmuse_interp.fitting.collect import Query
from rmuse_interp.parts.pooled import Pooled
from rmuse_interp.studies.fits import World

Group = Literal["forget", "retain"]
Words = Literal["prompt", "reference", "refusal", "own"]
"""The response text up to the place where states are read: none yet; the reference; one fixed refusal; the steered
model's own. All but the last are the same before and after steering."""
NAME_KEYS: Final = ("name", "full name", "full_name")


@dataclass(frozen=True)
class Asked:
    """One question: its person, attribute and value, its photograph or wording, and secrets not to be said before."""

    example: Example
    person: str
    attribute: str
    value: str
    rendering: str
    secrets: tuple[str, ...]

    @property
    def id(self) -> str:
        """Id of the example."""
        return self.example.id


def asked_of(
    benchmark: Benchmark, splits: Sequence[str], modality: str, people: int | None = None, seed: int = 0
) -> list[Asked]:
    """The questions with reasoning, of one kind of query, that ask for an attribute of a person other than the name.

    The rendering is the photograph for image queries, else the question without the person's names.

    Args:
        benchmark: source of the questions.
        splits: scoring splits.
        modality: kind of query.
        people: maximum number of people; all by default.
        seed: seed of their choice.
    """
    pool = [e for split in splits for e in benchmark.scoring(split) if e.person is not None]
    known = sorted({str(e.person) for e in pool})
    random.Random(f"people-{seed}").shuffle(known)
    taken = set(known[:people])
    pool = [e for e in pool if e.person in taken]
    names: dict[str, set[str]] = {}
    for e in pool:
        for key, value in e.attributes.items():
            if key.lower() in NAME_KEYS:
                names.setdefault(str(e.person), set()).update((value, *benchmark.aliases.get(value, ())))
    found = []
    for e in pool:
        if e.kind != "generation" or e.modality != modality or e.reasoning is None:
            continue
        facts = {k: v for k, v in e.attributes.items() if k.lower() not in NAME_KEYS}
        attribute = next((k for k, v in facts.items() if v.casefold() == e.answer.casefold()), None)
        if attribute is None:
            continue
        person = str(e.person)
        called = sorted(names.get(person, ()), key=len, reverse=True)
        values = [*facts.values(), e.answer, *called]
        values += [alias for value in values for alias in benchmark.aliases.get(value, ())]
        # A value that the question itself states (a name, in text) is not secret.
        secrets = tuple(dict.fromkeys(v for v in values if mention(e.question, [v]) is None))
        wording = e.question
        for name in called:
            wording = wording.replace(name, "{}")
        rendering = wording if e.image is None else hashlib.sha256(e.image).hexdigest()[:12]
        found.append(Asked(e, person, attribute, facts[attribute], rendering, secrets))
    return found


def chosen(pool: Sequence[Asked], limit: int, seed: int, attributes: Sequence[str] = ()) -> list[Asked]:
    """Whole attributes (all people in all renderings), up to `limit` questions; if none fits, one with fewer people.

    Args:
        pool: questions from `asked_of`.
        limit: maximum number of questions.
        seed: seed of the order of attributes and people.
        attributes: the only attributes to use, in this order; all if empty.

    Raises:
        RMuseError: the limit is too small for two people.
    """
    known = sorted({a.person for a in pool})
    random.Random(f"people-{seed}").shuffle(known)
    order = list(attributes) or sorted({a.attribute for a in pool})
    if not attributes:
        random.Random(f"attributes-{seed}").shuffle(order)
    blocks = [[a for a in pool if a.attribute == name and a.person in known] for name in order]
    blocks = [block for block in blocks if block]
    if not blocks:
        return []
    first = blocks[0]
    while len(first) > limit and len(known) > 2:
        known = known[:-1]
        first = [a for a in first if a.person in known]
    if len(first) > limit:
        raise RMuseError(
            f"--limit of at least {len(first)} was required for two people in all renderings, got {limit}"
        )
    found = list(first)
    for block in blocks[1:]:
        more = [a for a in block if a.person in known]
        if len(found) + len(more) <= limit:
            found += more
    return found


@dataclass(frozen=True, eq=False)
class Cell:
    """States of the same questions before and after steering, read at one place of one response text.

    Attributes:
        words: kind of response text.
        place: where states are read.
        before, after: states; None for a side without this text.
        told_before, told_after: id → the text tokens up to that place.
    """

    words: Words
    place: Place
    before: Pooled | None
    after: Pooled | None
    told_before: Mapping[str, Sequence[int]]
    told_after: Mapping[str, Sequence[int]]


@dataclass(frozen=True, eq=False)
class Material:
    """All that was collected for one group and kind of query.

    Attributes:
        group, modality, asked: the group, the kind of query and the questions.
        cells: states by place and words.
        recall: the cell of the token that predicts the value itself, in the reference (a name may precede it).
        said: id → the first token of the value.
        fired: id → whether the gate let the plan act.
        responses: id → the steered model's own response; empty for the retain group.
        empty: words and place → the ids of the questions without a token to read there.
    """

    group: Group
    modality: str
    asked: tuple[Asked, ...]
    cells: tuple[Cell, ...]
    recall: Cell
    said: Mapping[str, int]
    fired: Mapping[str, bool | None]
    responses: Mapping[str, str]
    empty: Mapping[str, list[str]]


def collected(world: World, plan: Plan, group: Group, modality: Modality, asked: Sequence[Asked]) -> Material:
    """States of every block without and with the plan, its gates deciding."""
    lens, benchmark, given = world.lens, world.benchmark, world.given
    marks = benchmark.delimiters
    secrets = {a.id: a.secrets for a in asked}
    values = {a.id: (a.value, *benchmark.aliases.get(a.value, ())) for a in asked}
    empty: dict[str, list[str]] = {}

    def read(
        queries: Sequence[Query],
        places: Sequence[Place],
        words: str,
        run: Plan | None,
        unsaid: Mapping[str, Sequence[str]],
    ) -> Readings:
        for place, ids in empty_places(queries, unsaid, places, marks).items():
            empty[f"{words}/{place}"] = ids
        label = f"{group}, {modality}: {words} words, {'unsteered' if run is None else 'steered'}"
        return read_out(
            lens,
            queries,
            places,
            secrets=unsaid,
            plan=run,
            delimiters=marks,
            batch_size=given.batch_size,
            progress=world.progress,
            label=label,
        )

    reference = [Query(a.id, a.example.prompt(), a.example.image, a.example.response(marks)) for a in asked]
    seen: list[Place] = (
        ["prompt_end", "image", "reasoning"] if modality == "image" else ["prompt_end", "reasoning"]
    )
    plain, run = (read(reference, seen, "reference", p, secrets) for p in (None, plan))
    cells = [_cell("reference" if place == "reasoning" else "prompt", place, plain, run) for place in seen]
    script = [replace(q, response=benchmark.refusals_cot[0]) for q in reference]
    sides = [read(script, ["reasoning", "answer"], "refusal", p, secrets) for p in (None, plan)]
    cells += [_cell("refusal", place, *sides) for place in ("reasoning", "answer")]
    responses: dict[str, str] = {}
    if group == "forget":
        asked_now = [(q.prompt, q.image) for q in reference]
        found = lens.respond(
            [p for p, _ in asked_now],
            [i for _, i in asked_now],
            plan,
            max_new_tokens=given.max_new_tokens,
            batch_size=given.batch_size,
        )
        responses = {a.id: r.text for a, r in zip(asked, found, strict=True)}
        own = [_spoken(q, responses[q.id], marks) for q in reference]
        after = read(own, ["reasoning", "answer"], "own", plan, secrets)
        # No states of before: with different words, probes would compare the words, not the effect of steering.
        cells += [
            Cell("own", place, None, after.states[place], {}, after.words[place])
            for place in ("reasoning", "answer")
        ]
    recalls = [read(reference, ["recall"], "value", p, values) for p in (None, plan)]
    return Material(
        group,
        modality,
        tuple(asked),
        tuple(cells),
        _cell("reference", "recall", *recalls),
        recalls[0].said,
        run.fired,
        responses,
        empty,
    )


def _spoken(query: Query, text: str, delimiters: tuple[str, str]) -> Query:
    """The query with the model's own response; a malformed response is read as an answer without reasoning."""
    return replace(query, response=text or None, stepwise=parse_response(text, delimiters).well_formed)


def _cell(words: Words, place: Place, before: Readings, after: Readings) -> Cell:
    """Both sides, on the questions that can be read on both."""
    both = [i for i in before.states[place].ids if i in set(after.states[place].ids)]
    return Cell(
        words,
        place,
        before.states[place].select(both),
        after.states[place].select(both),
        before.words[place],
        after.words[place],
    )
