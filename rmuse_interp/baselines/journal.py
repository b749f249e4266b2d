"""What an interrupted training leaves: its trials, and the states needed to go on. JSON and safetensors, no pickle."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rmuse_interp.baselines.trainables import Trainable
from rmuse_interp.data.store import write_json

UNFINISHED: Final = ".unfinished"
"""Subfolder of a baseline that is still trained; gone once it is finished."""


class Journal:
    """The trials of one training in its folder; what is there of another training is left behind.

    Args:
        folder: the baseline's.
        digest: of all that the training depends on.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self._home, self._digest = folder / UNFINISHED, digest
        self.trials: list[dict[str, Any]] = []
        self._best = 0
        try:
            record = json.loads((self._home / "trials.json").read_text(encoding="utf-8"))
            if record["digest"] == digest:
                self.trials, self._best = list(record["trials"]), int(record["best"])
                for index in {self._best, len(self.trials) - 1}:
                    load_file(self._path(index))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            self.trials = []  # none there, damaged, or of another training
        if not self.trials:
            shutil.rmtree(self._home, ignore_errors=True)
        self._home.mkdir(parents=True, exist_ok=True)

    def resume(self, trainable: Trainable, optimiser: torch.optim.Optimizer | None) -> None:
        """Take up what the last trial left, on a trainable that was just put on the model."""
        tensors = load_file(self._path(len(self.trials) - 1))
        trainable.load(_part(tensors, "state"))
        if optimiser is None:
            return
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _part(tensors, "optimiser").items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = tensor
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})

    def add(
        self,
        trial: Mapping[str, Any],
        trainable: Trainable,
        optimiser: torch.optim.Optimizer | None,
        best: bool,
    ) -> None:
        """Keep a trial and what it left; states that neither going on nor the best trial needs are deleted.

        Args:
            trial: plain JSON.
            trainable: as the trial left it.
            optimiser: whose moments are kept too.
            best: whether it is the best so far.
        """
        tensors = {f"state/{name}": tensor.contiguous() for name, tensor in trainable.state().items()}
        if optimiser is not None:
            tensors |= {
                f"optimiser/{index}.{name}": tensor.detach().cpu().contiguous()
                for index, moments in optimiser.state_dict()["state"].items()
                for name, tensor in moments.items()
            }
        index = len(self.trials)
        save_file(tensors, self._path(index))
        self.trials.append(dict(trial))
        if best:
            self._best = index
        record = {"digest": self._digest, "trials": self.trials, "best": self._best}
        write_json(self._home / "trials.json", record)
        for path in self._home.glob("*.safetensors"):
            if path not in (self._path(index), self._path(self._best)):
                path.unlink()

    def best_state(self) -> dict[str, Tensor]:
        """What the best trial left."""
        return _part(load_file(self._path(self._best)), "state")

    def close(self) -> None:
        """Drop it all, once the baseline is written."""
        shutil.rmtree(self._home, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self._home / f"{index:03d}.safetensors"


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}
