"""The one generation loop: what a model goes on to say behind an encoding, as text."""

import torch
from transformers import LogitsProcessor
from transformers.generation.streamers import BaseStreamer

from rmuse_interp.models.encoding import Encoding
from rmuse_interp.models.loaded import LoadedModel


def ends_of(model: LoadedModel) -> frozenset[int]:
    """The ids that end a row."""
    ends = model.hf.generation_config.eos_token_id
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])


def silent(model: LoadedModel) -> frozenset[int]:
    """The ids that are no words: padding, begin, end and image placeholders. Delimiters of reasoning stay."""
    own = model.tokenizer
    return frozenset({own.pad_token_id, own.bos_token_id, own.eos_token_id, model.image_token_id} - {None})


def continued(
    model: LoadedModel,
    encoding: Encoding,
    max_new_tokens: int,
    noise: LogitsProcessor | None = None,
    streamer: BaseStreamer | None = None,
) -> list[str]:
    """The words that come behind each row, greedily; every row stops at its own end.

    Args:
        model: the model, with whatever hooks it has.
        encoding: [batch] rows from `LoadedModel.encode`.
        max_new_tokens: the most tokens per row.
        noise: transformers' `LogitsProcessor` that makes greedy decoding sample; None for none.
        streamer: transformers' streamer, for a batch of one; None for none.
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
    return [model.encoder.decode(ids, drop, stop) for ids in new]
