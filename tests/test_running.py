"""Runs on a real tiny LLaVA: what is asked, in which order, what is kept, and what a rerun asks again."""

import json

import pytest
import torch
from helpers import parquet_fixture, tiny

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.data import SPLITS, load_benchmark
from rmuse_interp.edits.plan import Plan
from rmuse_interp.edits.state import Decision
from rmuse_interp.lens.lens import load_model
from rmuse_interp.lens.respond import verdicts
from rmuse_interp.parts.gates import Contrast, Gate, LinearDiscriminant, Read
from rmuse_interp.runs import run as running
from rmuse_interp.runs.run import Method

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def benchmark(data):
    return load_benchmark(data)


@pytest.fixture(scope="module")
def questions(benchmark):
    return running.choose(benchmark, 4)


def contrast(threshold: float, scale: float = 1.0, seed: int = 0) -> Gate:
    draw = torch.Generator().manual_seed(seed)
    sides = [torch.randn(3, tiny.D_MODEL, generator=draw) for _ in range(2)]
    return Gate(Contrast(*sides, torch.zeros(tiny.D_MODEL)), Read(1), threshold, scale)


@pytest.fixture(scope="module")
def plan():
    vector = torch.randn(tiny.D_MODEL, generator=torch.Generator().manual_seed(5))
    steer = op.Add(20 * vector)
    images = steer.at(layers=[2]).on("generated").given("image").when(contrast(0.01, 0.5)).named("image")
    texts = steer.at(layers=[2]).on("generated").given("text").when(contrast(-3.0, seed=1)).named("text")
    return images >> texts


SETTINGS = {"delimiters": ("<think>", "</think>"), "max_new_tokens": 5, "batch_size": 3}


def test_all_splits_are_asked_under_every_method(lens, benchmark, questions, plan):
    answers = running.run([Method("vanilla", lens), Method("rmuse/x", lens, plan)], questions, **SETTINGS)
    asked = {(split, e.id) for split, examples in questions.items() for e in examples}
    for name in ("vanilla", "rmuse/x"):
        assert {(t.split, t.id) for t in answers.transcripts if t.method == name} == asked
    assert set(answers.seconds) == {"vanilla", "rmuse/x"}
    assert set(questions) == set(SPLITS)
    assert all(len(examples) <= 4 for examples in questions.values())


def test_open_questions_come_first(benchmark):
    """Two thirds of a sample are open questions, and a limit is a limit."""
    for limit in (1, 2, 3, 6, 9, 12):
        for split, examples in running.choose(benchmark, limit).items():
            everything = benchmark.scoring(split)
            assert len(examples) == min(limit, len(everything))
            n_open = sum(e.kind not in ("classification", "cloze") for e in examples)
            there = sum(e.kind not in ("classification", "cloze") for e in everything)
            assert n_open >= min(there, limit - limit // 3)
    assert running.choose(benchmark, 5, seed=1) == running.choose(benchmark, 5, seed=1)
    assert running.choose(benchmark, 5, seed=1) != running.choose(benchmark, 5, seed=2)
    assert len(running.choose(benchmark, None)["retain"]) == len(benchmark.scoring("retain"))


def test_answers_are_those_of_the_model_one_by_one(lens, questions, plan):
    """Batching, ordering and pairing change nothing: each row equals the model asked that question alone."""
    few = {"forget": questions["forget"]}
    steered = 0
    for method in (Method("vanilla", lens), Method("rmuse/x", lens, plan)):
        found = {t.id: t for t in running.run([method], few, **SETTINGS).transcripts}
        for example in few["forget"]:
            alone = lens.respond(example.prompt(), example.image, method.plan, max_new_tokens=5)[0]
            one = found[example.id]
            assert (one.response, one.fired, one.prompt, one.expected) == (
                alone.text,
                alone.fired,
                example.prompt(),
                example.answer,
            )
            steered += bool(alone.fired)
    assert steered


def test_gates_are_named_and_their_scores_come_raw_and_as_margins(lens, questions, plan):
    """`(score − threshold)/scale` per kind of query: positive where the gate fired, and only there."""
    method = Method("rmuse/x", lens, plan)
    rows = running.run([method], {"forget": questions["forget"]}, **SETTINGS).transcripts
    assert {t.modality for t in rows} == {"image", "text"}
    for t in rows:
        example = next(e for e in questions["forget"] if e.id == t.id)
        (alone,) = lens.respond(example.prompt(), example.image, plan, max_new_tokens=1)
        raw = plan.decide(lens, example.prompt(), example.image).score[0, int(t.modality == "text")]
        threshold, scale = {"image": (0.01, 0.5), "text": (-3.0, 1.0)}[t.modality]
        assert t.gate_score == pytest.approx(raw.item(), abs=1e-5)
        assert t.margin == pytest.approx((t.gate_score - threshold) / scale)
        assert t.fired == (t.margin > 0)
        assert t.gate == alone.gate == f"{t.modality}.gate"
        assert alone.score == pytest.approx(t.gate_score, abs=1e-5)
        assert alone.margin == pytest.approx(t.margin, abs=1e-5)
    (ungated,) = running.run(
        [Method("vanilla", lens)], {"forget": questions["forget"][:1]}, **SETTINGS
    ).transcripts
    assert (ungated.gate_score, ungated.margin, ungated.gate) == (None, None, None)


def test_the_margin_is_that_of_the_gate_that_scored():
    """Where the first gate had nothing to read, score, margin and name are all the second one's."""
    text = op.Add(torch.ones(4)).at(layers=[1])
    first, second = (
        Gate(LinearDiscriminant(torch.ones(4), 0.0), Read(1), threshold, scale)
        for threshold, scale in ((5.0, 2.0), (1.0, 4.0))
    )
    pair = text.when(first) >> text.on("response").when(second).named("second")
    decision = Decision(
        torch.tensor([[False, True]]), torch.tensor([[-torch.inf, 3.0]]), torch.ones(1, 2, dtype=torch.bool)
    )
    assert verdicts(pair, decision, [True]) == [(True, 3.0, 0.5, "second.gate")]


def test_a_plan_for_pictures_alone_says_nothing_of_text(lens, questions, plan):
    rows = running.run(
        [Method("rmuse/x", lens, Plan([plan[0]]))], {"forget": questions["forget"]}, **SETTINGS
    ).transcripts
    assert {(t.fired is None, t.gate_score is None) for t in rows if t.modality == "text"} == {(True, True)}
    assert all(t.gate_score is not None for t in rows if t.modality == "image")


def test_kinds_of_query_without_an_edit_are_named(lens, questions, plan):
    n = sum(e.modality == "text" for examples in questions.values() for e in examples)
    assert n > 0
    (line,) = running.unsteered(
        [Method("vanilla", lens), Method("both", lens, plan), Method("rmuse", lens, plan.without("text"))],
        questions,
    )
    assert line == f"rmuse has no edit for text questions: {n} of them are answered as the model does"
    whole = op.Add(torch.ones(tiny.D_MODEL)).at(layers=[2])
    assert running.unsteered([Method("rmuse", lens, Plan([whole]))], questions) == []


def test_an_interrupted_run_goes_on_where_it_stopped(lens, questions, plan, tmp_path, monkeypatch):
    """After Ctrl-C the rerun asks nothing twice, and the whole equals an uninterrupted run."""
    methods = [Method("vanilla", lens), Method("rmuse/x", lens, plan)]
    whole = running.run(methods, questions, **SETTINGS).transcripts
    asked: list[int] = []
    real = lens.respond

    def counting(prompts, *rest, **settings):
        asked.append(len(prompts))
        if len(asked) == 5:
            raise KeyboardInterrupt
        return real(prompts, *rest, **settings)

    monkeypatch.setattr(lens, "respond", counting, raising=False)
    with pytest.raises(KeyboardInterrupt):
        running.run(methods, questions, **SETTINGS, folder=tmp_path)
    again = running.run(methods, questions, **SETTINGS, folder=tmp_path)
    assert again.transcripts == whole
    assert sum(asked) - asked[4] == len(whole)
    before = len(asked)
    assert running.run(methods, questions, **SETTINGS, folder=tmp_path).transcripts == whole
    assert len(asked) == before
    assert set(again.seconds) == {"vanilla", "rmuse/x"}
    running.finish(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_torn_line_is_asked_again(lens, questions, tmp_path):
    few = {"forget": questions["forget"]}
    whole = running.run([Method("vanilla", lens)], few, **SETTINGS, folder=tmp_path).transcripts
    (kept,) = (tmp_path / running.UNFINISHED).iterdir()
    lines = kept.read_text().splitlines()
    kept.write_text(kept.read_text()[:-40])
    assert running.run([Method("vanilla", lens)], few, **SETTINGS, folder=tmp_path).transcripts == whole
    assert [json.loads(line)["key"] for line in kept.read_text().splitlines() if line.endswith("}")] == [
        json.loads(line)["key"] for line in lines
    ]


CHANGES = ["tokens", "plan", "question", "picture", "model", "dtype", "chat template", "generation settings"]


@pytest.mark.parametrize("change", CHANGES)
def test_kept_answers_are_never_those_of_another_run(benchmark, plan, tmp_path, monkeypatch, change):
    """What is kept is not taken up where anything differs that the answers depend on."""
    lens = load_model(tiny.tiny_llava())
    some = [e for e in benchmark.scoring("forget") if e.modality == "image"]
    some, settings, method = some[:2], dict(SETTINGS), Method("m", lens, plan)
    running.run([method], {"forget": some}, **settings, folder=tmp_path)
    if change == "tokens":
        settings["max_new_tokens"] = 4
    elif change == "plan":
        method = Method("m", lens, plan.replace(**{"image.gate": contrast(0.02, 0.5)}))
    elif change == "question":
        some[1] = some[1].changed(question="Who else is this?", options=None, kind="generation")
    elif change == "picture":
        some[1] = some[1].changed(image=parquet_fixture.png(255))
    elif change == "model":
        method = Method("m", load_model(tiny.tiny_llava(seed=1)), plan)
    elif change == "dtype":
        method = Method("m", load_model(tiny.tiny_llava(), dtype="bfloat16"), plan)
    elif change == "chat template":
        monkeypatch.setattr(lens.processor, "chat_template", f"{lens.processor.chat_template} ")
    else:
        monkeypatch.setattr(lens.hf.generation_config, "repetition_penalty", 1.5)
    asked, real = [], running._ask

    def counting(method, batch, *rest):
        asked.extend(e.id for e in batch)
        return real(method, batch, *rest)

    monkeypatch.setattr(running, "_ask", counting)
    running.run([method], {"forget": some}, **settings, folder=tmp_path)
    assert sorted(asked) == sorted(e.id for e in some)
    running.run([method], {"forget": some}, **settings, folder=tmp_path)
    assert sorted(asked) == sorted(e.id for e in some)


def test_what_is_made_of_kept_responses_is_made_anew(lens, benchmark, tmp_path, monkeypatch):
    """Attributes, answers and delimiters that were mended count, though nothing is asked again."""
    some = [e for e in benchmark.scoring("forget") if e.modality == "text"][:2]
    method = Method("m", lens)
    running.run([method], {"forget": some}, **SETTINGS, folder=tmp_path)
    monkeypatch.setattr(running, "_ask", lambda *_: pytest.fail("asked again"))
    mended = [e.changed(answer="Lima", attributes={"city": "Lima"}) for e in some]
    found = running.run([method], {"forget": mended}, **SETTINGS, folder=tmp_path).transcripts
    assert {(t.expected, t.attributes["city"]) for t in found} == {("Lima", "Lima")}


def test_nothing_is_kept_of_a_plain_function(lens, questions, tmp_path):
    """Its code could have been changed by the next run."""
    method = Method("mine", lens, Plan([op.Call(lambda states, step: -states).at(layers=[2])]))
    found = running.run([method], {"forget": questions["forget"]}, **SETTINGS, folder=tmp_path).transcripts
    assert len(found) == len(questions["forget"])
    assert list(tmp_path.iterdir()) == []


def test_methods_need_names_of_their_own(lens, questions):
    with pytest.raises(RMuseError, match="distinct names"):
        running.run([Method("vanilla", lens), Method("vanilla", lens)], questions, **SETTINGS)


def test_scores_know_every_gate(lens, benchmark, questions, plan):
    methods = [Method("vanilla", lens), Method("rmuse/x", lens, plan)]
    answers = running.run(methods, questions, **SETTINGS)
    scores = running.scores_of(methods, answers, benchmark, lens, seconds={"fit": 1.5})
    assert scores["model"] == {"id": lens.name, "fingerprint": str(lens.fingerprint)}
    assert set(scores["gate"]) == {"rmuse/x"}
    image = scores["gate"]["rmuse/x"]["by_modality"]["image"]
    assert image["threshold"] == 0.0
    assert image["own"] == {
        "kind": "ContrastGate",
        "layer": 1,
        "readout": "last",
        "threshold": 0.01,
        "scale": 0.5,
        "prefixed": False,
    }
    assert scores["seconds"]["fit"] == 1.5
    assert set(scores["seconds"]) == {"fit", "generate/vanilla", "generate/rmuse/x"}
    json.dumps(scores, allow_nan=False)


def test_a_broken_model_is_found_at_once(benchmark):
    broken = load_model(tiny.tiny_llava())
    running.probe(broken, benchmark.fit_forget[0])
    with torch.no_grad():
        broken.layout.blocks[2].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(RMuseError, match="block 2 gives NaN"):
        running.probe(broken, benchmark.fit_forget[0])
    assert not broken.layout.blocks[2]._forward_hooks


@pytest.mark.parametrize("modality", ["image", "text"])
def test_streamed_words_are_the_response(lens, questions, plan, modality):
    example = next(e for e in questions["forget"] if e.modality == modality)
    for expression in (None, plan):
        pieces: list[str] = []
        streamed = running.stream(
            lens, example.prompt(), example.image, expression, max_new_tokens=12, write=pieces.append
        )
        whole = lens.respond(example.prompt(), example.image, expression, max_new_tokens=12)[0]
        assert streamed.text == whole.text
        assert "".join(pieces).strip() == whole.text
        assert len([p for p in pieces if p]) > 1
        assert streamed.fired == whole.fired
        assert streamed.score == pytest.approx(whole.score, abs=1e-5) if whole.score is not None else True


def test_a_plan_leaves_the_model_as_it_was(lens, questions, plan):
    before = lens.respond(questions["forget"][0].prompt(), max_new_tokens=4)
    running.stream(lens, questions["forget"][0].prompt(), None, plan, max_new_tokens=4, write=lambda _: None)
    running.run([Method("rmuse/x", lens, plan)], {"forget": questions["forget"]}, **SETTINGS)
    assert lens.respond(questions["forget"][0].prompt(), max_new_tokens=4) == before
