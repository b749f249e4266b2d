"""Search for blocks, target and protection: every choice is tried on fitting queries with the gate held open.

One coordinate after another: single blocks from the last one down, until some do it faultlessly and fluently; where none
does, targets (`TARGETS`) at the best of them, and what the RRS protects (`PROTECTIONS`). A wide search tries all blocks,
pairs of neighbouring ones, all targets, the energy of the RRS and weaker steering as well. First comes what does not
leak, then what is neither garbled nor unended but refuses, then fluency; ties go to one pass, few blocks and depth. The
winner is scored again on questions that chose nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rich.progress import Progress

from rmuse_interp.data import Benchmark
from rmuse_interp.data.store import JSON
from rmuse_interp.edits.plan import Modality
from rmuse_interp.fitting.trials import ENERGIES, Choice, Setting, Trials
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.method.rmuse import Evidence
from rmuse_interp.method.targets import PROTECTIONS, TARGETS

CANDIDATES: Final = 6
"""Maximum number of single blocks tried."""
PAIRED: Final = 2
"""Number of best single blocks that are tried together with each neighbour."""
STRENGTHS: Final = (1.0, 0.75)
"""Shares of the way that a wide search tries."""
TARGET: Final = next(iter(TARGETS))
"""The default target of steering."""
NARROW: Final = ("follow", "follow-one", "step")
"""Targets that every search tries."""
FLUENT: Final = 1.2
"""Perplexity ratio up to which a faultless choice is taken as it is."""
LEAST: Final = 3
"""The least number of single blocks that a search tries."""


@dataclass(frozen=True)
class Chosen:
    """The best choice, the other ones, and the reasons, one sentence per coordinate.

    Attributes:
        best: the setting chosen.
        trials: all trials.
        why: one sentence per coordinate.
        confirmed: what the choice does on questions that chose nothing, as in `Choice`; None without such questions.
        steady: percent of resamples of the questions in which no other trial does better.
    """

    best: Choice
    trials: tuple[Choice, ...]
    why: tuple[str, ...]
    confirmed: JSON | None = None
    steady: float = 100.0


def search(
    model: LensModel,
    benchmark: Benchmark,
    evidence: Mapping[Modality, Evidence],
    modality: Modality,
    gate_layer: int,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    wide: bool = True,
) -> Chosen:
    """Choose blocks, target, protection and strength, one after the other, on fitting queries alone.

    Args:
        model: from `load_model`.
        benchmark: from `load_benchmark`, or what `elicit` made of it.
        evidence: from `gather`.
        modality: kind of query.
        gate_layer: block that the gate reads; steering this block or those above needs one pass only.
        layers: blocks to steer; None lets the search choose.
        seed: seed of the sampling.
        progress: a running progress bar to add a line to.
        wide: whether to try pairs of blocks, all targets, protections, energies and strengths as well.
    """
    always = model.layout.always
    singles = [one for one in singles_of(model.n_layers) if one[0] in always]
    if layers is not None:
        singles = [tuple(layers)]
    names = [name for name in TARGETS if wide or name in NARROW]
    total = len(singles) + len(names) - 1 + (2 * PAIRED * (layers is None) + 5 if wide else 0)
    tried = Trials(model, benchmark, evidence[modality], modality, seed, progress, total)
    blocks: list[Choice] = []
    for one in reversed(singles):
        blocks = ranked((*blocks, *tried.all([Setting(one, TARGET)])), gate_layer)
        if not wide and len(blocks) >= LEAST and _good(blocks[0]):
            break
    if layers is None and wide:
        near = [
            pair
            for t in blocks[:PAIRED]
            for pair in ((t.layers[0] - 1, t.layers[0]), (t.layers[0], t.layers[0] + 1))
            if {*pair} <= {*always}
        ]
        pairs = tried.all(Setting(pair, TARGET) for pair in dict.fromkeys(near))
        blocks = ranked((*blocks, *pairs), gate_layer)
    best = blocks[0]
    why = [
        f"{_blocks(best)}: given"
        if layers is not None
        else f"{_blocks(best)}: {_said(best)}, the best of {len(blocks)} choices"
        + _against(best, blocks, "another says as much: one pass, few blocks and depth decide")
    ]
    here = Setting(best.layers, TARGET)

    def choose(what: str, settings: Iterable[Setting], tie: str, *, by_inside: bool = False) -> Choice:
        """Try some settings, return the best, and say why. Ties of words go by `inside` if asked, else by order."""
        options = sorted(
            tried.all(settings), key=lambda t: (*t.words, t.inside) if by_inside else tuple(t.words)
        )
        first = options[0]
        why.append(
            f"{what.format(first)}: {_said(first)}, the best of {len(options)}"
            + _against(first, options, f"another says as much: {tie}")
        )
        return first

    if wide or not _good(best):
        names_tried = (replace(here, target=name) for name in names)
        best = choose("target {0.target}", names_tried, "the earlier one stays")
        here = replace(here, target=best.target)
    if wide or not _good(best):
        protections = (replace(here, protect=name) for name in PROTECTIONS)
        best = choose("protecting {0.protect}", protections, "the earlier one stays")
        here = replace(here, protect=best.protect)
    if wide:
        energies = (replace(here, energy=energy) for energy in ENERGIES)
        tie = "the update leaves more of the RRS alone"
        best = choose("energy {0.energy:g}", energies, tie, by_inside=True)
        here = replace(here, energy=best.energy)
        strengths = (replace(here, strength=share) for share in STRENGTHS)
        best = choose("strength {0.strength:g}", strengths, "the full way stays")
        here = replace(here, strength=best.strength)
    confirmed = tried.confirmed(here)
    steady = tried.steadiness(here)
    return Chosen(best, tuple(tried.done.values()), (*why, *tried.failed), confirmed, steady)


def singles_of(n_layers: int) -> list[tuple[int, ...]]:
    """List the single blocks to try: at most `CANDIDATES`, evenly spaced in the upper two thirds, with the last one.

    >>> singles_of(8)
    [(2,), (3,), (4,), (5,), (6,), (7,)]
    """
    first, last = n_layers // 3, n_layers - 1
    n = min(CANDIDATES, last - first + 1)
    return [(b,) for b in sorted({round(first + (last - first) * i / max(1, n - 1)) for i in range(n)})]


def ranked(trials: Iterable[Choice], gate_layer: int) -> list[Choice]:
    """Sort trials, best first: by the responses, then by whether one pass is enough, fewer blocks, deeper blocks."""
    return sorted(trials, key=lambda t: (*t.words, min(t.layers) < gate_layer, len(t.layers), -max(t.layers)))


def _good(trial: Choice) -> bool:
    """Whether every answer is a whole, readable refusal, about as likely as the model's own."""
    return not trial.faulty and trial.ratio is not None and trial.ratio <= FLUENT


def _blocks(trial: Choice) -> str:
    return f"block{'s' * (len(trial.layers) > 1)} {', '.join(map(str, trial.layers))}"


def _said(trial: Choice) -> str:
    ratio = "" if trial.ratio is None else f", perplexity ratio {trial.ratio:.2f}"
    return (
        f"leaks {trial.leaked:.3g} %, refuses {trial.refused:.3g} %, garbled {trial.garbled:.3g} %, unended "
        f"{trial.unended:.3g} %{ratio}"
    )


def _against(best: Choice, options: Sequence[Choice], tie: str) -> str:
    """Compare the best choice with the next: by how much it is better, or what broke the tie."""
    if len(options) < 2:
        return ""
    after = options[1]
    return f" ({tie})" if after.words == best.words else f" (the next: {_said(after)})"
