"""`Gate`, the face that all gates share, and their combinations by and, or, not."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rmuse_interp import RMuseError
from rmuse_interp.maths.statistics import Rate, ThresholdRule, choose_threshold, wilson
from rmuse_interp.parts.part import Part
from rmuse_interp.parts.pooled import require_finite

Readout = Literal["last", "question", "image", "draft"]
"""What is read at the gate's block: the last prompt token; the mean over the prompt's ordinary text tokens after the
image (over all of them where there is none); the mean over the image tokens; or the mean from the last prompt token to
the end of the model's own unsteered response, its draft. A draft needs a pass of its own, before the gate decides."""

READOUTS: Final[tuple[Readout, ...]] = get_args(Readout)

Expected = dict[str, Any]
"""What a threshold makes one expect, as plain JSON: ``rule``, and ``false_alarms`` and ``misses``, each a `Rate` as a
dict (value, low, high, n). ``misses`` is None where they could not be estimated."""

_FIXED: Final = "a combination fires at margin 0 of its gates; set the threshold of those instead"


class Gate(Part):
    """`fires(h) = score(h) > threshold` on the state read at one block of the prompt. Abstract.

    Args:
        layer: 0-based block whose output is read, before any edit there.
        readout: which tokens are read.
        threshold: in units of the score.
        prefix: text g put before the question in a pass of the gate's own; None scores the question itself.
        scale: what one unit of `margin` is worth in units of the score, so that margins of different gates
            compare.
        expected: the error rates that `calibrate` found at this threshold; None for a threshold set by hand.

    Raises:
        RMuseError: a negative block, an unknown read-out, a scale that is not positive.
    """

    def __init__(
        self,
        layer: int,
        readout: Readout,
        threshold: float | int,
        prefix: str | None = None,
        scale: float | int = 1.0,
        expected: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if layer < 0 or readout not in READOUTS or not scale > 0:
            raise RMuseError(
                f"a gate needs a 0-based block, a read-out out of {', '.join(READOUTS)} and a positive scale, "
                f"got block {layer}, {readout!r}, scale {scale}"
            )
        self.layer = layer
        self.readout = readout
        self.threshold = float(threshold)
        self.prefix = prefix
        self.scale = float(scale)
        self.expected: Expected | None = None if expected is None else dict(expected)

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Score per state in float32 (float64 for float64 states); larger = steer."""
        raise NotImplementedError(f"{type(self).__name__} has no score")

    def margin(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """`(score − threshold)/scale`: positive where the gate fires."""
        return (self.score(h) - self.threshold) / self.scale

    def fires(self, h: Float[Tensor, "*batch d"]) -> Bool[Tensor, "*batch"]:
        """Whether to steer, per state."""
        return self.score(h) > self.threshold

    def at_threshold(self, threshold: float | int) -> "Gate":
        """The same gate with another threshold, of which no rates are known."""
        return self._with(threshold=float(threshold), expected=None)

    def calibrate(
        self,
        forget: Float[Tensor, " examples"] | Float[Tensor, "examples d"],
        others: Float[Tensor, " others"] | Float[Tensor, "others d"],
        *,
        rule: ThresholdRule = "midpoint",
        level: float | int | None = None,
        held_out: bool = True,
    ) -> "Gate":
        """The same gate with the threshold that a rule asks for, the rates it makes one expect, and a scale.

        The rates are those of the scores given, with 95 % Wilson intervals, kept in `expected`. The scale is
        the spread of the scores about their side's mean.

        Args:
            forget: of forget queries, scores that were held out from fitting (`held_out_scores`), or states
                that this gate was not fitted on.
            others: the same of the queries that must not be steered.
            rule: see `choose_threshold`.
            level: see `choose_threshold`.
            held_out: False where the gate has seen the forget queries: its misses then count as unknown.

        Raises:
            RMuseError: as `choose_threshold`; a combination, which has no threshold of its own.
        """
        hits, rest = (x if x.ndim == 1 else self.score(x) for x in (forget, others))
        found = choose_threshold(hits, rest, rule, level)
        missed = wilson(found.tpr.n - round(found.tpr.value * found.tpr.n), found.tpr.n)
        expected = {
            "rule": rule if level is None else f"{rule} {level:g}",
            "false_alarms": asdict(found.fpr),
            "misses": asdict(missed) if held_out else None,
        }
        return self._with(threshold=found.value, scale=spread(hits, rest) or 1.0, expected=expected)

    def _with(self, **changes: Any) -> "Gate":
        return self.changed(**changes)

    def __and__(self, other: "Gate") -> "AllOf":
        return AllOf([self, other])

    def __or__(self, other: "Gate") -> "AnyOf":
        return AnyOf([self, other])

    def __invert__(self) -> "Not":
        return Not(self)

    def describe(self) -> str:
        return self._condition() + ("" if self.expected is None else f" (expects {_rates(self.expected)})")

    def _condition(self) -> str:
        return f"{self._name()} at block {self.layer}, {self.readout} > {self.threshold:.4g}"

    def _name(self) -> str:
        return type(self).__name__


def _rates(expected: Expected) -> str:
    said = []
    for name, key in (("false alarms", "false_alarms"), ("misses", "misses")):
        if expected[key] is None:
            said.append(f"{name} unknown")
            continue
        rate = Rate(**expected[key])
        said.append(f"{100 * rate.value:.1f} % {name} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]")
    return ", ".join(said)


class _Combination(Gate):
    """Gates on one state, combined through their margins; block, read-out and prefix are those of the children."""

    gates: nn.ModuleList
    _word = ""

    def __init__(self, gates: Sequence[Gate]):
        if not gates:
            raise RMuseError("a combination of gates needs at least one gate, got none")
        first = gates[0]
        for gate in gates[1:]:
            if (gate.layer, gate.readout, gate.prefix) != (first.layer, first.readout, first.prefix):
                raise RMuseError(
                    "combined gates must read one state, got "
                    f"block {first.layer} {first.readout} and block {gate.layer} {gate.readout}: "
                    "refit one of them where the other reads"
                )
        super().__init__(first.layer, first.readout, 0.0, first.prefix)
        self.hold_parts("gates", gates)

    def _children(self) -> list[Gate]:
        return [gate for gate in self.gates if isinstance(gate, Gate)]

    def _margins(self, h: Tensor) -> Tensor:
        return torch.stack([gate.margin(h) for gate in self._children()])

    def _with(self, **changes: Any) -> Gate:
        raise RMuseError(_FIXED)

    def describe(self) -> str:
        return "(" + f" {self._word} ".join(gate.describe() for gate in self._children()) + ")"


class AllOf(_Combination):
    """`a & b`: the least margin; fires where all do.

    Args:
        gates: that read the same state.
    """

    _word = "and"

    def __init__(self, gates: Sequence[Gate]):
        super().__init__(gates)

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Least margin per state."""
        return self._margins(h).amin(dim=0)


class AnyOf(_Combination):
    """`a | b`: the greatest margin; fires where any does.

    Args:
        gates: that read the same state.
    """

    _word = "or"

    def __init__(self, gates: Sequence[Gate]):
        super().__init__(gates)

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Greatest margin per state."""
        return self._margins(h).amax(dim=0)


class Not(Gate):
    """`~a`: the negated margin; fires where a does not (neither fires at margin 0 exactly).

    Args:
        gate: the gate to negate.
    """

    def __init__(self, gate: Gate):
        super().__init__(gate.layer, gate.readout, 0.0, gate.prefix)
        self.gate = gate

    def score(self, h: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Negated margin per state."""
        return -self.gate.margin(h)

    def _with(self, **changes: Any) -> Gate:
        raise RMuseError(_FIXED)

    def describe(self) -> str:
        return f"not {self.gate.describe()}"


def require_both(forget: Tensor, others: Tensor) -> None:
    """Both sides of a gate, not empty and finite, or the error that says what is amiss."""
    if not len(forget) or not len(others):
        raise RMuseError(
            f"a gate needs states of forget and of other queries, got {len(forget)} and {len(others)}; "
            "check the forget and retain splits"
        )
    require_finite(forget, "forget queries")
    require_finite(others, "other queries")


def spread(forget: Float[Tensor, " examples"], others: Float[Tensor, " others"]) -> float:
    """Standard deviation of scores about the mean of their own side, over both sides."""
    centred = torch.cat([side.double() - side.double().mean() for side in (forget, others)])
    return math.sqrt(float(centred.square().mean()))
