"""`LoadedModel`: a Hugging Face model with its processor and layout; it encodes questions, independent of plans."""

from collections.abc import Sequence
from typing import Any

import torch

from rmuse_interp.models.devices import device_of
from rmuse_interp.models.encoding import Encoder, Encoding, Picture
from rmuse_interp.models.families import lacks
from rmuse_interp.models.fingerprint import Fingerprint, fingerprint, remember
from rmuse_interp.models.layout import Layout
from rmuse_interp.models.pixels import backend_of
from rmuse_interp.models.positions import positions
from rmuse_interp.models.prompts import Prompts


class LoadedModel:
    """A model with its processor and layout.

    Args:
        hf_model: the Hugging Face model.
        processor: its processor, or its tokenizer if it is text-only.
        layout: paths of its parts.
        name: the name given by the user.

    Attributes:
        hf: the Hugging Face model itself.
        processor: the processor (or tokenizer).
        layout: paths of blocks and vision tower, special token ids.
        name: path, hub id or `organism`.
        encoder: renders and tokenizes questions.
    """

    def __init__(self, hf_model: Any, processor: Any, layout: Layout, name: str):
        self.hf = hf_model
        self.processor = processor
        self.layout = layout
        self.name = name
        self.encoder = Encoder(processor, str(getattr(hf_model.config, "model_type", "")))
        if not hasattr(hf_model, "_rmuse_weights"):
            remember(hf_model)

    def __repr__(self) -> str:
        image = self.image_token_id
        sees = "text only"
        if image is not None:
            token = self.tokenizer.convert_ids_to_tokens(image)
            sees = f"image token {image} ({token}), pictures by {self.image_backend}"
        return (
            f"{type(self).__name__} {self.name}: {type(self.hf).__name__}, {self.n_layers} blocks of width "
            f"{self.d_model} on {self.device} in {str(self.dtype).removeprefix('torch.')}, {sees}"
        )

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.encoder.tokenizer

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
        """Device on which the model takes its inputs."""
        return device_of(self.hf)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.hf.parameters()).dtype

    @property
    def mixes(self) -> bool:
        """Whether rows with and without a picture may share a batch."""
        return not lacks(self.layout.family, "mixed batches")

    @property
    def image_token_id(self) -> int | None:
        """Id of the image placeholder token; None for text-only models."""
        return self.layout.vocabulary.image

    @property
    def image_backend(self) -> str | None:
        """`pil` or `torchvision`: the library that turns pictures into tensors; None for text-only models."""
        return backend_of(self.processor)

    @property
    def fingerprint(self) -> Fingerprint:
        """Architecture, widths and hash of the source checkpoint, or another hash if weights were changed since."""
        return fingerprint(self.hf, self.layout)

    @property
    def record(self) -> dict[str, object]:
        """What a plan fitted on this model carries of it, as plain JSON: its fingerprint and its special tokens."""
        return {**self.fingerprint.as_record(), "tokens": self.layout.vocabulary.as_record()}

    def encode(
        self,
        prompts: Prompts,
        images: Picture | Sequence[Picture] = None,
        responses: str | Sequence[str | None] | None = None,
    ) -> Encoding:
        """Left-padded inputs on the model's device; see `Encoder.encode`, and `positions` for GPT-2 and its like."""
        encoding = self.encoder.encode(prompts, images, responses)
        encoding.update(positions(self.hf, encoding["attention_mask"]))
        return encoding.to(self.device)
