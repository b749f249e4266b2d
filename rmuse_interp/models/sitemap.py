"""Which module of a decoder block shows which hook point, and in which order a forward pass meets them."""

from collections.abc import Callable, Sequence
from typing import Final, Literal

from torch import nn

from rmuse_interp import RMuseError
from rmuse_interp.models.site import Site

Side = Literal["input", "output"]

_ORDER: Final = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""Hook points of one block in forward order."""

_CHILDREN: Final[dict[str, tuple[tuple[str, ...], Side]]] = {
    "attn_out": (("self_attn", "attn", "attention"), "output"),
    "resid_mid": (("post_attention_layernorm", "ln_2"), "input"),
    "mlp_out": (("mlp",), "output"),
}
"""Hook point → names its module goes by, and which side of it shows the state. Families whose norms stand behind
attention and MLP (Gemma 2) show `resid_mid` elsewhere and are refused there."""


def select(
    names: str | Site | Sequence[str | Site] | Callable[[str], bool] | None, n_layers: int
) -> list[Site]:
    """The sites asked for, in forward order.

    Raises:
        RMuseError: a name that is no site, or a layer the model does not have.
    """
    every = [Site(layer, hook) for layer in range(n_layers) for hook in _ORDER]
    if names is None:
        return every
    if callable(names):
        return [site for site in every if names(str(site))]
    asked = [names] if isinstance(names, str | Site) else names
    wanted = {name if isinstance(name, Site) else Site.parse(name) for name in asked}
    outside = sorted(site for site in wanted if site not in every)
    if outside:
        raise RMuseError(
            f"sites of blocks 0..{n_layers - 1} were required, got {', '.join(map(str, outside))}"
        )
    return [site for site in every if site in wanted]


def reader(block: nn.Module, site: Site) -> tuple[str | None, Side]:
    """The child of the block (None: the block itself) and the side of it that show the site.

    Raises:
        RMuseError: a block that has no such child.
    """
    if site.hook not in _CHILDREN:
        return None, "input" if site.hook == "resid_pre" else "output"
    candidates, side = _CHILDREN[site.hook]
    norms_behind = hasattr(block, "pre_feedforward_layernorm")
    for name in candidates:
        if hasattr(block, name) and not (norms_behind and site.hook == "resid_mid"):
            return name, side
    raise RMuseError(
        f"{site} was looked for in {type(block).__name__} under {', '.join(candidates)} and not found; "
        "ask for resid_pre or resid_post"
    )
