"""The values an interpreter of plans passes along: queries, calls, decisions, and the state made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.spoken import Delimiters, Spoken
from rmuse_interp.parts.gates import Gate


@dataclass(frozen=True, eq=False)
class Decision:
    """What the gates said: one column per edit of the plan, one row per query.

    Args:
        fired: whether the edit may act on the row; True for edits without a gate; with a gate per token, whether
            it has acted on any token so far.
        score: the gate's raw score (larger = steer); NaN where there is no gate or it decides per token.
        known: whether the row has been decided; a chunked prefill decides when the prompt's end has passed.
        names: what each column's edit is called: its name, or `edit0` by its place.
        gates: each column's gate, None without one.
    """

    fired: Bool[Tensor, "batch edits"]
    score: Float[Tensor, "batch edits"]
    known: Bool[Tensor, "batch edits"]
    names: tuple[str, ...] = ()
    gates: tuple[Gate | None, ...] = ()

    @property
    def margin(self) -> Float[Tensor, "batch edits"]:
        """`(score − threshold)/scale` of each gate: positive where it fires, in one unit for all; NaN as `score`."""
        found = torch.full_like(self.score, torch.nan)
        for column, gate in enumerate(self.gates):
            if gate is not None:
                found[:, column] = (self.score[:, column] - gate.threshold) / gate.scale
        return found

    def rows(self, which: Sequence[int] | Int[Tensor, " rows"]) -> "Decision":
        """The decision about some of the queries, in the order given."""
        index = torch.as_tensor(which, device=self.fired.device)
        return replace(self, fired=self.fired[index], score=self.score[index], known=self.known[index])

    def repeated(self, batch: int) -> "Decision":
        """The decision for a batch of beams or samples, which come in groups of neighbours."""
        times = _times(len(self.fired), batch)
        return self.rows(torch.arange(len(self.fired)).repeat_interleave(times)) if times > 1 else self

    def either(self, rows: Sequence[int], other: "Decision") -> "Decision":
        """The decision in which some rows fire where `other` does too, with the larger of both scores."""
        fired, score = self.fired.clone(), self.score.clone()
        fired[rows] |= other.fired
        score[rows] = torch.fmax(score[rows], other.score)
        return replace(self, fired=fired, score=score)

    def where(self, columns: Sequence[bool], other: "Decision") -> "Decision":
        """The decision with some columns taken from `other`."""
        theirs = torch.tensor(columns, device=self.fired.device)
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("fired", "score", "known"))
        fired, score, known = (torch.where(theirs, new, own) for own, new in pairs)
        return replace(self, fired=fired, score=score, known=known)


@dataclass(frozen=True, eq=False)
class Query:
    """What is known of the queries before their first forward call: announced by whoever encoded them.

    Positions count a row's unmasked tokens from 0, so padding does not move them.

    Args:
        prompt_end: position of the last prompt token; a prefill of the assistant's turn comes after it.
        has_image: whether the row has an image.
        padding: masked tokens on the left of each row.
        readable: per read-out, how many prompt tokens it covers.
        width: columns of the padded batch; every later column lies behind all prompts.
        whole: whether the ids of the whole conversation were seen; False where a part is only in the cache.
        image_end: position of the prompt's last image token, −1 without one.
    """

    prompt_end: Int[Tensor, " batch"]
    has_image: Bool[Tensor, " batch"]
    padding: Int[Tensor, " batch"]
    readable: Mapping[str, Int[Tensor, " batch"]]
    width: int
    whole: bool
    image_end: Int[Tensor, " batch"]

    def repeated(self, batch: int) -> "Query":
        """The same queries for a batch of beams or samples, which come in groups of neighbours."""
        times = _times(len(self.prompt_end), batch)
        if times == 1:
            return self
        ends, images, padding, shown = (
            x.repeat_interleave(times)
            for x in (self.prompt_end, self.has_image, self.padding, self.image_end)
        )
        readable = {name: count.repeat_interleave(times) for name, count in self.readable.items()}
        return Query(ends, images, padding, readable, self.width, self.whole, shown)


def _times(own: int, batch: int) -> int:
    if own == 0 or batch % own:
        raise RMuseError(
            f"{own} queries were announced or decided, a batch of {batch} rows arrived; announce or decide these rows"
        )
    return batch // own


@dataclass(frozen=True, eq=False)
class QueryState:
    """The queries of one batch, remembered from prefill for every decode step.

    Args:
        prompt_end: position of the last prompt token among the row's unmasked tokens.
        has_image: whether the row has an image.
        decision: what the gates said so far.
        image_end: position of the prompt's last image token, as far as is known; −1 without one.
    """

    prompt_end: Int[Tensor, " batch"]
    has_image: Bool[Tensor, " batch"]
    decision: Decision
    image_end: Int[Tensor, " batch"]

    def repeated(self, batch: int) -> "QueryState":
        """The same queries for a batch of beams or samples, which come in groups of neighbours."""
        times = _times(len(self.prompt_end), batch)
        if times == 1:
            return self
        ends, images, shown = (
            x.repeat_interleave(times) for x in (self.prompt_end, self.has_image, self.image_end)
        )
        return QueryState(ends, images, self.decision.repeated(batch), shown)


@dataclass(frozen=True, eq=False)
class Slice:
    """The tokens of one forward call: a slice of each row's conversation.

    Args:
        position: position among the row's unmasked tokens.
        real: whether the token is unmasked.
        image: whether it is an image token.
        special: whether it is a special token of the tokenizer (begin, end, padding, image, …).
        past: how many columns of the batch came before, in the cache.
        ids: the tokens themselves; None where the model was given embeddings.
    """

    position: Int[Tensor, "batch tokens"]
    real: Bool[Tensor, "batch tokens"]
    image: Bool[Tensor, "batch tokens"]
    special: Bool[Tensor, "batch tokens"]
    past: int
    ids: Int[Tensor, "batch tokens"] | None

    @property
    def image_end(self) -> Int[Tensor, " batch"]:
        """Position of the last image token, −1 without one."""
        return torch.where(self.image & self.real, self.position, -1).amax(dim=1)

    @property
    def column(self) -> Int[Tensor, " tokens"]:
        """Columns of the padded batch."""
        start, length = self.past, self.position.shape[1]
        return torch.arange(start, start + length, device=self.position.device)


@dataclass(frozen=True, eq=False)
class Reading:
    """A gate's read-out under way, per row: what the tokens read so far add to its mean, and their number."""

    mean: Float[Tensor, "batch d"]
    count: Int[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class State:
    """A batch of queries in the middle of a forward call.

    Args:
        query: what is remembered of the queries.
        call: the tokens of this call.
        announced: what was said of the queries beforehand.
        width: columns of the prompts' batch.
        readings: read-outs under way, by edit.
        token_fired: what gates per token said in this call, by edit.
        token_score: the scores they said it by.
        acts: per edit, whether it acts on any row; None while a gate is undecided.
        behind: whether every token of this call lies behind its prompt.
        spoken: where each token stands in its response, by delimiters; only for plans that act on spans.
        before: the input of the block under way, where an edit at its `resid_mid` needs it.
        calls: how many calls there were about these queries before this one.
    """

    query: QueryState
    call: Slice
    announced: Query | None
    width: int
    readings: Mapping[int, Reading]
    token_fired: Mapping[int, Bool[Tensor, "batch tokens"]]
    token_score: Mapping[int, Float[Tensor, "batch tokens"]]
    acts: tuple[bool | None, ...]
    behind: bool
    spoken: Mapping[Delimiters, Spoken]
    before: Float[Tensor, "batch tokens d"] | None = None
    calls: int = 0
