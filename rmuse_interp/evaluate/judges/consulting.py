"""Ask a model that answers in text: keep replies on disk, repeat unreadable ones, count tokens and cost."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar, runtime_checkable

from rmuse_interp import RMuseError
from rmuse_interp.data.store import Store, digest

T = TypeVar("T")
TRIES: Final = 3
"""Number of times a question is asked before it is given up."""
PATIENCE: Final = 5
"""Number of questions with unreadable replies, before any readable one, after which asking stops."""
CHARACTERS_PER_TOKEN: Final = 4
OBJECTS: Final = 50
"""Number of opening braces in a reply at which a JSON object is looked for."""
LONGEST_REPLY: Final = 400_000
"""Number of characters that a JSON object may have."""
REPLY_TOKENS: Final = 40
"""Estimated number of tokens in a reply."""
AGAIN: Final = "\n\nYour last reply was not of the form asked for. Reply with the JSON object alone."


class Reply(NamedTuple):
    """The text of a reply, and the tokens used."""

    text: str
    prompt_tokens: int
    reply_tokens: int


@runtime_checkable
class Answerer(Protocol):
    """A model that answers, on a server or on this machine.

    Attributes:
        name: its name in records.
        at_once: number of questions sent in parallel.
        of: what its replies depend on besides the question, for `store.digest`.
    """

    name: str
    at_once: int
    of: object

    def __call__(self, question: str) -> Reply:
        """Answer one question.

        Raises:
            Refused: this question will not be answered (others may be).
            RMuseError: no further question can be asked for now.
        """


class Unreadable(Exception):
    """A reply that does not have the required form; the exception's text is the reply."""


class Refused(Unreadable):
    """A question that will not be answered, however often it is asked."""


@dataclass
class Budget:
    """Tokens and cost so far; prices are per million tokens, all in the same currency."""

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
        """Whether prices are known, so that a cost can be computed."""
        return self.price_in is not None and self.price_out is not None

    def cost_of(self, prompt_tokens: int, reply_tokens: int) -> float | None:
        """The cost of some tokens; None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (prompt_tokens * self.price_in + reply_tokens * self.price_out) / 1e6

    @property
    def cost(self) -> float | None:
        """The cost so far; None without prices."""
        return self.cost_of(self.prompt_tokens, self.reply_tokens)

    def take(self, reply: Reply, question: str) -> None:
        """Add a reply's tokens to the count, estimated from the texts where the server reports none that can be true."""
        for kind, reported, text in (
            ("prompt_tokens", reply.prompt_tokens, question),
            ("reply_tokens", reply.reply_tokens, reply.text),
        ):
            tokens = reported if reported > 0 else len(text) // CHARACTERS_PER_TOKEN + 1
            setattr(self, kind, getattr(self, kind) + tokens)

    def require_left(self) -> None:
        """Raise unless there is money left for more questions.

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
    """Estimate of what is still to be asked, at four characters per token and `REPLY_TOKENS` per reply."""

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
    """Asks a model questions, several in parallel; equal ones only once, and answered ones never again.

    Attributes:
        asked: the model that answers.
        folder: where replies are kept; None keeps them in memory only.
        budget: tokens and cost so far.
        on_reply: called with (answered, all) after each question of a round, for a progress bar.
        rehearsing: only count what would be asked (see `estimate`), and ask nothing.
    """

    asked: Answerer
    folder: Path | None = None
    budget: Budget = field(default_factory=Budget)
    on_reply: Callable[[int, int], None] | None = None
    rehearsing: bool = False

    def __post_init__(self) -> None:
        of = digest(self.asked.of)
        self.replies = Store(None if self.folder is None else self.folder / f"{of}.jsonl", of)
        self.unreadable: list[str] = []
        self._given_up: set[str] = set()
        self._wanted: dict[str, None] = {}
        self._lock = threading.Lock()
        self._readable = 0

    def ask(self, questions: Sequence[str], read: Callable[[str], T]) -> list[T | None]:
        """Ask all questions and read their replies; None for a question without a readable reply in `TRIES` tries.

        Args:
            questions: the texts of the questions.
            read: function that makes a value from a reply's text, or raises `Unreadable`.

        Raises:
            RMuseError: the model cannot be asked, the money is spent, or the first `PATIENCE` questions got only
                unreadable replies. Every reply so far is on disk.
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
                stop.set()  # else the next question would be asked before this error is seen
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
        said, kept = "", self.replies.get(question)
        for words in _tries(question):
            text, kept = kept, None  # a kept reply that cannot be read (any more) is asked for again
            new = text is None
            try:
                if text is None:
                    with self._lock:
                        self.budget.require_left()
                    reply = self.asked(words)
                    with self._lock:
                        self.budget.take(reply, words)
                    text = reply.text.encode("utf-8", "replace").decode()  # a lone surrogate cannot be kept
                value = read(text)
            except Unreadable as fault:
                said = str(fault)
                if isinstance(fault, Refused):
                    break
                continue
            if new:
                self.replies.put(question, text)  # only readable ones: a repaired server is asked again
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
        """Estimate the tokens and cost of asking these questions and those of a rehearsal."""
        every = dict.fromkeys([*self._wanted, *questions])
        new = [q for q in every if self.replies.get(q) is None]
        prompt_tokens = sum(len(q) // CHARACTERS_PER_TOKEN + 1 for q in new)
        reply_tokens = REPLY_TOKENS * len(new)
        cost = self.budget.cost_of(prompt_tokens, reply_tokens)
        return Quote(len(new), len(every) - len(new), prompt_tokens, reply_tokens, cost)

    def require_affordable(self, estimate: Quote) -> None:
        """Raise unless the budget covers an estimate; call this before asking.

        Raises:
            RMuseError: the estimate is above ``max_cost``.
        """
        limit = self.budget.max_cost
        if limit is not None and estimate.cost is not None and estimate.cost > limit:
            raise RMuseError(
                f"--max-cost {limit:g}: {estimate} would cost more; raise it, or ask fewer questions with --limit"
            )


def _tries(question: str) -> Iterator[str]:
    """Yield the question, then ever more insistent versions: at temperature 0, equal words get equal replies."""
    for n in range(TRIES):
        yield question + AGAIN * n


def json_in(text: str) -> dict[str, object]:
    """Read the JSON object in a reply, ignoring a code fence or words around it.

    Raises:
        Unreadable: there is no JSON object.

    >>> json_in('Sure: ```json\\n{"leaks": true}\\n```')
    {'leaks': True}
    """
    decoder = json.JSONDecoder()
    at = text.find("{")
    for _ in range(OBJECTS):
        if at < 0:
            break
        with suppress(ValueError, RecursionError):
            found, _ = decoder.raw_decode(text[: at + LONGEST_REPLY], at)
            if isinstance(found, dict):
                return found
        at = text.find("{", at + 1)
    raise Unreadable(text.strip()[:LONGEST_REPLY] or "nothing")
