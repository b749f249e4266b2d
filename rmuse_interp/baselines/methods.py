"""`BASELINES`: the trained baselines by name, each an objective and what it trains.

Learning rates, ranks and weights are those of the papers; `train` finds the best multiple of the rate for a given
model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rmuse_interp import RMuseError
from rmuse_interp.baselines.batches import Batch
from rmuse_interp.baselines.losses import distance, divergence, npo, random_direction, row_loss, token_loss
from rmuse_interp.baselines.pruning import output_names
from rmuse_interp.baselines.trainables import LowRank, Trainable, Weights, linear_names
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.models.batches import reading

Group = Literal["forget", "refusal", "retain", "reasoning"]

BETA: Final = 0.4
"""β of NPO."""
GAMMA: Final = 1.0
"""Weight of the retain loss of PO."""
STEERING: Final = 6.5
"""c of R2MU: norm of the random vector toward which forget states are moved."""
RETAINING: Final = 1.7
"""α of R2MU: weight of the retain states."""
DEPTH: Final = 7 / 32
"""Block whose states R2MU steers, as a share of the depth: RMU's block 7 of 32; this and the two below are trained."""


@dataclass(frozen=True, eq=False)
class Step:
    """The inputs of an objective.

    Attributes:
        lens: the model, in training.
        trainable: the trainable on it.
        batches: one batch per group that the baseline uses.
        seed: seed of the objective's random draws.
    """

    lens: LensModel
    trainable: Trainable
    batches: Mapping[Group, Batch]
    seed: int = 0

    def logits(self, group: Group) -> Float[Tensor, "batch tokens vocab"]:
        """Return the logits of the current model."""
        return self.lens.hf(**self.batches[group].encoding, use_cache=False).logits

    def loss(self, group: Group) -> Float[Tensor, ""]:
        """Return L, the mean negative log-likelihood of the group's responses."""
        return token_loss(self.logits(group), self.batches[group].labels)

    def original(self, read: Callable[[], Tensor]) -> Tensor:
        """Return the result of `read` on the model before training."""
        with self.trainable.original(), torch.no_grad():
            return read()


@dataclass(frozen=True)
class Baseline:
    """A trained baseline.

    Attributes:
        title: its name in the papers.
        summary: one line on what it does.
        paper: arXiv number.
        setting: the paper's learning rate; for pruning, its share of neurons.
        groups: groups of rows that it trains on.
        objective: loss to minimise; None for pruning, which trains nothing.
        trains: "adapters" (LoRA, all linear layers of the language model), "weights" (those linear layers themselves),
            "three blocks" (the linear layers of three blocks only).
        masked: whether only weights that matter more to the forget rows than to the retain rows may move.
    """

    title: str
    summary: str
    paper: str
    setting: float
    groups: tuple[Group, ...]
    objective: Callable[[Step], Tensor] | None
    trains: Literal["adapters", "weights", "three blocks", "neurons"] = "adapters"
    masked: bool = False


def ga(step: Step) -> Float[Tensor, ""]:
    """Gradient ascent: −L of the forget rows."""
    return -step.loss("forget")


def ga_diff(step: Step) -> Float[Tensor, ""]:
    """−L of the forget rows + L of the retain rows."""
    return step.loss("retain") - step.loss("forget")


def kl_min(step: Step) -> Float[Tensor, ""]:
    """−L of the forget rows + KL(original ‖ trained) on the retain rows."""
    reference = step.original(lambda: step.logits("retain"))
    return divergence(step.logits("retain"), reference, step.batches["retain"].labels) - step.loss("forget")


def npo_loss(step: Step) -> Float[Tensor, ""]:
    """Negative preference optimisation against the original model."""
    labels = step.batches["forget"].labels
    reference = row_loss(step.original(lambda: step.logits("forget")), labels)
    return npo(row_loss(step.logits("forget"), labels), reference, BETA)


def po(step: Step) -> Float[Tensor, ""]:
    """Preference optimisation: L of refusals to the forget questions + γ · L of the retain rows."""
    return step.loss("refusal") + GAMMA * step.loss("retain")


def r2mu(step: Step) -> Float[Tensor, ""]:
    """Move forget questions, answers and traces to c·u; keep the states of retain rows and of general reasoning."""
    layer = steered_layer(step.lens.n_layers)
    forget = step.batches["forget"]
    states = read_states(step.lens, forget, layer)
    target = STEERING * random_direction(step.lens.d_model, step.seed, states)
    loss = distance(states, target, forget.rest) + distance(states, target, forget.trace)
    kept: dict[Group, float] = {"retain": RETAINING, "reasoning": 1.0}
    for group, weight in kept.items():
        if group in step.batches:
            batch = step.batches[group]
            reference = step.original(partial(read_states, step.lens, batch, layer))
            loss = loss + weight * distance(read_states(step.lens, batch, layer), reference, batch.text)
    return loss


def steered_layer(n_layers: int) -> int:
    """Return the block whose states R2MU steers.

    >>> steered_layer(32), steered_layer(8), steered_layer(3)
    (7, 2, 2)
    """
    return min(n_layers - 1, max(2, round(DEPTH * n_layers)))


class _Read(Exception):
    """Carries the states that were read and stops the pass, since the blocks above need not run."""

    def __init__(self, states: Tensor) -> None:
        self.states = states


def read_states(lens: LensModel, batch: Batch, layer: int) -> Float[Tensor, "batch tokens d"]:
    """Read the output of a block; the pass ends there."""

    def stop(_layer: int, states: Tensor) -> None:
        raise _Read(states)

    try:
        with reading(lens.layout, [layer], stop):
            lens.hf(**batch.encoding, use_cache=False)
    except _Read as found:
        return found.states
    raise RMuseError(f"{lens.name}: block {layer} was required to run in a forward pass, it did not")


BASELINES: Final[Mapping[str, Baseline]] = {
    "ga": Baseline("GA", "make forget responses unlikely", "2210.01504", 2e-5, ("forget",), ga),
    "ga_diff": Baseline(
        "GA_Diff",
        "make forget responses unlikely, retain ones likely",
        "2203.12817",
        2e-5,
        ("forget", "retain"),
        ga_diff,
    ),
    "kl_min": Baseline(
        "KL_Min",
        "make forget responses unlikely, retain ones as they were",
        "2401.06121",
        2e-5,
        ("forget", "retain"),
        kl_min,
    ),
    "npo": Baseline(
        "NPO",
        "make forget responses unlikely, less so once they are",
        "2404.05868",
        2e-5,
        ("forget",),
        npo_loss,
    ),
    "po": Baseline(
        "PO", "learn refusals, and retain responses", "2401.06121", 1e-5, ("refusal", "retain"), po
    ),
    "mmunlearner": Baseline(
        "MMUnlearner",
        "GA_Diff on weights that matter more to forget rows",
        "2502.11051",
        1e-5,
        ("forget", "retain"),
        ga_diff,
        "weights",
        masked=True,
    ),
    "manu": Baseline(
        "MANU",
        "prune the neurons that forget rows use more",
        "2502.15910",
        0.03,
        ("forget", "retain"),
        None,
        "neurons",
    ),
    "r2mu": Baseline(
        "R2MU",
        "lead forgotten states and traces to a random one",
        "2506.12963",
        7.5e-5,
        ("forget", "retain", "reasoning"),
        r2mu,
        "three blocks",
    ),
}
"""The baselines by their names on the command line."""


def build(baseline: Baseline, lens: LensModel, seed: int) -> Trainable:
    """Put a baseline's trainable on the model, in place."""
    if baseline.trains == "adapters":
        return LowRank(lens, seed=seed)
    if baseline.trains == "neurons":
        return Weights(lens, output_names(lens))
    last = steered_layer(lens.n_layers)
    three = range(max(0, last - 2), last + 1)
    return Weights(lens, linear_names(lens, three if baseline.trains == "three blocks" else None))


def require_name(name: str) -> Baseline:
    """Return the baseline of this name.

    Raises:
        RMuseError: an unknown name; the message lists the names.
    """
    if name not in BASELINES:
        raise RMuseError(f"a trained baseline is one of {', '.join(BASELINES)}, got {name!r}")
    return BASELINES[name]
