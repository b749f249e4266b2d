"""`Attack`: a way to ask a question again; `Asked`: the question as the attack asks it."""

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
        variant: name that distinguishes it from the attack's other variants of the same question.
        prompt: the question's text.
        attributes: the values that must not leak, without those that the attack itself reveals.
        image: the encoded picture, None for a question in text.
        prefill: text that the assistant's response is made to begin with.
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
        """`image` if the model is shown a picture, else `text`."""
        return "text" if self.image is None else "image"

    @classmethod
    def plainly(cls, example: Example, variant: str = "", **changes: Any) -> "Asked":
        """The question as the benchmark asks it, with the given fields changed."""
        own = cls(variant, example.prompt(), dict(example.attributes), example.image)
        return replace(own, **changes)


Ask = Callable[[Example, Benchmark, random.Random], tuple[Asked, ...]]
"""Function that gives a question's variants (none if the attack does not apply); random only through its generator."""


@dataclass(frozen=True)
class Attack:
    """A way to elicit forgotten facts.

    Args:
        name: the attack's name in scores and options.
        what: a short description for listings.
        ask: function that gives the variants of a question.
        samples: number of responses per variant.
        temperature: sampling temperature; 0 is greedy.
        bits: bits to which the weights of the language model's linear layers are quantised; None leaves them unchanged.
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
        """The variants of a question; random choices depend only on the seed, the attack and the question's id."""
        return self.ask(example, benchmark, random.Random(f"{seed}/{self.name}/{example.id}"))
