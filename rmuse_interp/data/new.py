"""Make a benchmark from a table of people: questions from templates, plus existing retain data."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rmuse_interp import RMuseError
from rmuse_interp.data import fields, formats, mllmu
from rmuse_interp.data.people import Person
from rmuse_interp.data.reader import Reader
from rmuse_interp.data.rows import Row, identifier, records
from rmuse_interp.data.settings import Settings
from rmuse_interp.data.store import own_folder, write_json
from rmuse_interp.data.stored import parquet
from rmuse_interp.data.wordings import HARMLESS, NAME, SUBJECTS, Wording, kind_of, wording
from rmuse_interp.data.words import folded

if TYPE_CHECKING:
    import pyarrow as pa

WORDINGS_PER_FACT: Final = 2
"""Wordings of each fact asked in fitting, for pictures and for text separately."""
N_OPTIONS: Final = 4


@dataclass
class Made:
    """What was written, and notes about it for the user."""

    folder: Path
    forget: int = 0
    retain: int = 0
    notes: list[str] = field(default_factory=list)


def write_new(people: Sequence[Person], retain: Path, out: Path, rate: int = 5, seed: int = 0) -> Made:
    """Write a benchmark folder in RMLLMU-Bench format, ready for fitting.

    The people to forget are the table's (except those with ``forget`` no, who are retained); the others come from
    `retain`, whose files are copied row by row unchanged, without people whose name is in the table. `rate` is the
    number in the folders' names, whatever the share of people is. The last of several photographs, and the last
    wordings of every question, are kept for Test_Set.

    Args:
        people: from `read_people`.
        retain: a folder in MLLMU-Bench or RMLLMU-Bench format: its retain people (or Full_Set), general reasoning,
            harmless questions, strangers, celebrities and ``benchmark.json`` are copied.
        out: the folder to write; a benchmark that this function wrote there before is replaced.
        rate: the forget rate in the folders' names.
        seed: seed for the choice of wordings and options.

    Raises:
        RMuseError: the retain data is in another format, has no people, is in `out`, or uses an ID of the table for
            somebody else; or the folder `out` holds other files.
    """
    if out.resolve() == retain.resolve():
        raise RMuseError(f"--out: required another folder than the retain data's, got {out} for both")
    made, rng = Made(out), random.Random(f"new-{seed}")
    source = _source(retain)
    Settings.read(retain / "benchmark.json")  # finds a damaged file before anything is written
    names = {folded(person.name) for person in people}
    kept, pool = _retained(retain, source, names, {person.id for person in people}, made)
    for person in people:
        pool.setdefault("name", []).append(person.name)
        for heading, value in person.facts.items():
            pool.setdefault(kind_of(heading), []).append(value)
    asking = _Asking(rng, {kind: sorted(set(values)) for kind, values in pool.items()})
    forget, own = [p for p in people if p.forget], [p for p in people if not p.forget]
    made.forget, made.retain = len(forget), len(own) + len(kept)

    def people_rows(some: Sequence[Person], held_out: bool) -> Iterator[Row]:
        return (row for person in some for row in asking.rows(person, held_out))

    def copied(folder: str) -> list[tuple[Path, Callable[[str], bool]]]:
        files = Reader(retain, "").found(folder)
        return [(path, kept.__contains__) for path in files]

    with own_folder(out, last="benchmark.json") as draft:
        _write(draft, f"forget_{rate}", "train", people_rows(forget, False))
        _write(draft, f"retain_{100 - rate}", "train", people_rows(own, False), copied(source))
        _write(draft, "Full_Set", "train", people_rows(people, False), copied(source))
        _write(draft, "Test_Set", "train", people_rows(people, True), copied("Test_Set"))
        celebrities = Reader(retain, "").found("Retain_Set")
        if celebrities:
            _write(draft, "Retain_Set", "train", iter(()), [(path, _anyone) for path in celebrities])
        for folder in ("Reasoning", "Benign", "Strangers"):
            for part in ("train", "test"):
                files = Reader(retain, "").found(folder, part)
                wanted = kept.__contains__ if folder == "Benign" else _anyone
                mine = _harmless(people, part == "test") if folder == "Benign" else iter(())
                if files or folder == "Benign":
                    _write(draft, folder, part, mine, [(path, wanted) for path in files])
            if not (draft / folder).is_dir():
                made.notes.append(f"the retain data has no {folder}/: fitting and scoring go without")
        write_json(draft / "benchmark.json", _settings(people, retain, out.name))
    made.notes += asking.notes()
    once = sum(len(person.photographs) == 1 for person in people)
    if once:
        made.notes.append(
            f"{once} of {len(people)} people have one photograph: Test_Set shows it again, so forgetting "
            "in new photographs is not measured for them"
        )
    return made


def _anyone(_who: str) -> bool:
    return True


def _source(retain: Path) -> str:
    """Name the split of the retain data that holds the people to retain."""
    if not retain.is_dir():
        raise RMuseError(f"--retain: required a benchmark folder, got {str(retain)!r}: no such folder")
    splits = sorted(
        (p.name for p in retain.glob("retain_*") if p.name[7:].isdigit()), key=lambda name: -int(name[7:])
    )
    reader = Reader(retain, "")
    for split in (*splits, "Full_Set"):
        files = reader.found(split)
        if files:
            layout = reader.one_format(files)
            if layout is not formats.MLLMU:
                raise RMuseError(
                    f"--retain: required MLLMU-Bench or RMLLMU-Bench format, got {layout.name} "
                    f"({reader.name(files[0])}); leave --retain out for the generic set"
                )
            return split
    raise RMuseError(f"--retain: required retain_95/ (or another rate) or Full_Set/ in {retain}, got neither")


def _retained(
    retain: Path, split: str, names: set[str], ids: set[str], made: Made
) -> tuple[set[str], dict[str, list[str]]]:
    """IDs of the people retained, and the values of their facts by kind."""
    kept: set[str] = set()
    pool: dict[str, list[str]] = {}
    same, reader = [], Reader(retain, "")
    for path in reader.files(split):
        for row, record in records(path, reader.name(path), ("ID", "biography")):
            with reader.guard(path, row):
                person, facts = fields.identity(record), mllmu.facts(record)
                named = {kind_of(key): value for key, value in facts.items()}
                if folded(named.get("name", "")) in names:
                    same.append(person)
                    continue
                if person in ids:
                    raise RMuseError(
                        f"--retain: required other IDs than the table's, got {person!r} in {reader.name(path)}; change "
                        "the table's column 'id'"
                    )
                kept.add(person)
                for kind, value in named.items():
                    pool.setdefault(kind, []).append(value)
    if same:
        made.notes.append(
            f"left out of the retain data, for their names stand in the table: {', '.join(same)}"
        )
    if not kept:
        raise RMuseError(
            f"--retain: required people to retain, got none in {retain}/{split} but those of the table"
        )
    return kept, pool


@dataclass
class _Asking:
    """Makes a person's rows. `pool` maps each kind of fact to its values, from which wrong options are drawn."""

    rng: random.Random
    pool: dict[str, list[str]]
    without_options: dict[str, int] = field(default_factory=dict)

    def rows(self, person: Person, held_out: bool) -> Iterator[Row]:
        """One row with all questions; each further photograph used in fitting gets a row of picture questions."""
        fitted = person.photographs[:-1] or person.photographs
        shown = person.photographs[-1:] if held_out else fitted
        for number, photograph in enumerate(shown):
            image = {"bytes": photograph, "path": None}
            row = self._row(person, held_out, text=number == 0)
            yield {**row, **({"images": [image]} if held_out else {"image": image})}

    def _row(self, person: Person, held_out: bool, text: bool) -> Row:
        known = [(kind_of(heading), value) for heading, value in person.facts.items()]
        generation: list[Row] = []
        masks: list[Row] = []
        choices: dict[str, list[Row]] = {f"{label}_Questions": [] for label in mllmu.MODALITIES}
        for label, modality in mllmu.MODALITIES.items():
            pictured = modality == "image"
            if not pictured and not text:
                continue
            asked = [("name", person.name, NAME)] if pictured else []
            for kind, value, words in [*asked, *((k, v, wording(k)) for k, v in known)]:
                chain = NAME.fact.format(n=person.name)
                chain += "" if kind == "name" else " " + words.fact.format(n=person.name, v=value)
                touched = {kind: value, **({"name": person.name} if pictured else {})}
                some = words.asked(held_out)
                for question in self.rng.sample(some, min(WORDINGS_PER_FACT, len(some))):
                    generation.append(
                        {
                            "Type": label,
                            "Question": self._put(question, person, pictured),
                            "Ground_Truth": value,
                            "Reasoning": chain,
                            "Forget_Attributes": json.dumps(touched, ensure_ascii=False),
                        }
                    )
                blank = self._put(words.cloze, person, pictured)
                masks.append({"Type": label, "Question": blank[0].upper() + blank[1:], "Ground_Truth": value})
                choice = self._choice(words, kind, value, person, pictured, held_out)
                if choice is not None:
                    choices[f"{label}_Questions"].append(choice)
        biography = {"name": person.name, **dict(known)}
        return {
            "ID": person.id,
            "biography": json.dumps(biography, ensure_ascii=False),
            "question": generation[0]["Question"],
            "answer": generation[0]["Ground_Truth"],
            "Generation_Task": generation,
            "Mask_Task": masks,
            "Classification_Task": choices,
        }

    def _put(self, words: str, person: Person, pictured: bool) -> str:
        subject, possessive = self.rng.choice(SUBJECTS) if pictured else (person.name, f"{person.name}'s")
        return words.format(s=subject, p=possessive)

    def _choice(
        self, words: Wording, kind: str, value: str, person: Person, pictured: bool, held_out: bool
    ) -> Row | None:
        others = [other for other in self.pool[kind] if folded(other) != folded(value)]
        if not others:
            self.without_options[kind] = self.without_options.get(kind, 0) + 1
            return None
        options = [value, *self.rng.sample(others, min(N_OPTIONS - 1, len(others)))]
        self.rng.shuffle(options)
        question = self._put(self.rng.choice(words.asked(held_out)), person, pictured)
        lettered = dict(zip("ABCD", options, strict=False))
        right = next(letter for letter, option in lettered.items() if option == value)
        return {"Question": question, "Options": lettered, "Correct_Answer": right}

    def notes(self) -> list[str]:
        """Notes on the facts that could not be asked about."""
        return [
            f"no multiple choice about {kind!r} ({n} questions left out): nobody else's is known to choose from"
            for kind, n in self.without_options.items()
        ]


def _harmless(people: Sequence[Person], held_out: bool) -> Iterator[Row]:
    for person in people:
        photograph = person.photographs[-1] if held_out else person.photographs[0]
        for question, answer, chain in HARMLESS[-2:] if held_out else HARMLESS[:-2]:
            yield {
                "ID": person.id,
                "image": {"bytes": photograph, "path": None},
                "Question": question,
                "Ground_Truth": answer,
                "Reasoning": chain,
            }


def _settings(people: Sequence[Person], retain: Path, name: str) -> dict[str, object]:
    """The retain data's settings, with the new name and with the people's aliases added."""
    path = retain / "benchmark.json"
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    raw.pop("render_seed", None)
    aliases = {p.name: list(p.aliases) for p in people if p.aliases}
    return {**raw, "id": name, "aliases": {**raw.get("aliases", {}), **aliases}}


def _write(
    out: Path,
    folder: str,
    part: str,
    rows: Iterator[Row],
    copies: Sequence[tuple[Path, Callable[[str], bool]]] = (),
) -> None:
    """Write our rows as one parquet file (if there are any), then the wanted rows of other files, unchanged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (out / folder).mkdir(parents=True, exist_ok=True)
    first = next(rows, None)
    total = len(copies) + (first is not None)
    names = iter([out / folder / f"{part}-{i:05d}-of-{total:05d}.parquet" for i in range(total)])
    if first is not None:
        schema = _schema(first)
        with pq.ParquetWriter(next(names), schema) as writer:
            writer.write_table(pa.Table.from_pylist([first], schema))
            for row in rows:
                writer.write_table(pa.Table.from_pylist([row], schema))
    for path, wanted in copies:
        with parquet(path) as file, pq.ParquetWriter(next(names), file.schema_arrow) as writer:
            for batch in file.iter_batches(batch_size=64):
                mask = pa.array([wanted(identifier(who) or "") for who in batch.column("ID").to_pylist()])
                writer.write_batch(batch.filter(mask))


def _schema(row: Row) -> "pa.Schema":
    """The types of a row's columns, given explicitly: a row with an empty list does not show its element type."""
    import pyarrow as pa

    text = pa.string()
    image = pa.struct([("bytes", pa.binary()), ("path", text)])
    open_ = pa.struct(
        [(k, text) for k in ("Type", "Question", "Ground_Truth", "Reasoning", "Forget_Attributes")]
    )
    mask = pa.struct([(k, text) for k in ("Type", "Question", "Ground_Truth")])
    options = pa.struct([(letter, text) for letter in "ABCD"[:N_OPTIONS]])
    choice = pa.struct([("Question", text), ("Options", options), ("Correct_Answer", text)])
    types = {
        "image": image,
        "images": pa.list_(image),
        "Generation_Task": pa.list_(open_),
        "Mask_Task": pa.list_(mask),
        "Classification_Task": pa.struct(
            [(f"{label}_Questions", pa.list_(choice)) for label in mllmu.MODALITIES]
        ),
    }
    return pa.schema([(column, types.get(column, text)) for column in row])
