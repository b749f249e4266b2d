"""States of a steered pass before and after the edits of each block, on the same given words for every plan."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from rich.progress import Progress
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Plan
from rmuse_interp.fitting.collect import Query, batched, shown
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.lens.respond import asking, heard
from rmuse_interp.models.batches import reading

States = dict[int, dict[str, Tensor]]
"""Block → id of the query → [tokens, d], float32, from the last prompt token to the end of the response."""


@dataclass(frozen=True, eq=False)
class Steered:
    """One pass over a set of queries.

    Attributes:
        before: each block's output before its own edits (edits of lower blocks have acted).
        after: the same after the edits of that block.
        fired: whether a gate let an edit act, by query; None if no gate applies to it.
    """

    before: States = field(default_factory=dict)
    after: States = field(default_factory=dict)
    fired: dict[str, bool | None] = field(default_factory=dict)


def steered(
    lens: LensModel,
    plan: Plan,
    queries: Sequence[Query],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
    label: str = "steered",
) -> Steered:
    """The states of all blocks while `plan` runs over the queries' given responses (teacher forcing).

    Hooks run in the order in which they were registered: ours, those of the plan, ours again.

    Args:
        lens: the model.
        plan: what to run; a two-pass plan is decided first, batch by batch.
        queries: with responses.
        batch_size: queries per batch.
        progress: a running progress bar to add a line to.
        label: of that line.

    Raises:
        RMuseError: a query without a response, two queries of one id.
    """
    if len({q.id for q in queries}) != len(queries) or any(q.response is None for q in queries):
        raise RMuseError(
            "queries with distinct ids and a response each were required to run a plan over them"
        )
    found, every = Steered(), range(lens.n_layers)

    def kept(_layer: int, h: Tensor) -> Tensor:
        return h.float().cpu()

    with (
        torch.no_grad(),
        reading(lens.layout, every, kept) as before,
        plan.attach(lens.hf, layout=lens.layout) as handle,
        reading(lens.layout, every, kept) as after,
    ):
        for rows in batched(queries, batch_size, progress, label, mixed=lens.mixes):
            with asking(lens, handle, *shown(rows)) as encoded:
                lens.hf(**encoded, use_cache=False, logits_to_keep=1)
            mask = encoded["attention_mask"]
            position = mask.cumsum(dim=1) - 1
            taken = (mask.bool() & (position >= encoded.prompt_end.to(mask.device).unsqueeze(1))).cpu()
            for i, (query, one) in enumerate(zip(rows, heard(handle), strict=True)):
                found.fired[query.id] = one.fired
                for side, states in ((found.before, before), (found.after, after)):
                    for layer, h in states.items():
                        side.setdefault(layer, {})[query.id] = h[i][taken[i]]
    ordered = [
        {layer: {q.id: by_id[q.id] for q in queries} for layer, by_id in side.items()}
        for side in (found.before, found.after)
    ]
    return Steered(ordered[0], ordered[1], found.fired)
