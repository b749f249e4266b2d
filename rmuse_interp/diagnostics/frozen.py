"""Frozen plans: the piecewise-constant choices of a plan are fixed to those on one query.

Gradients see how a steered state moves, but not when another prototype becomes the nearest one: there the model's
output jumps. A frozen plan gives the same output on its own query and has no jumps between that query and any other:
gates are decided, and every steered token keeps the prototype to which it was moved.
"""

from contextlib import ExitStack

import torch
from torch import Tensor

import rmuse_interp.operators as op
from rmuse_interp.diagnostics.leaks import Leak
from rmuse_interp.edits.plan import Plan
from rmuse_interp.edits.state import Decision
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.models.site import Site

Call = tuple[Tensor, Tensor]
"""States given to an operator, [n, d], and their steps, [n]."""


def frozen(lens: LensModel, plan: Plan, decision: Decision, leak: Leak) -> Plan:
    """Return the plan whose transports have, at each step, only the prototype that they choose on this leak's query.

    Other operators stay as they are: a rotation toward one direction chooses nothing (or, if `signed`, only a sign).

    Args:
        lens: the model, without an attached plan.
        plan: plan to freeze.
        decision: decision of its gates on the query; pass it along with the frozen plan, too.
        leak: leak whose tokens are steered.
    """
    calls: dict[op.Operator, list[Call]] = {}

    def look(operator: op.Operator, args: Call) -> None:
        calls.setdefault(operator, []).append((args[0], args[1]))

    with ExitStack() as undo, torch.no_grad():
        for operator in {operator for edit in plan for operator in edit.operators}:
            undo.callback(operator.register_forward_pre_hook(look).remove)
        handle = undo.enter_context(plan.attach(lens.hf, layout=lens.layout, decision=decision))
        undo.enter_context(handle.expecting(leak.placed.ids, None, [leak.placed.prompt_end]))
        lens.hf(**leak.placed.inputs, use_cache=False, logits_to_keep=1)
    edits = []
    for edit in plan:
        steer: dict[Site, op.Operator] = {}
        for site in edit.sites:
            acting = edit.operator_at(site)
            assert acting is not None
            # An operator that serves several blocks is called in their order.
            own = calls.get(acting)
            steer[site] = chosen(acting, *own.pop(0)) if own else acting
        placed = op.layerwise(steer)
        edits.append(edit.changed(operators=list(placed.operators), groups=placed.groups))
    return Plan(edits, plan.fingerprint)


def chosen(operator: op.Operator, h: Tensor, step: Tensor) -> op.Operator:
    """Return the operator with only its choices on these states; the same operator if it chooses nothing."""
    if not isinstance(operator, op.Transport) or operator.fraction == 0:
        return operator
    index = operator.explain(h, step).prototype
    assert index is not None
    # A zero row is "no edit": the state was not moved here either.
    points = torch.where((index >= 0).unsqueeze(-1), operator.points[index.clamp_min(0)], 0.0)
    return operator.changed(points=points, positions=step, window=0)
