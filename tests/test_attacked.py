"""Methods under attack on a real tiny LLaVA: what is asked, what is shared, what is kept, and what the model is told."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from helpers import tiny
from typer.testing import CliRunner

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.cli.app import app
from rmuse_interp.data import load_benchmark
from rmuse_interp.data.attacks import ATTACKS
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.evaluate.results import ATTACKED, AttackTranscript, read_run, read_transcripts
from rmuse_interp.lens.lens import load_model
from rmuse_interp.lens.quantised import quantised, rounded
from rmuse_interp.models.prompts import Conversation, behind
from rmuse_interp.parts.gates import Contrast, Gate, Read
from rmuse_interp.runs import run as running
from rmuse_interp.runs.attacked import attacked
from rmuse_interp.runs.run import Method

NAMES = ["paraphrase", "named", "blur", "zerothink", "prefix", "two-turn"]


@pytest.fixture(scope="module")
def benchmark(data):
    return load_benchmark(data)


@pytest.fixture(scope="module")
def lens():
    return load_model(tiny.tiny_llava())


@pytest.fixture(scope="module")
def questions(benchmark):
    return {split: benchmark.scoring(split)[:2] for split in ("forget", "retain")}


def plan(threshold: float = 0.01, layer: int = 1):
    draw = torch.Generator().manual_seed(0)
    sides = [torch.randn(3, tiny.D_MODEL, generator=draw) for _ in range(2)]
    gate = Gate(Contrast(*sides, torch.zeros(tiny.D_MODEL)), Read(layer), threshold)
    vector = torch.randn(tiny.D_MODEL, generator=draw)
    return op.Add(20 * vector).at(layers=[2]).on("generated").when(gate)


@pytest.fixture(scope="module")
def asked(lens, benchmark, questions):
    methods = [
        Method("vanilla", lens),
        Method("steered", lens, plan() >> op.Add(torch.ones(32)).at(layers=[3])),
    ]
    return attacked(methods, questions, benchmark, NAMES, max_new_tokens=4, batch_size=7)


def said(rows):
    return {(t.method, t.attack, t.variant, t.id, t.sample): t.response for t in rows}


def test_every_variant_of_every_open_question_is_asked_of_every_method(asked, benchmark, questions):
    due = {
        (method, name, variant.variant, e.id, 0)
        for method in ("vanilla", "steered")
        for name in NAMES
        for examples in questions.values()
        for e in examples
        for variant in ATTACKS[name].variants(e, benchmark)
    }
    assert set(said(asked)) == due
    assert len(asked) == len(due)


def test_greedy_answers_do_not_depend_on_batches_and_order_and_are_those_of_the_attack_alone(
    asked, lens, benchmark, questions
):
    methods = [Method("vanilla", lens)]
    turned = {split: examples[::-1] for split, examples in reversed(questions.items())}
    other = attacked(methods, turned, benchmark, NAMES[::-1], max_new_tokens=4, batch_size=2)
    mine = [t for t in asked if t.method == "vanilla"]
    assert said(other) == said(mine)
    alone = attacked(methods, questions, benchmark, ["prefix"], max_new_tokens=4, batch_size=1)
    assert said(alone) == said([t for t in mine if t.attack == "prefix"])


def test_a_response_is_what_the_model_says_to_the_variant(asked, lens, benchmark, questions):
    """Against the model's own `respond`, one row at a time."""
    by_id = {e.id: e for examples in questions.values() for e in examples}
    mine = [t for t in asked if t.method == "vanilla"]
    for name in NAMES:
        t = next(t for t in mine if t.attack == name)
        variant = next(v for v in ATTACKS[name].variants(by_id[t.id], benchmark) if v.variant == t.variant)
        prompt = variant.prompt
        if variant.opening is not None:
            first = lens.respond(variant.opening, variant.image, max_new_tokens=4)[0].text
            assert t.history == ((variant.opening, first),)
            prompt = Conversation(t.history, variant.prompt)
        alone = lens.respond(prompt, variant.image, max_new_tokens=4, prefill=variant.prefill)
        assert t.response == alone[0].text
        assert t.response.startswith(variant.prefill or "")
        assert (t.prompt, t.attributes, t.modality) == (variant.prompt, variant.attributes, variant.modality)


def test_a_chain_closed_by_the_attack_is_not_read_as_the_models(asked):
    closed = [t for t in asked if t.attack == "zerothink"]
    assert closed
    for t in closed:
        assert t.prefill == "<think> </think>"
        assert "<think>" not in t.reasoning
        assert not t.answer.startswith("<think> </think>")


def test_the_method_runs_under_attack(asked):
    by_method = {m: said([t for t in asked if t.method == m]) for m in ("vanilla", "steered")}
    same = sum(
        text == by_method["steered"]["steered", *key[1:]] for key, text in by_method["vanilla"].items()
    )
    assert same < 0.2 * len(by_method["vanilla"])
    assert all(t.fired is not None for t in asked if t.method == "steered")
    assert all(t.fired is None for t in asked if t.method == "vanilla")


def test_an_interrupted_attack_goes_on_behind_the_last_batch(
    lens, benchmark, questions, tmp_path, monkeypatch, asked
):
    settings = {"max_new_tokens": 4, "batch_size": 7, "folder": tmp_path}
    calls = []
    respond = type(lens).respond

    def counted(self, prompts, *args, **kwargs):
        calls.append(len(prompts))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return respond(self, prompts, *args, **kwargs)

    monkeypatch.setattr(type(lens), "respond", counted)
    with pytest.raises(KeyboardInterrupt):
        attacked([Method("vanilla", lens)], questions, benchmark, NAMES, **settings)
    done = sum(calls[:3])
    calls[:] = [0] * 4
    found = attacked([Method("vanilla", lens)], questions, benchmark, NAMES, **settings)
    mine = said([t for t in asked if t.method == "vanilla"])
    assert said(found) == mine
    openings = {(t.id, t.history[0][0]) for t in asked if t.attack == "two-turn" and t.method == "vanilla"}
    assert len(mine) <= sum(calls) + done <= len(mine) + len(openings)
    assert all(isinstance(t, AttackTranscript) for t in found)
    calls[:] = [0] * 4
    attacked([Method("vanilla", lens)], questions, benchmark, NAMES, **settings)
    assert calls == [0] * 4
    # Another plan finds nothing of it.
    attacked([Method("vanilla", lens, as_plan(plan()))], questions, benchmark, ["zerothink"], **settings)
    assert sum(calls) > 0
    running.finish(tmp_path)
    assert not list(tmp_path.iterdir())


def test_samples_follow_their_seeds_whatever_the_batch(lens, benchmark, questions):
    few = {"forget": questions["forget"]}
    many = replace(ATTACKS["sampling"], samples=3)
    runs = [
        attacked(
            [Method("vanilla", lens)], few, benchmark, [many], max_new_tokens=6, batch_size=size, seed=seed
        )
        for size, seed in ((32, 0), (2, 0), (32, 1))
    ]
    assert said(runs[0]) == said(runs[1])
    assert said(runs[0]) != said(runs[2])
    first = [t.response for t in runs[0] if t.id == runs[0][0].id]
    assert len(set(first)) == 3


def test_samples_are_draws_from_the_models_own_distribution(lens):
    """Frequencies of the first token of 400 samples against the softmax at T = 0.7."""
    rows, temperature = 400, 0.7
    prompt = "Where does this person live?"
    with torch.no_grad():
        logits = lens.hf(**lens.encode(prompt), use_cache=False).logits[0, -1]
    expected = (logits / temperature).softmax(dim=0)
    found = lens.respond(
        [prompt] * rows, max_new_tokens=1, batch_size=rows, temperature=temperature, seeds=range(rows)
    )
    text = lens.encoder.decode
    top = expected.topk(3)
    for share, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        word = text([token], frozenset(), frozenset())
        mass = sum(p for i, p in enumerate(expected.tolist()) if text([i], frozenset(), frozenset()) == word)
        count = sum(r.text == word for r in found)
        assert abs(count / rows - mass) < 4 * (mass * (1 - mass) / rows) ** 0.5 + 1e-9, (word, share)
    with pytest.raises(RMuseError, match="one seed per prompt"):
        lens.respond(prompt, temperature=1.0)


def test_a_conversation_is_rendered_turn_by_turn_with_the_picture_in_the_first(lens):
    talk = Conversation((("Which hat?", "A red one."),), "Where does this person live?")
    encoding = lens.encode([talk, "Where?"], [tiny.picture(), None], ["<think> In", None])
    assert encoding.texts[0] == (
        "USER: <image>\nWhich hat?\nASSISTANT: A red one.</s>USER: Where does this person live?\nASSISTANT:"
        " <think> In"
    ).replace("ASSISTANT: A", "ASSISTANT:A" if "ASSISTANT:A" in encoding.texts[0] else "ASSISTANT: A")
    # The prompt ends where the assistant is to speak, whatever was said before.
    ids = encoding["input_ids"][0][encoding["attention_mask"][0].bool()]
    spoken = lens.tokenizer.decode(ids[encoding.prompt_end[0] + 1 :])
    assert spoken.strip() == "<think> In"
    assert behind("Refuse.", talk) == Conversation(talk.history, "Refuse. Where does this person live?")
    bare = replace(lens.encoder, processor=tiny_tokenizer(lens))
    assert bare.render(talk, False) == (
        "USER: Which hat?\nASSISTANT: A red one.\nUSER: Where does this person live?\nASSISTANT:"
    )


def tiny_tokenizer(lens):
    """A tokenizer without chat template."""

    class Bare:
        chat_template = None
        image_processor = None

    return Bare()


@pytest.mark.parametrize("layer", [1, 3])
def test_gates_hear_the_question_of_a_conversation_as_if_it_stood_alone(lens, layer):
    """One-pass (layer 1 ≤ 2) and two-pass gates: what stands before cannot talk them out of it."""
    question, picture = "Where does this person live?", tiny.picture()
    talk = Conversation((("What is 2 plus 2?", "It is 4."),), question)
    score = lens.respond(question, picture, plan(layer=layer), max_new_tokens=1)[0].score
    whole = lens.decide(plan(layer=layer), [talk], [picture]).score[0, 0]
    for threshold, fires in ((score - 0.01, True), (max(score, float(whole)) + 0.01, False)):
        gated = plan(threshold, layer)
        found = lens.respond([talk, question], [picture, picture], gated, max_new_tokens=3)
        assert found[0].fired is fires
        free = lens.respond(talk, picture, max_new_tokens=3)[0].text
        assert (found[0].text != free) is fires


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_lie_on_their_grid_and_the_model_stays_as_it_was(lens, bits):
    before = {name: value.clone() for name, value in lens.hf.state_dict().items()}
    copy = quantised(lens, bits)
    assert all(torch.equal(value, before[name]) for name, value in lens.hf.state_dict().items())
    assert str(copy.fingerprint) == str(lens.fingerprint)
    shared = {name: p.data_ptr() for name, p in lens.hf.named_parameters()}
    for name, weight in copy.hf.named_parameters():
        if "language_model.layers" in name and name.endswith("proj.weight"):
            group = weight.shape[1] if bits == 8 else 32
            for part in weight.split(group, dim=1):
                assert max(len(row.unique()) for row in part) <= 2**bits - 1
            step = weight.detach().abs().max() / (2 ** (bits - 1) - 1)
            assert 0 < float((weight.detach() - before[name]).abs().max()) <= float(step) / 2 + 1e-6
        else:
            assert weight.data_ptr() == shared[name]
    words = [m.respond("Where does this person live?", max_new_tokens=8)[0].text for m in (lens, copy)]
    logits = [m.hf(**m.encode("Where?"), use_cache=False).logits for m in (lens, copy)]
    drift = float((logits[0] - logits[1]).detach().abs().max())
    assert 0 < drift < (0.2 if bits == 8 else 3.0)
    assert all(words)


def test_plans_run_on_quantised_weights(lens, benchmark, questions):
    methods = [Method("vanilla", lens), Method("steered", lens, as_plan(plan(-1e9)))]
    rows = attacked(methods, {"forget": questions["forget"]}, benchmark, ["8-bit", "4-bit"], max_new_tokens=4)
    by = said(rows)
    assert all(by["steered", *key[1:]] != text for key, text in by.items() if key[0] == "vanilla")
    assert {t.attack for t in rows} == {"8-bit", "4-bit"}


def test_rounding_of_a_row_by_hand():
    weight = torch.tensor([[0.7, -0.26, 0.05, 3.0, 0.0, -1.0]])
    # 4 bits: 15 levels; scale of the first group 0.7/7, of the second 3/7.
    torch.testing.assert_close(
        rounded(weight, 4, 3)[0], torch.tensor([0.7, -0.3, 0.0, 3.0, 0.0, -6 / 7]), atol=1e-6, rtol=0
    )
    assert torch.equal(rounded(torch.zeros(2, 3), 8), torch.zeros(2, 3))


def test_what_cannot_be_attacked_is_said_before_any_work(lens, benchmark, questions, monkeypatch):
    monkeypatch.setattr(type(lens), "respond", lambda *a, **k: pytest.fail("asked too early"))
    method = Method("vanilla", lens)
    text = {"forget": [e for e in questions["forget"] if e.modality == "text"]}
    closed = {"forget": [e for e in benchmark.scoring("forget") if e.kind == "cloze"]}
    for given, names, message in (
        (questions, ["nonsense"], "nonsense"),
        (text, ["blur"], "blur applies to"),
        (closed, ["prefix"], "open questions"),
    ):
        with pytest.raises(RMuseError, match=message):
            attacked([method], given, benchmark, names)
    with pytest.raises(RMuseError, match="distinct names"):
        attacked([method, method], questions, benchmark, ["prefix"])
    with pytest.raises(RMuseError, match="bits"):
        quantised(lens, 3)


def test_the_command_line_attacks_scores_and_keeps_the_transcripts(data, tmp_path):
    out = tmp_path / "run"
    words = [
        "eval",
        "--model",
        tiny.tiny_llava(),
        "--data",
        data,
        "--limit",
        3,
        "--max-new-tokens",
        3,
        "--attack",
        "named",
        "--attack",
        "zerothink",
        "--out",
        out,
    ]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert "under attack" in result.output
    scores = json.loads((out / "scores.json").read_text())["attacks"]
    assert set(scores["methods"]["vanilla"]) == {"named", "zerothink"}
    block = scores["methods"]["vanilla"]["named"]["forget"]
    assert (block["responses"], block["not_applicable"]) == (1, 1)
    rows = list(read_transcripts(out / ATTACKED, AttackTranscript))
    assert sum(b["responses"] for by in scores["methods"]["vanilla"].values() for b in by.values()) == len(
        rows
    )
    assert all(AttackTranscript(**json.loads(t.to_json())) == t for t in rows)
    assert not any("attack" in asdict(t) for t in read_run(out).transcripts)
    listing = CliRunner().invoke(app, ["eval", "--attack", "list"])
    assert all(name in listing.output for name in ATTACKS)
    wrong = CliRunner().invoke(app, ["eval", "--attack", "nonsense", "--out", str(out)])
    assert wrong.exit_code != 0
