"""`Attack` and `Asked`: a way of asking again, and the question as it is then asked."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, Example


@dataclass(frozen=True)
class Asked:
    """One variant of a question.

    Args:
        variant: what tells it from the attack's other variants of the same question.
        prompt: the question's text.
        attributes: the values that must not leak; those that the attack itself tells are not among them.
        image: the encoded picture, None for a question in text.
        prefill: words put into the assistant's mouth.
        opening: a harmless question asked first, with the picture; the method under attack answers it, and the
            question follows in the same conversation.
    """

    variant: str
    prompt: str
    attributes: dict[str, str] = field(default_factory=dict, hash=False)
    image: bytes | None = field(default=None, repr=False)
    prefill: str | None = None
    opening: str | None = None

    @property
    def modality(self) -> str:
        """`image` or `text`, by what the model is shown."""
        return "text" if self.image is None else "image"

    @classmethod
    def plainly(cls, example: Example, variant: str = "", **changes: Any) -> "Asked":
        """The question as the benchmark asks it, with some of it changed."""
        own = cls(variant, example.prompt(), dict(example.attributes), example.image)
        return replace(own, **changes)


Ask = Callable[[Example, Benchmark, random.Random], tuple[Asked, ...]]
"""The variants of a question; none where the attack does not apply to it. Draws from the generator alone."""


@dataclass(frozen=True)
class Attack:
    """A way to ask for what was to be forgotten.

    Args:
        name: in scores and options.
        what: in a few words, for listings.
        ask: gives the variants of a question.
        samples: responses per variant.
        temperature: of sampling; 0 is greedy.
        bits: of the weights of the language model's linear layers; None leaves them.
    """

    name: str
    what: str
    ask: Ask
    samples: int = 1
    temperature: float | int = 0.0
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.samples < 1 or self.temperature < 0 or (self.samples > 1 and self.temperature == 0):
            raise RMuseError(
                f"{self.name}: samples ≥ 1 were required, of several a temperature above 0, got {self.samples} at "
                f"{self.temperature:g}"
            )

    def variants(self, example: Example, benchmark: Benchmark, seed: int = 0) -> tuple[Asked, ...]:
        """The variants of a question; what is drawn for them follows from seed, attack and the question's id alone."""
        return self.ask(example, benchmark, random.Random(f"{seed}/{self.name}/{example.id}"))
