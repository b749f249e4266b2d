"""Run a plan as hooks of a TransformerLens `TransformerBridge`.

    bridge = to_bridge(lens)
    hooks = plan.fwd_hooks(bridge)
    logits = bridge.run_with_hooks(ids, attention_mask=mask, pixel_values=pixels, fwd_hooks=hooks)
    with bridge.hooks(fwd_hooks=hooks):
        logits, cache = bridge.run_with_cache(ids, attention_mask=mask)

Hooks see tensors but not the arguments of the call, so two more hook points supply what a plan needs: the token ids
come from the embedding, the mask and the cache length from the first block's attention scores (masked, before the
softmax). Everything after that is shared with the other places where plans run.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.deciding import decided
from rmuse_interp.edits.engines import Asked
from rmuse_interp.edits.fits import require_fit, require_sums
from rmuse_interp.edits.hooks import Session
from rmuse_interp.edits.inputs import announce
from rmuse_interp.edits.sentence import Sentence
from rmuse_interp.edits.state import Decision
from rmuse_interp.models.encoding import Picture, per_row
from rmuse_interp.models.fingerprint import fingerprint
from rmuse_interp.models.layout import Layout, find_layout
from rmuse_interp.models.loaded import LoadedModel
from rmuse_interp.models.prompts import Prompts, listed
from rmuse_interp.models.site import Site
from rmuse_interp.parts.part import all_same


@runtime_checkable
class Point(Protocol):
    """A TransformerLens hook point, as passed to hook functions."""

    fwd_hooks: Sequence[object]


Hook = tuple[str, Callable[..., Tensor | None]]
"""Name of a hook point and the function that runs there, in TransformerLens' format."""

_TOKENS: Final = "embed.hook_in"
_SCORES: Final = "blocks.0.attn.hook_attn_scores"


def fwd_hooks(
    plan: Sentence,
    bridge: Any,
    prompts: Prompts | None = None,
    images: Picture | Sequence[Picture] = None,
    *,
    encoding: Mapping[str, Tensor] | None = None,
    decision: Decision | None = None,
) -> list[Hook]:
    """The plan as `(name, function)` pairs for `run_with_hooks(..., fwd_hooks=…)` and `bridge.hooks(fwd_hooks=…)`.

    The list can be used for any number of successive calls: each is decided anew, and decode steps on a cache keep the
    decision. TransformerLens installs and removes the functions.

    Args:
        plan: the plan to run.
        bridge: the bridge to hook.
        prompts: the questions of the coming calls, plain or conversations: a two-pass plan first decides about them,
            in passes of the bridge. The calls must encode them as `lens.encode` does.
        images: one picture or None per prompt.
        encoding: `input_ids`, `attention_mask` and `prompt_end` of the queries, as `lens.encode` returns them, for
            calls that do not show where the prompt ends: given responses, a prefilled assistant's turn, prompts in
            chunks, generation without a cache. All calls are then about these queries. Without `prompt_end`, the prompt
            ends at the last unmasked token.
        decision: result of `plan.decide` for the coming batches, instead of `prompts`.

    Raises:
        RMuseError: a two-pass plan without prompts or a decision, layers or hook points missing from the bridge, or a
            plan fitted on another model.
    """
    model = bridge.original_model
    layout = find_layout(model, tokenizer=bridge.tokenizer)
    if plan.fingerprint is not None:
        fingerprint(model, layout).require(plan.fingerprint, "this plan")
    require_fit(plan, layout)
    if decision is None and prompts is not None:
        processor = getattr(bridge, "processor", None) or bridge.tokenizer
        asked = listed(prompts)
        there = LoadedModel(model, processor, layout, type(model).__name__)
        decision = decided(there, plan, asked, per_row(images, len(asked), "images"))
    if decision is None and not plan.single_pass:
        raise RMuseError(
            "this plan is two-pass and needs a decision: name the questions, plan.fwd_hooks(bridge, prompts, images), or "
            "pass decision=plan.decide(lens, prompts, images)"
        )
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    pad = getattr(bridge.tokenizer, "pad_token_id", None)
    session = Hooked(plan, layout, decision, window, pad)
    require_sums(plan, model, layout)
    missing = [name for name, _ in session.hooks if name not in bridge.hook_dict]
    if missing:
        raise RMuseError(
            f"a bridge with the hook points {', '.join(missing)} was required, that of {type(model).__name__} has "
            "none of that name; run the plan natively with plan.attach(hf_model)"
        )
    if encoding is not None:
        end = getattr(encoding, "prompt_end", None)
        said = announce(encoding["input_ids"], encoding.get("attention_mask"), layout.vocabulary, end)
        session.say(said, Asked(None, None, dict(encoding)))
    return session.hooks


class Hooked(Session):
    """A plan on the hook points of a bridge: reads each call's tokens, then edits the blocks' outputs.

    Args:
        plan: the plan.
        layout: paths of the bridged model's blocks, and its vocabulary.
        decision: the gates' decision from a separate pass, or None.
        window: attention window of the first block, in tokens; None for unlimited.
        pad: id of the padding token, to tell padding where the attention scores do not show the mask.
    """

    def __init__(
        self,
        plan: Sentence,
        layout: Layout,
        decision: Decision | None,
        window: int | None,
        pad: int | None = None,
    ):
        super().__init__(plan, layout, decision)
        self._window = window
        self._pad = pad
        self._masked = True
        self._ids: Tensor | None = None
        self._due: list[Site] = []

    @property
    def hooks(self) -> list[Hook]:
        """The hook functions, each with the name of its hook point."""
        blocks: list[Hook] = [(str(site), partial(self._at, site)) for site in self.interpreter.taps]
        return [(_TOKENS, self._tokens), (_SCORES, self._scores), *blocks]

    def _tokens(self, ids: Int[Tensor, "..."], hook: Point) -> None:
        """Store the embedded ids, of any shape; `_scores` checks that they belong to this call."""
        self._ids = ids

    def _scores(self, scores: Float[Tensor, "*batch heads tokens all"], hook: Point) -> None:
        """Start a call: columns its last token attends to are unmasked, columns before its own are in the cache."""
        if scores.ndim != 4:
            raise RMuseError(
                f"attention scores with a batch axis were required, got {tuple(scores.shape)}; leave out remove_batch_dim"
            )
        batch, _, length, width = scores.shape
        if self._window is not None and width >= self._window:
            raise RMuseError(
                f"fewer than {self._window} tokens were required, {width} arrived: behind its window a bridge does not "
                "show the mask; run the plan natively with plan.attach(hf_model)"
            )
        self._require_new(hook)
        ids, self._ids = self._ids, None
        fits = ids is not None and ids.shape == (batch, length)
        told: dict[str, object] = (
            {"input_ids": ids} if fits else {"inputs_embeds": scores.new_empty(batch, length, 0)}
        )
        # Half the minimum: the mask is added to the scores, and in float16 a score can raise the lowest number.
        unmasked = scores[:, 0] > torch.finfo(scores.dtype).min / 2
        if (
            length > 1
        ):  # a token sees no later one, so a score there says that the mask comes behind this point
            self._masked = not bool(unmasked[:, -2, -1].any())
        cache = SimpleNamespace(get_seq_length=lambda: width - length)
        inputs: dict[str, object] = {**told, "past_key_values": cache}
        if self._masked:
            inputs["attention_mask"] = unmasked[:, -1].long()
        elif (
            self._told.queries is None
            and ids is not None
            and self._pad is not None
            and bool((ids == self._pad).any())
        ):
            raise RMuseError(
                "this bridge does not show which tokens are padding: pass encoding=lens.encode(...) to fwd_hooks, or "
                "ask rows of one length"
            )
        self.begin((), inputs)
        self._due = list(self.interpreter.taps)

    def _at(self, site: Site, h: Float[Tensor, "*batch tokens d"], hook: Point) -> Tensor | None:
        if self._due[:1] != [site]:
            raise RMuseError(
                f"{site} came up out of turn: call the whole bridge, without start_at_layer, with these hooks "
                "on it once"
            )
        self._due.pop(0)
        edited = self.apply(site, h)
        return None if edited is h else edited  # nothing was edited: pass on the same tensor

    def _require_new(self, hook: Point) -> None:
        """Raise `RMuseError` if this plan's hooks are on the bridge more than once."""
        owners = [getattr(getattr(one, "user_hook", None), "__self__", None) for one in hook.fwd_hooks]
        plans = [owner.plan for owner in owners if isinstance(owner, Hooked)]
        if len(plans) > 1 and sum(all_same(self.plan, plan) for plan in plans) > 1:
            raise RMuseError("this plan is on the bridge already; put its hooks on it once")
