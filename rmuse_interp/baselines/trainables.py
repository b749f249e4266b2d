"""Parts of a model that training changes: low-rank adapters (`peft`) or some weights. Both can undo their changes."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Final, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rmuse_interp import RMuseError
from rmuse_interp.lens.lens import LensModel


@dataclass(frozen=True)
class Rank:
    """Settings of the low-rank adapters, as in MLLMU-Bench's baselines."""

    r: int = 16
    alpha: int = 16
    dropout: float = 0.05


RANK: Final = Rank()


def require_peft() -> ModuleType:
    """Import the package `peft`.

    Raises:
        RMuseError: `peft` is not installed.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise RMuseError(
            "low-rank adapters need the package peft, got none; pip install 'rmuse-interp[baselines]'"
        ) from error
    return peft


@runtime_checkable
class AdapterConfig(Protocol):
    """peft's configuration of adapters."""

    def save_pretrained(self, save_directory: str) -> None:
        """Write it into a folder."""


@runtime_checkable
class Trainable(Protocol):
    """The part of a model that a baseline trains, in place."""

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters for the optimiser."""

    def original(self) -> AbstractContextManager[None]:
        """Return a context in which the model is as before training."""

    def state(self) -> dict[str, Tensor]:
        """Return copies of the tensors that training changed, by name."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""

    def undo(self) -> None:
        """Restore the original model."""


def linear_names(lens: LensModel, layers: Sequence[int] | None = None) -> list[str]:
    """Names of the linear layers of the language model's blocks (all blocks, or those given), in order.

    Raises:
        RMuseError: blocks without linear layers.
    """
    blocks = range(lens.n_layers) if layers is None else layers
    found = [
        f"{lens.layout.path}.{layer}.{name}"
        for layer in blocks
        for name, module in lens.layout.blocks[layer].named_modules()
        if isinstance(module, nn.Linear)
    ]
    if not found:
        raise RMuseError(
            f"{lens.name}: linear layers in the decoder blocks ({lens.layout.path}) were required to train, got none; "
            "use a model whose blocks hold torch.nn.Linear"
        )
    return found


class LowRank:
    """LoRA on every linear layer of the language model; the vision tower and the head stay as they are.

    Args:
        lens: the model; it is changed in place until `undo`.
        seed: seed of the random half of each adapter (the other half starts at 0, so that nothing changes yet).
    """

    def __init__(self, lens: LensModel, seed: int = 0) -> None:
        self._hf, self._package = lens.hf, require_peft()
        self._trained = {name: p.requires_grad for name, p in lens.hf.named_parameters()}
        self.config = adapter_config(lens)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # peft asks transformers for a name that is going to be removed
            torch.manual_seed(seed)
            self.peft = self._package.get_peft_model(lens.hf, self.config)

    def parameters(self) -> list[nn.Parameter]:
        """The adapters' matrices."""
        return [p for p in self.peft.parameters() if p.requires_grad]

    @contextmanager
    def original(self) -> Iterator[None]:
        """The model without its adapters."""
        with self.peft.disable_adapter():
            yield

    def state(self) -> dict[str, Tensor]:
        """The adapters' matrices under peft's names."""
        own = self._package.get_peft_model_state_dict(self.peft)
        return {name: matrix.detach().cpu().clone() for name, matrix in own.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        self._package.set_peft_model_state_dict(self.peft, dict(state))

    def undo(self) -> None:
        """Remove the adapters."""
        self.peft.unload()
        for name, parameter in self._hf.named_parameters():
            parameter.requires_grad_(self._trained[name])


def adapter_config(lens: LensModel) -> AdapterConfig:
    """peft's configuration of the adapters; the layers are named by a pattern, as short as it can be."""
    inner = {name.split(".", lens.layout.path.count(".") + 2)[-1] for name in linear_names(lens)}
    pattern = rf"{re.escape(lens.layout.path)}\.\d+\.({'|'.join(map(re.escape, sorted(inner)))})"
    found: AdapterConfig = require_peft().LoraConfig(
        r=RANK.r, lora_alpha=RANK.alpha, lora_dropout=RANK.dropout, target_modules=pattern, bias="none"
    )
    return found


class Weights:
    """Some of the model's own weights, trained in place.

    Args:
        lens: the model; it is changed in place until `undo`.
        names: names of the modules whose `weight` is trained.
    """

    def __init__(self, lens: LensModel, names: Sequence[str]) -> None:
        self._hf = lens.hf
        self._trained = {name: p.requires_grad for name, p in lens.hf.named_parameters()}
        self._weights = {f"{name}.weight": lens.hf.get_submodule(name).weight for name in names}
        self._before = {name: p.detach().clone() for name, p in self._weights.items()}
        lens.hf.requires_grad_(False)
        for parameter in self._weights.values():
            parameter.requires_grad_(True)

    def parameters(self) -> list[nn.Parameter]:
        """The weights."""
        return list(self._weights.values())

    @contextmanager
    def original(self) -> Iterator[None]:
        """The model with the weights it had."""
        now = {name: p.data for name, p in self._weights.items()}
        try:
            for name, parameter in self._weights.items():
                parameter.data = self._before[name]
            yield
        finally:
            for name, parameter in self._weights.items():
                parameter.data = now[name]

    def state(self) -> dict[str, Tensor]:
        """The weights under the model's own names."""
        return {name: p.detach().cpu().clone() for name, p in self._weights.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        with torch.no_grad():
            for name, parameter in self._weights.items():
                parameter.copy_(state[name])

    def undo(self) -> None:
        """Put the old weights back."""
        self.load(self._before)
        for name, parameter in self._hf.named_parameters():
            parameter.requires_grad_(self._trained[name])
