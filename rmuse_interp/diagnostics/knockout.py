"""Causal knockout of spans: an edit holds their states at those of the average query; measured is what the leak loses.

The span's tokens enter as the average query's embeddings and leave every block with its mean states: whatever they say or
pass on is gone, while attention itself is unchanged. All spans of one leak are knocked out in one pass, one batch row
per span: the plan has one edit per span, and its decision assigns the edits to the rows. The last token, `here`, is
never held: its state is the prediction.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

import rmuse_interp.operators as op
from rmuse_interp.diagnostics.leaks import Leak, SourceSpan, log_prob
from rmuse_interp.edits.hooks import attach
from rmuse_interp.edits.plan import Edit, Plan
from rmuse_interp.edits.state import Decision
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.models.layout import Vocabulary
from rmuse_interp.parts.gates import Gate, Read, Scorer


class Hold(op.Operator):
    """`h̃ = s_t` at the steps t that are held, `h̃ = h` at all others.

    Args:
        states: [held, d] s.
        steps: [held] distinct steps, each position − prompt_end.
    """

    states: Tensor
    steps: Tensor

    def __init__(self, states: Float[Tensor, "held d"], steps: Int[Tensor, " held"]):
        super().__init__()
        self.hold(states=states, steps=steps)

    def forward(
        self, h: Float[Tensor, "*tokens d"], step: Int[Tensor, "*tokens"] | None = None
    ) -> Float[Tensor, "*tokens d"]:
        assert step is not None, "a plan gives every state its step"
        same = step.unsqueeze(-1) == self.steps
        held = self.states.to(h.dtype)[same.int().argmax(dim=-1)]
        return torch.where(same.any(dim=-1, keepdim=True), held, h)

    def describe(self) -> str:
        return f"hold {len(self.steps)} tokens at given states"


class Unasked(Scorer):
    """Scorer of a gate that is never evaluated: the decision passed with the plan selects the batch rows."""


@dataclass(frozen=True)
class Knockout:
    """What remains of one leak without each span.

    Attributes:
        log_prob: log-probability of the leaked token with every span in place, nats.
        without: the same without a span, by span.
    """

    log_prob: float
    without: dict[SourceSpan, float]

    @property
    def drops(self) -> dict[str, float]:
        """Return the log-probability that each span contributed, nats; negative if it lowered that of the token."""
        return {span: self.log_prob - value for span, value in self.without.items()}


def knock_out(
    lens: LensModel,
    leak: Leak,
    own: Float[Tensor, "1 tokens d"],
    means: Float[Tensor, "tokens sites d"],
) -> Knockout:
    """Knock out each span of a leak in turn; plans attached to the model act before the knockout.

    Args:
        lens: the model.
        leak: the leak to explain.
        own: its embeddings.
        means: states of the average query at the leak's places under the same plan, embedding first.
    """
    sources = leak.sources
    if not sources:
        with torch.no_grad():
            return Knockout(float(log_prob(lens, leak, own)), {})
    means = means.to(own)
    plan = Plan([held(means, at, leak.placed.prompt_end).named(span) for span, at in sources.items()])
    rows = own.repeat(len(sources) + 1, 1, 1)
    for row, at in enumerate(sources.values(), start=1):
        rows[row, at] = means[at, 0]
    # The first row stays intact.
    acts = torch.cat([torch.zeros(1, len(sources)), torch.eye(len(sources))]).bool().to(own.device)
    decision = Decision(acts, torch.full(acts.shape, torch.nan, device=own.device), torch.ones_like(acts))
    # For this plan no token counts as an image or special token, so "all" means every token.
    bare = replace(lens.layout, vocabulary=Vocabulary(None, frozenset()))
    ids = leak.placed.ids.expand(len(rows), -1)
    with ExitStack() as undo, torch.no_grad():
        handle = undo.enter_context(attach(lens.hf, plan, decision=decision, layout=bare))
        undo.enter_context(handle.expecting(ids, None, [leak.placed.prompt_end] * len(rows)))
        found = log_prob(lens, leak, rows).tolist()
    return Knockout(found[0], dict(zip(sources, found[1:], strict=True)))


def held(means: Float[Tensor, "tokens sites d"], at: Sequence[int], prompt_end: int) -> Edit:
    """Return the edit that holds tokens at some positions, at every block but the last, which no later token reads."""
    steps = torch.tensor(at, device=means.device) - prompt_end
    blocks = range(means.shape[1] - 2)
    return (
        op.layerwise({b: Hold(means[at, b + 1], steps) for b in blocks})
        .on("all")
        .when(Gate(Unasked(), Read(0)))
    )
