"""The immutable values of the interpreter: queries, calls, decisions, and the state that combines them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.spoken import Delimiters, Spoken
from rmuse_interp.parts.gates import Gate


@dataclass(frozen=True, eq=False)
class Decision:
    """The gates' decisions: one row per query, one column per edit of the plan.

    Args:
        fired: whether the edit may act on the row; True for edits without a gate; for a per-token gate, whether
            the edit has acted on any token so far.
        score: the gate's raw score (larger = steer); NaN if there is no gate or it decides per token.
        known: whether the row has been decided; a chunked prefill decides once the prompt's end has passed.
        names: name of each column's edit, or `edit0`, `edit1`, … by its index.
        gates: gate of each column, or None.
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
        """The decision about some of the queries, in the given order."""
        index = torch.as_tensor(which, device=self.fired.device)
        return replace(self, fired=self.fired[index], score=self.score[index], known=self.known[index])

    def repeated(self, batch: int) -> "Decision":
        """Repeat each row for its beams or samples, which are adjacent in a batch of `batch` rows."""
        times = _times(len(self.fired), batch)
        return self.rows(torch.arange(len(self.fired)).repeat_interleave(times)) if times > 1 else self

    def either(self, rows: Sequence[int], other: "Decision") -> "Decision":
        """Let some rows fire where `other` does too, with the larger of the two scores."""
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
    """Facts about the queries announced before their first forward call, by the code that encoded them.

    Positions count a row's unmasked tokens from 0, so they do not depend on padding.

    Args:
        prompt_end: position of the last prompt token; a prefill of the assistant's turn comes after it.
        has_image: whether the row has an image.
        padding: number of masked tokens on the left of each row.
        readable: number of prompt tokens that each read-out covers, by read-out.
        width: number of columns of the padded batch; every later column lies after all prompts.
        whole: whether the ids of the whole conversation were seen; False if part of it is only in the cache.
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
        """Repeat each query for its beams or samples, which are adjacent in a batch of `batch` rows."""
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
        decision: the gates' decisions so far.
        image_end: position of the last image token of the prompt seen so far; −1 without one.
    """

    prompt_end: Int[Tensor, " batch"]
    has_image: Bool[Tensor, " batch"]
    decision: Decision
    image_end: Int[Tensor, " batch"]

    def repeated(self, batch: int) -> "QueryState":
        """Repeat each query for its beams or samples, which are adjacent in a batch of `batch` rows."""
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
        past: number of earlier columns of the batch, held in the cache.
        ids: token ids; None if the model was given embeddings.
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
    """A gate's unfinished read-out, by row: contribution of the tokens read so far to its mean, and their number."""

    mean: Float[Tensor, "batch d"]
    count: Int[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class State:
    """A batch of queries in the middle of a forward call.

    Args:
        query: the queries as remembered from earlier calls.
        call: the tokens of this call.
        announced: facts about the queries announced beforehand, or None.
        width: number of columns of the prompts' batch.
        readings: unfinished read-outs, by edit.
        token_fired: decisions of per-token gates in this call, by edit.
        token_score: the scores of those gates, by edit.
        acts: whether each edit acts on any row; None while a gate is undecided.
        behind: whether every token of this call lies after its prompt.
        spoken: spans of the response's tokens, by delimiters; only for plans that act on spans.
        before: input of the current block, if an edit at its `resid_mid` needs it.
        held: what each edit chose for each row at its last prompt token and keeps to, by edit; −1 before that.
        calls: number of earlier calls about these queries.
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
    held: Mapping[int, Int[Tensor, " batch"]] = field(default_factory=dict)
    calls: int = 0
