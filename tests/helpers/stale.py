"""The mechanisms that keep results, each with its long work replaced by a word, and all that the results depend on."""

import argparse
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.elicit import spoken
from helpers.plans import linear_gate, rmuse, vector
from rich.progress import Progress

import rmuse_interp.operators as op
from rmuse_interp import Plan, RMuseError, load_benchmark
from rmuse_interp.baselines import training
from rmuse_interp.cli import demo
from rmuse_interp.data.store import Store
from rmuse_interp.evaluate.judges import Consultation
from rmuse_interp.fitting.elicit import elicit
from rmuse_interp.fitting.rivals import Tuning
from rmuse_interp.lens.lens import LensModel
from rmuse_interp.lens.respond import Response
from rmuse_interp.runs import likelihoods
from rmuse_interp.runs.attacked import attacked
from rmuse_interp.runs.judging import LocalModel
from rmuse_interp.runs.run import Method, choose, run
from rmuse_interp.studies import cells, fits, paper_table


@dataclass(frozen=True)
class Case:
    """All that results depend on."""

    lens: LensModel
    data: Path
    plan: Plan
    judge: LensModel
    forget: int = 10
    seed: int = 0
    limit: int = 50
    batch_size: int = 4
    tokens: int = 99
    prompt: str = "Does it leak?"

    @property
    def benchmark(self):
        return load_benchmark(self.data, forget=self.forget)

    @property
    def given(self):
        """The command line of a study."""
        own = {name: getattr(self, name) for name in ("seed", "limit", "batch_size")}
        own |= {"fit_limit": self.limit, "attack_limit": self.limit, "reasoning_tokens": self.tokens}
        return argparse.Namespace(**own, max_new_tokens=self.tokens, attacks="prefix", bundle=None)


def plan_of(seed=1, layers=(1, 2)) -> Plan:
    return op.Add(vector(seed)).at(list(layers)).when(linear_gate()) >> op.Add(vector(9)).at(3)


# The mechanisms: each keeps something in a folder, and adds to `WORK` what it has to do for it.

WORK: list[str] = []


def working(word: str, found: object = None) -> Callable[..., object]:
    def work(*_arguments, **_settings):
        WORK.append(word)
        return found

    return work


@contextmanager
def words():
    """The long work: a word each instead."""

    def respond(_lens, prompts, images=None, *_rest, **_settings):
        WORK.append("asked")
        return [Response(spoken(p if isinstance(p, str) else p.question), None, None) for p in prompts]

    def assembled(*_arguments, seed, **_settings):
        return rmuse(seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LensModel, "respond", respond)
        patch.setattr(
            likelihoods,
            "token_nll",
            lambda _model, prompts, *_r, **_s: WORK.append("nats") or [[1.0]] * len(prompts),
        )
        for place in ("rmuse_interp.fitting", fits.__name__, paper_table.__name__):
            patch.setattr(f"{place}.gather", working("gathered", {}))
            patch.setattr(f"{place}.assemble", assembled)
        patch.setattr(paper_table, "check", lambda *_a, **_s: None)
        patch.setattr(paper_table, "traced", lambda _lens, benchmark, *_a, **_s: benchmark)
        yield


def elicited(case, folder):
    settings = {"max_new_tokens": case.tokens, "batch_size": case.batch_size, "seed": case.seed}
    elicit(case.lens, case.benchmark, template="reasoning", cache=folder, limit=case.limit, **settings)


def answers(case, folder):
    chosen = choose(case.benchmark, case.limit, case.seed)
    settings = {"max_new_tokens": case.tokens, "batch_size": case.batch_size, "folder": folder}
    run([Method("m", case.lens, case.plan)], chosen, delimiters=case.benchmark.delimiters, **settings)


def attacks(case, folder):
    chosen = {"forget": case.benchmark.scoring("forget")}
    settings = {"max_new_tokens": case.tokens, "batch_size": case.batch_size, "seed": case.seed}
    attacked(
        [Method("m", case.lens, case.plan)], chosen, case.benchmark, ["prefix"], folder=folder, **settings
    )


def nats(case, folder):
    chosen = [e for e in case.benchmark.scoring("forget") if e.kind == "generation"]
    wrong = {e.id: ["Cairo"] for e in chosen}
    likelihoods.answer_nats(
        Method("m", case.lens, case.plan), chosen, wrong, batch_size=case.batch_size, folder=folder
    )


def fits_(case, folder):
    given = argparse.Namespace(**vars(case.given), fits=folder)
    assert fits.World(given, case.lens, case.benchmark).evidence == {}


def cell(case, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "world_of", lambda *_: (case.lens, case.benchmark))
        kept = cells.kept_of(cells.Cell("vanilla", 5, case.seed), case.given, folder)
    kept.once("record", working("worked out", {}))


def tuning(case, folder):
    tuned = Tuning(case.lens, case.benchmark, folder, case.limit, seed=case.seed, batch_size=case.batch_size)
    tuned._store.once("trial", working("tried", {}))


def trained(case, folder):
    with pytest.MonkeyPatch.context() as patch:

        def journal(_home, of):
            raise LookupError(of)

        patch.setattr(training, "Journal", journal)
        settings = {"seed": case.seed, "limit": case.limit, "batch_size": case.batch_size}
        with pytest.raises(LookupError) as found:
            training.train("ga", case.lens, case.benchmark, folder, **settings)
    Store(folder / "kept.jsonl", str(found.value)).once("trained", working("trained", {}))


def demoed(case, folder):
    demo.both_presets(case.lens, case.benchmark, folder, case.seed, case.batch_size, {})


def tabled(case, folder):
    given = argparse.Namespace(**vars(case.given), out=folder)
    asked = paper_table.Questions(case.benchmark, case.benchmark, None, {}, {})
    paper_table.fits_at(given, case.lens, asked, case.forget, Progress(disable=True))("paper")


def judged(case, folder):
    Consultation(LocalModel(case.judge, case.tokens), folder).ask([case.prompt], str)


def bundle(case, folder):
    """Saved for the first model; another one is refused."""
    if not folder.exists():
        plan_of().save(folder, model=case.lens)
        WORK.append("saved")
    try:
        Plan.load(folder, case.lens)
    except RMuseError as refused:
        assert "another model" in str(refused)  # noqa: PT017
        WORK.append("refused")


MECHANISMS = {
    "elicited": elicited,
    "answers": answers,
    "attacks": attacks,
    "nats": nats,
    "fits": fits_,
    "cell": cell,
    "tuning": tuning,
    "training": trained,
    "demo": demoed,
    "table": tabled,
    "judge": judged,
    "bundle": bundle,
}
