"""`Template`: how a model is asked for reasoning and for an answer alone; `fault`: what its response lacks."""

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
"""Why a response can't be fitted on."""


@dataclass(frozen=True)
class Template:
    """How a question is put, stepwise and direct, and where the model's reasoning begins and ends.

    Args:
        stepwise: put behind a question to have it reasoned about; empty for models that think on their own.
        direct: put behind a question to have the answer alone; empty for the benchmark's own direct form.
        delimiters: what opens the reasoning, and what stands between reasoning and answer.

    Raises:
        RMuseError: delimiters that are empty or equal.
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
        """The question as it is put to the model.

        >>> e = Example("forget_5/7/generation/0/text", "forget", "generation", "text", "Where?", "Oslo")
        >>> Template("Think first.").prompt(e)
        'Where? Think first.'
        """
        if form == "direct" and not self.direct:
            return example.prompt(direct=True)
        return self.put(example.prompt(), form)

    def put(self, question: str, form: Form = "stepwise") -> str:
        """A question in plain words as it is put to the model; once put, it is left as it is."""
        told = self.stepwise if form == "stepwise" else self.direct
        return question if question.endswith(told) else f"{question} {told}".strip()

    def record(self) -> dict[str, object]:
        """Plain JSON, which `of_record` reads."""
        return {**asdict(self), "delimiters": list(self.delimiters)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Template":
        """The template that `record` wrote."""
        return cls(**{**record, "delimiters": tuple(record["delimiters"])})


TEMPLATES: Final[dict[TemplateName, Template]] = {
    "think": Template(),
    "reasoning": Template(
        "Think step by step: write 'Reasoning:' and your steps, then 'Answer:' and the answer.",
        "Write the answer alone, without reasoning.",
        ("Reasoning:", "Answer:"),
    ),
}
"""`think` for models that reason on their own, `reasoning` for those that have to be told how."""


def fault(
    text: str, delimiters: tuple[str, str], form: Form = "stepwise", *, cut: bool = False
) -> Reason | None:
    """What keeps a response from being fitted on; None where nothing does.

    Args:
        text: the response.
        delimiters: of reasoning and answer.
        form: `stepwise` needs both spans, as `spans.split_response` does; `direct` an answer, which stands behind the
            reasoning where the model reasoned all the same.
        cut: whether the response stopped for want of tokens.

    >>> fault("The capital is Oslo.", ("<think>", "</think>"))
    'no opening delimiter'
    >>> fault("<think> The capital is", ("<think>", "</think>"), cut=True)
    'ran out of tokens'
    """
    opener, closer = delimiters
    # Before the count of tokens: more of them would not help a model that never began to reason.
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
