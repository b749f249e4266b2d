"""`Answers`: what a model says to questions, kept by content, so that nothing is ever asked twice."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from rmuse_interp.edits.hooks import paused
from rmuse_interp.lens.lens import LensModel

Question = tuple[str, bytes | None]
"""A prompt and its encoded picture."""


def default_cache() -> Path:
    """The folder of kept responses, below the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rmuse_interp" / "elicited"


class Answers:
    """Greedy responses of one model; every batch is on disk once it is answered.

    The file is only ever appended to. A line that an interruption has torn is passed over, and its question asked
    again. Nothing is kept of a model whose weights come from no file: what it is could not be told later.

    Args:
        model: who is asked; attached plans do not act.
        folder: of the responses, one file per model.
        batch_size: questions per batch.
        max_new_tokens: the most tokens per response.
        progress: a running progress bar to add lines to.
    """

    def __init__(
        self, model: LensModel, folder: Path, batch_size: int, max_new_tokens: int, progress: Progress | None
    ) -> None:
        self.model, self.batch_size, self.max_new_tokens = model, batch_size, max_new_tokens
        self._progress = progress
        weights = model.fingerprint.weights
        self._path = folder / f"{weights}.jsonl" if weights else None
        self._found: dict[str, str] = {}
        if self._path is not None and self._path.is_file():
            self._read(self._path)
        dtype = str(model.dtype)
        chat = repr(getattr(model.processor, "chat_template", None))
        self._depends: list[Any] = [str(model.fingerprint), dtype, chat, max_new_tokens]

    def to(self, questions: Sequence[Question], label: str) -> list[str]:
        """The responses in the order of the questions; only those not kept are asked for."""
        keys = [self._key(*question) for question in questions]
        todo = {key: q for key, q in zip(keys, questions, strict=True) if key not in self._found}
        order = sorted(todo, key=lambda key: (todo[key][1] is None, len(todo[key][0])))
        task = self._progress.add_task(label, total=len(order)) if self._progress and order else None
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            with paused(self.model.hf):
                said = self.model.respond(
                    [todo[key][0] for key in batch],
                    [todo[key][1] for key in batch],
                    max_new_tokens=self.max_new_tokens,
                    batch_size=self.batch_size,
                )
            fresh = {key: response.text for key, response in zip(batch, said, strict=True)}
            self._append("".join(json.dumps({"key": k, "text": t}) + "\n" for k, t in fresh.items()))
            self._found |= fresh
            if self._progress is not None and task is not None:
                self._progress.advance(task, len(batch))
        return [self._found[key] for key in keys]

    def cut(self, text: str) -> bool:
        """Whether a response is as long as it may be, so that the model had no token left to end it with."""
        # With the blank that a response has behind the prompt; some tokenizers have a token for it.
        said = self.model.tokenizer(f" {text}", add_special_tokens=False).input_ids
        return len(said) >= self.max_new_tokens

    def _key(self, prompt: str, image: bytes | None) -> str:
        """Of all that a response depends on: model, dtype, chat template, length, prompt and picture."""
        return hashlib.sha256(json.dumps([*self._depends, prompt]).encode() + (image or b"")).hexdigest()

    def _read(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in lines:
            try:
                record = json.loads(line)
                self._found[record["key"]] = record["text"]
            except (ValueError, TypeError, KeyError):
                continue
        if lines[-1]:  # torn: what is added must not go on in its line
            self._append("\n")

    def _append(self, text: str) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
