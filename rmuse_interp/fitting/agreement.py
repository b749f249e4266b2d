"""How well the fitting data determine the subspaces: spectrum, rank, agreement of two halves; for a bundle's report."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from rmuse_interp.data.store import JSON
from rmuse_interp.maths.statistics import interval
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
    forget, kept = evidence.refusal["answer"].ids, evidence.step["answer"].ids
    halvings = []
    if min(len(forget), len(kept)) >= LEAST:
        halvings = [_halves(evidence, draw, literal) for _ in range(SPLITS)]
    found: JSON = {}
    for layer in layers:
        whole = subspaces_at(evidence, layer, literal, energy=energy)
        cosines: tuple[list[float], list[float]] = ([], [])
        for pair in halvings:
            (un, rrs), (other_un, other_rrs) = (subspaces_at(h, layer, literal, energy=energy) for h in pair)
            cosines[0].append(abs(float(un.direction @ other_un.direction)))
            cosines[1].append((_inside(rrs, other_rrs) + _inside(other_rrs, rrs)) / 2)
        n = len(kept if not literal else evidence.step_prefixed["answer"].ids)
        found[str(layer)] = {
            "unlearning": _entry(whole[0], len(forget), cosines[0]),
            "retain": _entry(whole[1], n, cosines[1]),
        }
    return found


def _inside(one: RetainSubspace, other: RetainSubspace) -> float:
    """Share of one basis, each vector weighted by its energy, that lies in the other subspace."""
    energy = one.singular_values[: one.rank].square()
    shares = (other.subspace.basis.mT @ one.subspace.basis).square().sum(dim=0)
    return float((energy * shares).sum() / energy.sum())


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


def _halves(evidence: Evidence, draw: random.Random, literal: bool) -> tuple[Evidence, Evidence]:
    """Split the evidence into two disjoint halves of the forget and of the retain examples."""
    step = "step_prefixed" if literal else "step"
    sides = {name: list(getattr(evidence, name)["answer"].ids) for name in ("refusal", step)}
    for ids in sides.values():
        draw.shuffle(ids)
    halves = []
    for half in (0, 1):
        chosen = {name: ids[half::2] for name, ids in sides.items()}
        parts: dict[str, Any] = {
            name: {span: pooled.select(chosen[name]) for span, pooled in getattr(evidence, name).items()}
            for name in sides
        }
        halves.append(replace(evidence, **parts))
    return halves[0], halves[1]
