"""Unlearning subspaces fitted on one span at a time: their geometry, and the answers when steered toward each."""

import argparse
from collections.abc import Mapping
from itertools import combinations

import torch

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.data import Benchmark
from rmuse_interp.diagnostics import subspace_overlap
from rmuse_interp.edits.plan import Modality, Plan
from rmuse_interp.maths.sphere import unit
from rmuse_interp.method.rmuse import CAP, ENERGY, Evidence, RMuse, subspaces_at
from rmuse_interp.method.targets import acs
from rmuse_interp.parts.unlearning import UnlearningSubspace, fit_unlearning
from rmuse_interp.runs.run import choose
from rmuse_interp.studies.common import Record, short
from rmuse_interp.studies.fits import World
from rmuse_interp.studies.variants import Prepared, Questions, Variant, study, tabulate

COLUMNS = (
    ("forget", "ril"),
    *(("test", name) for name in ("ril", "exact", "refusal_rate", "malformed_rate")),
    ("retain", "exact"),
    ("retain_test", "exact"),
    ("retain_test", "malformed_rate"),
)
SPANS = ("prompt_end", "reasoning", "answer", "hybrid")
SPLITS = ("forget", "test", "retain", "retain_test")
_OF_RESPONSE = {"reasoning": ("cot",), "answer": ("answer",), "hybrid": ("cot", "answer")}


def run(given: argparse.Namespace) -> Record:
    """Make the record of `span_ablation.json`.

    Raises:
        RMuseError: bad arguments or a missing file, before the first long pass.
    """

    def asked(benchmark: Benchmark) -> Questions:
        found = choose(benchmark, given.limit, given.seed)
        return {split: some for split, some in found.items() if split in SPLITS}

    def prepare(world: World) -> Prepared:
        evidence, fitted = world.evidence, world.preset("calibrated")
        subspaces = by_span(evidence)
        plans = variants(fitted, evidence, subspaces, given.seed)
        said = [{"span": name, "plan": plan.describe()} for name, plan in plans.items()]
        origin = {
            "n_fitted": {m: {s: fitted_on(found, s) for s in SPANS} for m, found in evidence.items()},
            "layers": {str(edit.modality): edit.layers for edit in fitted.plan},
        }
        every: dict[str, Plan | None] = {"vanilla": None, **plans}
        found = [Variant(name, plan, {"span": name}) for name, plan in every.items()]
        return Prepared(found, {"geometry": geometry_of(subspaces), "variants": said}, origin)

    return study("span_ablation", given, asked, prepare)


Fitted = dict[tuple[Modality, int, str], UnlearningSubspace]
"""Kind of query, block and span → its unlearning subspace."""


def by_span(evidence: Mapping[Modality, Evidence]) -> Fitted:
    """`U_un` of every kind of query, block and span, standardised as in `calibrated`."""
    return {
        (m, layer, span): fitted_at(found, layer, span)
        for m, found in evidence.items()
        for layer in found.layers
        for span in SPANS
    }


def fitted_at(evidence: Evidence, layer: int, span: str) -> UnlearningSubspace:
    """`U_un` of one block, fitted on one span.

    Raises:
        RMuseError: no forget query was read under both the prompt q and the prompt g ⊕ q.
    """
    if span != "prompt_end":
        return subspaces_at(evidence, layer, literal=False, spans=_OF_RESPONSE[span])[0]
    ids = both_prompts(evidence)
    if not ids:
        raise RMuseError(
            "forget queries read with and without a prefix were required, got none; fit on more of them"
        )
    positive, negative = (
        evidence.prefixed.select(ids).at(layer),
        evidence.readouts["last"].select(ids).at(layer),
    )
    nothing = torch.zeros_like(positive)
    return fit_unlearning(
        positive, negative, nothing, nothing, standardise="scale", energy=ENERGY, cap=CAP, ids=ids
    )


def both_prompts(evidence: Evidence) -> list[str]:
    """Ids of the forget queries whose last prompt token was read under q and under g ⊕ q."""
    read = {*evidence.readouts["last"].ids} & {*evidence.forget}
    return [name for name in evidence.prefixed.ids if name in read]


def fitted_on(evidence: Evidence, span: str) -> int:
    """Number of forget queries that a span's subspace is fitted on."""
    return len(both_prompts(evidence)) if span == "prompt_end" else len(evidence.refusal["answer"])


def variants(
    fitted: RMuse, evidence: Mapping[Modality, Evidence], subspaces: Fitted, seed: int
) -> dict[str, Plan]:
    """The plan of `calibrated`, steered toward the direction of each span, and toward a random one."""
    draw = torch.Generator().manual_seed(seed)
    found: dict[str, Plan] = {}
    for span in (*SPANS, "random"):
        edits = []
        for edit in fitted.plan:
            assert edit.modality is not None
            steer: dict[int, op.Operator] = {}
            for layer in edit.layers:
                own = subspaces[edit.modality, layer, "hybrid" if span == "random" else span]
                turn = acs(evidence[edit.modality], layer, own)
                if span == "random":
                    assert isinstance(turn, op.SlerpToward)
                    turn = op.SlerpToward(unit(torch.randn(own.subspace.d, generator=draw)), turn.angle)
                steer[layer] = turn.keeping(fitted.subspaces.at(edit.modality, layer)[1].subspace)
            placed = op.layerwise(steer).on(edit.tokens).given(edit.modality)
            edits.append(placed.when(edit.gate, edit.per).named(edit.modality))
        found[span] = Plan(edits, fitted.plan.fingerprint)
    return found


def geometry_of(subspaces: Fitted) -> list[Record]:
    """The overlap of each pair of spans' subspaces, at every block."""
    places = dict.fromkeys((modality, layer) for modality, layer, _ in subspaces)
    return [
        {
            "modality": m,
            "layer": layer,
            "first": a,
            "second": b,
            **overlap(subspaces[m, layer, a], subspaces[m, layer, b]),
        }
        for m, layer in places
        for a, b in combinations(SPANS, 2)
    ]


def overlap(first: UnlearningSubspace, second: UnlearningSubspace) -> Record:
    """Angles between two subspaces (degrees), and the cosines of their projections and of their directions."""
    found = subspace_overlap(first.subspace, second.subspace)
    ranks = first.rank, second.rank
    return {
        "ranks": list(ranks),
        "angles": [short(float(angle)) for angle in torch.rad2deg(found.angles)],
        "kernel_normalised": short(found.normalised),
        "null": {
            "mean": short(found.null.mean / (ranks[0] * ranks[1]) ** 0.5),
            "sd": short(found.null.sd / (ranks[0] * ranks[1]) ** 0.5),
        },
        "direction_cosine": short(float(first.direction @ second.direction)),
        "direction_null_sd": short(first.subspace.d**-0.5),
    }


def show(record: Record) -> None:
    """Print the effect of steering toward each span's direction."""
    title = "percent, greedy answers; gate and blocks of calibrated"
    tabulate(title, record["rows"], ["U_un from"], lambda row: [row["span"]], COLUMNS)
