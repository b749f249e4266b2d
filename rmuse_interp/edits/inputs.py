"""Read a forward call's tokens from its inputs: which are real, image or special ones, and where the prompt ends."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.edits.state import Query, Slice
from rmuse_interp.models.layout import Vocabulary

Inputs = Mapping[str, object]
"""Keyword arguments of a model's forward."""


@runtime_checkable
class Cache(Protocol):
    """Keys and values of earlier tokens, as transformers keeps them."""

    def get_seq_length(self) -> int:
        """Number of tokens in the cache."""


def cached(inputs: Inputs) -> int:
    """Number of tokens already in the cache.

    Raises:
        RMuseError: a cache that does not say how many tokens it holds.
    """
    found = [inputs.get(name) for name in ("past_key_values", "cache_params")]
    for cache in found:
        if cache is not None and not isinstance(cache, Cache):
            raise RMuseError(
                f"a cache of transformers that counts its tokens was required, got {type(cache).__name__}: pass a "
                "DynamicCache, or use_cache=False"
            )
    return max((int(cache.get_seq_length()) for cache in found if isinstance(cache, Cache)), default=0)


def tensor_of(inputs: Inputs, name: str) -> Tensor | None:
    """The input tensor of that name, or None."""
    found = inputs.get(name)
    return found if isinstance(found, Tensor) else None


def read_call(
    inputs: Inputs,
    vocabulary: Vocabulary,
    announced: Query | None = None,
    width: int | None = None,
) -> Slice:
    """The tokens of a forward call.

    Positions come from the attention mask (cumulative sum), else from the announced mask, else from `position_ids` or
    the cache's length. Tokens from column `width` on are generated and count as neither image nor special.

    Raises:
        RMuseError: no tokens, several sequences packed into one row, or a mask that does not show which tokens are
            padding.
    """
    ids = tensor_of(inputs, "input_ids")
    tokens = tensor_of(inputs, "inputs_embeds") if ids is None else ids
    if tokens is None:
        raise RMuseError("the model was called without input_ids or inputs_embeds; a plan needs one of them")
    batch, length = tokens.shape[:2]
    past, device = cached(inputs), tokens.device
    told = None if announced is None else announced.repeated(batch)
    mask = _mask(inputs, past, length, None if told is None else told.mask)
    if mask is not None:
        counted = mask.to(device).long().cumsum(dim=1) - 1
        position, real = counted[:, past : past + length], mask[:, past : past + length].to(device).bool()
    else:
        position = _column(inputs, past, batch, length, device)
        real = position >= 0
    none = torch.zeros(batch, length, dtype=torch.bool, device=device)
    if ids is None and told is not None and told.ids is not None and past + length <= told.width:
        ids = told.ids[:, past : past + length].to(device)  # embeddings were given beside them
    if ids is None or (width is not None and past >= width):
        return Slice(position, real, none, none, past, ids)
    image = none if vocabulary.image is None else ids.eq(vocabulary.image)
    special = torch.isin(ids, torch.tensor(sorted(vocabulary.special), dtype=ids.dtype, device=device))
    return Slice(position, real, image, special | image, past, ids)


def _mask(inputs: Inputs, past: int, length: int, told: Tensor | None) -> Tensor | None:
    """The mask of all tokens so far, [batch, at least past + length]; None if there is none."""
    packed = [name for name in ("cu_seq_lens_q", "block_table") if inputs.get(name) is not None]
    if packed:
        raise RMuseError(
            f"one sequence per row was required, {packed[0]} says that rows hold several: pad them instead"
        )
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        fixed = getattr(inputs.get("past_key_values"), "is_compileable", False)
        if mask.shape[1] < past + length or (mask.shape[1] > past + length and not fixed):
            raise RMuseError(
                f"a mask of {past + length} columns was required ({past} in the cache, {length} new), got "
                f"{mask.shape[1]}: pass the mask of the whole conversation"
            )
        return mask
    if told is not None:
        return torch.nn.functional.pad(told, (0, max(0, past + length - told.shape[1])), value=1)
    if mask is not None:
        raise RMuseError(
            "a mask [batch, tokens] was required to tell padding, got one of attention: announce the prompts, "
            "handle.expecting(input_ids, attention_mask)"
        )
    return None


def _column(inputs: Inputs, past: int, batch: int, length: int, device: torch.device) -> Tensor:
    """Positions without a mask: those given, or columns."""
    given = tensor_of(inputs, "position_ids")
    if given is None or given.ndim != 2 or given.shape[1] != length:
        return torch.arange(past, past + length, device=device).expand(batch, -1)
    if bool((given.diff(dim=1) < 1).any()):
        raise RMuseError(
            "one sequence per row was required, position_ids start again within a row: pad them instead, or pass "
            "their attention_mask"
        )
    return given.to(device).expand(batch, -1)


def of_prompt(call: Slice, prompt_end: Int[Tensor, " batch"]) -> Slice:
    """The call without image tokens after the prompt: a generated placeholder does not stand for an image."""
    return replace(call, image=call.image & (call.position <= prompt_end.unsqueeze(-1)))


def covered(readout: str, call: Slice, prompt_end: Int[Tensor, " batch"]) -> Bool[Tensor, "batch tokens"]:
    """The tokens of this call that a read-out averages: prompt tokens, or for `draft` those from the last one on."""
    if readout == "draft":
        return call.real & (call.position >= prompt_end.unsqueeze(-1))
    if readout == "last":
        return call.real & (call.position == prompt_end.unsqueeze(-1))
    prompt = call.real & (call.position <= prompt_end.unsqueeze(-1))
    if readout == "image":
        return prompt & call.image
    # Text after the last image token: no image token may follow within the prompt.
    ahead = (prompt & call.image).flip(1).cumsum(dim=1).flip(1)
    return prompt & ~call.special & (ahead == 0)


def mean_over(
    h: Float[Tensor, "batch tokens d"], cover: Bool[Tensor, "batch tokens"], count: Int[Tensor, " batch"]
) -> Float[Tensor, "batch d"]:
    """Contribution of these tokens to the mean of a read-out, float32; used in fitting and in running.

    Args:
        h: [batch, tokens, d] states.
        cover: the tokens that the read-out averages, see `covered`.
        count: total number of tokens averaged per row; larger than in `cover` if the prefill comes in chunks.
    """
    share = cover.float() / count.clamp_min(1).unsqueeze(1)
    return torch.einsum("bt,btd->bd", share, torch.where(cover.unsqueeze(-1), h.float(), 0.0))


def largest_over(
    h: Float[Tensor, "batch tokens d"], cover: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch d"]:
    """The largest value of each dimension over these tokens, float32; −∞ in rows without any.

    Args:
        h: [batch, tokens, d] states.
        cover: the tokens that the read-out takes, see `covered`.
    """
    return torch.where(cover.unsqueeze(-1), h.float(), -torch.inf).amax(dim=1)


def announce(
    input_ids: Int[Tensor, "batch tokens"] | None,
    attention_mask: Int[Tensor, "batch all"] | None,
    vocabulary: Vocabulary,
    prompt_end: Int[Tensor, " batch"] | Sequence[int] | None = None,
) -> Query:
    """Describe the queries of an encoded prompt in advance, for prefills in chunks or on top of a cache.

    Args:
        input_ids: [batch, tokens] ids of the whole conversation, or of its new part if the mask is longer; None if
            only embeddings are known, beside their mask.
        attention_mask: mask of the whole conversation; all ones by default.
        vocabulary: image and special token ids.
        prompt_end: position of each row's last prompt token; by default the last unmasked one.

    Raises:
        RMuseError: not one prompt end per row, or one outside its row; neither ids nor a mask.
    """
    mask = attention_mask
    if mask is None:
        if input_ids is None:
            raise RMuseError("input_ids, or the attention_mask of embeddings, were required, got neither")
        mask = torch.ones_like(input_ids)
    counted = mask.long().cumsum(dim=1)
    last = counted[:, -1] - 1
    end = last if prompt_end is None else torch.as_tensor(prompt_end, device=last.device).to(last)
    if end.shape != last.shape or bool(((end < 0) & (last >= 0) | (end > last)).any()):
        raise RMuseError(
            f"one prompt_end per row was required, counting its {(last + 1).tolist()} unmasked tokens from 0, got "
            f"{end.tolist()}; lens.encode(...).prompt_end has them"
        )
    if input_ids is None or mask.shape[1] != input_ids.shape[1]:
        unseen = torch.zeros_like(last)
        return Query(end, unseen.bool(), mask.long(), {"last": unseen + 1}, None, unseen - 1)
    call = of_prompt(read_call({"input_ids": input_ids, "attention_mask": mask}, vocabulary), end)
    readable = {name: covered(name, call, end).sum(dim=1) for name in ("last", "question", "peak", "image")}
    return Query(end, call.image_end >= 0, mask.long(), readable, input_ids, call.image_end)
