"""The generation loop: continue an encoding and return text."""

from typing import NamedTuple

import torch
from transformers import LogitsProcessor
from transformers.generation.streamers import BaseStreamer

from rmuse_interp.models.encoding import Encoding
from rmuse_interp.models.loaded import LoadedModel


def ends_of(model: LoadedModel) -> frozenset[int]:
    """The token ids that end a row."""
    ends = model.hf.generation_config.eos_token_id
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])


def silent(model: LoadedModel) -> frozenset[int]:
    """The token ids to leave out of text: padding, begin, end and image placeholders, but not reasoning delimiters."""
    own = model.tokenizer
    return frozenset({own.pad_token_id, own.bos_token_id, own.eos_token_id, model.image_token_id} - {None})


class Continuation(NamedTuple):
    """What continues a prompt; `ended`: the model ended it, rather than the token limit (None: it has no end)."""

    text: str
    ended: bool | None


def continued(
    model: LoadedModel,
    encoding: Encoding,
    max_new_tokens: int,
    noise: LogitsProcessor | None = None,
    streamer: BaseStreamer | None = None,
) -> list[Continuation]:
    """The greedy continuation of each row; every row stops at its own end.

    Args:
        model: the model, with its hooks.
        encoding: [batch] rows from `LoadedModel.encode`.
        max_new_tokens: maximum number of tokens per row.
        noise: a `LogitsProcessor` that turns greedy decoding into sampling, or None.
        streamer: a transformers streamer, for a batch of one, or None.
    """
    with torch.inference_mode():
        out = model.hf.generate(
            **encoding,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=model.tokenizer.pad_token_id,
            logits_processor=None if noise is None else [noise],
            streamer=streamer,
        )
    new = out[:, encoding["input_ids"].shape[1] :].tolist()
    drop, stop = silent(model), ends_of(model)
    return [
        Continuation(model.encoder.decode(ids, drop, stop), bool(stop & set(ids)) if stop else None)
        for ids in new
    ]
