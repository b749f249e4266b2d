"""What a model's answers depend on, as a key for cached results."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

from rmuse_interp.data.store import JSON, sources
from rmuse_interp.edits.plan import Plan
from rmuse_interp.models.fingerprint import weights_in_memory
from rmuse_interp.models.loaded import LoadedModel
from rmuse_interp.parts.part import to_record

_LIBRARIES: Final = ("torch", "transformers", "tokenizers", "pillow")
_ELSEWHERE: Final = ("_name_or_path", "transformers_version", "_commit_hash")
"""Entries of a configuration that say where it is from, not what it sets."""
_PADDED: Final = ("padding", "truncation")
"""Entries of a tokenizer's own record that each call sets anew."""
_TOKENIZING: Final = (
    "chat_template",
    "padding_side",
    "special_tokens_map",
    "clean_up_tokenization_spaces",
    "split_special_tokens",
    "add_prefix_space",
)


def depends(model: LoadedModel, plan: Plan | None = None) -> list[object]:
    """List everything a model's greedy answers to a question depend on, for `store.digest`.

    The same wherever the model's files are and whatever name it was given, but not after a change of this package or of
    the libraries that compute the answers.

    Args:
        model: the model. All its weights are read, as they are in memory, with adapters, dtype and quantisation; then
            its configuration (rope and attention among it), generation settings, the settings and class of its
            processors, its tokenizer and chat template, and the blocks that plans count.
        plan: the plan that runs on it, if any; its expression and tensors are included.
    """
    found: list[object] = [
        sources(),
        {name: version(name) for name in _LIBRARIES},
        type(model.hf).__name__,
        model.layout.path,
        weights_in_memory(model.hf),
        _settings(model.hf.config),
        getattr(model.hf.config, "_attn_implementation", None),
        _settings(getattr(model.hf, "generation_config", None)),
        _processing(model.processor),
        _tokenizing(model.tokenizer),
    ]
    return found if plan is None else [*found, *to_record(plan)]


def _settings(config: object) -> str | None:
    """A configuration as JSON text, without what says where it is from."""
    record: JSON = getattr(config, "to_dict", dict)()
    return None if config is None else json.dumps(_bare(record), sort_keys=True, default=str)


def _bare(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _bare(one) for key, one in value.items() if key not in _ELSEWHERE}
    return [_bare(one) for one in value] if isinstance(value, list | tuple) else value


def _processing(processor: object) -> list[object]:
    """The settings of a processor, its chat template, and the classes of its parts: each backend has its own pixels."""
    parts = {name: type(part).__qualname__ for name, part in vars(processor).items()}
    template = getattr(processor, "chat_template", None)
    return [type(processor).__name__, parts, json.dumps(template, sort_keys=True), _settings(processor)]


def _tokenizing(tokenizer: object) -> list[object]:
    """A tokenizer's vocabulary, rules and settings."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: JSON = {"vocabulary": getattr(tokenizer, "get_vocab", dict)()}
    else:
        rules = {key: one for key, one in json.loads(backend.to_str()).items() if key not in _PADDED}
    settings = {name: getattr(tokenizer, name, None) for name in _TOKENIZING}
    text = json.dumps([rules, settings], sort_keys=True, default=str)
    return [type(tokenizer).__name__, text]
