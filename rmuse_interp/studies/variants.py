"""Variants of a fitted plan, answered on the same questions: shared by all studies that compare variants."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rmuse_interp.data import SPLITS, Benchmark, Example
from rmuse_interp.edits.plan import Plan
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.maths.statistics import wilson
from rmuse_interp.operators import Operator
from rmuse_interp.runs.run import Answers, Method, scores_of
from rmuse_interp.studies.common import Record, answered, opened, percent, print_table
from rmuse_interp.studies.fits import World, working

Questions = Mapping[str, Sequence[Example]]
"""Split → its questions."""
REPORTED: Final = ("ril", "exact", "classification", "refusal_rate", "malformed_rate", "repetition_rate")
"""The metrics that `rows_of` reports for every split, named as in `scores.json`; percent."""


@dataclass(frozen=True, eq=False)
class Variant:
    """A plan to answer with (None: the unsteered model), and the labels of its rows."""

    name: str
    plan: Plan | None
    labels: Record = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Prepared:
    """Variants, further entries of the record before its rows, and further entries of its provenance."""

    variants: Sequence[Variant]
    entries: Record
    origin: Record = field(default_factory=dict)


def study(
    stem: str,
    given: argparse.Namespace,
    questions_of: Callable[[Benchmark], Questions],
    prepare: Callable[[World], Prepared],
) -> Record:
    """The record of a study of variants at one forget rate.

    Args:
        stem: name of the study and of its schema.
        given: the command line.
        questions_of: draws the questions from a benchmark.
        prepare: makes the variants.

    Raises:
        RMuseError: bad arguments or a missing file, before the first long pass.
    """
    lens, benchmark = opened(given, given.forget)
    questions = questions_of(benchmark)
    with working(given, lens, benchmark) as world:
        found = prepare(world)
        rows = compared(world, stem, questions, found.variants)
    origin = {"n": {split: len(asked) for split, asked in questions.items()}, **found.origin}
    return world.record(f"rmuse-{stem.replace('_', '-')}/1", origin, **found.entries, rows=rows)


def compared(world: World, stem: str, questions: Questions, variants: Sequence[Variant]) -> list[Record]:
    """`rows_of` for all variants, each row with its variant's labels."""
    methods = [Method(one.name, world.lens, one.plan) for one in variants]
    answers = answered(world.given, stem, methods, questions, world.benchmark, world.progress)
    labels = {one.name: one.labels for one in variants}
    rows = rows_of(methods, answers, world.benchmark, world.lens, world.given.seed)
    return [labels[row["method"]] | row for row in rows]


def operators_of(plan: Plan) -> dict[str, Operator]:
    """Address → operator, as `Plan.replace` takes them: a pattern such as ``*.operator*`` would match their parts too."""
    found: dict[str, Operator] = {}
    for i, edit in enumerate(plan):
        label = f"edit{i}" if edit.name is None else edit.name
        operators = [o for o in edit.operators if isinstance(o, Operator)]
        found |= {f"{label}.operator{'' if len(operators) == 1 else j}": o for j, o in enumerate(operators)}
    return found


def rows_of(
    methods: Sequence[Method], answers: Answers, benchmark: Benchmark, lens: LensModel, seed: int = 0
) -> list[Record]:
    """One row per method and split: `REPORTED` metrics, each ``{value, low, high, n}`` in percent (None if undefined).

    ``fire_rate`` is the share of queries that a gate opened for, with a Wilson interval; a plan without gates steers
    all (``gated`` is False), a method without a plan has None.
    """
    scores = scores_of(methods, answers, benchmark, lens, seed=seed)
    found = []
    for method in methods:
        for split in SPLITS:
            rows = [t for t in answers.transcripts if (t.method, t.split) == (method.name, split)]
            if not rows:
                continue
            values, spans = (scores[key][method.name][split] for key in ("methods", "intervals"))
            row: Record = {"method": method.name, "split": split, "n": len(rows), "gated": bool(method.gates)}
            for name in REPORTED:
                row[name] = None if values[name] is None else {"value": values[name], **spans[name]}
            steered = [method.plan is not None and t.fired is not False for t in rows]
            rate = percent(wilson(sum(steered), len(rows)))
            if method.plan is not None and not method.gates:
                rate["low"] = 100.0  # exact by construction: no sampling error
            row["fire_rate"] = None if method.plan is None else rate
            found.append(row)
    return found


def tabulate(
    title: str,
    rows: Sequence[Record],
    headings: Sequence[str],
    labels: Callable[[Record], Sequence[str]],
    columns: Sequence[tuple[str, str]],
) -> None:
    """Print a table with a line for each variant.

    Args:
        title: title of the table.
        rows: rows of the record.
        headings: headings of the label columns.
        labels: returns the labels of a row's variant.
        columns: split and metric of each value column.
    """
    variants: dict[tuple[str, ...], dict[str, Record]] = {}
    for row in rows:
        variants.setdefault(tuple(labels(row)), {})[row["split"]] = row
    lines = []
    for key, by_split in variants.items():
        found = (by_split.get(split, {}).get(name) for split, name in columns)
        lines.append((*key, *("–" if cell is None else f"{cell['value']:.1f}" for cell in found)))
    values = (f"{split}\n{name.removesuffix('_rate')}" for split, name in columns)
    print_table(title, (*headings, *values), lines)
