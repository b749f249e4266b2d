"""Stream one response while it is generated."""

from collections.abc import Callable

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from rmuse_interp.edits.plan import Plan
from rmuse_interp.edits.trace import Recorder
from rmuse_interp.lens.respond import Response, answered, running
from rmuse_interp.models.encoding import Picture
from rmuse_interp.models.generation import ends_of, silent
from rmuse_interp.models.loaded import LoadedModel
from rmuse_interp.models.prompts import Prompt


def stream(
    model: LoadedModel,
    prompt: Prompt,
    image: Picture = None,
    plan: Plan | None = None,
    *,
    max_new_tokens: int = 128,
    write: Callable[[str], None],
    recorder: Recorder | None = None,
) -> Response:
    """The greedy response to one question; each piece of text is passed to `write` as it is generated.

    Args:
        model: the model.
        prompt: the plain question, or a conversation.
        image: a picture (see `LoadedModel.encode`) or None.
        plan: the plan to run; None for the unedited model.
        max_new_tokens: maximum number of tokens.
        write: called with each new piece of text.
        recorder: records a trace of the plan's steering.
    """
    words = _Words(model, write)
    with running(model, plan, recorder) as handle:
        return answered(model, handle, [prompt], [image], max_new_tokens, streamer=words)[0]


class _Words(BaseStreamer):
    """transformers' streamer: new ids in, whole words out; delimiters stay, special tokens do not."""

    def __init__(self, model: LoadedModel, write: Callable[[str], None]) -> None:
        self._drop = silent(model) | ends_of(model)
        self._tokenizer, self._write = model.tokenizer, write
        self._ids: list[int] = []
        self._prompt_seen = False
        self.text = ""

    def put(self, value: Tensor) -> None:
        """Take the prompt (first call, left out) or the next ids."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._ids += [i for i in value.flatten().tolist() if i not in self._drop]
        text = self._text()
        if not text.endswith("\ufffd"):  # half a character: the rest of its bytes is still to come
            self._say(text)

    def end(self) -> None:
        """Write the text that was held back."""
        self._say(self._text())

    def _text(self) -> str:
        return self._tokenizer.decode(
            self._ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        ).lstrip()

    def _say(self, text: str) -> None:
        self._write(text[len(self.text) :])
        self.text = text
