"""Plans whose traces are recorded, and what makes two recordings the same."""

from functools import cache

import torch
from helpers.plans import lens_of, linear_gate, questions, subspace, vector
from helpers.tiny import tiny_llava

import rmuse_interp.operators as op
from rmuse_interp import Plan
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.edits.trace import SITE_COLUMNS, Recorder, SteeringTrace
from rmuse_interp.maths.sphere import unit
from rmuse_interp.parts.angle import ACS, FixedFraction
from rmuse_interp.parts.prototypes import Prototypes

STEPS = 9
MORE = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}


def points(n: int = 6) -> torch.Tensor:
    return unit(torch.randn(n, 32, generator=torch.Generator().manual_seed(4)))


def median_gate(lens, layer: int, seed: int = 5):
    """A gate that fires for half of the questions."""
    scores = as_plan(op.Add(vector(1)).at(layers=[3]).when(linear_gate(layer, seed=seed))).decide(
        lens, *questions()
    )
    return linear_gate(layer, seed=seed, threshold=float(scores.score[:, 0].median()) + 1e-3)


@cache
def plans() -> dict[str, Plan]:
    """One for every kind of trace there is."""
    lens = lens_of(tiny_llava())
    acs = op.SlerpToward(vector(1), ACS(Prototypes(points())), signed=True).keeping(subspace(2), "direction")
    move = op.Transport(points(), torch.arange(6), window=1).keeping(subspace(2))
    fixed = op.SlerpToward(vector(1), FixedFraction(0.6))
    push = op.Add(vector(3), scale=3.0)
    return {
        "acs": as_plan(acs.at(layers=[1, 2]).when(median_gate(lens, 1)).named("turn")),
        "transport": as_plan(move.at(layers=[3]).when(median_gate(lens, 0)).named("move")),
        "by kind": fixed.at(layers=[2]).given("image").when(median_gate(lens, 2)).named("image")
        >> push.at(layers=[2]).given("text").named("text"),
        "per token": as_plan(push.at(layers=[2]).on("response").when(linear_gate(1), per="token")),
        "in a row": fixed.at(layers=[2]).named("first") >> push.at(layers=[2]).on("response").named("second"),
    }


def natively(lens, plan, end, asked=None, **more) -> tuple[SteeringTrace, torch.Tensor]:
    recorder = Recorder()
    inputs = lens.encode(*(asked or questions()))
    with plan.attach(lens.hf, recorder=recorder):
        out = lens.hf.generate(**inputs, **MORE | {"eos_token_id": end}, **more)
    return recorder.trace(), out[:, inputs["input_ids"].shape[1] :]


@cache
def ending(name: str) -> int:
    """A token that ends one row early under a plan, and not all rows."""
    _, new = natively(lens_of(tiny_llava()), plans()[name], None)
    for row in new.tolist():
        if sum(row[2] in other for other in new.tolist()) < len(new):
            return row[2]
    raise AssertionError("every token occurs in every row")


def assert_same(one: SteeringTrace, other: SteeringTrace, atol: float = 1e-5) -> None:
    assert one.sites == other.sites
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.valid, other.valid)
    for name in SITE_COLUMNS:
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), equal_nan=True, atol=atol, rtol=1e-5, msg=name
        )
