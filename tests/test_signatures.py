"""Failure signatures on the organism: each found in a run that is broken on purpose, none in the healthy one."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from helpers.said import said
from typer.testing import CliRunner

from rmuse_interp import load_benchmark, load_model
from rmuse_interp.cli.app import app
from rmuse_interp.cli.doctor import lines
from rmuse_interp.cli.evaluate import save_run
from rmuse_interp.data import Benchmark
from rmuse_interp.diagnostics.findings import Case, Figure, cases
from rmuse_interp.diagnostics.signatures import SIGNATURES, diagnose
from rmuse_interp.evaluate.scores import transcribe
from rmuse_interp.fitting import assemble, gather
from rmuse_interp.fitting.agreement import LEAST, subspace_table
from rmuse_interp.maths.statistics import wilson
from rmuse_interp.method.rmuse import RMuse, calibrated_edit, together
from rmuse_interp.parts.gates import Contrast, Gate, Read
from rmuse_interp.runs import run as running
from rmuse_interp.runs.run import Method

pytestmark = pytest.mark.slow

LAYER = 6
NAMES = (
    "reasoning leakage",
    "reasoning collapse",
    "over-steering of retain",
    "dead gate",
    "unstable subspace",
    "rank starved",
    "span mistakes",
    "garbled words",
)
FORGET = ("forget", "test")
OTHERS = ("retain_test", "celebrity", "benign")


class Pictures(Benchmark):
    """The benchmark with questions to forget about pictures alone: half the fit."""

    @property
    def fit_forget(self):
        return [e for e in super().fit_forget if e.modality == "image"]


class Bench:
    """The organism, fitted once on few examples, and its answers to few questions under any plan."""

    def __init__(self):
        self.lens = load_model("organism")
        self.benchmark = copy.copy(load_benchmark("organism", forget=5))
        self.benchmark.__class__ = Pictures
        self.evidence = gather(self.lens, self.benchmark, limit=16)["image"]
        self.healthy = self.assembled(self.evidence)
        asked = running.choose(self.benchmark, 9)
        self.questions = {s: [e for e in asked[s] if e.modality == "image"] for s in FORGET + OTHERS}
        self.plain = self.run(Method("vanilla", self.lens)).transcripts

    def assembled(self, evidence, preset="calibrated") -> RMuse:
        return assemble(self.lens, self.benchmark, {"image": evidence}, preset, layers=[LAYER])

    def run(self, method, splits=FORGET + OTHERS, tokens=48, traces=True):
        questions = {split: self.questions[split] for split in splits}
        return running.run(
            [method], questions, delimiters=self.benchmark.delimiters, max_new_tokens=tokens, traces=traces
        )

    def findings(self, fitted: RMuse, **settings):
        method = Method("rmuse", self.lens, fitted.plan, fitted.subspaces)
        answers = self.run(method, **settings)
        (case,) = cases(self.plain + answers.transcripts, answers.traces, {"rmuse": fitted})
        return {finding.name: finding for finding in diagnose(case)}


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench()


@pytest.fixture(scope="session")
def healthy_answers(bench):
    """The answers of a plan that works, looked at and found readable."""
    found = bench.run(Method("rmuse", bench.lens, bench.healthy.plan, bench.healthy.subspaces))
    return replace(found, transcripts=[replace(t, garbled="") for t in found.transcripts])


def states(findings) -> dict[str, str]:
    return {name: finding.state for name, finding in findings.items()}


def evidence(finding, start: str) -> Figure:
    return next(figure for figure in finding.evidence if figure.what.startswith(start))


def changed(fitted: RMuse, plan) -> RMuse:
    return RMuse(plan, fitted.subspaces, fitted.report)


def test_the_healthy_run_is_silent(bench, healthy_answers):
    (case,) = cases(
        bench.plain + healthy_answers.transcripts, healthy_answers.traces, {"rmuse": bench.healthy}
    )
    found = diagnose(case)
    assert [f.name for f in found] == list(NAMES)
    assert {f.state for f in found} == {"absent"}
    assert all(f.evidence and not f.missing and not f.cause for f in found)
    for figure in (figure for finding in found for figure in finding.evidence):
        assert figure.value is not None
        assert figure.low is None or figure.low <= figure.value <= figure.high


def test_steering_the_answer_alone_leaks_in_the_chain(bench):
    """A gate per token that opens at the end of the chain: the answer is withheld, what it stands on is not."""
    own = bench.evidence.own
    answer, chain = (own[span].at(LAYER) for span in ("answer", "cot"))
    late = Gate(Contrast(answer, chain, torch.cat([answer, chain]).mean(dim=0)), Read(LAYER))
    plan = bench.healthy.plan.without("image.gate")
    plan = type(plan)([plan[0].when(late, per="token")])
    found = bench.findings(changed(bench.healthy, plan), splits=FORGET)
    leak = found["reasoning leakage"]
    assert leak.state == "found"
    assert evidence(leak, "steered answers whose chain alone").low > 0.05
    assert evidence(leak, "tokens steered").value < 0.9
    assert "generated" in leak.setting


@pytest.mark.parametrize(
    ("chain", "leaks"), [("She lives in Oslo.", True), ("She does not live in Oslo.", False)]
)
def test_a_fact_that_the_chain_denies_is_no_leak(chain, leaks):
    said_so = [
        said(f"<think> {chain} </think> I cannot say.", i, attributes={"city": "Oslo"}) for i in range(20)
    ]
    leak = diagnose(Case("rmuse", [replace(t, fired=True) for t in said_so]))[0]
    assert evidence(leak, "steered answers whose chain alone").value == float(leaks)


def test_the_literal_method_collapses(bench):
    """Preset `paper`: always on, toward one direction by nearly the whole angle (defects D2 and D3)."""
    found = bench.findings(
        bench.assembled(bench.evidence, "paper"), splits=("forget", "retain_test", "celebrity")
    )
    assert found["reasoning collapse"].state == "found"
    assert evidence(found["reasoning collapse"], "broken answers to others").low > 0.1
    assert evidence(found["reasoning collapse"], "steered tokens with λ").n > 100
    assert "calibrated" in found["reasoning collapse"].setting
    assert found["dead gate"].state == "found"
    assert "always fires on image questions" in found["dead gate"].cause


def test_no_gate_and_no_protection_steer_too_much(bench):
    plan = bench.healthy.plan.without("image.gate").without("image.operator.rrs")
    found = bench.findings(changed(bench.healthy, plan), splits=OTHERS)["over-steering of retain"]
    assert found.state == "found"
    assert evidence(found, "others' questions that were steered").value == 1.0
    inside = evidence(found, "median share of the update inside the RRS")
    assert inside.value > 0.05
    assert "keeping(rrs)" in found.setting


@pytest.mark.parametrize(("threshold", "said"), [(1e9, "never fires"), (-1e9, "always fires")])
def test_a_threshold_outside_the_scores_is_a_dead_gate(bench, threshold, said):
    gate = bench.healthy.gates["image"].at_threshold(threshold)
    found = bench.findings(
        changed(bench.healthy, bench.healthy.plan.replace(**{"image.gate": gate})), tokens=2
    )
    assert found["dead gate"].state == "found"
    assert found["dead gate"].cause.startswith(f"the gate {said} on image questions")
    assert "text" not in found["dead gate"].cause


def few(evidence, n: int):
    parts = {
        name: {span: pooled.select(pooled.ids[:n]) for span, pooled in getattr(evidence, name).items()}
        for name in ("refusal", "step", "step_prefixed")
    }
    return replace(evidence, **parts)


def test_few_examples_make_an_unstable_subspace(bench):
    fitted = bench.assembled(few(bench.evidence, 6))
    found = bench.findings(fitted, splits=FORGET, tokens=2)["unstable subspace"]
    assert found.state == "found"
    rrs = evidence(found, "agreement of halves, U_rrs")
    assert rrs.high < 0.5
    assert "(6 examples)" in rrs.what
    table = subspace_table(few(bench.evidence, LEAST - 1), [LAYER], literal=False)
    report = fitted.report | {"image": fitted.report["image"] | {"subspaces": table}}
    case = Case("rmuse", bench.plain, bundle=RMuse(fitted.plan, fitted.subspaces, report))
    found = next(f for f in diagnose(case) if f.name == "unstable subspace")
    assert found.state == "found"
    assert evidence(found, "examples of U_rrs").value == LEAST - 1


def test_low_energy_starves_the_rank(bench):
    edit, kept = calibrated_edit(bench.evidence, "image", [LAYER], bench.healthy.gates["image"], energy=0.05)
    fitted = together([(edit, kept)], bench.healthy.report)
    assert kept.retain[f"image-{LAYER}"].rank == 1
    found = bench.findings(fitted, splits=FORGET, tokens=2)["rank starved"]
    assert found.state == "found"
    assert "rank 1 of" in evidence(found, "energy held by U_rrs").what
    assert evidence(found, "energy held by U_rrs").value < 0.5 < evidence(found, "energy held by U_un").value


def test_shifted_steps_tear_the_spans(bench):
    """Refusal states labelled a few steps too early: what is said begins in the middle of a refusal."""
    late = bench.evidence.position >= 3
    shifted = replace(
        bench.evidence,
        tokens=bench.evidence.tokens[late],
        position=bench.evidence.position[late] - 3,
        template=bench.evidence.template[late],
        run=bench.evidence.run[late],
    )
    found = bench.findings(bench.assembled(shifted), splits=FORGET)["span mistakes"]
    assert found.state == "found"
    assert evidence(found, "steered answers with one delimiter").low > 0.1
    assert "shifted" in found.cause


def test_other_delimiters_than_the_models_are_a_span_mistake(bench, healthy_answers):
    by_id = {e.id: e for examples in bench.questions.values() for e in examples}
    other = ("Reasoning:", "Answer:")
    read = [
        transcribe(by_id[t.id], t.method, t.response, other, t.gate_score, t.fired)
        for t in bench.plain + healthy_answers.transcripts
    ]
    (case,) = cases(read, healthy_answers.traces, {}, other)
    found = {f.name: f for f in diagnose(case)}["span mistakes"]
    assert found.state == "found"
    assert "does not write Reasoning: … Answer:" in found.cause
    assert "--delimiters" in found.setting


def test_what_a_run_lacks_is_named(bench, healthy_answers):
    """Without traces, bundle or the unsteered answers nothing is silently left out."""
    (case,) = cases(bench.plain + healthy_answers.transcripts, None, {})
    found = {f.name: f for f in diagnose(case)}
    assert found["unstable subspace"].state == found["rank starved"].state == "not checked"
    assert "--bundle BUNDLE" in found["rank starved"].missing[0]
    for name in ("reasoning leakage", "reasoning collapse", "over-steering of retain", "dead gate"):
        assert found[name].state == "absent"
        assert "run `rmuse eval` again with --record" in found[name].missing[0]
    (case,) = cases(healthy_answers.transcripts, None, {})
    found = {f.name: f for f in diagnose(case)}
    for name in ("reasoning collapse", "over-steering of retain", "span mistakes"):
        assert found[name].state == "not checked"
        assert "the unsteered model's answers" in found[name].missing[0]
    old = {key: value for key, value in bench.healthy.report["image"].items() if key != "subspaces"}
    earlier = RMuse(bench.healthy.plan, bench.healthy.subspaces, bench.healthy.report | {"image": old})
    (case,) = cases(healthy_answers.transcripts, None, {"rmuse": earlier})
    unstable = next(f for f in diagnose(case) if f.name == "unstable subspace")
    assert unstable.state == "not checked"
    assert "`rmuse fit` again" in unstable.missing[0]
    only = [t for t in healthy_answers.transcripts if t.split in OTHERS]
    leak = diagnose(Case("rmuse", only))[0]
    assert leak.state == "not checked"
    assert "--limit" in leak.missing[0]


def test_methods_that_do_not_steer_are_not_examined(bench, healthy_answers):
    gold = [replace(t, method="gold") for t in bench.plain]
    found = cases(bench.plain + gold + healthy_answers.transcripts, healthy_answers.traces, {})
    assert [case.method for case in found] == ["rmuse"]


def test_a_report_tells_how_well_the_data_determine_the_subspaces(bench):
    entry = bench.healthy.report["image"]["subspaces"][str(LAYER)]["retain"]
    rrs = bench.healthy.subspaces.at("image", LAYER)[1]
    assert entry["rank"] == rrs.rank
    assert entry["kept"] >= entry["asked"] == 0.8
    assert entry["spectrum"] == sorted(entry["spectrum"], reverse=True)
    assert 0 < entry["agreement"]["low"] <= entry["agreement"]["value"] <= entry["agreement"]["high"] <= 1
    again = subspace_table(bench.evidence, [LAYER], literal=False)[str(LAYER)]["retain"]
    assert again == entry
    draw = torch.Generator().manual_seed(0)
    sides = {
        name: {
            span: replace(pooled, states=torch.randn(pooled.states.shape, generator=draw))
            for span, pooled in getattr(bench.evidence, name).items()
        }
        for name in ("step", "direct")
    }
    noise = replace(bench.evidence, **sides)
    random = subspace_table(noise, [LAYER], literal=False)[str(LAYER)]["retain"]
    assert random["agreement"]["high"] < entry["agreement"]["low"]
    json.dumps(entry, allow_nan=False)


def doctor(*words):
    return CliRunner().invoke(app, ["doctor", *map(str, words)])


def refused(*words) -> str:
    result = doctor(*words)
    assert result.exit_code == 2
    return result.stderr


@pytest.fixture
def folder(bench, healthy_answers, tmp_path):
    """A run folder as `rmuse eval` leaves it, and its bundle."""
    bench.healthy.save(tmp_path / "bundle")
    both = replace(healthy_answers, transcripts=bench.plain + healthy_answers.transcripts)
    scores = {
        "schema": "rmuse-scores/1",
        "methods": {"vanilla": {}, "rmuse": {}},
        "delimiters": list(bench.benchmark.delimiters),
        "bundles": {"rmuse": "../bundle"},
    }
    (tmp_path / "run").mkdir()
    save_run(tmp_path / "run", scores, both, overwrite=False)
    return tmp_path / "run"


def test_the_doctor_reads_a_run_folder(folder):
    shown = doctor(folder)
    assert shown.exit_code == 0, shown.stderr
    assert "rmuse: 0 of 8 signatures found" in shown.stdout
    assert all(name in shown.stdout for name in NAMES)
    assert "not checked" not in shown.stdout
    record = json.loads(doctor(folder, "--json").stdout)
    assert record["schema"] == "rmuse-doctor/1"
    assert record["traces"] is True
    assert [f["name"] for f in record["findings"]] == list(NAMES)
    assert all(figure["what"] for f in record["findings"] for figure in f["evidence"])
    (folder / "traces.safetensors").unlink()
    shown = doctor(folder).stdout
    assert shown.count("needs steering traces: run `rmuse eval` again with --record") == 4
    (folder / "../bundle/rmuse.json").unlink()
    assert doctor(folder).stdout.count("not checked: unstable subspace, needs the bundle") == 1


def test_the_doctor_refuses_what_is_no_run(folder, tmp_path):
    assert "write it with `rmuse eval`" in refused(tmp_path)
    scores = json.loads((folder / "scores.json").read_text())
    (folder / "scores.json").write_text(json.dumps(scores | {"schema": "rmuse-scores/0"}))
    assert "rmuse-scores/0" in refused(folder)
    (folder / "scores.json").write_text(json.dumps(scores))
    assert "which has vanilla, rmuse" in refused(folder, "--bundle", folder / "../bundle")
    kept = [line for line in (folder / "transcripts.jsonl").read_text().splitlines() if '"vanilla"' in line]
    (folder / "transcripts.jsonl").write_text("\n".join(kept))
    (folder / "traces.safetensors").unlink()
    assert "a method that steers" in refused(folder)


def test_findings_are_told_with_their_figures():
    """Evidence, cause and setting of what was found; names of the rest."""
    assert len(SIGNATURES) == len(NAMES)
    figure = Figure.of("broken answers", wilson(9, 10))
    from rmuse_interp.diagnostics.findings import Finding

    said = lines(
        [
            Finding("reasoning collapse", "a", "found", (figure,), "why", "what", ("this needs that",)),
            Finding("dead gate", "a", "absent", (figure,)),
        ]
    )
    text = "\n".join(said)
    assert "a[/bold]: 1 of 2 signatures found" in text
    assert "broken answers: 0.9 (0.596–0.982), n = 10" in text
    assert "likely cause: why" in text
    assert "try: what" in text
    assert "not found: dead gate" in text
    assert "not checked: reasoning collapse: this needs that" in text


def test_garbled_and_endless_answers_are_found(bench, healthy_answers):
    """Three answers in four that nobody can read, or that the limit cut off where the unsteered model's ended."""

    def found(garbled: str, ended: bool, unsteered: bool = True):
        mine = [
            replace(t, fired=True, garbled=garbled if i % 4 else "", ended=ended)
            for i, t in enumerate(healthy_answers.transcripts)
        ]
        plain = [replace(t, ended=unsteered) for t in bench.plain]
        (case,) = cases(plain + mine, None, {"rmuse": bench.healthy})
        return {f.name: f for f in diagnose(case)}["garbled words"]

    assert found("", True).state == "absent"
    assert found("unlikely", True).state == "found"
    assert found("unlikely", True).evidence[0].value == pytest.approx(0.75, abs=0.05)
    assert found("", False).state == "found"
    assert found("", False, unsteered=False).state == "absent"  # the model itself never ends here
