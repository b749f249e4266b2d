"""States of a steered pass before and after the edits of each block, on the same given words for every plan."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Plan
from rmuse_interp.fitting.collect import Query
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.lens.respond import verdicts

States = dict[int, dict[str, Tensor]]
"""Block → id of the query → [tokens, d], float32, from the last prompt token to the end of the response."""


@dataclass(frozen=True, eq=False)
class Steered:
    """One pass over a set of queries.

    Attributes:
        before: each block's output as the block gave it (edits of lower blocks have acted).
        after: the same once the edits of that block have acted.
        fired: of each query, whether a gate let an edit act on it; None where no gate applies to it.
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
    found, seen = Steered(), _Seen()
    task = progress.add_task(label, total=len(queries)) if progress is not None else None
    order = sorted(queries, key=lambda q: (q.image is None, len(q.prompt) + len(q.response or "")))
    with ExitStack() as undo, torch.no_grad():
        for layer, block in enumerate(lens.layout.blocks):
            undo.callback(block.register_forward_hook(seen.keep("before", layer)).remove)
        handle = undo.enter_context(plan.attach(lens.hf, layout=lens.layout))
        for layer, block in enumerate(lens.layout.blocks):
            undo.callback(block.register_forward_hook(seen.keep("after", layer)).remove)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            prompts, images = [q.prompt for q in rows], [q.image for q in rows]
            if not plan.single_pass:
                handle.decision = lens.decide(plan, prompts, images)
            encoded = lens.encode(prompts, images, [q.response for q in rows])
            mask = encoded["attention_mask"]
            with handle.expecting(encoded["input_ids"], mask, encoded.prompt_end):
                lens.hf(**encoded, use_cache=False, logits_to_keep=1)
            position = mask.cumsum(dim=1) - 1
            taken = (mask.bool() & (position >= encoded.prompt_end.to(mask.device).unsqueeze(1))).cpu()
            assert handle.state is not None
            state = handle.state.query
            said = verdicts(plan, state.decision, state.has_image.tolist())
            for i, (query, one) in enumerate(zip(rows, said, strict=True)):
                found.fired[query.id] = one.fired
                for side, states in ((found.before, seen.before), (found.after, seen.after)):
                    for layer, h in states.items():
                        side.setdefault(layer, {})[query.id] = h[i][taken[i]]
            if progress is not None and task is not None:
                progress.advance(task, len(rows))
    ordered = [
        {layer: {q.id: by_id[q.id] for q in queries} for layer, by_id in side.items()}
        for side in (found.before, found.after)
    ]
    return Steered(ordered[0], ordered[1], found.fired)


@dataclass(frozen=True, eq=False)
class _Seen:
    """The latest states of every block."""

    before: dict[int, Tensor] = field(default_factory=dict)
    after: dict[int, Tensor] = field(default_factory=dict)

    def keep(self, side: str, layer: int) -> Callable[..., None]:
        """A forward hook that keeps a copy and changes nothing."""
        place = self.before if side == "before" else self.after

        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            place[layer] = (output[0] if isinstance(output, tuple) else output).detach().float().cpu()

        return hook
