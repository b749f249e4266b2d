"""Methods under attack: every variant of every question, many attacks in one batch; resumable like a run.

Greedy attacks on one method share batches, whatever their prompts, pictures and prefills; sampled responses have
batches of their own, and so does each copy of the weights.
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
from rmuse_interp.models.prompts import Conversation, Prompt
from rmuse_interp.runs.run import Method, counted, kept_of, said

ATTACKED_SPLITS: Final = ("forget", "test", "retain")


@dataclass(frozen=True)
class _Job:
    """One response to generate: a sample for a variant of a question.

    Pictures are made again when needed, since thousands of them would fill the memory: `asked` holds no picture, and
    `picture` is its hash, empty for questions in text.
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
        """Sort key that puts similar lengths, and samples of one question, together; the same for the same jobs."""
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
        """Everything that the response depends on, except the method."""
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
    """Generate the responses of every method to every open question of `ATTACKED_SPLITS` under every attack.

    Multiple choice and cloze are left out: leakage is measured on free answers. Use the same questions as in a run
    without attack (`runs.run.run`); `evaluate.attack_scores` pairs the two. Greedy responses depend on neither batch
    size nor order; a sample's draws depend only on the seed, attack, question, variant and sample number.

    Args:
        methods: methods with distinct names; a method's plan also runs on the copies of its model.
        questions: split → its questions.
        benchmark: the benchmark they are from.
        attacks: names (``all`` is every one of `ATTACKS`), or custom attacks.
        max_new_tokens: maximum tokens per response.
        batch_size: responses per batch.
        seed: seed for the attacks' random choices and for sampling.
        folder: the run's folder; finished batches are kept there until `runs.run.finish`, and those of an interrupted
            run are not asked again. None keeps nothing.
        progress: a running progress bar to add one line per method to.

    Raises:
        RMuseError: an attack is unknown or applies to no question, or two methods have the same name.
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
    """Raise unless there is an open question, and every attack applies to at least one.

    Raises:
        RMuseError: there is no open question, or an attack applies to none (names the attack).
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
"""Hash of the picture and harmless question → the job that asks it."""


def _openings(jobs: Sequence[_Job]) -> _Openings:
    """Collect the first turns of conversations, each once."""
    found: _Openings = {}
    for job in jobs:
        words = job.asked.opening
        if words is not None:
            asked = replace(job.asked, variant="opening", prompt=words, opening=None)
            found.setdefault((job.picture, words), replace(job, asked=asked, sample=0))
    return found


def _continued(job: _Job, openings: _Openings, replies: Mapping[tuple[str, str], AttackTranscript]) -> _Job:
    """Add the job's first turn to its history, if it has one."""
    words = job.asked.opening
    if words is None:
        return job
    reply = replies[openings[job.picture, words].example.id, words].response
    return replace(job, history=((words, reply or "…"),))  # some chat templates drop an empty turn


@dataclass(frozen=True)
class _Asking:
    """Asks jobs of one method on one copy of its model, in batches, and keeps the answers."""

    method: Method
    benchmark: Benchmark
    attack_seed: int
    max_new_tokens: int
    batch_size: int
    kept: Store
    advance: Callable[[int], None]

    def answered(self, jobs: Sequence[_Job]) -> list[AttackTranscript]:
        """Get the responses to all jobs, in batches of similar length."""
        found: list[AttackTranscript] = []
        for batch in alike(jobs, self.batch_size, lambda job: job.order, mixed=True):
            responses, _ = said(self.kept, [job.key for job in batch], partial(self._ask, batch))
            found += [self._transcript(job, r) for job, r in zip(batch, responses, strict=True)]
            self.advance(len(batch))
        return found

    def _ask(self, batch: Sequence[_Job]) -> list[Response]:
        temperature = batch[0].attack.temperature
        return self.method.respond(
            [job.prompt for job in batch],
            [self._picture(job) for job in batch],
            max_new_tokens=self.max_new_tokens,
            prefills=[job.asked.prefill for job in batch],
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
            ended=response.ended,
            attack=job.attack.name,
            variant=asked.variant,
            sample=job.sample,
            prefill=prefill,
            history=job.history,
        )
