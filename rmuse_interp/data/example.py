"""One question of a benchmark with everything that fitting and scoring need to know about it."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from rmuse_interp import RMuseError
from rmuse_interp.data.pictures import rgb
from rmuse_interp.data.prompts import classification_prompt, cloze_prompt
from rmuse_interp.data.spans import DEFAULT_DELIMITERS, render_response
from rmuse_interp.data.stored import Stored

if TYPE_CHECKING:
    from PIL import Image

Kind = Literal["generation", "classification", "cloze", "reasoning", "benign", "stranger"]
Modality = Literal["image", "text"]


class Encoded:
    """The attribute `Example.image`: encoded bytes; a `Stored` picture is read from its file on access."""

    def __get__(self, example: "Example | None", owner: type) -> bytes | None:
        held = None if example is None else example.picture
        return held.read() if isinstance(held, Stored) else held

    def __set__(self, example: "Example", value: bytes | Stored | None) -> None:
        example.__dict__["image"] = value


# A type checker sees the field as the descriptor; at run time its annotation says which values are accepted.
if TYPE_CHECKING:
    Picture = Encoded
else:
    Picture = bytes | Stored | None


@dataclass(frozen=True)
class Example:
    """A question, its reference answer and chain, and the person and picture it is about.

    ``question`` is the benchmark's own text; ``prompt()`` is what the model is asked (options and
    instructions added where the task has them). ``image`` stays encoded, and in a large benchmark on disk
    until it is asked for; ``load_image()`` decodes it. ``attributes`` are the forgettable facts this question
    touches: the values that RIL looks for. For ``classification`` the ``answer`` is the letter of the correct
    option. Truth ratios compare ``paraphrased_answer`` (the right answer in other words) with ``perturbed_answers``
    (wrong answers in the same words); ``paraphrased_question`` rewords the question (R-TOFU has all three).

    >>> e = Example("forget_5/7/generation/0/text", "forget", "generation", "text", "Where?", "Oslo",
    ...             reasoning="She lives in Oslo.")
    >>> e.prompt(), e.response()
    ('Where?', '<think> She lives in Oslo. </think> Oslo')
    """

    id: str
    split: str
    kind: Kind
    modality: Modality
    question: str
    answer: str
    person: str | None = None
    image: Picture = field(default=cast("Picture", None), repr=False)
    reasoning: str | None = None
    direct_question: str | None = None
    direct_answer: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] | None = None
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    paraphrased_question: str | None = None
    source: str = field(default="", compare=False, repr=False)
    """File and row the example was read from, for error messages."""

    def prompt(self, direct: bool = False) -> str:
        """The question as the model is asked it; ``direct=True`` gives the form that asks for the answer alone.

        Raises:
            RMuseError: ``direct`` is set for an example without a direct form, or a classification
                question has no options.
        """
        if self.kind == "classification":
            if not self.options:
                raise RMuseError(f"{self.id}: a classification question needs options, got none")
            return classification_prompt(self.question, self.options)
        if self.kind == "cloze":
            return cloze_prompt(self.question)
        if not direct:
            return self.question
        if self.direct_question is None:
            raise RMuseError(
                f"{self.id}: has no direct form; load it with `load_benchmark`, which supplies one"
            )
        return self.direct_question

    def response(self, delimiters: tuple[str, str] = DEFAULT_DELIMITERS, direct: bool = False) -> str:
        """The reference reply: chain and answer between the delimiters, or the answer alone.

        It is the answer alone for ``direct=True`` and where the example has no reasoning.
        """
        if direct and self.direct_answer is not None:
            return self.direct_answer
        return render_response(None if direct else self.reasoning, self.answer, delimiters)

    def changed(self, **changes: Any) -> "Example":
        """Copy the example with some values changed, without reading its picture.

        `dataclasses.replace` would load the picture's bytes for every changed example.
        """
        return replace(self, **{"image": self.picture, **changes})

    @property
    def picture(self) -> bytes | Stored | None:
        """The source of `image`: equal for all questions about one picture; returned without reading the picture."""
        held: bytes | Stored | None = self.__dict__["image"]
        return held

    def load_image(self) -> "Image.Image | None":
        """The decoded picture as `pictures.rgb` reads it, ``None`` for a text-only question.

        Raises:
            RMuseError: the bytes are not a readable picture (names file and row).
        """
        encoded = self.image
        if encoded is None:
            return None
        return rgb(encoded, f"{self.source or self.id}, field 'image'")


Example.image = Encoded()  # not in the class body, where `field` would take it for the default
