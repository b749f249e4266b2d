"""Plans, questions and a naive steered forward pass that the tests of edits, places and bundles share."""

from functools import cache
from pathlib import Path

import torch
from helpers.tiny import D_MODEL, picture

import rmuse_interp.operators as op
from rmuse_interp import Plan, RMuse, load_model
from rmuse_interp.parts.angle import FixedFraction
from rmuse_interp.parts.gates import Gate, LinearDiscriminant, Read
from rmuse_interp.parts.retain import RetainSubspace, Subspaces
from rmuse_interp.parts.subspace import Subspace
from rmuse_interp.parts.unlearning import UnlearningSubspace

PROMPTS = [
    "What is this person's occupation?",
    "Who is Oren Tal?",
    "How many <s> red circles are there?",  # a special token, which the question read-out leaves out
    "Where?",
]
PICTURES = [0, None, 1, None]


@cache
def lens_of(folder: Path):
    """The model in a folder, loaded once per session."""
    return load_model(folder)


def questions():
    """Four questions of unequal length, with a picture in every other row."""
    return list(PROMPTS), [None if seed is None else picture(seed) for seed in PICTURES]


def vector(seed: int, d: int = D_MODEL) -> torch.Tensor:
    """A seeded random vector."""
    return torch.randn(d, generator=torch.Generator().manual_seed(seed))


def subspace(seed: int, k: int = 4, d: int = D_MODEL) -> Subspace:
    """A seeded random subspace."""
    return Subspace.span(torch.randn(d, k, generator=torch.Generator().manual_seed(seed)))


def linear_gate(
    layer: int = 1, readout: str = "last", seed: int = 5, threshold: float = 0.0, prefix: str | None = None
):
    """A linear gate with a seeded random weight."""
    return Gate(LinearDiscriminant(vector(seed), 0.0), Read(layer, readout, prefix), threshold)


def gated_plan() -> Plan:
    """Two edits: a protected rotation at two blocks, gated, and an addition to the responses of text queries."""
    turn = op.SlerpToward(vector(1), FixedFraction(0.6)).keeping(subspace(2))
    first = turn.at(layers=[1, 2]).on("generated").when(linear_gate()).named("turn")
    return first >> op.Add(vector(3), scale=2.0).at(layers=[2]).on("response").given("text").named("push")


def rmuse(seed: int = 1) -> RMuse:
    """A small R-MUSE of width 8, which no model has: for files."""
    turn = op.SlerpToward(vector(seed, 8), FixedFraction(0.6)).keeping(subspace(2, 2, 8), "rotation")
    gate = Gate(LinearDiscriminant(vector(seed + 1, 8), 0.5), Read(1, "last", "Do not say."), 0.25, 2.0)
    push = op.Add(vector(seed + 2, 8)).at(2).on(positions=[0, 2]).given("text").named("push")
    fitted = {"standardise": "scale", "energy": 0.8, "cap": 64, "map_back": True}
    spread = vector(seed, 2).abs()
    unlearning = UnlearningSubspace(
        subspace(3, 2, 8), vector(4, 8), vector(5, 8), spread, oriented=True, **fitted
    )
    return RMuse(
        turn.at([1, 2]).when(gate).named("turn") >> push,
        Subspaces({"image-1": unlearning}, {"image-1": RetainSubspace(subspace(6, 2, 8), spread, **fitted)}),
        {"preset": "calibrated", "people": ["é", "b"], "benchmark": {"forget": 5}, "rate": 0.5, "seed": seed},
    )
