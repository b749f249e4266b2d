"""The inputs and results of failure signatures: a method's answers, figures and findings."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp.edits.trace import SteeringTrace
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.maths.statistics import Rate
from rmuse_interp.method.rmuse import RMuse
from rmuse_interp.runs.traces import Key

State = Literal["found", "absent", "not checked"]


@dataclass(frozen=True)
class Figure:
    """One piece of evidence: a share or a number, with its 95 % interval and what it was counted over."""

    what: str
    value: float | int | None
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @classmethod
    def of(cls, what: str, rate: Rate) -> "Figure":
        """Make a figure of a share and its Wilson interval."""
        value = None if math.isnan(rate.value) else rate.value
        return cls(what, value, rate.low, rate.high, rate.n)


@dataclass(frozen=True)
class Finding:
    """The result of checking one method's answers for one signature.

    Attributes:
        name: name of the signature.
        method: the method that gave the answers.
        state: `found`, `absent`, or `not checked` for lack of what `missing` names.
        evidence: the figures that decided it.
        cause: the likely cause; empty if nothing was found.
        setting: the setting to try; likewise.
        missing: what the run lacks, with the command that provides it.
    """

    name: str
    method: str
    state: State
    evidence: tuple[Figure, ...] = ()
    cause: str = ""
    setting: str = ""
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Case:
    """One method of a run, with all that is examined.

    Attributes:
        method: its name.
        answers: its transcripts.
        plain: the unsteered model's transcripts by id; empty if it was not run.
        traces: steering traces by id; None if none were recorded.
        bundle: the fitted bundle; None if unknown or absent.
        delimiters: delimiters of reasoning and answer.
    """

    method: str
    answers: Sequence[Transcript]
    plain: Mapping[str, Transcript] = field(default_factory=dict)
    traces: Mapping[str, SteeringTrace] | None = None
    bundle: RMuse | None = None
    delimiters: tuple[str, str] = ("<think>", "</think>")

    @property
    def steered(self) -> list[Transcript]:
        """Return the answers that were steered: the gate fired, or there is no gate."""
        return [t for t in self.answers if t.fired is not False]

    def acted(self, answers: Iterable[Transcript], quantity: str) -> Float[Tensor, " n"]:
        """Return one traced quantity at all edited tokens of these answers, over all sites, without NaN."""
        parts = [getattr(trace, quantity)[trace.acted] for trace in self.traced(answers)]
        values = torch.cat(parts) if parts else torch.zeros(0)
        return values[values.isfinite()]

    def traced(self, answers: Iterable[Transcript]) -> list[SteeringTrace]:
        """Return the traces of these answers."""
        return [self.traces[t.id] for t in answers if t.id in self.traces] if self.traces else []


def cases(
    transcripts: Sequence[Transcript],
    traces: Mapping[Key, SteeringTrace] | None,
    bundles: Mapping[str, RMuse],
    delimiters: tuple[str, str] = ("<think>", "</think>"),
    plain: str = "vanilla",
) -> list[Case]:
    """List the methods of a run that steer: those with a bundle, traces or a gate.

    Args:
        transcripts: transcripts of all methods.
        traces: traces of all methods, by method and id; None for a run without traces.
        bundles: bundles by method.
        delimiters: delimiters of reasoning and answer.
        plain: name of the unsteered model.
    """
    own: dict[str, list[Transcript]] = {}
    for t in transcripts:
        own.setdefault(t.method, []).append(t)
    unsteered = {t.id: t for t in own.pop(plain, [])}
    found = []
    for method, answers in own.items():
        mine = {name: trace for (by, name), trace in (traces or {}).items() if by == method}
        gated = any(t.fired is not None for t in answers)
        if method in bundles or mine or gated:
            held = mine if mine else None
            found.append(Case(method, answers, unsteered, held, bundles.get(method), delimiters))
    return found


def to_json(findings: Sequence[Finding]) -> list[dict[str, object]]:
    """Return the findings as plain JSON."""
    return [asdict(finding) for finding in findings]
