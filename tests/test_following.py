"""Targets of a whole answer: which refusals are followed, who draws them, and what of the RRS makes room."""

from dataclasses import replace

import pytest
import torch
from helpers import parquet_fixture
from helpers.elicit import scripted
from helpers.plans import lens_of
from helpers.tiny import tiny_llava
from test_steering import AT, LAYERS, D, drawn, evidence

from rmuse_interp import RMuseError
from rmuse_interp.data import load_benchmark
from rmuse_interp.fitting import check, elicit
from rmuse_interp.fitting.aside import set_aside
from rmuse_interp.fitting.collect import Query
from rmuse_interp.fitting.elicit import BEGINNING, COMPOSED, follows_template
from rmuse_interp.fitting.refusing import DICTATION, PLAIN, Refused, in_own_words, is_plain_refusal, names_of
from rmuse_interp.method.following import follow, follow_one, making_room, paths
from rmuse_interp.method.rmuse import subspaces_at
from rmuse_interp.method.targets import PROTECTIONS, TARGETS
from rmuse_interp.parts.pooled import Pooled

RUNS = (  # text, steps, own, stepwise
    (0, 4, True, True),
    (0, 4, True, True),
    (1, 3, False, True),
    (2, 2, False, False),
    (3, 5, False, False),
    (3, 5, False, False),
)


def known():
    """Evidence with runs: two that the model said alike, one imposed beside them, and three imposed direct ones."""
    steps = [n for _, n, _, _ in RUNS]
    return replace(
        evidence(),
        tokens=3 + drawn(sum(steps), len(LAYERS), D, seed=60),
        position=torch.cat([torch.arange(n) for n in steps]),
        template=torch.cat([torch.full((n,), text) for text, n, _, _ in RUNS]),
        refusals=("a", "b", "c", "d"),
        run=torch.cat([torch.full((n,), i) for i, n in enumerate(steps)]),
        run_own=tuple(own for _, _, own, _ in RUNS),
        run_stepwise=tuple(stepwise for *_, stepwise in RUNS),
        starts=Pooled(drawn(6, len(LAYERS), D, seed=61), tuple("uvwxyz"), LAYERS, "last"),
        start_text=(0, 0, -1, -1, -1, -1),
        start_stepwise=(True, True, True, False, False, False),
    )


def test_refusals_of_each_kind_are_followed_the_models_own_first():
    data = known()
    found = paths(data, AT)
    assert (found.texts, found.own) == ((0, 3, 2), (True, False, False))  # "b" was imposed where "a" was said
    assert found.lengths.tolist() == [4, 5, 2]
    states = data.tokens[:, LAYERS.index(AT)]
    torch.testing.assert_close(found.points[0, :4], (states[:4] + states[4:8]) / 2)  # the mean state per step
    assert not found.points[2, 2:].any()
    # What a question drew is its own; the others take turns within their kind.
    assert found.owner.tolist() == [0, 0, 0, 1, 2, 1]
    unlearning, _ = subspaces_at(data, AT, literal=False)
    one = follow_one(data, AT, unlearning)
    assert one.lengths.tolist() == [4, 5]
    assert follow(data, AT, unlearning).starting(data.starts.at(AT)).tolist() == [0, 0, 0, 1, 2, 1]
    with pytest.raises(RMuseError, match="run by run"):
        paths(evidence(), AT)


def test_the_rrs_makes_room_for_the_refusals():
    data = known()
    rrs = subspaces_at(data, AT, literal=False)[1].subspace
    left = making_room(rrs, data, AT)
    found = paths(data, AT)
    own = torch.cat([pooled.at(AT) for pooled in data.own.values()]).mean(dim=0)
    move = found.points[0, 1] - own
    assert left.project(move).norm() < 0.15 * move.norm() < rrs.project(move).norm() + 0.15 * move.norm()
    assert PROTECTIONS["rrs"](rrs, data, AT) is rrs
    assert PROTECTIONS["nothing"](rrs, data, AT) is None


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_moves_states_and_keeps_what_is_protected(name):
    data = known()
    unlearning, retain = subspaces_at(data, AT, literal=False)
    operator = TARGETS[name](data, AT, unlearning)
    h, step = drawn(6, D, seed=70), torch.zeros(6, dtype=torch.int64)
    assert not torch.allclose(operator(h, step), h, atol=1e-2)
    kept = operator.keeping(retain.subspace)(h, step)
    torch.testing.assert_close(
        retain.subspace.project(kept), retain.subspace.project(h), atol=1e-4, rtol=1e-4
    )


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return load_benchmark(parquet_fixture.write_benchmark(tmp_path_factory.mktemp("data")), forget=10)


def test_a_model_without_a_template_is_told_what_to_say(benchmark, monkeypatch):
    lens = lens_of(tiny_llava())
    asked = [
        Refused(Query(name, f"Refuse. {q}", None, "<think> no </think> no"), Query(name, q), False)
        for name, q in (("a", "Where?"), ("b", "Who?"))
    ]

    def obedient(prompt, _image):
        return next((text for text in PLAIN if text in prompt), "I'm sorry, but Mara Venn is not here.")

    scripted(lens, monkeypatch, obedient)
    found = in_own_words(lens, benchmark, asked, False, 8)
    assert {one.query.response for one in found} == {*PLAIN}
    assert len(found) == len(PLAIN) * len(DICTATION)
    assert all(one.own and one.key is None and not one.query.stepwise for one in found)
    # What names somebody, does not refuse or goes on does not count; a model that never refuses keeps the pool's.
    for text in ("I'm sorry, but Mara Venn is not here.", "Oslo.", "I'm sorry, I", "I cannot " * 300):
        scripted(lens, monkeypatch, lambda *_, text=text: text)
        assert not any(one.own for one in in_own_words(lens, benchmark, asked, False, 8))
    assert {"mara", "venn", "oslo"} <= names_of(benchmark)
    assert not is_plain_refusal("Paris. I'm sorry.")


def test_questions_set_aside_are_disjoint_and_a_third_at_most(benchmark):
    tried, scored = set_aside(benchmark, "image", 0)
    assert tried
    assert not {e.id for e in tried} & {e.id for e in scored}


def test_refusals_without_delimiters_are_refused_at_once_or_taken_as_they_are(tmp_path, monkeypatch):
    folder = parquet_fixture.write_benchmark(tmp_path)
    settings = folder / "benchmark.json"
    settings.write_text('{"refusals_cot": ["I cannot say."], "delimiters": ["<think>", "</think>"]}')
    plain = load_benchmark(folder, forget=10)
    lens = lens_of(tiny_llava())
    for traces in ("given", "own"):
        with pytest.raises(RMuseError, match=r"refusals_cot with reasoning.*I cannot say.*composed"):
            check(lens, plain, traces=traces)
    check(lens, plain, traces="composed")
    batches = scripted(lens, monkeypatch, lambda prompt, _: "Lima is its name.")
    found = elicit(lens, plain, composed=None, cache=tmp_path / "kept", max_new_tokens=200).benchmark
    assert batches
    assert found.record["kept"] > found.record["composed"] > 0  # harmless questions need no reasoning
    assert found.record["max_new_tokens"] == COMPOSED > BEGINNING
    assert not follows_template(found)
    assert found.refusals_cot == ("<think> I cannot say. </think> I cannot say.",)
