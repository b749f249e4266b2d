"""`rmuse eval`: bundles, rivals and the unsteered model, on every split of a benchmark."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from rmuse_interp import RMuseError
from rmuse_interp.cli import attacks, baseline, requests, support, tables, traces
from rmuse_interp.cli import judge as j
from rmuse_interp.cli import options as o
from rmuse_interp.cli.bundles import FIT_LIMIT, ready
from rmuse_interp.data.store import JSON, write_text
from rmuse_interp.evaluate.results import ATTACKED, SCORES, TRACES, claim, write_run

if TYPE_CHECKING:
    from rmuse_interp.data import Benchmark, Example
    from rmuse_interp.edits.plan import Plan
    from rmuse_interp.evaluate.judges import Judge
    from rmuse_interp.evaluate.results import AttackTranscript
    from rmuse_interp.fitting.rivals import Tuning
    from rmuse_interp.lens.lens import LensModel
    from rmuse_interp.method.rmuse import RMuse
    from rmuse_interp.runs.run import Answers, Method

TOKENS, TOKENS_FREE = 96, 160
"""Most tokens per response where answers have a template, and where they have none."""
METHODS = "caa, ablation, leace, cast, angular, spherical, alphasteer, mllmeraser, linear-act"
"""The rivals' names, for the help, without importing `steering`."""


def listed(names: list[str] | None) -> list[str]:
    """The rivals that ``--method`` names; ``list`` prints all rivals and exits.

    Raises:
        RMuseError: an unknown or repeated name.
    """
    if not names:
        return []
    from rmuse_interp.fitting.rivals import require_names
    from rmuse_interp.method.rivals import RIVALS
    from rmuse_interp.runs.controls import CONTROLS

    if names == ["list"]:
        for name, rival in RIVALS.items():
            support.out.print(f"{name:<12}{rival.summary} (arXiv {rival.paper})", soft_wrap=True)
        for name, summary in CONTROLS.items():
            support.out.print(f"{name:<12}{summary} (a control)", soft_wrap=True)
        raise typer.Exit
    require_names([name for name in names if name not in CONTROLS])
    if len(set(names)) != len(names):
        raise RMuseError(f"each method once was required, got {', '.join(names)}")
    return names


def evaluate(
    out: o.RunFolder,
    model: o.Model = "organism",
    data: o.Data = "organism",
    bundle: Annotated[
        list[Path] | None,
        typer.Option(
            "--bundle",
            metavar="BUNDLE",
            help="A bundle written by `rmuse fit`; repeat the option for several.",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME",
            callback=listed,
            is_eager=True,
            help="Another inference-time method, tuned on fitting questions held out; repeat the option for several: "
            f"{METHODS}; or a control, the gate of the first bundle without steering: canned, prefixed. `list` says what "
            "they do.",
        ),
    ] = None,
    trained: baseline.Folders = None,
    forget: Annotated[
        int | None,
        typer.Option(
            "--forget",
            min=1,
            max=99,
            help="Percentage of the people to forget, if no bundle says it.  [default: 5]",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Maximum number of questions per split; all by default."),
    ] = None,
    seed: o.Seed = 0,
    batch_size: o.BatchSize = 32,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            min=1,
            help="Maximum number of tokens per response; by default 96, or 160 where no answer has reasoning in a form "
            "that ends it.",
        ),
    ] = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    blocks: o.Blocks = None,
    skip_bad_rows: o.SkipBadRows = False,
    record: o.Record = True,
    readable: o.Readable = True,
    attack: attacks.Names = None,
    in_use: attacks.InUse = False,
    judge: j.Name = "rules",
    judge_url: j.Url = None,
    max_cost: j.MaxCost = None,
    price_in: j.PriceIn = None,
    price_out: j.PriceOut = None,
    overwrite: o.Overwrite = False,
    debug: o.Debug = False,
) -> None:
    """Score the model as it is and with each bundle, rival and baseline: scores.json, transcripts, a figure."""
    support.require_free(out, SCORES, "a finished run", overwrite)
    folders = bundle or []
    loaded = [support.open_bundle(folder) for folder in folders]
    names = support.names_of(folders, loaded)
    baselines = baseline.names_of(trained or [])
    rate = common_rate(
        dict(zip(map(str, folders), loaded, strict=True)), forget, baseline.rates_of(trained or [])
    )
    opened = support.open_benchmark(data, rate, skip_bad_rows)
    bundles = list(zip(folders, loaded, strict=True))
    forgetting = requests.as_forgotten(opened, bundles)
    benchmark = traces.as_asked(forgetting, bundles)
    from rmuse_interp.evaluate import before_after
    from rmuse_interp.runs import run as running
    from rmuse_interp.runs.controls import CONTROLS, Control

    budget = j.budget_of(max_cost, price_in, price_out)
    judged_by = None if judge == "rules" else j.named(judge, benchmark, budget, judge_url, device, dtype)
    questions = running.choose(benchmark, limit, seed)
    max_new_tokens = TOKENS if max_tokens is None else max_tokens
    if max_tokens is None and not any(e.reasoning for asked in questions.values() for e in asked):
        max_new_tokens = TOKENS_FREE  # at 40 tokens the simplest edits look perfect, and never stop
    attacks.require_applicable(attack or [], questions, benchmark)
    lens = support.open_model(model, device, dtype, blocks)
    methods = [running.Method("vanilla", lens)]
    for name, folder in zip(names, folders, strict=True):
        fitted = support.open_bundle(folder, lens)
        methods.append(running.Method(name, lens, fitted.plan, fitted.subspaces))
    methods += [running.Method(name, made) for name, made in baseline.opened(baselines, lens).items()]
    running.probe(lens, questions["forget"][0])
    seconds: dict[str, float] = {}
    rivals = None
    controls = [name for name in method or [] if name in CONTROLS]
    steering = [name for name in method or [] if name not in CONTROLS]
    if controls and not (loaded and loaded[0].gates):
        raise RMuseError(
            f"a bundle with a gate was required for the controls {', '.join(controls)}, got none; add --bundle"
        )
    methods += [
        running.Method(f"control/{name}", lens, methods[1].plan, control=Control.of(name, benchmark))
        for name in controls
    ]
    if steering:
        fitted_on = traces.fitted_on(
            lens, forgetting, loaded, seconds, limit=FIT_LIMIT, batch_size=batch_size, seed=seed
        )
        rivals = tuning_of(lens, fitted_on, out, seed, batch_size)
    claim(out, overwrite)
    if rivals is not None:
        plans = tuned(rivals, steering, seconds)
        methods += [running.Method(name, lens, plan) for name, plan in plans.items()]
    for line in running.unsteered(methods, questions):
        support.notes.print(f"[yellow]note[/yellow] {escape(line)}")
    scores, answers = answered(
        methods,
        questions,
        benchmark,
        out,
        seconds,
        seed=seed,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        traces=record,
        readable=readable,
        judge=judged_by,
    )
    attacked: list[AttackTranscript] = []
    if attack:
        scores["attacks"], attacked = attacks.under_attack(
            attack,
            methods,
            questions,
            benchmark,
            answers.transcripts,
            out,
            seconds,
            seed=seed,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            judge=judged_by,
        )
    if in_use:
        scores["in_use"] = attacks.firing_of(methods, questions, benchmark, out, seconds, seed, batch_size)
    scores["delimiters"] = list(benchmark.delimiters)
    scores["bundles"] = {n: os.path.relpath(f, out) for n, f in zip(names, folders, strict=True)}
    scores["baselines"] = {n: os.path.relpath(f, out) for n, f in baselines.items()}
    scores["provenance"] = support.provenance(model, data, limit=limit, seed=seed)
    if forgetting is not opened:
        scores["benchmark"]["people"] = len(benchmark.forget_people)
    save_run(out, scores, answers, overwrite, attacked)
    before_after.save(scores, out, "figure")
    running.finish(out)
    support.tell_skipped(benchmark)
    tables.before_after(scores)
    if attack:
        attacks.table(scores["attacks"])
    if in_use:
        attacks.firing_table(scores["in_use"])
    support.out.print(f"run: {escape(str(out))}")


def tuning_of(
    lens: "LensModel", benchmark: "Benchmark", folder: Path, seed: int, batch_size: int
) -> "Tuning":
    """The rivals' common validation part and budget, and their tuning kept in the run folder.

    Raises:
        RMuseError: nothing to fit on, or too little to hold out.
    """
    from rmuse_interp.fitting.rivals import Tuning

    ready(lens, benchmark, None)
    return Tuning(lens, benchmark, folder, limit=FIT_LIMIT, seed=seed, batch_size=batch_size)


def tuned(rivals: "Tuning", names: Sequence[str], seconds: dict[str, float]) -> dict[str, "Plan"]:
    """Name → the rival's plan, tuned now unless the run folder holds it; adds the time to `seconds`.

    Args:
        rivals: tuning from `tuning_of`.
        names: names of the rivals.
        seconds: stage → its wall-clock time so far.
    """
    from rmuse_interp.fitting import gather

    found: dict[str, Plan] = {}
    evidence = None
    if not all(map(rivals.finished, names)):
        with support.bars("collected states", seconds, "collect") as progress:
            evidence = gather(
                rivals.model,
                rivals.benchmark,
                limit=rivals.limit,
                batch_size=rivals.batch_size,
                seed=rivals.seed,
                progress=progress,
            )
    for name in names:
        held = rivals.finished(name)
        with support.bars(f"{'took up' if held else 'tuned'} {name}", seconds, f"tune/{name}") as progress:
            one = rivals.take(name, evidence, progress)
        found[name] = one.plan
        for modality, trial in one.chosen.items():
            support.notes.print(
                f"  {modality} queries: blocks {', '.join(map(str, trial.layers))}, strength {trial.strength:g}; on "
                f"validation leaks {trial.leak:.0%}, malformed {trial.malformed:.0%}, keeps {trial.keep:.0%}"
            )
    return found


def answered(
    methods: Sequence["Method"],
    questions: Mapping[str, Sequence["Example"]],
    benchmark: "Benchmark",
    folder: Path,
    seconds: dict[str, float],
    *,
    seed: int,
    batch_size: int,
    max_new_tokens: int,
    traces: bool,
    readable: bool = True,
    judge: "Judge | None" = None,
) -> tuple[JSON, "Answers"]:
    """The scores and the answers of every method on every question; adds the time of both to `seconds`.

    Args:
        methods: the methods, the unsteered model first.
        questions: split → its questions.
        benchmark: source of the questions.
        folder: folder that keeps finished batches until the run is finished.
        seconds: stage → its wall-clock time so far.
        seed: seed of the intervals.
        batch_size: questions per batch.
        max_new_tokens: maximum number of tokens per response.
        traces: whether to record how every token was steered.
        readable: whether to look at changed answers under the unsteered model (`runs.readable`).
        judge: judge of leaks and chains; None for the rules.
    """
    from rmuse_interp.runs import readable as reading
    from rmuse_interp.runs import run as running

    with support.bars("answered", seconds, "generate") as progress:
        answers = running.run(
            methods,
            questions,
            delimiters=benchmark.delimiters,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            folder=folder,
            progress=progress,
            traces=traces,
        )
    record: JSON = {"gauge": None, "reason": "not asked for (--readable)"}
    if readable:
        with support.bars("read", seconds, "read") as progress:
            looked, record = reading.read(
                answers.transcripts,
                questions,
                benchmark,
                methods[0].model,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                seed=seed,
                progress=progress,
            )
        answers = replace(answers, transcripts=looked)
    with support.bars("scored", seconds, "score") as progress:
        scores = j.with_judge(
            judge,
            lambda one: running.scores_of(
                methods, answers, benchmark, methods[0].model, seconds=seconds, seed=seed, judge=one
            ),
            progress,
        )
    scores["seconds"]["score"] = round(seconds["score"], 6)
    scores["readable"] = record
    return scores, answers


def save_run(
    folder: Path,
    scores: JSON,
    answers: "Answers",
    overwrite: bool,
    attacked: Sequence["AttackTranscript"] = (),
) -> None:
    """Write the run folder: scores, transcripts, and, if any, transcripts under attack and steering traces."""
    from rmuse_interp.runs.traces import write_traces

    def beside(to: Path) -> None:
        write_traces(to / TRACES, answers.traces)
        if attacked:
            write_text(to / ATTACKED, (t.to_json() + "\n" for t in attacked))

    write_run(folder, scores, answers.transcripts, overwrite, beside)


def common_rate(bundles: dict[str, "RMuse"], forget: int | None, trained: Mapping[str, int]) -> int:
    """The forget rate that all bundles and trained baselines share, else the requested one, else 5.

    Raises:
        RMuseError: rates that differ.
    """
    rates = {name: rate for name, b in bundles.items() if (rate := support.forget_rate(b)) is not None}
    rates |= trained
    if forget is not None:
        rates["--forget"] = forget
    if len(set(rates.values())) > 1:
        said = ", ".join(f"{name}: {rate} %" for name, rate in rates.items())
        raise RMuseError(f"required one forget rate, got {said}; evaluate them one by one")
    return next(iter(rates.values()), 5)
