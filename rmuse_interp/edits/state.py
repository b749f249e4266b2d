"""The immutable values of the interpreter: queries, calls, decisions, and the state that combines them."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Final, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

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
        prompts: what tells each row's prompt from others, see `names_of`; empty if unknown.
        pictures: what tells the batch's pictures from others, see `outline`; None without pictures, or if unknown.
    """

    fired: Bool[Tensor, "batch edits"]
    score: Float[Tensor, "batch edits"]
    known: Bool[Tensor, "batch edits"]
    names: tuple[str, ...] = ()
    gates: tuple[Gate | None, ...] = ()
    prompts: tuple[str, ...] = ()
    pictures: Float[Tensor, " parts"] | None = None

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
        every = torch.equal(index, torch.arange(len(self.fired), device=index.device))
        prompts = tuple(self.prompts[row] for row in index.tolist()) if self.prompts else ()
        found = replace(self, fired=self.fired[index], score=self.score[index], known=self.known[index])
        return replace(found, prompts=prompts, pictures=self.pictures if every else None)

    def repeated(self, batch: int) -> "Decision":
        """Repeat each row for its beams or samples, which are adjacent in a batch of `batch` rows."""
        times = times_of(len(self.fired), batch)
        return self.rows(torch.arange(len(self.fired)).repeat_interleave(times)) if times > 1 else self

    def about(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Int[Tensor, "batch tokens"],
        prompt_end: Int[Tensor, " batch"],
        inputs: Mapping[str, object],
    ) -> "Decision":
        """The same decision, which knows the prompts and pictures it is about."""
        lengths = (prompt_end + 1).tolist()
        return replace(self, prompts=names_of(input_ids, attention_mask, lengths), pictures=outline(inputs))

    def require_about(
        self, input_ids: Int[Tensor, "batch tokens"], attention_mask: Int[Tensor, "batch tokens"]
    ) -> None:
        """Raise `RMuseError` unless the decision is about the prompts that these rows begin with."""
        if len(self.fired) != len(input_ids):
            raise RMuseError(
                f"a decision about {len(input_ids)} prompts was required, got one about {len(self.fired)}; use "
                "plan.decide(...) of these very prompts"
            )
        lengths = [int(name.partition(":")[0]) for name in self.prompts]
        if self.prompts and names_of(input_ids, attention_mask, lengths) != self.prompts:
            raise RMuseError(
                "a decision about these prompts was required, got one about others; use plan.decide(...) of these very "
                "prompts, and encode them as lens.encode does"
            )

    def require_pictures(self, inputs: Mapping[str, object]) -> None:
        """Raise `RMuseError` if the model's inputs hold other pictures than those that were decided about."""
        shown = outline(inputs)
        if self.pictures is None or shown is None:
            return
        own = self.pictures.to(shown.device)
        # Rounding to half precision passes, another photograph does not.
        if bool(((own - shown).abs() > 0.02 * (1 + own.abs())).any()):
            raise RMuseError(
                "a decision about these pictures was required, got one about others; use plan.decide(...) of these very "
                "prompts and pictures"
            )

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


def names_of(
    input_ids: Int[Tensor, "batch tokens"],
    attention_mask: Int[Tensor, "batch tokens"],
    lengths: Sequence[int],
) -> tuple[str, ...]:
    """What tells prompts apart: number and hash of each row's first unmasked tokens, `lengths` of them."""
    found = []
    for ids, mask, length in zip(input_ids.tolist(), attention_mask.tolist(), lengths, strict=True):
        kept = [token for token, real in zip(ids, mask, strict=True) if real][:length]
        found.append(f"{length}:{hashlib.sha256(repr(kept).encode()).hexdigest()[:16]}")
    return tuple(found)


def outline(inputs: Mapping[str, object]) -> Float[Tensor, " parts"] | None:
    """What tells a batch's pictures apart: means over 64 equal parts of all pixels; None without pictures."""
    pixels = inputs.get("pixel_values")
    if not isinstance(pixels, Tensor) or not pixels.numel():
        return None
    return torch.nn.functional.adaptive_avg_pool1d(pixels.float().reshape(1, -1), 64)[0]


@dataclass(frozen=True, eq=False)
class Query:
    """Facts about the queries announced before their first forward call, by the code that encoded them.

    Positions count a row's unmasked tokens from 0, so they do not depend on padding.

    Args:
        prompt_end: position of the last prompt token; a prefill of the assistant's turn comes after it.
        has_image: whether the row has an image.
        mask: mask of the padded batch; every later column lies after all prompts.
        readable: number of prompt tokens that each read-out covers, by read-out.
        ids: token ids of the whole conversation; None if part of it is only in the cache, or given as embeddings.
        image_end: position of the prompt's last image token, −1 without one.
    """

    prompt_end: Int[Tensor, " batch"]
    has_image: Bool[Tensor, " batch"]
    mask: Int[Tensor, "batch width"]
    readable: Mapping[str, Int[Tensor, " batch"]]
    ids: Int[Tensor, "batch width"] | None
    image_end: Int[Tensor, " batch"]

    @property
    def width(self) -> int:
        """Number of columns of the padded batch."""
        return self.mask.shape[1]

    @property
    def whole(self) -> bool:
        """Whether the ids of the whole conversation were seen."""
        return self.ids is not None

    def repeated(self, batch: int) -> "Query":
        """Repeat each query for its beams or samples, which are adjacent in a batch of `batch` rows."""
        times = times_of(len(self.prompt_end), batch)
        return self if times == 1 else each(self, lambda x: x.repeat_interleave(times, dim=0))


def times_of(own: int, batch: int, copies: int | None = None) -> int:
    """Number of adjacent rows per query.

    Raises:
        RMuseError: the rows are not that many copies of the queries (of any number, if `copies` is None).
    """
    if own == 0 or batch % own or copies not in (None, batch // own):
        raise RMuseError(
            f"{own} queries were announced or decided, a batch of {batch} rows arrived; announce or decide these rows"
        )
    return batch // own


T = TypeVar("T")

_COPIES: Final[WeakKeyDictionary[nn.Module, dict[torch.device, nn.Module]]] = WeakKeyDictionary()
"""Operators and gates → their copies on other devices."""


def beside(part: T, states: Tensor) -> T:
    """An operator or gate on the device of the states: itself, or a copy kept for the next time."""
    held = next(part.buffers(), None) if isinstance(part, nn.Module) else None
    if not isinstance(part, nn.Module) or held is None or held.device == states.device:
        return part
    copies = _COPIES.setdefault(part, {})
    if states.device not in copies:
        copies[states.device] = copy.deepcopy(part).to(states.device)
    return cast(T, copies[states.device])


def each(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """A value of this file with every tensor in it changed, however deep."""
    found: object = value
    if isinstance(value, Tensor):
        found = change(value)
    elif isinstance(value, Mapping):
        found = {key: each(item, change) for key, item in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        found = replace(value, **{one.name: each(getattr(value, one.name), change) for one in fields(value)})
    return cast(T, found)


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
        times = times_of(len(self.prompt_end), batch)
        return self if times == 1 else each(self, lambda x: x.repeat_interleave(times, dim=0))


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
    """A gate's unfinished read-out, by row: what the tokens read so far contribute to its mean or peak, and how many."""

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

    def beside(self, states: Tensor) -> "State":
        """The same state on the device of the states: in a model that is spread over several, it follows them."""
        if self.call.position.device == states.device:
            return self
        return replace(each(self, lambda x: x.to(states.device)), announced=self.announced)
