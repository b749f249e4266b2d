"""Plans, questions and a naive steered forward pass that the tests of edits, places and bundles share."""

from functools import cache
from pathlib import Path

import torch
from helpers.tiny import D_MODEL, picture

import rmuse_interp.operators as op
from rmuse_interp import Plan, load_model
from rmuse_interp.parts.angle import FixedFraction
from rmuse_interp.parts.gates import Gate, LinearDiscriminant, Read
from rmuse_interp.parts.subspace import Subspace

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
