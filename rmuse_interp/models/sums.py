"""Which sites inside blocks are terms of the block's sum: `resid_pre + attn_out + mlp_out = resid_post`, as measured."""

from contextlib import ExitStack, suppress
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rmuse_interp import RMuseError
from rmuse_interp.models.devices import device_of
from rmuse_interp.models.layout import Layout
from rmuse_interp.models.site import HOOKS, Site, tap

_SUMS: Final[WeakKeyDictionary[nn.Module, frozenset[Site]]] = WeakKeyDictionary()
"""Model → the sites inside blocks that were found to be terms of the block's sum."""

_SHARE: Final = 1e-3
"""Tolerated error of the sum relative to the attention and MLP outputs, besides the rounding of the stream itself."""


def terms(hf_model: nn.Module, layout: Layout) -> frozenset[Site]:
    """The sites inside blocks that are terms of their block's sum; measured once per model, on a few tokens.

    Attached plans must be paused by the caller.
    """
    if hf_model not in _SUMS:
        _SUMS[hf_model] = _found(hf_model, layout)
    return _SUMS[hf_model]


def _found(hf_model: nn.Module, layout: Layout) -> frozenset[Site]:
    """The sites inside blocks that are terms of their block's sum, found on a few ordinary tokens."""
    seen: dict[Site, Tensor] = {}
    special = layout.vocabulary.special
    ordinary = [token for token in range(2 * len(special) + 64) if token not in special][-4:]
    ids = torch.tensor([ordinary], device=device_of(hf_model))
    with ExitStack() as undo, torch.no_grad():
        for site in (Site(layer, hook) for layer in range(layout.n_layers) for hook in HOOKS):
            with suppress(RMuseError):  # a block without this site
                undo.callback(tap(layout.blocks[site.layer], site, partial(seen.__setitem__, site)))
        hf_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    found: set[Site] = set()
    for layer in range(layout.n_layers):
        before, added, middle, more, after = (seen.get(Site(layer, hook)) for hook in HOOKS)
        if before is None or added is None or more is None or after is None:
            continue
        slack = _SHARE * (added.norm() + more.norm()) + 4 * torch.finfo(after.dtype).eps * after.norm()
        if bool((before + added + more - after).norm() <= slack):
            found |= {Site(layer, "attn_out"), Site(layer, "mlp_out")}
            if middle is not None and bool((before + added - middle).norm() <= slack):
                found.add(Site(layer, "resid_mid"))
    return frozenset(found)
