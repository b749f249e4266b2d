"""What recording steering traces costs per decoded token: the same steered model with a recorder, and without.

    python analyses/trace_overhead.py --model organism --bundle results/demo/bundles/calibrated --out results/

Writes `trace_overhead.json`. Variants are copies of the model that share its parameters and one cache; every decode step
is run by all of them in random order, and timed in processor time of the thread. A recorder measures what it kept once
in `CHUNK` calls, so what is compared are sums over windows of as many steps: their 10th percentiles, and the median of
the paired differences. The steered model against itself stands beside them, as the noise there is.

Two plans are timed: the bundle's, its gates held open, and adaptive calibration steering at every block.
"""

import argparse
import copy
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from analyses._common import Record, bars, command, options, provenance
from rmuse_interp.data import load_benchmark
from rmuse_interp.edits.hooks import attach
from rmuse_interp.edits.plan import Plan
from rmuse_interp.edits.trace import CHUNK, Recorder
from rmuse_interp.lens.lens import LensModel, load_model
from rmuse_interp.method.rmuse import RMuse
from rmuse_interp.operators import SlerpToward
from rmuse_interp.parts.angle import ACS
from rmuse_interp.parts.prototypes import Prototypes

SCHEMA: Final = "rmuse-trace-overhead/1"
STEM: Final = "trace_overhead"
VARIANTS: Final = ("plain", "steered", "steered again", "recorded")
BATCHES: Final = (1, 16)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = options(__doc__, limit=24, what=f"windows of {CHUNK} steps")
    parser.add_argument(
        "--bundle", type=Path, default=Path("results/demo/bundles/calibrated"), metavar="BUNDLE"
    )
    return command(STEM, parser, measure, show, argv)


def measure(given: argparse.Namespace) -> Record:
    """The record of `trace_overhead.json`."""
    began = time.monotonic()
    lens = load_model(given.model, device=given.device, dtype=given.dtype)
    fitted = RMuse.load(given.bundle, lens)
    benchmark = load_benchmark(given.data, forget=fitted.report["benchmark"]["forget"])
    asked = [e for e in benchmark.fit_forget if e.modality == "image"]
    rows = []
    with bars() as progress, torch.inference_mode():
        for name, plan in (("bundle", opened_wide(fitted.plan)), ("every block", everywhere(lens))):
            for batch in BATCHES:
                task = progress.add_task(f"{name}, batch {batch}", total=given.limit)
                examples = [asked[i % len(asked)] for i in range(batch)]
                encoding = lens.encode([e.prompt() for e in examples], [e.image for e in examples])
                sums = []
                with variants_of(lens, plan) as models:
                    for window in range(given.limit):
                        sums.append(one_window(models, encoding, random.Random(given.seed + window)))
                        progress.advance(task)
                rows.append({"plan": name, "batch": batch, "layers": plan.layers, **compared(sums)})
    return {
        "schema": SCHEMA,
        "provenance": provenance(given, lens, benchmark, began, chunk=CHUNK, d_model=lens.d_model),
        "rows": rows,
    }


def opened_wide(plan: Plan) -> Plan:
    """The plan without its gates, so that every step is steered."""
    return plan.without("*.gate")


def everywhere(lens: LensModel) -> Plan:
    """ACS to the nearest of 32 random prototypes, at every block: the most that there is to record."""
    draw = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(32, lens.d_model, generator=draw), dim=1)
    turn = SlerpToward(torch.randn(lens.d_model, generator=draw), ACS(Prototypes(points)))
    return Plan([turn.at(layers=range(lens.n_layers))])


@contextmanager
def variants_of(lens: LensModel, plan: Plan) -> Iterator[dict[str, Any]]:
    """Copies of the model that share its parameters, by variant, with the plan attached to all but the plain one."""
    shared = {id(x): x for x in (*lens.hf.parameters(), *lens.hf.buffers())}
    models = {name: copy.deepcopy(lens.hf, dict(shared)) for name in VARIANTS}
    with ExitStack() as undo:
        for name, model in models.items():
            if name != "plain":
                recorder = Recorder() if name == "recorded" else None
                undo.enter_context(attach(model, copy.deepcopy(plan), recorder=recorder))
        yield models


def one_window(models: Mapping[str, Any], encoding: Any, order: random.Random) -> dict[str, float]:
    """Seconds of `CHUNK` decode steps, by variant."""
    spent = dict.fromkeys(models, 0.0)
    prefilled = {name: model(**encoding, use_cache=True) for name, model in models.items()}
    cache, mask = prefilled["steered"].past_key_values, encoding["attention_mask"]
    token = prefilled["steered"].logits[:, -1].argmax(dim=-1, keepdim=True)
    names = list(models)
    for _ in range(CHUNK):
        mask = torch.cat([mask, torch.ones_like(token)], dim=1)
        order.shuffle(names)
        for name in names:
            start = time.thread_time()
            out = models[name](input_ids=token, attention_mask=mask, past_key_values=cache, use_cache=True)
            spent[name] += time.thread_time() - start
            cache.crop(-1)
        models["plain"](input_ids=token, attention_mask=mask, past_key_values=cache, use_cache=True)
        token = out.logits[:, -1].argmax(dim=-1, keepdim=True)
    return spent


def compared(sums: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Milliseconds per step (10th percentile) and each variant against the steered one."""
    by = {name: np.array([window[name] for window in sums]) for name in VARIANTS}
    found: dict[str, Any] = {
        "windows": len(sums),
        "ms_per_step": {},
        "percentile_10": {},
        "paired_median": {},
    }
    for name, seconds in by.items():
        found["ms_per_step"][name] = round(1000 * float(np.percentile(seconds, 10)) / CHUNK, 4)
        if name != "steered":
            ratio = np.percentile(seconds, 10) / np.percentile(by["steered"], 10)
            found["percentile_10"][name] = round(float(ratio), 4)
            paired = 1 + np.median(seconds - by["steered"]) / np.median(by["steered"])
            found["paired_median"][name] = round(float(paired), 4)
    return found


def show(record: Mapping[str, Any]) -> None:
    """A line per plan and batch size; 1 is the steered model without a recorder."""
    for row in record["rows"]:
        said = "; ".join(
            f"{name} {row['percentile_10'][name]:.3f} / {row['paired_median'][name]:.3f}"
            for name in VARIANTS
            if name != "steered"
        )
        print(
            f"{row['plan']}, batch {row['batch']}, {row['windows']} windows (10th percentile / paired median): {said}"
        )


if __name__ == "__main__":
    sys.exit(main())
