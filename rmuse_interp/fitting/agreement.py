"""How well the fitting data determine the subspaces: spectrum, rank, agreement of two halves; for a bundle's report."""

import random
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp.data.store import JSON
from rmuse_interp.maths.statistics import interval
from rmuse_interp.method.refits import Refit, refit, sides_at
from rmuse_interp.method.rmuse import ENERGY, Evidence, subspaces_at
from rmuse_interp.parts.retain import RetainSubspace
from rmuse_interp.parts.unlearning import UnlearningSubspace

SPLITS: Final = 8
"""Number of random halvings of the fitting examples."""
LEAST: Final = 4
"""Minimum number of examples of a kind for halving them."""
SPECTRUM: Final = 16
"""Number of leading energy shares that a report lists."""


def subspace_table(
    evidence: Evidence,
    layers: Sequence[int],
    *,
    literal: bool,
    energy: float = ENERGY,
    seed: int = 0,
) -> JSON:
    """Tabulate `examples`, `rank`, `cap`, `asked`, `kept`, `spectrum`, `agreement` per block and subspace; plain JSON.

    `kept` is the share of the energy `s²/Σs²` that the rank holds, `asked` the share requested. `agreement` compares
    the subspaces of two random halves of the examples: for `U_un` the absolute cosine of the two directions `v_un`; for
    `U_rrs` the energy-weighted share of each half's basis that lies in the other's subspace (k/d for random subspaces
    of rank k). It is the mean over `SPLITS` halvings with the 2.5 % and 97.5 % percentiles. Halves have half the data,
    so it is a lower bound. None with fewer than `LEAST` examples.

    Args:
        evidence: evidence of one kind of query.
        layers: 0-based blocks.
        literal: whether to use the paper's form; see `subspaces_at`.
        energy: share of the variance that the RRS was asked to hold.
        seed: seed of the halvings.
    """
    draw = random.Random(seed)
    step = evidence.step_prefixed if literal else evidence.step
    forget, kept = len(evidence.refusal["answer"].ids), len(step["answer"].ids)
    halvings = [
        (_halved(forget, draw), _halved(kept, draw)) for _ in range(SPLITS) if min(forget, kept) >= LEAST
    ]
    found: JSON = {}
    for layer in layers:
        un, rrs = subspaces_at(evidence, layer, literal, energy=energy)
        cosines: tuple[list[float], list[float]] = ([], [])
        for first, second in halvings:
            sides = sides_at(evidence, layer, literal)
            one, other = (refit(un, rrs, *sides, counts) for counts in zip(first, second, strict=True))
            cosines[0].append(abs(float(one.direction @ other.direction)))
            cosines[1].append((_inside(one, other) + _inside(other, one)) / 2)
        found[str(layer)] = {
            "unlearning": _entry(un, forget, cosines[0]),
            "retain": _entry(rrs, kept, cosines[1]),
        }
    return found


def _halved(n: int, draw: random.Random) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return the counts (1 or 0) of n examples in two random disjoint halves."""
    order = draw.sample(range(n), n)
    first = torch.zeros(n, dtype=torch.float64)
    first[order[::2]] = 1.0
    return first, 1.0 - first


def _inside(one: Refit, other: Refit) -> float:
    """Return the share of one `U_rrs`, each direction weighted by its energy, that lies in the other."""
    shares = (other.retain.mT @ one.retain).square().sum(dim=0)
    return float((one.retain_energy * shares).sum() / one.retain_energy.sum())


def _entry(one: UnlearningSubspace | RetainSubspace, n: int, cosines: Sequence[float]) -> JSON:
    squares = one.singular_values.double().square()
    shares = squares / squares.sum()
    agreement = None
    if cosines:
        low, high = interval(np.array(cosines))
        agreement = {
            "value": float(np.mean(cosines)),
            "low": low,
            "high": high,
            "n": len(cosines),
        }
    return {
        "examples": n,
        "rank": one.rank,
        "cap": one.cap,
        "asked": one.energy,
        "kept": float(shares[: one.rank].sum()),
        "spectrum": [round(x, 6) for x in shares[:SPECTRUM].tolist()],
        "agreement": agreement,
    }
