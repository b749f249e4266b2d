"""What a model is asked when it is loaded: do edits reach the logits, are pictures found, does the template agree?"""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

import torch
from PIL import Image
from torch import Tensor, nn

from rmuse_interp import RMuseError
from rmuse_interp.data.store import Store, cache_folder
from rmuse_interp.edits.hooks import attach
from rmuse_interp.edits.linear import Add
from rmuse_interp.edits.plan import Operator, Plan
from rmuse_interp.lens.identity import depends
from rmuse_interp.models.batches import reading
from rmuse_interp.models.checkpoint import CHECK_OFF, shortened
from rmuse_interp.models.devices import offloaded
from rmuse_interp.models.encoding import Encoding
from rmuse_interp.models.families import lacks
from rmuse_interp.models.loaded import LoadedModel
from rmuse_interp.models.site import Site, reader
from rmuse_interp.models.sums import terms

Operators = dict[Site, Operator]

_VERSION: Final = 1
_QUESTION: Final = "What is in the picture?"
_STRENGTH: Final = 4.0
"""Standard deviation of the vectors added, in those of the embedding's entries."""


def require_sound(model: LoadedModel) -> None:
    """Raise unless the package reads and edits a model as the model itself works; once per model, then remembered.

    Two passes over one question (with a picture where the model sees) and one over four tokens. Edits at all sites at
    once must give the logits that plain hooks on the modules give, the picture's tokens must be found, and the prompt
    must be what the processor's own `apply_chat_template(tokenize=True)` gives. Models whose weights lie elsewhere until
    they are needed are not asked, with a warning.

    Raises:
        RMuseError: the model fails one of these, or cannot be run.
    """
    if offloaded(model.hf):
        warnings.warn(
            f"{model.name}: not checked while loading, since its weights lie in memory or on the disk until needed",
            stacklevel=3,
        )
        return
    store = Store(cache_folder() / "checks.jsonl", _VERSION)
    store.once([depends(model), str(model.device)], lambda: _sound(model))


def require_finite(model: LoadedModel, inputs: Encoding, asked: str) -> None:
    """Raise unless one forward pass gives finite block outputs and logits.

    Args:
        model: the model.
        inputs: an encoded prompt.
        asked: what it is called in the message.

    Raises:
        RMuseError: block outputs or logits contain NaN or infinity (names the first block).
    """

    def sound(_layer: int, states: Tensor) -> bool:
        return bool(torch.isfinite(states).all())

    with reading(model.layout, model.layout.always, sound) as found, torch.inference_mode():
        logits = model.hf(**inputs, use_cache=False).logits
    broken = [layer for layer, is_sound in found.items() if not is_sound]
    if broken or not bool(torch.isfinite(logits).all()):
        where = f"block {broken[0]} gives" if broken else "the logits have"
        raise RMuseError(
            f"{model.name}: finite activations were required, {where} NaN or infinity on {asked}; "
            "try --dtype float32 or bfloat16, or check the weights"
        )


def _sound(model: LoadedModel) -> bool:
    sees = model.encoder.sees and not lacks(model.layout.family, "pictures")
    picture = Image.linear_gradient("L").convert("RGB") if sees else None
    try:
        _require_rendering(model, None if lacks(model.layout.family, "rows without a picture") else [None])
        inputs = model.encode([_QUESTION], [picture])
        if sees:
            _require_rendering(model, [picture])
            if model.image_token_id is None or not bool((inputs["input_ids"] == model.image_token_id).any()):
                raise RMuseError(f"no image token {model.image_token_id} in a prompt with a picture")
        _require_edits(model, inputs)
    except RMuseError as error:
        raise RMuseError(f"{model.name} is not read as it works: {error}; {CHECK_OFF}") from error
    except Exception as error:  # whatever a model raises on its own processor's inputs
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise RMuseError(f"{model.name} does not run on one question ({reason}); {CHECK_OFF}") from error
    return True


def _require_rendering(model: LoadedModel, pictures: list[Image.Image | None] | None) -> None:
    """Raise unless the prompt is what the processor's own template and tokenizer make of it together."""
    if pictures is None or getattr(model.processor, "chat_template", None) is None:
        return
    shown = [{"type": "image", "image": one} for one in pictures if one is not None]
    content = [*shown, {"type": "text", "text": _QUESTION}] if model.encoder.sees else _QUESTION
    own = model.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )["input_ids"].flatten()
    ours = model.encoder.encode([_QUESTION], pictures)["input_ids"].flatten()
    if own.tolist() != ours.tolist():
        at = next(
            (i for i, (one, other) in enumerate(zip(own, ours, strict=False)) if one != other), len(ours)
        )
        raise RMuseError(
            f"its apply_chat_template(tokenize=True) gives {len(own)} tokens for a question, the prompt has {len(ours)}; "
            f"they differ at token {at}: {_around(model, own, at)!r} and {_around(model, ours, at)!r}"
        )


def _around(model: LoadedModel, ids: Tensor, at: int) -> str:
    return str(model.tokenizer.decode(ids[max(at - 2, 0) : at + 3].tolist()))


def _require_edits(model: LoadedModel, inputs: Encoding) -> None:
    """Raise unless edits at all sites at once, at the last token, give the logits that plain hooks give."""
    layers = [layer for layer in range(model.n_layers) if layer not in model.layout.skipped]
    ends = {Site(layer, hook) for layer in layers for hook in ("resid_pre", "resid_post")}
    inner = {site for site in terms(model.hf, model.layout) if site.layer in layers}
    sites = sorted(
        ends | {site for site in inner if site.hook != "resid_mid"}
    )  # that one is edited through attn_out
    spread = model.hf.get_input_embeddings().weight[:1000].float().std().cpu() * _STRENGTH
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(model.d_model, generator=generator) * spread for _ in sites]
    operators: Operators = {site: Add(v.to(model.device)) for site, v in zip(sites, drawn, strict=True)}
    if not _alike(model, inputs, operators):
        wrong = [str(site) for site in sites if not _alike(model, inputs, {site: operators[site]})]
        where = shortened(wrong) if wrong else "all sites at once"
        raise RMuseError(f"an edit does not act as a hook on the module does, at {where}")


def _alike(model: LoadedModel, inputs: Encoding, operators: Operators) -> bool:
    """Whether edits at some sites give the logits that plain hooks give."""
    plan = Plan([operator.at(site).on("generated") for site, operator in operators.items()])
    with attach(model.hf, plan, layout=model.layout):
        steered = _logits(model, inputs)
    ran: set[Site] = set()
    with ExitStack() as undo:
        for site, operator in operators.items():
            undo.callback(_hook(model.layout.blocks[site.layer], site, operator, ran.add))
        hooked = _logits(model, inputs)
    if idle := [str(site) for site in operators if site not in ran]:
        raise RMuseError(f"the modules at {shortened(idle)} take no part in its forward pass")
    if not bool(torch.isfinite(hooked).all()):
        require_finite(model, inputs, "a question")
        return bool(torch.allclose(steered, hooked, equal_nan=True))
    return bool((steered - hooked).abs().max() <= torch.finfo(model.dtype).eps * hooked.abs().max())


def _logits(model: LoadedModel, inputs: Encoding) -> Tensor:
    """The logits at the last token, in float32."""
    with torch.no_grad():
        return model.hf(**inputs, use_cache=False).logits[0, -1].float()


def _hook(
    block: nn.Module, site: Site, operator: Operator, ran: Callable[[Site], None]
) -> Callable[[], None]:
    """Edit the last token by a plain hook on the module of a site; the function returned removes it."""
    child, side = reader(block, site)
    module = block if child is None else block.get_submodule(child)

    def edited(h: Tensor) -> Tensor:
        ran(site)
        return torch.cat([h[:, :-1], operator(h[:, -1:])], dim=1)

    def before(
        _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        h = args[0] if args else kwargs["hidden_states"]
        assert isinstance(h, Tensor)
        return ((edited(h), *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": edited(h)})

    def after(_: nn.Module, args: object, out: object) -> object:
        h = out[0] if isinstance(out, tuple) else out
        assert isinstance(h, Tensor)
        return (edited(h), *out[1:]) if isinstance(out, tuple) else edited(h)

    if side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True).remove
    return module.register_forward_hook(after).remove
