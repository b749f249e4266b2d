"""Search for blocks to steer and targets to steer to: every choice is tried on fitting queries with the gate held open.

`try_layers` looks for one block to steer, all else as in the paper and the preset. `search` continues from there, one
coordinate after another: single blocks, pairs of neighbours, targets (`TARGETS`), and the energy of the RRS.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from rich.progress import Progress

from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark, sample
from rmuse_interp.edits.plan import Modality, Plan
from rmuse_interp.evaluate.scores import measure
from rmuse_interp.fitting.gathering import SHORT
from rmuse_interp.fitting.validation import answers
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.method.rmuse import ENERGY, Evidence, calibrated_edit, subspaces_at
from rmuse_interp.method.targets import TARGETS
from rmuse_interp.parts.retain import Subspaces

CANDIDATES: Final = 6
"""Maximum number of single blocks tried."""
TRIALS: Final = 16
"""Number of open fitting questions per trial; half as many short ones are added."""
PAIRED: Final = 2
"""Number of best single blocks that are tried together with each neighbour."""
ENERGIES: Final = (ENERGY, 0.5, 0.95)
"""Shares of the variance that the RRS may hold; the paper's comes first."""
TARGET: Final = next(iter(TARGETS))
"""The default target of steering."""


@dataclass(frozen=True)
class Choice:
    """One choice of blocks, target and energy, and its effect on fitting queries with the gate held open.

    Attributes:
        layers: 0-based blocks steered.
        target: name of the target of steering, in `TARGETS`.
        energy: share of the variance that the RRS holds.
        ranks: ranks of the RRS, one per block.
        leaked: percent of the responses that reveal a forgotten attribute (RIL).
        refused: percent that are well-formed refusals.
        verbatim: percent that equal a refusal of the pool exactly, so that no two are mixed.
        inside: percent of the squared update of the last prompt token inside the widest RRS tried; the damage to
            reasoning if the gate opened by mistake.
        n: number of queries.
    """

    layers: tuple[int, ...]
    target: str
    energy: float
    ranks: tuple[int, ...]
    leaked: float
    refused: float
    verbatim: float
    inside: float
    n: int

    @property
    def words(self) -> tuple[float, float]:
        """Return the rank key of the responses, smaller is better: leakage minus refusals, then mixtures."""
        return (self.leaked - self.refused, -self.verbatim)


@dataclass(frozen=True)
class Chosen:
    """The best choice, the other ones, and the reasons, one sentence per coordinate."""

    best: Choice
    trials: tuple[Choice, ...]
    why: tuple[str, ...]


def try_layers(
    model: LensModel,
    benchmark: Benchmark,
    evidence: Mapping[Modality, Evidence],
    modality: Modality,
    gate_layer: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Choice]:
    """Try every candidate block, best first: by the responses, then by whether one pass is enough, then by depth.

    Candidates are at most `CANDIDATES` evenly spaced blocks of the upper two thirds, including the last block.
    """
    singles = [one for one in _singles(model.n_layers) if one[0] in model.layout.always]
    tried = _Tried(model, benchmark, evidence[modality], modality, seed, progress, len(singles))
    return _ranked((tried(layers) for layers in singles), gate_layer)


def search(
    model: LensModel,
    benchmark: Benchmark,
    evidence: Mapping[Modality, Evidence],
    modality: Modality,
    gate_layer: int,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Chosen:
    """Choose blocks, target and rank of the RRS, one after the other, on fitting queries alone.

    The responses decide each. If two choices tie, blocks follow the rules of `try_layers` (one rather than two), the
    preset's own target stays, and the chosen RRS is the one that the update disturbs least.

    Args:
        model: from `load_model`.
        benchmark: from `load_benchmark`, or what `elicit` made of it.
        evidence: from `gather`.
        modality: kind of query.
        gate_layer: block that the gate reads; steering this block or those above needs one pass only.
        layers: blocks to steer; None lets the search choose.
        seed: seed of the sampling.
        progress: a running progress bar to add a line to.
    """
    always = model.layout.always
    singles = [one for one in _singles(model.n_layers) if one[0] in always]
    if layers is not None:
        singles = [tuple(layers)]
    more = len(TARGETS) + len(ENERGIES) - 2 + (2 * PAIRED if layers is None else 0)
    tried = _Tried(model, benchmark, evidence[modality], modality, seed, progress, len(singles) + more)
    blocks = _ranked((tried(one) for one in singles), gate_layer)
    if layers is None:
        near = [
            pair
            for t in blocks[:PAIRED]
            for pair in ((t.layers[0] - 1, t.layers[0]), (t.layers[0], t.layers[0] + 1))
            if {*pair} <= {*always}
        ]
        blocks = _ranked((*blocks, *(tried(pair) for pair in dict.fromkeys(near))), gate_layer)
    best = blocks[0]
    why = [
        f"{_blocks(best)}: given"
        if layers is not None
        else f"{_blocks(best)}: {_said(best)}, the best of {len(blocks)} choices"
        + _against(best, blocks, "another says as much: one pass, few blocks and depth decide")
    ]
    targets = sorted(tried.all((best.layers, name, ENERGY) for name in TARGETS), key=lambda t: t.words)
    best = targets[0]
    why.append(
        f"target {best.target}: {_said(best)}, the best of {len(targets)}"
        + _against(best, targets, "another says as much: the earlier one stays")
    )
    ranks = sorted(
        tried.all((best.layers, best.target, energy) for energy in ENERGIES),
        key=lambda t: (*t.words, t.inside),
    )
    best = ranks[0]
    why.append(
        f"energy {best.energy:g}: {_said(best)}, the best of {len(ranks)}"
        + _against(best, ranks, "another says as much: the update leaves more of the RRS alone")
    )
    why += tried.failed
    return Chosen(best, tuple(tried.done.values()), tuple(why))


class _Tried:
    """Runs each choice once, all on the same queries."""

    def __init__(
        self,
        model: LensModel,
        benchmark: Benchmark,
        evidence: Evidence,
        modality: Modality,
        seed: int,
        progress: Progress | None,
        total: int,
    ) -> None:
        self.model, self.benchmark, self.evidence, self.modality = model, benchmark, evidence, modality
        mine = [e for e in benchmark.fit_forget if e.modality == modality]
        self.asked = [
            *sample([e for e in mine if e.kind == "generation"], TRIALS, seed),
            *sample([e for e in mine if e.kind in SHORT], TRIALS // 2, seed),
        ]
        self.pool = {*benchmark.refusals_cot, *benchmark.refusals_direct}
        self.longest = max(len(model.tokenizer(r).input_ids) for r in self.pool) + 8
        self.done: dict[tuple[tuple[int, ...], str, float], Choice] = {}
        self.failed: list[str] = []
        self._advance = _line(progress, f"trials, {modality}", total)

    def __call__(self, layers: tuple[int, ...], target: str = TARGET, energy: float = ENERGY) -> Choice:
        """Return the trial of one choice."""
        key = (layers, target, energy)
        if key not in self.done:
            self.done[key] = self._try(*key)
            self._advance()
        return self.done[key]

    def all(self, keys: Iterable[tuple[tuple[int, ...], str, float]]) -> list[Choice]:
        """Return the trials of some choices; a choice that cannot be built is left out and named in `failed`."""
        found = []
        for key in keys:
            try:
                found.append(self(*key))
            except RMuseError as error:
                self.failed.append(f"target {key[1]}, energy {key[2]:g} is out: {error}")
        return found

    def _try(self, layers: tuple[int, ...], target: str, energy: float) -> Choice:
        edit, fitted = calibrated_edit(
            self.evidence, self.modality, layers, None, TARGETS[target], energy=energy
        )
        asked = (self.model, self.benchmark, self.asked, Plan([edit]))
        said = list(answers(*asked, max_new_tokens=self.longest, batch_size=len(self.asked)).values())
        metrics = measure(said, self.benchmark, {e.id: e for e in self.asked})
        leaked, refused = (metrics[name].value or 0.0 for name in ("ril", "refusal_rate"))
        verbatim = 100 * sum(row.response in self.pool for row in said) / len(said)
        ranks = tuple(fitted.at(self.modality, layer)[1].rank for layer in layers)
        inside = self._inside(layers, target, fitted)
        return Choice(layers, target, energy, ranks, leaked, refused, verbatim, inside, len(self.asked))

    def _inside(self, layers: tuple[int, ...], target: str, fitted: Subspaces) -> float:
        """Compute `Σ‖P Δ‖² / Σ‖Δ‖²` over the last prompt tokens of forget queries, P of the widest RRS; percent."""
        prompts = self.evidence.readouts["last"]
        prompts = prompts.select([i for i in prompts.ids if i in self.evidence.forget])
        part = whole = length = 0.0
        for layer in layers:
            unlearning, retain = fitted.at(self.modality, layer)
            operator = TARGETS[target](self.evidence, layer, unlearning).keeping(retain.subspace)
            widest = subspaces_at(self.evidence, layer, literal=False, energy=max(ENERGIES))[1].subspace
            states = prompts.at(layer)
            update = operator(states, torch.zeros(len(states), dtype=torch.long)) - states
            part += float(widest.project(update).square().sum())
            whole += float(update.square().sum())
            length += float(states.square().sum())
        # What is shorter is the rounding of float32: nothing was moved.
        return 100 * part / whole if whole > 1e-10 * length else 0.0


def _singles(n_layers: int) -> list[tuple[int, ...]]:
    """List the single blocks to try.

    >>> _singles(8)
    [(2,), (3,), (4,), (5,), (6,), (7,)]
    """
    first, last = n_layers // 3, n_layers - 1
    n = min(CANDIDATES, last - first + 1)
    return [(b,) for b in sorted({round(first + (last - first) * i / max(1, n - 1)) for i in range(n)})]


def _ranked(trials: Iterable[Choice], gate_layer: int) -> list[Choice]:
    """Sort trials, best first: by the responses, then by whether one pass is enough, fewer blocks, deeper blocks."""
    return sorted(trials, key=lambda t: (*t.words, min(t.layers) < gate_layer, len(t.layers), -max(t.layers)))


def _blocks(trial: Choice) -> str:
    return f"block{'s' * (len(trial.layers) > 1)} {', '.join(map(str, trial.layers))}"


def _said(trial: Choice) -> str:
    return f"leaks {trial.leaked:.3g} %, refuses {trial.refused:.3g} %, {trial.verbatim:.3g} % verbatim"


def _against(best: Choice, ranked: Sequence[Choice], tie: str) -> str:
    """Compare the best choice with the next: by how much it is better, or what broke the tie."""
    if len(ranked) < 2:
        return ""
    after = ranked[1]
    return f" ({tie})" if after.words == best.words else f" (the next: {_said(after)})"


def _line(progress: Progress | None, label: str, total: int) -> Callable[[], None]:
    """Add a line to a progress bar and return the function that advances it."""
    if progress is None:
        return lambda: None
    return functools.partial(progress.advance, progress.add_task(label, total=total))
