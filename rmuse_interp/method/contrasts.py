"""Data the rivals are fitted to: contrasts of two sets of states, and readings in the null space of a third."""

import math
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.maths.linalg import compact_svd
from rmuse_interp.maths.statistics import auroc, choose_threshold
from rmuse_interp.method.rmuse import Evidence
from rmuse_interp.parts.gates import Gate, Readout, fit_condition

NULL_SHARE: Final = 0.5
"""Least share of the directions, those of least energy in retain states, that AlphaSteer and MLLMEraser may read.
AlphaSteer's settings lie between 0.3 and 0.6 by layer."""
RIDGE: Final = 0.1
"""Weight of the ridge of both, in units of the mean squared length of the states it is fitted on."""


def spoken(evidence: Evidence, layer: int) -> tuple[Float[Tensor, "examples d"], Float[Tensor, "examples d"]]:
    """x⁻ and x⁺ at one block, float64: answer and reasoning spans stacked as rows, paired by row."""
    ids = evidence.refusal["answer"].ids
    own, refusal = (
        torch.cat([side[span].select(ids).at(layer).to(torch.float64) for span in ("answer", "cot")])
        for side in (evidence.own, evidence.refusal)
    )
    return own, refusal


def asked(
    evidence: Evidence, layer: int, *readouts: Readout
) -> tuple[Float[Tensor, "examples d"], Float[Tensor, "others d"]]:
    """Prompt states of forget and of other queries at one block, float64; of all read-outs unless some are named."""
    sides: list[list[Tensor]] = [[], []]
    for readout in readouts or tuple(evidence.readouts):
        pooled = evidence.readouts[readout]
        rows, states = {name: i for i, name in enumerate(pooled.ids)}, pooled.at(layer).to(torch.float64)
        for side, ids in zip(sides, (evidence.forget, evidence.others), strict=True):
            side.append(states[[rows[name] for name in ids if name in rows]])
    forget, others = (torch.cat(side) for side in sides)
    if not len(forget) or not len(others):
        raise RMuseError(
            f"states of forget and of other queries were required, got {len(forget)} and {len(others)}; "
            "check the forget and retain splits"
        )
    return forget, others


def shift(evidence: Evidence, layer: int) -> Float[Tensor, " d"]:
    """Mean of x⁺ − x⁻."""
    own, refusal = spoken(evidence, layer)
    return (refusal - own).mean(dim=0)


def leading(rows: Float[Tensor, "n d"], name: str) -> Float[Tensor, " d"]:
    """The leading right singular vector."""
    axes, _ = compact_svd(rows)
    if not axes.shape[1]:
        raise RMuseError(f"{name} that differ were required, got equal ones")
    return axes[:, 0]


def read_and_write(
    forget: Float[Tensor, "examples d"],
    retain: Float[Tensor, "others d"],
    direction: Float[Tensor, " d"],
    strength: float,
) -> op.Affine:
    """`h + λ r ⟨a, h⟩`: reads in the null space of `retain` how much of r a state needs (see `alphasteer`)."""
    energy, axes = torch.linalg.eigh(retain.mT @ retain)
    d = retain.shape[1]
    exact = int((energy <= energy[-1] * d * torch.finfo(energy.dtype).eps).sum())
    null = axes[:, : max(exact, math.ceil(NULL_SHARE * d))]
    seen = forget @ null
    ridge = RIDGE * seen.square().sum(dim=1).mean()
    if not bool(ridge > 1e-12 * forget.square().sum(dim=1).mean()):
        raise RMuseError(
            "forget states with a part outside what retain states span were required, got none: collect more "
            "forget queries, or steer another block"
        )
    gram = seen.mT @ seen
    gram.diagonal().add_(ridge)
    reading = null @ torch.linalg.solve(gram, seen.sum(dim=0))
    return op.Affine(reading.unsqueeze(1), direction.unsqueeze(1), scale=strength)


def condition(evidence: Evidence) -> Gate:
    """The condition of CAST on the question's tokens, at the block where it separates the fitting queries best."""
    readout: Readout = "question" if "question" in evidence.readouts else "last"
    found: list[tuple[float, Gate]] = []
    for layer in evidence.layers:
        sides = asked(evidence, layer, readout)
        gate = fit_condition(*sides, layer=layer, readout=readout)
        scores = gate.score(sides[0]), gate.score(sides[1])
        found.append((auroc(*scores), gate.at_threshold(choose_threshold(*scores, "youden").value)))
    return max(found, key=lambda pair: pair[0])[1]
