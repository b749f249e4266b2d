"""`Template`: how to ask a model for reasoning or for the answer alone; `fault`: what a response lacks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from rmuse_interp import RMuseError
from rmuse_interp.data import Example
from rmuse_interp.data.spans import DEFAULT_DELIMITERS

TemplateName = Literal["think", "reasoning"]
Form = Literal["stepwise", "direct"]
Reason = Literal[
    "no opening delimiter",
    "no closing delimiter",
    "repeated delimiter",
    "empty reasoning",
    "empty answer",
    "ran out of tokens",
]
"""Why a response cannot be used for fitting."""


@dataclass(frozen=True)
class Template:
    """How a question is asked, stepwise and direct, and the delimiters of the model's reasoning.

    Args:
        stepwise: text appended to a question to ask for reasoning; empty for models that reason on their own.
        direct: text appended to ask for the answer alone; empty for the benchmark's own direct form.
        delimiters: the text that opens the reasoning, and the text between reasoning and answer.

    Raises:
        RMuseError: the delimiters are empty or equal.
    """

    stepwise: str = ""
    direct: str = ""
    delimiters: tuple[str, str] = DEFAULT_DELIMITERS

    def __post_init__(self) -> None:
        opener, closer = self.delimiters
        if not opener.strip() or not closer.strip() or opener == closer:
            raise RMuseError(
                f"a template needs two different delimiters, got {opener!r} and {closer!r}; mend them"
            )

    def prompt(self, example: Example, form: Form = "stepwise") -> str:
        """The example's prompt for the model.

        >>> e = Example("forget_5/7/generation/0/text", "forget", "generation", "text", "Where?", "Oslo")
        >>> Template("Think first.").prompt(e)
        'Where? Think first.'
        """
        if form == "direct" and not self.direct:
            return example.prompt(direct=True)
        return self.put(example.prompt(), form)

    def put(self, question: str, form: Form = "stepwise") -> str:
        """The prompt for a plain question; a question that is already in this form stays unchanged."""
        told = self.stepwise if form == "stepwise" else self.direct
        return question if question.endswith(told) else f"{question} {told}".strip()

    def record(self) -> dict[str, object]:
        """The template as plain JSON, which `of_record` reads."""
        return {**asdict(self), "delimiters": list(self.delimiters)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Template":
        """Read the template that `record` wrote."""
        return cls(**{**record, "delimiters": tuple(record["delimiters"])})


TEMPLATES: Final[dict[TemplateName, Template]] = {
    "think": Template(),
    "reasoning": Template(
        "Think step by step: write 'Reasoning:' and your steps, then 'Answer:' and the answer.",
        "Write the answer alone, without reasoning.",
        ("Reasoning:", "Answer:"),
    ),
}
"""`think` is for models that reason on their own, `reasoning` for models that must be told how."""


def fault(
    text: str, delimiters: tuple[str, str], form: Form = "stepwise", *, cut: bool = False
) -> Reason | None:
    """Why a response cannot be used for fitting; None if it can.

    Args:
        text: the response.
        delimiters: the delimiters of reasoning and answer.
        form: `stepwise` requires both spans, as `spans.split_response` does; `direct` requires an answer, which comes
            after the reasoning if the model reasoned anyway.
        cut: whether the response ended because it ran out of tokens.

    >>> fault("The capital is Oslo.", ("<think>", "</think>"))
    'no opening delimiter'
    >>> fault("<think> The capital is", ("<think>", "</think>"), cut=True)
    'ran out of tokens'
    """
    opener, closer = delimiters
    # Checked before `cut`: more tokens would not help a model that never began to reason.
    if form == "stepwise" and not text.lstrip().startswith(opener):
        return "no opening delimiter"
    if cut:
        return "ran out of tokens"
    if opener in text and closer not in text:
        return "no closing delimiter"
    reasoning, _, answer = text.rpartition(closer)
    if form == "stepwise":
        if text.count(opener) > 1 or text.count(closer) > 1:
            return "repeated delimiter"
        if not reasoning.replace(opener, "").strip():
            return "empty reasoning"
    return None if answer.strip() else "empty answer"
