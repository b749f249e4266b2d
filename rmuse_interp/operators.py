"""Operators `h → h`: pure functions of one state, the verbs of the edit algebra.

An operator knows neither layer, nor tokens, nor gate: `Operator.at` turns it into an edit that does. Every
operator works in float32 (float64 for float64 states), never writes into the states it was handed, and gives
back their dtype.

    >>> import torch, rmuse_interp.operators as op
    >>> push = op.Add(torch.tensor([0.0, 1.0]), scale=2.0)
    >>> push(torch.tensor([[1.0, 1.0]])).tolist()
    [[1.0, 3.0]]
"""

from rmuse_interp.edits.linear import Ablate, Add, Affine, PerCoordinate
from rmuse_interp.edits.plan import Explanation, Operator, layerwise
from rmuse_interp.edits.plane import RotateInPlane
from rmuse_interp.edits.rotation import SlerpToward, Transport
from rmuse_interp.parts.angle import Confidence

__all__ = [
    "Ablate",
    "Add",
    "Affine",
    "Confidence",
    "Explanation",
    "Operator",
    "PerCoordinate",
    "RotateInPlane",
    "SlerpToward",
    "Transport",
    "layerwise",
]
