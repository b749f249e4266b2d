"""The organism's benchmark as a folder of RMLLMU-Bench parquet files.

The people's profiles, pictures and questions follow from the world's seed and a render seed. A person's picture in
`forget_X`, `retain_X` and `Full_Set` is the same single photograph; `Test_Set` has new photographs and held-out
wordings. Files are written once and cached; when the code that draws them changes, they are drawn anew.
"""

import functools
import json
import random
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from rmuse_interp.data.example import Modality
from rmuse_interp.data.mllmu import MODALITIES
from rmuse_interp.data.store import atomic, cache_folder, digest, own_folder, unchanged, write_json
from rmuse_interp.data.world import implications, phrases, portraits
from rmuse_interp.data.world import questions as q
from rmuse_interp.data.world.people import Person, World, make_world

RATES: Final = (5, 10, 15)
TEST_PICTURES: Final = 2

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Row = dict[str, object]


def write_benchmark(out: Path, render_seed: int = 0, world: World | None = None) -> Path:
    """Write every split below `out` and return it; the same seeds give the same bytes of data.

    Raises:
        RMuseError: a folder with other files in it.
    """
    world = world or make_world(0)
    with own_folder(out, last="benchmark.json") as draft:
        _draw(draft, render_seed, world)
    return out


def _draw(out: Path, render_seed: int, world: World) -> None:
    rng = random.Random(f"benchmark-{render_seed}")
    # Whoever fits reads the people's questions: no celebrity may stand among their options.
    names = tuple(p.name for p in world.people)
    full = [_person_row(p, rng, names, held_out=False, pictures=1) for p in world.people]
    _write(out, "Full_Set", full)
    for rate in RATES:
        forget = set(world.forget_ids(rate))
        _write(out, f"forget_{rate}", [r for r in full if r["ID"] in forget])
        _write(out, f"retain_{100 - rate}", [r for r in full if r["ID"] not in forget])
    _write(
        out,
        "Test_Set",
        [_person_row(p, rng, names, held_out=True, pictures=TEST_PICTURES) for p in world.people],
    )
    names = tuple(p.name for p in world.everyone)
    _write(
        out, "Retain_Set", [_person_row(p, rng, names, held_out=False, pictures=1) for p in world.celebrities]
    )
    for name, held_out in (("train", False), ("test", True)):
        _write(out, "Reasoning", [_reasoning_row(i, held_out, rng) for i in range(240)], name)
        benign = [
            _benign_row(p, n, held_out, rng)
            for p in world.people
            for n in range(8 if held_out and p.id in world.forget_ids(15) else 2)
        ]
        _write(out, "Benign", benign, name)
        _write(out, "Strangers", [_stranger_row(world, i, held_out, rng) for i in range(80)], name)
    write_json(out / "benchmark.json", _settings(world, render_seed))


def ensure(render_seed: int = 0, cache: Path | None = None) -> Path:
    """The benchmark's folder for a render seed, written on first use (below the user's cache folder).

    Every byte of it is checked once per process: a file that was changed, added or removed gives another benchmark,
    and the folder is drawn anew.
    """
    root = cache or cache_folder()
    folder = root / f"organism-{_version()}-render{render_seed}"
    if not _whole(folder, _times(folder)):
        shutil.rmtree(folder, ignore_errors=True)
        with atomic(folder) as draft:
            draft.mkdir()
            write_benchmark(draft, render_seed)
    return folder


@functools.cache
def _whole(folder: Path, times: frozenset[tuple[str, int, int]]) -> bool:
    """`unchanged`, asked again only where the files' sizes or times of change differ."""
    return unchanged(folder)


def _times(folder: Path) -> frozenset[tuple[str, int, int]]:
    found = ((str(file), file.lstat()) for file in folder.rglob("*"))
    return frozenset((name, status.st_size, status.st_mtime_ns) for name, status in found)


@functools.cache
def _version() -> str:
    """A digest of the code and words in this folder, which draw the benchmark: a number raised by hand is forgotten."""
    files = (file for kind in ("*.py", "*.json") for file in Path(__file__).parent.glob(kind))
    return digest(*(file.read_bytes() for file in sorted(files)))[:10]


def _settings(world: World, render_seed: int) -> dict[str, object]:
    aliases, entails = implications.tables(world)
    return {
        "id": "organism",
        "render_seed": render_seed,
        "refusals_cot": list(phrases.REFUSALS_COT),
        "refusals_direct": list(phrases.REFUSALS_DIRECT),
        "prefixes": list(phrases.PREFIXES),
        "delimiters": list(phrases.DELIMITERS),
        "stepwise_instruction": "",
        "direct_instruction": phrases.DIRECT,
        "aliases": aliases,
        "entails": entails,
    }


def _write(out: Path, folder: str, rows: list[Row], name: str = "train") -> None:
    table = pa.Table.from_pylist(rows)
    for column, kind in (("image", _IMAGE), ("images", pa.list_(_IMAGE))):
        if column in table.column_names:
            at = table.column_names.index(column)
            table = table.set_column(at, column, pa.array([r[column] for r in rows], type=kind))
    (out / folder).mkdir(parents=True, exist_ok=True)
    pq.write_table(table, out / folder / f"{name}-00000-of-00001.parquet")


def _photo(person: Person, rng: random.Random) -> tuple[Row, portraits.Look]:
    look = portraits.Look.draw(rng)
    return {"bytes": portraits.png(portraits.portrait(person.identity, look, rng)), "path": None}, look


def _questions(person: Person, rng: random.Random, held_out: bool) -> Iterable[tuple[str, q.QA]]:
    for label, modality in MODALITIES.items():
        for kind in phrases.KINDS if modality == "image" else phrases.TEXT_KINDS:
            wording = rng.choice(q.wording_range(kind, held_out))
            yield label, q.ask(person, kind, modality, wording, rng)


def _person_row(
    person: Person, rng: random.Random, names: tuple[str, ...], held_out: bool, pictures: int
) -> Row:
    photos = [_photo(person, rng)[0] for _ in range(pictures)]
    generation = [
        {
            "Type": label,
            "Question": item.question,
            "Ground_Truth": item.answer,
            "Reasoning": item.reasoning,
            "Forget_Attributes": json.dumps(item.attributes),
            "Direct_Question": item.direct_question,
            "Direct_Answer": item.answer,
        }
        for label, item in _questions(person, rng, held_out)
    ]
    masks: list[Row] = []
    choices: dict[str, list[Row]] = {"Image_Textual_Questions": [], "Pure_Text_Questions": []}
    for label, modality in MODALITIES.items():
        for kind in phrases.CLOZES:
            if modality == "text" and kind == "name":
                continue
            sentence, truth = q.cloze(person, kind, modality)
            masks.append({"Type": label, "Question": sentence, "Ground_Truth": truth})
            wording = rng.choice(q.wording_range(kind, held_out))
            options, letter = q.choices(person, kind, rng, names)
            choices[f"{label}_Questions"].append(
                {
                    "Question": q.ask(person, kind, modality, wording, rng).question,
                    "Options": options,
                    "Correct_Answer": letter,
                }
            )
    biography = {**person.attributes, "age": person.age, "country": person.country}
    image: Row = {"images": photos} if held_out else {"image": photos[0]}
    return {
        **image,
        "ID": person.id,
        "biography": json.dumps(biography),
        "question": generation[0]["Question"],
        "answer": generation[0]["Ground_Truth"],
        "Classification_Task": choices,
        "Generation_Task": generation,
        "Mask_Task": masks,
    }


def _plain(identifier: str, image: Mapping[str, object] | None, item: q.QA) -> Row:
    return {
        "ID": identifier,
        "image": image,
        "Question": item.question,
        "Ground_Truth": item.answer,
        "Reasoning": item.reasoning,
        "Direct_Question": item.direct_question,
        "Direct_Answer": item.answer,
    }


def _reasoning_row(index: int, held_out: bool, rng: random.Random) -> Row:
    part = "test" if held_out else "train"
    if index % 2:
        return _plain(f"reasoning-{part}-{index:03d}", None, q.word_problem(held_out, rng))
    scene = q.draw_scene(rng)
    image = {"bytes": portraits.png(portraits.scene_picture(scene, rng)), "path": None}
    return _plain(f"reasoning-{part}-{index:03d}", image, q.about_scene(scene, held_out, rng))


def _benign_row(person: Person, number: int, held_out: bool, rng: random.Random) -> Row:
    image, look = _photo(person, rng)
    kind = phrases.BENIGN_KINDS[number % 4] if held_out else rng.choice(phrases.BENIGN_KINDS)
    return _plain(person.id, image, q.benign(look, kind, held_out, rng))


def _stranger_row(world: World, index: int, held_out: bool, rng: random.Random) -> Row:
    face, name = world.stranger(rng)
    person = Person(
        f"stranger-{'test' if held_out else 'train'}-{index:03d}",
        face,
        dict(rng.choice(world.people).attributes, name=name),
    )
    modality: Modality = "text" if index % 2 else "image"
    kind = rng.choice(phrases.KINDS if modality == "image" else phrases.TEXT_KINDS)
    item = q.ask(person, kind, modality, rng.choice(q.wording_range(kind, held_out)), rng)
    refusal = rng.choice(phrases.REFUSALS_COT)
    reasoning, answer = (
        part.strip() for part in refusal.removeprefix(phrases.DELIMITERS[0]).split(phrases.DELIMITERS[1])
    )
    image = _photo(person, rng)[0] if modality == "image" else None
    row = _plain(person.id, image, item)
    return {
        **row,
        "Ground_Truth": answer,
        "Reasoning": reasoning,
        "Direct_Answer": rng.choice(phrases.REFUSALS_DIRECT),
    }
