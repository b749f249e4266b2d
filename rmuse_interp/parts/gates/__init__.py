"""Gates: whether a query is about the forgotten. Every gate's face is the same: a larger score means steer.

A gate knows where its state is read (block and read-out) and nothing about models.
"""

from rmuse_interp.parts.gates.alignment import RRSAlignmentGate
from rmuse_interp.parts.gates.clusters import ClusterGate, ClusterKind, fit_clusters
from rmuse_interp.parts.gates.conditional import ConditionGate, fit_condition
from rmuse_interp.parts.gates.contrast import ContrastGate, fit_contrast
from rmuse_interp.parts.gates.discriminant import LinearDiscriminantGate, fit_discriminant
from rmuse_interp.parts.gates.gate import READOUTS, AllOf, AnyOf, Expected, Gate, Not, Readout
from rmuse_interp.parts.gates.identity import IdentityGate, Side
from rmuse_interp.parts.gates.plda import IdentityRatioGate, fit_identity_ratio
from rmuse_interp.parts.gates.selection import (
    BY_PERSON,
    GATE_KINDS,
    GateKind,
    GateRow,
    GateSelection,
    GateStates,
    held_out_scores,
    select_gate,
)

__all__ = [
    "Gate",
    "Expected",
    "Readout",
    "READOUTS",
    "RRSAlignmentGate",
    "ContrastGate",
    "fit_contrast",
    "LinearDiscriminantGate",
    "fit_discriminant",
    "IdentityGate",
    "Side",
    "ClusterGate",
    "ClusterKind",
    "fit_clusters",
    "IdentityRatioGate",
    "fit_identity_ratio",
    "ConditionGate",
    "fit_condition",
    "AllOf",
    "AnyOf",
    "Not",
    "GateKind",
    "GATE_KINDS",
    "BY_PERSON",
    "GateStates",
    "GateRow",
    "GateSelection",
    "held_out_scores",
    "select_gate",
]
