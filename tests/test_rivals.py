"""Rivals tuned on a real tiny LLaVA: what is held out, one budget for all, what a run folder keeps, who dominates."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from helpers import tiny
from helpers.plans import lens_of
from typer.testing import CliRunner

import rmuse_interp.operators as op
from rmuse_interp import RMuseError, load_benchmark
from rmuse_interp.cli import app
from rmuse_interp.cli.evaluate import METHODS
from rmuse_interp.edits.plan import Plan
from rmuse_interp.evaluate.results import read_run
from rmuse_interp.evaluate.scores import measure, transcribe
from rmuse_interp.evaluate.text import Lexicon
from rmuse_interp.fitting import rivals as r
from rmuse_interp.fitting import validation as v
from rmuse_interp.fitting.rivals import Tuning
from rmuse_interp.method.rivals import RIVALS, Trial, choose_strength
from rmuse_interp.parts.part import all_same

pytestmark = pytest.mark.slow

SPLITS = ("test", "retain_test", "celebrity", "reasoning", "benign")


@pytest.fixture(scope="module")
def part(lens, benchmark):
    """The validation part, with short responses."""
    return replace(v.hold_out(lens, benchmark), max_new_tokens=5)


@pytest.fixture
def quick(monkeypatch, part):
    """Two choices of blocks and short responses wherever rivals are tuned; counts the passes."""
    passes = []
    real = v.Validation.answers

    def counted(*arguments, **settings):
        passes.append(arguments)
        return real(*arguments, **settings)

    monkeypatch.setattr(r, "choices", lambda n_layers: [(1,), (2, 3)])
    monkeypatch.setattr(r, "hold_out", lambda model, benchmark, seed: part)
    monkeypatch.setattr(v.Validation, "answers", counted)
    return passes


def test_the_validation_part_is_of_fitting_data_alone(lens, benchmark):
    part = v.hold_out(lens, benchmark)
    views = (benchmark.fit_forget, benchmark.fit_retain, benchmark.fit_reasoning, benchmark.fit_benign)
    assert part.ids <= {e.id for view in views for e in view}
    assert not part.ids & {e.id for split in SPLITS for e in benchmark.scoring(split)}
    assert {e.person for e in part.forget} <= benchmark.forget_people
    assert {e.kind for e in part.forget} == {"generation"}
    assert {e.kind for e in part.others} == {"generation", "reasoning", "benign"}
    assert all(e.kind == "benign" or e.person not in benchmark.forget_people for e in part.others)
    assert any(e.person in benchmark.forget_people for e in part.others)  # the hardest to keep apart
    assert part.modalities == ("image", "text")
    texts = [*benchmark.refusals_cot, *(e.response() for e in (*part.forget, *part.others))]
    assert part.max_new_tokens > max(len(lens.tokenizer(text).input_ids) for text in texts)
    assert v.hold_out(lens, benchmark).ids == part.ids
    assert any(v.hold_out(lens, benchmark, seed).ids != part.ids for seed in (1, 2, 3))


def test_a_single_question_cannot_be_held_out(lens, data):
    with pytest.raises(RMuseError, match=r"at least 2 image questions .* got 1 of the first"):
        v.hold_out(lens, load_benchmark(data, forget=5))


def test_nothing_of_the_validation_part_stays_in_the_evidence(evidence, part):
    def names(found):
        pools = [*found.readouts.values(), found.prefixed]
        for side in ("own", "refusal", "step", "direct", "step_prefixed", "direct_prefixed"):
            pools += getattr(found, side).values()
        tables = [found.refused_with, found.groups, found.forget, found.others, found.people]
        return [name for group in (*(p.ids for p in pools), *tables) for name in group]

    for modality, whole in evidence.items():
        left = r.without(whole, part.ids)
        held = [
            name
            for name in names(whole)
            if any(name.partition("~")[0] in (i, *(f"{i}@{n}" for n in range(9))) for i in part.ids)
        ]
        assert held  # it was there
        assert len(names(left)) == len(names(whole)) - len(held)
        assert not set(held) & set(names(left))
        assert not len(left.tokens)
        assert r.without(left, part.ids) is left
        # What is left is what it was: the same state under the same id.
        name = left.readouts["last"].ids[-1]
        same = [found.readouts["last"].select([name]).states for found in (whole, left)]
        assert torch.equal(*same), modality
    with pytest.raises(RMuseError, match="beside the"):
        r.without(evidence["image"], {name.rpartition("@")[0] for name in evidence["image"].forget})


def test_trials_are_measured_as_the_model_answers(lens, benchmark, evidence, part, quick):
    """Each share recomputed from responses to one question at a time, under a plan built by hand."""
    found = Tuning(lens, benchmark, None, limit=160).take("caa", evidence)
    assert len(quick) == 1 + 12
    words = Lexicon(benchmark.aliases, benchmark.entails)
    for modality, trials in found.trials.items():
        settings = [(t.layers, t.strength) for t in trials]
        assert settings == [(blocks, s) for blocks in ((1,), (2, 3)) for s in RIVALS["caa"].strengths]
        assert found.chosen[modality] == choose_strength(trials)
        one = trials[7]
        rest = r.without(evidence[modality], part.ids)
        edit = RIVALS["caa"].build(rest, modality, one.layers, one.strength)

        def say(e, plan):
            return transcribe(
                e,
                "x",
                lens.respond(e.prompt(), e.image, plan, max_new_tokens=5)[0].text,
                benchmark.delimiters,
            )

        forget = [e for e in part.forget if e.modality == modality]
        others = [e for e in part.others if e.modality == modality]
        said = measure([say(e, Plan([edit])) for e in forget], benchmark, {e.id: e for e in forget})
        assert one.leak == said["ril"].value / 100
        assert one.malformed == said["malformed_rate"].value / 100
        kept = [v.is_kept(say(e, Plan([edit])), say(e, None), words) for e in others]
        assert one.keep == sum(kept) / len(others)
    # What was validated is what runs, and it was fitted without the validation part.
    chosen = found.chosen["image"]
    build = RIVALS["caa"].build
    rest = build(r.without(evidence["image"], part.ids), "image", chosen.layers, chosen.strength)
    assert all_same(Plan([found.plan[0]]), Plan([rest]))
    assert not all_same(
        Plan([found.plan[0]]), Plan([build(evidence["image"], "image", chosen.layers, chosen.strength)])
    )


def test_what_counts_as_kept(benchmark):
    example = benchmark.fit_retain[0]

    def said(text):
        return transcribe(example, "x", text, ("<think>", "</think>"))

    words, own = Lexicon({"Mara Venn": ["Venn"]}), said("<think> She is Mara Venn. </think> Mara Venn")
    assert v.is_kept(own, own, words)
    assert v.is_kept(said("<think> Another way. </think> mara venn."), own, words)
    assert v.is_kept(said("<think> Another way. </think> Venn"), own, words)
    assert not v.is_kept(said("<think> She is Mara Venn. </think> Oslo"), own, words)
    assert not v.is_kept(said("Mara Venn"), own, words)  # the chain is gone
    assert v.is_kept(own, said("Mara Venn"), words)
    assert not v.is_kept(said(""), said("... </think>"), words)


def test_a_run_folder_keeps_trials_and_plans(lens, benchmark, evidence, quick, tmp_path):
    def tuning_of(**changes):
        return Tuning(lens, benchmark, tmp_path, **{"limit": 160, **changes})

    first = tuning_of()
    with pytest.raises(RMuseError, match="not tuned yet"):
        first.take("caa")
    whole = first.take("caa", evidence)
    assert len(quick) == 13
    kept = json.loads((tmp_path / "rivals.json").read_text())
    assert kept["budget"]["responses"] == 12 * len(first.validation.ids)
    assert kept["rivals"]["caa"]["chosen"] == {
        m: asdict(t) | {"layers": list(t.layers)} for m, t in whole.chosen.items()
    }
    again = tuning_of()
    assert again.finished("caa")
    found = again.take("caa")
    assert (found.trials, found.chosen) == (whole.trials, whole.chosen)
    assert all_same(found.plan, whole.plan)
    assert len(quick) == 13  # nothing was asked again
    # Another seed, limit, forget set or model never finds them; nor does a rival that was not tuned.
    assert not again.finished("spherical")
    assert not tuning_of(seed=1).finished("caa")
    assert not tuning_of(limit=8).finished("caa")
    assert not Tuning(lens_of(tiny.tiny_llava(seed=1)), benchmark, tmp_path, limit=160).finished("caa")
    for file in ("caa/plan.safetensors", "trials.jsonl"):
        (tmp_path / "rivals" / file).write_bytes(b"torn")
        assert not tuning_of().finished("caa")


def test_an_interrupted_tuning_goes_on_where_it_stopped(
    lens, benchmark, evidence, quick, tmp_path, monkeypatch
):
    real = v.Validation.shares

    def interrupted(*arguments):
        if len(quick) == 6:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(v.Validation, "shares", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Tuning(lens, benchmark, tmp_path, limit=160).take("caa", evidence)
    monkeypatch.setattr(v.Validation, "shares", real)
    done = len((tmp_path / "rivals" / "trials.jsonl").read_text().splitlines())
    assert done == 4
    quick.clear()
    found = Tuning(lens, benchmark, tmp_path, limit=160).take("caa", evidence)
    assert len(quick) == 1 + 12 - done
    apart = Tuning(lens, benchmark, None, limit=160).take("caa", evidence)
    assert found.trials == apart.trials
    assert all_same(found.plan, apart.plan)


def test_unknown_rivals_are_named(lens, benchmark, evidence):
    for names, said in ((["best"], "caa, ablation, .*'best'"), (["caa", "caa"], "each rival once")):
        with pytest.raises(RMuseError, match=said):
            r.require_names(names)
    with pytest.raises(RMuseError, match="'best'"):
        Tuning(lens, benchmark, None, limit=160).take("best", evidence)


def test_malformed_counts_as_much_as_leaking():
    garbled, fluent = Trial(2.0, 0.0, 0.9, 0.9), Trial(1.0, 0.2, 0.9, 0.0)
    assert choose_strength([garbled, fluent]) == fluent
    assert choose_strength([replace(garbled, malformed=0.1), fluent]).strength == 2.0
    with pytest.raises(RMuseError, match="malformed"):
        choose_strength([Trial(1.0, 0.0, 0.0, 2.0)])


@pytest.mark.parametrize(
    ("columns", "erased"),
    [
        (1, [[0.450026, 6.549974, 6.450198, 7.299845], [2.371271, 0.628729, 5.179744, 3.772374]]),
        (2, [[0.183757, 6.380097, 6.030959, 6.739683], [3.276652, 1.206353, 6.605258, 5.677062]]),
    ],
)
def test_leace_is_that_of_its_authors(columns, erased):
    """What `LeaceFitter(4, columns, shrinkage=False)` of concept-erasure 0.2.4 makes of the first two rows."""
    x = torch.tensor([[(3 * i * i + 7 * j + i * j * j) % 11 for j in range(4)] for i in range(10)]).double()
    z = torch.tensor([[i % 2, (i // 3) % 2] for i in range(10)]).double()[:, :columns]
    found = op.Affine.erasing(x, z, shrinkage=0.0)(x)
    torch.testing.assert_close(found[:2], torch.tensor(erased).double(), atol=2e-6, rtol=0)
    assert not torch.allclose(op.Affine.erasing(x, z)(x)[:2], found[:2], atol=1e-2)  # shrunk, it is another


def rmuse(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_eval_tunes_rivals_and_takes_them_up_again(data, quick, tmp_path):
    out = tmp_path / "run"
    asked = (
        "eval",
        "--model",
        tiny.tiny_llava(),
        "--data",
        data,
        "--forget",
        10,
        "--limit",
        1,
        "--max-new-tokens",
        2,
        "--method",
        "caa",
        "--out",
        out,
    )
    first = rmuse(*asked)
    assert first.exit_code == 0, first.output
    scores = read_run(out).scores
    assert set(scores["methods"]) == {"vanilla", "caa"}
    assert scores["methods"]["caa"]["retain_test"]["n"] == 1
    assert {"collect", "tune/caa"} <= set(scores["seconds"])
    assert set(json.loads((out / "rivals.json").read_text())["rivals"]) == {"caa"}
    assert "strength" in first.stderr
    count = len(quick)
    (out / "scores.json").unlink()
    again = rmuse(*asked)
    assert again.exit_code == 0, again.output
    assert "took up caa" in again.stderr
    assert len(quick) == count
    assert read_run(out).scores["methods"] == scores["methods"]


@pytest.mark.parametrize("names", [["best"], ["caa", "best"], ["caa", "caa"], ["list", "caa"]])
def test_eval_refuses_unknown_rivals_at_once(names, tmp_path):
    words = [word for name in names for word in ("--method", name)]
    found = rmuse("eval", "--model", tmp_path / "nowhere", "--out", tmp_path / "x", *words)
    assert found.exit_code == 2
    assert len(found.stderr.splitlines()) == 1
    assert "caa" in found.stderr
    assert not (tmp_path / "x").exists()


def test_help_and_list_name_every_rival():
    assert METHODS.split(", ") == list(RIVALS)
    listed = rmuse("eval", "--method", "list")
    assert listed.exit_code == 0
    shown = " ".join(rmuse("eval", "--help").stdout.split())
    for name, rival in RIVALS.items():
        assert name in shown
        assert f"{rival.summary} (arXiv {rival.paper})" in listed.stdout
