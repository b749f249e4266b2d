"""One operator in every form of protection: what the ablation of the RRS compares."""

from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Plan, Tokens
from rmuse_interp.operators import Operator, SlerpToward
from rmuse_interp.parts.subspace import Subspace

Protection = Literal["none", "direction", "rotation"]
"""Nothing; v̂ cleared of the RRS while h is rotated whole (eq. 4.10); everything inside the RRS complement (D5)."""

_PARTS: Final = ("rrs", "shield")


def protections(operator: Operator) -> tuple[Protection, ...]:
    """The forms of protection that an operator can have."""
    return ("none", "direction", "rotation") if isinstance(operator, SlerpToward) else ("none", "rotation")


def own_protection(operator: Operator) -> Protection:
    """The form of protection that an operator has."""
    if getattr(operator, "rrs", None) is not None:
        return "rotation"
    return "direction" if getattr(operator, "shield", None) is not None else "none"


def in_form(operator: Operator, protection: Protection, rrs: Subspace) -> Operator:
    """The operator in another form of protection; itself, where that is its own.

    Raises:
        RMuseError: a form that this operator does not have.
    """
    if protection == own_protection(operator):
        return operator
    if protection not in protections(operator):
        known = ", ".join(protections(operator))
        raise RMuseError(f"protection of {type(operator).__name__} is one of {known}, got {protection!r}")
    plan = Plan([operator.at(layers=[0]).named("it")])
    for part in _PARTS:
        if getattr(operator, part, None) is not None:
            plan = plan.without(f"it.operator.{part}")
    bare = plan[0].operator_at(0)
    assert bare is not None
    if protection == "none":
        return bare
    return (
        bare.shielding(rrs)
        if isinstance(bare, SlerpToward) and protection == "direction"
        else bare.protecting(rrs)
    )


def applied(operator: Operator, tokens: Tokens, h: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Teacher-forced states of one query after an operator, on the tokens an edit takes; row t is step t.

    Args:
        operator: what acts.
        tokens: the edit's choice; `all` and `generated` are the same here, where the prompt is not looked at.
        h: states from the last prompt token on.
    """
    step = torch.arange(len(h), device=h.device)
    taken = {"prompt_end": step == 0, "prompt": step == 0, "response": step > 0}.get(tokens, step >= 0)
    return torch.where(taken.unsqueeze(1), operator(h, step), h)
