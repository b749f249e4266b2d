"""`Answers`: a model's responses to questions, cached by content so that no question is asked twice."""

from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from rmuse_interp.data.store import Store
from rmuse_interp.edits.hooks import paused
from rmuse_interp.lens.identity import depends
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.models.batches import alike

Question = tuple[str, bytes | None]
"""A prompt and its encoded picture, if any."""


class Answers:
    """Greedy responses of one model; every batch is written to disk as soon as it is answered.

    For a model whose weights come from no file nothing is written, since it could not be identified later.

    Args:
        model: the model to ask; attached plans do not act.
        folder: folder for the responses, one file per model.
        batch_size: questions per batch.
        max_new_tokens: maximum number of tokens per response.
        progress: a running progress bar to add lines to.
    """

    def __init__(
        self, model: LensModel, folder: Path, batch_size: int, max_new_tokens: int, progress: Progress | None
    ) -> None:
        self.model, self.batch_size, self.max_new_tokens = model, batch_size, max_new_tokens
        self._progress = progress
        weights = model.fingerprint.weights
        self._kept = Store(folder / f"{weights}.jsonl" if weights else None, depends(model), max_new_tokens)

    def to(self, questions: Sequence[Question], label: str) -> list[str]:
        """Return the responses in the order of the questions; only questions without a cached response are asked."""
        todo = [question for question in dict.fromkeys(questions) if self._kept.get(question) is None]
        for batch in alike(
            todo,
            self.batch_size,
            lambda question: (question[1] is None, len(question[0])),
            mixed=self.model.mixes,
            progress=self._progress,
            label=label,
        ):
            with paused(self.model.hf):
                said = self.model.respond(
                    [prompt for prompt, _ in batch],
                    [image for _, image in batch],
                    max_new_tokens=self.max_new_tokens,
                    batch_size=self.batch_size,
                )
            for question, response in zip(batch, said, strict=True):
                self._kept.put(question, response.text)
        return [str(self._kept.get(question)) for question in questions]

    def cut(self, text: str) -> bool:
        """Whether a response reached `max_new_tokens`, so that no token was left to end it."""
        # A space separates prompt and response; some tokenizers have a token for it.
        said = self.model.tokenizer(f" {text}", add_special_tokens=False).input_ids
        return len(said) >= self.max_new_tokens
