"""Operators `h → h`: pure functions of one state, the verbs of the edit algebra.

An operator knows neither layer, nor tokens, nor gate: `Operator.at` turns it into an edit that does. Every
operator works in float32 (float64 for float64 states), never writes into the states it was handed, and gives
back their dtype.

    >>> import torch, rmuse_interp.operators as op
    >>> push = op.Add(torch.tensor([0.0, 1.0]), scale=2.0)
    >>> push(torch.tensor([[1.0, 1.0]])).tolist()
    [[1.0, 3.0]]
"""

from collections.abc import Mapping
from typing import TypeVar

from rmuse_interp import RMuseError
from rmuse_interp.edits.following import Fading, Follow, Framed
from rmuse_interp.edits.linear import Ablate, Add, Affine, PerCoordinate
from rmuse_interp.edits.patch import Call, Set
from rmuse_interp.edits.plan import Edit, Operator
from rmuse_interp.edits.plane import RotateInPlane
from rmuse_interp.edits.rotation import SlerpToward, Transport
from rmuse_interp.edits.sentence import Explanation
from rmuse_interp.models.site import Where, as_site
from rmuse_interp.parts.angle import Confidence

__all__ = [
    "Ablate",
    "Add",
    "Affine",
    "Call",
    "Confidence",
    "Explanation",
    "Fading",
    "Follow",
    "Framed",
    "Operator",
    "PerCoordinate",
    "RotateInPlane",
    "Set",
    "SlerpToward",
    "Transport",
    "layerwise",
]

WhereT = TypeVar("WhereT", bound=Where)


def layerwise(operators: Mapping[WhereT, Operator]) -> Edit:
    """The edit with one operator per site, as ``{layer: operator}``; an operator may serve several, and is held once.

    Raises:
        RMuseError: no sites, or what is none.
    """
    if not isinstance(operators, Mapping) or not operators:
        raise RMuseError(f"operators by their layers were required ({{layer: operator}}), got {operators!r}")
    placed = {as_site(where): operator for where, operator in operators.items()}
    distinct = {id(placed[site]): placed[site] for site in sorted(placed)}.values()
    groups = [[str(site) for site in sorted(placed) if placed[site] is one] for one in distinct]
    return Edit(list(distinct), groups)
