"""From transcripts to ``scores.json`` (schema ``rmuse-scores/1``)."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from rmuse_interp import RMuseError
from rmuse_interp.data.benchmark import SPLITS, Benchmark
from rmuse_interp.data.example import Example
from rmuse_interp.data.spans import parse_response
from rmuse_interp.data.store import JSON
from rmuse_interp.evaluate import metrics as m
from rmuse_interp.evaluate.choice import choice
from rmuse_interp.evaluate.fluency import distinct_bigrams
from rmuse_interp.evaluate.judges import Judge, RulesJudge
from rmuse_interp.evaluate.known import about_known, facts_of, knowledge
from rmuse_interp.evaluate.results import SCHEMA, Block, Transcript
from rmuse_interp.evaluate.text import Lexicon
from rmuse_interp.maths.statistics import auroc

UNSTEERED: Final = "vanilla"
"""Name of the model as it is among the methods of a run."""
OVER_KNOWN: Final = ("ril", "ril_explicit", "exact", "stated", "refusal_rate")
"""Metrics that are also given over known facts alone."""
TO_STEER: Final = frozenset({"forget", "test"})
"""Splits about people to forget: positives for the gate. RCR is not defined on them."""
NOT_TO_STEER: Final = frozenset({"retain_test", "celebrity", "reasoning", "benign", "namesakes"})


def transcribe(
    example: Example,
    method: str,
    response: str,
    delimiters: tuple[str, str],
    gate_score: float | None = None,
    fired: bool | None = None,
    margin: float | None = None,
    gate: str | None = None,
    ended: bool | None = None,
) -> Transcript:
    """Make the record of one response to an example's prompt; the gate's fields and `ended` are as in `Transcript`.

    >>> e = Example("forget_5/7/generation/0/text", "forget", "generation", "text", "Where?", "Oslo")
    >>> t = transcribe(e, "vanilla", "<think> I look. </think> Oslo", ("<think>", "</think>"))
    >>> t.reasoning, t.answer, t.expected, t.well_formed
    ('I look.', 'Oslo', 'Oslo', True)
    """
    parsed = parse_response(response, delimiters)
    return Transcript(
        id=example.id,
        method=method,
        split=example.split,
        modality=example.modality,
        prompt=example.prompt(),
        response=response,
        reasoning=parsed.reasoning,
        answer=parsed.answer,
        expected=example.answer,
        attributes=dict(example.attributes),
        gate_score=gate_score,
        fired=fired,
        kind=example.kind,
        person=example.person,
        margin=margin,
        gate=gate,
        ended=ended,
    )


def measure(
    transcripts: Sequence[Transcript],
    benchmark: Benchmark,
    references: Mapping[str, Example],
    judge: Judge | None = None,
    seed: int = 0,
) -> dict[str, m.Metric]:
    """Compute every metric of one method's transcripts, with per-example values; names are those of ``scores.json``."""
    lexicon = Lexicon(benchmark.aliases, benchmark.entails)
    judge = judge if judge is not None else RulesJudge(benchmark.aliases, benchmark.entails)
    pool = m.RefusalPool.of(benchmark.refusals_cot, benchmark.refusals_direct, benchmark.delimiters)
    leak = m.leakage(transcripts, lexicon, judge, seed=seed)
    reasoned = [t for t in transcripts if t.split not in TO_STEER]
    found = (
        leak.ril,
        leak.explicit,
        leak.implicit,
        m.reasoning_retention(reasoned, references, judge, seed),
        m.classification(transcripts, seed),
        choice(transcripts, seed),
        m.rouge(transcripts, seed),
        m.cloze(transcripts, seed),
        m.exact(transcripts, lexicon, seed),
        m.stated(transcripts, lexicon, seed),
        m.refusals(transcripts, pool, seed),
        m.repetition(transcripts, seed),
        m.malformed(transcripts, pool, lexicon, references, seed),
        m.garbled(transcripts, seed),
        m.unended(transcripts, seed),
        m.foreign(transcripts, seed),
        m.step_recall(transcripts, seed),
        distinct_bigrams(transcripts, seed),
    )
    return {metric.name: metric for metric in found}


def score(
    transcripts: Sequence[Transcript],
    benchmark: Benchmark,
    *,
    model: Mapping[str, str] | None = None,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    seconds: Mapping[str, float] | None = None,
    judge: Judge | None = None,
    seed: int = 0,
) -> JSON:
    """Compute the scores of a run, in the schema of ``scores.json``.

    Args:
        transcripts: transcripts of any methods and splits, in any order.
        benchmark: the benchmark the questions are from; gives references, refusal pool, aliases and entailments.
        model: ``{"id", "fingerprint"}``.
        thresholds: method → modality → the gate's threshold.
        seconds: stage → wall-clock seconds.

    Returns:
        ``methods`` (NAME → SPLIT → metric, None where undefined; all splits are listed), ``by_modality``
        (the same for image and text questions separately), ``intervals`` (NAME → SPLIT → metric → ``{low, high, n}``,
        95 %, people resampled), ``unread`` (NAME → SPLIT → metric → ``{parse_failures, unjudged}``, see `Metric`; metrics
        where both are 0 are left out), ``gate`` (methods with gate scores: ``auroc`` in 0–1 of `TO_STEER` against
        `NOT_TO_STEER`, ``fire_rate`` in percent), ``knowledge`` (what the method `UNSTEERED` knows, see
        `known.knowledge`; the facts to forget alone), ``over_known`` (NAME → SPLIT → metric over the questions about
        facts that it knows), and ``right``, the measure of a right answer: `stated` where answers are sentences, else
        `exact`.

    Raises:
        RMuseError: a split is unknown, a method has an id twice, or a gate score is no number.
    """
    groups: dict[str, dict[str, list[Transcript]]] = defaultdict(lambda: defaultdict(list))
    for t in transcripts:
        if t.split not in SPLITS:
            raise RMuseError(f"{t.id}: required one of the splits {', '.join(SPLITS)}, got {t.split!r}")
        groups[t.method][t.split].append(t)
    present = [s for s in SPLITS if any(s in by_split for by_split in groups.values())]
    references = {e.id: e for s in present for e in benchmark.scoring(s)}

    def plain(rows: Sequence[Transcript]) -> dict[str, m.Metric]:
        return measure(rows, benchmark, references, judge, seed)

    methods: dict[str, dict[str, Block]] = {}
    intervals: dict[str, dict[str, dict[str, Block]]] = {}
    apart: dict[str, dict[str, dict[str, Block]]] = {}
    unread: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    gate: dict[str, JSON] = {}
    measured: dict[str, dict[str, dict[str, m.Metric]]] = defaultdict(dict)
    for name in sorted(groups):
        methods[name], intervals[name], apart[name], unread[name] = {}, {}, {}, {}
        for split in SPLITS:
            rows = groups[name].get(split, [])
            found = plain(rows)
            methods[name][split] = _block(found, len(rows))
            measured[name][split] = found
            intervals[name][split] = {
                k: {"low": rounded(i[0]), "high": rounded(i[1]), "n": one.n}
                for k, one in found.items()
                if (i := one.interval) is not None
            }
            unread[name][split] = {
                k: {"parse_failures": one.parse_failures, "unjudged": one.unjudged}
                for k, one in found.items()
                if one.parse_failures or one.unjudged
            }
            if rows:
                apart[name][split] = {
                    modality: _block(plain(part), len(part))
                    for modality in ("image", "text")
                    if (part := [t for t in rows if t.modality == modality])
                }
        everything = [t for rows in groups[name].values() for t in rows]
        if any(t.margin is not None or t.fired is not None for t in everything):
            gate[name] = _gate(everything, (thresholds or {}).get(name, {}))
    lexicon = Lexicon(benchmark.aliases, benchmark.entails)
    facts = facts_of([t for rows in groups[UNSTEERED].values() for t in rows], lexicon)
    about = {
        s: {t.id for t in rows if about_known(t, facts, lexicon)} for s, rows in groups[UNSTEERED].items()
    }
    over_known = {
        name: {
            split: {k: _over(found[k], about.get(split, frozenset())) for k in OVER_KNOWN}
            | {"n": sum(t.id in about[split] for t in groups[name][split])}
            for split, found in by_split.items()
            if about.get(split)
        }
        for name, by_split in measured.items()
    }
    return {
        "schema": SCHEMA,
        "model": {"id": None, "fingerprint": None, **(model or {})},
        "benchmark": {
            "id": benchmark.id,
            "forget": benchmark.forget_rate,
            "render_seed": benchmark.render_seed,
        },
        "methods": methods,
        "gate": gate,
        "seconds": {k: rounded(v) for k, v in (seconds or {}).items()},
        "by_modality": apart,
        "intervals": intervals,
        "unread": unread,
        "knowledge": knowledge({k: f for k, f in facts.items() if k[0] in benchmark.forget_people}),
        "over_known": over_known,
        "right": right_measure(methods.get(UNSTEERED, {})),
        "judge": judge.name if judge is not None else RulesJudge.name,
    }


def _over(metric: m.Metric, ids: Collection[str]) -> float | None:
    """A metric's mean over some examples, None if it is defined on none of them."""
    values = [value for one, value in metric.per_example.items() if one in ids]
    return rounded(math.fsum(values) / len(values)) if values else None


def right_measure(blocks: Mapping[str, Block]) -> str:
    """`stated` if the unsteered model states at least twice as many answers as it gives exactly, else `exact`."""

    def total(metric: str) -> float:
        return math.fsum((block.get(metric) or 0.0) * (block.get("n") or 0) for block in blocks.values())

    return "stated" if total("stated") > 0 and total("stated") >= 2 * total("exact") else "exact"


def _block(found: Mapping[str, m.Metric], n: int) -> Block:
    return {**{k: rounded(one.value) for k, one in found.items()}, "n": n}


def rounded(value: float | None) -> float | None:
    """Round to six decimals: precise enough, and free of noise from the order of summation."""
    return None if value is None else round(float(value), 6)


def _gate(rows: Sequence[Transcript], thresholds: Mapping[str, float]) -> JSON:
    """AUROC, firing rates and thresholds of one method's gate."""
    fire_rate = {}
    for split in SPLITS:
        decided = [t.fired for t in rows if t.split == split and t.fired is not None]
        fire_rate[split] = rounded(100.0 * sum(decided) / len(decided)) if decided else None
    parts = {k: [t for t in rows if t.modality == k] for k in ("image", "text")}
    return {
        "auroc": rounded(gate_auroc(rows)),
        "fire_rate": fire_rate,
        "by_modality": {
            k: {
                "auroc": rounded(gate_auroc(part)),
                "threshold": float(thresholds[k]) if k in thresholds else None,
            }
            for k, part in parts.items()
        },
    }


def gate_auroc(rows: Sequence[Transcript]) -> float | None:
    """`auroc` of gate margins: queries about people to forget (`TO_STEER`) against all other queries unseen in fitting.

    The retain split, which fitting has seen, is left out. None if a side has no scored query.

    Raises:
        RMuseError: a score is not finite.
    """
    scored = [t for t in rows if t.margin is not None and t.split in TO_STEER | NOT_TO_STEER]
    sides: tuple[list[float], list[float]] = ([], [])
    for t in scored:
        value = float(t.margin or 0.0)
        if not math.isfinite(value):
            raise RMuseError(
                f"{t.id}: required a finite gate score, got {value}; check the model's activations"
            )
        sides[t.split not in TO_STEER].append(value)
    return auroc(*sides) if all(sides) else None
