"""How a person would read a run's responses: garbled or not, and how fluent beside the model's own refusals.

Responses that equal the unsteered model's cost nothing; the others are read under the unsteered model, batch by batch,
and every finished batch is written to disk immediately, as in `run`.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rich.progress import Progress

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example, sample
from rmuse_interp.data.spans import without
from rmuse_interp.data.store import JSON
from rmuse_interp.evaluate.metrics import cluster
from rmuse_interp.evaluate.readable import Fault, Gauge, Reading, loops
from rmuse_interp.evaluate.refusing import refuses
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.evaluate.scores import TO_STEER
from rmuse_interp.evaluate.text import normalise
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.lens.readable import QUESTIONS, gauge_of, readings
from rmuse_interp.lens.respond import respond
from rmuse_interp.maths.statistics import clustered
from rmuse_interp.models.batches import alike

ELSEWHERE: Final = 24
"""Maximum number of responses read per method and split that is not about people to forget."""
FLUENT: Final = 24
"""Maximum number of questions per split on which fluency is compared."""
PREFIXES: Final = 3
"""Maximum number of prefixes g whose contexts g ⊕ q are tried."""


@dataclass(frozen=True)
class Reader:
    """Reads responses with one model and one gauge.

    Args:
        model: the unsteered model.
        benchmark: source of the questions, refusals and prefixes.
        gauge: from `gauge_for`.
        batch_size: rows per batch.
        progress: a running progress bar to add lines to.
    """

    model: LensModel
    benchmark: Benchmark
    gauge: Gauge
    batch_size: int = 32
    progress: Progress | None = None

    def readings(
        self,
        rows: Sequence[tuple[str, str, Example]],
        prefixes: Sequence[str],
        label: str,
        exact: bool = False,
    ) -> list[Reading]:
        """Read responses to questions as they were asked; pictures are opened batch by batch."""
        found: dict[int, Reading] = {}

        def length(i: int) -> tuple[bool, int]:
            return rows[i][2].picture is None, len(rows[i][0]) + len(rows[i][1])

        for batch in alike(range(len(rows)), self.batch_size, length, progress=self.progress, label=label):
            prompts, texts, examples = zip(*(rows[i] for i in batch), strict=True)
            said = readings(
                self.model,
                prompts,
                texts,
                [e.image for e in examples],
                prefixes=prefixes,
                delimiters=self.benchmark.delimiters,
                enough=None if exact else self.gauge.cut,
                batch_size=len(batch),
            )
            found |= zip(batch, said, strict=True)
        return [found[i] for i in range(len(rows))]

    def looked_at(
        self,
        transcripts: Sequence[Transcript],
        own: Mapping[str, str],
        examples: Mapping[str, Example],
        seed: int,
    ) -> list[Transcript]:
        """The transcripts with `garbled` filled in, in their order.

        On splits about people to forget all responses are looked at; elsewhere a sample of `ELSEWHERE` where more than
        that differ from the unsteered model's own.
        """
        groups: dict[tuple[str, str], list[Transcript]] = {}
        for t in transcripts:
            groups.setdefault((t.method, t.split), []).append(t)
        chosen: set[tuple[str, str]] = set()
        for (method, split), mine in groups.items():
            some = mine
            differ = sum(own.get(t.id) != t.response for t in mine)
            if split not in TO_STEER and differ > ELSEWHERE:
                some = random.Random(seed).sample(sorted(mine, key=lambda t: t.id), ELSEWHERE)
            chosen |= {(method, t.id) for t in some}
        looked = [t for t in transcripts if (t.method, t.id) in chosen]
        # What is known without the model: its own answers, loops, and nothing said.
        faults: dict[tuple[str, str], Fault | None] = {}
        todo: list[Transcript] = []
        for t in looked:
            if own.get(t.id) == t.response or loops(t.response) or not t.response.strip():
                faults[t.method, t.id] = self.gauge.fault(Reading(t.response), t.response)
            else:
                todo.append(t)
        rows = [(t.prompt, t.response, examples[t.id]) for t in todo]
        for t, reading in zip(todo, self.readings(rows, self.gauge.prefixes, "responses read"), strict=True):
            faults[t.method, t.id] = self.gauge.fault(reading, own.get(t.id))
        return [
            replace(t, garbled=faults[key] or "") if (key := (t.method, t.id)) in faults else t
            for t in transcripts
        ]

    def fluency(
        self,
        transcripts: Sequence[Transcript],
        own: Mapping[str, str],
        examples: Mapping[str, Example],
        max_new_tokens: int,
        seed: int,
    ) -> JSON:
        """Perplexity ratios of changed responses to refusals, by method and split about people to forget.

        The ratio is exp of the mean over questions of (mean nats of the response − mean nats of the likeliest among the
        model's own refusal and the pool's, all as responses to this question, each under the better of q and g ⊕ q).
        Loops are likely, and are left out and counted.
        """
        changed = [
            t
            for t in transcripts
            if t.split in TO_STEER and own.get(t.id) != t.response and t.response.strip()
        ]
        asked: list[Example] = []
        for split in sorted({t.split for t in changed}):
            there = {t.id: examples[t.id] for t in changed if t.split == split}
            asked += sample(there.values(), FLUENT, seed)
        if not asked:
            return {"methods": {}, "own_refusals": {"n": 0, "refused": None, "unended": None}}
        prefix = self.gauge.prefixes[0] if self.gauge.prefixes else ""
        mine = respond(
            self.model,
            [f"{prefix} {e.prompt()}".strip() for e in asked],
            [e.image for e in asked],
            max_new_tokens=max_new_tokens,
            batch_size=self.batch_size,
        )
        ids = {e.id for e in asked}
        rows: list[tuple[str, str, Example]] = []
        of: list[tuple[str, str]] = []
        refused = 0
        cut = 0
        for e, one in zip(asked, mine, strict=True):
            if refuses(without(one.text, self.benchmark.delimiters)):
                refused += 1
                cut += one.ended is False
                rows.append((e.prompt(), one.text, e))
                of.append(("", e.id))
            pool = self.benchmark.refusals_cot if e.reasoning is not None else self.benchmark.refusals_direct
            rows += [(e.prompt(), text, e) for text in pool]
            of += [("", e.id)] * len(pool)
        looping: dict[tuple[str, str], int] = {}
        for t in changed:
            if t.id in ids:
                looping[t.method, t.split] = looping.get((t.method, t.split), 0) + loops(t.response)
                if not loops(t.response):
                    rows.append((t.prompt, t.response, examples[t.id]))
                    of.append((t.method, t.id))
        read = self.readings(rows, [prefix] if prefix else [], "fluency", exact=True)
        nats: dict[tuple[str, str], float] = {}
        for key, reading in zip(of, read, strict=True):
            if reading.mean is not None:
                nats[key] = min(reading.mean, nats.get(key, math.inf))
        scores: JSON = {}
        for (method, split), n_loops in sorted(looping.items()):
            pairs = [
                (nats[method, t.id] - nats["", t.id], cluster(t))
                for t in sorted(changed, key=lambda t: t.id)
                if t.method == method and t.split == split and (method, t.id) in nats and ("", t.id) in nats
            ]
            ratio: dict[str, float | None] = {"ratio": None, "low": None, "high": None}
            if pairs:
                found = clustered([gap for gap, _ in pairs], [who for _, who in pairs], seed=seed)
                ratio = {
                    name: round(math.exp(value), 6)
                    for name, value in (("ratio", found.value), ("low", found.low), ("high", found.high))
                }
            scores.setdefault(method, {})[split] = {**ratio, "n": len(pairs), "loops": n_loops}
        return {
            "methods": scores,
            "own_refusals": {
                "n": len(asked),
                "refused": round(100.0 * refused / len(asked), 6),
                "unended": round(100.0 * cut / refused, 6) if refused else None,
            },
        }


def gauge_for(
    model: LensModel,
    benchmark: Benchmark,
    *,
    max_new_tokens: int = 96,
    batch_size: int = 32,
    seed: int = 0,
) -> Gauge:
    """The gauge of a model on a benchmark's open fitting questions; see `lens.readable.gauge_of`.

    Raises:
        RMuseError: too few questions, or responses too short to be spoilt.
    """
    half = QUESTIONS // 2
    some = [
        e
        for view in (benchmark.fit_forget, benchmark.fit_retain)
        for e in sample([e for e in view if e.kind == "generation"], half, seed)
    ]
    everyone = [e for view in (benchmark.fit_forget, benchmark.fit_retain) for e in view]
    values = {value for e in everyone for value in (e.answer, *e.attributes.values())}
    values |= {form for value, forms in benchmark.aliases.items() for form in (value, *forms)}
    chains = [without(text, benchmark.delimiters) for text in benchmark.refusals_cot]
    return gauge_of(
        model,
        some,
        prefixes=benchmark.prefixes[:PREFIXES],
        refusals=benchmark.refusals_cot,
        refusals_direct=benchmark.refusals_direct,
        delimiters=benchmark.delimiters,
        known=[*sorted(values), *chains],
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch_size=batch_size,
    )


def read(
    transcripts: Sequence[Transcript],
    questions: Mapping[str, Sequence[Example]],
    benchmark: Benchmark,
    model: LensModel,
    *,
    max_new_tokens: int = 96,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
    fluency: bool = True,
) -> tuple[list[Transcript], JSON]:
    """Look at a run's responses as a person would: the transcripts with `garbled` filled in, and a record.

    Args:
        transcripts: the responses of every method. Those that equal the response of ``vanilla``, the unsteered model, to
            the same question cost nothing.
        questions: split → its questions.
        benchmark: source of the questions.
        model: the unsteered model.
        max_new_tokens: maximum number of tokens per response, as in the run.
        batch_size: rows per batch.
        seed: seed of the choices and intervals.
        progress: a running progress bar to add lines to.
        fluency: whether to compare perplexities.

    Returns:
        the transcripts; and ``gauge`` (`Gauge.record`), ``fluency`` (method → split → ``{ratio, low, high, n, loops}``)
        and ``own_refusals`` (``{n, refused, unended}`` in percent, of the model behind its first prefix). Where no gauge
        can be made, the transcripts as they are and ``{"gauge": None, "reason": …}``.
    """
    try:
        gauge = gauge_for(model, benchmark, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed)
    except RMuseError as error:
        return list(transcripts), {"gauge": None, "reason": str(error)}
    answers = {normalise(t.expected) for t in transcripts}
    gauge = replace(gauge, known=gauge.known | answers - {""})
    reader = Reader(model, benchmark, gauge, batch_size, progress)
    own = {t.id: t.response for t in transcripts if t.method == "vanilla"}
    examples = {e.id: e for mine in questions.values() for e in mine}
    found = reader.looked_at(transcripts, own, examples, seed)
    record: JSON = {"gauge": gauge.record(), "fluency": {}, "own_refusals": {"n": 0}}
    if fluency:
        fluent = reader.fluency(transcripts, own, examples, max_new_tokens, seed)
        record |= {"fluency": fluent["methods"], "own_refusals": fluent["own_refusals"]}
    return found, record
