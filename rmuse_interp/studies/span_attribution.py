"""Sources of a leaked token's log-probability, attributed in three ways, before and after steering."""

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from itertools import combinations

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example, sample
from rmuse_interp.diagnostics.attribution import WAYS, Attribution, agreement, attribute, by_span
from rmuse_interp.diagnostics.direct import folded_bridge
from rmuse_interp.diagnostics.gradients import TOLERANCE, require_captum
from rmuse_interp.diagnostics.leaks import PARTS, SOURCES, Found, Leak, Statement, find_leaks
from rmuse_interp.diagnostics.reference import Reference, mean_query
from rmuse_interp.edits.plan import Plan
from rmuse_interp.fitting.collect import Query
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.maths.statistics import Estimate
from rmuse_interp.studies.common import (
    MODALITIES,
    Record,
    estimate,
    opened,
    print_table,
    short,
    steered_blocks,
)
from rmuse_interp.studies.fits import World, working

GROUPS = {"forget": "test", "retain": "retain_test"}
SPANS = (*SOURCES, "here")


def run(given: argparse.Namespace) -> Record:
    """Make the record of `span_attribution.json`.

    Raises:
        RMuseError: bad arguments, a missing file, captum missing, questions without values; all before the first
            long pass.
    """
    if given.gradients < 0 or given.reference < 1:
        raise RMuseError(
            f"--gradients of at least 0 and --reference of at least 1 were required, got {given.gradients} and "
            f"{given.reference}"
        )
    if given.gradients:
        require_captum()
    lens, benchmark = opened(given, given.forget)
    asked, others = chosen(benchmark, given)
    leaks = {
        group: find_leaks(lens, [s for e in examples for s in stated(e, benchmark)], benchmark.delimiters)
        for group, examples in asked.items()
    }
    with working(given, lens, benchmark) as world:
        (fitted,) = world.presets(["calibrated"]).values()
        read = time.monotonic()
        found = explained(world, fitted.plan, asked, leaks, others)
        took = time.monotonic() - read
    origin = {
        "preset": fitted.preset,
        "bundle": None if given.bundle is None else fitted.report,
        "layers": steered_blocks(fitted.plan),
        "n": {group: len(examples) for group, examples in asked.items()},
        "gradients": given.gradients,
        "reference": {m: len(rows) for m, rows in others.items()},
        "steered": {group: sum(one.steered for one in sides["after"]) for group, sides in found.items()},
        "tolerance": TOLERANCE,
        "seconds_without_fitting": round(took, 1),
    }
    each = [
        (group, side, one) for group, sides in found.items() for side, rows in sides.items() for one in rows
    ]
    together = [(group, side, rows) for group, sides in found.items() for side, rows in sides.items()]
    return world.record(
        "rmuse-span-attribution/1",
        origin,
        missing={group: one.missing for group, one in leaks.items()},
        empty={group: empty(one.leaks) for group, one in leaks.items()},
        incomplete=[
            {"group": group, "side": side, **named(one.leak)}
            for group, side, one in each
            if one.gradients is not None and not one.gradients.complete
        ],
        leaks=[row_of(lens, *one) for one in each],
        means=[row for key, rows in grouped(found) for row in means_of(key, rows, given.seed)],
        agreement=[row for one in together for row in agreements(*one, given.seed)],
    )


def chosen(
    benchmark: Benchmark, given: argparse.Namespace
) -> tuple[dict[str, list[Example]], dict[str, list[Example]]]:
    """Group → questions to explain; kind of query → questions about other retained people, for the average query.

    Raises:
        RMuseError: no such questions, or too few retained people to reserve some.
    """
    pools = {group: [e for e in benchmark.scoring(split) if askable(e)] for group, split in GROUPS.items()}
    for group, pool in pools.items():
        if not pool:
            raise RMuseError(
                f"{benchmark.folder}: held-out generation questions with 'Reasoning' and 'Forget_Attributes' were "
                f"required about people to {group}, got none in Test_Set"
            )
    people = sorted({e.person for e in pools["retain"] if e.person is not None})
    if len(people) < 2:
        raise RMuseError(
            f"{benchmark.folder}: at least 2 retained people were required, so that an average query can be made of "
            f"others than those explained, got {len(people)}"
        )
    apart = set(random.Random(given.seed).sample(people, max(1, min(given.reference, len(people) // 2))))
    others = {
        m: sample(
            [e for e in pools["retain"] if e.modality == m and e.person in apart], given.reference, given.seed
        )
        for m in MODALITIES
    }
    pools["retain"] = [e for e in pools["retain"] if e.person not in apart]
    without = [m for m, rows in others.items() if not rows]
    asked = {
        group: sample([e for e in pool if e.modality not in without], given.limit, given.seed)
        for group, pool in pools.items()
    }
    return asked, {m: rows for m, rows in others.items() if rows}


def askable(example: Example) -> bool:
    """Whether the question is about a person, asks for a known value, and is answered with reasoning."""
    return (
        example.kind == "generation"
        and example.person is not None
        and example.reasoning is not None
        and bool(example.attributes)
    )


def stated(example: Example, benchmark: Benchmark) -> list[Statement]:
    """The values that a question's reference response states: the one asked for, and the name if that is another value.

    The attribute asked for is the one whose value is the answer, else the first one.
    """
    pairs = list(example.attributes.items())
    asked = next((name for name, value in pairs if value == example.answer), pairs[0][0])
    names = [name for name, _ in pairs if is_name(name) and name != asked]
    query = Query(example.id, example.prompt(), example.image, example.response(benchmark.delimiters))
    rows = [e for split in GROUPS.values() for e in benchmark.scoring(split)]
    assert example.person is not None
    return [
        Statement(
            query,
            example.question,
            example.attributes[name],
            example.person,
            tuple(sorted({e.attributes[name] for e in rows if name in e.attributes})),
            "identity" if is_name(name) else "attribute",
            PARTS if name == asked else ("reasoning",),
        )
        for name in (asked, *names)
    ]


def is_name(attribute: str) -> bool:
    """Whether an attribute is the person's name."""
    return attribute.casefold() == "name"


def explained(
    world: World,
    plan: Plan,
    asked: Mapping[str, Sequence[Example]],
    leaks: Mapping[str, Found],
    others: Mapping[str, Sequence[Example]],
) -> dict[str, dict[str, list[Attribution]]]:
    """The attributions of all leaks, by group and side."""
    lens, benchmark, given, progress = world.lens, world.benchmark, world.given, world.progress

    def averages(steering: Plan | None, label: str) -> dict[str, Reference]:
        return {
            m: mean_query(
                lens,
                [stated(e, benchmark)[0] for e in rows],
                steering,
                delimiters=benchmark.delimiters,
                progress=progress,
                label=f"average query, {m}{label}",
            )
            for m, rows in others.items()
        }

    plain, moved = averages(None, ""), averages(plan, ", steered")
    bridge = folded_bridge(lens)
    kind = {e.id: e.modality for examples in asked.values() for e in examples}
    found: dict[str, dict[str, list[Attribution]]] = {}
    for group, examples in asked.items():
        some = {e.id for e in sample(examples, given.gradients, given.seed)} if given.gradients else set()
        settings: Record = {
            "gradients": lambda leak, some=some: leak.id in some,
            "progress": progress,
        }
        before = attribute(
            lens,
            leaks[group].leaks,
            lambda leak: plain[kind[leak.id]],
            bridge,
            label=f"{group}, before",
            **settings,
        )
        after = attribute(
            lens,
            leaks[group].leaks,
            lambda leak: moved[kind[leak.id]],
            bridge,
            plan,
            before=before,
            label=f"{group}, after",
            **settings,
        )
        found[group] = {"before": before, "after": after}
    return found


def modality_of(one: Attribution) -> str:
    """Kind of query of a leak."""
    return "text" if one.leak.placed.statement.query.image is None else "image"


def named(leak: Leak) -> Record:
    """The entries that identify a leak."""
    return {"id": leak.id, "what": leak.placed.statement.attribute, "part": leak.part}


def empty(leaks: Sequence[Leak]) -> dict[str, list[Record]]:
    """Span → the leaks that have no token of this span before the predicting token."""
    return {span: [named(leak) for leak in leaks if span not in leak.sources] for span in SOURCES}


def row_of(lens: LensModel, group: str, side: str, one: Attribution) -> Record:
    """The complete row of one leak."""
    slopes, shares = one.gradients, one.direct
    return {
        "group": group,
        "modality": modality_of(one),
        "side": side,
        **named(one.leak),
        "person": one.leak.placed.statement.person,
        "token": lens.tokenizer.decode([one.leak.token]).strip(),
        "steered": one.steered,
        "log_prob": short(one.knockout.log_prob),
        **{
            way: {span: short(one.by_way[way].get(span)) for span in SPANS} if way in one.by_way else None
            for way in WAYS
        },
        "completeness": None
        if slopes is None
        else {
            "difference": short(slopes.difference),
            "error": short(slopes.error),
            "roughness": short(slopes.roughness),
            "jumps": short(slopes.jumps),
            "nodes": slopes.nodes,
            "reached": slopes.complete,
        },
        "logit": {
            "value": short(shares.logit),
            "bias": short(shares.bias),
            "embedding": short(shares.embedding),
            "mlp": short(shares.mlp),
            "edits": short(shares.edits),
        },
    }


def grouped(
    found: Mapping[str, Mapping[str, Sequence[Attribution]]],
) -> list[tuple[Record, list[Attribution]]]:
    """The leaks by group, kind of query, leaked value and place, and side; empty groups are left out."""
    kept: dict[tuple[str, ...], list[Attribution]] = {}
    for group, sides in found.items():
        for side, rows in sides.items():
            for one in rows:
                what = one.leak.placed.statement.attribute
                kept.setdefault((group, modality_of(one), what, one.leak.part, side), []).append(one)
    order = sorted(
        kept, key=lambda key: (list(GROUPS).index(key[0]), key[1], key[2] == "attribute", PARTS.index(key[3]))
    )
    names = ("group", "modality", "what", "part", "side")
    return [(dict(zip(names, key, strict=True)), kept[key]) for key in order]


def means_of(key: Record, rows: Sequence[Attribution], seed: int) -> list[Record]:
    """Mean attribution of every method and span, with intervals over people; null if no leak has the span."""
    return [
        {**key, "way": way, "span": span, **figures(found.get(span))}
        for way in WAYS
        for found in [by_span(rows, way, seed)]
        for span in SPANS
    ]


def agreements(group: str, side: str, rows: Sequence[Attribution], seed: int) -> list[Record]:
    """The agreement of each pair of attribution methods."""
    found = [agreement(rows, first, second, seed) for first, second in combinations(WAYS, 2)]
    return [
        {
            "group": group,
            "side": side,
            "first": one.first,
            "second": one.second,
            "correlation": figures(one.correlation),
            "top": figures(one.top),
            "chance": short(one.chance),
        }
        for one in found
    ]


def figures(mean: Estimate | None) -> Record:
    """A mean as ``{value, low, high, n}``; the interval is null if there is only one person."""
    if mean is None:
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = (mean.low, mean.high) if mean.clusters > 1 else (None, None)
    return estimate(mean.value, low, high, n=mean.n)


def show(record: Record) -> None:
    """Print mean attributions and the agreement of attribution methods."""
    names = ("group", "modality", "what", "part", "way", "side")
    cells: dict[tuple[str, ...], dict[str, Record]] = {}
    for row in record["means"]:
        cells.setdefault(tuple(row[k] for k in names), {})[row["span"]] = row
    rows = [
        (*key, *("–" if spans[s]["value"] is None else f"{spans[s]['value']:.1f}" for s in SPANS))
        for key, spans in cells.items()
        if any(row["n"] for row in spans.values())
    ]
    title = "mean attribution to each span: nats (gradients, knockout), logits (direct)"
    print_table(title, (*names, *SPANS), rows)
    for row in record["agreement"]:
        rho, top = row["correlation"], row["top"]
        if top["n"]:
            said = "–" if rho["value"] is None else f"{rho['value']:.2f}"
            said += "" if rho["low"] is None else f" [{rho['low']:.2f}, {rho['high']:.2f}]"
            print(
                f"{row['group']}, {row['side']}: {row['first']} and {row['second']}: rank correlation {said} "
                f"(n = {rho['n']}), same largest span {100 * top['value']:.0f} % (chance {100 * row['chance']:.0f} %)"
            )
    if record["incomplete"]:
        print(f"gradients that do not add up within {100 * TOLERANCE:g} %: {len(record['incomplete'])}")
