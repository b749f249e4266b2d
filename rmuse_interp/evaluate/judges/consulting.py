"""Asking somebody who answers in words: replies kept on disk, asked again where unreadable, tokens and cost counted."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar, runtime_checkable

from rmuse_interp import RMuseError
from rmuse_interp.data.store import Store, digest

T = TypeVar("T")
TRIES: Final = 3
"""How often one question is put before there is no verdict on it."""
PATIENCE: Final = 5
"""Unreadable questions before the first readable one, after which nobody is asked on."""
CHARACTERS_PER_TOKEN: Final = 4
REPLY_TOKENS: Final = 40
"""What a reply is estimated at."""
AGAIN: Final = "\n\nYour last reply was not of the form asked for. Reply with the JSON object alone."


class Reply(NamedTuple):
    """What was said, and what it cost."""

    text: str
    prompt_tokens: int
    reply_tokens: int


@runtime_checkable
class Answerer(Protocol):
    """Somebody who answers: a server's model or one of this machine. ``name`` stands in the record and in the cache."""

    name: str
    at_once: int

    def __call__(self, question: str) -> Reply:
        """The reply to one question.

        Raises:
            Refused: this question will not be answered (others may be).
            RMuseError: nothing more can be asked for now.
        """


class Unreadable(Exception):
    """A reply that is not of the form asked for; its text is what was said instead."""


class Refused(Unreadable):
    """A question that will not be answered however often it is put."""


@dataclass
class Budget:
    """Tokens and cost so far; prices are per million tokens, in any one currency."""

    price_in: float | None = None
    price_out: float | None = None
    max_cost: float | None = None
    prompt_tokens: int = 0
    reply_tokens: int = 0

    def __post_init__(self) -> None:
        if self.max_cost is not None and not self.priced:
            raise RMuseError(
                "--max-cost: required the prices per million tokens too, got none; add --price-in and --price-out"
            )

    @property
    def priced(self) -> bool:
        """Whether a cost can be told."""
        return self.price_in is not None and self.price_out is not None

    def cost_of(self, prompt_tokens: int, reply_tokens: int) -> float | None:
        """The cost of some tokens; None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (prompt_tokens * self.price_in + reply_tokens * self.price_out) / 1e6

    @property
    def cost(self) -> float | None:
        """What was spent."""
        return self.cost_of(self.prompt_tokens, self.reply_tokens)

    def take(self, reply: Reply) -> None:
        """Count a reply."""
        self.prompt_tokens += reply.prompt_tokens
        self.reply_tokens += reply.reply_tokens

    def require_left(self) -> None:
        """Raise unless there is money left to ask with.

        Raises:
            RMuseError: the cost has reached `max_cost`.
        """
        if self.max_cost is not None and (self.cost or 0.0) >= self.max_cost:
            raise RMuseError(
                f"--max-cost {self.max_cost:g} is spent ({self}); what was answered is kept: raise it and run again"
            )

    def __str__(self) -> str:
        return _told(self.prompt_tokens, self.reply_tokens, self.cost)


def _told(prompt_tokens: int, reply_tokens: int, cost: float | None) -> str:
    money = "" if cost is None else f", cost {cost:.4f}"
    return f"{prompt_tokens:,} + {reply_tokens:,} tokens{money}"


@dataclass(frozen=True)
class Quote:
    """What is still to be asked: by four characters a token, and `REPLY_TOKENS` a reply."""

    questions: int
    kept: int
    prompt_tokens: int
    reply_tokens: int
    cost: float | None

    def __str__(self) -> str:
        tokens = _told(self.prompt_tokens, self.reply_tokens, self.cost)
        return f"{self.questions:,} questions to ask (about {tokens}), {self.kept:,} answered before"


@dataclass
class Consultation:
    """Questions put to somebody, several at once; equal ones once, and none that was answered before.

    Attributes:
        asked: who answers.
        folder: where replies are kept; None keeps them for this process alone.
        budget: tokens and cost.
        on_reply: called with (answered, all) after each question of a round, for a progress bar.
        rehearsing: only count what would be asked (`estimate`), and answer nothing.
    """

    asked: Answerer
    folder: Path | None = None
    budget: Budget = field(default_factory=Budget)
    on_reply: Callable[[int, int], None] | None = None
    rehearsing: bool = False

    def __post_init__(self) -> None:
        name = self.asked.name
        self.replies = Store(None if self.folder is None else self.folder / f"{digest(name)}.jsonl", name)
        self.unreadable: list[str] = []
        self._given_up: set[str] = set()
        self._wanted: dict[str, None] = {}
        self._lock = threading.Lock()
        self._readable = 0

    def ask(self, questions: Sequence[str], read: Callable[[str], T]) -> list[T | None]:
        """What is read from each reply; None where no reply could be read in `TRIES` tries.

        Args:
            questions: in words.
            read: what makes a value of a reply's text, or raises `Unreadable`.

        Raises:
            RMuseError: whatever stops the one who is asked; money spent; or the first `PATIENCE` questions all
                unreadable. Every reply so far is on disk.
        """
        if self.rehearsing:
            self._wanted.update(dict.fromkeys(questions))
            return [None] * len(questions)
        once = list(dict.fromkeys(questions))
        found: dict[str, T | None] = {}
        stop = threading.Event()

        def one(question: str) -> T | None:
            if stop.is_set():
                return None
            try:
                return self._one(question, read)
            except BaseException:
                stop.set()  # or the next one would be asked before this error is seen
                raise

        pool = ThreadPoolExecutor(max(1, self.asked.at_once))
        try:
            for question, value in zip(once, pool.map(one, once), strict=True):
                found[question] = value
                if self.on_reply is not None:
                    self.on_reply(len(found), len(once))
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        return [found[question] for question in questions]

    def _one(self, question: str, read: Callable[[str], T]) -> T | None:
        if question in self._given_up:
            return None
        said = ""
        for words in _tries(question):
            text = self.replies.get(question)
            try:
                if text is None:
                    with self._lock:
                        self.budget.require_left()
                    reply = self.asked(words)
                    with self._lock:
                        self.budget.take(reply)
                    text = reply.text
                value = read(text)
            except Unreadable as fault:
                said = str(fault)
                if isinstance(fault, Refused):
                    break
                continue
            self.replies.put(question, text)  # only what can be read: a server that is mended is asked again
            with self._lock:
                self._readable += 1
            return value
        with self._lock:
            self.unreadable.append(said)
            self._given_up.add(question)
            if not self._readable and len(self.unreadable) >= PATIENCE:
                raise RMuseError(
                    f"JSON replies were required from {self.asked.name}, got {said[:80]!r} and the like "
                    f"{len(self.unreadable)} times, and nothing else; choose another model"
                )
        return None

    def estimate(self, questions: Sequence[str] = ()) -> Quote:
        """What asking these questions, and those of a rehearsal, would take."""
        every = dict.fromkeys([*self._wanted, *questions])
        new = [q for q in every if self.replies.get(q) is None]
        prompt_tokens = sum(len(q) // CHARACTERS_PER_TOKEN + 1 for q in new)
        reply_tokens = REPLY_TOKENS * len(new)
        cost = self.budget.cost_of(prompt_tokens, reply_tokens)
        return Quote(len(new), len(every) - len(new), prompt_tokens, reply_tokens, cost)

    def require_affordable(self, estimate: Quote) -> None:
        """Raise unless the budget covers an estimate; nothing was asked yet.

        Raises:
            RMuseError: the estimate is above ``max_cost``.
        """
        limit = self.budget.max_cost
        if limit is not None and estimate.cost is not None and estimate.cost > limit:
            raise RMuseError(
                f"--max-cost {limit:g}: {estimate} would cost more; raise it, or ask fewer questions with --limit"
            )


def _tries(question: str) -> Iterator[str]:
    """The question, then the same with ever more insistence: at temperature 0 the same words get the same reply."""
    for n in range(TRIES):
        yield question + AGAIN * n


def json_in(text: str) -> dict[str, object]:
    """The JSON object in a reply, a fence or a word around it forgiven.

    Raises:
        Unreadable: there is none.

    >>> json_in('Sure: ```json\\n{"leaks": true}\\n```')
    {'leaks': True}
    """
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        try:
            found, _ = decoder.raw_decode(text, at)
        except ValueError:
            at = text.find("{", at + 1)
            continue
        if isinstance(found, dict):
            return found
        at = text.find("{", at + 1)
    raise Unreadable(text.strip() or "nothing")
