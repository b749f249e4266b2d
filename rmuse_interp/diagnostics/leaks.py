"""Where a response reveals a value: the leaked token, and the span of every token before it.

A leak is one token, predicted at the token before it, which is the last one kept; the question is where its
log-probability comes from. Spans partition all tokens up to there, delimiters and template included, so shares add up:

* ``image``: the image tokens;
* ``prefix``: everything before the question, template and prefix words alike;
* ``question``: the question's own words;
* ``turn``: the template after the question, up to the last prompt token;
* ``reasoning``: the reasoning so far, its opening delimiter included;
* ``answer``: the answer so far, with the delimiter that closes the reasoning.

The last token itself is separate as ``here``: its state *is* the prediction, not a source that could be left out.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rmuse_interp import RMuseError
from rmuse_interp.data.spans import DEFAULT_DELIMITERS, locate, parse_response
from rmuse_interp.edits.hooks import paused
from rmuse_interp.fitting.collect import Query
from rmuse_interp.lens.lens import LensModel

SourceSpan = Literal["image", "prefix", "question", "turn", "reasoning", "answer"]
SOURCES: Final[tuple[SourceSpan, ...]] = get_args(SourceSpan)
"""Source spans, in the order of the tokens."""
Part = Literal["reasoning", "answer"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
"""Parts of a response in which a value can leak."""
Arguments = dict[str, object]
"""Keyword arguments of a language model."""
Place = tuple[SourceSpan, int]
"""A span and the number of its tokens that come before."""


@dataclass(frozen=True)
class Statement:
    """A query whose response states a value about somebody.

    Args:
        query: the query with its response.
        question: the question's own words, which occur in the prompt.
        value: the value revealed.
        person: the person concerned; examples about one person are not independent.
        among: the values from which it must be told apart; see `find_leaks`.
        attribute: one word for the kind of value.
        parts: parts of the response in which to look for it.
    """

    query: Query
    question: str
    value: str
    person: str
    among: tuple[str, ...] = ()
    attribute: str = "value"
    parts: tuple[Part, ...] = PARTS


@dataclass(frozen=True, eq=False)
class Placed:
    """One query with the place of each of its tokens.

    Attributes:
        statement: the statement placed.
        inputs: the model's inputs, one row without padding.
        prompt_end: position of the last prompt token.
        places: place of every token.
        tail: the response, with the space that leads it if there is one.
    """

    statement: Statement
    inputs: Mapping[str, Tensor]
    prompt_end: int
    places: tuple[Place, ...]
    tail: str

    @property
    def ids(self) -> Int[Tensor, "1 tokens"]:
        """The tokens."""
        return self.inputs["input_ids"]


@dataclass(frozen=True, eq=False)
class Leak:
    """One leaked token and everything before it; the last token kept is ``here``.

    Attributes:
        placed: the query, cut after the predicting token.
        part: the part in which the value leaks.
        token: id of the leaked token.
    """

    placed: Placed
    part: Part
    token: int

    @property
    def id(self) -> str:
        """The id of the query."""
        return self.placed.statement.query.id

    @property
    def sources(self) -> dict[SourceSpan, list[int]]:
        """Return the positions by span, without ``here`` and spans that have no tokens."""
        found: dict[SourceSpan, list[int]] = {}
        for position, (span, _) in enumerate(self.placed.places[:-1]):
            found.setdefault(span, []).append(position)
        return found

    def summed(self, values: Float[Tensor, " tokens"]) -> dict[str, float]:
        """Sum the tokens' values by span, ``here`` included; a span without tokens is absent."""
        sums: dict[str, float] = {span: float(values[at].sum()) for span, at in self.sources.items()}
        return {**sums, "here": float(values[-1])}


@dataclass(frozen=True)
class Found:
    """The result of `find_leaks`.

    Attributes:
        leaks: the leaks in the order of the statements, in the reasoning before those in the answer.
        missing: by part, the ids of the queries whose value does not occur in it.
    """

    leaks: list[Leak] = field(default_factory=list)
    missing: dict[Part, list[str]] = field(default_factory=lambda: {part: [] for part in PARTS})


def place(lens: LensModel, statement: Statement, delimiters: tuple[str, str] = DEFAULT_DELIMITERS) -> Placed:
    """Determine the place of every token of a query.

    Raises:
        RMuseError: a question that is not in the prompt, a response that is not well formed.
    """
    query = statement.query
    inputs = lens.encode([query.prompt], [query.image], [query.response])
    ids = inputs["input_ids"][0].tolist()
    spans = locate(
        lens.processor,
        inputs.heads[0],
        inputs.tails[0],
        input_ids=ids,
        question=statement.question,
        delimiters=delimiters if query.stepwise else None,
        name=query.id,
        expansion=next(iter(inputs.expansions), None),
        image_id=lens.image_token_id,
    )
    assert spans.question is not None
    closed = spans.prompt_end + 1 if spans.reasoning is None else spans.reasoning[1]
    counted: dict[SourceSpan, int] = {}
    places: list[Place] = []
    for position, token in enumerate(ids):
        span: SourceSpan
        if position > spans.prompt_end:
            span = "answer" if position >= closed else "reasoning"
        elif token == lens.image_token_id:
            span = "image"
        elif position < spans.question[0]:
            span = "prefix"
        else:
            span = "question" if position < spans.question[1] else "turn"
        places.append((span, counted.get(span, 0)))
        counted[span] = counted.get(span, 0) + 1
    return Placed(statement, dict(inputs), spans.prompt_end, tuple(places), inputs.tails[0])


def find_leaks(
    lens: LensModel, statements: Sequence[Statement], delimiters: tuple[str, str] = DEFAULT_DELIMITERS
) -> Found:
    """Find the leaked tokens, where the value first occurs in a response's reasoning and in its answer.

    The leaked token is the first that tells the value from others: at most half of `Statement.among` begin with the
    same tokens up to it. If every year begins with 19, those digits reveal nobody.

    Raises:
        RMuseError: no statement, or none whose response holds its value.
    """
    pieces = _Pieces(lens.tokenizer)
    found = Found()
    for statement in statements:
        placed = place(lens, statement, delimiters)
        text = statement.query.response or ""
        # Counted from the end, where no image placeholders or prepended tokens shift the positions.
        offsets = lens.tokenizer(text=placed.tail, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        lead = len(placed.tail) - len(text)
        shift = len(placed.places) - len(offsets)
        for part in statement.parts:
            span = _value_in(text, part, statement, delimiters)
            covering = [] if span is None else _covering(offsets, span[0] + lead, span[1] + lead)
            if not covering:
                found.missing[part].append(statement.query.id)
                continue
            at = shift + covering[min(pieces.telling(statement.value, statement.among), len(covering) - 1)]
            found.leaks.append(Leak(_cut(placed, at), part, int(placed.ids[0, at])))
    if not found.leaks:
        raise RMuseError(
            f"at least one response that states its value was required, got none in {len(statements)}; check the "
            "attributes and the reference responses of the benchmark"
        )
    return found


def _value_in(
    text: str, part: Part, statement: Statement, delimiters: tuple[str, str]
) -> tuple[int, int] | None:
    """Return the character range of the value's first occurrence in one part of a response."""
    parsed = parse_response(text, delimiters if statement.query.stepwise else ("", ""))
    within = parsed.reasoning if part == "reasoning" else parsed.answer
    begin = text.find(within) if part == "reasoning" else text.rfind(within)
    hit = re.search(rf"(?<!\w){re.escape(statement.value)}(?!\w)", within) if within else None
    return None if hit is None else (begin + hit.start(), begin + hit.end())


def _covering(offsets: Sequence[tuple[int, int]], start: int, end: int) -> list[int]:
    """List the tokens that cover a character of a range; a token that is only the space before it does not count."""
    return [i for i, (a, b) in enumerate(offsets) if b > a and a < end and b > start]


def _cut(placed: Placed, at: int) -> Placed:
    """Cut the query after the token before position `at`."""
    # Whatever the model is told of each token: ids, mask, types, positions.
    each = placed.ids.shape
    inputs = {
        key: value[:, :at] if value.shape[:2] == each else value for key, value in placed.inputs.items()
    }
    return replace(placed, inputs=inputs, places=placed.places[:at])


class _Pieces:
    """Values as the tokenizer splits them after a space."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}

    def of(self, value: str) -> tuple[int, ...]:
        """Return the tokens that cover the value."""
        if value not in self._known:
            found = self._tokenizer(text=f" {value}", add_special_tokens=False, return_offsets_mapping=True)
            hit = _covering(found["offset_mapping"], 1, 1 + len(value))
            self._known[value] = tuple(found["input_ids"][i] for i in hit)
        return self._known[value]

    def telling(self, value: str, among: Sequence[str]) -> int:
        """Return the index of the value's first token that at most half of the other values share."""
        own, others = self.of(value), [self.of(other) for other in {*among} - {value}]
        for length in range(1, len(own)):
            if 2 * sum(other[:length] == own[:length] for other in others) <= len(others):
                return length - 1
        return len(own) - 1


def embedded(lens: LensModel, placed: Placed) -> Float[Tensor, "1 tokens d"]:
    """Return the inputs of the language model: the tokens' embeddings, with image features in their places."""
    given = _entered(lens, placed)["inputs_embeds"]
    assert isinstance(given, Tensor)
    return given.detach()


def _entered(lens: LensModel, placed: Placed) -> Arguments:
    """Run the model on a query and return the keyword arguments of its language model."""
    seen: list[Arguments] = []

    def look(_module: nn.Module, _args: object, kwargs: Arguments) -> None:
        given = kwargs.get("inputs_embeds")
        given = lens.hf.get_input_embeddings()(placed.ids) if given is None else given
        seen.append({**kwargs, "input_ids": None, "inputs_embeds": given})

    handle = _language_model(lens).register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.no_grad():
            lens.hf(**placed.inputs, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return seen[0]


@contextmanager
def entering(lens: LensModel, placed: Placed, embeddings: Float[Tensor, "rows tokens d"]) -> Iterator[None]:
    """Return a context in which these embeddings enter the language model, whatever its input ids.

    Everything else that the model makes of the query for its language model stays as it was: positions on several axes,
    masks, the picture's features for cross-attention and for deeper blocks. The ids still reach the model and the plans
    attached to it, which recognise image tokens by their ids.
    """
    known = _BESIDE.setdefault(lens.hf, WeakKeyDictionary())
    if placed not in known:
        with paused(lens.hf):
            known[placed] = {k: v for k, v in _entered(lens, placed).items() if k != "inputs_embeds"}
    beside = {key: _rows(value, len(embeddings)) for key, value in known[placed].items()}

    def put(_module: nn.Module, args: object, _kwargs: Arguments) -> tuple[object, Arguments]:
        return args, {**beside, "inputs_embeds": embeddings}

    handle = _language_model(lens).register_forward_pre_hook(put, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


_BESIDE: Final[WeakKeyDictionary[nn.Module, WeakKeyDictionary[Placed, Arguments]]] = WeakKeyDictionary()
"""Model → query → what its language model gets beside the embeddings; no plan acts before that."""


def _rows(value: object, rows: int) -> object:
    """Repeat an argument of the language model, made for one query, for several rows."""
    if isinstance(value, Tensor):
        axis = next((i for i, length in enumerate(value.shape[:2]) if length == 1), None)
        if axis is not None:  # [1, …], or positions on several axes [axes, 1, tokens]
            return value.expand(*value.shape[:axis], rows, *value.shape[axis + 1 :])
        return (
            value.repeat(rows, *[1] * (value.ndim - 1)) if value.ndim else value
        )  # one entry per image token
    if isinstance(value, Mapping):
        return {key: _rows(item, rows) for key, item in value.items()}
    return type(value)(_rows(item, rows) for item in value) if isinstance(value, list | tuple) else value


def _language_model(lens: LensModel) -> nn.Module:
    return lens.hf.get_submodule(lens.layout.path.rpartition(".")[0])


def log_prob(
    lens: LensModel, leak: Leak, embeddings: Float[Tensor, "rows tokens d"]
) -> Float[Tensor, " rows"]:
    """Compute the leaked token's log-probability (nats) with these embeddings as input; attached plans act."""
    ids = leak.placed.ids.expand(len(embeddings), -1)
    with entering(lens, leak.placed, embeddings):
        logits = lens.hf(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1
        ).logits
    return logits[:, -1].float().log_softmax(dim=-1)[:, leak.token]
