"""Whether the forgotten attribute and the person's identity can still be read after steering, block by block."""

import argparse
import time
from collections.abc import Iterable, Sequence

from rich.console import Console

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark
from rmuse_interp.diagnostics.readings import mention, read_out
from rmuse_interp.diagnostics.verdicts import Verdict, conclusion, spelled
from rmuse_interp.edits.plan import Modality
from rmuse_interp.fitting.collect import Query
from rmuse_interp.lens.bridge import to_bridge
from rmuse_interp.maths.statistics import wilson
from rmuse_interp.parts.pooled import Pooled
from rmuse_interp.studies.common import MODALITIES, Record, opened, percent, print_table, steered_blocks
from rmuse_interp.studies.fits import World, working
from rmuse_interp.studies.leakage import Asked, Group, Material, asked_of, chosen, collected
from rmuse_interp.studies.probing import across_people, lens_rows, probed, sparse_rows, tasks_of

SCHEMA = "rmuse-leakage-by-layer/1"
SPLITS = {"forget": ("forget", "test"), "retain": ("retain", "retain_test")}


def run(given: argparse.Namespace) -> Record:
    """Make the record of `leakage_by_layer.json`.

    Raises:
        RMuseError: bad arguments, a missing file, too few examples for any probe; all before the first long pass.
    """
    if given.others < 1:
        raise RMuseError(f"--others of at least 1 was required, got {given.others}")
    lens, benchmark = opened(given, given.forget)
    questions, left_out = selected(benchmark, given)
    with working(given, lens, benchmark) as world:
        (fitted,) = world.presets(["calibrated"]).values()
        read = time.monotonic()
        record: Record = {
            key: [] for key in ("probes", "controls", "sparse", "lens", "verdicts", "conclusions")
        }
        materials = [
            collected(world, fitted.plan, group, modality, asked)
            for (group, modality), asked in questions.items()
        ]
        for material in materials:
            probed(record, material, left_out, given.seed, world.progress)
        bridge = to_bridge(lens)
        for material in materials:
            record["lens"] += lens_rows(bridge, material, given.seed)
            if material.group == "forget":
                across_people(record, material, learnt(world, material), left_out, given.seed)
                record["sparse"] += sparse_rows(material, given.seed)
        conclude(record, materials)
    origin = {
        "preset": fitted.preset,
        "bundle": None if given.bundle is None else fitted.report,
        "layers": steered_blocks(fitted.plan),
        "others": given.others,
        "seconds_without_fitting": round(time.monotonic() - read, 1),
    }
    asked = [about(material) for material in materials]
    return world.record(SCHEMA, origin, questions=asked, left_out=left_out, **record)


def selected(
    benchmark: Benchmark, given: argparse.Namespace
) -> tuple[dict[tuple[Group, Modality], list[Asked]], list[Record]]:
    """The questions of every group and kind of query that can be probed, and the reasons why others cannot.

    Raises:
        RMuseError: none can be probed; states the first reason.
    """
    found: dict[tuple[Group, Modality], list[Asked]] = {}
    left_out: list[Record] = []
    errors: list[RMuseError] = []
    for modality in MODALITIES:
        pool = asked_of(benchmark, SPLITS["forget"], modality)
        try:
            asked = chosen(pool, given.limit, given.seed)
            tasks_of("identity", asked, [a.id for a in asked], given.seed)
        except RMuseError as error:
            errors.append(error)
            left_out.append({"group": "forget", "modality": modality, "what": "all", "why": str(error)})
            continue
        found["forget", modality] = asked
        names = list(dict.fromkeys(a.attribute for a in asked))
        people = len({a.person for a in asked})
        others = asked_of(benchmark, SPLITS["retain"], modality, people, given.seed)
        rest = chosen(others, given.limit, given.seed, names)
        try:
            tasks_of("identity", rest, [a.id for a in rest], given.seed)
            found["retain", modality] = rest
        except RMuseError as error:
            left_out.append({"group": "retain", "modality": modality, "what": "all", "why": str(error)})
    if not found:
        raise errors[0]
    return found, left_out


def learnt(world: World, material: Material) -> tuple[list[Asked], dict[str, Pooled]]:
    """Questions about retained people for the same attributes, and their unsteered states, to learn values from."""
    lens, benchmark, given = world.lens, world.benchmark, world.given
    pool = asked_of(benchmark, ("retain",), material.modality, given.others, given.seed)
    names = list(dict.fromkeys(a.attribute for a in material.asked))
    asked = chosen(pool, len(pool), given.seed, names)
    queries = [
        Query(a.id, a.example.prompt(), a.example.image, a.example.response(benchmark.delimiters))
        for a in asked
    ]
    values = {a.id: (a.value, *benchmark.aliases.get(a.value, ())) for a in asked}
    found = read_out(
        lens,
        queries,
        ["prompt_end", "recall"],
        secrets=values,
        delimiters=benchmark.delimiters,
        batch_size=given.batch_size,
        progress=world.progress,
        label=f"{material.modality}: others",
    )
    return asked, {str(place): states for place, states in found.states.items()}


def conclude(record: Record, materials: Sequence[Material]) -> None:
    """Add one sentence per group, kind of query and target, from the verdicts, the logit lens and the responses."""
    key = ("group", "modality", "target")
    for labels in dict.fromkeys(tuple(v[k] for k in key) for v in record["verdicts"]):
        mine = [v for v in record["verdicts"] if tuple(v[k] for k in key) == labels]
        says = conclusion({placed(v): verdict_of(v) for v in mine})
        sinks = [
            r["layer"]
            for r in record["lens"]
            if (r["group"], r["modality"], r["token"], r["side"]) == (*labels[:2], "value", "after")
            and r["drop"]["low"] > 0
        ]
        if labels[2] == "attribute" and sinks:
            says += f"; the model's own unembedding gives the value less from block {min(sinks)} on"
        told = [
            c
            for c in record["controls"]
            if tuple(c[k] for k in key) == labels
            and c["control"] == "words"
            and (c["place"], c["side"]) == ("prompt_end", "before")
            and c["readable"]
        ]
        if told:
            says += f"; the prompt's words tell it by themselves (a probe of them: {100 * told[0]['accuracy']:.0f} %)"
        material = next(x for x in materials if (x.group, x.modality) == labels[:2])
        if material.responses:
            says += f"; the steered model says a secret in {len(spoken(material))} of {len(material.asked)} responses"
        found = {**dict(zip(key, labels, strict=True)), "hidden_from": least(v["hidden_from"] for v in mine)}
        record["conclusions"].append({**found, "words_tell": bool(told), "says": says})


def placed(verdict: Record) -> str:
    """A place in words."""
    words = "" if verdict["words"] == "prompt" else f" ({verdict['words']} words)"
    return (
        f"{verdict['place']}{words}{' by probes of other people' if verdict['held_out'] == 'person' else ''}"
    )


def verdict_of(row: Record) -> Verdict:
    """The verdict of a row."""
    return Verdict(**{k: row[k] for k in ("kind", "hidden_from", "back_from", "before", "after")})


def least(blocks: Iterable[int | None]) -> int | None:
    """The lowest block, Nones left out; None if there is none."""
    return min((b for b in blocks if b is not None), default=None)


def spoken(material: Material) -> list[str]:
    """Ids of the questions whose response by the steered model states a secret."""
    secrets = {a.id: a.secrets for a in material.asked}
    return [i for i, text in material.responses.items() if mention(text, secrets[i]) is not None]


def about(material: Material) -> Record:
    """The questions of one group and kind of query, for the record."""
    asked = material.asked
    return {
        "group": material.group,
        "modality": material.modality,
        "n": len(asked),
        "people": len({a.person for a in asked}),
        "renderings": len({a.rendering for a in asked}),
        "attributes": list(dict.fromkeys(a.attribute for a in asked)),
        "steered": sum(f is not False for f in material.fired.values()),
        "read": {
            f"{c.words}/{c.place}": len(c.before or c.after or ()) for c in (*material.cells, material.recall)
        },
        "says_secret": percent(wilson(len(spoken(material)), len(asked))) if material.responses else None,
        "empty": dict(material.empty),
        "responses": dict(material.responses),
    }


def show(record: Record) -> None:
    """Print what can be read at which block, then the conclusions."""
    names = "group, queries, target, held out, place, words, before, after (same probe), after (trained anew)"
    key = ("group", "modality", "target", "held_out", "place", "words")
    last = record["provenance"]["n_layers"] - 1
    rows = []
    for v in record["verdicts"]:
        mine = [r for r in record["probes"] if all(r[k] == v[k] for k in key) and r["layer"] == last]
        cells = {r["side"]: f"{100 * r['accuracy']:.0f} \\[{100 * r['chance']:.0f}]" for r in mine}
        sides = (cells.get(side, "–") for side in ("before", "moved", "after"))
        hidden = "–" if v["hidden_from"] is None else str(v["hidden_from"])
        rows.append((*(v[k] for k in key), *sides, v["kind"], hidden, spelled(v["after"]) or "–"))
    headings = (*names.split(", "), "verdict", "hidden from", "read anew at")
    print_table("accuracy of linear probes at the last block (%), chance in brackets", headings, rows)
    for line in lines(record):
        Console(width=max(150, Console().width)).print(line, highlight=False)


def lines(record: Record) -> Iterable[str]:
    """The conclusions, and what was left out or empty, as sentences."""
    for c in record["conclusions"]:
        yield f"{c['group']}, {c['modality']} queries, {c['target']}: {c['says']}."
    for q in record["questions"]:
        for where, ids in q["empty"].items():
            yield (
                f"nothing to read: {q['group']}, {q['modality']}, {where} of {len(ids)} of {q['n']} questions "
                f"({', '.join(ids[:3])}{', …' if len(ids) > 3 else ''})"
            )
    for row in record["left_out"]:
        yield "left out: " + ", ".join(f"{v}" for k, v in row.items() if k != "why") + f": {row['why']}"
