"""The average query, the neutral baseline of attributions: mean states by place.

A token is compared with the tokens at the same place of the same span in queries about other people: the mean of their
embeddings and of their states at every block. Template tokens are the same in all queries, so they are credited only
with what they carry of the query. A zero embedding, the usual baseline, is no valid input of a model with RMSNorm,
which divides by its norm.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from rich.progress import Progress
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.data.spans import DEFAULT_DELIMITERS
from rmuse_interp.diagnostics.leaks import Place, SourceSpan, Statement, embedded, place
from rmuse_interp.edits.plan import Plan
from rmuse_interp.edits.sentence import Sentence
from rmuse_interp.edits.state import Decision
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.models.batches import reading


@dataclass(frozen=True, eq=False)
class Reference:
    """Mean states of the embedding (site 0) and of every block's output (site l + 1).

    Attributes:
        by_place: means at the places where at least one query has a token.
        by_span: means over all tokens of a span, for places beyond the end of every query.
        people: people that the queries are about.
    """

    by_place: dict[Place, Float[Tensor, "sites d"]]
    by_span: dict[SourceSpan, Float[Tensor, "sites d"]]
    people: frozenset[str]

    def of(self, places: Sequence[Place]) -> Float[Tensor, "tokens sites d"]:
        """Return the mean state at each place.

        Raises:
            RMuseError: a span that no query of the reference has.
        """
        unknown = sorted({span for span, _ in places} - set(self.by_span))
        if unknown:
            raise RMuseError(
                f"a reference with the spans {', '.join(unknown)} was required, its queries have "
                f"{', '.join(self.by_span)} alone; take queries of the same kind (image or text, with reasoning or not)"
            )
        return torch.stack([self.by_place.get(at, self.by_span[at[0]]) for at in places])


def mean_query(
    lens: LensModel,
    statements: Sequence[Statement],
    plan: Plan | None = None,
    *,
    delimiters: tuple[str, str] = DEFAULT_DELIMITERS,
    progress: Progress | None = None,
    label: str = "average query",
) -> Reference:
    """Compute the mean states of some queries and their responses.

    Args:
        statements: statements about people other than those to explain; their values are ignored.
        plan: plan to run with all gates open, for the states of a steered average query.
        progress: a running progress bar to add a line to.
        label: of that line.

    Raises:
        RMuseError: no queries.
    """
    if not statements:
        raise RMuseError("queries about other people were required for a reference, got none")
    sums: dict[Place, Tensor] = {}
    counts: dict[Place, int] = {}
    task = progress.add_task(label, total=len(statements)) if progress is not None else None
    with ExitStack() as undo, torch.no_grad():
        handle = None if plan is None else undo.enter_context(plan.attach(lens.hf, layout=lens.layout))
        seen = undo.enter_context(reading(lens.layout, range(lens.n_layers), lambda _, h: h))
        for statement in statements:
            placed = place(lens, statement, delimiters)
            if handle is not None:
                handle.decision = opened(handle.plan, placed.ids.device)
            with ExitStack() as call:
                if handle is not None:
                    call.enter_context(handle.expecting(placed.ids, None, [placed.prompt_end]))
                first = embedded(lens, placed)
            states = torch.stack([first[0], *(h[0] for h in seen.values())], dim=1).float().cpu()
            for at, row in zip(placed.places, states, strict=True):
                sums[at] = sums[at] + row if at in sums else row.clone()
                counts[at] = counts.get(at, 0) + 1
            if progress is not None and task is not None:
                progress.advance(task)
    spans: dict[SourceSpan, list[Place]] = {}
    for at in sums:
        spans.setdefault(at[0], []).append(at)
    by_span = {
        span: torch.stack([sums[at] for at in places]).sum(dim=0) / sum(counts[at] for at in places)
        for span, places in spans.items()
    }
    people = frozenset(statement.person for statement in statements)
    return Reference({at: total / counts[at] for at, total in sums.items()}, by_span, people)


def opened(plan: Sentence, device: torch.device) -> Decision:
    """Return the decision for one query that lets every edit act."""
    yes = torch.ones(1, len(plan), dtype=torch.bool, device=device)
    return Decision(yes, torch.full((1, len(plan)), torch.nan, device=device), yes)
