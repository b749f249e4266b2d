"""`rmuse score RUN`: likeness to a model that never knew, fluency or another judge, added to a finished run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from rmuse_interp import RMuseError
from rmuse_interp.cli import baseline, requests, support, tables, traces
from rmuse_interp.cli import judge as j
from rmuse_interp.cli import options as o
from rmuse_interp.cli.doctor import bundles_of
from rmuse_interp.data.store import JSON, write_json
from rmuse_interp.evaluate.results import (
    ATTACKED,
    SCORES,
    AttackTranscript,
    Run,
    read_run,
    read_transcripts,
)

if TYPE_CHECKING:
    from rmuse_interp.data import Benchmark
    from rmuse_interp.evaluate.judges import Judge
    from rmuse_interp.lens.lens import LensModel
    from rmuse_interp.method.rmuse import RMuse
    from rmuse_interp.runs.run import Method

JUDGED = ("methods", "by_modality", "intervals", "unread")
"""Parts of the scores that depend on the judge."""


def score(
    run: o.Run,
    gold: Annotated[
        str | None,
        typer.Option(
            "--gold",
            metavar="M",
            help="A model that never knew the people (organism-gold): adds forget quality and membership.",
        ),
    ] = None,
    perplexity: Annotated[
        bool, typer.Option("--perplexity", help="Add the responses' perplexity under the unsteered model.")
    ] = False,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="J",
            help=f"Add the scores by another judge, beside those of the run: {j.NAMES}.",
        ),
    ] = None,
    judge_url: j.Url = None,
    max_cost: j.MaxCost = None,
    price_in: j.PriceIn = None,
    price_out: j.PriceOut = None,
    bundle: o.MovedBundles = None,
    model: o.OwnModel = None,
    data: o.OwnData = None,
    batch_size: o.BatchSize = 32,
    device: o.Device = None,
    dtype: o.Dtype = None,
    blocks: o.Blocks = None,
    skip_bad_rows: o.SkipBadRows = False,
    debug: o.Debug = False,
) -> None:
    """Add a measure to a finished run without asking the model anything again."""
    if gold is None and not perplexity and judge is None:
        raise RMuseError("--gold, --perplexity or --judge was required, got none; name what to add")
    held = read_run(run)
    scores, origin = held.scores, held.scores.get("provenance", {})
    bundles = bundles_of(run, scores, bundle or [])
    require_all(run, scores, bundles)
    if data is None and "data" not in origin:
        raise RMuseError(f"--data was required, since {run} does not say what it was made with")
    benchmark = benchmark_of(scores, bundles, data or origin["data"], skip_bad_rows)
    budget = j.budget_of(max_cost, price_in, price_out)
    seed, limit = origin.get("seed", 0), origin.get("limit")
    if judge is not None:
        other = j.named(judge, benchmark, budget, judge_url, device, dtype)
        if other.name == scores["judge"]:
            raise RMuseError(f"another judge than that of the run was required, got {judge}")
        with support.bars("scored", {}, "score") as progress:
            found = j.with_judge(other, lambda one: judged(run, held, benchmark, one), progress)
        scores.setdefault("judges", {})[other.name] = found
        tables.before_after(scores | found)
    if gold is not None or perplexity:
        from rmuse_interp.runs import likelihoods

        lens = support.open_model(model or scores["model"]["id"], device, dtype, blocks)
        if str(lens.fingerprint) != scores["model"]["fingerprint"]:
            raise RMuseError(
                f"the model of the run was required, {scores['model']['fingerprint']}, got {lens.fingerprint}; name it "
                "with --model"
            )
        if gold is not None:
            never_knew = support.open_model(gold, device, dtype, blocks)
            methods = methods_of(run, scores, bundles, lens)
            with support.bars("likelihoods", {}, "forgetting") as progress:
                scores["forgetting"] = likelihoods.forgetting(
                    methods,
                    never_knew,
                    benchmark,
                    limit=limit,
                    batch_size=batch_size,
                    seed=seed,
                    folder=run,
                    progress=progress,
                )
            tell_forgetting(scores["forgetting"]["methods"])
        if perplexity:
            examples = {e.id: e for split in scores_splits(held) for e in benchmark.scoring(split)}
            with support.bars("perplexity", {}, "fluency") as progress:
                scores["fluency"] = likelihoods.fluency(
                    held.transcripts,
                    examples,
                    lens,
                    batch_size=batch_size,
                    seed=seed,
                    folder=run,
                    progress=progress,
                )
            tell_fluency(scores["fluency"])
    write_json(run / SCORES, scores)
    from rmuse_interp.runs.run import finish

    finish(run)
    support.out.print(f"run: {escape(str(run))}")


def require_all(run: Path, scores: JSON, bundles: Mapping[str, "RMuse"]) -> None:
    """Raise unless every bundle of the run was found and opened."""
    for name, place in scores.get("bundles", {}).items():
        if name not in bundles:
            raise RMuseError(
                f"the bundle of {name} was required, which is not in {run / place} any more; say where with --bundle"
            )


def benchmark_of(scores: JSON, bundles: Mapping[str, "RMuse"], data: str, skip_bad_rows: bool) -> "Benchmark":
    """The benchmark of a run, with the people to forget and the wording of questions of its bundles.

    Raises:
        RMuseError: the benchmark is not that of the run.
    """
    own = scores["benchmark"]
    opened = support.open_benchmark(data, own["forget"], skip_bad_rows)
    differs = [
        f"{key} {own[key]!r}, not {value!r}"
        for key, value in (("id", opened.id), ("render_seed", opened.render_seed))
        if own[key] != value
    ]
    if differs:
        raise RMuseError(
            f"the benchmark of the run was required, which has {'; '.join(differs)}; name it with --data"
        )
    pairs = [(Path(name), one) for name, one in bundles.items()]
    return traces.as_asked(requests.as_forgotten(opened, pairs), pairs)


def methods_of(run: Path, scores: JSON, bundles: Mapping[str, "RMuse"], lens: "LensModel") -> list["Method"]:
    """The methods of a run, opened again: the unsteered model, its bundles, trained baselines and tuned rivals.

    A gold standard among the run's methods is left out: it is measured as the gold model.

    Raises:
        RMuseError: a method that is in none of the run's files.
    """
    from rmuse_interp.edits.plan import Plan
    from rmuse_interp.fitting.rivals import home
    from rmuse_interp.runs.likelihoods import GOLD
    from rmuse_interp.runs.run import Method

    found = [Method("vanilla", lens)]
    for name, one in bundles.items():
        lens.fingerprint.require(one.plan.fingerprint, f"the bundle of {name}")
        found.append(Method(name, lens, one.plan, one.subspaces))
    trained = {name: run / place for name, place in scores.get("baselines", {}).items()}
    found += [Method(name, made) for name, made in baseline.opened(trained, lens).items()]
    for name in sorted(set(scores["methods"]) - {method.name for method in found} - {GOLD}):
        if not home(run, name).is_dir():
            raise RMuseError(
                f"methods whose plans {run} holds were required, got {name}; run `rmuse eval` again"
            )
        found.append(Method(name, lens, Plan.load(home(run, name), lens)))
    return found


def judged(run: Path, held: Run, benchmark: "Benchmark", judge: "Judge | None") -> JSON:
    """The scores that depend on the judge: the parts `JUDGED`, and `attacks` if the methods were attacked."""
    from rmuse_interp.evaluate.recovery import attack_scores
    from rmuse_interp.evaluate.scores import score as scores_of

    seed = held.scores.get("provenance", {}).get("seed", 0)
    whole = scores_of(held.transcripts, benchmark, judge=judge, seed=seed)
    found = {key: whole[key] for key in JUDGED}
    if (run / ATTACKED).is_file():
        attacked = list(read_transcripts(run / ATTACKED, AttackTranscript))
        found["attacks"] = attack_scores(held.transcripts, attacked, benchmark, judge=judge, seed=seed)
    return found


def scores_splits(held: Run) -> Sequence[str]:
    """The splits whose questions the run asked."""
    return list(dict.fromkeys(t.split for t in held.transcripts))


def tell_forgetting(methods: JSON) -> None:
    """Print how far each method's likelihoods are from those of a model that never knew the people."""
    for name, one in methods.items():
        quality, loss = one["forget_quality"], one["membership"]["loss"]
        support.out.print(
            f"{escape(name)}: told from the gold model by {quality['statistic']:.2f} (p {quality['p_value']:.2g}, "
            f"n {quality['n']}), members by their loss with AUROC {loss['auroc']:.2f}",
            soft_wrap=True,
        )


def tell_fluency(methods: JSON) -> None:
    """Print the perplexity of each method's responses, split by split."""
    for name, splits in methods.items():
        values = ((split, one["perplexity"]) for split, one in splits.items())
        said = ", ".join(f"{split} {'–' if value is None else f'{value:.1f}'}" for split, value in values)
        support.out.print(f"{escape(name)}: perplexity {said}", soft_wrap=True)
