"""Apply an operator to the chosen tokens of a forward call, with what it keeps to for each answer."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rmuse_interp.edits.sentence import Verb
from rmuse_interp.edits.state import State


def holding(state: State, index: int, first: bool, operator: Verb, h: Tensor, step: Tensor) -> State:
    """The `State` with what an edit chooses at its first site for the rows whose last prompt token is in this call."""
    end = (step == 0) & state.call.real
    now = end.any(dim=1)
    if not first or not bool(now.any()):
        return state
    held = state.held.get(index)
    held = step.new_full((len(step),), -1) if held is None else held.clone()
    held[now] = operator.starting(h[end])
    return replace(state, held={**state.held, index: held})


def acted(state: State, index: int, rows: Tensor) -> State:
    """The `State` with a note that a per-token edit has acted on some rows."""
    old = state.query.decision
    fired = old.fired.clone()
    fired[:, index] |= rows
    return replace(state, query=replace(state.query, decision=replace(old, fired=fired)))


def steer(
    operator: Verb,
    h: Float[Tensor, "batch tokens d"],
    chosen: Bool[Tensor, "batch tokens"],
    step: Int[Tensor, "batch tokens"],
    state: State,
    held: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch tokens d"]:
    """h with the operator applied to the chosen tokens; all others stay bit-identical.

    Args:
        operator: the operator. In a prefill it sees the chosen tokens only; in a decode step it sees all tokens and
            the choice is made afterwards, which is faster.
        h: [batch, tokens, d] states; not written to.
        chosen: [batch, tokens] tokens to edit.
        step: [batch, tokens] position − prompt_end of each token.
        state: `State` of the call.
        held: the choice that each row keeps to, for operators that make one.
    """
    given = operator.given(chosen, state.call, state.width)
    if given is not None:
        there, states = given
        return torch.where(there.unsqueeze(-1), states.to(h.dtype), h)
    kept = None if held is None else held.unsqueeze(-1).expand_as(step)
    if state.behind:
        operator = operator if kept is None else operator.along(kept)
        return torch.where(chosen.unsqueeze(-1), operator(h, step).to(h.dtype), h)
    operator = operator if kept is None else operator.along(kept[chosen])
    out = h.clone()
    out[chosen] = operator(h[chosen], step[chosen]).to(h.dtype)
    return out
