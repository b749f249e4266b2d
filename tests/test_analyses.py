"""Ablations, threshold sweep, adaptive against fixed, prototype caps: small runs, their figures, and what must hold."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parquet_fixture import write_benchmark
from tiny import tiny_llava

import rmuse_interp.lens.lens as lens_room
from analyses import readme_table
from rmuse_interp import RMuseError, load_benchmark, load_model
from rmuse_interp.data import SPLITS
from rmuse_interp.evaluate.scores import transcribe
from rmuse_interp.fitting import assemble, gather
from rmuse_interp.method.rmuse import SPANS, Evidence, paper_edit, subspaces_at
from rmuse_interp.parts.pooled import Pooled
from rmuse_interp.runs.run import Method, choose, run
from rmuse_interp.studies import (
    ablations,
    acceptance,
    adaptive_vs_fixed,
    common,
    fits,
    prototype_cap,
    threshold_sweep,
)
from rmuse_interp.studies.gated import composed, fires, probes, scored

ROOT = Path(__file__).resolve().parent.parent
ANALYSES = {
    "ablations": (ablations, []),
    "threshold_sweep": (threshold_sweep, ["--queries", "6"]),
    "adaptive_vs_fixed": (adaptive_vs_fixed, ["--forget", "5", "10", "--fractions", "0.5", "1"]),
    "prototype_cap": (prototype_cap, ["--caps", "4", "16"]),
}


def main(stem, argv):
    """The script, as the command line runs it."""
    return importlib.import_module(f"analyses.{stem}").main(argv)


def arguments(data, out, *more):
    model = ["--model", str(tiny_llava()), "--data", str(data), "--out", str(out)]
    return [*model, "--limit", "3", "--fit-limit", "6", "--max-new-tokens", "6", *more]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_benchmark(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    for stem, (_, more) in ANALYSES.items():
        assert main(stem, arguments(data, out, *more)) == 0
    return out


@pytest.fixture(scope="module")
def records(results):
    return {stem: json.loads((results / f"{stem}.json").read_text()) for stem in ANALYSES}


@pytest.fixture(scope="module")
def world(data):
    """The tiny model, its benchmark at 10 % and everything fitted on it."""
    lens, benchmark = load_model(str(tiny_llava())), load_benchmark(data, forget=10)
    evidence = gather(lens, benchmark, limit=6)
    return (
        lens,
        benchmark,
        evidence,
        {p: assemble(lens, benchmark, evidence, p) for p in ("paper", "calibrated")},
    )


# What every analysis does.


@pytest.mark.parametrize("stem", ANALYSES)
def test_the_record_says_where_it_comes_from(records, results, stem):
    origin = records[stem]["provenance"]
    assert records[stem]["schema"] == ANALYSES[stem][0].SCHEMA
    assert origin["model"]["fingerprint"].startswith("LlavaForConditionalGeneration:4x32x")
    assert (origin["seed"], origin["limit"], origin["fit_limit"]) == (0, 3, 6)
    assert origin["n"]
    assert origin["platform"]
    assert {"rmuse-interp", "torch", "nnsight"} <= origin["versions"].keys()
    # What was kept for a broken run goes with its end.
    assert sorted(p.name for p in results.iterdir() if p.suffix != ".png") == sorted(
        f"{s}.json" for s in ANALYSES
    )


@pytest.mark.parametrize("stem", ANALYSES)
def test_mistakes_are_one_line_and_exit_code_2(data, tmp_path, stem, capsys):
    _, more = ANALYSES[stem]
    for change, said in (
        (["--model", "/nowhere"], "does not exist"),
        (["--forget", "15"], "forget_15"),
        (["--limit", "0"], "--limit of at least 1"),
        (["--max-new-tokens", "0"], "--max-new-tokens of at least 1"),
    ):
        assert main(stem, [*arguments(data, tmp_path, *more), *change]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert said in error
        assert not list(tmp_path.iterdir())


def test_a_script_starts_anywhere_and_hides_no_package(tmp_path):
    """`analyses/requests.py` must not be what `import requests` finds."""
    script = ROOT / "analyses" / "threshold_sweep.py"
    argv = [sys.executable, "-v", str(script), "--help"]
    found = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0
    assert "--queries" in found.stdout
    assert "studies/common" in found.stderr
    assert "analyses/requests" not in found.stderr


@pytest.mark.parametrize(
    ("stem", "successor"), [("rivals", "analyses/leaderboard.py"), ("trace_overhead", "rmuse eval")]
)
def test_analyses_that_are_gone_name_their_successor(stem, successor):
    found = subprocess.run(
        [sys.executable, f"analyses/{stem}.py", "--limit", "3"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 2
    assert found.stderr.startswith("gone: ")
    assert successor in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_broken_run_goes_on_where_it_stopped(world, tmp_path, monkeypatch):
    lens, benchmark, _, fitted = world
    given = argparse.Namespace(out=tmp_path, max_new_tokens=6, batch_size=4)
    questions = choose(benchmark, 4)
    methods = [Method("vanilla", lens), Method("calibrated", lens, fitted["calibrated"].plan)]
    first = common.answered(given, "some", methods, questions, benchmark)

    def unable(*_args, **_settings):
        raise RMuseError("asked again")

    monkeypatch.setattr(lens_room.LensModel, "respond", unable)
    assert common.answered(given, "some", methods, questions, benchmark).transcripts == first.transcripts
    other = argparse.Namespace(out=tmp_path, max_new_tokens=7, batch_size=4)
    with pytest.raises(RMuseError, match="asked again"):
        common.answered(other, "some", methods, questions, benchmark)


def test_evidence_comes_back_from_the_folder_as_it_was(world, tmp_path, monkeypatch):
    lens, benchmark, evidence, _ = world
    given = argparse.Namespace(fits=tmp_path, fit_limit=6, batch_size=32, seed=0)
    monkeypatch.setattr(fits, "gather", lambda *_args, **_settings: evidence)
    fits.evidence_of(given, lens, benchmark)
    monkeypatch.delattr(fits, "gather")
    found = fits.evidence_of(given, lens, benchmark)
    (kept,) = tmp_path.rglob("evidence.*")
    assert kept.suffix == ".safetensors"  # which runs no code when it is read

    def same(one, other):
        assert type(one) is type(other)
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        elif isinstance(one, dict):
            assert list(one) == list(other)
            for key in one:
                same(one[key], other[key])
        elif isinstance(one, (Evidence, Pooled)):
            same(vars(one), vars(other))
        else:
            assert one == other

    same(evidence, found)


# Answers put together.


@pytest.mark.parametrize("preset", ["paper", "calibrated"])
def test_composed_answers_are_those_of_the_gated_plan(world, preset):
    lens, benchmark, _, fitted = world
    plan, questions = fitted[preset].plan, choose(benchmark, 6)
    everything = [e for examples in questions.values() for e in examples]

    def answers(name, some):
        found = run(
            [Method(name, lens, some)],
            {"all": everything},
            delimiters=benchmark.delimiters,
            max_new_tokens=8,
            batch_size=8,
        )
        return {t.id: t for t in found.transcripts}

    scores = scored(lens, probes(fitted[preset], {"g": fitted[preset].gates}), everything, 8)["g"]
    gates = {}
    for modality, gate in fitted[preset].gates.items():
        # Halfway, so that both sides of the gate are seen.
        own = sorted(scores[e.id] for e in everything if e.modality == modality)
        gates[modality] = gate.at_threshold((own[len(own) // 2 - 1] + own[len(own) // 2]) / 2)
    gated = plan.replace(**{f"{modality}.gate": gate for modality, gate in gates.items()})
    fired = fires(scores, gates, everything)
    assert 0 < sum(fired.values()) < len(fired)
    open_, plain, real = (answers(*o) for o in (("o", plan.without("*.gate")), ("v", None), ("g", gated)))
    together = {t.id: t for t in composed("g", open_.values(), plain.values(), fired)}
    assert {i: t.response for i, t in together.items()} == {i: t.response for i, t in real.items()}
    assert {i: t.fired for i, t in together.items()} == {i: t.fired for i, t in real.items()}
    # The other way round it is another plan.
    turned = composed("g", open_.values(), plain.values(), {i: not f for i, f in fired.items()})
    assert {t.id: t.response for t in turned} != {i: t.response for i, t in real.items()}
    with pytest.raises(RMuseError, match="the same questions"):
        composed("g", list(open_.values())[1:], plain.values(), fired)


# Ablations.


def test_each_ablation_removes_what_it_names_and_nothing_else(world):
    lens, benchmark, evidence, fitted = world
    begins = {m: ablations.answer_begins(lens, benchmark, one.refusals) for m, one in evidence.items()}
    assert all(any(b.values()) for b in begins.values())
    found = [
        *ablations.of_paper(fitted["paper"], evidence, benchmark.prefixes[0]),
        *ablations.of_calibrated(fitted["calibrated"], evidence, begins),
    ]
    plans = {(v.preset, v.ablation): v.plan for v in found}
    assert len(plans) == 12
    assert len({v.plan.describe() + str(v.name) for v in found}) == 12
    for (preset, ablation), plan in plans.items():
        full = plans[preset, "full"]
        assert [e.modality for e in plan] == [e.modality for e in full]
        assert [e.sites for e in plan] == [e.sites for e in full]
        kept = [None if e.gate is None else e.gate.describe() for e in plan]
        assert kept == ([None, None] if ablation == "w/o gate" else [e.gate.describe() for e in full])
    for operator in common.operators_of(plans["paper", "w/o RRS"]).values():
        assert operator.shield is None
    for operator in common.operators_of(plans["paper", "w/o ACS"]).values():
        assert operator.angle.describe() == "λ = 0.5"
        assert operator.shield is not None
    for operator in common.operators_of(plans["calibrated", "w/o RRS"]).values():
        assert operator.rrs is None
    for operator in common.operators_of(plans["calibrated", "w/o ACS"]).values():
        assert operator.fraction == 0.5
    counts = [
        sum(len(o.points) for o in common.operators_of(plans["calibrated", name]).values())
        for name in ("full", "w/o reasoning span", "w/o answer span")
    ]
    assert counts[0] == counts[1] + counts[2]
    assert min(counts) > 0


def test_a_span_left_out_counts_as_no_difference(world):
    _, _, evidence, _ = world
    one = evidence["image"]
    both, _ = subspaces_at(one, 1, literal=False)
    only, rrs = subspaces_at(one, 1, literal=False, spans=("cot",))
    shift = (one.refusal["cot"].at(1) - one.own["cot"].select(one.refusal["cot"].ids).at(1)).mean(dim=0)
    assert torch.allclose(only.shift, shift, atol=1e-5)
    assert not torch.allclose(both.direction, only.direction, atol=1e-3)
    assert torch.equal(rrs.subspace.basis, subspaces_at(one, 1, literal=False)[1].subspace.basis)
    default = paper_edit(one, "image", [1], "p")[0]
    assert default.describe() == paper_edit(one, "image", [1], "p", SPANS)[0].describe()
    for wrong in ((), ("draft",)):
        with pytest.raises(RMuseError, match="spans out of cot, answer"):
            subspaces_at(one, 1, literal=True, spans=wrong)


def test_the_answer_begins_behind_the_reasoning(world):
    lens, benchmark, _, _ = world
    closer = benchmark.delimiters[1]
    said = ["No.", *reversed(benchmark.refusals_cot)]
    begins = ablations.answer_begins(lens, benchmark, said)
    assert list(begins) == list(range(1, len(said)))  # a refusal without reasoning is all answer
    for number, begin in begins.items():
        head, _, _ = said[number].partition(closer)
        least = len(lens.tokenizer(head, add_special_tokens=False).input_ids)
        assert least < begin <= len(lens.tokenizer(said[number]).input_ids)
    assert ablations.answer_begins(lens, benchmark, ["No."]) == {}


def test_ablation_rows_cover_every_split(records):
    record = records["ablations"]
    assert {(r["preset"], r["ablation"]) for r in record["rows"]} == {
        ("vanilla", "none"),
        *((v["preset"], v["ablation"]) for v in record["variants"]),
    }
    for row in record["rows"]:
        cell = row["fire_rate"]
        assert row["n"] == record["provenance"]["n"][row["split"]]
        assert (cell is None) == (row["preset"] == "vanilla")
        assert row["malformed_rate"]["low"] <= row["malformed_rate"]["value"] <= row["malformed_rate"]["high"]
        if row["ablation"] == "w/o gate":
            assert cell["value"] == cell["low"] == 100
    assert {r["split"] for r in record["rows"]} == set(SPLITS)


# Thresholds.


def test_a_larger_threshold_steers_more(records):
    sweep = records["threshold_sweep"]["sweep"]
    assert [one["tau"] for one in sweep] == sorted({one["tau"] for one in sweep})
    for split in sweep[0]["fire_rate"]:
        rates = [one["fire_rate"][split]["value"] for one in sweep]
        assert rates == sorted(rates)
        assert rates[0] == 0
        # Only a state that lies inside the RRS whole has s_gate = 1, and stays out even at τ = 1.
        assert rates[-1] == 100
    vanilla, steered = (one["rows"] for one in (sweep[0], sweep[-1]))
    assert [r["fire_rate"]["value"] for r in vanilla] == [0] * len(vanilla)
    assert vanilla != steered


def test_operating_curves_rise_and_pass_through_their_threshold(records):
    gates = records["threshold_sweep"]["gates"]
    assert gates[0]["gate"] == "literal"
    assert len(gates) > 3
    for row in gates:
        assert row["points"][-1] == [1.0, 1.0]
        assert row["points"] == sorted(row["points"])
        nearest = min(
            abs(x - row["fpr"]["value"] / 100) + abs(y - row["tpr"]["value"] / 100) for x, y in row["points"]
        )
        corner = row["fpr"]["value"] == row["tpr"]["value"] == 0  # nothing fires: before the first point
        assert nearest < 1e-5 or corner
        assert row["auroc"]["low"] <= row["auroc"]["value"] <= row["auroc"]["high"]
    assert any(row["chosen_for"] for row in gates)


# Strength and caps.


def test_strengths_are_measured_behind_both_gates_at_every_rate(records):
    record = records["adaptive_vs_fixed"]
    strengths = {"ACS", "0.5", "1"}
    assert {(r["forget"], r["gate"], r["strength"]) for r in record["rows"]} == {
        *((rate, gate, s) for rate in (5, 10) for gate in ("paper", "calibrated") for s in strengths),
        *((rate, None, "vanilla") for rate in (5, 10)),
    }
    assert all(0 <= a["q05"] <= a["q50"] <= a["q95"] <= 1 for a in record["acs"])
    assert record["acs"]


def test_caps_keep_some_of_the_prototypes_with_their_steps(world):
    _, _, _, fitted = world
    plan = fitted["calibrated"].plan
    before, after = (prototype_cap.transports(p) for p in (plan, prototype_cap.capped(plan, 5)))
    for address, operator in after.items():
        assert len(operator.points) == 5
        pairs = [
            {(int(p), tuple(x.tolist())) for p, x in zip(one.positions, one.points, strict=True)}
            for one in (operator, before[address])
        ]
        assert pairs[0] <= pairs[1]
        assert (operator.rrs is None) == (before[address].rrs is None)
    assert prototype_cap.counts(prototype_cap.capped(plan, 10**6)) == prototype_cap.counts(plan)
    with pytest.raises(RMuseError, match="a transport to prototypes"):
        prototype_cap.capped(fitted["paper"].plan, 5)


def test_the_caps_that_bind_are_reported(records):
    record = records["prototype_cap"]
    most = max(record["prototypes"].values())
    assert list(dict.fromkeys(r["cap"] for r in record["rows"])) == [
        None,
        *(c for c in (4, 16) if c < most),
        "all",
    ]
    for row in record["rows"]:
        if row["cap"] is not None:
            assert all(kept <= (most if row["cap"] == "all" else row["cap"]) for kept in row["kept"].values())


# Figures.


def test_figures_are_drawn_from_the_records_alone(results, records, tmp_path):
    """All in one process that knows neither torch nor the package."""
    code = (
        "import importlib, sys; sys.path.insert(0, 'figures')\n"
        "stems, results, out, empty = sys.argv[1].split(','), *sys.argv[2:]\n"
        "modules = [importlib.import_module(stem) for stem in stems]\n"
        "print([m.main(['--results', results, '--out', out]) for m in modules])\n"
        "print('torch' in sys.modules, 'rmuse_interp' in sys.modules)\n"
        "for m in modules:\n"
        "    try: m.main(['--results', empty])\n"
        "    except SystemExit as end: print('left with', end.code)\n"
    )
    (tmp_path / "empty").mkdir()
    argv = [
        sys.executable,
        "-c",
        code,
        ",".join(ANALYSES),
        str(results),
        str(tmp_path),
        str(tmp_path / "empty"),
    ]
    found = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.endswith("[0, 0, 0, 0]\nFalse False\n" + 4 * "left with 2\n"), found.stderr
    missing = found.stderr.splitlines()
    assert len(missing) == 4  # and not a warning beside
    for stem, line in zip(ANALYSES, missing, strict=True):
        assert f"python analyses/{stem}.py" in line
        assert (tmp_path / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
        assert (tmp_path / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        caption = " ".join((tmp_path / f"{stem}.txt").read_text().split())
        assert "n = " in caption
        assert records[stem]["provenance"]["model"]["fingerprint"] in caption


# The README's tables.


def test_the_readme_says_what_was_measured_and_marks_what_was_missed():
    row = {
        "forget": 5,
        "figure": "RIL, test",
        "value": 0.4,
        "low": 0.0,
        "high": 1.2,
        "n": 60,
        "sense": "<=",
        "target": 1.0,
        "reached": True,
    }
    record = {
        "rows": [row, row | {"forget": 10, "value": 2.5, "low": None, "high": None, "reached": False}],
        "provenance": {"render_seeds": [0, 1], "limit": 96},
    }
    text = readme_table.with_acceptance("a <!-- acceptance -->stale<!-- /acceptance --> z", record)
    assert "| RIL, test | ≤ 1 | 0.4 (0–1.2) | **2.5** |" in text
    assert text.startswith("a ")
    assert text.endswith(" z")
    assert "stale" not in text
    with pytest.raises(RMuseError, match="required one <!-- acceptance -->"):
        readme_table.with_acceptance("no place for it", record)


def test_figures_asked_of_calibrated_are_differences_on_the_same_questions(world):
    """Exact by hand: one answer lost of two, one refusal, one leak told apart from none."""
    _, benchmark, _, _ = world
    mine = [e for e in benchmark.scoring("retain_test") if e.kind == "generation"][:2]
    said = [
        transcribe(
            e,
            method,
            e.response(benchmark.delimiters) if kept else "<think> No. </think> nothing",
            benchmark.delimiters,
        )
        for method, keeps in (("vanilla", (True, True)), (acceptance.OURS, (True, False)))
        for e, kept in zip(mine, keeps, strict=True)
    ]
    cell = acceptance.Cell(benchmark, said, {e.id: e for e in mine})
    assert sorted(value for _, value in cell.lost("exact", "retain_test")) == [0.0, 100.0]
    found = acceptance.figures([cell])
    assert found["retain_test, lost"]["value"] == 50.0
    assert found["retain_test, lost"]["n"] == 2
    assert set(found) <= set(acceptance.TARGETS)
    assert "gate AUROC" not in found  # nothing was scored
