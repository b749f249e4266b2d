"""Checkpoints of an unfinished training: its trials and the states to resume from. JSON and safetensors, no pickle."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from rmuse_interp.baselines.trainables import Trainable
from rmuse_interp.baselines.trials import Trial, best
from rmuse_interp.data.store import Store

UNFINISHED: Final = ".unfinished"
"""Subfolder of a baseline still in training; deleted once it is finished."""


class Journal:
    """The trials of one training, stored in its folder; those of another training are discarded.

    Args:
        folder: the baseline's folder.
        of: digest of everything that the training depends on.
    """

    def __init__(self, folder: Path, of: str) -> None:
        self._home = folder / UNFINISHED
        self._kept = Store(self._home / "trials.jsonl", of)
        self.trials: list[Trial] = []
        while (row := self._kept.get(len(self.trials))) is not None:
            self.trials.append(Trial(**row))
        if not self.trials or any(self._kept.tensors(index) is None for index in self._needed()):
            self.trials = []  # missing, damaged, or from another training
            self.close()
            self._kept = Store(self._home / "trials.jsonl", of)

    def resume(self, trainable: Trainable, optimiser: torch.optim.Optimizer | None) -> None:
        """Restore the state of the last trial on a trainable just put on the model."""
        tensors = self._kept.tensors(len(self.trials) - 1) or {}
        trainable.load(_part(tensors, "state"))
        if optimiser is None:
            return
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _part(tensors, "optimiser").items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = tensor
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})

    def add(self, trial: Trial, trainable: Trainable, optimiser: torch.optim.Optimizer | None) -> None:
        """Store a trial and its state; states needed neither to resume nor for the best trial are deleted.

        Args:
            trial: the trial to add.
            trainable: the trainable after the trial.
            optimiser: optimiser whose moments are stored too.
        """
        tensors = {f"state/{name}": tensor for name, tensor in trainable.state().items()}
        if optimiser is not None:
            tensors |= {
                f"optimiser/{index}.{name}": tensor
                for index, moments in optimiser.state_dict()["state"].items()
                for name, tensor in moments.items()
            }
        before = self._needed()
        self._kept.put(len(self.trials), asdict(trial), tensors)
        self.trials.append(trial)
        for index in before - self._needed():
            self._kept.drop_tensors(index)

    def best_state(self) -> dict[str, Tensor]:
        """Return the state after the best trial."""
        return _part(self._kept.tensors(self.trials.index(best(self.trials))) or {}, "state")

    def close(self) -> None:
        """Delete everything, once the baseline is written."""
        shutil.rmtree(self._home, ignore_errors=True)

    def _needed(self) -> set[int]:
        """Return the trials whose states are needed: the last, to resume, and the best, for the end."""
        return {len(self.trials) - 1, self.trials.index(best(self.trials))} if self.trials else set()


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}
