"""The ways into a model that a plan must see: `generate`, continuous batching, compiled graphs, several threads."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from threading import RLock
from types import MethodType
from typing import Any, Final, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rmuse_interp import RMuseError


@dataclass(frozen=True, eq=False)
class Asked:
    """A call of `generate`, as transformers itself understands its arguments.

    Args:
        ids: [batch, tokens] ids of the prompts; None if only embeddings were given.
        mask: [batch, all] their mask, inferred as `generate` infers it if none was given.
        inputs: the tensors among the model's inputs, `input_ids` and `attention_mask` included.
        copies: number of adjacent rows (beams or samples) that `generate` makes of each prompt.
        ends: ids that end a row.
        drafted: whether tokens are proposed, and some of them taken back (assisted and prompt-lookup decoding).
    """

    ids: Tensor | None
    mask: Tensor | None
    inputs: Mapping[str, Tensor]
    copies: int = 1
    ends: frozenset[int] = frozenset()
    drafted: bool = False


@runtime_checkable
class Listener(Protocol):
    """Told of every call of `generate`."""

    def hearing(self, asked: Asked) -> AbstractContextManager[None]:
        """Context of one call of `generate`."""


_LISTENERS: "WeakKeyDictionary[nn.Module, list[Listener]]" = WeakKeyDictionary()

_ENTRANCES: Final = ("generate", "generate_batch", "init_continuous_batching")
"""Methods that are wrapped while somebody listens."""

_EARLIER: "WeakKeyDictionary[nn.Module, dict[str, object]]" = WeakKeyDictionary()
"""The instance attributes that a model had under these names before they were wrapped."""


class Turn:
    """A model's lock: plans keep the state of one batch at a time, so one thread runs the model at a time.

    As a context manager it waits for the thread before, and may be entered again by the same thread.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self.release = self._lock.release

    def claim(self) -> None:
        """Take the lock at once, or raise `RMuseError` if another thread has it."""
        if not self._lock.acquire(blocking=False):
            raise RMuseError(
                "a plan follows one thread at a time, two call this model at once: use lens.respond or hf.generate, "
                "which wait for their turn, or a lock of your own"
            )

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


_TURNS: "WeakKeyDictionary[nn.Module, Turn]" = WeakKeyDictionary()


def turn(hf_model: nn.Module) -> Turn:
    """The model's lock."""
    return _TURNS.setdefault(hf_model, Turn())


@contextmanager
def listening(hf_model: nn.Module, listener: Listener) -> Iterator[None]:
    """Context in which `listener` is told of every call of `hf_model.generate`, and continuous batching is refused."""
    listeners = _LISTENERS.setdefault(hf_model, [])
    if not listeners:
        _wrap(hf_model)
    listeners.append(listener)
    try:
        yield
    finally:
        listeners.remove(listener)
        if not listeners:
            _unwrap(hf_model)


def _wrap(hf_model: nn.Module) -> None:
    _EARLIER[hf_model] = {name: vars(hf_model)[name] for name in _ENTRANCES if name in vars(hf_model)}
    for name in _ENTRANCES:
        original = getattr(hf_model, name, None)
        if original is not None:
            # A bound method, so that the wrapper in a copy of the model knows that it is one.
            wrapper = _heard(original) if name == "generate" else _refused(original)
            setattr(hf_model, name, MethodType(wrapper, hf_model))


def _unwrap(hf_model: nn.Module) -> None:
    for name in _ENTRANCES:
        vars(hf_model).pop(name, None)  # restores the method of the class
    for name, earlier in _EARLIER.pop(hf_model).items():
        setattr(hf_model, name, earlier)


def _heard(original: Callable[..., object]) -> Callable[..., object]:
    @wraps(original)
    def generate(self: nn.Module, *args: object, **kwargs: object) -> object:
        require_own(self, _LISTENERS)
        asked = understood(self, args, kwargs)
        with turn(self), ExitStack() as stack:
            for listener in list(_LISTENERS[self]):
                stack.enter_context(listener.hearing(asked))
            return original(*args, **kwargs)

    return generate


def _refused(original: Callable[..., object]) -> Callable[..., object]:
    @wraps(original)
    def refuse(self: nn.Module, *args: object, **kwargs: object) -> object:
        raise RMuseError(
            "continuous batching packs several prompts into one row, where a plan cannot tell them apart: "
            "use generate with padded rows, lens.respond, or .detach() the plan first"
        )

    return refuse


def require_own(hf_model: nn.Module, known: Mapping[nn.Module, object]) -> None:
    """Raise `RMuseError` for a copy, which carries the hooks of a plan that was attached to the original."""
    if hf_model not in known:
        raise RMuseError(
            "this model is a copy of one that a plan was attached to, and carries its hooks: "
            "detach, copy, then attach to the copy"
        )


def understood(hf_model: Any, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Asked:
    """The arguments of `generate`, by transformers' own rules: settings, mask, ends, and rows per prompt.

    Raises:
        RMuseError: a way of generating whose passes a plan cannot follow.
    """
    given = inspect.signature(type(hf_model).generate).bind(hf_model, *args, **kwargs).arguments
    more = dict(given.get("kwargs", {}))
    settings, left = hf_model._prepare_generation_config(given.get("generation_config"), **more)
    if settings.guidance_scale not in (None, 1) or settings.token_healing:
        raise RMuseError(
            "classifier-free guidance and token healing ask the model other prompts than those given: leave out "
            "guidance_scale and token_healing, or .detach() the plan first"
        )
    inputs = {name: value for name, value in left.items() if isinstance(value, Tensor)}
    ids = given.get("inputs", inputs.get("input_ids"))
    ids = ids if isinstance(ids, Tensor) and ids.shape[1] else None
    tokens = ids if ids is not None else inputs.get("inputs_embeds")
    mask = inputs.get("attention_mask")
    if mask is None and tokens is not None:
        hf_model._prepare_special_tokens(settings, True, device=tokens.device)
        mask = hf_model._prepare_attention_mask_for_generation(tokens, settings, inputs)
    named = {"input_ids": ids, "attention_mask": mask}
    ends = settings.eos_token_id
    ends = ends.flatten().tolist() if isinstance(ends, Tensor) else ends
    return Asked(
        ids,
        mask,
        {**inputs, **{name: value for name, value in named.items() if value is not None}},
        max(settings.num_beams or 1, settings.num_return_sequences or 1),
        frozenset(() if ends is None else [ends] if isinstance(ends, int) else ends),
        settings.get_generation_mode(given.get("assistant_model")) == "assisted_generation",
    )


def guard_hooks() -> None:
    """Make compiled graphs check which hooks their modules have.

    By default they do not (`skip_nnmodule_hook_guards`): a graph compiled for another instance of the class, or before
    attaching, then runs in place of the hooks. Graphs compiled so far are dropped, once per process.
    """
    config: Any = torch._dynamo.config
    if config.skip_nnmodule_hook_guards:
        # What is set holds for one thread only, the default holds for those to come.
        config._config["skip_nnmodule_hook_guards"].default = False
        config.skip_nnmodule_hook_guards = False
        torch._dynamo.reset()
