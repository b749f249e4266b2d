"""`Site`: a place in the decoder, named as in TransformerLens, and the module of a block that exposes it."""

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import total_ordering
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from rmuse_interp import RMuseError

Hook = Literal["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
"""Hook points of one block in forward order; the method itself lives at `resid_post` (the block's output)."""

HOOKS: Final[tuple[str, ...]] = get_args(Hook)
_NAME: Final = re.compile(r"blocks\.(\d+)\.hook_(\w+)")

Side = Literal["input", "output"]
"""The side of a module that exposes a state."""

_ATTENTION: Final = ("self_attn", "attn", "attention")

Terms = dict[str, tuple[tuple[str, ...], Side]]
"""Hook point → names of its module, and the side that exposes the state."""

_PLAIN: Final[Terms] = {
    "attn_out": (_ATTENTION, "output"),
    "resid_mid": (("post_attention_layernorm", "ln_2", "ln2"), "input"),
    "mlp_out": (("mlp",), "output"),
}
_TABLE: Final[tuple[tuple[tuple[str, ...], Terms], ...]] = (
    # GLM-4: a norm behind attention and one behind the MLP, named otherwise than in Gemma.
    (
        ("post_self_attn_layernorm", "post_mlp_layernorm"),
        {
            "attn_out": (("post_self_attn_layernorm",), "output"),
            "resid_mid": (("post_attention_layernorm",), "input"),
            "mlp_out": (("post_mlp_layernorm",), "output"),
        },
    ),
    # Gemma 2 and 3: norms before and behind both; what is added to the stream is what the later one returns.
    (
        ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
        {
            "attn_out": (("post_attention_layernorm",), "output"),
            "resid_mid": (("pre_feedforward_layernorm",), "input"),
            "mlp_out": (("post_feedforward_layernorm",), "output"),
        },
    ),
    # OLMo 2, EXAONE 4: norms behind both alone; the MLP reads the stream itself.
    (
        ("post_feedforward_layernorm",),
        {
            "attn_out": (("post_attention_layernorm",), "output"),
            "resid_mid": (("mlp",), "input"),
            "mlp_out": (("post_feedforward_layernorm",), "output"),
        },
    ),
    (("pre_feedforward_layernorm",), {**_PLAIN, "resid_mid": (("pre_feedforward_layernorm",), "input")}),
    # Mllama: what its cross-attention adds to the stream is scaled by a learnt gate, which no module returns.
    (("cross_attn",), {"resid_mid": _PLAIN["resid_mid"]}),
)
"""Names of a block's norms → where its terms are; the first that a block has all of. Other blocks are `_PLAIN`."""


def terms_of(block: nn.Module) -> dict[str, tuple[str, Side]]:
    """The hook points inside a block, by the structure of its family: the child that exposes each, and the side.

    A term that exists nowhere as a tensor is left out: Granite multiplies what it adds after the module has returned
    it, and blocks with parallel attention and MLP (Pythia, Cohere) have no sum between the two.
    """
    there = {name for name, child in block.named_children()}
    table = next((terms for names, terms in _TABLE if {*names} <= there), _PLAIN)
    left_out: set[str] = set()
    if getattr(block, "residual_multiplier", 1.0) != 1.0:
        left_out |= {"attn_out", "mlp_out"}
    if getattr(block, "use_parallel_residual", False):
        left_out.add("resid_mid")
    found: dict[str, tuple[str, Side]] = {}
    for hook, (names, side) in table.items():
        child = next((name for name in names if name in there), None)
        if child is not None and hook not in left_out:
            found[hook] = child, side
    return found


def attention_of(block: nn.Module) -> str | None:
    """Name of the block's attention module, or None."""
    there = dict(block.named_children())
    return next((name for name in (*_ATTENTION, "cross_attn") if name in there), None)


@total_ordering
@dataclass(frozen=True)
class Site:
    """`blocks.{layer}.hook_{hook}`: the output of decoder block `layer`, unless `hook` says otherwise.

    Extraction and injection use the same site. It is not an index into `output_hidden_states`, whose entry
    `i` is the *input* of block `i` and whose last entry is taken after the final norm. Sites sort in forward order.

    Args:
        layer: 0-based index of the decoder block.
        hook: the hook point inside the block.

    Raises:
        RMuseError: a negative layer or an unknown hook point.

    Examples:
        >>> str(Site(3))
        'blocks.3.hook_resid_post'
        >>> Site.parse("blocks.3.hook_resid_post") == Site(3)
        True
        >>> sorted([Site(10), Site(2), Site(2, "attn_out")])[0].hook
        'attn_out'
    """

    layer: int
    hook: str = "resid_post"

    def __post_init__(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 0:
            raise RMuseError(f"a site needs a 0-based block index, got {self.layer!r}; count layers from 0")
        if self.hook not in HOOKS:
            raise RMuseError(f"a site needs a hook point out of {', '.join(HOOKS)}, got {self.hook!r}")

    def __str__(self) -> str:
        return f"blocks.{self.layer}.hook_{self.hook}"

    def __lt__(self, other: "Site") -> bool:
        return (self.layer, HOOKS.index(self.hook)) < (other.layer, HOOKS.index(other.hook))

    @classmethod
    def parse(cls, name: str) -> "Site":
        """Parse a site's name, such as `blocks.3.hook_resid_post`.

        Raises:
            RMuseError: any other string.
        """
        match = _NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None or match[2] not in HOOKS:
            raise RMuseError(
                f"a site's name looks like 'blocks.3.hook_resid_post', got {name!r}; print a Site"
            )
        return cls(int(match[1]), match[2])


Where = int | str | Site
"""One site: a block's index (its output), a `Site`, or a TransformerLens name."""


def as_site(where: Where) -> Site:
    """Convert a block's index, a name or a `Site` to a `Site`.

    Raises:
        RMuseError: anything else, a negative index, or an unknown name.
    """
    if isinstance(where, Site):
        return where
    if isinstance(where, str):
        return Site.parse(where)
    try:
        return Site(where if isinstance(where, bool) else operator.index(where))
    except TypeError:
        raise RMuseError(
            f"a block's index, a Site or a name like 'blocks.3.hook_resid_post' was required, got {where!r}"
        ) from None


def as_sites(where: Where | Iterable[Where]) -> list[Site]:
    """Convert one or several places to distinct sites, in the given order.

    Raises:
        RMuseError: an invalid site, no sites, or a site given twice.
    """
    if isinstance(where, Iterable) and not isinstance(where, str):
        found = [as_site(one) for one in where]
    else:
        found = [as_site(where)]
    if not found or len({*found}) < len(found):
        raise RMuseError(
            f"distinct 0-based layers or sites were required, got {where!r}; chain edits with >> to act twice at one"
        )
    return found


def reader(block: nn.Module, site: Site) -> tuple[str | None, Side]:
    """The child of the block (None: the block itself) and the side that expose the site.

    Raises:
        RMuseError: the block has no such child.
    """
    if site.hook in ("resid_pre", "resid_post"):
        return None, "input" if site.hook == "resid_pre" else "output"
    terms = terms_of(block)
    if site.hook in terms:
        return terms[site.hook]
    offered = [hook for hook in HOOKS if hook in terms or hook in ("resid_pre", "resid_post")]
    raise RMuseError(
        f"{site} is no tensor in {type(block).__name__}, which exposes {', '.join(offered)}; ask for one of those"
    )


def tap(block: nn.Module, site: Site, see: Callable[[Tensor], Tensor | None]) -> Callable[[], None]:
    """Call a function with every state at a site; it may return a replacement.

    Args:
        block: the decoder block of the site.
        site: the site; at `resid_mid` a replacement reaches the MLP only, not the sum after it.
        see: takes the state and returns a replacement, or None to keep it.

    Returns:
        A function that removes the hook.

    Raises:
        RMuseError: the block does not expose the site.
    """
    child, side = reader(block, site)
    shown = block if child is None else getattr(block, child)

    def before(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        name = None if args else "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        h = args[0] if name is None else kwargs[name]
        new = see(h) if isinstance(h, Tensor) else None
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: new})

    def after(module: nn.Module, args: tuple[object, ...], output: object) -> object:
        h = output[0] if isinstance(output, tuple) else output
        new = see(h) if isinstance(h, Tensor) else None
        if new is None:
            return None  # nothing was edited: pass on the same tensor
        return (new, *output[1:]) if isinstance(output, tuple) else new

    # Excluded from compilation: tracing the bookkeeping takes minutes and ends in a graph break anyway.
    quiet = torch.compiler.disable
    if side == "input":
        return shown.register_forward_pre_hook(quiet(before), with_kwargs=True).remove
    return shown.register_forward_hook(quiet(after)).remove


def around(
    module: nn.Module,
    before: Callable[[nn.Module, tuple[object, ...], dict[str, object]], None],
    after: Callable[[object], None],
) -> Callable[[], None]:
    """Call a function before every call of a module, and one after it with its output (None after an error).

    Args:
        module: the module, usually the whole model.
        before: takes the module, its arguments and its keyword arguments.
        after: takes the output.

    Returns:
        A function that removes both hooks.
    """
    quiet = torch.compiler.disable

    def ended(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        after(output)

    hooks = (
        module.register_forward_pre_hook(quiet(before), with_kwargs=True),
        module.register_forward_hook(quiet(ended), always_call=True),
    )

    def remove() -> None:
        for hook in hooks:
            hook.remove()

    return remove
