"""One operator in every form of protection: what the ablation of the RRS compares."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Tokens
from rmuse_interp.operators import Operator, SlerpToward, Transport
from rmuse_interp.parts.subspace import Subspace

Protection = Literal["none", "direction", "rotation"]
"""Nothing; v̂ cleared of the RRS while h is rotated whole (eq. 4.10); everything inside the RRS complement (D5)."""


def protections(operator: Operator) -> tuple[Protection, ...]:
    """The forms of protection that an operator can have."""
    return ("none", "direction", "rotation") if isinstance(operator, SlerpToward) else ("none", "rotation")


def own_protection(operator: Operator) -> Protection:
    """The form of protection that an operator has."""
    if not isinstance(operator, SlerpToward | Transport) or operator.rrs is None:
        return "none"
    return operator.kept


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
    bare = operator.changed(rrs=None) if isinstance(operator, SlerpToward | Transport) else operator
    return bare if protection == "none" else bare.keeping(rrs, protection)


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
