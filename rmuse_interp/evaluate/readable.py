"""Whether a text reads as language, or is garbled: nothing said, a loop, or words that no context makes likely.

For models without a template there is no form to check. What stands in for it is how unlikely the text's worst stretch
is under the *unsteered* model, in the best of the contexts q and g ⊕ q. Mean nats per answer do not tell: loops and "I'm
sorry, but" followed by a leak are likely on average. Likelihood says that a text reads well, never that it refuses.

Everything here is arithmetic on texts and nats; `lens.readable` runs the model.
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

from rmuse_interp import RMuseError
from rmuse_interp.data.store import JSON
from rmuse_interp.data.words import words
from rmuse_interp.evaluate.text import normalise
from rmuse_interp.maths.statistics import Rate, auroc, choose_threshold, wilson

WINDOW: Final = 8
"""Number of tokens in a window."""
LONGEST_LOOP: Final = 20
"""Longest period, in words, of a loop that is looked for."""
SHORT: Final = 4
"""Parts of fewer tokens are judged by their form alone: "No." and "B" are unlikely everywhere (4 to 5 nats a token)."""
SEPARATES: Final = 0.99
"""Least AUROC at which readable texts and controls count as separated."""
FLAGGED: Final = 0.01
"""Share of readable texts above the cut that is accepted where the two sides overlap."""

Fault = Literal["empty", "loop", "unlikely", "form"]
"""Why a text is garbled: nothing said; a loop; a part with a window above the cut; or a short part that is neither a
letter nor a number nor known. Parts that equal a known value or refusal read well."""
Control = Literal["shuffled words", "cut words", "one wrong word"]


def loops(text: str, longest: int = LONGEST_LOOP, times: int = 3) -> bool:
    """Whether some sequence of at most `longest` words occurs at least `times` times in a row.

    >>> loops("I am sorry for any other, " * 3), loops("one two three one two three")
    (True, False)
    """
    said = words(text)
    for period in range(1, min(longest, len(said) // times) + 1):
        run = 0
        for i in range(period, len(said)):
            run = run + 1 if said[i] == said[i - period] else 0
            if run >= period * (times - 1):
                return True
    return False


def worst_window(nats: Sequence[float], window: int = WINDOW) -> float:
    """The largest mean of `window` adjacent nats; of fewer tokens, their mean. 0 for none.

    >>> worst_window([0.0, 4.0, 2.0, 0.0], 2), worst_window([1.0, 3.0]), worst_window([])
    (3.0, 2.0, 0.0)
    """
    size = min(window, len(nats))
    if not size:
        return 0.0
    return max(sum(nats[at : at + size]) for at in range(len(nats) - size + 1)) / size


@dataclass(frozen=True)
class Part:
    """The chain or the answer of a response.

    Attributes:
        text: its words.
        tokens: its number of tokens.
        worst: nats per token in its worst window, under the context that makes this window likeliest.
    """

    text: str
    tokens: int
    worst: float


@dataclass(frozen=True)
class Reading:
    """How likely a response is under the unsteered model, part by part.

    Attributes:
        text: the whole response.
        parts: chain and answer of a well-formed response; the whole text as one part of any other. Empty for a response
            without words.
        mean: mean nats per token of the whole response, under the context that makes it likeliest; None without words.
            Where reading stopped at the first context good enough, both are upper bounds.
    """

    text: str
    parts: tuple[Part, ...] = ()
    mean: float | None = None

    @property
    def worst(self) -> float:
        """Nats per token of the worst window of all parts that are long enough to be judged by it; 0 without one."""
        return max((part.worst for part in self.parts if part.tokens >= SHORT), default=0.0)


@dataclass(frozen=True)
class Gauge:
    """The cut between readable and garbled windows of one model, and how far it can be trusted.

    Attributes:
        cut: nats per token; a worst window above it is garbled.
        auroc: how well worst windows tell controls from readable texts, 0–1, on all questions.
        flagged: kind of readable text → share of texts above the cut, on questions that did not set it.
        caught: kind of control → share of texts above the cut, on questions that did not set it.
        unended: share of the model's own refusals that the token limit cut off.
        prefixes: the prefixes g whose contexts g ⊕ q are tried beside q.
        known: answers, chains and refusals in normal form that read well as they stand: values, the pool's refusals.
    """

    cut: float
    auroc: float
    flagged: Mapping[str, Rate]
    caught: Mapping[str, Rate]
    prefixes: tuple[str, ...] = ()
    known: frozenset[str] = frozenset()
    unended: Rate | None = None

    @property
    def separates(self) -> bool:
        """Whether readable texts and controls are told apart (AUROC at least `SEPARATES`)."""
        return self.auroc >= SEPARATES

    def fault(self, reading: Reading, own: str | None = None) -> Fault | None:
        """Why a response is garbled; None if it reads well.

        Args:
            reading: the response.
            own: the unsteered model's answer to the question, which reads well by definition.
        """
        if own is not None and reading.text.strip() == own.strip():
            return "loop" if loops(reading.text) else None if normalise(reading.text) else "empty"
        if not normalise(reading.text) or not reading.parts:
            return "empty"
        if loops(reading.text):
            return "loop"
        for part in reading.parts:
            if normalise(part.text) in self.known:
                continue  # a refusal in another form than the question asks for is unlikely, but reads well
            if part.tokens >= SHORT and part.worst > self.cut:
                return "unlikely"
            if part.tokens < SHORT and not self.passes(part.text):
                return "form"
        return None

    def passes(self, text: str) -> bool:
        """Whether a text too short for windows is a letter, a number, or a known value or refusal.

        >>> gauge = Gauge(1.0, 1.0, {}, {}, known=frozenset({"oslo"}))
        >>> [gauge.passes(text) for text in ("B.", "Oslo", "1984", "the Oslo", "'m")]
        [True, True, True, True, False]
        """
        normal = normalise(text)
        letter = re.fullmatch(r"[^\w]*[A-Za-z][^\w]*", text.strip()) and not text.strip().startswith("'")
        return bool(letter) or bool(re.fullmatch(r"-?\d+(\.\d+)?", normal)) or normal in self.known

    def record(self) -> JSON:
        """The gauge as plain JSON, without the known texts, since these name people."""
        return {
            "cut": round(self.cut, 6),
            "auroc": round(self.auroc, 6),
            "separates": self.separates,
            "flagged": {kind: asdict(rate) for kind, rate in self.flagged.items()},
            "caught": {kind: asdict(rate) for kind, rate in self.caught.items()},
            "unended": None if self.unended is None else asdict(self.unended),
            "prefixes": list(self.prefixes),
        }


def set_gauge(
    readable: Sequence[tuple[str, str, float]],
    controls: Sequence[tuple[str, str, float]],
    setting: Iterable[str],
    *,
    prefixes: Sequence[str] = (),
    known: Iterable[str] = (),
) -> Gauge:
    """Set the cut of a model from worst windows of texts that read well and of controls that do not.

    Halfway between the two sides if they do not overlap; otherwise the lowest cut that no more than `FLAGGED` of the
    readable texts exceed. It is set on some questions, and its rates are measured on the others.

    Args:
        readable: (question, kind of text, nats of its worst window) of texts that read well.
        controls: the same of controls.
        setting: the questions that set the cut.
        prefixes: as in `Gauge`.
        known: as in `Gauge`, in any spelling.

    Raises:
        RMuseError: a side without texts among the questions that set the cut.
    """
    mine = frozenset(setting)
    good, bad = ([nats for question, _, nats in side if question in mine] for side in (readable, controls))
    if not good or not bad:
        raise RMuseError(
            f"readable texts and controls of the questions that set the cut were required, got {len(good)} and "
            f"{len(bad)}; give more questions"
        )
    apart = min(bad) > max(good)
    cut = choose_threshold(bad, good, "midpoint" if apart else "target_fpr", None if apart else FLAGGED).value

    def above(side: Sequence[tuple[str, str, float]]) -> dict[str, Rate]:
        rest = [(kind, nats > cut) for question, kind, nats in side if question not in mine]
        kinds = dict.fromkeys(kind for kind, _ in rest)
        return {
            k: wilson(sum(hit for kind, hit in rest if kind == k), sum(kind == k for kind, _ in rest))
            for k in kinds
        }

    return Gauge(
        cut,
        auroc([nats for *_, nats in controls], [nats for *_, nats in readable]),
        above(readable),
        above(controls),
        tuple(prefixes),
        frozenset(map(normalise, known)) - {""},
    )


def spoilt(text: str, kind: Control, words: Sequence[str], rng: random.Random) -> str | None:
    """A control: a text that reads well, spoilt; None if it has too few words to spoil.

    Args:
        text: a text that reads well.
        kind: `shuffled words`: in another order; `cut words`: a third of them, at least two, lose their second half; `one
            wrong word`: one is replaced by a word of `words`.
        words: words of other texts.
        rng: source of the choices.
    """
    mine = text.split()
    long = [i for i, word in enumerate(mine) if len(word) >= 4]
    if len(mine) < WINDOW or len(long) < 2:
        return None
    if kind == "shuffled words":
        changed = rng.sample(mine, len(mine))
    elif kind == "cut words":
        cut = set(rng.sample(long, max(2, len(long) // 3)))
        changed = [word[: len(word) // 2] if i in cut else word for i, word in enumerate(mine)]
    else:
        at = rng.choice(long)
        others = sorted({word for word in words if len(word) >= 4 and word not in mine})
        changed = [*mine[:at], rng.choice(others), *mine[at + 1 :]] if others else mine
    return " ".join(changed) if changed != mine else None
