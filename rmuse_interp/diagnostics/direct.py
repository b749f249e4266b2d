"""Direct logit attribution by source span: which tokens' values the heads move directly into the leaked logit.

At the predicting token, the residual stream is a sum of its embedding, every block's attention and MLP, and the edits.
Read through the final norm (its scale frozen) and the unembedding, each term is a share of the logit. That is
TransformerLens' `direct_logit_attribution`; attention is then split by its source token,

    attn_l = Σ_t Σ_head A_l[head, here, t] · v_l[t, head] W_O[head],

and summed by span. The MLPs' contribution at the predicting token belongs to no span: `mlp`. The logit is the token's
minus the mean over the vocabulary (the folded bridge centres its unembedding), without bias; it differs from the
log-probability by a term common to all tokens. These are direct effects only: what a span did to the states of other
spans counts as theirs.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp.diagnostics.leaks import Leak
from rmuse_interp.edits.bridge_hooks import fwd_hooks
from rmuse_interp.edits.plan import Plan
from rmuse_interp.edits.state import Decision
from rmuse_interp.lens.bridge import to_bridge
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.models.encoding import Encoding

_KEPT: Final = (
    "hook_embed",
    "attn.hook_pattern",
    "attn.hook_v",
    "hook_attn_out",
    "hook_mlp_out",
    "ln_final.hook_scale",
)


@dataclass(frozen=True)
class Direct:
    """Shares of one logit; they add up to `logit`.

    Attributes:
        logit: logit of the leaked token, without the unembedding's bias.
        attention: shares moved by heads, by source span; the predicting token's own is under ``here``.
        bias: share of the biases of the heads' outputs, which come from no token; 0 in models without such biases.
        embedding: share of the predicting token's embedding.
        mlp: share of the MLPs of all blocks.
        edits: share of the plan's edits at the predicting token; 0 without a plan.
    """

    logit: float
    attention: dict[str, float]
    bias: float
    embedding: float
    mlp: float
    edits: float


def folded_bridge(lens: LensModel) -> Any:
    """Make a TransformerLens bridge of the model with the final norm folded into the unembedding, as DLA needs.

    The model is loaded a second time (see `to_bridge`); residual streams equal those of the original.
    """
    bridge = to_bridge(lens)
    bridge.enable_compatibility_mode()
    return bridge


def direct_effects(
    bridge: Any, leak: Leak, plan: Plan | None = None, decision: Decision | None = None
) -> Direct:
    """Compute the shares of the leaked logit.

    Args:
        bridge: from `folded_bridge`.
        leak: the leak to explain.
        plan: plan to run; its edits form a share of their own.
        decision: decision of the plan's gates on this query.
    """
    from transformer_lens.tools.analysis import direct_logit_attribution

    placed = leak.placed
    encoding = Encoding(dict(placed.inputs))
    encoding.prompt_end = torch.tensor([placed.prompt_end], device=placed.ids.device)
    hooks = [] if plan is None else fwd_hooks(plan, bridge, encoding=encoding, decision=decision)
    more = {key: value for key, value in placed.inputs.items() if key != "input_ids"}
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        logits, cache = bridge.run_with_cache(
            placed.ids,
            names_filter=lambda name: not name.startswith("vision") and name.endswith(_KEPT),
            **more,
        )
        found = direct_logit_attribution(bridge, answer_tokens=leak.token, cache=cache, unit="component")
        shares = dict(zip(found.labels, found.attribution.flatten().tolist(), strict=True))
        by_token = moved(bridge, cache, leak.token)
    logit = float(logits[0, -1, leak.token] - bridge.b_U[leak.token])
    total = sum(shares.values())
    bias = sum(v for k, v in shares.items() if k.endswith("attn_out")) - float(by_token.sum())
    mlp = sum(v for k, v in shares.items() if k.endswith("mlp_out"))
    embedding = sum(v for k, v in shares.items() if not k.endswith(("attn_out", "mlp_out")))
    return Direct(logit, leak.summed(by_token), bias, embedding, mlp, logit - total)


def moved(bridge: Any, cache: Any, token: int) -> Float[Tensor, " tokens"]:
    """Sum what all heads of all blocks move from each token into the logit of `token` at the last one."""
    scale = cache["ln_final.hook_scale"][0, -1]
    towards = (bridge.W_U[:, token] / scale).float()
    total: Tensor | None = None
    for layer in range(bridge.cfg.n_layers):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, :, -1].float()
        values = cache[f"blocks.{layer}.attn.hook_v"][0].float()
        # Fewer key-value heads than query heads: each serves a group of adjacent heads.
        values = values.repeat_interleave(pattern.shape[0] // values.shape[1], dim=1)
        reading = bridge.W_O[layer].float() @ towards
        found = torch.einsum("ht,thd,hd->t", pattern, values, reading)
        total = found if total is None else total + found
    assert total is not None
    return total.cpu()
