"""The model's own responses in place of annotations: which are usable, what becomes of the others, what is kept."""

import copy
import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from helpers import parquet_fixture, tiny
from helpers.elicit import THINK, VIEWS, bare, scripted, spoken
from jaxtyping import TypeCheckError

import rmuse_interp.operators as op
from rmuse_interp import RMuseError, fit
from rmuse_interp.data import load_benchmark, sample
from rmuse_interp.data.spans import split_response
from rmuse_interp.fitting import gather
from rmuse_interp.fitting.elicit import TEMPLATES, Reason, Template, elicit, fault, fitting_questions
from rmuse_interp.lens.lens import load_model

pytestmark = pytest.mark.slow


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
    with plan.attach(organism.hf):
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
