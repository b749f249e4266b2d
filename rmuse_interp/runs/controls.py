"""Two controls: what a fitted gate does without any steering, with a canned refusal or with g before the question.

Whoever steers has to do better than these in something: in what a chain says, in tokens that stream before the gate has
decided, in how alike answers to strangers and to forgotten people are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark
from rmuse_interp.data.spans import DEFAULT_DELIMITERS, parse_response
from rmuse_interp.edits.plan import Plan
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.lens.respond import Response, verdicts
from rmuse_interp.models.encoding import Picture
from rmuse_interp.models.prompts import Prompt, behind

ControlName = Literal["canned", "prefixed"]
CONTROLS: Final[Mapping[str, str]] = {
    "canned": "the gate of the first bundle, and a refusal of the pool in place of the answer",
    "prefixed": "the gate of the first bundle, and the refusing prefix g put before the question",
}
"""The controls by their names on the command line."""


@dataclass(frozen=True)
class Control:
    """What is done with the questions on which a plan's gates fire, in place of its edits.

    Attributes:
        kind: `canned`: a refusal of the pool is given, in the form (with reasoning or without) of the answer it replaces;
            `prefixed`: the unsteered model answers `g ⊕ q`.
        stepwise: the pool's refusals with reasoning; questions take turns.
        direct: those without.
        prefix: g.
        delimiters: of reasoning and answer.
    """

    kind: ControlName
    stepwise: tuple[str, ...]
    direct: tuple[str, ...]
    prefix: str
    delimiters: tuple[str, str] = DEFAULT_DELIMITERS

    @classmethod
    def of(cls, kind: str, benchmark: Benchmark) -> "Control":
        """The control with a benchmark's refusals and its first prefix.

        Raises:
            RMuseError: an unknown kind.
        """
        for known in get_args(ControlName):
            if kind == known:
                return cls(
                    known,
                    tuple(benchmark.refusals_cot),
                    tuple(benchmark.refusals_direct),
                    benchmark.prefixes[0],
                    benchmark.delimiters,
                )
        raise RMuseError(f"a control is one of {', '.join(CONTROLS)}, got {kind!r}")

    def responses(
        self,
        model: LensModel,
        gates: Plan,
        prompts: Sequence[Prompt],
        images: Sequence[Picture],
        prefills: Sequence[str | None],
        ask: Callable[[Sequence[int], Sequence[Prompt]], list[Response]],
    ) -> list[Response]:
        """The responses to some questions, with the gates' verdicts.

        Args:
            model: the model that the gates read.
            gates: the plan whose gates decide; its edits do not act.
            prompts: the questions.
            images: one picture or None per row.
            prefills: text with which each response begins, or None.
            ask: takes the indices of rows and prompts to put in their place; returns the unsteered model's responses.
        """
        decision = gates.decide(model, list(prompts), list(images))
        said = verdicts(gates, decision, [image is not None for image in images])
        fired = [i for i, one in enumerate(said) if one.fired]
        put = dict(enumerate(prompts))
        if self.kind == "prefixed":
            put |= {i: behind(self.prefix, prompts[i]) for i in fired}
        rows = list(range(len(prompts)))
        found = ask(rows, [put[i] for i in rows])
        if self.kind == "canned":
            for turn, i in enumerate(fired):
                formed = parse_response(found[i].text, self.delimiters).well_formed
                pool = (self.stepwise if formed else self.direct) or self.direct or self.stepwise
                text = f"{prefills[i] or ''} {pool[turn % len(pool)]}".strip()
                found[i] = replace(found[i], text=text, ended=True)
        return [
            replace(response, fired=one.fired, score=one.score, margin=one.margin, gate=one.gate)
            for response, one in zip(found, said, strict=True)
        ]
