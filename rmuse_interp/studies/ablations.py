"""Ablations of both presets as edits of their plans."""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rmuse_interp.data import SPLITS, Benchmark, Example, sample
from rmuse_interp.data.spans import span_masks
from rmuse_interp.edits.plan import Modality, Plan
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.method.rmuse import PRESETS, SPANS, Evidence, RMuse, calibrated_edit, paper_edit
from rmuse_interp.parts.angle import FixedFraction
from rmuse_interp.runs.run import Method, choose
from rmuse_interp.studies.common import (
    Record,
    answered,
    bars,
    opened,
    operators_of,
    provenance,
    rows_of,
)
from rmuse_interp.studies.fits import evidence_of, preset_of

SCHEMA = "rmuse-ablations/1"
STEM = "ablations"
LEFT_OUT = {"cot": "w/o reasoning span", "answer": "w/o answer span"}


@dataclass(frozen=True, eq=False)
class Variant:
    """One edit of a preset's plan: its name in the paper's table, the edit in words, and the plan."""

    preset: str
    ablation: str
    edit: str
    plan: Plan

    @property
    def name(self) -> str:
        """Of the method in the rows."""
        return f"{self.preset}/{self.ablation.replace('w/o ', 'without ').replace(' ', '-')}"


def run(given: argparse.Namespace) -> Record:
    """The whole record of `ablations.json`.

    Raises:
        RMuseError: bad arguments or a missing file, before the first long pass.
    """
    lens, benchmark = opened(given, given.forget)
    questions = asked_of(benchmark, given.limit, given.seed)
    began = time.monotonic()
    with bars() as progress:
        found = variants(lens, benchmark, given, progress)
        methods = [Method("vanilla", lens), *(Method(v.name, lens, v.plan) for v in found)]
        answers = answered(given, STEM, methods, questions, benchmark, progress)
    labels = {v.name: {"preset": v.preset, "ablation": v.ablation} for v in found}
    labels["vanilla"] = {"preset": "vanilla", "ablation": "none"}
    rows = rows_of(methods, answers, benchmark, lens, given.seed)
    return {
        "schema": SCHEMA,
        "provenance": provenance(
            given, lens, benchmark, began, n={split: len(asked) for split, asked in questions.items()}
        ),
        "variants": [
            {"preset": v.preset, "ablation": v.ablation, "edit": v.edit, "plan": v.plan.describe()}
            for v in found
        ],
        "rows": [labels[row["method"]] | row for row in rows],
    }


def asked_of(benchmark: Benchmark, limit: int, seed: int) -> dict[str, list[Example]]:
    """`choose`, and more multiple choice where the paper's table has it: half of `limit` on forget and retain."""
    found = choose(benchmark, limit, seed)
    for split in ("forget", "retain"):
        known = {e.id for e in found[split]}
        choices = [e for e in benchmark.scoring(split) if e.kind == "classification"]
        more = max(0, limit // 2 - sum(e.id in known for e in choices))
        rest = [e for e in choices if e.id not in known]
        found[split] += sample(rest, more, seed) if more and rest else []
    return found


def variants(
    lens: LensModel, benchmark: Benchmark, given: argparse.Namespace, progress: Progress | None = None
) -> list[Variant]:
    """Both presets and their ablations, all from the same evidence."""
    evidence = evidence_of(given, lens, benchmark, progress)
    paper, calibrated = (preset_of(given, lens, benchmark, evidence, preset, progress) for preset in PRESETS)
    begins = {m: answer_begins(lens, benchmark, found.refusals) for m, found in evidence.items()}
    return [
        *of_paper(paper, evidence, benchmark.prefixes[0]),
        *of_calibrated(calibrated, evidence, begins),
    ]


def of_paper(fitted: RMuse, evidence: Mapping[Modality, Evidence], prefix: str) -> list[Variant]:
    """The literal method and its ablations."""
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
    return [Variant("paper", *one) for one in found]


def of_calibrated(
    fitted: RMuse, evidence: Mapping[Modality, Evidence], begins: Mapping[Modality, Mapping[int, int]]
) -> list[Variant]:
    """The repaired method and its ablations."""
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
    return [Variant("calibrated", *one) for one in found]


def steered(plan: Plan, modality: Modality) -> list[int]:
    """The blocks that a fitted plan steers for one kind of query."""
    return next(edit.layers for edit in plan if edit.modality == modality)


def tokens_of(evidence: Evidence, span: str, begins: Mapping[int, int]) -> Evidence:
    """The evidence with the refusals' states of one span alone: what stands before the answer, or the rest.

    The last prompt token belongs to whatever comes first; refusals without reasoning are all answer.
    """
    first = torch.tensor([begins.get(t, 0) for t in evidence.template.tolist()])
    kept = (evidence.position < first) if span == "cot" else (evidence.position >= first)
    return replace(
        evidence,
        tokens=evidence.tokens[kept],
        position=evidence.position[kept],
        template=evidence.template[kept],
    )


def answer_begins(lens: LensModel, benchmark: Benchmark, refusals: Sequence[str]) -> dict[int, int]:
    """Number of a refusal with reasoning → position of its answer's first token; 0 is the last prompt token."""
    reasoned = {i: text for i, text in enumerate(refusals) if benchmark.delimiters[1] in text}
    if not reasoned:
        return {}
    texts = list(reasoned.values())
    encoded = lens.encode([benchmark.prefixes[0]] * len(texts), None, texts)
    tails = [f" {refusal}" for refusal in texts]
    heads = [text.removesuffix(tail) for text, tail in zip(encoded.texts, tails, strict=True)]
    masks = span_masks(lens.processor, encoded, heads, tails, delimiters=benchmark.delimiters)
    return {
        number: int(row.nonzero()[0]) - int(masks.prompt_end[i])
        for i, (number, row) in enumerate(zip(reasoned, masks.answer, strict=True))
    }


def show(record: Record) -> None:
    """What the people to forget and the retained are told, per ablation."""
    columns = (
        ("test", "ril"),
        ("test", "refusal_rate"),
        ("test", "malformed_rate"),
        ("test", "classification"),
        ("retain_test", "exact"),
        ("retain_test", "malformed_rate"),
        ("retain_test", "fire_rate"),
        ("reasoning", "exact"),
    )
    table = Table(title="percent, greedy answers", box=None)
    for heading in ("preset", "", *(f"{split}\n{name.removesuffix('_rate')}" for split, name in columns)):
        table.add_column(heading, no_wrap=True)
    cells = {(r["preset"], r["ablation"], r["split"]): r for r in record["rows"] if r["split"] in SPLITS}
    for preset, ablation in dict.fromkeys(key[:2] for key in cells):
        found = (cells.get((preset, ablation, split), {}).get(name) for split, name in columns)
        table.add_row(preset, ablation, *("–" if v is None else f"{v['value']:.1f}" for v in found))
    Console(width=max(130, Console().width)).print(table)
