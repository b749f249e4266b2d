"""Traces of steering in run folders: read back as they were, and told in one line per block."""

import math

import pytest
import torch
from helpers import parquet_fixture
from helpers.plans import linear_gate, questions, subspace, vector
from helpers.traces import STEPS, assert_same, ending, natively, plans, points

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.cli.evaluate import save_run
from rmuse_interp.cli.generate import trace_lines
from rmuse_interp.data import load_benchmark
from rmuse_interp.edits import trace as tracing
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.edits.trace import Recorder
from rmuse_interp.evaluate import results
from rmuse_interp.parts.angle import FixedFraction
from rmuse_interp.runs import run as running
from rmuse_interp.runs.run import Method
from rmuse_interp.runs.traces import read_traces, write_traces


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """Several chunks per generation, the last of them not full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "CHUNK", 4)
        yield


def test_records_and_sites(lens):
    trace, _ = natively(lens, plans()["acs"], ending("acs"))
    records = trace.records()
    assert len(records) == sum(trace.lengths) * len(trace.sites)
    one = next(r for r in records if r["row"] == 1 and r["layer"] == 2 and r["step"] == 1)
    assert one["edit"] == "turn"
    assert one["norm_before"] == pytest.approx(float(trace.norm_before[1, trace.site(2), 1]))
    with pytest.raises(RMuseError, match="turn at block 1"):
        trace.site(0)
    both, _ = natively(lens, plans()["in a row"], None)
    with pytest.raises(RMuseError, match="2 are at block 2"):
        both.site(2)
    assert both.site(2, "second") == 1


def test_errors_before_any_work(lens):
    with pytest.raises(RMuseError, match="none was recorded"):
        Recorder().trace()
    with pytest.raises(RMuseError, match="got none"):
        lens.respond("Where?", recorder=Recorder())
    with pytest.raises(RMuseError, match="got none"):
        lens.generate("Where?", recorder=Recorder())


def test_traces_are_read_back_as_they_were(lens, tmp_path):
    prompts, images = questions()
    found = {}
    for name in ("acs", "by kind"):
        responses = lens.respond(prompts, images, plans()[name], max_new_tokens=STEPS, recorder=Recorder())
        found |= {(name, str(i)): r.trace for i, r in enumerate(responses)}
    path = tmp_path / "traces.safetensors"
    write_traces(path, found)
    back = read_traces(tmp_path)
    assert list(back) == list(found)
    for key, trace in found.items():
        assert_same(back[key], trace, atol=0)
    assert not [p for p in tmp_path.iterdir() if p != path]
    assert {len(t.sites) for t in back.values()} == {1, 2}
    write_traces(path, {})
    with pytest.raises(RMuseError, match="--record"):
        read_traces(tmp_path)
    path.write_bytes(b"\x00" * 40)
    with pytest.raises(RMuseError, match="damaged"):
        read_traces(tmp_path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path, {"schema": "rmuse-traces/0"})
    with pytest.raises(RMuseError, match="rmuse-traces/0"):
        read_traces(tmp_path)


def test_explanations_know_what_is_left_alone():
    """Past the last trajectory and inside the RRS a rotation leaves the state: λ 0, no prototype, no angle."""
    move = op.Transport(points(), torch.arange(6), window=0)
    said = move.explain(torch.stack([vector(7)] * 2), torch.tensor([3, 40]))
    assert said.prototype.tolist() == [3, -1]
    assert said.fraction.tolist() == [1.0, 0.0]
    assert math.isnan(said.theta_tar[1])
    rrs = subspace(2)
    inside = (rrs.basis @ torch.ones(rrs.rank)).unsqueeze(0)
    said = op.SlerpToward(vector(1), FixedFraction(0.5)).keeping(rrs).explain(inside)
    assert said.fraction.tolist() == [0.0]
    nothing = op.Ablate(rrs).explain(inside)
    assert (nothing.theta_tar, nothing.theta_dir, nothing.fraction, nothing.prototype) == (None,) * 4


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    benchmark = load_benchmark(parquet_fixture.write_benchmark(tmp_path_factory.mktemp("data")))
    return {"forget": running.choose(benchmark, 4)["forget"]}


SETTINGS = {"delimiters": ("<think>", "</think>"), "max_new_tokens": 5, "batch_size": 3}


def test_a_broken_off_run_loses_no_trace(lens, asked, tmp_path, monkeypatch):
    """The rerun takes up transcripts and traces alike; where a batch's traces are damaged, it is asked again."""
    methods = [Method("vanilla", lens), Method("rmuse/x", lens, plans()["acs"])]
    whole = running.run(methods, asked, **SETTINGS, traces=True)
    assert {key[0] for key in whole.traces} == {"rmuse/x"}
    assert [t.id for t in whole.transcripts if t.method == "rmuse/x"] == [key[1] for key in whole.traces]
    bare = running.run(methods, asked, **SETTINGS)
    assert bare.transcripts == whole.transcripts
    assert bare.traces == {}
    real, calls = lens.respond, []

    def counting(*args, **settings):
        calls.append(settings.get("recorder"))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **settings)

    monkeypatch.setattr(lens, "respond", counting, raising=False)
    with pytest.raises(KeyboardInterrupt):
        running.run(methods, asked, **SETTINGS, traces=True, folder=tmp_path)
    for again in (1, 0):
        before = len(calls)
        found = running.run(methods, asked, **SETTINGS, traces=True, folder=tmp_path)
        assert len(calls) - before == again
        assert found.transcripts == whole.transcripts
        assert list(found.traces) == list(whole.traces)
        for key, trace in whole.traces.items():
            assert_same(found.traces[key], trace, atol=0)
    kept = min(tmp_path.rglob("*.safetensors"))
    kept.write_bytes(kept.read_bytes()[:-9])
    before = len(calls)
    running.run(methods, asked, **SETTINGS, traces=True, folder=tmp_path)
    assert len(calls) - before == 1
    before = len(calls)
    running.run(methods, asked, **SETTINGS, folder=tmp_path)  # without traces it is another run
    assert len(calls) - before == 2


def test_a_run_folder_holds_the_traces_of_its_own_run(lens, asked, tmp_path):
    """`write_run` puts them beside the transcripts, and never leaves those of an earlier run there."""
    method = Method("rmuse/x", lens, plans()["acs"])
    answers = running.run([method], asked, **SETTINGS, traces=True)
    scores = {"schema": results.SCHEMA}
    save_run(tmp_path, scores, answers, overwrite=False)
    assert set(read_traces(tmp_path)) == {("rmuse/x", t.id) for t in results.read_run(tmp_path).transcripts}
    results.write_run(tmp_path, scores, answers.transcripts, overwrite=True)
    with pytest.raises(RMuseError, match="run `rmuse eval` again with --record"):
        read_traces(tmp_path)


def test_one_line_per_block_says_what_steering_did(lens):
    prompts, images = questions()
    turned = as_plan(op.SlerpToward(vector(1), FixedFraction(0.6)).keeping(subspace(2)).at(layers=[1, 3]))
    trace = lens.respond(prompts[:1], images[:1], turned, max_new_tokens=4, recorder=Recorder())[0].trace
    first, last = trace_lines(trace)
    assert first.startswith(f"block 1: {trace.lengths[0]} of {trace.lengths[0]} tokens steered, turned by ")
    assert last.startswith("block 3: ")
    assert "% of the update inside the RRS" in last
    closed = turned.replace(edit0=turned[0].when(linear_gate(1, threshold=1e30)))
    shut = lens.respond(prompts[:1], images[:1], closed, max_new_tokens=4, recorder=Recorder())[0].trace
    assert trace_lines(shut) == []
