"""A plan in every place against plain forward hooks that know nothing but columns: the same logits at every step."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Protocol, TypedDict, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Plan, as_plan
from rmuse_interp.edits.sentence import Tokens
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.models.encoding import Picture
from rmuse_interp.models.site import Site, reader
from rmuse_interp.models.sums import terms
from rmuse_interp.parts.gates import Gate, LinearDiscriminant, Read
from rmuse_interp.parts.subspace import Subspace

STEPS: Final = 3
"""Tokens per generation."""


class Settings(TypedDict, total=False):
    """Keyword arguments of transformers' `generate`."""

    max_new_tokens: int
    do_sample: bool
    return_dict_in_generate: bool
    output_logits: bool
    suppress_tokens: list[int] | None
    eos_token_id: int | None
    num_beams: int
    prefill_chunk_size: int
    cache_implementation: str


MODES: Final[dict[str, Settings]] = {
    "batch": {},
    "beams": {"num_beams": 2},
    "chunks": {"prefill_chunk_size": 5},
    "static cache": {"cache_implementation": "static"},
}
"""Kinds of generation, by the settings of `generate` that they need."""


class Asked(NamedTuple):
    """Questions of unequal length, with a picture, several, or None each."""

    prompts: list[str]
    images: list[Picture]


@dataclass(frozen=True, eq=False)
class Push:
    """An edit that both a plan and a plain hook can make: add a vector at a site, on some tokens of some rows.

    Args:
        site: where; a plain hook adds at the module that the site's family table names.
        vector: what is added.
        on: `generated`, `response` or `all`.
        gate: weight and threshold of a linear gate on the last prompt token's state, and its block; None for none.
    """

    site: Site
    vector: Float[Tensor, " d"]
    on: Tokens = "generated"
    gate: tuple[int, Float[Tensor, " d"], float] | None = None

    @property
    def plan(self) -> Plan:
        """The edit as a plan."""
        edit = op.Add(self.vector).at(self.site).on(self.on)
        if self.gate is not None:
            layer, weight, threshold = self.gate
            edit = edit.when(Gate(LinearDiscriminant(weight, 0.0), Read(layer, "last"), threshold))
        return as_plan(edit)


def drawn(seed: int, d: int) -> Float[Tensor, " d"]:
    """A seeded random vector."""
    return torch.randn(d, generator=torch.Generator().manual_seed(seed))


def pushes(lens: LensModel, asked: Asked) -> dict[str, list[Push]]:
    """Groups of edits that together act at every kind of site, on every kind of token, with and without a gate."""
    d, last = lens.d_model, lens.n_layers - 1
    runs = [layer for layer in range(lens.n_layers) if layer not in lens.layout.skipped]
    inner = sorted(terms(lens.hf, lens.layout))
    weight = drawn(5, d)
    scores = last_states(lens, asked, runs[1]) @ weight
    ordered = scores.sort().values
    middle = float((ordered[0] + ordered[-1]) / 2) if len(ordered) > 1 else float(ordered[0]) - 1.0
    return {
        "all tokens": [Push(Site(runs[1]), drawn(1, d), "all"), Push(Site(last), drawn(2, d))],
        "inside blocks": [
            Push(site, 0.5 * drawn(10 + i, d), "response" if i % 2 else "generated")
            for i, site in enumerate(inner)
            if site.layer in (runs[1], last)
        ],
        "gated": [Push(Site(runs[2]), drawn(3, d), "generated", (runs[1], weight, middle))],
    }


def last_states(lens: LensModel, asked: Asked, layer: int) -> Float[Tensor, "batch d"]:
    """The plain model's state at each prompt's last token."""
    found: list[Tensor] = []

    def see(module: nn.Module, args: object, output: object) -> None:
        found.append(_state(output)[0, -1].float())

    hook = lens.layout.blocks[layer].register_forward_hook(see)
    with torch.no_grad():
        for prompt, image in zip(*asked, strict=True):  # one by one: no padding
            lens.hf(**lens.encode(prompt, [image]), use_cache=False)
    hook.remove()
    return torch.stack(found)


def _state(output: object) -> Tensor:
    found = output[0] if isinstance(output, tuple) else output
    assert isinstance(found, Tensor)
    return found


@contextmanager
def plain_hooks(lens: LensModel, edits: Sequence[Push], asked: Asked) -> Iterator[None]:
    """Context in which plain hooks make the edits; they count columns, and know the prompts' ids and mask."""
    encoding = lens.encode(*asked)
    ids, mask = encoding["input_ids"], encoding["attention_mask"].bool()
    left = {*lens.layout.vocabulary.frame, lens.image_token_id}
    free = mask & ~torch.isin(ids, torch.tensor(sorted(i for i in left if i is not None), dtype=ids.dtype))
    with ExitStack() as undo:
        for edit in edits:
            fires = torch.ones(len(ids), dtype=torch.bool)
            if edit.gate is not None:
                layer, weight, threshold = edit.gate
                fires = last_states(lens, asked, layer) @ weight > threshold
            block = lens.layout.blocks[edit.site.layer]
            child, side = reader(block, edit.site)
            if edit.site.hook == "resid_mid":  # adding to the sum is adding to its last term
                child, side = reader(block, Site(edit.site.layer, "attn_out"))
            module = block if child is None else getattr(block, child)
            assert side == "output"
            hook = partial(_pushed, edit, free, fires, [0])
            undo.callback(module.register_forward_hook(hook).remove)
        yield


def _pushed(
    edit: Push,
    free: Bool[Tensor, "batch tokens"],
    fires: Bool[Tensor, " batch"],
    seen: list[int],
    module: nn.Module,
    args: object,
    output: object,
) -> object:
    """A forward hook's new output."""
    h = _state(output)
    width = free.shape[1]
    column = torch.arange(seen[0], seen[0] + h.shape[1])
    seen[0] += h.shape[1]
    step = column - (width - 1)
    chosen = {"generated": step >= 0, "response": step > 0, "all": step > 0}[edit.on].expand(len(free), -1)
    if edit.on == "all":
        chosen = chosen | torch.where(step <= 0, free[:, column.clamp(max=width - 1)], torch.tensor(False))
    chosen = (chosen & fires.unsqueeze(1)).repeat_interleave(len(h) // len(free), dim=0)
    new = torch.where(chosen.unsqueeze(-1), (h.float() + edit.vector).to(h.dtype), h)
    return (new, *output[1:]) if isinstance(output, tuple) else new


@runtime_checkable
class Bridge(Protocol):
    """A TransformerLens bridge, as far as it is called here."""

    def run_with_hooks(self, input: Tensor, *, fwd_hooks: object, **inputs: object) -> Tensor:
        """Logits of a pass under hooks."""


class Steps(NamedTuple):
    """Tokens and logits of a generation."""

    tokens: Int[Tensor, "rows steps"]
    logits: Float[Tensor, "rows steps vocab"]


def generated(lens: LensModel, asked: Asked, place: str, plan: Plan | None, settings: Settings) -> Steps:
    """Greedy tokens and their logits, with a plan in one of the places; `plain` runs none."""
    more: Settings = {
        "max_new_tokens": STEPS,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        "suppress_tokens": [i for i in (lens.image_token_id,) if i is not None] or None,
        "eos_token_id": None,
        **settings,
    }
    with ExitStack() as inside, torch.no_grad():
        if place in ("plain", "hooks"):
            if plan is not None:
                inside.enter_context(plan.attach(lens.hf, layout=lens.layout))
            result = lens.hf.generate(**lens.encode(*asked), **more)
        elif place == "trace":
            with lens.generate(
                *asked, plan=plan, decision=None, recorder=None, prefill=None, **more
            ) as tracer:
                result = tracer.result.save()
        else:
            assert plan is not None
            inside.enter_context(plan.install(lens))
            with lens.generate(
                *asked, plan=None, decision=None, recorder=None, prefill=None, **more
            ) as tracer:
                result = tracer.result.save()
    return Steps(result.sequences[:, -STEPS:], torch.stack(result.logits, dim=1).float())


def forced(
    lens: LensModel, asked: Asked, responses: Sequence[str], plan: Plan, bridge: Bridge
) -> tuple[Tensor, Tensor]:
    """Logits under given responses, on a TransformerLens bridge and on the plain model with the plan attached."""
    encoding = lens.encode(*asked, list(responses))
    told = encoding["input_ids"], encoding["attention_mask"], encoding.prompt_end
    with plan.attach(lens.hf) as handle, handle.expecting(*told), torch.no_grad():
        here = lens.hf(**encoding).logits
    hooks = plan.fwd_hooks(bridge, encoding=encoding)
    inputs = {key: value for key, value in encoding.items() if key != "input_ids"}
    with torch.no_grad():
        there = bridge.run_with_hooks(encoding["input_ids"], fwd_hooks=hooks, **inputs)
    mask = encoding["attention_mask"].bool()
    return there[mask], here[mask]


def require_same(found: Steps, expected: Steps, what: str) -> None:
    """Raise unless tokens are equal and logits agree up to rounding.

    Raises:
        RMuseError: naming the first step that differs, and by how much.
    """
    close = 1e-4 * max(1.0, float(expected.logits.abs().max()))
    for step in range(expected.logits.shape[1]):
        gap = float((found.logits[:, step] - expected.logits[:, step]).abs().max())
        if not gap <= close:
            raise RMuseError(f"{what}: step {step} differs from a plain hook's by {gap:.2g}")
    if not torch.equal(found.tokens, expected.tokens):
        raise RMuseError(f"{what}: other tokens than with a plain hook")


def ablated(lens: LensModel, layer: int) -> Plan:
    """A plan that removes a subspace at a block, for places that are compared with one another."""
    basis = torch.randn(lens.d_model, 3, generator=torch.Generator().manual_seed(8))
    return as_plan(op.Ablate(Subspace.span(basis)).at(layer).on("all"))
