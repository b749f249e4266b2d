"""Methods under attack: every variant of every question, many attacks to a batch; resumable as a run is.

Greedy attacks of one method share batches, whatever their prompts, pictures and prefills; samples have batches of their
own, and so has each copy of the weights.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from rich.progress import Progress

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example
from rmuse_interp.data.attacks import Asked, Attack, require_names
from rmuse_interp.data.spans import parse_response
from rmuse_interp.data.store import Store
from rmuse_interp.evaluate.metrics import OPEN_KINDS
from rmuse_interp.evaluate.results import AttackTranscript
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.lens.quantised import quantised
from rmuse_interp.lens.respond import Response
from rmuse_interp.models.batches import alike
from rmuse_interp.models.encoding import Conversation, Prompt
from rmuse_interp.runs.run import Method, counted, kept_of, said

ATTACKED_SPLITS: Final = ("forget", "test", "retain")


@dataclass(frozen=True)
class _Job:
    """One response to be had: a sample of a variant of a question.

    Pictures are made again when they are shown: thousands of them together would fill the memory. `asked` is without,
    `picture` their hash, empty for questions in text.
    """

    attack: Attack
    example: Example
    index: int
    asked: Asked
    picture: str
    sample: int
    seed: int
    history: tuple[tuple[str, str], ...] = ()

    @property
    def modality(self) -> str:
        return "image" if self.picture else "text"

    @property
    def prompt(self) -> Prompt:
        return Conversation(self.history, self.asked.prompt) if self.history else self.asked.prompt

    @property
    def order(self) -> tuple[object, ...]:
        """Similar lengths together, samples of one question too; the same for the same jobs."""
        length = len(self.prompt) + len(self.asked.prefill or "")
        return (
            self.asked.modality,
            length,
            self.example.id,
            self.attack.name,
            self.asked.variant,
            self.sample,
        )

    @property
    def key(self) -> tuple[object, ...]:
        """All that the response depends on, besides the method."""
        heat = self.attack.temperature
        return self.prompt, self.asked.prefill, self.picture, heat, self.seed if heat else None


def attacked(
    methods: Sequence[Method],
    questions: Mapping[str, Sequence[Example]],
    benchmark: Benchmark,
    attacks: Sequence[str | Attack],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> list[AttackTranscript]:
    """The responses of every method to every open question of `ATTACKED_SPLITS` under every attack.

    Multiple choice and cloze are left out: leakage is measured on free answers. The same questions as those of a run
    without attack (`running.run`) are meant; `evaluate.attack_scores` pairs the two. Greedy responses depend on neither
    batch size nor order; a sample's draws follow from seed, question and number alone.

    Args:
        methods: with distinct names; the plan of a method runs on the copies of its model too.
        questions: split → its questions.
        benchmark: which they are from.
        attacks: names (``all`` is every one of `ATTACKS`), or attacks of one's own.
        max_new_tokens: the most tokens per response.
        batch_size: responses per batch.
        seed: of what the attacks draw, and of the samples.
        folder: the run's; finished batches are kept there until `running.finish`, and those of an interrupted run are
            not asked again. None keeps nothing.
        progress: a running progress bar to add one line per method to.

    Raises:
        RMuseError: an unknown attack, two methods of one name, an attack that applies to no question.
    """
    names = [method.name for method in methods]
    if len(set(names)) != len(names):
        raise RMuseError(f"required methods with distinct names, got {', '.join(names)}")
    chosen = [a for a in attacks if isinstance(a, Attack)] + require_names(
        [a for a in attacks if isinstance(a, str)]
    )
    require_applicable(chosen, questions, benchmark)
    jobs = _jobs(chosen, questions, benchmark, seed)
    copies: dict[int, LensModel] = {}
    copied: LensModel | None = None
    found: list[AttackTranscript] = []
    total = len(jobs) + len(_openings(jobs))
    for method in methods:
        if method.model is not copied:
            copies, copied = {}, method.model  # one model's copies at a time
        advance = counted(progress, f"{method.name} under attack", total)
        for bits in dict.fromkeys(job.attack.bits for job in jobs):
            there = method
            if bits is not None:
                if bits not in copies:
                    copies[bits] = quantised(method.model, bits)
                there = replace(method, model=copies[bits])
            mine = [job for job in jobs if job.attack.bits == bits]
            kept = kept_of(folder, there, "attacked", bits, max_new_tokens)
            ask = _Asking(there, benchmark, seed, max_new_tokens, batch_size, kept, advance)
            openings = _openings(mine)
            replies = {(t.id, t.prompt): t for t in ask.answered(list(openings.values()))}
            mine = [_continued(job, openings, replies) for job in mine]
            for temperature in dict.fromkeys(job.attack.temperature for job in mine):
                found += ask.answered([job for job in mine if job.attack.temperature == temperature])
    return found


def require_applicable(
    attacks: Sequence[Attack],
    questions: Mapping[str, Sequence[Example]],
    benchmark: Benchmark,
) -> None:
    """Nothing, or the error that there is no open question, or none that some attack applies to.

    Raises:
        RMuseError: naming the attack.
    """
    open_ = _open(questions)
    if not open_:
        raise RMuseError(
            f"open questions of {', '.join(ATTACKED_SPLITS)} were required to attack, got none; raise --limit"
        )
    for attack in attacks:
        if not any(attack.variants(example, benchmark) for example in open_):
            raise RMuseError(
                f"questions that {attack.name} applies to ({attack.what}) were required, got none among {len(open_)} of "
                f"{', '.join(ATTACKED_SPLITS)}; leave it out, or raise --limit"
            )


def _open(questions: Mapping[str, Sequence[Example]]) -> list[Example]:
    return [e for split in ATTACKED_SPLITS for e in questions.get(split, ()) if e.kind in OPEN_KINDS]


def _jobs(
    attacks: Sequence[Attack],
    questions: Mapping[str, Sequence[Example]],
    benchmark: Benchmark,
    seed: int,
) -> list[_Job]:
    found: list[_Job] = []
    for attack in attacks:
        for example in _open(questions):
            for index, asked in enumerate(attack.variants(example, benchmark, seed)):
                picture = "" if asked.image is None else hashlib.sha256(asked.image).hexdigest()
                bare = replace(asked, image=None)
                found += [
                    _Job(attack, example, index, bare, picture, n, _seed(seed, attack, example, asked, n))
                    for n in range(attack.samples)
                ]
    return found


def _seed(seed: int, attack: Attack, example: Example, asked: Asked, sample: int) -> int:
    text = f"{seed}/{attack.name}/{example.id}/{asked.variant}/{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


_Openings = dict[tuple[str, str], _Job]
"""Picture's hash and harmless question → the job that asks it."""


def _openings(jobs: Sequence[_Job]) -> _Openings:
    """The first turns of conversations, each once."""
    found: _Openings = {}
    for job in jobs:
        words = job.asked.opening
        if words is not None:
            asked = replace(job.asked, variant="opening", prompt=words, opening=None)
            found.setdefault((job.picture, words), replace(job, asked=asked, sample=0))
    return found


def _continued(job: _Job, openings: _Openings, replies: Mapping[tuple[str, str], AttackTranscript]) -> _Job:
    """The job with its first turn before it, where it has one."""
    words = job.asked.opening
    if words is None:
        return job
    reply = replies[openings[job.picture, words].example.id, words].response
    return replace(job, history=((words, reply or "…"),))  # an empty turn is dropped by some templates


@dataclass(frozen=True)
class _Asking:
    """One method on one copy of its model: asks jobs in batches, and keeps the answers."""

    method: Method
    benchmark: Benchmark
    attack_seed: int
    max_new_tokens: int
    batch_size: int
    kept: Store
    advance: Callable[[int], None]

    def answered(self, jobs: Sequence[_Job]) -> list[AttackTranscript]:
        """The responses of all jobs, in batches of similar length."""
        found: list[AttackTranscript] = []
        for batch in alike(jobs, self.batch_size, lambda job: job.order, mixed=True):
            responses, _ = said(self.kept, [job.key for job in batch], partial(self._ask, batch))
            found += [self._transcript(job, r) for job, r in zip(batch, responses, strict=True)]
            self.advance(len(batch))
        return found

    def _ask(self, batch: Sequence[_Job]) -> list[Response]:
        temperature = batch[0].attack.temperature
        return self.method.model.respond(
            [job.prompt for job in batch],
            [self._picture(job) for job in batch],
            self.method.plan,
            max_new_tokens=self.max_new_tokens,
            prefill=[job.asked.prefill for job in batch],
            batch_size=len(batch),
            temperature=temperature,
            seeds=[job.seed for job in batch] if temperature else (),
        )

    def _picture(self, job: _Job) -> bytes | None:
        if not job.picture:
            return None
        return job.attack.variants(job.example, self.benchmark, self.attack_seed)[job.index].image

    def _transcript(self, job: _Job, response: Response) -> AttackTranscript:
        asked, example, text = job.asked, job.example, response.text
        prefill = asked.prefill or ""
        own = text.removeprefix(prefill).strip() if self.benchmark.delimiters[1] in prefill else text
        parsed = parse_response(own, self.benchmark.delimiters)
        return AttackTranscript(
            id=example.id,
            method=self.method.name,
            split=example.split,
            modality=job.modality,
            prompt=asked.prompt,
            response=text,
            reasoning=parsed.reasoning,
            answer=parsed.answer,
            expected=example.answer,
            attributes=asked.attributes,
            gate_score=response.score,
            fired=response.fired,
            kind=example.kind,
            person=example.person,
            margin=response.margin,
            gate=response.gate,
            attack=job.attack.name,
            variant=asked.variant,
            sample=job.sample,
            prefill=prefill,
            history=job.history,
        )
