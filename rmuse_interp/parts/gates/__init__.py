"""Gates decide whether a query is about what is to be forgotten: a `Gate` is a scorer, a read-out and a threshold.

A larger score means steer. A gate names the block and span to read and does not depend on a model.
"""

from rmuse_interp.parts.gates.alignment import RRSAlignment
from rmuse_interp.parts.gates.clusters import ClusterKind, Clusters, fit_clusters
from rmuse_interp.parts.gates.conditional import Condition, fit_condition
from rmuse_interp.parts.gates.contrast import Contrast, fit_contrast
from rmuse_interp.parts.gates.discriminant import LinearDiscriminant, fit_discriminant
from rmuse_interp.parts.gates.gate import (
    READOUTS,
    AllOf,
    AnyOf,
    Combination,
    Expected,
    Gate,
    Not,
    Read,
    Readout,
    Scorer,
)
from rmuse_interp.parts.gates.identity import IdentityScorer, Side
from rmuse_interp.parts.gates.plda import IdentityRatio, fit_identity_ratio
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
    "Read",
    "Scorer",
    "Combination",
    "Expected",
    "Readout",
    "READOUTS",
    "RRSAlignment",
    "Contrast",
    "fit_contrast",
    "LinearDiscriminant",
    "fit_discriminant",
    "IdentityScorer",
    "Side",
    "Clusters",
    "ClusterKind",
    "fit_clusters",
    "IdentityRatio",
    "fit_identity_ratio",
    "Condition",
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
