"""`Gate` decides whether to steer, from a scorer, a read-out and a threshold; gates combine by and, or, not."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, final, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.maths.statistics import Rate, ThresholdRule, choose_threshold, wilson
from rmuse_interp.parts.part import Part
from rmuse_interp.parts.pooled import require_finite

Readout = Literal["last", "question", "peak", "image", "draft"]
"""Tokens read at the gate's block. `last`: the last prompt token. `question`: the mean over the prompt's ordinary text
tokens after the image (all of them without an image). `peak`: the largest value of each dimension over the same tokens,
which a long request around a name does not dilute. `image`: the mean over the image tokens. `draft`: the mean from
the last prompt token to the end of the model's own unsteered response, which takes a separate pass before the gate."""

READOUTS: Final[tuple[Readout, ...]] = get_args(Readout)

Expected = dict[str, Any]
"""Expected error rates at a threshold, as plain JSON: ``rule``, ``false_alarms`` and ``misses``, the last two each a
`Rate` as a dict (value, low, high, n). ``misses`` is None if it could not be estimated."""

_FIXED: Final = "a combination fires at margin 0 of its gates; set the threshold of those instead"


@dataclass(frozen=True)
class Read:
    """A gate's input: the output of a decoder block, before any edit there, averaged over a span of the query.

    Args:
        block: 0-based decoder block.
        span: the tokens read.
        prefix: text g put before the question in a separate pass for the gate; None reads the question as it is.

    Raises:
        RMuseError: a negative block, an unknown span.
    """

    block: int
    span: Readout = "last"
    prefix: str | None = None

    def __post_init__(self) -> None:
        if self.block < 0 or self.span not in READOUTS:
            raise RMuseError(
                f"a gate reads a 0-based block and a span out of {', '.join(READOUTS)}, got block {self.block} and "
                f"{self.span!r}"
            )

    def describe(self) -> str:
        """The phrase shown for it by ``print(plan)``."""
        return f"block {self.block}, {self.span}" + ("" if self.prefix is None else " of g ⊕ q")


class Scorer(Part):
    """Abstract score of a state: a larger score means steer. A scorer knows neither block nor span."""

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """One score per state, in float32 (float64 for float64 states)."""
        raise NotImplementedError(f"{type(self).__name__} has no score")

    @property
    def below(self) -> bool:
        """Whether the score is the negative of the quantity that `describe` names."""
        return False

    @property
    def kind(self) -> str:
        """The name of a gate with this scorer in ``scores.json``."""
        return f"{type(self).__name__}Gate"


@final
class Gate(Part):
    """A decision whether to steer: `fires(h) = score(h) > threshold`, h the state that `reads` names.

    A score that is NaN or infinite fires too: where nothing can be told about a query, what is forgotten stays hidden.

    Args:
        scorer: computes the score.
        reads: the state that is scored.
        threshold: in units of the score.
        scale: one unit of `margin` in units of the score, which makes margins of different gates comparable.
        expected: error rates that `calibrate` found at this threshold; None for a threshold set by hand.

    Raises:
        RMuseError: a scale that is not positive, a threshold or scale that is not finite; a combination of gates that
            reads another state than they do, or has a threshold or scale of its own.

    Examples:
        >>> from rmuse_interp.parts.gates import LinearDiscriminant
        >>> gate = Gate(LinearDiscriminant(torch.tensor([1.0, 0.0]), bias=0.0), Read(block=7), threshold=0.5)
        >>> gate.fires(torch.tensor([[1.0, 3.0], [0.0, 3.0]])).tolist()
        [True, False]
    """

    def __init__(
        self,
        scorer: Scorer,
        reads: Read | Mapping[str, Any],
        threshold: float | int = 0.0,
        scale: float | int = 1.0,
        expected: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if not scale > 0:
            raise RMuseError(f"a gate needs a positive scale, got {scale}")
        self.scorer = scorer
        self.reads = reads if isinstance(reads, Read) else Read(**reads)
        self.threshold = float(threshold)
        self.scale = float(scale)
        self.expected: Expected | None = None if expected is None else dict(expected)
        if isinstance(scorer, Combination):
            scorer.require_reads(self.reads)
            if (self.threshold, self.scale, self.expected) != (0.0, 1.0, None):
                raise RMuseError(_FIXED)

    @property
    def layer(self) -> int:
        """0-based block whose output is read."""
        return self.reads.block

    @property
    def readout(self) -> Readout:
        """Which tokens are read."""
        return self.reads.span

    @property
    def prefix(self) -> str | None:
        """Text put before the question in a separate pass for the gate, or None."""
        return self.reads.prefix

    @property
    def kind(self) -> str:
        """The gate's name in ``scores.json``."""
        return self.scorer.kind

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """One score per state, in float32 (float64 for float64 states); larger = steer."""
        return self.scorer.score(h)

    def margin(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """`(score − threshold)/scale`: positive where the gate fires; NaN, as it fires too, where no score is finite."""
        score = self.score(h)
        return ((score - self.threshold) / self.scale).masked_fill(~torch.isfinite(score), torch.nan)

    def fires(self, h: Float[Tensor, "*batch d"]) -> Bool[Tensor, "*batch"]:
        """Whether to steer, one per state."""
        return self.fires_at(self.score(h))

    def fires_at(self, score: Float[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
        """Whether to steer at these scores. One that is not finite says nothing about the query, so the gate fires."""
        return (score > self.threshold) | ~torch.isfinite(score)

    def at_threshold(self, threshold: float | int) -> "Gate":
        """The same gate with another threshold, for which no error rates are known."""
        return self.changed(threshold=float(threshold), expected=None)

    def calibrate(
        self,
        forget: Float[Tensor, " examples"] | Float[Tensor, "examples d"],
        others: Float[Tensor, " others"] | Float[Tensor, "others d"],
        *,
        rule: ThresholdRule = "midpoint",
        level: float | int | None = None,
        held_out: bool = True,
    ) -> "Gate":
        """The same gate with a threshold chosen by a rule, the expected error rates, and a scale.

        `expected` holds the rates on the given scores, with 95 % Wilson intervals. The scale is the standard
        deviation of the scores about the mean of their side.

        Args:
            forget: held-out scores of forget queries (see `held_out_scores`), or states that this gate was
                not fitted on.
            others: the same for queries that must not be steered.
            rule: see `choose_threshold`.
            level: see `choose_threshold`.
            held_out: False if the gate was fitted on the forget queries; its misses are then unknown.

        Raises:
            RMuseError: see `choose_threshold`; also for a combination, which has no threshold of its own.
        """
        hits, rest = (x if x.ndim == 1 else self.score(x) for x in (forget, others))
        found = choose_threshold(hits, rest, rule, level)
        missed = wilson(found.tpr.n - round(found.tpr.value * found.tpr.n), found.tpr.n)
        expected = {
            "rule": rule if level is None else f"{rule} {level:g}",
            "false_alarms": asdict(found.fpr),
            "misses": asdict(missed) if held_out else None,
        }
        return self.changed(threshold=found.value, scale=spread(hits, rest) or 1.0, expected=expected)

    def __and__(self, other: "Gate") -> "Gate":
        return Gate(AllOf([self, other]), self.reads)

    def __or__(self, other: "Gate") -> "Gate":
        return Gate(AnyOf([self, other]), self.reads)

    def __invert__(self) -> "Gate":
        return Gate(Not(self), self.reads)

    def describe(self) -> str:
        if isinstance(self.scorer, Combination):
            return self.scorer.describe()
        sign, edge = ("<", -self.threshold) if self.scorer.below else (">", self.threshold)
        rates = "" if self.expected is None else f" (expects {_rates(self.expected)})"
        return f"{self.scorer.describe()} at {self.reads.describe()} {sign} {edge:.4g}{rates}"


def _rates(expected: Expected) -> str:
    said = []
    for name, key in (("false alarms", "false_alarms"), ("misses", "misses")):
        if expected[key] is None:
            said.append(f"{name} unknown")
            continue
        rate = Rate(**expected[key])
        said.append(f"{100 * rate.value:.1f} % {name} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]")
    return ", ".join(said)


class Combination(Scorer):
    """Abstract combination of the margins of gates that read the same state."""

    @abstractmethod
    def _gates(self) -> list[Gate]:
        """The gates that are combined."""

    def require_reads(self, reads: Read) -> None:
        """Raise `RMuseError` unless all gates read this state."""
        for gate in self._gates():
            if gate.reads != reads:
                raise RMuseError(
                    f"combined gates must read one state, got {reads.describe()} and {gate.reads.describe()}: refit one "
                    "of them where the other reads"
                )

    @property
    def kind(self) -> str:
        """The name of a gate with this scorer in ``scores.json``."""
        return type(self).__name__


class _Several(Combination):
    gates: Sequence[Gate]
    _word = ""

    def __init__(self, gates: Sequence[Gate]):
        super().__init__()
        if not gates:
            raise RMuseError("a combination of gates needs at least one gate, got none")
        self.hold_parts("gates", gates)

    def _gates(self) -> list[Gate]:
        return list(self.gates)

    def _margins(self, h: Tensor) -> Tensor:
        return torch.stack([gate.margin(h) for gate in self.gates])

    def describe(self) -> str:
        return "(" + f" {self._word} ".join(gate.describe() for gate in self.gates) + ")"


class AllOf(_Several):
    """`a & b`: the smallest margin; fires where all gates do.

    Args:
        gates: gates that read the same state.
    """

    _word = "and"

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Smallest margin, one per state."""
        return self._margins(h).amin(dim=0)


class AnyOf(_Several):
    """`a | b`: the largest margin; fires where any gate does.

    Args:
        gates: gates that read the same state.
    """

    _word = "or"

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Largest margin, one per state."""
        return self._margins(h).amax(dim=0)


class Not(Combination):
    """`~a`: the negated margin; fires where `a` does not (at margin 0 exactly, neither fires).

    Args:
        gate: the gate to negate.
    """

    def __init__(self, gate: Gate):
        super().__init__()
        self.gate = gate

    def _gates(self) -> list[Gate]:
        return [self.gate]

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Negated margin, one per state."""
        return -self.gate.margin(h)

    def describe(self) -> str:
        return f"not {self.gate.describe()}"


def require_both(forget: Tensor, others: Tensor) -> None:
    """Raise `RMuseError` unless both sides have states, all of them finite."""
    if not len(forget) or not len(others):
        raise RMuseError(
            f"a gate needs states of forget and of other queries, got {len(forget)} and {len(others)}; "
            "check the forget and retain splits"
        )
    require_finite(forget, "forget queries")
    require_finite(others, "other queries")


def spread(forget: Float[Tensor, " examples"], others: Float[Tensor, " others"]) -> float:
    """Standard deviation of the scores of both sides, each about its own side's mean."""
    centred = torch.cat([side.double() - side.double().mean() for side in (forget, others)])
    return math.sqrt(float(centred.square().mean()))
