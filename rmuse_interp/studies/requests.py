"""Deletion requests that arrive one by one, compared with a fit on the same people at once."""

import argparse
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example, load_benchmark
from rmuse_interp.evaluate.metrics import Metric, summarise
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.evaluate.scores import measure
from rmuse_interp.fitting import check, fit
from rmuse_interp.fitting.exchange import label_of
from rmuse_interp.fitting.requests import check_request, decided, forget_people, restore_people
from rmuse_interp.lens.lens import load_model
from rmuse_interp.method.rmuse import RMuse
from rmuse_interp.parts.gates import BY_PERSON
from rmuse_interp.runs.run import Method, choose
from rmuse_interp.studies.common import Record, answered, of_metric, print_table, short
from rmuse_interp.studies.fits import World, working

SINGLY, AT_ONCE = "one by one", "at once"
FIGURES = ("ril", "exact", "refusal_rate", "fire_rate")
MARGIN = 1.0
"""Percentage points within which two figures count as the same."""


def run(given: argparse.Namespace) -> Record:
    """Make the record of `requests.json`.

    Raises:
        RMuseError: numbers of people that do not fit the benchmark, or a fit whose gates do not hold people one by one.
    """
    benchmark = load_benchmark(given.data, forget=given.forget, render_seed=given.render_seed)
    queue = in_order(benchmark)
    first = len(benchmark.forget_people)
    if not first <= given.people < len(queue) or not 0 <= given.restore < given.people:
        raise RMuseError(
            f"--people from {first} to {len(queue) - 1} and --restore below it were required, got {given.people} and "
            f"{given.restore}"
        )
    people = queue[: given.people]
    restored = sorted(random.Random(given.seed).sample(people, given.restore))
    lens = load_model(given.model, device=given.device, dtype=given.dtype)
    check(lens, benchmark, given.layers)
    requests: list[Record] = []
    stages: list[Record] = []
    with working(given, lens, benchmark) as world:
        bundle = fitted(world)
        check_request(bundle, benchmark, people[first:], "forget")
        for kind, some in (("forget", people[first:]), ("restore", restored)):
            bundle = requested(world, bundle, kind, some, requests)
            gone = restored if kind == "restore" else []
            seen = replace(world, benchmark=benchmark.forgetting(set(people) - set(gone)))
            stages.append(stage(seen, {SINGLY: bundle, AT_ONCE: fitted(seen)}, gone))
    origin = {
        "max_new_tokens": given.max_new_tokens,
        "fitted_first": first,
        "people": given.people,
        "restored": given.restore,
        "layers": given.layers,
    }
    return world.record("rmuse-requests/1", origin, requests=requests, stages=stages)


def in_order(benchmark: Benchmark) -> list[str]:
    """All people in the order of their requests: forget_X, then larger forget sets by rate, then the others."""
    rates = sorted(int(p.name.partition("_")[2]) for p in benchmark.folder.glob("forget_*"))
    found = [p for p in benchmark.people if p in benchmark.forget_people]
    for rate in (rate for rate in rates if rate > benchmark.forget_rate):
        larger = load_benchmark(benchmark.folder, forget=rate).forget_people
        found += [p for p in benchmark.people if p in larger and p not in found]
    return [*found, *(p for p in benchmark.people if p not in found)]


def fitted(world: World) -> RMuse:
    """`calibrated`, fitted on the benchmark's people to forget, with gates that hold them one by one."""
    given = world.given
    settings = {"limit": given.fit_limit, "batch_size": given.batch_size, "seed": given.seed}
    steered, progress = given.layers, world.progress
    return fit(world.lens, world.benchmark, layers=steered, kinds=BY_PERSON, progress=progress, **settings)


def requested(world: World, bundle: RMuse, kind: str, people: Sequence[str], log: list[Record]) -> RMuse:
    """The bundle after one request per person; each is written to a folder, as for a user, and logged in a row."""
    call = forget_people if kind == "forget" else restore_people
    task = world.progress.add_task(kind, total=len(people))
    lens, benchmark, batch_size = world.lens, world.benchmark, world.given.batch_size
    with tempfile.TemporaryDirectory() as folder:
        for person in people:
            began, worked = time.monotonic(), time.process_time()
            bundle = call(bundle, lens, benchmark, [person], batch_size=batch_size)
            bundle.save(folder)
            took = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - worked}
            counts = decided(bundle, lens, benchmark, person, batch_size=batch_size)
            fires = {name: {"fired": fired, "n": n} for name, (fired, n) in counts.items()}
            times = {name: short(value) for name, value in took.items()}
            log.append({"request": kind, "person": label_of(person), **times, **fires})
            world.progress.advance(task)
    return bundle


def stage(world: World, bundles: Mapping[str, RMuse], restored: Sequence[str]) -> Record:
    """Both bundles on the same questions, split by split."""
    given, lens, view = world.given, world.lens, world.benchmark
    questions = choose(view, given.limit, given.seed)
    if restored:
        again = [e for e in view.scoring("retain_test") if e.person in restored]
        questions["restored"] = again[:: max(1, len(again) // given.limit)]
    every = {e.id: e for examples in questions.values() for e in examples}
    methods = [Method(name, lens, bundle.plan) for name, bundle in bundles.items()]
    asked = {"all": list(every.values())}
    answers = answered(given, "requests", methods, asked, view, world.progress)
    said = {name: {t.id: t for t in answers.transcripts if t.method == name} for name in bundles}
    rows: list[Record] = []
    for split, examples in questions.items():
        transcripts = {name: [said[name][e.id] for e in examples] for name in bundles}
        rows.append({"split": split, **compared(transcripts, view, examples, given.seed)})
    return {
        "people": len(view.forget_people),
        "n": len(every),
        "gates": {name: {m: gate.describe() for m, gate in b.gates.items()} for name, b in bundles.items()},
        "steered": {name: b.plan.layers for name, b in bundles.items()},
        "splits": rows,
    }


def compared(
    transcripts: Mapping[str, Sequence[Transcript]], view: Benchmark, examples: Sequence[Example], seed: int
) -> Record:
    """Figures of both bundles on one split, their differences, and the share of equal decisions."""
    references = {e.id: e for e in examples}
    found: dict[str, dict[str, Metric]] = {}
    for name, rows in transcripts.items():
        found[name] = measure(rows, view, references, seed=seed)
        found[name]["fire_rate"] = summarise("fire_rate", [(t, 100.0 * bool(t.fired)) for t in rows], seed)
    one, other = transcripts[SINGLY], transcripts[AT_ONCE]
    differences: Record = {}
    for name in FIGURES:
        mine, theirs = found[SINGLY][name].per_example, found[AT_ONCE][name].per_example
        paired = [(t, mine[t.id] - theirs[t.id]) for t in one if t.id in mine]
        differences[name] = figure(summarise(name, paired, seed))
    same = [(a, 100.0 * (a.fired == b.fired)) for a, b in zip(one, other, strict=True)]
    return {
        "figures": {name: {k: figure(metrics[k]) for k in FIGURES} for name, metrics in found.items()},
        "differences": differences,
        "agreement": figure(summarise("agreement", same, seed)),
    }


def figure(metric: Metric) -> Record | None:
    """A metric as ``{value, low, high, n}`` in percent; None if it is defined on no question."""
    if metric.value is None or metric.interval is None:
        return None
    return of_metric(metric)


def show(record: Record) -> None:
    """Print both bundles, split by split, and the cost of a request."""
    headings = ("split", "n", "figure", SINGLY, AT_ONCE, "difference [95 %]", "decide alike")
    for found in record["stages"]:
        rows = []
        for row in found["splits"]:
            gaps = {name: gap for name, gap in row["differences"].items() if gap is not None}
            for name, gap in gaps.items():
                sides = (f"{row['figures'][method][name]['value']:.1f}" for method in (SINGLY, AT_ONCE))
                apart = f"{gap['value']:+.2f} \\[{gap['low']:+.2f}, {gap['high']:+.2f}]"
                apart += " *" if abs(gap["value"]) > MARGIN else ""
                alike = f"{row['agreement']['value']:.1f}" if name == "fire_rate" else ""
                rows.append((row["split"], str(gap["n"]), name, *sides, apart, alike))
        print_table(f"{found['people']} people forgotten, percent", headings, rows)
    print(f"*: more than {MARGIN:g} point apart")
    for kind in ("forget", "restore"):
        mine = [one for one in record["requests"] if one["request"] == kind]
        if mine:
            wall, cpu = (sorted(one[key] for one in mine) for key in ("seconds", "cpu_seconds"))
            middle, longest = len(mine) // 2, -1
            print(
                f"{kind}: {len(mine)} requests, median {wall[middle]:.1f} s, longest {wall[longest]:.1f} s "
                f"(processor {cpu[middle]:.1f} s and {cpu[longest]:.1f} s)"
            )
