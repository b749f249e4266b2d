"""Ablations of both presets as edits of their plans."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from rmuse_interp.data import Benchmark, Example, sample
from rmuse_interp.data.spans import span_masks
from rmuse_interp.edits.plan import Modality, Plan
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.method.rmuse import SPANS, Evidence, RMuse, calibrated_edit, paper_edit
from rmuse_interp.parts.angle import FixedFraction
from rmuse_interp.runs.run import choose
from rmuse_interp.studies.common import Record
from rmuse_interp.studies.fits import World
from rmuse_interp.studies.variants import Prepared, Variant, operators_of, study, tabulate

COLUMNS = (
    *(("test", name) for name in ("ril", "refusal_rate", "malformed_rate", "classification")),
    *(("retain_test", name) for name in ("exact", "malformed_rate", "fire_rate")),
    ("reasoning", "exact"),
)
LEFT_OUT = {"cot": "w/o reasoning span", "answer": "w/o answer span"}


Edited = tuple[str, str, Plan]
"""Name of an ablation in the paper's table, the edit as a text, and the edited plan."""


def run(given: argparse.Namespace) -> Record:
    """Make the record of `ablations.json`.

    Raises:
        RMuseError: bad arguments or a missing file, before the first long pass.
    """

    def prepare(world: World) -> Prepared:
        found = [Variant("vanilla", None, {"preset": "vanilla", "ablation": "none"})]
        said = []
        for preset, (ablation, edit, plan) in variants(world):
            name = f"{preset}/{ablation.replace('w/o ', 'without ').replace(' ', '-')}"
            labels = {"preset": preset, "ablation": ablation}
            found.append(Variant(name, plan, labels))
            said.append({**labels, "edit": edit, "plan": plan.describe()})
        return Prepared(found, {"variants": said})

    return study("ablations", given, lambda b: asked_of(b, given.limit, given.seed), prepare)


def asked_of(benchmark: Benchmark, limit: int, seed: int) -> dict[str, list[Example]]:
    """The questions of `choose`; multiple choice on forget and retain is topped up to `limit` / 2, as in the paper."""
    found = choose(benchmark, limit, seed)
    for split in ("forget", "retain"):
        known = {e.id for e in found[split]}
        choices = [e for e in benchmark.scoring(split) if e.kind == "classification"]
        more = max(0, limit // 2 - sum(e.id in known for e in choices))
        rest = [e for e in choices if e.id not in known]
        found[split] += sample(rest, more, seed) if more and rest else []
    return found


def variants(world: World) -> Iterator[tuple[str, Edited]]:
    """Both presets and their ablations, all fitted on the same evidence."""
    evidence, benchmark = world.evidence, world.benchmark
    begins = {m: answer_begins(world.lens, benchmark, found.refusals) for m, found in evidence.items()}
    for found in of_paper(world.preset("paper"), evidence, benchmark.prefixes[0]):
        yield "paper", found
    for found in of_calibrated(world.preset("calibrated"), evidence, begins):
        yield "calibrated", found


def of_paper(fitted: RMuse, evidence: Mapping[Modality, Evidence], prefix: str) -> list[Edited]:
    """The preset `paper` and its ablations."""
    plan = fitted.plan
    found = [
        ("full", "plan", plan),
        ("w/o RRS", 'plan.without("*.rrs")', plan.without("*.rrs")),
    ]
    for span, ablation in LEFT_OUT.items():
        rest = [s for s in SPANS if s != span]
        edits = {m: paper_edit(evidence[m], m, steered(plan, m), prefix, rest)[0] for m in evidence}
        found.append(
            (ablation, f"plan.replace(image=paper_edit(…, spans={rest}), text=…)", plan.replace(**edits))
        )
    half = plan.replace(**{"*.angle": FixedFraction(0.5)})
    found.append(("w/o ACS", 'plan.replace(**{"*.angle": FixedFraction(0.5)})', half))
    found.append(("w/o gate", 'plan.without("*.gate")', plan.without("*.gate")))
    return found


def of_calibrated(
    fitted: RMuse, evidence: Mapping[Modality, Evidence], begins: Mapping[Modality, Mapping[int, int]]
) -> list[Edited]:
    """The preset `calibrated` and its ablations."""
    plan, gates = fitted.plan, fitted.gates
    found = [
        ("full", "plan", plan),
        ("w/o RRS", 'plan.without("*.rrs")', plan.without("*.rrs")),
    ]
    for span, ablation in LEFT_OUT.items():
        rest = next(s for s in SPANS if s != span)
        edits = {
            m: calibrated_edit(tokens_of(evidence[m], rest, begins[m]), m, steered(plan, m), gates[m])[0]
            for m in evidence
        }
        found.append(
            (ablation, f"plan.replace(image=calibrated_edit(<{rest} tokens>), text=…)", plan.replace(**edits))
        )
    half = plan.replace(**{at: o.changed(fraction=0.5) for at, o in operators_of(plan).items()})
    found.append(("w/o ACS", "fraction=0.5 in every transport", half))
    found.append(("w/o gate", 'plan.without("*.gate")', plan.without("*.gate")))
    return found


def steered(plan: Plan, modality: Modality) -> list[int]:
    """The blocks that a fitted plan steers for one kind of query."""
    return next(edit.layers for edit in plan if edit.modality == modality)


def tokens_of(evidence: Evidence, span: str, begins: Mapping[int, int]) -> Evidence:
    """The evidence, its refusal states limited to one span: the tokens before the answer (`cot`), or the rest.

    The last prompt token belongs to the span that comes first; a refusal without reasoning is all answer.
    """
    first = torch.tensor([begins.get(t, 0) for t in evidence.template.tolist()])
    kept = (evidence.position < first) if span == "cot" else (evidence.position >= first)
    return replace(
        evidence,
        tokens=evidence.tokens[kept],
        position=evidence.position[kept],
        template=evidence.template[kept],
        run=None if evidence.run is None else evidence.run[kept],
    )


def answer_begins(lens: LensModel, benchmark: Benchmark, refusals: Sequence[str]) -> dict[int, int]:
    """Number of a refusal with reasoning → position of its answer's first token; 0 is the last prompt token."""
    reasoned = {i: text for i, text in enumerate(refusals) if benchmark.delimiters[1] in text}
    if not reasoned:
        return {}
    texts = list(reasoned.values())
    encoded = lens.encode([benchmark.prefixes[0]] * len(texts), None, texts)
    masks = span_masks(
        lens.processor,
        encoded,
        encoded.heads,
        encoded.tails,
        delimiters=benchmark.delimiters,
        expansions=encoded.expansions,
        image_id=lens.image_token_id,
    )
    return {
        number: int(row.nonzero()[0]) - int(masks.prompt_end[i])
        for i, (number, row) in enumerate(zip(reasoned, masks.answer, strict=True))
    }


def show(record: Record) -> None:
    """Print what is answered about people to forget and about retained people, one line per ablation."""
    title = "percent, greedy answers"
    tabulate(title, record["rows"], ("preset", ""), lambda row: [row["preset"], row["ablation"]], COLUMNS)
