"""Run a plan natively, as hooks on a plain Hugging Face model: for deployment, without nnsight.

Hooks are placed on the model (to read its inputs) and on the decoder blocks involved. The instance's `generate` is
wrapped to see whole prompts before they are cut into chunks; `detach` undoes everything.

`torch.compile`: attach first, compile afterwards. A hook added to a compiled model that has already run may be
skipped silently (`torch._dynamo.config.skip_nnmodule_hook_guards` is True by default), and the model then
runs unsteered: call `torch._dynamo.reset()` after attaching. Hooks themselves run outside the compiled graph.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rmuse_interp import RMuseError
from rmuse_interp.edits.fits import require_sums
from rmuse_interp.edits.inputs import Inputs, announce, tensor_of
from rmuse_interp.edits.interpreter import Interpreter
from rmuse_interp.edits.sentence import Sentence
from rmuse_interp.edits.state import Decision, Query, State
from rmuse_interp.edits.trace import Recorder
from rmuse_interp.models.batches import reading
from rmuse_interp.models.encoding import Encoding
from rmuse_interp.models.fingerprint import fingerprint
from rmuse_interp.models.layout import Layout, find_layout
from rmuse_interp.models.site import Site, tap
from rmuse_interp.parts.part import all_same

_ATTACHED: "WeakKeyDictionary[nn.Module, list[Attached]]" = WeakKeyDictionary()
"""Plans attached to each model; used to refuse attaching one twice and to pause them in scoring passes."""

_LISTENERS: "WeakKeyDictionary[nn.Module, list[Session]]" = WeakKeyDictionary()
"""Sessions notified of each prompt passed to a model's `generate`."""


_EARLIER: WeakKeyDictionary[nn.Module, object] = WeakKeyDictionary()
"""The instance attribute `generate` that a model had before it was wrapped, if any."""


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
        self._asked: Decision | None = None
        self.recorder = recorder
        self._arguments = layout.arguments
        self.state: State | None = None
        self.paused = False
        self._said: Query | None = None
        self._heard: Query | None = None
        self._stop: frozenset[int] = frozenset()

    @contextmanager
    def expecting(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Int[Tensor, "batch all"] | None = None,
        prompt_end: Int[Tensor, " batch"] | Sequence[int] | None = None,
    ) -> Iterator["Session"]:
        """Context in which calls are about these queries: hand-made chunks, forced prefixes, given responses.

        Args:
            input_ids: [batch, tokens] ids of the whole conversation.
            attention_mask: its mask; all ones by default.
            prompt_end: position of each row's last prompt token among its unmasked tokens, counted from 0; by default
                the last unmasked token.
        """
        outer = self._said
        self._said = announce(input_ids, attention_mask, self.interpreter.vocabulary, prompt_end)
        try:
            yield self
        finally:
            self._said = outer

    def say(self, queries: Query, stop: frozenset[int] = frozenset()) -> None:
        """Announce the queries of all following calls, and the token ids that end a row."""
        self._said, self._stop = queries, stop

    def hear(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        stop: frozenset[int] = frozenset(),
    ) -> None:
        """Store the prompt passed to `generate` and the ids that end a row; None once `generate` has returned."""
        vocabulary = self.interpreter.vocabulary
        self._heard = None if input_ids is None else announce(input_ids, attention_mask, vocabulary)
        self._stop = stop

    def ask(self, inputs: Inputs) -> None:
        """Decide about the prompt passed to `generate`, in places that can do so; does nothing here."""

    def begin(self, args: Sequence[object], kwargs: Inputs) -> None:
        """Start a forward call of the model with its arguments."""
        inputs = {**dict(zip(self._arguments, args, strict=False)), **kwargs}
        announced = self._said if self._said is not None else self._heard
        decision = self._asked if self.decision is None else self.decision
        self.state = self.interpreter.begin(self.state, inputs, announced, decision)
        if self.recorder is not None:
            self.recorder.begin(self.plan, self.state, tensor_of(inputs, "input_ids"), self._stop)

    def apply(self, tap: Site, h: Float[Tensor, "batch tokens d"]) -> Float[Tensor, "batch tokens d"]:
        """The edited states at a tap; h itself if nothing was edited."""
        if self.state is None:
            raise RMuseError(
                "a plan sees its queries through the whole model: call the model, not a part of it"
            )
        out, self.state = self.interpreter.apply(tap, h, self.state, self.recorder)
        return out


@contextmanager
def listening(hf_model: nn.Module, session: Session) -> Iterator[None]:
    """Context in which `session` is notified of every prompt passed to `hf_model.generate`, before any chunking."""
    listeners = _LISTENERS.setdefault(hf_model, [])
    if not listeners:
        _wrap_generate(hf_model)
    listeners.append(session)
    try:
        yield
    finally:
        listeners.remove(session)
        if not listeners:
            _unwrap_generate(hf_model)


def _wrap_generate(hf_model: Any) -> None:
    original = hf_model.generate

    @wraps(original)
    def generate(inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        mask = kwargs.get("attention_mask")
        pad = hf_model.generation_config.pad_token_id
        if mask is None and ids is not None and pad is not None:
            mask = ids.ne(pad).long()  # as `generate` itself infers it
        sessions = list(_LISTENERS.get(hf_model, ()))
        try:
            for session in sessions:
                session.hear(ids, mask, ends_of(hf_model, kwargs))
                session.ask({**kwargs, "input_ids": ids, "attention_mask": mask})
            return original(inputs, *args, **kwargs)
        finally:
            for session in sessions:
                session.hear(None, None)

    _EARLIER[hf_model] = vars(hf_model).get("generate")
    hf_model.generate = generate


def ends_of(hf_model: Any, settings: Mapping[str, Any]) -> frozenset[int]:
    """The token ids that end a row in `generate(**settings)`."""
    config = settings.get("generation_config") or hf_model.generation_config
    ends = settings.get("eos_token_id", config.eos_token_id)
    if isinstance(ends, Tensor):
        ends = ends.flatten().tolist()
    return frozenset(() if ends is None else [ends] if isinstance(ends, int) else ends)


def _unwrap_generate(hf_model: Any) -> None:
    earlier = _EARLIER.pop(hf_model)
    del hf_model.generate  # restores the method of the class
    if earlier is not None:
        hf_model.generate = earlier


def attach(
    hf_model: nn.Module,
    plan: Sentence,
    *,
    decision: Decision | None = None,
    layout: Layout | None = None,
    recorder: Recorder | None = None,
) -> "Attached":
    """Attach a plan to a Hugging Face model until `.detach()`; the result is also a context manager.

    Detach before copying or pickling the model: hooks of a copy would share this plan's state.

    Args:
        hf_model: the model with its head, loaded in any way.
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
    place = layout or find_layout(hf_model)
    if plan.fingerprint is not None:
        fingerprint(hf_model, place).require(plan.fingerprint, "this plan")
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
        plan.to(next(hf_model.parameters()).device)
        self._model, self._layout = hf_model, layout
        present.append(self)
        self._undo = ExitStack()
        self._undo.callback(present.remove, self)
        self._undo.enter_context(listening(hf_model, self))
        # Excluded from compilation: tracing the bookkeeping takes minutes and ends in a graph break anyway.
        before = torch.compiler.disable(self._before)
        self._undo.callback(hf_model.register_forward_pre_hook(before, with_kwargs=True).remove)
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

    def hear(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        stop: frozenset[int] = frozenset(),
    ) -> None:
        """See `Session.hear`; also discards the decision about the previous prompt."""
        super().hear(input_ids, attention_mask, stop)
        self._asked = None

    def ask(self, inputs: Inputs) -> None:
        """Decide about the prompt passed to `generate`, from an unsteered pass over its inputs.

        Only if such a pass is needed and its inputs suffice: a gate that reads a prefixed prompt or a draft stays
        undecided, and the first call of the model then raises an error that says what to pass.
        """
        queries = self._said or self._heard
        shown = all(gate.prefix is None and gate.readout != "draft" for gate in self.plan.gates)
        if self.paused or self.decision is not None or self.plan.single_pass or not shown:
            return
        if queries is not None and queries.whole:
            told = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
            mine = {name: value for name, value in told.items() if name in self._arguments}
            mine.pop("cache_position", None)  # belongs to a cache; this pass uses none
            self._asked = _score(self._model, self.interpreter, mine, queries, self._layout)

    def _before(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if not self.paused:
            self.begin(args, kwargs)

    def _at(self, site: Site, h: Tensor) -> Tensor | None:
        if self.paused:
            return None
        edited = self.apply(site, h)
        return None if edited is h else edited  # nothing was edited: pass on the same tensor


@contextmanager
def paused(hf_model: nn.Module) -> Iterator[None]:
    """Context in which no attached plan acts on the model: for scoring passes and comparisons."""
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
    plan = plan.to(next(hf_model.parameters()).device)
    interpreter = Interpreter(plan, layout)
    passes = list(dict.fromkeys((gate.prefix, gate.readout == "draft") for gate in plan.gates)) or [
        (None, False)
    ]
    found: Decision | None = None
    for kind in passes:
        inputs = encode(*kind)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        asked = announce(ids, mask, layout.vocabulary, inputs.prompt_end)
        new = _score(hf_model, interpreter, inputs, asked, layout)
        if found is None:
            found = new
            continue
        own = [e.gate is not None and (e.gate.prefix, e.gate.readout == "draft") == kind for e in plan]
        found = found.where(own, new)
    assert found is not None
    return found


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
