"""Which block to steer: each candidate is tried on fitting queries with the gate held open."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rich.progress import Progress

from rmuse_interp.data import Benchmark, sample
from rmuse_interp.edits import Modality
from rmuse_interp.evaluate import measure, transcribe
from rmuse_interp.fitting.gathering import SHORT
from rmuse_interp.models.lens import LensModel
from rmuse_interp.rmuse import Evidence, calibrated_edit

CANDIDATES: Final = 6
"""Most blocks that `try_layers` tries."""
TRIALS: Final = 16
"""Free fitting questions per block tried, and half as many short ones."""


@dataclass(frozen=True)
class LayerTrial:
    """What steering one block does to fitting queries, the gate held open.

    Attributes:
        layer: 0-based block.
        leaked: share of responses that tell a forgotten attribute.
        refused: share that are well-formed refusals.
        verbatim: share that are refusals of the pool to the letter: no mixture of two.
        n: number of queries.
    """

    layer: int
    leaked: float
    refused: float
    verbatim: float
    n: int


def try_layers(
    model: LensModel,
    benchmark: Benchmark,
    evidence: Mapping[Modality, Evidence],
    modality: Modality,
    gate_layer: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[LayerTrial]:
    """One trial per candidate block, best first: what is said decides, then whether one pass is enough, then depth.

    Candidates are at most `CANDIDATES` blocks of the upper two thirds, evenly spaced, the last one among them.
    """
    first, last = model.n_layers // 3, model.n_layers - 1
    n = min(CANDIDATES, last - first + 1)
    candidates = sorted({round(first + (last - first) * i / max(1, n - 1)) for i in range(n)})
    mine = [e for e in benchmark.fit_forget if e.modality == modality]
    asked = [
        *sample([e for e in mine if e.kind == "generation"], TRIALS, seed),
        *sample([e for e in mine if e.kind in SHORT], TRIALS // 2, seed),
    ]
    pool = {*benchmark.refusals_cot, *benchmark.refusals_direct}
    longest = max(len(model.tokenizer(r).input_ids) for r in pool) + 8
    task = progress.add_task(f"layers, {modality}", total=len(candidates)) if progress is not None else None
    found = []
    for layer in candidates:
        edit, _ = calibrated_edit(evidence[modality], modality, [layer], None)
        answers = model.respond(
            [e.prompt() for e in asked],
            [e.image for e in asked],
            edit,
            max_new_tokens=longest,
            batch_size=len(asked),
        )
        said = [
            transcribe(e, "trial", r.text, benchmark.delimiters) for e, r in zip(asked, answers, strict=True)
        ]
        metrics = measure(said, benchmark, {e.id: e for e in asked})
        leaked, refused = (metrics[name].value or 0.0 for name in ("ril", "refusal_rate"))
        verbatim = 100 * sum(r.text in pool for r in answers) / len(answers)
        found.append(LayerTrial(layer, leaked, refused, verbatim, len(asked)))
        if progress is not None and task is not None:
            progress.advance(task)
    return sorted(found, key=lambda t: (t.leaked - t.refused, -t.verbatim, t.layer < gate_layer, -t.layer))
