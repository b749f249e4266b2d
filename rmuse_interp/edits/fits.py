"""Check that a plan fits a model: layers, widths, and that edited sites are terms of the block's sum."""

import inspect
from collections.abc import Iterator
from typing import get_args

from torch import Tensor, nn

from rmuse_interp import RMuseError
from rmuse_interp.edits.sentence import Sentence
from rmuse_interp.models.families import require
from rmuse_interp.models.layout import Layout
from rmuse_interp.models.sums import terms
from rmuse_interp.parts.part import Part


def require_fit(plan: Sentence, layout: Layout) -> None:
    """Raise unless the model has the plan's layers and the width of its operators and gates.

    Raises:
        RMuseError: an edit or a gate at a layer the model does not have, a part of another width, or an edit on a span
            of the response without a known tokenizer.
    """
    edited = sorted({site.layer for edit in plan for site in edit.sites})
    read = sorted({gate.layer for gate in plan.gates})
    skipped = sorted(layout.skipped & {*edited, *read})
    if skipped:
        require(layout.family, "cross-attention blocks", f"blocks {', '.join(map(str, skipped))}")
    for what, layers in (("edited layers", edited), ("gates' layers", read)):
        outside = [layer for layer in layers if layer >= layout.n_layers]
        if outside:
            raise RMuseError(
                f"{what} must lie in 0..{layout.n_layers - 1}, got {outside}; choose them with .at(layers=…)"
            )
    for part, name, width in _widths(plan):
        if layout.d_model and width != layout.d_model:
            raise RMuseError(
                f"states of width {layout.d_model} were to be edited, {name!r} of {type(part).__name__} is {width} wide: "
                "fit it on this model, or check the order of its axes"
            )
    if layout.vocabulary.piece is None and any(edit.tokens in ("chain", "answer") for edit in plan):
        raise RMuseError(
            "chain and answer are told by their text, which needs the tokenizer: load the model with load_model, or "
            "pass layout=find_layout(hf_model, tokenizer=tokenizer)"
        )


def require_any_batch(plan: Sentence) -> None:
    """Raise unless the plan can run on any batch.

    Raises:
        RMuseError: the plan has a mask or states that are tied to the rows and columns of one padded batch.
    """
    verbs = [edit.operator_at(site) for edit in plan for site in edit.sites]
    if any(edit.mask is not None for edit in plan) or any(
        verb is not None and verb.of_batch for verb in verbs
    ):
        raise RMuseError(
            "this plan knows the rows and columns of one padded batch (a mask, or op.Set of [batch, tokens, d]), and "
            "respond sorts rows into batches of its own: use lens.generate, or .on(positions=…), or ask one by one"
        )


def _widths(plan: Sentence) -> Iterator[tuple[Part, str, int]]:
    """Yield part, tensor name and length of axis `d` for each tensor of operators and gates annotated with `d`."""
    roots = [operator for edit in plan for site in edit.sites if (operator := edit.operator_at(site))]
    for root in {id(root): root for root in [*roots, *plan.gates]}.values():
        for part in root.modules() if isinstance(root, nn.Module) else ():
            if not isinstance(part, Part):
                continue
            for name, parameter in inspect.signature(type(part).__init__).parameters.items():
                held = getattr(part, name, None)
                if not isinstance(held, Tensor):
                    continue
                for kind in (parameter.annotation, *get_args(parameter.annotation)):
                    axes = str(getattr(kind, "dim_str", "")).split()
                    if "d" in axes:
                        at = axes.index("d")
                        variable = any(axis.startswith(("*", ".")) for axis in axes[:at])
                        yield part, name, held.shape[at - len(axes) if variable else at]


def require_sums(plan: Sentence, hf_model: nn.Module, layout: Layout) -> None:
    """Raise unless every site inside a block that the plan edits is a term of the sum that the block computes.

    Any model may be edited at `resid_pre` and `resid_post`. An edit elsewhere is well defined only if
    `resid_pre + attn_out + mlp_out = resid_post` (and, for `resid_mid`, if the MLP reads `resid_pre + attn_out`).
    This is tested once per model, with a few tokens.

    Raises:
        RMuseError: names the sites where this does not hold.
    """
    inner = sorted(
        {site for edit in plan for site in edit.sites if site.hook not in ("resid_pre", "resid_post")}
    )
    if not inner:
        return
    found = terms(hf_model, layout)
    missing = [str(site) for site in inner if site not in found]
    if missing:
        raise RMuseError(
            f"{', '.join(missing)} cannot be edited: in {type(hf_model).__name__}, resid_pre + attn_out + mlp_out = "
            "resid_post does not hold there; edit resid_pre or resid_post"
        )
