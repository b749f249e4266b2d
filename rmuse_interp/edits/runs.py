"""`Runs`: the places where an edit or a plan runs, as its own methods."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from rmuse_interp import RMuseError
from rmuse_interp.edits import bridge_hooks, deciding, hooks
from rmuse_interp.edits.sentence import Sentence
from rmuse_interp.edits.state import Decision
from rmuse_interp.edits.trace import Recorder
from rmuse_interp.models.encoding import Picture
from rmuse_interp.models.layout import Layout
from rmuse_interp.models.loaded import LoadedModel
from rmuse_interp.models.prompts import Prompts
from rmuse_interp.parts.part import Part


class Runs(Part):
    """An expression that runs on a model, in any of the supported places."""

    _public = "edits"

    @abstractmethod
    def as_sentence(self) -> Sentence:
        """The plan that runs."""

    def attach(
        self,
        hf_model: nn.Module,
        *,
        decision: Decision | None = None,
        layout: Layout | None = None,
        recorder: Recorder | None = None,
    ) -> hooks.Attached:
        """Run natively on a Hugging Face model until `.detach()`; see `rmuse_interp.edits.hooks.attach`."""
        _require(isinstance(hf_model, nn.Module), "the Hugging Face model, plan.attach(lens.hf),", hf_model)
        return hooks.attach(hf_model, self.as_sentence(), decision=decision, layout=layout, recorder=recorder)

    def install(self, lens: Any, **settings: Any) -> Any:
        """Run as a stored nnsight edit of `lens` until `.remove()`; see `LensModel.install`."""
        _require(isinstance(lens, LoadedModel), "a model from load_model", lens)
        return lens.install(self.as_sentence(), **settings)

    def fwd_hooks(
        self,
        bridge: Any,
        prompts: Prompts | None = None,
        images: Picture | Sequence[Picture] = None,
        *,
        encoding: Mapping[str, Tensor] | None = None,
        decision: Decision | None = None,
    ) -> list[bridge_hooks.Hook]:
        """TransformerLens' `(name, function)` pairs for a bridge; see `rmuse_interp.edits.bridge_hooks.fwd_hooks`."""
        _require(hasattr(bridge, "original_model"), "a TransformerLens bridge, to_bridge(lens),", bridge)
        return bridge_hooks.fwd_hooks(
            self.as_sentence(), bridge, prompts, images, encoding=encoding, decision=decision
        )

    def decide(
        self,
        lens: LoadedModel,
        prompts: Prompts,
        images: Picture | Sequence[Picture] = None,
    ) -> Decision:
        """The gates' decision from unsteered passes over the prompts; see `rmuse_interp.edits.deciding.decide`."""
        _require(isinstance(lens, LoadedModel), "a model from load_model", lens)
        return deciding.decide(lens, self.as_sentence(), prompts, images)


def _require(there: bool, what: str, got: object) -> None:
    if not there:
        raise RMuseError(f"{what} was required, got {type(got).__name__}")
