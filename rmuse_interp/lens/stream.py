"""One response, its words handed on as they come."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from rmuse_interp.edits.hooks import attach
from rmuse_interp.edits.plan import Plan
from rmuse_interp.edits.trace import Recorder
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.lens.respond import Response, verdict


def stream(
    model: LensModel,
    prompt: str,
    image: Any = None,
    plan: Plan | None = None,
    *,
    max_new_tokens: int = 128,
    write: Callable[[str], None],
    recorder: Recorder | None = None,
) -> Response:
    """The greedy response to one question; its words are handed to `write` as they come.

    Args:
        model: the model.
        prompt: the plain question.
        image: a picture (see `LensModel.encode`) or None.
        plan: what to run.
        max_new_tokens: the most tokens.
        write: gets each new piece of text.
        recorder: keeps a trace of the plan's steering.
    """
    encoding = model.encode(prompt, image)
    words = _Words(model, write)
    fired, found = None, None
    with ExitStack() as undo:
        handle = None
        if plan is not None:
            handle = undo.enter_context(attach(model.hf, plan, layout=model.layout, recorder=recorder))
            if not handle.plan.single_pass:
                handle.decision = model.decide(plan, prompt, image)
            undo.enter_context(
                handle.expecting(encoding["input_ids"], encoding["attention_mask"], encoding.prompt_end)
            )
        undo.enter_context(torch.inference_mode())
        model.hf.generate(
            **encoding,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=model.tokenizer.pad_token_id,
            streamer=words,
        )
        if handle is not None and handle.state is not None:
            query = handle.state.query
            fired, found = verdict(handle.plan, query.decision, query.has_image.tolist())[0]
    trace = None if recorder is None or plan is None else recorder.trace().row(0)
    return Response(words.text.strip(), fired, found, trace)


class _Words:
    """transformers' streamer: new ids in, whole words out; delimiters stay, special tokens do not."""

    def __init__(self, model: LensModel, write: Callable[[str], None]) -> None:
        own = model.tokenizer
        ends = model.hf.generation_config.eos_token_id
        self._drop = {own.pad_token_id, own.bos_token_id, own.eos_token_id, model.image_token_id}
        self._drop |= set(ends) if isinstance(ends, list) else {ends}
        self._tokenizer, self._write = own, write
        self._ids: list[int] = []
        self._prompt_seen = False
        self.text = ""

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt (first call, left out) or the next ids."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._ids += [i for i in value.flatten().tolist() if i not in self._drop]
        text = self._text()
        if not text.endswith("\ufffd"):  # half a character: the rest of its bytes is still to come
            self._say(text)

    def end(self) -> None:
        """What was held back is said after all."""
        self._say(self._text())

    def _text(self) -> str:
        return self._tokenizer.decode(
            self._ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        ).lstrip()

    def _say(self, text: str) -> None:
        self._write(text[len(self.text) :])
        self.text = text
