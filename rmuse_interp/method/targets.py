"""Steering targets by name: functions that build an operator from the evidence at one block.

To add a target, add an entry to `TARGETS`; `rmuse fit --auto` tries them all.
"""

from typing import Final

import torch

import rmuse_interp.operators as op
from rmuse_interp.maths.sphere import frechet_mean
from rmuse_interp.method.following import follow, follow_one, making_room, shifted, turned
from rmuse_interp.method.rmuse import Evidence, Protection, Target, nearest_in_step, whole
from rmuse_interp.parts.angle import ACS
from rmuse_interp.parts.prototypes import Prototypes
from rmuse_interp.parts.subspace import Subspace
from rmuse_interp.parts.unlearning import UnlearningSubspace


def nearest(evidence: Evidence, layer: int, unlearning: UnlearningSubspace) -> op.Operator:
    """Transport to the nearest refusal state of any step."""
    return op.Transport(_prototypes(evidence, layer).points)


def mean_of_step(evidence: Evidence, layer: int, unlearning: UnlearningSubspace) -> op.Operator:
    """Transport to the Fréchet mean of the refusal states of the same step."""
    prototypes = _prototypes(evidence, layer)
    assert prototypes.positions is not None
    steps = prototypes.positions.unique()
    means = [frechet_mean(prototypes.points[prototypes.positions == step]) for step in steps]
    return op.Transport(torch.stack(means), steps)


def acs(evidence: Evidence, layer: int, unlearning: UnlearningSubspace) -> op.Operator:
    """Rotation toward the oriented v_un, as far as the nearest refusal state is away (eqs. 4.16 and 4.18)."""
    return op.SlerpToward(unlearning.direction, ACS(_prototypes(evidence, layer), "nearest"))


def _prototypes(evidence: Evidence, layer: int) -> Prototypes:
    states = evidence.tokens[:, evidence.layers.index(layer)]
    return Prototypes.token_level(states, evidence.position, evidence.template)


def nothing(rrs: Subspace, evidence: Evidence, layer: int) -> None:
    """Nothing is protected: the state arrives wherever it is steered."""


TARGETS: Final[dict[str, Target]] = {
    "follow": follow,
    "follow-one": follow_one,
    "step": nearest_in_step,
    "nearest": nearest,
    "mean": mean_of_step,
    "acs": acs,
    "shifted": shifted,
    "turned": turned,
}
"""Name → function that builds the operator; the first is the default of `calibrated`."""

PROTECTIONS: Final[dict[str, Protection]] = {"room": making_room, "rrs": whole, "nothing": nothing}
"""Name → function that says what of the RRS is protected; the first is the default of `calibrated`."""
