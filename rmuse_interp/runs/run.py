"""Model × methods × questions → transcripts and scores; every finished batch is written to disk immediately.

An interrupted run loses nothing: each batch's responses are stored in the run folder under everything they depend on,
and the same run started again does not ask for them twice. Everything derived from responses is computed again.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from rich.progress import Progress

from rmuse_interp import RMuseError
from rmuse_interp.data import SPLITS, Benchmark, Example, sample
from rmuse_interp.data.store import JSON, Store
from rmuse_interp.edits.plan import Plan
from rmuse_interp.edits.trace import Recorder, SteeringTrace
from rmuse_interp.evaluate.judges import Judge
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.evaluate.scores import score, transcribe
from rmuse_interp.lens.check import require_finite
from rmuse_interp.lens.identity import depends
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.lens.respond import Response
from rmuse_interp.lens.stream import stream
from rmuse_interp.models.batches import alike, by_length
from rmuse_interp.models.demand import require_room
from rmuse_interp.models.encoding import Picture
from rmuse_interp.models.prompts import Prompt
from rmuse_interp.parts.gates import Gate
from rmuse_interp.parts.part import to_record
from rmuse_interp.parts.retain import Subspaces
from rmuse_interp.runs.controls import Control
from rmuse_interp.runs.traces import Key, packed, unpacked

__all__ = [
    "UNFINISHED",
    "Answers",
    "Method",
    "choose",
    "finish",
    "probe",
    "run",
    "scores_of",
    "stream",
    "unsteered",
]

UNFINISHED: Final = ".unfinished"
"""Subfolder of a run that holds the batches answered so far; gone once the run is finished."""


@dataclass(frozen=True, eq=False)
class Method:
    """A model and the plan that runs on it (None: unsteered), with the method's name in ``scores.json``.

    `subspaces` are those of the plan's bundle; traces use them for the share of each update in an RRS that is not
    protected. With a control, the plan's gates decide and its edits do not act.
    """

    name: str
    model: LensModel
    plan: Plan | None = None
    subspaces: Subspaces | None = None
    control: Control | None = None

    def respond(
        self,
        prompts: Sequence[Prompt],
        images: Sequence[Picture],
        *,
        max_new_tokens: int,
        prefills: Sequence[str | None] | None = None,
        temperature: float = 0.0,
        seeds: Sequence[int] = (),
        recorder: Recorder | None = None,
    ) -> list[Response]:
        """The method's responses to one batch; arguments as in `lens.respond`."""

        def ask(rows: Sequence[int], put: Sequence[Prompt]) -> list[Response]:
            steered = self.control is None
            return self.model.respond(
                list(put),
                [images[i] for i in rows],
                self.plan if steered else None,
                max_new_tokens=max_new_tokens,
                prefill=None if prefills is None else [prefills[i] for i in rows],
                batch_size=len(put),
                temperature=temperature,
                seeds=[seeds[i] for i in rows] if seeds else (),
                recorder=recorder if steered else None,
            )

        if self.control is None or self.plan is None:
            return ask(range(len(prompts)), prompts)
        begun = [None] * len(prompts) if prefills is None else prefills
        return self.control.responses(self.model, self.plan, prompts, images, begun, ask)

    @property
    def gates(self) -> dict[str, Gate]:
        """Kind of query (`image`, `text`) → the gate that decides on it; the first if there are several."""
        found: dict[str, Gate] = {}
        for edit in self.plan or ():
            if edit.gate is not None:
                for modality in (edit.modality,) if edit.modality is not None else ("image", "text"):
                    found.setdefault(modality, edit.gate)
        return found


def unsteered(methods: Sequence[Method], questions: Mapping[str, Sequence[Example]]) -> list[str]:
    """A line for each method and kind of query without an edit in its plan: such queries are answered unsteered."""
    counts = Counter(e.modality for examples in questions.values() for e in examples)
    return [
        f"{method.name} has no edit for {modality} questions: {n} of them are answered as the model does"
        for method in methods
        if method.plan is not None
        for modality, n in sorted(counts.items())
        if all(edit.modality not in (None, modality) for edit in method.plan)
    ]


@dataclass(frozen=True)
class Answers:
    """The results of a run: transcripts, seconds by method, steering traces."""

    transcripts: list[Transcript]
    seconds: dict[str, float] = field(default_factory=dict)
    traces: dict[Key, SteeringTrace] = field(default_factory=dict)


def choose(benchmark: Benchmark, limit: int | None, seed: int = 0) -> dict[str, list[Example]]:
    """Choose at most `limit` questions of each of the benchmark's splits, spread over kinds, modalities and people.

    Two thirds are open questions, which leakage and exact answers are measured on; multiple choice and cloze share
    the rest.

    Raises:
        RMuseError: a split's file is missing, a row is faulty, or a picture cannot be read.
    """
    found = {split: _some(benchmark.scoring(split), limit, seed) for split in SPLITS}
    for examples in found.values():
        benchmark.check_images(examples)
    return {split: examples for split, examples in found.items() if examples}


def _some(examples: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    if limit is None or limit >= len(examples):
        return list(examples)
    closed = [e for e in examples if e.kind in ("classification", "cloze")]
    open_ = [e for e in examples if e.kind not in ("classification", "cloze")]
    n_open = min(len(open_), max(limit - limit // 3, limit - len(closed)))
    chosen = sample(open_, n_open, seed) if n_open else []
    chosen += sample(closed, limit - n_open, seed) if limit > n_open else []
    kept = {e.id for e in chosen}
    return [e for e in examples if e.id in kept]


def probe(model: LensModel, example: Example) -> None:
    """Run one forward pass over one question, to detect a broken model before any long computation.

    Raises:
        RMuseError: block outputs or logits contain NaN or infinity (names the first block).
    """
    require_finite(model, model.encode(example.prompt(), example.image), example.id)


def run(
    methods: Sequence[Method],
    questions: Mapping[str, Sequence[Example]],
    *,
    delimiters: tuple[str, str],
    max_new_tokens: int = 96,
    batch_size: int = 32,
    folder: Path | None = None,
    progress: Progress | None = None,
    traces: bool = False,
) -> Answers:
    """Generate the greedy answers of every method to every question.

    Args:
        methods: methods with distinct names.
        questions: split → its questions.
        delimiters: delimiters of reasoning and answer in the responses.
        max_new_tokens: maximum tokens per response.
        batch_size: questions per batch.
        folder: the run's folder; batches are kept there until `finish`, and those of an interrupted run are not
            asked again. None keeps nothing.
        progress: a running progress bar to add one line per method to.
        traces: record the steering of every response of a method with a plan.

    Raises:
        RMuseError: two methods have the same name, or too little memory for a batch (names the size that fits).
    """
    names = [method.name for method in methods]
    if len(set(names)) != len(names):
        raise RMuseError(f"required methods with distinct names, got {', '.join(names)}")
    for model in {id(method.model): method.model for method in methods}.values():
        require_room(model, [e for each in questions.values() for e in each], batch_size, max_new_tokens)
    transcripts: list[Transcript] = []
    seconds: dict[str, float] = {}
    steered: dict[Key, SteeringTrace] = {}
    total = sum(len(examples) for examples in questions.values())
    for method in methods:
        traced = traces and method.plan is not None and method.control is None
        own = to_record(method.subspaces) if traced and method.subspaces is not None else None
        kept = kept_of(folder, method, max_new_tokens, traced, own)
        advance = counted(progress, method.name, total)
        seconds[method.name] = 0.0
        for examples in questions.values():
            for batch in alike(examples, batch_size, by_length):
                key = [(e.id, e.prompt(), e.image) for e in batch]
                responses, took = said(kept, key, partial(_ask, method, batch, max_new_tokens, traced))
                seconds[method.name] += took
                for e, r in zip(batch, responses, strict=True):
                    gated = (r.score, r.fired, r.margin, r.gate, r.ended)
                    transcripts.append(transcribe(e, method.name, r.text, delimiters, *gated))
                    if r.trace is not None:
                        steered[method.name, e.id] = r.trace
                advance(len(batch))
    return Answers(transcripts, seconds, steered)


def kept_of(folder: Path | None, method: Method, *settings: object) -> Store:
    """The store in a run folder for a method's results under some settings; without a folder, a store in memory."""
    if folder is None:
        return Store(None)
    try:
        of = depends(method.model, method.plan)
        if method.control is not None:
            of = [*of, vars(method.control)]
    except RMuseError:  # a plain function (`op.Call`) cannot be identified later
        return Store(None)
    return Store(
        folder / UNFINISHED / f"{method.name.replace('/', '-')}.jsonl",
        of,
        settings,
        *((method.control,) if method.control else ()),
    )


def counted(progress: Progress | None, label: str, total: int) -> Callable[[int], None]:
    """Add a line to a progress bar; call the result with the number of items done. Without a bar it does nothing."""
    if progress is None:
        return lambda _: None
    return partial(progress.advance, progress.add_task(label, total=total))


def said(kept: Store, key: object, ask: Callable[[], list[Response]]) -> tuple[list[Response], float]:
    """The responses to one batch and the seconds they took: from the store, else from calling `ask`."""
    held, tensors = kept.get(key), kept.tensors(key)
    if held is not None:
        shapes = [row["trace"] for row in held["responses"] if row["trace"] is not None]
        if not shapes or tensors is not None:
            traces = iter(unpacked(shapes, tensors or {}))
            rows = [row | {"trace": row["trace"] and next(traces)} for row in held["responses"]]
            return [Response(**row) for row in rows], float(held["seconds"])
    began = time.monotonic()
    responses = ask()
    seconds = time.monotonic() - began
    shapes, tensors = packed([r.trace for r in responses if r.trace is not None])
    left = iter(shapes)
    rows = [vars(r) | {"trace": None if r.trace is None else next(left)} for r in responses]
    kept.put(key, {"responses": rows, "seconds": seconds}, tensors or None)
    return responses, seconds


def scores_of(
    methods: Sequence[Method],
    answers: Answers,
    benchmark: Benchmark,
    model: LensModel,
    *,
    seconds: Mapping[str, float] | None = None,
    seed: int = 0,
    judge: Judge | None = None,
) -> JSON:
    """Compute the scores of a run (schema ``rmuse-scores/1``).

    Gates are compared by their margins, so a gate's ``threshold`` is 0 there; its own threshold and scale are given
    under ``gate → NAME → by_modality → image|text → own``.

    Args:
        methods: the methods of the run.
        answers: the results of `run`.
        benchmark: the benchmark the questions are from.
        model: the model to score.
        seconds: stage → wall-clock seconds, for stages other than generation.
        seed: seed of the intervals.
        judge: judge of leaks and chains; None for the rules.
    """
    timed = {**(seconds or {}), **{f"generate/{name}": value for name, value in answers.seconds.items()}}
    scores = score(
        answers.transcripts,
        benchmark,
        model={"id": model.name, "fingerprint": str(model.fingerprint)},
        thresholds={method.name: dict.fromkeys(method.gates, 0.0) for method in methods},
        seconds=timed,
        seed=seed,
        judge=judge,
    )
    for method in methods:
        for modality, gate in method.gates.items():
            scores["gate"].setdefault(method.name, {}).setdefault("by_modality", {}).setdefault(modality, {})[
                "own"
            ] = {
                "kind": gate.kind,
                "layer": gate.layer,
                "readout": gate.readout,
                "threshold": gate.threshold,
                "scale": gate.scale,
                "prefixed": gate.prefix is not None,
            }
    return scores


def finish(folder: Path) -> None:
    """Delete the kept batches of a run once its results are written."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def _ask(method: Method, batch: Sequence[Example], max_new_tokens: int, traced: bool) -> list[Response]:
    return method.respond(
        [e.prompt() for e in batch],
        [e.image for e in batch],
        max_new_tokens=max_new_tokens,
        recorder=Recorder(method.subspaces) if traced else None,
    )
