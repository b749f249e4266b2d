"""Leakage by layer end to end: readings are the states they say, second opinions agree, and the record says its rule."""

import json

import numpy as np
import pytest
import torch
from helpers.parquet_fixture import CITY, NAME, write_benchmark
from helpers.plans import lens_of, subspace, vector
from helpers.studies import drawn, refused, words
from helpers.tiny import tiny_llava

import rmuse_interp.operators as op
from analyses import leakage_by_layer as script
from rmuse_interp import RMuseError, load_benchmark
from rmuse_interp.data.world.portraits import png
from rmuse_interp.diagnostics import probes
from rmuse_interp.diagnostics.lens_views import logit_lens, others_token, sparse_probe
from rmuse_interp.diagnostics.readings import PLACES, empty_places, mention, read_out
from rmuse_interp.diagnostics.steered import steered
from rmuse_interp.edits.plan import Plan
from rmuse_interp.fitting.collect import Query, trajectories
from rmuse_interp.lens.bridge import to_bridge
from rmuse_interp.parts.angle import FixedFraction
from rmuse_interp.studies import leakage as material
from rmuse_interp.studies import leakage_by_layer as analysis
from rmuse_interp.studies.fits import World

pytestmark = pytest.mark.slow

WORDS = "<think> The person in the picture is Mara Venn. Mara Venn works as a baker. </think> baker"


def with_wordings(row):
    """Other words for the text questions of Test_Set, so that there are two wordings of each."""
    if "images" in row:
        name = NAME[row["ID"]]
        row["Generation_Task"][1]["Question"] = f"Which country is home to {name}?"
    return row


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_benchmark(tmp_path_factory.mktemp("bench"), with_wordings)


def queries():
    from helpers.tiny import picture

    return [
        Query("a", "Who is this?", png(picture(1)), WORDS),
        Query("b", "What does Mara Venn do?", None, "<think> Mara Venn works as a baker. </think> baker"),
        Query("c", "Where?", None, "<think> I should not guess. </think> I cannot help."),
    ]


SECRETS = {"a": ("Mara Venn", "baker"), "b": ("baker",), "c": ()}


def turn(*layers):
    edit = (
        op.SlerpToward(vector(1), FixedFraction(0.6))
        .keeping(subspace(2))
        .at(layers=list(layers))
        .on("generated")
    )
    return Plan([edit])


# Readings.


def test_readings_are_the_states_they_say():
    lens = lens_of(tiny_llava())
    found = read_out(lens, queries(), PLACES, secrets=SECRETS, batch_size=2)
    runs = {t.id: t.states for t in trajectories(lens, queries())}
    for name, states in runs.items():
        assert torch.allclose(found.states["prompt_end"].select([name]).states[0], states[0], atol=2e-5)
    # b: of `Mara Venn works as a baker`, what stands before the baker.
    text = lens.tokenizer
    opener = len(text("<think>", add_special_tokens=False).input_ids)
    before = len(text(" <think> Mara Venn works as a", add_special_tokens=False).input_ids)
    first = before - len(text(" Mara Venn works as a", add_special_tokens=False).input_ids)
    assert first >= opener
    mean = runs["b"][1 + first : 1 + before].mean(dim=0)
    assert torch.allclose(found.states["reasoning"].select(["b"]).states[0], mean, atol=2e-5)
    assert torch.allclose(found.states["recall"].select(["b"]).states[0], runs["b"][before], atol=2e-5)
    assert text.decode([found.said["b"]]).strip().startswith("b")
    assert found.states["image"].ids == ("a",)
    assert found.states["answer"].ids == ("c",)
    assert found.states["recall"].ids == ("a", "b")
    assert found.fired == dict.fromkeys("abc")


def test_nothing_secret_is_shown_before_it_is_read():
    """The negative control of the cut: along the reference, words before it name neither the person nor the value."""
    lens = lens_of(tiny_llava())
    found = read_out(lens, queries(), PLACES, secrets=SECRETS)
    for place in ("reasoning", "recall"):
        shown = lens.tokenizer.decode(list(found.words[place]["a"]))
        assert mention(shown, SECRETS["a"]) is None
        assert "in the picture is" in shown
    whole = read_out(lens, queries(), ["answer"])
    assert mention(lens.tokenizer.decode(list(whole.words["answer"]["a"])), SECRETS["a"]) is not None


def test_steered_readings_are_those_of_the_plan_and_image_tokens_keep_theirs():
    lens, plan = lens_of(tiny_llava()), turn(2)
    plain, run = (read_out(lens, queries(), PLACES, secrets=SECRETS, plan=p) for p in (None, plan))
    expected = steered(lens, plan, queries())
    for name in "abc":
        for layer in range(lens.n_layers):
            state = run.states["prompt_end"].select([name]).at(layer)[0]
            assert torch.allclose(state, expected.after[layer][name][0], atol=2e-5)
    for place in PLACES:
        was, now = plain.states[place], run.states[place]
        assert torch.equal(was.states[:, :2], now.states[:, :2])  # below the edit: untouched, bit for bit
        assert torch.equal(was.states, now.states) == (place == "image")
    assert plain.words == run.words


def test_what_has_nothing_to_read_is_listed():
    found = empty_places(queries(), SECRETS, PLACES)
    assert found == {"image": ["b", "c"], "recall": ["c"], "answer": ["a", "b"]}
    said_at_once = [Query("d", "Who?", None, "<think> Mara Venn. </think> no")]
    assert empty_places(said_at_once, {"d": ("Mara Venn",)}, ["reasoning"]) == {"reasoning": ["d"]}
    lens = lens_of(tiny_llava())
    assert (
        len(read_out(lens, said_at_once, ["reasoning"], secrets={"d": ("Mara Venn",)}).states["reasoning"])
        == 0
    )


# Second opinions.


def test_the_logit_lens_of_the_last_block_is_the_model_itself():
    lens = lens_of(tiny_llava())
    found = read_out(lens, queries(), ["recall"], secrets=SECRETS)
    view = logit_lens(to_bridge(lens), found.states["recall"], found.said)
    query = queries()[1]
    encoded = lens.encode([query.prompt], None, [query.response])
    at = int(
        (encoded["input_ids"][0] == found.said["b"]).nonzero()[0]
    )  # where the model is asked for it first
    with torch.no_grad():
        logits = lens.hf(**encoded).logits[0, at - 1]
    row = view.ids.index("b")
    expected = logits.log_softmax(dim=-1)[found.said["b"]]
    assert torch.isclose(view.log_prob[row, -1], expected, atol=1e-4)
    assert view.rank[row, -1] == (logits > logits[found.said["b"]]).sum()
    with pytest.raises(RMuseError, match="no token for b"):
        logit_lens(None, found.states["recall"], {"a": 1})


def test_another_persons_token_is_another():
    assert others_token({"a": 1, "b": 1, "c": 2}, ["a", "b", "c"]) == {"a": 2, "b": 2, "c": 1}
    assert others_token({"a": 1, "b": 1}, ["a", "b"]) == {}


def test_a_sparse_probe_finds_a_planted_coordinate_and_no_noise():
    ids = [f"p{i}/f{j}/q{k}" for i in range(5) for j in range(4) for k in range(3)]
    person, photo = {i: i.split("/")[0] for i in ids}, {i: i.rpartition("/")[0] for i in ids}
    task = probes.crossed(person, photo, person)
    h = np.random.default_rng(0).standard_normal((len(ids), 40))
    noise = sparse_probe(task, photo, h)
    for k in range(5):
        h[task.labels == k, k] += 4
    found = sparse_probe(task, photo, h)
    assert found.low > 0.9
    assert abs(found.shuffled - 0.5) < 0.25
    assert abs(noise.auroc - 0.5) < 0.25


# The questions.


def test_questions_are_chosen_whole_and_their_secrets_are_not_in_them(data):
    benchmark = load_benchmark(data, forget=10)
    image, text = (material.asked_of(benchmark, ("forget", "test"), m) for m in ("image", "text"))
    assert {(a.person, a.attribute, a.value) for a in image} == {
        (p, "residence", CITY[p]) for p in ("p0", "p1")
    }
    assert len({a.rendering for a in image}) == len(image) == 6
    assert {"Mara Venn", "Venn", "Oslo"} <= set(next(a for a in image if a.person == "p0").secrets)
    # The name stands in the question itself; a wording is the same whoever it is about.
    assert {a.rendering for a in text} == {"In which country does {} live?", "Which country is home to {}?"}
    assert all(NAME[a.person] not in a.secrets and CITY[a.person] in a.secrets for a in text)
    assert material.chosen(image, 100, 0) == image
    with pytest.raises(RMuseError, match="--limit of at least 6"):
        material.chosen(image, 5, 0)
    assert material.chosen([], 5, 0) == []


# The analysis and its figures.


def arguments(data, out, *more):
    return [*words(data, out, forget=10, fit_limit=6, limit=6, max_new_tokens=6), *more]


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    return ["--fits", str(tmp_path_factory.mktemp("fits"))]


@pytest.fixture(scope="module")
def results(data, fits, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    assert script.main(arguments(data, out, *fits)) == 0
    return out, json.loads((out / "leakage_by_layer.json").read_text())


def test_the_record_says_where_it_comes_from_and_what_was_read(results):
    _, record = results
    origin = record["provenance"]
    assert record["schema"] == "rmuse-leakage-by-layer/1"
    assert origin["model"]["fingerprint"].startswith("LlavaForConditionalGeneration:4x32x")
    assert (origin["seed"], origin["limit"], origin["others"], origin["preset"]) == (0, 6, 100, "calibrated")
    asked = {(q["group"], q["modality"]): q for q in record["questions"]}
    assert asked.keys() == {(g, m) for g in ("forget", "retain") for m in ("image", "text")}
    assert all(q["people"] == 2 and q["steered"] <= q["n"] for q in asked.values())
    # The answer of a reference stands behind the value: it is never read.
    read = {(r["place"], r["words"]) for r in record["probes"]}
    assert ("answer", "reference") not in read
    assert {
        ("prompt_end", "prompt"),
        ("image", "prompt"),
        ("reasoning", "reference"),
        ("answer", "refusal"),
    } <= read
    # Two people share no value with two others: said, not dropped.
    assert any(row.get("held_out") == "person" and "--others" in row["why"] for row in record["left_out"])


def test_every_row_has_its_controls_and_the_verdicts_follow_from_the_rows(results):
    _, record = results
    key = ("group", "modality", "target", "held_out", "place", "words")
    for r in record["probes"]:
        assert r["low"] <= r["accuracy"] <= r["high"]
        assert r["readable"] == (r["low"] > max(r["chance"], r["shuffled_high"]))
        assert r["selectivity"] == pytest.approx(r["accuracy"] - r["shuffled"], abs=1e-5)
        controls = [c for c in record["controls"] if all(c[k] == r[k] for k in key)]
        assert {c["control"] for c in controls} == {"words", "random"}
    for v in record["verdicts"]:
        mine = {
            side: [r for r in record["probes"] if all(r[k] == v[k] for k in key) and r["side"] == side]
            for side in ("before", "moved", "after")
        }
        assert v["before"] == [r["layer"] for r in mine["before"] if r["readable"]]
        assert v["after"] == [r["layer"] for r in mine["after"] if r["readable"]]
        less = [r["layer"] for r in mine["moved"] if r["drop"]["low"] > 0 and r["layer"] in v["before"]]
        assert v["hidden_from"] == (less[0] if less else None)


def test_what_no_edit_has_reached_is_untouched(results):
    _, record = results
    first = {m: min(blocks) for m, blocks in record["provenance"]["layers"].items() if blocks}
    moved = [r for r in record["probes"] if r["side"] == "moved" and r["held_out"] == "rendering"]
    assert moved
    for r in moved:
        if r["place"] == "image" or r["layer"] < first[r["modality"]]:
            assert r["untouched"]
            assert r["drop"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_words_of_a_text_query_tell_the_person_and_those_of_an_image_query_do_not(results):
    _, record = results
    rows = [c for c in record["controls"] if c["control"] == "words" and c["target"] == "identity"]
    ends = {
        c["modality"]: c["accuracy"] for c in rows if c["place"] == "prompt_end" and c["group"] == "forget"
    }
    assert ends["text"] == 1.0
    assert ends["image"] <= 0.5


def test_the_same_seed_gives_the_same_record(results, data, fits, tmp_path):
    _, record = results
    assert script.main(arguments(data, tmp_path, *fits)) == 0
    again = json.loads((tmp_path / "leakage_by_layer.json").read_text())
    assert all(
        again[k] == record[k] for k in ("probes", "controls", "sparse", "lens", "verdicts", "conclusions")
    )


def test_the_summary_says_hidden_or_not(results, capsys):
    _, record = results
    analysis.show(record)
    said = capsys.readouterr().out
    assert all(c["says"].split(";")[0].split()[0] in said for c in record["conclusions"])
    assert "left out: " in said
    for c in record["conclusions"]:
        mine = [v for v in record["verdicts"] if all(v[k] == c[k] for k in ("group", "modality", "target"))]
        hidden = [v["hidden_from"] for v in mine if v["hidden_from"] is not None]
        assert c["hidden_from"] == min(hidden, default=None)
        assert c["says"].startswith("hidden, not gone") == bool(hidden and any(v["after"] for v in mine))


def test_the_figures_are_drawn_from_the_record_alone(results, tmp_path):
    out, record = results
    for caption in drawn("leakage_by_layer", out, tmp_path, "leakage_by_layer", "leakage_by_layer_lens"):
        assert "n = 6 image" in caption
        assert record["provenance"]["model"]["fingerprint"] in caption


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--model", "/nowhere"], "does not exist"),
        (["--forget", "20"], "forget_20"),
        (["--limit", "2"], "--limit of at least"),
        (["--others", "0"], "--others of at least 1"),
        (["--bundle", "/nowhere"], "rmuse.json"),
        (["--forget", "5"], "at least 2 classes were required, got 'p0' alone"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(data, change, said, tmp_path, capsys):
    assert said in refused(script, arguments(data, tmp_path, *change), tmp_path, capsys)


def test_one_rendering_is_too_few_and_is_said_before_long_work(tmp_path, monkeypatch, capsys):
    """Without other wordings there is one group of text per person; without Test_Set's pictures, one photograph."""
    monkeypatch.setattr(analysis, "SPLITS", {"forget": ("forget",), "retain": ("retain",)})
    monkeypatch.setattr(World, "presets", lambda *_: pytest.fail("long work was begun"))
    data = write_benchmark(tmp_path / "bench")
    assert script.main(arguments(data, tmp_path / "out")) == 2
    assert "at least 2 groups (photographs or wordings) of each of 2 classes" in capsys.readouterr().err
