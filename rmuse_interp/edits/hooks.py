"""Run a plan natively, as hooks on a plain Hugging Face model: for deployment, without nnsight.

Hooks are placed on the model (to read its inputs) and on the decoder blocks involved. The instance's `generate` is
wrapped to see whole prompts before they are cut into chunks; `detach` undoes everything.

A plan may be attached before or after `torch.compile`, to the model or to what compile returns; its hooks run outside
the compiled graph (see `engines.guard_hooks`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import get_ident
from types import TracebackType
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rmuse_interp import RMuseError
from rmuse_interp.edits.engines import Asked, guard_hooks, listening, require_own, turn
from rmuse_interp.edits.fits import require_sums
from rmuse_interp.edits.inputs import Cache, Inputs, announce, cached, tensor_of
from rmuse_interp.edits.interpreter import Interpreter
from rmuse_interp.edits.sentence import Sentence
from rmuse_interp.edits.state import Decision, Query, State
from rmuse_interp.edits.trace import Recorder
from rmuse_interp.models.batches import reading
from rmuse_interp.models.encoding import Encoding
from rmuse_interp.models.fingerprint import fingerprint
from rmuse_interp.models.layout import Layout, find_layout, unwrapped
from rmuse_interp.models.positions import positions
from rmuse_interp.models.site import Site, around, tap
from rmuse_interp.parts.part import all_same

_ATTACHED: "WeakKeyDictionary[nn.Module, list[Attached]]" = WeakKeyDictionary()
"""Plans attached to each model; used to refuse attaching one twice and to pause them in scoring passes."""


@dataclass(frozen=True, eq=False)
class Told:
    """What a session knows of the calls to come.

    Args:
        said: queries announced by the caller.
        heard: the prompts that `generate` was given.
        copies: number of adjacent rows per query, beams or samples; None for any number.
        ends: ids that end a row.
        decision: the decision made about the prompts that `generate` was given.
    """

    said: Query | None = None
    heard: Query | None = None
    copies: int | None = 1
    ends: frozenset[int] = frozenset()
    decision: Decision | None = None

    @property
    def queries(self) -> Query | None:
        """The queries that calls are about, if known."""
        return self.heard if self.said is None else self.said


class Session:
    """A plan running on one model, in any of the places: announced queries, decision and latest state.

    Args:
        plan: the plan.
        layout: paths of the model's blocks, and its vocabulary.
        decision: the gates' decision from a separate pass, for the coming batches.
        recorder: records a trace of the steering; None for no trace.

    Raises:
        RMuseError: an edit or gate at a layer the model does not have.
    """

    def __init__(
        self,
        plan: Sentence,
        layout: Layout,
        decision: Decision | None = None,
        recorder: Recorder | None = None,
    ):
        self.plan = plan
        self.interpreter = Interpreter(plan, layout)
        self.decision = decision
        self.recorder = recorder
        self._arguments = layout.arguments
        self.state: State | None = None
        self.paused = False
        self._told = Told()

    @contextmanager
    def expecting(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Int[Tensor, "batch all"] | None = None,
        prompt_end: Int[Tensor, " batch"] | Sequence[int] | None = None,
        *,
        copies: int | None = 1,
    ) -> Iterator["Session"]:
        """Context in which calls are about these queries: hand-made chunks, forced prefixes, given responses.

        Args:
            input_ids: [batch, tokens] ids of the whole conversation.
            attention_mask: its mask; all ones by default.
            prompt_end: position of each row's last prompt token among its unmasked tokens, counted from 0; by default
                the last unmasked token.
            copies: number of adjacent rows of a call that are about each query; None for any number.
        """
        outer = self._told
        said = announce(input_ids, attention_mask, self.interpreter.vocabulary, prompt_end)
        self._told = replace(outer, said=said, copies=copies)
        try:
            yield self
        finally:
            self._told = outer

    def say(self, queries: Query, asked: Asked) -> None:
        """Announce the queries of all following calls, and how they are asked."""
        self._told = Told(queries, None, asked.copies, asked.ends)
        self._require_drafts(asked)
        self._require_these(asked.inputs)

    @contextmanager
    def hearing(self, asked: Asked) -> Iterator[None]:
        """Context of one call of `generate`: its prompts are announced, unless others have been."""
        outer, state = self._told, self.state
        self._require_drafts(asked)
        vocabulary = self.interpreter.vocabulary
        heard = None if asked.mask is None else announce(asked.ids, asked.mask, vocabulary)
        self._told = Told(outer.said, heard, asked.copies, asked.ends)
        try:
            self._require_these(asked.inputs)
            self._told = replace(self._told, decision=self.ask(asked.inputs))
            yield
        finally:
            if outer.heard is not None:  # a call inside a call, by which a model drafts for itself
                self.state = state
            self._told = outer

    def ask(self, inputs: Inputs) -> Decision | None:
        """The decision about the prompt passed to `generate`, in places that can decide then; None here."""
        return None

    def _require_drafts(self, asked: Asked) -> None:
        """Raise `RMuseError` where tokens that are taken back again would be followed."""
        spans = any(edit.tokens in ("chain", "answer") for edit in self.plan)
        if asked.drafted and (spans or self.recorder is not None):
            raise RMuseError(
                "assisted and prompt-lookup decoding take tokens back, which chain, answer and traces cannot follow: "
                "leave out the assistant, or steer other tokens and record nothing"
            )

    def _require_these(self, inputs: Inputs) -> None:
        """Raise `RMuseError` if the decision is about other pictures."""
        if self.decision is not None and not self.paused:
            self.decision.require_pictures(inputs)

    def begin(self, args: Sequence[object], kwargs: Inputs) -> None:
        """Start a forward call of the model with its arguments."""
        inputs = {**dict(zip(self._arguments, args, strict=False)), **kwargs}
        told = self._told
        if told.queries is None:
            self._require_these(inputs)
        decision = told.decision if self.decision is None else self.decision
        self.state = self.interpreter.begin(
            self._before_call(inputs), inputs, told.queries, decision, copies=told.copies
        )
        if self.recorder is not None:
            self.recorder.begin(self.plan, self.state, tensor_of(inputs, "input_ids"), told.ends)

    def _before_call(self, inputs: Inputs) -> State | None:
        """The state that a call goes on from: that of the call before."""
        return self.state

    def apply(self, tap: Site, h: Float[Tensor, "batch tokens d"]) -> Float[Tensor, "batch tokens d"]:
        """The edited states at a tap; h itself if nothing was edited."""
        if self.state is None:
            raise RMuseError(
                "a plan sees its queries through the whole model: call the model, not a part of it"
            )
        out, self.state = self.interpreter.apply(tap, h, self.state, self.recorder)
        return out


def attach(
    hf_model: nn.Module,
    plan: Sentence,
    *,
    decision: Decision | None = None,
    layout: Layout | None = None,
    recorder: Recorder | None = None,
) -> "Attached":
    """Attach a plan to a Hugging Face model until `.detach()`; the result is also a context manager.

    The hooks stay until `.detach()`, also if the handle is dropped. Detach before copying the model: a copy carries
    the hooks and refuses to run. The plan is not changed: its tensors are copied to the devices where states arrive.

    Args:
        hf_model: the model with its head, loaded in any way, also compiled or with PEFT adapters on it.
        plan: the plan to run. If a gate reads above an edited layer, `hf_model.generate` first decides in a separate
            pass over its ids and pictures.
        decision: result of `plan.decide` for the coming batches; needed if a gate reads a prefixed prompt or a draft,
            which `generate` does not see, and for forward calls of a two-pass plan.
        layout: paths of the model's blocks; searched for by default.
        recorder: records a trace of the steering; its `trace()` covers the latest batch.

    Raises:
        RMuseError: layers out of range, a plan already attached, an unknown model family, or a plan fitted on another
            model.
    """
    hf_model = unwrapped(hf_model)
    place = layout or find_layout(hf_model)
    if plan.fingerprint is not None:
        fingerprint(hf_model, place).require(plan.fingerprint, "this plan")
        # A model loaded without its tokenizer: the ids are those that the plan was fitted with.
        place = replace(place, vocabulary=place.vocabulary.known(plan.fingerprint.get("tokens")))
    return Attached(hf_model, plan, place, decision, recorder)


class Attached(Session):
    """Handle of a plan attached to a model; `detach` (or leaving the ``with`` block) restores the model."""

    def __init__(
        self,
        hf_model: nn.Module,
        plan: Sentence,
        layout: Layout,
        decision: Decision | None,
        recorder: Recorder | None = None,
    ):
        super().__init__(plan, layout, decision, recorder)
        present = _ATTACHED.setdefault(hf_model, [])
        if any(all_same(plan, other.plan) for other in present):
            raise RMuseError("this plan is attached to the model already; .detach() its handle first")
        with paused(hf_model):
            require_sums(plan, hf_model, layout)
        guard_hooks()
        self._model, self._layout = hf_model, layout
        self._turn = turn(hf_model)
        self._running: int | None = None  # the thread of the call in progress
        self._kept: WeakKeyDictionary[object, State] = WeakKeyDictionary()
        present.append(self)
        self._undo = ExitStack()
        self._undo.callback(present.remove, self)
        self._undo.enter_context(listening(hf_model, self))
        self._undo.callback(around(hf_model, self._before, self._after))
        for site in self.interpreter.taps:
            self._undo.callback(tap(layout.blocks[site.layer], site, partial(self._at, site)))

    def detach(self) -> None:
        """Remove all hooks from the model; a second call does nothing."""
        self._undo.close()

    def __enter__(self) -> "Attached":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def ask(self, inputs: Inputs) -> Decision | None:
        """The decision about the prompt passed to `generate`, from an unsteered pass over its inputs.

        Only if such a pass is needed and its inputs suffice: a gate that reads a prefixed prompt or a draft stays
        undecided, and the first call of the model then raises an error that says what to pass.
        """
        queries = self._told.queries
        shown = all(gate.prefix is None and gate.readout != "draft" for gate in self.plan.gates)
        if self.paused or self.decision is not None or self.plan.single_pass or not shown:
            return None
        if queries is None or not queries.whole or tensor_of(inputs, "input_ids") is None:
            return None
        mine = {name: value for name, value in inputs.items() if name in self._arguments}
        mine.pop("cache_position", None)  # belongs to a cache; this pass uses none
        mine = {**positions(self._model, tensor_of(mine, "attention_mask")), **mine}
        return _score(self._model, self.interpreter, mine, queries, self._layout)

    def _before(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        require_own(module, _ATTACHED)
        if self.paused:
            return
        if self._running != get_ident():
            self._turn.claim()
            self._running = get_ident()
        self.begin(args, kwargs)

    def _before_call(self, inputs: Inputs) -> State | None:
        # Several conversations may take turns, each on a cache of its own.
        return self._kept.get(inputs["past_key_values"]) if cached(inputs) else self.state

    def _after(self, output: object) -> None:
        if self._running != get_ident():
            return
        self._running = None
        self._turn.release()
        found = output.values() if isinstance(output, Mapping) else output
        for cache in found if isinstance(found, Iterable) else ():
            if isinstance(cache, Cache) and self.state is not None:
                self._kept[cache] = self.state

    def _at(self, site: Site, h: Tensor) -> Tensor | None:
        if self.paused:
            return None
        if self._running != get_ident():
            raise RMuseError(
                "a plan sees its queries through the whole model: call the model itself, not a part of it, its forward "
                "or a copy"
            )
        edited = self.apply(site, h)
        return None if edited is h else edited  # nothing was edited: pass on the same tensor


@contextmanager
def paused(hf_model: nn.Module) -> Iterator[None]:
    """Context in which no attached plan acts on the model: for scoring passes and comparisons."""
    with turn(hf_model):
        running = [handle for handle in _ATTACHED.get(hf_model, ()) if not handle.paused]
        for handle in running:
            handle.paused = True
        try:
            yield
        finally:
            for handle in running:
                handle.paused = False


def attached(hf_model: nn.Module) -> list[Sentence]:
    """The plans attached to the model."""
    return [handle.plan for handle in _ATTACHED.get(hf_model, ())]


def require_decided(hf_model: nn.Module) -> None:
    """Raise `RMuseError` if an attached plan would decide inside `generate`, in a pass that a tracer would trace."""
    if any(not one.plan.single_pass and one.decision is None for one in _ATTACHED.get(hf_model, ())):
        raise RMuseError(
            "a trace needs the decision of an attached two-pass plan beforehand: attach it with "
            "decision=plan.decide(lens, prompts, images), or detach it and pass plan= here, which decides by itself"
        )


def decide(
    hf_model: nn.Module, plan: Sentence, encode: Callable[[str | None, bool], Encoding], layout: Layout
) -> Decision:
    """The decision of the plan's gates about some prompts, from unsteered passes over the prompts alone.

    One pass for all gates that read the prompt as it is, one for each prefix, and one over the drafts. The passes leave
    no state behind, and attached plans do not act in them.

    Args:
        hf_model: the model.
        plan: the plan whose gates decide.
        encode: function of a prefix and a flag that returns the model's inputs: the prompts after the prefix (None: as
            they are) and, if the flag is set, followed by the model's draft.
        layout: paths of the model's blocks.
    """
    interpreter = Interpreter(plan, layout)
    passes = list(dict.fromkeys((gate.prefix, gate.readout == "draft") for gate in plan.gates)) or [
        (None, False)
    ]
    found: Decision | None = None
    plain: Encoding | None = None
    for kind in passes:
        inputs = encode(*kind)
        plain = inputs if kind[0] is None else plain
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        asked = announce(ids, mask, layout.vocabulary, inputs.prompt_end)
        new = _score(hf_model, interpreter, inputs, asked, layout)
        if found is None:
            found = new
            continue
        own = [e.gate is not None and (e.gate.prefix, e.gate.readout == "draft") == kind for e in plan]
        found = found.where(own, new)
    assert found is not None
    plain = encode(None, False) if plain is None else plain
    return found.about(plain["input_ids"], plain["attention_mask"], plain.prompt_end, plain)


def _score(
    hf_model: nn.Module, interpreter: Interpreter, inputs: Inputs, asked: Query, layout: Layout
) -> Decision:
    """The decision of one unsteered pass over the inputs of some queries."""
    state = interpreter.begin(None, inputs, asked, scoring=True)

    def read(layer: int, h: Tensor) -> None:
        nonlocal state
        state = interpreter.read(Site(layer), h, state)

    layers = sorted({gate.layer for gate in interpreter.plan.gates})
    with paused(hf_model), torch.no_grad(), reading(layout, layers, read):
        hf_model(**inputs, use_cache=False)
    return state.query.decision
