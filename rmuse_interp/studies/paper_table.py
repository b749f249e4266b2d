"""The paper's main table: vanilla and R-MUSE on MLLMU-Bench, at several forget rates."""

import argparse
import functools
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rich.progress import Progress

from rmuse_interp import RMuseError, __version__
from rmuse_interp.data import Benchmark, Example, load_benchmark
from rmuse_interp.data.content import content
from rmuse_interp.data.prompts import generation_prompt
from rmuse_interp.data.store import digest
from rmuse_interp.data.views import restated
from rmuse_interp.edits.plan import Modality
from rmuse_interp.evaluate.judges import RulesJudge
from rmuse_interp.evaluate.metrics import Metric
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.evaluate.scores import measure
from rmuse_interp.fitting import assemble, check, enough, gather, traced
from rmuse_interp.fitting.elicit import TEMPLATES, Template, Traces, as_asked, asked_with
from rmuse_interp.lens.identity import depends
from rmuse_interp.lens.lens import LensModel, load_model
from rmuse_interp.method.rmuse import PRESETS, Evidence, PresetName, RMuse
from rmuse_interp.runs import run as running
from rmuse_interp.runs.progress import Bars
from rmuse_interp.runs.run import Method
from rmuse_interp.studies import common
from rmuse_interp.studies.common import Record, of_metric
from rmuse_interp.studies.paper import COLUMNS, METRICS, PAPER, markdown

SCHEMA = "rmuse-paper-table/1"
STEM = "paper_table"
METHODS = ("vanilla", *(f"rmuse/{preset}" for preset in reversed(PRESETS)))
SHORT_TOKENS = 50
"""Maximum number of new tokens per answer, as in MLLMU-Bench."""
REASONED = ("ril", "ril_explicit", "ril_implicit", "rcr")
"""Metrics of the responses with reasoning; all others are of the short responses."""


@dataclass(frozen=True, eq=False)
class Questions:
    """The questions at one forget rate: asked for a short answer as in MLLMU-Bench, and again with reasoning.

    Attributes:
        put: the benchmark with its questions worded for reasoning, and the matching delimiters.
        template: that wording; None for the benchmark's own, which matches its reasoning.
        short: split → questions of all three tasks.
        reasoned: split → its open questions.
    """

    benchmark: Benchmark
    put: Benchmark
    template: Template | None
    short: dict[str, list[Example]]
    reasoned: dict[str, list[Example]]

    @property
    def counts(self) -> dict[str, int]:
        """Number of questions asked of each method."""
        return {
            form: sum(map(len, splits.values()))
            for form, splits in (("short", self.short), ("reasoned", self.reasoned))
        }


def run(given: argparse.Namespace) -> Record:
    """Make the record of `paper_table.json`.

    Raises:
        RMuseError: bad arguments, no model, a benchmark that has none of the rates; all before the first long pass.
    """
    began = time.monotonic()
    names = [name.strip() for name in given.methods.split(",")]
    unknown = [name for name in names if name not in METHODS]
    if unknown or len(set(names)) < len(names):
        raise RMuseError(f"--methods takes {', '.join(METHODS)}, each once, got {given.methods!r}")
    if given.reasoning_tokens < 1:
        raise RMuseError(f"--reasoning-tokens of at least 1 was required, got {given.reasoning_tokens}")
    asked, failed = opened(given)
    bundles = bundles_of(given, asked)
    lens = load_model(given.model, device=given.device, dtype=given.dtype)
    first = next(iter(asked.values()))
    running.probe(lens, next(e for examples in first.short.values() for e in examples))
    cells: list[Record] = []
    for rate in given.forget:
        mine = [*names, *(name for name, (_, at) in bundles.items() if at == rate)]
        if rate in failed:
            cells += [_failed(rate, name, failed[rate]) for name in mine]
            continue
        n = asked[rate].counts
        print(
            f"{rate} %: {n['short']} questions, {n['reasoned']} of them again with reasoning, for each of "
            f"{', '.join(mine)}",
            file=sys.stderr,
        )
        with Bars() as progress:
            fits = fits_at(given, lens, asked[rate], rate, progress)
            for name in mine:
                begun = time.monotonic()
                try:
                    fitted = None
                    if name in bundles:
                        fitted = RMuse.load(bundles[name][0], lens)
                    elif name != METHODS[0]:
                        fitted = fits(next(p for p in PRESETS if name == f"rmuse/{p}"))
                    method = Method(name, lens, None if fitted is None else fitted.plan)
                    rows = rows_of(given, method, asked[rate], rate, progress)
                except Exception as error:  # of any kind: the other cells go on
                    if given.debug:
                        traceback.print_exc()
                    cells.append(_failed(rate, name, error))
                else:
                    cells.append(
                        {
                            "forget": rate,
                            "method": name,
                            "error": None,
                            "rows": rows,
                            "fit": None if fitted is None else _fit(fitted),
                            "seconds": round(time.monotonic() - begun, 1),
                        }
                    )
    origin = common.provenance(
        given,
        lens,
        first.benchmark,
        began,
        judge=RulesJudge.name,
        max_new_tokens=given.max_new_tokens,
        reasoning_tokens=given.reasoning_tokens,
        questions={str(rate): q.counts for rate, q in asked.items()},
        template=None if first.template is None else first.template.record(),
    )
    del origin["benchmark"]["forget"]
    return {
        "schema": SCHEMA,
        "provenance": origin,
        "forget": list(given.forget),
        "columns": COLUMNS,
        "cells": cells,
        "paper": [row for row in PAPER if row["forget"] in given.forget],
    }


def opened(given: argparse.Namespace) -> tuple[dict[int, Questions], dict[int, Exception]]:
    """The questions of every usable rate, and the error of each other rate.

    Raises:
        RMuseError: every rate has an error, or a rate is given twice.
    """
    if len(set(given.forget)) < len(given.forget):
        raise RMuseError(f"--forget takes each rate once, got {' '.join(map(str, given.forget))}")
    found: dict[int, Questions] = {}
    failed: dict[int, Exception] = {}
    for rate in given.forget:
        try:
            found[rate] = questions_of(given, load_benchmark(given.data, forget=rate))
        except RMuseError as error:
            failed[rate] = error
    if not found:
        raise next(iter(failed.values()))
    return found, failed


def questions_of(given: argparse.Namespace, benchmark: Benchmark) -> Questions:
    """The questions to ask of a benchmark.

    Raises:
        RMuseError: as `running.choose`; or no values to find leaks by.
    """
    benchmark.require_attributes()
    template = None if benchmark.has_reasoning else TEMPLATES[given.template]
    chosen = running.choose(benchmark, given.limit, given.seed)
    splits = {split: chosen[split] for split in COLUMNS if split in chosen}
    return Questions(
        benchmark,
        benchmark if template is None else as_asked(benchmark, template),
        template,
        {split: [_short(e) for e in some] for split, some in splits.items()},
        {
            split: [e if template is None else restated(e, template) for e in some if e.kind == "generation"]
            for split, some in splits.items()
        },
    )


def _short(example: Example) -> Example:
    """The question as MLLMU-Bench words it; for multiple choice and cloze, `Example.prompt` does so."""
    if example.kind != "generation":
        return example
    return example.changed(question=generation_prompt(example.question))


def bundles_of(
    given: argparse.Namespace, asked: Mapping[int, Questions]
) -> dict[str, tuple[Path, int | None]]:
    """Name in the table → folder and forget rate of each bundle.

    Raises:
        RMuseError: no bundle, or one of a rate not requested, or one that expects another wording of questions.
    """
    found: dict[str, tuple[Path, int | None]] = {}
    for folder in given.bundle:
        bundle = RMuse.load(folder)
        rate = bundle.report.get("benchmark", {}).get("forget")
        if rate not in given.forget:
            raise RMuseError(
                f"{folder}: a bundle fitted at one of --forget {' '.join(map(str, given.forget))} was required, got one "
                f"at {rate}; add --forget {rate}"
            )
        put = asked_with(bundle.report)
        if rate in asked and put is not None and replace(put, direct="") != _stepwise(asked[rate].template):
            raise RMuseError(
                f"{folder}: a bundle whose questions are put as --template {given.template} puts them was required, got "
                f"{put.stepwise!r}, {' … '.join(put.delimiters)}; choose the --template it was fitted with"
            )
        name = f"rmuse/{bundle.preset}@{folder.resolve().name}"
        if name in found:
            raise RMuseError(f"--bundle takes folders of distinct names, got {folder.resolve().name!r} twice")
        found[name] = (folder, rate)
    return found


def _stepwise(template: Template | None) -> Template | None:
    return None if template is None else replace(template, direct="")


def fits_at(
    given: argparse.Namespace, lens: LensModel, asked: Questions, rate: int, progress: Progress
) -> Callable[[PresetName], RMuse]:
    """Preset → its bundle at one rate, from the folder if kept there; all presets are fitted on the same evidence."""
    benchmark, folder = asked.benchmark, given.out / STEM
    limit = enough(benchmark, given.fit_limit)
    settings = {"limit": limit, "batch_size": given.batch_size, "seed": given.seed}

    @functools.cache
    def evidence() -> tuple[Benchmark, dict[Modality, Evidence]]:
        traces: Traces = "given" if benchmark.has_reasoning else "composed"
        check(lens, benchmark, traces=traces)
        own = traced(
            lens,
            benchmark,
            traces,
            asked.template,
            cache=folder / "own",
            progress=progress,
            max_new_tokens=given.reasoning_tokens,
            **settings,
        )
        return own, gather(lens, own, progress=progress, **settings)

    @functools.cache
    def origin() -> Record:
        template = None if asked.template is None else asked.template.record()
        return {
            **settings,
            "version": __version__,
            "template": template,
            "tokens": given.reasoning_tokens,
            "of": digest(depends(lens), content(benchmark)),
        }

    def fitted(preset: PresetName) -> RMuse:
        place = folder / "bundles" / f"{rate}-{preset}"
        try:
            kept = RMuse.load(place, lens)
            if kept.report.get("provenance") == origin():
                return kept
        except (RMuseError, OSError, ValueError, KeyError):
            pass  # missing, damaged, or of other weights: fitted below
        own, states = evidence()
        bundle = assemble(lens, own, states, preset, seed=given.seed, progress=progress)
        bundle.report["provenance"] = origin()
        bundle.save(place)
        return bundle

    return fitted


def rows_of(
    given: argparse.Namespace, method: Method, asked: Questions, rate: int, progress: Progress
) -> list[Record]:
    """`METRICS` of one method at one rate for every split: over all questions, and over image and text separately."""
    forms = (
        ("short", asked.benchmark, asked.short, given.max_new_tokens),
        ("reasoned", asked.put, asked.reasoned, given.reasoning_tokens),
    )
    found = []
    for form, benchmark, questions, tokens in forms:
        answers = running.run(
            [method],
            questions,
            delimiters=benchmark.delimiters,
            max_new_tokens=tokens,
            batch_size=given.batch_size,
            folder=given.out / STEM / "answers" / f"{rate}-{form}",
            progress=progress,
        )
        for split, examples in questions.items():
            said = [t for t in answers.transcripts if t.split == split]
            for which in ("all", "image", "text"):
                rows = [t for t in said if which in ("all", t.modality)]
                found += _rows(rows, examples, benchmark, form, split, which, given.seed)
    return found


def _rows(
    rows: list[Transcript],
    examples: list[Example],
    benchmark: Benchmark,
    form: str,
    split: str,
    which: str,
    seed: int,
) -> list[Record]:
    measured = measure(rows, benchmark, {e.id: e for e in examples}, seed=seed)
    return [
        {"split": split, "questions": which, "metric": name, **_value(measured[name])}
        for name in METRICS
        if (name in REASONED) == (form == "reasoned")
    ]


def _value(metric: Metric) -> Record:
    more = {"parse_failures": metric.parse_failures, "unjudged": metric.unjudged}
    return of_metric(metric) | more


def _fit(bundle: RMuse) -> Record:
    """The origin of a bundle's fit and the blocks it steers, for the record."""
    return {
        "traces": bundle.report.get("traces"),
        "steered": {e.modality or "any": list(e.layers) for e in bundle.plan},
        "delimiters": bundle.report.get("delimiters"),
    }


def _failed(rate: int, name: str, error: Exception) -> Record:
    said = " ".join(str(error).split())
    kind = "" if isinstance(error, RMuseError) else f"{type(error).__name__}: "
    return {"forget": rate, "method": name, "error": kind + said, "rows": [], "fit": None, "seconds": None}


def failures(record: Record) -> list[str]:
    """The rates and methods that failed."""
    return [f"{c['forget']} %, {c['method']}" for c in record["cells"] if c["error"] is not None]


def show(record: Record) -> None:
    """Print the Markdown table as in the file."""
    print(markdown(record))
