"""`LensModel`: a model in nnsight's hands, with our names for its sites; the only file that knows nnsight."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rmuse_interp.edits import Edit, Plan, as_plan
from rmuse_interp.errors import RMuseError
from rmuse_interp.models import native
from rmuse_interp.models.encoding import Encoder, Encoding, Picture
from rmuse_interp.models.fingerprint import Fingerprint, fingerprint
from rmuse_interp.models.layouts import Layout, find_layout
from rmuse_interp.models.respond import Response, respond
from rmuse_interp.models.state import Decision


def load_model(
    path_or_id: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    blocks: str | None = None,
) -> "LensModel":
    """The model at a path or hub id, with its processor, ready to be traced and steered.

    Args:
        path_or_id: a folder in Hugging Face format, a hub id (`llava-hf/llava-1.5-7b-hf`), `organism` (the trained
            small LLaVA of this package) or `organism-gold` (the same, trained without the forget set).
        device: where to put it; a GPU where there is one.
        dtype: `float32`, `bfloat16`, …; the checkpoint's own on a GPU, float32 elsewhere.
        blocks: dotted path of the decoder blocks, for unknown families.

    Raises:
        RMuseError: no checkpoint there, or an unknown model family.
    """
    name = str(path_or_id)
    place = (
        torch.device(device)
        if device is not None
        else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not isinstance(kind, torch.dtype):
        raise RMuseError(f"a dtype such as 'float32' or 'bfloat16' was required, got {dtype!r}")
    if kind is None and place.type == "cpu":
        kind = torch.float32
    source = _source(name)
    hf_model, processor = _load(source, kind)
    layout = find_layout(hf_model, blocks, getattr(processor, "tokenizer", processor).all_special_ids)
    return LensModel(hf_model.to(place).eval(), processor, layout, name)


def _source(name: str) -> str:
    if name in ("organism", "organism-gold"):
        import importlib

        # The organism lives floors above; it is only asked where its weights are.
        return str(importlib.import_module("rmuse_interp.organism").weights_path(name))
    looks_local = Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") != 1
    folder = Path(name).expanduser()
    if folder.exists() and not (folder / "config.json").exists():
        raise RMuseError(
            f"a checkpoint folder with a config.json was required, {name} has none; save the model there"
        )
    if looks_local and not folder.exists():
        raise RMuseError(
            f"a checkpoint folder, a hub id or 'organism' was required, {name} does not exist; check the path"
        )
    return str(folder) if folder.exists() else name


def _load(source: str, dtype: torch.dtype | None) -> tuple[Any, Any]:
    import transformers

    try:
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(source)
            sees = type(config) in transformers.AutoModelForImageTextToText._model_mapping
            kind = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
            processor = (transformers.AutoProcessor if sees else transformers.AutoTokenizer).from_pretrained(
                source
            )
            model = kind.from_pretrained(source, dtype=dtype if dtype is not None else "auto")
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RMuseError(f"{source} could not be loaded as an image-text or text model: {reason}") from error
    tokenizer = getattr(processor, "tokenizer", processor)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, processor


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """The context without transformers' progress bars and advice."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()


class LensModel:
    """A loaded model: encode, trace, generate, steer.

    Plans run in three places with equal outputs: in the contexts of `trace` and `generate`, as a stored nnsight edit
    (`install`), and natively (`respond`, `plan.attach(lens.hf)`). Not thread-safe, as nnsight is not.

    Args:
        hf_model: the Hugging Face model.
        processor: its processor, or its tokenizer where it is text-only.
        layout: where it keeps its blocks.
        name: what the user called it.

    Attributes:
        hf: the Hugging Face model itself.
        processor: the processor (or tokenizer).
        layout: paths of blocks and vision tower, special token ids.
        name: path, hub id or `organism`.
    """

    def __init__(self, hf_model: Any, processor: Any, layout: Layout, name: str):
        self.hf = hf_model
        self.processor = processor
        self.layout = layout
        self.name = name
        self._encoder = Encoder(processor)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self._encoder.tokenizer

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return self.layout.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.layout.d_model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.hf.parameters()).device

    @property
    def image_token_id(self) -> int | None:
        """Id of the image placeholder token; None for text-only models."""
        return self.layout.vocabulary.image

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Architecture, widths and hash of the source checkpoint."""
        return fingerprint(self.hf, self.layout)

    def encode(
        self,
        prompts: str | Sequence[str],
        images: Picture | Sequence[Picture] = None,
        responses: str | Sequence[str | None] | None = None,
    ) -> Encoding:
        """Left-padded inputs on the model's device; see `Encoder.encode`."""
        return self._encoder.encode(prompts, images, responses).to(self.device)

    def respond(
        self,
        prompts: str | Sequence[str],
        images: Picture | Sequence[Picture] = None,
        plan: Plan | Edit | None = None,
        *,
        max_new_tokens: int = 128,
        prefill: str | None = None,
        batch_size: int = 32,
    ) -> list[Response]:
        """Greedy responses, the fast native way; see `rmuse_interp.models.respond.respond`."""
        return respond(
            self,
            prompts,
            images,
            None if plan is None else self._checked(plan),
            max_new_tokens=max_new_tokens,
            prefill=prefill,
            batch_size=batch_size,
        )

    def decide(
        self, plan: Plan | Edit, prompts: str | Sequence[str], images: Picture | Sequence[Picture] = None
    ) -> Decision:
        """What the plan's gates say of the prompts, from unsteered passes; the literal gate's over `g ⊕ q`."""
        questions = [prompts] if isinstance(prompts, str) else list(prompts)

        def encode(prefix: str | None) -> Encoding:
            return self.encode(questions if prefix is None else [f"{prefix} {q}" for q in questions], images)

        return native.decide(self.hf, self._checked(plan), encode, self.layout)

    def _checked(self, plan: Plan | Edit) -> Plan:
        expression = as_plan(plan)
        if expression.fingerprint is not None:
            self.fingerprint.require(expression.fingerprint, "this plan")
        return expression
