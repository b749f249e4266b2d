"""Make judges from specifications: ``rules``, ``openai:MODEL`` (on a server) or ``local:PATH`` (on this machine)."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rmuse_interp import RMuseError
from rmuse_interp.data.store import cache_folder
from rmuse_interp.evaluate.judges import (
    Answerer,
    AskingJudge,
    Budget,
    Consultation,
    Endpoint,
    Judge,
    Reply,
    RulesJudge,
)

if TYPE_CHECKING:
    from rmuse_interp.lens.lens import LensModel

KINDS: Final = "rules, openai:MODEL or local:PATH"


class LocalModel:
    """An answerer that runs a transformers model on this machine: greedy, one question at a time.

    Args:
        lens: the model; its chat template formats the question.
        max_new_tokens: maximum tokens in a reply.
    """

    def __init__(self, lens: "LensModel", max_new_tokens: int = 512) -> None:
        from rmuse_interp.lens.identity import depends

        self.name = f"local:{lens.name}:{lens.fingerprint}"
        self.at_once = 1
        self.of: object = (depends(lens), max_new_tokens)
        self._lens, self._max_new_tokens = lens, max_new_tokens
        self._lock = threading.Lock()

    def __call__(self, question: str) -> Reply:
        """Answer one question."""
        with self._lock:
            text = self._lens.respond([question], max_new_tokens=self._max_new_tokens)[0].text
            prompt_tokens = int(self._lens.encode([question])["input_ids"].shape[1])
        return Reply(text, prompt_tokens, len(self._lens.tokenizer.encode(text)))


def asked_of(
    spec: str,
    *,
    base_url: str | None = None,
    timeout: float = 60.0,
    device: str | None = None,
    dtype: str | None = None,
    max_tokens: int = 512,
) -> Answerer:
    """Make the answerer for a specification: ``openai:MODEL`` or ``local:PATH``.

    Raises:
        RMuseError: the specification has another form, the key is missing, or the model does not exist.
    """
    kind, _, name = spec.partition(":")
    if kind == "openai" and name:
        return Endpoint(name, base_url, timeout=timeout, max_tokens=max_tokens)
    if kind == "local" and name:
        from rmuse_interp.lens.lens import load_model

        return LocalModel(load_model(name, device=device, dtype=dtype), max_tokens)
    raise RMuseError(f"a judge was required ({KINDS}), got {spec!r}")


def judge_of(
    spec: str,
    aliases: Mapping[str, Sequence[str]],
    entails: Mapping[str, Sequence[str]],
    *,
    budget: Budget | None = None,
    folder: Path | None = None,
    base_url: str | None = None,
    timeout: float = 60.0,
    device: str | None = None,
    dtype: str | None = None,
) -> Judge:
    """Make the judge for a specification.

    Args:
        spec: ``rules``, ``openai:MODEL`` or ``local:PATH``.
        aliases: the benchmark's aliases, for the rules.
        entails: the benchmark's entailments, for the rules.
        budget: prices and the maximum cost.
        folder: where replies are kept; by default `kept_in`.
        base_url: the server's address; by default the environment's `OPENAI_BASE_URL`.
        timeout: maximum seconds for one reply.
        device: device of a local model.
        dtype: dtype of a local model.

    Raises:
        RMuseError: the specification is unknown, the key is missing, or the model does not exist.
    """
    if spec == RulesJudge.name:
        return RulesJudge(aliases, entails)
    asked = asked_of(spec, base_url=base_url, timeout=timeout, device=device, dtype=dtype, max_tokens=128)
    return AskingJudge(Consultation(asked, folder or kept_in(), budget or Budget()))


def kept_in() -> Path:
    """The folder where replies are kept, below the user's cache folder."""
    return cache_folder() / "replies"
