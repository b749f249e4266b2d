"""Values that `run_with_cache` can keep, by TransformerLens' names, and the module that provides each.

| name | what | shape |
|---|---|---|
| `vision_tower.hook_out` | last hidden states of the vision tower | [tiles, patches, width of the tower] |
| `projector.hook_out` | what the projector makes of them | [tiles, patches, d] |
| `blocks.3.attn.hook_z` | heads before the output projection | [batch, tokens, heads, d_head] |
| `blocks.3.attn.hook_pattern` | attention pattern, of eager attention only | [batch, heads, tokens, tokens] |
| `blocks.3.hook_resid_post` and the other sites | what flows through a block | [batch, tokens, d] |
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from einops import rearrange
from torch import Tensor
from transformers import PreTrainedModel

from rmuse_interp import RMuseError
from rmuse_interp.models.families import require
from rmuse_interp.models.layout import Layout
from rmuse_interp.models.site import HOOKS, Side, Site, as_site, attention_of, reader
from rmuse_interp.models.sums import terms

VISION: Final = ("vision_tower.hook_out", "projector.hook_out")
_ATTENTION: Final = ("hook_z", "hook_pattern")
_HEADS: Final = re.compile(r"blocks\.(\d+)\.attn\.(hook_z|hook_pattern)")
_PROJECTIONS: Final = ("o_proj", "out_proj", "dense", "c_proj")

Names = str | Site | Iterable[str | Site] | Callable[[str], bool] | None
"""One or several names or `Site`s, a predicate on names, or None for the sites of all blocks."""


@dataclass(frozen=True)
class Shown:
    """A value to keep: its name, the module that provides it (dotted path), the side, and how to extract it."""

    name: str
    path: str
    side: Side
    take: Callable[[object], Tensor]


def shown(hf_model: PreTrainedModel, layout: Layout, names: Names, with_image: bool) -> list[Shown]:
    """The requested values, in forward order.

    Args:
        hf_model: the model.
        layout: paths of its parts.
        names: the requested names.
        with_image: whether any row has an image; without one, the vision tower does not run.

    Raises:
        RMuseError: an unknown name, a layer the model does not have, or a value it does not provide.
    """
    every = _offered(hf_model, layout, with_image)
    if names is None:
        return [_of_site(layout, site) for site in every]
    if callable(names):
        wanted = {str(site) for site in every if names(str(site))}
        wanted |= {name for name in VISION if with_image and names(name)}
        if _eager(hf_model):
            wanted |= {name for name in _attention(layout, "hook_pattern") if names(name)}
        wanted |= {name for name in _attention(layout, "hook_z") if names(name)}
    else:
        listed = [names] if isinstance(names, str | Site) else list(names)
        wanted = {_known(name) for name in listed}
    order = [*VISION]
    for layer in range(layout.n_layers):
        order += [str(Site(layer, "resid_pre")), *(f"blocks.{layer}.attn.{hook}" for hook in _ATTENTION)]
        order += [str(Site(layer, hook)) for hook in HOOKS[1:]]
    outside = sorted(wanted - set(order))
    if outside:
        raise RMuseError(f"sites of blocks 0..{layout.n_layers - 1} were required, got {', '.join(outside)}")
    inner = {
        name for name in wanted - {*map(str, every)} if name not in VISION and not _HEADS.fullmatch(name)
    }
    for name in sorted(inner):
        _refuse(hf_model, layout, Site.parse(name))
    return [_shown(hf_model, layout, name, with_image) for name in order if name in wanted]


def _offered(hf_model: PreTrainedModel, layout: Layout, with_image: bool) -> list[Site]:
    """The sites that a pass shows: what goes into and out of each block that runs, and the terms of its sum."""
    inner = terms(hf_model, layout)
    blocks = [layer for layer in range(layout.n_layers) if with_image or layer not in layout.skipped]
    ends = ("resid_pre", "resid_post")
    sites = (Site(layer, hook) for layer in blocks for hook in HOOKS)
    return [site for site in sites if site.hook in ends or site in inner]


def _refuse(hf_model: PreTrainedModel, layout: Layout, site: Site) -> None:
    """Raise `RMuseError` about a site that the pass does not show."""
    if site.layer in layout.skipped:
        require(layout.family, "cross-attention blocks", str(site))
    reader(layout.blocks[site.layer], site)
    raise RMuseError(
        f"{site} was asked for, but in {type(hf_model).__name__} resid_pre + attn_out + mlp_out = resid_post does not "
        "hold there; ask for resid_pre or resid_post"
    )


def _known(name: str | Site) -> str:
    if isinstance(name, str) and (name in VISION or _HEADS.fullmatch(name)):
        return name
    return str(as_site(name))


def _attention(layout: Layout, hook: str) -> list[str]:
    return [f"blocks.{layer}.attn.{hook}" for layer in range(layout.n_layers)]


def _shown(hf_model: PreTrainedModel, layout: Layout, name: str, with_image: bool) -> Shown:
    if name in VISION:
        path = layout.vision if name == VISION[0] else layout.projector
        if path is None or not with_image:
            lacks = f"{type(hf_model).__name__} has none" if path is None else "no row has a picture"
            raise RMuseError(f"{name} was asked for, {lacks}; leave the name out, or pass images")
        return Shown(name, path, "output", _state)
    match = _HEADS.fullmatch(name)
    if match is None:
        return _of_site(layout, Site.parse(name))
    layer = int(match[1])
    block = layout.blocks[layer]
    attention = attention_of(block)
    path = f"{layout.path}.{layer}.{attention}"
    if match[2] == "hook_pattern":
        if not _eager(hf_model):
            raise RMuseError(
                f"{name} needs eager attention: call lens.hf.set_attn_implementation('eager') first"
            )
        return Shown(name, path, "output", _pattern)
    inner = getattr(block, attention or "", None)
    out = next((one for one in _PROJECTIONS if hasattr(inner, one)), None)
    if out is None:
        raise RMuseError(
            f"{name} was looked for in {type(inner).__name__} before {', '.join(_PROJECTIONS)}, none is there; ask for "
            "attn_out"
        )
    heads = int(hf_model.config.get_text_config().num_attention_heads)
    return Shown(name, f"{path}.{out}", "input", lambda value: _split(value, heads))


def _of_site(layout: Layout, site: Site) -> Shown:
    child, side = reader(layout.blocks[site.layer], site)
    path = f"{layout.path}.{site.layer}"
    return Shown(str(site), path if child is None else f"{path}.{child}", side, _state)


def _state(value: object) -> Tensor:
    """The state in a module's input or output: itself, the first of a tuple, or the last hidden state."""
    if not isinstance(value, Tensor | tuple):
        value = getattr(value, "last_hidden_state", None)
    found = value[0] if isinstance(value, tuple) else value
    assert isinstance(found, Tensor)
    return found


def _pattern(value: object) -> Tensor:
    assert isinstance(value, tuple)
    return value[1]


def _split(value: object, heads: int) -> Tensor:
    return rearrange(_state(value), "batch tokens (head d_head) -> batch tokens head d_head", head=heads)


def _eager(hf_model: PreTrainedModel) -> bool:
    return bool(hf_model.config.get_text_config()._attn_implementation == "eager")
