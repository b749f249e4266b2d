"""Check that a plan fits a model (layers, widths, sums of its blocks), and a batch of queries."""

import inspect
from collections.abc import Iterator
from typing import get_args

import torch
from torch import Tensor, nn

from rmuse_interp import RMuseError
from rmuse_interp.edits.inputs import Inputs, tensor_of
from rmuse_interp.edits.sentence import Sentence
from rmuse_interp.edits.state import Decision, Query, Slice, times_of
from rmuse_interp.models.families import require
from rmuse_interp.models.layout import Layout, Vocabulary
from rmuse_interp.models.sums import terms
from rmuse_interp.parts.part import Part, same


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


def require_single_pass(plan: Sentence) -> None:
    """Raise `RMuseError` unless every gate can decide during the steered pass."""
    if not plan.single_pass:
        raise RMuseError(
            "this plan is two-pass (a gate reads what an edit has changed, a prefixed prompt or a draft, or edits "
            "act on the prompt before its end) and needs a decision here: decision = plan.decide(lens, prompts, "
            "images), then pass decision=decision; lens.respond, lens.generate and lens.trace decide by themselves"
        )


def require_columns(plan: Sentence, batch: int, width: int) -> None:
    """Raise `RMuseError` unless the masks of the plan's edits fit this batch."""
    for edit in plan:
        if edit.mask is not None and (batch % edit.mask.shape[0] or edit.mask.shape[1] < width):
            raise RMuseError(
                f"a mask of the {batch} × {width} tokens of this batch was required, got "
                f"{' × '.join(map(str, edit.mask.shape))}: make it from lens.encode(...)['input_ids']"
            )


def require_whole(plan: Sentence, announced: Query | None, call: Slice, vocabulary: Vocabulary) -> None:
    """Raise `RMuseError` if the plan needs to see ids that are only in the cache, or embedded."""
    kinds = {edit.tokens for edit in plan}
    looks = bool(kinds & {"prompt", "image"}) or any(
        gate.readout in ("question", "image") for gate in plan.gates
    )
    if vocabulary.image is not None:
        looks = looks or "all" in kinds or any(edit.modality is not None for edit in plan)
    if looks and (call.ids is None if announced is None else not announced.whole):
        raise RMuseError(
            "a plan that looks at images or at the question needs the whole conversation, part of it is in the "
            "cache or embedded: pass all input_ids, without past_key_values"
        )


def require_ours(
    plan: Sentence, decision: Decision, announced: Query | None, inputs: Inputs, queries: int
) -> None:
    """Raise `RMuseError` unless a decision is about these queries, by the gates of this plan.

    Args:
        plan: the plan that runs.
        decision: the decision given for it.
        announced: the queries, if announced; otherwise they are those of `inputs`.
        inputs: keyword arguments of the model's forward.
        queries: number of queries.
    """
    gates = [edit.gate for edit in plan]
    if decision.fired.shape[1] != len(gates):
        raise RMuseError(
            f"a decision for {len(gates)} edits was required, got one for {decision.fired.shape[1]}; "
            "use plan.decide(...) of this very plan"
        )
    if decision.gates and not same(list(decision.gates), gates):
        raise RMuseError(
            "a decision of this plan's gates was required, got one of others; use plan.decide(...) of this very plan"
        )
    ids = tensor_of(inputs, "input_ids") if announced is None else announced.ids
    if ids is None:
        times_of(len(decision.fired), queries, 1)
        return
    mask = tensor_of(inputs, "attention_mask") if announced is None else announced.mask
    decision.require_about(ids, mask if mask is not None and mask.ndim == 2 else torch.ones_like(ids))


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
