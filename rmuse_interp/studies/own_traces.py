"""R-MUSE fitted on the benchmark's traces and on the model's own, compared question by question."""

import argparse
from collections.abc import Mapping, Sequence

from rmuse_interp.data import SPLITS, Benchmark, Example
from rmuse_interp.evaluate.metrics import summarise
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.evaluate.scores import measure
from rmuse_interp.fitting import assemble, gather
from rmuse_interp.fitting.elicit import MAX_NEW_TOKENS, as_asked, elicit, template_for
from rmuse_interp.method.rmuse import RMuse
from rmuse_interp.runs.run import Method, choose
from rmuse_interp.studies.common import Record, answered, estimate, opened, print_table, short
from rmuse_interp.studies.fits import working
from rmuse_interp.studies.variants import REPORTED

FITS = ("given", "own")
MARGIN = 1.0
"""Percentage points within which two figures agree."""


def run(given: argparse.Namespace) -> Record:
    """Make the record of `own_traces.json`.

    Raises:
        RMuseError: bad arguments, a missing file, a benchmark without reasoning, a model that does not reason.
    """
    lens, loaded = opened(given, given.forget)
    template = template_for(None, loaded)
    benchmark = as_asked(loaded, template)
    questions = choose(benchmark, given.limit, given.seed)
    with working(given, lens, benchmark) as world:
        settings: Record = {"seed": given.seed, "progress": world.progress}
        reading: Record = settings | {"limit": given.fit_limit, "batch_size": given.batch_size}
        found = elicit(lens, loaded, template=template, max_new_tokens=MAX_NEW_TOKENS, **reading)
        fits = {
            name: assemble(lens, source, gather(lens, source, **reading), **settings)
            for name, source in zip(FITS, (benchmark, found.benchmark), strict=True)
        }
        methods = [Method("vanilla", lens), *(Method(name, lens, fit.plan) for name, fit in fits.items())]
        answers = answered(given, "own_traces", methods, questions, benchmark, world.progress)
    n = {split: len(asked) for split, asked in questions.items()}
    return world.record(
        "rmuse-own-traces/1",
        {"max_new_tokens": given.max_new_tokens, "n": n},
        margin=MARGIN,
        traces=found.record(),
        fits={name: chosen(fit) for name, fit in fits.items()},
        rows=rows_of(answers.transcripts, questions, benchmark, given.seed),
    )


def chosen(fitted: RMuse) -> Record:
    """The choices of a fit, for each kind of query."""
    return {
        modality: {
            "blocks": fitted.report[modality]["steered"],
            "gate": {"kind": gate.kind, "layer": gate.layer, "readout": gate.readout},
        }
        for modality, gate in fitted.gates.items()
    }


def rows_of(
    transcripts: Sequence[Transcript],
    questions: Mapping[str, Sequence[Example]],
    benchmark: Benchmark,
    seed: int = 0,
) -> list[Record]:
    """One row per split and metric: the figure of each method, and `own − given` with its interval; percent.

    ``fire_rate`` and ``identical`` (share of responses that are the same text under both fits) are rows too.
    """
    found = []
    for split in (s for s in SPLITS if questions.get(s)):
        asked = {e.id: e for e in questions[split]}
        said = {
            name: {t.id: t for t in transcripts if (t.method, t.split) == (name, split)}
            for name in ("vanilla", *FITS)
        }
        metrics = {
            name: measure(list(rows.values()), benchmark, asked, seed=seed) for name, rows in said.items()
        }
        values = {
            name: {metric: metrics[name][metric].per_example for metric in REPORTED} for name in metrics
        }
        for name in FITS:
            values[name]["fire_rate"] = {i: 100.0 * bool(t.fired) for i, t in said[name].items()}
        for metric in (*REPORTED, "fire_rate"):
            first, second = (values[name][metric] for name in FITS)
            pairs = [(said["own"][i], second[i] - first[i]) for i in first if i in second]
            if pairs:
                figures = {
                    name: short(sum(one[metric].values()) / len(one[metric]))
                    for name, one in values.items()
                    if one.get(metric)
                }
                found.append({"split": split, "metric": metric, **figures} | _difference(metric, pairs, seed))
        pairs = [(t, 100.0 * (t.response == said["given"][i].response)) for i, t in said["own"].items()]
        alike = summarise("identical", pairs, seed)
        found.append({"split": split, "metric": "identical", "own": short(alike.value), "n": alike.n})
    return found


def _difference(metric: str, pairs: Sequence[tuple[Transcript, float]], seed: int) -> Record:
    mean = summarise(metric, pairs, seed)
    assert mean.value is not None
    assert mean.interval is not None
    within = abs(mean.value) <= MARGIN
    return {"difference": estimate(mean.value, *mean.interval), "n": mean.n, "within": within}


def show(record: Record) -> None:
    """Print the figures side by side, and how many differ by more than the margin."""
    rows = []
    for row in record["rows"]:
        values = ("–" if row.get(name) is None else f"{row[name]:.1f}" for name in ("vanilla", *FITS))
        apart, shown = row.get("difference"), ["", ""]
        if apart is not None:
            mark = "" if row["within"] else " *"
            shown = [f"{apart['value']:+.2f}{mark}", f"{apart['low']:+.1f} … {apart['high']:+.1f}"]
        rows.append((row["split"], row["metric"], *values, *shown, str(row["n"])))
    headings = ("split", "metric", "vanilla", *FITS, "difference", "95 %", "n")
    print_table("percent, greedy answers; own − given in points (*: outside the margin)", headings, rows)
    traces, compared = record["traces"], [row for row in record["rows"] if "within" in row]
    outside = [row for row in compared if not row["within"]]
    print(
        f"own responses to {traces['kept']} of {traces['asked']} questions; dropped: {traces['dropped'] or 'none'}"
    )
    print(
        f"{len(compared) - len(outside)} of {len(compared)} figures agree within {record['margin']:g} point"
    )
