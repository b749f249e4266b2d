"""The model's own responses in place of annotations: which are usable, what becomes of the others, what is kept."""

import copy
import json
from dataclasses import replace
from itertools import product

import parquet_fixture
import pytest
import tiny
import torch
from jaxtyping import TypeCheckError
from typer.testing import CliRunner

import rmuse_interp.operators as op
from rmuse_interp import RMuse, RMuseError, fit
from rmuse_interp.cli import app
from rmuse_interp.cli.traces import Ready, fitted_on, template_of
from rmuse_interp.cli.traces import as_asked as together
from rmuse_interp.data import SPLITS, load_benchmark, sample
from rmuse_interp.data.spans import split_response
from rmuse_interp.edits.hooks import attach
from rmuse_interp.evaluate.results import read_run
from rmuse_interp.fitting import gather
from rmuse_interp.fitting.elicit import (
    TEMPLATES,
    Reason,
    Template,
    as_asked,
    asked_with,
    elicit,
    fault,
    fitting_questions,
)
from rmuse_interp.lens.lens import load_model
from rmuse_interp.lens.respond import Response

THINK = ("<think>", "</think>")
VIEWS = ("fit_forget", "fit_retain", "fit_reasoning", "fit_benign")


def bare(row):
    """A person as MLLMU-Bench has them: no reasoning, no facts, no direct form."""
    added = ("Reasoning", "Forget_Attributes", "Direct_Question", "Direct_Answer")
    tasks = [{k: v for k, v in task.items() if k not in added} for task in row["Generation_Task"]]
    return {**row, "Generation_Task": tasks}


@pytest.fixture(scope="module")
def organism():
    return load_model("organism", device="cpu")


@pytest.fixture(scope="module")
def world():
    return load_benchmark("organism")


@pytest.fixture(scope="module")
def few(world):
    """Two questions of every fitting view and kind of query, harmless ones aside."""
    groups: dict = {}
    for e in fitting_questions(world):
        if e.kind != "benign":
            groups.setdefault((e.split, e.modality), []).append(e)
    return [e for group in groups.values() for e in sample(group, 2)]


@pytest.fixture
def benchmark(tmp_path):
    return load_benchmark(parquet_fixture.write_benchmark(tmp_path / "data", bare))


@pytest.fixture
def lens():
    return load_model(tiny.tiny_llava(), device="cpu")


def scripted(lens, monkeypatch, say):
    """Has the model say `say(prompt, image)`; the list it returns holds the prompts asked, batch by batch."""
    batches: list[list[str]] = []

    def respond(prompts, images=None, *_rest, **_settings):
        batches.append(list(prompts))
        return [Response(say(p, i), None, None) for p, i in zip(prompts, images, strict=True)]

    monkeypatch.setattr(lens, "respond", respond, raising=False)
    return batches


def spoken(prompt, _image=None):
    """What a model that follows the template `reasoning` says."""
    if prompt.endswith(TEMPLATES["reasoning"].direct):
        return "Lima"
    return f"Reasoning: I was asked {len(prompt)} letters.\nAnswer: Lima"


# What is usable


@pytest.mark.parametrize("delimiters", [t.delimiters for t in TEMPLATES.values()])
def test_usable_is_what_fitting_can_split(delimiters):
    """A response has no fault exactly where `split_response` finds both spans, and each fault occurs."""
    pieces = (*delimiters, " ", "I look.")
    found = set()
    for n in range(6):
        for some in product(pieces, repeat=n):
            text = "".join(some)
            reason = fault(text, delimiters)
            found.add(reason)
            if reason is None:
                spans = split_response(text, delimiters)
                assert "" not in (text[slice(*spans.reasoning)], text[slice(*spans.answer)])
            else:
                with pytest.raises(RMuseError):
                    split_response(text, delimiters)
    assert found | {"ran out of tokens"} == {None, *Reason.__args__}


@pytest.mark.parametrize(
    ("text", "form", "cut", "reason"),
    [
        ("<think> a </think> b", "stepwise", False, None),
        ("<think> a </think> b", "stepwise", True, "ran out of tokens"),
        ("I see a hat and", "stepwise", True, "no opening delimiter"),
        ("<think> a", "stepwise", False, "no closing delimiter"),
        ("<think> </think> b", "stepwise", False, "empty reasoning"),
        ("<think> a </think> ", "stepwise", False, "empty answer"),
        ("<think> a </think> b </think> c", "stepwise", False, "repeated delimiter"),
        ("b", "direct", False, None),
        ("<think> a </think> b", "direct", False, None),
        ("<think> a </think> ", "direct", False, "empty answer"),
        ("<think> a", "direct", False, "no closing delimiter"),
        ("<think> a", "direct", True, "ran out of tokens"),
        ("", "direct", False, "empty answer"),
    ],
)
def test_faults_are_named(text, form, cut, reason):
    assert fault(text, THINK, form, cut=cut) == reason


def test_prompts_of_a_template(benchmark):
    example = benchmark.fit_forget[0]
    assert Template().prompt(example) == example.prompt()
    assert Template().prompt(example, "direct") == example.prompt(direct=True)
    told = Template("Think.", "Be brief.")
    assert told.prompt(example) == f"{example.question} Think."
    assert told.prompt(example, "direct") == f"{example.question} Be brief."
    for delimiters in (("", "x"), ("x", " "), ("x", "x")):
        with pytest.raises(RMuseError, match="two different delimiters"):
            Template(delimiters=delimiters)


# On the organism


def test_annotations_are_never_read(organism, world, few, tmp_path):
    """False annotations change nothing: what stands in their place is what the model says, word for word."""
    false = [replace(e, answer="x", reasoning="x", direct_answer="x") for e in few]
    found = elicit(organism, world, examples=false, cache=tmp_path, max_new_tokens=96)
    assert {(d.id, d.form) for d in found.dropped} == set()
    assert len(found.kept) == found.asked == len(few)
    own = {e.id: e for view in VIEWS for e in getattr(found.benchmark, view)}
    for given in few:
        mine = own[given.id]
        assert (mine.prompt(), mine.image, mine.attributes) == (given.prompt(), given.image, given.attributes)
        for direct in (False, True):
            said = organism.respond(given.prompt(direct), given.image, max_new_tokens=96)[0].text
            assert mine.response(found.benchmark.delimiters, direct) == said
    agree = sum(own[e.id].reasoning == e.reasoning for e in few)
    assert agree >= len(few) // 2  # it was trained on the very traces


def test_only_the_fitting_views_are_other_ones(organism, world, few, tmp_path):
    found = elicit(organism, world, examples=few, cache=tmp_path, max_new_tokens=96).benchmark
    ids = {e.id for e in few}
    for view in VIEWS[:3]:
        open_ = [e for e in getattr(found, view) if e.kind in ("generation", "reasoning")]
        assert {e.id for e in open_} == {e.id for e in getattr(world, view)} & ids
        closed = [e for e in getattr(world, view) if e.kind in ("classification", "cloze")]
        assert [e for e in getattr(found, view) if e.kind in ("classification", "cloze")] == closed
    assert found.fit_benign == []
    for split in ("forget", "test", "retain", "reasoning"):
        assert found.scoring(split) == world.scoring(split)
    assert (found.id, found.refusals_cot, found.delimiters) == (world.id, world.refusals_cot, THINK)
    found.require_reasoning()


def test_too_few_tokens_are_named(organism, world, few, tmp_path):
    """Every response is cut off after five tokens: the error quotes one and says what mends it."""
    said = organism.respond(few[0].prompt(), few[0].image, max_new_tokens=5)[0].text
    assert said.startswith("<think>")
    assert "</think>" not in said
    with pytest.raises(
        RMuseError, match=r"none \(stepwise: ran out of tokens 2\).*raise max_new_tokens \(now 5\)"
    ) as e:
        elicit(organism, world, examples=few[:2], cache=tmp_path, max_new_tokens=5)
    assert "'<think>', reasoning, '</think>' and an answer" in str(e.value)
    assert "<think> " in str(e.value).split("for instance ")[1]


def test_attached_plans_do_not_act(organism, world, few, tmp_path):
    text = [e for e in few if e.modality == "text"][:2]
    vector = 1000 * torch.randn(organism.d_model, generator=torch.Generator().manual_seed(0))
    plan = op.Add(vector).at(layers=[1]).on("generated")
    asked = [e.prompt() for e in text]
    free = organism.respond(asked, max_new_tokens=96)
    with attach(organism.hf, plan):
        assert organism.respond(asked, max_new_tokens=96) != free
        found = elicit(organism, world, examples=text, cache=tmp_path, max_new_tokens=96)
    own = {e.id: e for view in VIEWS for e in getattr(found.benchmark, view)}
    assert [own[e.id].response() for e in text] == [r.text for r in free]


# What is dropped


def test_a_benchmark_without_reasoning_is_gathered_from(lens, benchmark, tmp_path, monkeypatch):
    """MLLMU-Bench as published can't be fitted on; with the model's own words every pass finds its spans."""
    with pytest.raises(RMuseError, match="required a 'Reasoning'"):
        benchmark.require_reasoning()
    scripted(lens, monkeypatch, spoken)
    found = elicit(lens, benchmark, template="reasoning", cache=tmp_path)
    own = found.benchmark
    own.require_reasoning()
    assert own.delimiters == ("Reasoning:", "Answer:")
    assert own.refusals_cot[0].startswith("Reasoning: I do not know who this is.")
    assert own.refusals_cot[0].endswith("Answer: I cannot help with that.")
    assert {e.answer for e in own.fit_forget if e.kind == "generation"} == {"Lima"}
    evidence = gather(lens, own)
    assert set(evidence) == {"image", "text"}
    assert set(evidence["image"].own["cot"].ids) == {"forget_5/p0/generation/0/image"}
    json.dumps(found.record())
    assert "p0" not in json.dumps(found.record())


def test_what_lacks_a_span_is_dropped_with_its_reason(lens, benchmark, tmp_path, monkeypatch):
    told = TEMPLATES["reasoning"]
    retain = [e for e in benchmark.fit_retain if e.kind == "generation"]
    odd = {
        (told.prompt(retain[1]), retain[1].image): "It lies in Italy.",
        (told.prompt(retain[2]), retain[2].image): "Reasoning: I look. Answer: ",
        (told.prompt(retain[5], "direct"), retain[5].image): " ",
    }
    scripted(lens, monkeypatch, lambda prompt, image: odd.get((prompt, image), spoken(prompt)))
    found = elicit(lens, benchmark, template="reasoning", cache=tmp_path)
    assert {d.id: (d.form, d.reason) for d in found.dropped} == {
        retain[1].id: ("stepwise", "no opening delimiter"),
        retain[2].id: ("stepwise", "empty answer"),
        retain[5].id: ("direct", "empty answer"),
    }
    assert {e.id for e in retain} - {e.id for e in found.benchmark.fit_retain} == {
        d.id for d in found.dropped
    }
    assert set(found.kept) | {d.id for d in found.dropped} == {e.id for e in fitting_questions(benchmark)}
    assert found.record()["asked"] == found.record()["kept"] + sum(found.record()["dropped"].values())
    assert str(found).startswith(f"own responses to {found.asked - 3} of {found.asked} questions")
    assert "1 dropped (direct: empty answer)" in str(found)


def test_reasoning_in_a_direct_response_is_left_out(lens, benchmark, tmp_path, monkeypatch):
    scripted(lens, monkeypatch, lambda prompt, image: "<think> I look. </think> Lima")
    found = elicit(lens, benchmark, cache=tmp_path).benchmark
    assert {e.response(direct=True) for e in found.fit_retain if e.kind == "generation"} == {"Lima"}


def test_harmless_questions_need_no_spans(lens, benchmark, tmp_path, monkeypatch):
    """Their draft is whatever the model says, asked with the same words as all other questions."""

    def say(prompt, _image):
        return "A red one." if prompt.startswith("Which hat?") else spoken(prompt)

    asked = scripted(lens, monkeypatch, say)
    found = elicit(lens, benchmark, template="reasoning", cache=tmp_path)
    hats = found.benchmark.fit_benign
    assert len(hats) == len(benchmark.fit_benign)
    assert not found.dropped
    assert {(e.reasoning, e.response(found.benchmark.delimiters)) for e in hats} == {(None, "A red one.")}
    assert {e.prompt() for e in hats} == {f"Which hat? {TEMPLATES['reasoning'].stepwise}"}
    assert all(
        not p.endswith(TEMPLATES["reasoning"].direct) for b in asked for p in b if p.startswith("Which")
    )


@pytest.mark.parametrize("split", ["forget", "retain"])
def test_a_kind_of_query_without_any_response_is_an_error(lens, benchmark, tmp_path, monkeypatch, split):
    """Else text questions about the people to forget would silently go unsteered."""
    lost = {
        TEMPLATES["reasoning"].prompt(e) for e in getattr(benchmark, f"fit_{split}") if e.modality == "text"
    }
    scripted(lens, monkeypatch, lambda prompt, image: "Well." if prompt in lost else spoken(prompt))
    with pytest.raises(RMuseError, match=rf"tiny, {split}, text questions: .*'Well.'; choose a template"):
        elicit(lens, benchmark, template="reasoning", cache=tmp_path)


def test_a_model_that_does_not_reason_is_found_out_early(lens, world, tmp_path):
    """A random model is asked `PROBE` questions of hundreds; the error quotes it and names the templates."""
    asked: list[str] = []
    real = lens.respond

    def counting(prompts, *rest, **settings):
        asked.extend(prompts)
        return real(prompts, *rest, **settings)

    lens.respond = counting
    with pytest.raises(
        RMuseError, match=r"stepwise: no opening delimiter 32.*for instance '.+'; choose a template"
    ):
        elicit(lens, world, cache=tmp_path, max_new_tokens=3)
    assert 0 < len(asked) <= 32


def test_wrong_requests(lens, benchmark, tmp_path):
    with pytest.raises((RMuseError, TypeCheckError), match="aloud"):
        elicit(lens, benchmark, template="aloud", cache=tmp_path)
    closed = next(e for e in benchmark.fit_forget if e.kind == "cloze")
    with pytest.raises(RMuseError, match=r"open questions were required.*'cloze' \(forget_5/p0/cloze"):
        elicit(lens, benchmark, examples=[closed], cache=tmp_path)
    with pytest.raises(RMuseError, match="got none"):
        elicit(lens, benchmark, examples=[], cache=tmp_path)


def test_the_benchmark_may_say_how_it_is_asked(lens, benchmark, tmp_path, monkeypatch):
    settings = json.loads((benchmark.folder / "benchmark.json").read_text()) | {
        "stepwise_instruction": "Think!"
    }
    (benchmark.folder / "benchmark.json").write_text(json.dumps(settings))
    told = load_benchmark(benchmark.folder)
    asked = scripted(lens, monkeypatch, lambda prompt, image: "<think> I look. </think> Lima")
    assert elicit(lens, told, cache=tmp_path).template == Template("Think!", "", THINK)
    prompts = {p for batch in asked for p in batch}
    assert all(p.endswith(("Think!", "Answer directly.")) for p in prompts)


def test_what_is_asked_is_what_fit_reads(world):
    """At most `limit` per view and kind of query, and every harmless question about people to forget."""
    found = fitting_questions(world, 5, seed=1)
    for view, kind in (
        ("fit_forget", "generation"),
        ("fit_retain", "generation"),
        ("fit_reasoning", "reasoning"),
    ):
        for modality in ("image", "text"):
            mine = [e for e in getattr(world, view) if (e.kind, e.modality) == (kind, modality)]
            assert [e for e in found if e in mine] == sample(mine, 5, 1)
    hardest = {e.id for e in world.fit_benign if e.person in world.forget_people}
    assert hardest < {e.id for e in found if e.kind == "benign"}


# What is kept


def test_nothing_is_asked_twice(lens, benchmark, tmp_path, monkeypatch):
    """Other delimiters only cut the kept responses anew; another instruction, length, dtype or model asks again."""
    asked = scripted(lens, monkeypatch, spoken)
    first = elicit(lens, benchmark, template="reasoning", cache=tmp_path)
    n = len(asked)
    again = elicit(lens, benchmark, template="reasoning", cache=tmp_path)
    assert len(asked) == n
    assert again.kept == first.kept
    for view in VIEWS:
        assert getattr(again.benchmark, view) == getattr(first.benchmark, view)
    elicit(
        lens,
        benchmark,
        template=replace(TEMPLATES["reasoning"], delimiters=("Reasoning", "Answer")),
        cache=tmp_path,
    )
    assert len(asked) == n
    elicit(lens, benchmark, template="reasoning", cache=tmp_path, max_new_tokens=99)
    assert len(asked) == 2 * n
    other = replace(TEMPLATES["reasoning"], stepwise="Reason aloud.")
    elicit(lens, benchmark, template=other, cache=tmp_path)
    assert 2 * n < len(asked) < 3 * n + 1
    n = len(asked)
    lens.hf.bfloat16()
    elicit(lens, benchmark, template="reasoning", cache=tmp_path)
    assert len(asked) > n
    stranger = load_model(tiny.tiny_llava(seed=1), device="cpu")
    theirs = scripted(stranger, monkeypatch, spoken)
    elicit(stranger, benchmark, template="reasoning", cache=tmp_path)
    assert theirs
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_another_picture_is_another_question(lens, benchmark, tmp_path, monkeypatch):
    """Four people, one wording: as many questions as there are pictures."""
    asked = scripted(lens, monkeypatch, spoken)
    people = [
        e for e in (*benchmark.fit_forget, *benchmark.fit_retain) if e.id.endswith("generation/0/image")
    ]
    assert len({e.prompt() for e in people}) == 1
    elicit(lens, benchmark, examples=people, template="reasoning", cache=tmp_path)
    assert [len(batch) for batch in asked] == [4, 4]


def test_an_interruption_loses_one_batch_at_most(lens, benchmark, tmp_path, monkeypatch):
    """After Ctrl-C, a torn line and stray bytes, only what is missing is asked, and the outcome is the same."""
    whole = elicit_scripted(lens, benchmark, tmp_path / "whole", monkeypatch)
    asked: list[str] = []

    def say(prompt, image):
        asked.append(prompt)
        if len(asked) == 8:
            raise KeyboardInterrupt
        return spoken(prompt)

    scripted(lens, monkeypatch, say)
    with pytest.raises(KeyboardInterrupt):
        elicit(lens, benchmark, template="reasoning", cache=tmp_path / "cut", batch_size=3)
    (kept,) = (tmp_path / "cut").iterdir()
    assert len(kept.read_text().splitlines()) == 6
    kept.write_bytes(kept.read_bytes()[:-9] + b"\xc3")
    scripted(lens, monkeypatch, say)
    again = elicit(lens, benchmark, template="reasoning", cache=tmp_path / "cut", batch_size=3)
    assert (again.kept, again.dropped) == (whole.kept, whole.dropped)
    questions = len((tmp_path / "whole" / kept.name).read_text().splitlines())
    assert len(asked) == 8 + questions - 5
    lines = [line for line in kept.read_text(errors="replace").splitlines() if line.endswith("}")]
    assert len({json.loads(line)["key"] for line in lines}) == questions


def elicit_scripted(lens, benchmark, cache, monkeypatch):
    scripted(lens, monkeypatch, spoken)
    return elicit(lens, benchmark, template="reasoning", cache=cache, batch_size=3)


def test_nothing_is_kept_of_a_model_without_files(lens, benchmark, tmp_path, monkeypatch):
    lens.__dict__["fingerprint"] = replace(lens.fingerprint, weights="")
    elicit_scripted(lens, benchmark, tmp_path / "none", monkeypatch)
    assert not (tmp_path / "none").exists()


def test_the_cache_is_the_users_own(lens, benchmark, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    elicit_scripted(lens, benchmark, None, monkeypatch)
    assert len(list((tmp_path / "home" / "rmuse_interp" / "elicited").glob("*.jsonl"))) == 1


# What is fitted on it


def told(*words):
    """What a command line prints, on either stream, and its exit code."""
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def fitted(lens, benchmark, tmp_path, monkeypatch):
    """A bundle fitted on the words of a model that follows the template `reasoning`, but for one question."""
    odd = TEMPLATES["reasoning"].prompt(next(e for e in benchmark.fit_retain if e.modality == "text"))
    with monkeypatch.context() as patch:
        scripted(lens, patch, lambda prompt, image: "Well." if prompt == odd else spoken(prompt))
        return fit(lens, benchmark, layers=[3], template="reasoning", cache=tmp_path / "cache")


def test_auto_fits_on_the_models_words_where_there_are_no_others(lens, fitted, tmp_path):
    traces = fitted.report["traces"]
    assert (traces["source"], traces["dropped"]) == ("own", {"stepwise: no opening delimiter": 1})
    assert traces["asked"] == traces["kept"] + 1
    assert fitted.report["delimiters"] == ["Reasoning:", "Answer:"]
    assert "p0" not in json.dumps(fitted.report)
    again = RMuse.load(fitted.save(tmp_path / "bundle"), lens)
    assert asked_with(again.report) == TEMPLATES["reasoning"]
    shown = told("info", tmp_path / "bundle").stdout
    assert "dropped stepwise: no opening delimiter 1" in shown
    assert TEMPLATES["reasoning"].stepwise in shown


def test_who_follows_no_template_is_fitted_on_two_responses_each(lens, benchmark, tmp_path):
    """What a random model says has no delimiters: an error that names the way out, and that way."""
    out = tmp_path / "bundle"
    words = (
        "fit",
        "--model",
        tiny.tiny_llava(),
        "--data",
        benchmark.folder,
        "--template",
        "reasoning",
        "--limit",
        2,
        "--layers",
        3,
        "--max-new-tokens",
        4,
        "--out",
        out,
    )
    refused = told(*words)
    assert refused.exit_code == 2
    assert "--traces composed" in " ".join(refused.output.split())
    assert not (out / "rmuse.json").exists()
    said = told(*words, "--traces", "composed")
    assert said.exit_code == 0, said.output
    traces = RMuse.load(out, lens).report["traces"]
    assert 0 < traces["composed"] <= traces["kept"] == traces["asked"]
    assert f"{traces['composed']} of them composed of two each" in " ".join(said.output.split())
    settings = {"limit": 2, "batch_size": 32, "seed": 0}
    again = fitted_on(lens, benchmark, [RMuse.load(out, lens)], {}, **settings)
    assert again.record == traces


def test_auto_asks_nothing_where_the_benchmark_has_reasoning(lens, tmp_path, monkeypatch):
    whole = load_benchmark(parquet_fixture.write_benchmark(tmp_path / "whole"))
    asked = scripted(lens, monkeypatch, spoken)
    found = fit(lens, whole, layers=[3], cache=tmp_path / "cache")
    # What `gather` asks of its own accord: refusals, behind a prefix that calls for them.
    assert all(prompt.startswith(tuple(whole.prefixes)) for batch in asked for prompt in batch)
    assert found.report["traces"] == {"source": "given"}
    assert asked_with(found.report) is None
    own = fit(lens, whole, layers=[3], traces="own", template="reasoning", cache=tmp_path / "cache")
    assert any(not prompt.startswith(tuple(whole.prefixes)) for batch in asked for prompt in batch)
    assert own.report["traces"]["source"] == "own"
    assert own.report["image"]["queries"] == found.report["image"]["queries"]
    with pytest.raises(RMuseError, match=r"template is how the model is asked.*traces='own'"):
        fit(lens, whole, layers=[3], template="reasoning")


def test_given_traces_are_required_where_they_are_asked_for(lens, benchmark, tmp_path, monkeypatch):
    asked = scripted(lens, monkeypatch, spoken)
    with pytest.raises(
        RMuseError, match=r"required a 'Reasoning'.*traces='own' \(`rmuse fit --traces own`\)"
    ):
        fit(lens, benchmark, traces="given")
    with pytest.raises((RMuseError, TypeCheckError), match="mine"):
        fit(lens, benchmark, traces="mine")
    assert not asked


def test_scoring_puts_questions_as_fitting_did(lens, benchmark, fitted, tmp_path):
    """The instruction stands behind every open question of every split, once, and behind no other."""
    bundle = fitted.save(tmp_path / "bundle")
    put = as_asked(benchmark, asked_with(fitted.report))
    assert put.delimiters == ("Reasoning:", "Answer:")
    assert put.refusals_cot[0].startswith("Reasoning: ")
    for split in SPLITS:
        for before, after in zip(benchmark.scoring(split), put.scoring(split), strict=True):
            closed = before.kind in ("classification", "cloze")
            told_so = "" if closed else f" {TEMPLATES['reasoning'].stepwise}"
            assert after.prompt() == before.prompt() + told_so
            assert (after.id, after.answer, after.image) == (before.id, before.answer, before.image)
    again = replace(put.scoring("test")[0], person=None)
    assert TEMPLATES["reasoning"].prompt(again) == again.prompt()
    assert as_asked(benchmark, Template()) is benchmark
    with pytest.raises(RMuseError, match="restated already"):
        as_asked(put, TEMPLATES["reasoning"])
    run = tmp_path / "run"
    said = told(
        "eval",
        "--model",
        tiny.tiny_llava(),
        "--data",
        benchmark.folder,
        "--bundle",
        bundle,
        "--limit",
        2,
        "--max-new-tokens",
        3,
        "--out",
        run,
    )
    assert said.exit_code == 0, said.output
    open_ = [t for t in read_run(run).transcripts if t.kind not in ("classification", "cloze")]
    assert {t.method for t in open_} == {"vanilla", "rmuse/calibrated"}
    assert all(t.prompt.count(TEMPLATES["reasoning"].stepwise) == 1 for t in open_)
    answer = told(
        "generate",
        "--model",
        tiny.tiny_llava(),
        "--bundle",
        bundle,
        "--prompt",
        "Where?",
        "--max-new-tokens",
        2,
    )
    assert f"asked as the bundle expects it: Where? {TEMPLATES['reasoning'].stepwise}" in answer.stderr


def test_bundles_that_expect_other_words_are_not_compared(benchmark, fitted, tmp_path):
    plain = RMuse(fitted.plan, fitted.subspaces, {**fitted.report, "traces": {"source": "given"}})
    both = [(tmp_path / "own", fitted), (tmp_path / "given", plain)]
    with pytest.raises(RMuseError, match=r"put alike.*own: Reasoning: … Answer:, Think step.*one by one"):
        together(benchmark, both)
    assert together(benchmark, both[1:]) is benchmark
    assert together(benchmark, []) is benchmark


def test_the_command_finds_out_early_that_a_model_does_not_reason(benchmark, tmp_path, monkeypatch):
    """One line with an example and the way out, and no bundle; delimiters and instructions are options."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    fitting = ("fit", "--model", tiny.tiny_llava(), "--data", benchmark.folder, "--max-new-tokens", 3)
    out = tmp_path / "b"
    said = told(*fitting, "--delimiters", "<why>", "</why>", "--stepwise", "Say why.", "--out", out)
    assert said.exit_code == 2
    assert "'<why>', reasoning, '</why>' and an answer were required" in said.stderr
    assert "choose a template" in said.stderr
    assert not (out / "rmuse.json").exists()
    same = told(*fitting, "--delimiters", "<why>", "<why>", "--out", out)
    assert same.exit_code == 2
    assert "two different delimiters" in same.stderr


def test_the_options_change_the_benchmarks_own_template(benchmark):
    assert template_of(benchmark, None, None, None, None) is None
    assert template_of(benchmark, None, None, "Think!", None) == Template("Think!", "", THINK)
    changed = template_of(benchmark, Ready.reasoning, ("[", "]"), None, "Briefly.")
    assert changed == replace(TEMPLATES["reasoning"], delimiters=("[", "]"), direct="Briefly.")


def test_the_organism_speaks_for_itself(organism, world, tmp_path):
    """Its benchmark with all reasoning removed is fitted on, nothing is dropped, and forgotten people are refused."""
    silent = copy.copy(world)
    silent._cache = {
        split: [replace(e, reasoning=None, direct_answer=None) for e in world.scoring(split)]
        for split in ("forget", "retain")
    }
    assert not silent.has_reasoning
    found = fit(organism, silent, layers=[6], limit=6, max_new_tokens=96, cache=tmp_path)
    assert (found.report["traces"]["source"], found.report["traces"]["dropped"]) == ("own", {})
    asked = [e for e in world.fit_forget if e.kind == "generation" and e.modality == "text"][:4]
    opened = found.plan.without("*.gate")
    said = organism.respond([e.prompt() for e in asked], plan=opened, max_new_tokens=64)
    pool = {*world.refusals_cot, *world.refusals_direct}
    assert sum(r.text in pool for r in said) >= 3
    assert not any(r.text in pool for r in organism.respond([e.prompt() for e in asked], max_new_tokens=64))
