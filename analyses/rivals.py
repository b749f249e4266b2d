"""R-MUSE beside nine rivals on one footing: what leaks, what stays, and how well it is said.

    python analyses/rivals.py --model organism --data organism --forget 5 --limit 96 --out results/
    python analyses/rivals.py --methods vanilla,rmuse/calibrated,caa --limit 24

Writes `rivals.json`, which `figures/rivals.py` draws. Methods: `vanilla`, `gold` (trained without the people to forget,
where the model has such a twin), both presets of R-MUSE and the rivals of `rmuse_interp.method.rivals`. Each rival's
blocks and strength are chosen on fitting questions held out, one budget for all (`rmuse_interp.fitting.rivals`); both
presets choose on fitting data by rules of their own. Nothing is chosen on what is scored here.

**Domination.** The goals are RIL on test (less), exact answers on retain_test (more) and malformed responses on forget
and test together (less), all in percent. One method dominates another if it is worse by more than 1 point in none of
them, and better by more than 1 point in at least one. At most one of two methods dominates the other.

Tuned plans and bundles are kept in the folder `rivals` beside the result, and answers until the result is written: the
same command, or one for other methods, does again only what is missing.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: its own folder is no place to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from analyses import _common as common
from analyses._common import short
from analyses._fits import evidence_of, preset_of
from analyses._values import MARGIN, VALUES, dominates, kind_of, values_of
from rmuse_interp import RMuseError, __version__
from rmuse_interp.cli.bundles import FIT_LIMIT, ready
from rmuse_interp.cli.demo import GOLD, GOLD_RATE, MODEL
from rmuse_interp.data import Benchmark, Example, load_benchmark
from rmuse_interp.evaluate.results import Transcript
from rmuse_interp.fitting.tuning import Tuning
from rmuse_interp.lens.lens import LensModel, load_model
from rmuse_interp.method.rivals import RIVALS
from rmuse_interp.method.rmuse import PRESETS, RMuse
from rmuse_interp.runs import run as running

SCHEMA = "rmuse-rivals/1"
OURS = "rmuse/calibrated"
METHODS = ("vanilla", "gold", OURS, "rmuse/paper", *RIVALS)
GOALS = {"ril_test": -1, "exact_retain_test": 1, "malformed": -1}
"""What domination compares: +1 where more is better, −1 where less is."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return common.command("rivals", options(), run, show, argv)


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = common.options(
        __doc__,
        limit=96,
        what="questions per split",
        fit_limit=FIT_LIMIT,
        max_new_tokens=64,
        small={"limit": 12, "fit_limit": 32, "methods": "vanilla,rmuse/calibrated,rmuse/paper,caa,ablation"},
    )
    parser.add_argument("--methods", metavar="A,B", help=f"some of {', '.join(METHODS)}; all by default")
    parser.add_argument("--forget", type=int, default=5, help="percent of the people to forget (5)")
    parser.add_argument("--render-seed", type=int, help="of the organism's test portraits")
    return parser


def run(given: argparse.Namespace) -> dict[str, Any]:
    """The whole record of `rivals.json`.

    Raises:
        RMuseError: bad arguments, a missing file, too little to fit on; all before the first long pass.
    """
    names = named(given)
    benchmark = load_benchmark(given.data, forget=given.forget, render_seed=given.render_seed)
    questions = running.choose(benchmark, given.limit, given.seed)
    lens = load_model(given.model, device=given.device, dtype=given.dtype)
    gold = load_model(GOLD, device=given.device, dtype=given.dtype) if "gold" in names else None
    ready(lens, benchmark, None)
    folder = given.out / "rivals"
    folder.mkdir(parents=True, exist_ok=True)
    tuning = Tuning(
        lens, benchmark, folder, limit=given.fit_limit, seed=given.seed, batch_size=given.batch_size
    )
    began = time.monotonic()
    with common.bars() as progress:
        plans = fitted(lens, benchmark, names, tuning, given, progress)
        models = {"gold": gold} if gold is not None else {}
        methods = [running.Method(name, models.get(name, lens), plans.get(name)) for name in names]
        answers = common.answered(given, "rivals", methods, questions, benchmark, progress)
        rows = rows_of(names, answers.transcripts, questions, benchmark, given.seed, progress)
    for name in set(names) & set(RIVALS):
        kept = tuning.take(name)
        rows[name]["chosen"] = {m: trial(t) for m, t in kept.chosen.items()}
        rows[name]["trials"] = {m: [trial(t) for t in tried] for m, tried in kept.trials.items()}
    for preset in PRESETS:
        if f"rmuse/{preset}" in names:
            plan = plans[f"rmuse/{preset}"]
            rows[f"rmuse/{preset}"]["chosen"] = {e.modality or "any": {"layers": e.layers} for e in plan}
    return {
        "schema": SCHEMA,
        "provenance": common.provenance(
            given,
            lens,
            benchmark,
            began,
            gold=None if gold is None else {"id": GOLD, "fingerprint": str(gold.fingerprint)},
            max_new_tokens=given.max_new_tokens,
            n={split: len(asked) for split, asked in questions.items()},
            budget=tuning.budget,
        ),
        "methods": rows,
        "domination": domination({name: row["values"] for name, row in rows.items()}),
    }


def named(given: argparse.Namespace) -> list[str]:
    """The methods asked for, in the order of `METHODS`; `gold` only where the model has such a twin.

    Raises:
        RMuseError: an unknown name, `gold` where there is none.
    """
    twin = given.model == MODEL and given.forget == GOLD_RATE
    asked = METHODS if given.methods is None else tuple(n.strip() for n in given.methods.split(","))
    unknown = [name for name in asked if name not in METHODS]
    if unknown:
        raise RMuseError(f"--methods takes {', '.join(METHODS)}, got {', '.join(map(repr, unknown))}")
    if "gold" in asked and not twin and given.methods is not None:
        raise RMuseError(
            f"gold is the twin of {MODEL} at {GOLD_RATE} % alone, got {given.model} at {given.forget} %"
        )
    return [name for name in METHODS if name in asked and (name != "gold" or twin)]


def fitted(
    lens: LensModel,
    benchmark: Benchmark,
    names: Sequence[str],
    tuning: Tuning,
    given: argparse.Namespace,
    progress: Progress,
) -> dict[str, Any]:
    """The plans of both presets and of the rivals, as far as asked for; what the folder holds is taken up."""
    folder = given.out / "rivals" / "bundles"
    origin = {
        "fit_limit": given.fit_limit,
        "batch_size": given.batch_size,
        "seed": given.seed,
        "version": __version__,
        "benchmark": [benchmark.id, benchmark.forget_rate, benchmark.render_seed],
    }
    plans: dict[str, Any] = {}
    for preset in (p for p in PRESETS if f"rmuse/{p}" in names):
        try:
            bundle = RMuse.load(folder / preset, lens)
        except (RMuseError, OSError, ValueError, KeyError):
            continue  # none there, damaged, or of other weights: fitted below
        if bundle.report.get("provenance") == origin:
            plans[f"rmuse/{preset}"] = bundle.plan
    rivals = [name for name in names if name in RIVALS]
    missing = [f"rmuse/{p}" for p in PRESETS if f"rmuse/{p}" in names and f"rmuse/{p}" not in plans]
    missing += [name for name in rivals if not tuning.finished(name)]
    evidence = None
    if missing:
        evidence = evidence_of(given, lens, benchmark, progress)
    for preset in (p for p in PRESETS if f"rmuse/{p}" in missing):
        assert evidence is not None
        bundle = preset_of(given, lens, benchmark, evidence, preset, progress)
        bundle.report["provenance"] = origin
        bundle.save(folder / preset)
        plans[f"rmuse/{preset}"] = bundle.plan
    return plans | {name: tuning.take(name, evidence, progress).plan for name in rivals}


def rows_of(
    names: Sequence[str],
    transcripts: Sequence[Transcript],
    questions: Mapping[str, Sequence[Example]],
    benchmark: Benchmark,
    seed: int,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """`VALUES` of every method, each with a 95 % interval (people resampled) and n."""
    references = {e.id: e for examples in questions.values() for e in examples}
    task = progress.add_task("scores", total=len(names))
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        mine = [t for t in transcripts if t.method == name]
        values = values_of(mine, references, benchmark, seed=seed)
        progress.advance(task)
        rival = RIVALS.get(name)
        found[name] = {
            "kind": kind_of(name),
            "paper": rival.paper if rival else None,
            "summary": rival.summary if rival else None,
            "values": values,
        }
    return found


def domination(values: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Which rivals `OURS` dominates, by which it is dominated, and the others; None without it or a goal's value.

    Args:
        values: method → key → ``{"value", …}``, as in the record.
    """
    goals = {name: {goal: found[goal]["value"] for goal in GOALS} for name, found in values.items()}
    defined = {name: found for name, found in goals.items() if None not in found.values()}
    rivals = [name for name in values if name in RIVALS]
    if OURS not in defined or not rivals:
        return None
    ours = defined[OURS]
    below = [name for name in rivals if name in defined and dominates(ours, defined[name], GOALS)]
    above = [name for name in rivals if name in defined and dominates(defined[name], ours, GOALS)]
    return {
        "method": OURS,
        "goals": GOALS,
        "margin": MARGIN,
        "dominates": below,
        "dominated_by": above,
        "neither": [name for name in rivals if name not in (*below, *above)],
    }


def trial(found: Any) -> dict[str, Any]:
    """A trial as JSON."""
    return {
        "layers": list(found.layers),
        "strength": found.strength,
        "leak": short(found.leak),
        "keep": short(found.keep),
        "malformed": short(found.malformed),
    }


def show(record: Mapping[str, Any]) -> None:
    """The table of all methods, then who dominates whom."""
    table = Table(title="percent, 95 % intervals in the file", box=None)
    heads = {"ril_forget": "RIL forget", "ril_test": "RIL test", "malformed": "malf", "refused": "refus"}
    table.add_column("method", no_wrap=True)
    for key in VALUES:
        table.add_column(
            heads.get(key, key.removeprefix("exact_").replace("repetition", "loop")), justify="right"
        )
    table.add_column("blocks @ strength (image; text)", no_wrap=True)
    for name, row in record["methods"].items():
        cells = ["–" if (v := row["values"][key]["value"]) is None else f"{v:.1f}" for key in VALUES]
        chosen = row.get("chosen", {}).values()
        said = [
            ",".join(map(str, c["layers"])) + (f" @ {c['strength']:g}" if "strength" in c else "")
            for c in chosen
        ]
        table.add_row(name, *cells, "; ".join(said))
    Console(width=max(150, Console().width)).print(table)
    found = record["domination"]
    if found is not None:
        print(
            f"{found['method']} dominates {len(found['dominates'])}: {', '.join(found['dominates']) or 'none'}"
        )
        print(f"dominated by {len(found['dominated_by'])}: {', '.join(found['dominated_by']) or 'none'}")


if __name__ == "__main__":
    sys.exit(main())
