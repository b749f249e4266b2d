"""Steering traces: the same in every place, true to the states, masked where a row has ended, and free when off."""

import math
from contextlib import ExitStack
from functools import cache

import parquet_fixture
import pytest
import torch
from plans import lens_of, linear_gate, questions, subspace, vector
from tiny import picture, tiny_llava
from torch.utils._python_dispatch import TorchDispatchMode

import rmuse_interp.operators as op
from rmuse_interp import Plan, RMuseError
from rmuse_interp.cli.evaluate import save_run
from rmuse_interp.cli.generate import trace_lines
from rmuse_interp.data import load_benchmark
from rmuse_interp.edits import trace as tracing
from rmuse_interp.edits.interpreter import steer
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.edits.trace import SITE_COLUMNS, Recorder, SteeringTrace
from rmuse_interp.evaluate import results
from rmuse_interp.maths.sphere import unit
from rmuse_interp.parts.angle import ACS, FixedFraction
from rmuse_interp.parts.prototypes import Prototypes
from rmuse_interp.runs import run as running
from rmuse_interp.runs.run import Method
from rmuse_interp.runs.traces import read_traces, write_traces

STEPS = 9
MORE = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """Several chunks per generation, the last of them not full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "CHUNK", 4)
        yield


@pytest.fixture(scope="module")
def lens():
    return lens_of(tiny_llava())


def points(n: int = 6) -> torch.Tensor:
    return unit(torch.randn(n, 32, generator=torch.Generator().manual_seed(4)))


def median_gate(lens, layer: int, seed: int = 5):
    """A gate that fires for half of the questions."""
    scores = as_plan(op.Add(vector(1)).at(layers=[3]).when(linear_gate(layer, seed=seed))).decide(
        lens, *questions()
    )
    return linear_gate(layer, seed=seed, threshold=float(scores.score[:, 0].median()) + 1e-3)


@cache
def plans() -> dict[str, Plan]:
    """One for every kind of trace there is."""
    lens = lens_of(tiny_llava())
    acs = op.SlerpToward(vector(1), ACS(Prototypes(points())), signed=True).shielding(subspace(2))
    move = op.Transport(points(), torch.arange(6), window=1).protecting(subspace(2))
    fixed = op.SlerpToward(vector(1), FixedFraction(0.6))
    push = op.Add(vector(3), scale=3.0)
    return {
        "acs": as_plan(acs.at(layers=[1, 2]).when(median_gate(lens, 1)).named("turn")),
        "transport": as_plan(move.at(layers=[3]).when(median_gate(lens, 0)).named("move")),
        "by kind": fixed.at(layers=[2]).given("image").when(median_gate(lens, 2)).named("image")
        >> push.at(layers=[2]).given("text").named("text"),
        "per token": as_plan(push.at(layers=[2]).on("response").when(linear_gate(1), per="token")),
        "in a row": fixed.at(layers=[2]).named("first") >> push.at(layers=[2]).on("response").named("second"),
    }


NAMES = ("acs", "transport", "by kind", "per token", "in a row")


def natively(lens, plan, end, asked=None, **more) -> tuple[SteeringTrace, torch.Tensor]:
    recorder = Recorder()
    inputs = lens.encode(*(asked or questions()))
    with plan.attach(lens.hf, recorder=recorder):
        out = lens.hf.generate(**inputs, **MORE | {"eos_token_id": end}, **more)
    return recorder.trace(), out[:, inputs["input_ids"].shape[1] :]


@cache
def ending(name: str) -> int:
    """A token that ends one row early under a plan, and not all rows."""
    _, new = natively(lens_of(tiny_llava()), plans()[name], None)
    for row in new.tolist():
        if sum(row[2] in other for other in new.tolist()) < len(new):
            return row[2]
    raise AssertionError("every token occurs in every row")


def assert_same(one: SteeringTrace, other: SteeringTrace, atol: float = 1e-5) -> None:
    assert one.sites == other.sites
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.valid, other.valid)
    for name in SITE_COLUMNS:
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), equal_nan=True, atol=atol, rtol=1e-5, msg=name
        )


@pytest.mark.parametrize("name", NAMES)
def test_every_place_records_the_same(lens, name):
    """Left-padded rows, decided one by one, of which some end early: nnsight contexts, stored edits, natively."""
    plan, end = plans()[name], ending(name)
    native, new = natively(lens, plan, end)
    lengths = [row.index(end) + 1 if end in row else len(row) for row in new.tolist()]
    assert native.lengths == lengths
    assert min(lengths) < max(lengths), "one row was to end early"
    inside, stored = Recorder(), Recorder()
    settings = MORE | {"eos_token_id": end}
    with torch.no_grad(), lens.generate(*questions(), plan=plan, recorder=inside, **settings) as tracer:
        sequences = tracer.result.save()
    assert torch.equal(sequences[:, -new.shape[1] :], new)
    assert_same(inside.trace(), native)
    with plan.install(lens, recorder=stored), torch.no_grad():
        with lens.nn.generate(**lens.encode(*questions()), **settings) as tracer:
            tracer.result.save()
        assert_same(stored.trace(), native)
        with lens.generate(*questions(), **settings) as tracer:
            tracer.result.save()
        assert_same(stored.trace(), native)


@pytest.mark.parametrize("name", NAMES)
def test_responses_carry_their_rows(lens, name, monkeypatch):
    """`respond` sorts, batches and stops; each response's trace is its row of one batch, cut at its end."""
    plan, end = plans()[name], ending(name)
    monkeypatch.setattr(lens.hf.generation_config, "eos_token_id", end)
    native, _ = natively(lens, plan, end)
    prompts, images = questions()
    found = lens.respond(prompts, images, plan, max_new_tokens=STEPS, batch_size=2, recorder=Recorder())
    for i, response in enumerate(found):
        assert_same(response.trace, native.row(i))
        assert response.trace.lengths == [native.lengths[i]]
    assert lens.respond(prompts[:1], images[:1], plan, max_new_tokens=2)[0].trace is None


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_is_what_happened_to_the_states(lens, name):
    """Against states taken by hooks of another kind, in a pass over the given words, one formula at a time."""
    plan, end = plans()[name], ending(name)
    trace, new = natively(lens, plan, end)
    prompts, images = questions()
    decision = plan.decide(lens, prompts, images)
    moved = 0
    for row, n in enumerate(trace.lengths):
        before_after = states_of(lens, plan, prompts[row], images[row], new[row, : n - 1])
        for i, site in enumerate(trace.sites):
            index = [e.name or f"edit{k}" for k, e in enumerate(plan)].index(site.edit)
            edit = plan[index]
            if edit.modality not in (None, "image" if images[row] is not None else "text"):
                assert not trace.acted[row, i].any()
                assert trace.norm_before[row, i].isnan().all()
                continue
            first = index == 0 or plan[index - 1].modality is not None
            last = index == len(plan) - 1 or plan[index + 1].modality is not None
            before, after = (side[site.layer] for side in before_after)
            if first:
                close(trace.norm_before[row, i, :n], before.norm(dim=-1))
            if last:
                close(trace.norm_after[row, i, :n], after.norm(dim=-1))
            if not (first and last):
                close(trace.norm_after[row, 0, :n], trace.norm_before[row, 1, :n])
                assert trace.acted[row, :, :n].tolist() == [[True] * n, [False] + [True] * (n - 1)]
                moved += n
                continue
            acted, changed = trace.acted[row, i, :n], (after - before).norm(dim=-1) > 1e-9
            assert torch.equal(acted & (trace.fraction[row, i, :n] != 0), changed)
            cosine = (unit(before) * unit(after)).sum(dim=-1).clamp(-1, 1)
            close(trace.angle[row, i, :n], cosine.arccos(), atol=1e-3)
            if edit.gate is not None and edit.per == "query":
                close(trace.score[row, i, :n], decision.score[row, index].expand(n))
                assert bool(decision.fired[row, index]) == bool(acted.any())
                assert trace.fired[row, i, :n].all() == trace.fired[row, i, :n].any() == acted.any()
            moved += int(acted.sum())
            operator = edit.operator_at(site.layer)
            for t in changed.nonzero().flatten().tolist():
                expected(
                    operator, before[t], after[t], t, {k: getattr(trace, k)[row, i, t] for k in SITE_COLUMNS}
                )
    assert moved, "something was to be steered"


def states_of(lens, plan, prompt, image, ids: torch.Tensor) -> tuple[dict[int, torch.Tensor], ...]:
    """Blocks' outputs before and after the plan's edits, of one row alone, in one pass without a cache."""
    inputs = lens.encode([prompt], [image])
    whole = torch.cat([inputs["input_ids"], ids.unsqueeze(0)], dim=1)
    sides: tuple[dict[int, torch.Tensor], ...] = ({}, {})

    def hook(side, layer):
        def keep(module, args, output):
            side[layer] = output[0, inputs["input_ids"].shape[1] - 1 :].double()

        return keep

    with ExitStack() as undo, torch.no_grad():
        blocks = list(enumerate(lens.layout.blocks))
        for layer, block in blocks:
            undo.callback(block.register_forward_hook(hook(sides[0], layer)).remove)
        handle = undo.enter_context(plan.attach(lens.hf))
        for layer, block in blocks:
            undo.callback(block.register_forward_hook(hook(sides[1], layer)).remove)
        undo.enter_context(handle.expecting(inputs["input_ids"]))
        lens.hf(**{**inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole)}, use_cache=False)
    return sides


def close(found, wanted, atol=2e-4):
    torch.testing.assert_close(found.double(), wanted.double(), atol=atol, rtol=1e-4)


def expected(operator, before, after, t, found) -> None:
    """One state's quantities by their definitions."""
    update = after - before
    rrs = operator.rrs if getattr(operator, "rrs", None) is not None else getattr(operator, "shield", None)
    if rrs is None:
        assert found["rrs_share"].isnan()
    else:
        basis = rrs.basis.double()
        close(found["rrs_share"], (basis.T @ update).square().sum() / update.square().sum())
    if isinstance(operator, op.Add):
        assert all(found[k].isnan() for k in ("theta_tar", "theta_dir", "fraction"))
        assert found["prototype"] == -1
        return
    heading = unit(before if operator.rrs is None else before - basis @ (basis.T @ before))
    if isinstance(operator, op.Transport):
        near = [i for i, p in enumerate(operator.positions.tolist()) if abs(p - t) <= operator.window]
        cosines = operator.targets.double() @ heading
        assert found["prototype"] == max(near, key=lambda i: float(cosines[i]))
        close(found["theta_tar"], cosines[found["prototype"]].clamp(-1, 1).arccos(), atol=1e-3)
        assert found["theta_dir"].isnan()
        assert found["fraction"] == operator.fraction
        return
    sign = float((operator.direction.double() @ before).sign()) if operator.signed else 1.0
    theta_dir = (heading @ (sign * operator.toward.double())).clamp(-1, 1).arccos()
    close(found["theta_dir"], theta_dir, atol=1e-3)
    if isinstance(operator.angle, FixedFraction):
        assert found["fraction"] == pytest.approx(operator.angle.value)
        assert found["theta_tar"].isnan()
    else:
        cosines = operator.angle.prototypes.points.double() @ heading
        assert found["prototype"] == cosines.argmax()
        close(found["theta_tar"], cosines.max().clamp(-1, 1).arccos(), atol=1e-3)
        close(found["fraction"], (cosines.max().arccos() / theta_dir).clamp(max=1.0), atol=1e-3)
    close(found["angle"], found["fraction"] * found["theta_dir"], atol=1e-3)


def test_ended_rows_and_closed_gates_say_nothing(lens):
    plan, end = plans()["acs"], ending("acs")
    trace, _ = natively(lens, plan, end)
    over = ~trace.valid.unsqueeze(1).expand_as(trace.acted)
    assert over.any()
    assert (trace.ids[~trace.valid] == -1).all()
    for name in SITE_COLUMNS:
        values = getattr(trace, name)[over]
        assert (
            values.isnan().all() if values.is_floating_point() else (values == tracing._EMPTY[name]).all()
        ), name
    closed = ~trace.fired & ~over
    assert closed.any()
    assert trace.fired.any()
    assert (trace.angle[closed] == 0).all()
    assert torch.equal(trace.norm_before[closed], trace.norm_after[closed])
    assert trace.fraction[closed].isnan().all()
    assert trace.score[closed].isfinite().all()


def test_given_words_a_prefill_and_no_cache_count_from_the_prompts_end(lens):
    plan = as_plan(op.SlerpToward(vector(1), FixedFraction(0.6)).at(layers=[2]))
    prompts, images = questions()
    words = "<think> Mara Venn works as a baker."
    free, _ = natively(lens, plan, None)
    slow, _ = natively(lens, plan, None, use_cache=False)
    assert_same(slow, free, atol=2e-4)
    given = [words, "It is green.", words, "It is green. Oren Tal lives in Lisbon."]
    recorder, n = Recorder(), []
    with torch.no_grad(), lens.trace(prompts, images, given, plan=plan, recorder=recorder):
        lens.nn.output.save()
    for row, response in enumerate(given):
        encoded = lens.encode([prompts[row]], [images[row]], [response])
        n.append(int(encoded["attention_mask"].sum() - encoded.prompt_end[0]))
        alone = Recorder()
        said = encoded["input_ids"], encoded["attention_mask"], encoded.prompt_end
        with plan.attach(lens.hf, recorder=alone) as handle, handle.expecting(*said), torch.no_grad():
            lens.hf(**encoded)
        assert_same(alone.trace(), recorder.trace().row(row), atol=2e-4)
    assert recorder.trace().lengths == n
    assert len(set(n)) > 1
    with torch.no_grad():
        settings = MORE | {"eos_token_id": None, "max_new_tokens": 3}
        with lens.generate(
            prompts[0], images[0], plan=plan, recorder=recorder, prefill=words, **settings
        ) as tracer:
            tracer.result.save()
    continued = recorder.trace()
    assert continued.lengths == [n[0] + 2]
    torch.testing.assert_close(
        continued.angle[0, :, : n[0]],
        alone_of(lens, plan, prompts[0], images[0], words),
        atol=2e-4,
        rtol=1e-4,
    )


def alone_of(lens, plan, prompt, image, words) -> torch.Tensor:
    recorder = Recorder()
    with torch.no_grad(), lens.trace(prompt, image, words, plan=plan, recorder=recorder):
        lens.nn.output.save()
    return recorder.trace().angle[0]


def test_an_unprotected_update_is_measured_in_the_bundles_rrs(lens):
    """An operator that knows no RRS has no share, unless the bundle's subspaces are handed over."""
    from rmuse_interp.parts.retain import RetainSubspace, Subspaces

    rrs = subspace(2)
    held = Subspaces({}, {"image-2": RetainSubspace(rrs, torch.ones(4), "none", 0.8, None, False)})
    turn = op.SlerpToward(vector(1), FixedFraction(0.6)).at(layers=[2]).given("image")
    asked = ["Where?"], [picture(0)]
    shares = []
    for edit, subspaces in ((turn, None), (turn, held)):
        recorder = Recorder(subspaces)
        with edit_attached(lens, edit, recorder):
            lens.hf.generate(**lens.encode(*asked), **MORE)
        shares.append(recorder.trace().rrs_share)
    assert shares[0].isnan().all()
    assert (shares[1] > 0.01).all()
    guarded = op.SlerpToward(vector(1), FixedFraction(0.6)).protecting(rrs).at(layers=[2])
    recorder = Recorder()
    with edit_attached(lens, guarded, recorder):
        lens.hf.generate(**lens.encode(*asked), **MORE)
    assert (recorder.trace().rrs_share < 1e-6).all()


def edit_attached(lens, edit, recorder):
    return as_plan(edit).attach(lens.hf, recorder=recorder)


class Counted(TorchDispatchMode):
    """How many operations are dispatched."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        return func(*args, **kwargs or {})


def test_recording_is_free_when_off_and_cheap_when_on(lens):
    """Without a recorder a decode step does what the edits need and no operation more; with one, it copies states."""
    plan = as_plan(op.SlerpToward(vector(1), FixedFraction(0.6)).at(layers=[2]))
    counts = []
    for recorder in (None, Recorder()):
        with plan.attach(lens.hf, recorder=recorder) as handle, torch.no_grad():
            cache = lens.hf(**(inputs := lens.encode(*questions())), use_cache=True).past_key_values
            mask = torch.cat([inputs["attention_mask"], torch.ones(4, 1, dtype=torch.long)], dim=1)
            handle.begin(
                (),
                {
                    "input_ids": torch.ones(4, 1, dtype=torch.long),
                    "attention_mask": mask,
                    "past_key_values": cache,
                },
            )
            h = torch.randn(4, 1, 32)
            with Counted() as counted:
                handle.apply(2, h)
            counts.append(counted.n)
            state = handle.state
    with Counted() as needed:
        step = state.call.position - state.query.prompt_end.unsqueeze(-1)
        steer(plan[0].operator_at(2), h, state.call.real, step, gather=False)
    assert counts[0] == needed.n
    assert needed.n < counts[1] <= needed.n + 8


def test_a_batch_replaces_the_one_before(lens):
    plan, recorder = plans()["acs"], Recorder()
    asked = questions()
    with plan.attach(lens.hf, recorder=recorder):
        lens.hf.generate(**lens.encode(*asked), **MORE | {"eos_token_id": None})
        lens.hf.generate(
            **lens.encode(asked[0][1], asked[1][1]), **MORE | {"eos_token_id": None, "max_new_tokens": 2}
        )
    trace = recorder.trace()
    assert trace.valid.shape == (1, 2)
    assert_same(recorder.trace(), trace, atol=0)


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
    said = op.SlerpToward(vector(1), FixedFraction(0.5)).protecting(rrs).explain(inside)
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
    (kept,) = tmp_path.rglob("*.0.safetensors")
    kept.write_bytes(kept.read_bytes()[:-9])
    before = len(calls)
    running.run(methods, asked, **SETTINGS, traces=True, folder=tmp_path)
    assert len(calls) - before == 2
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
    turned = as_plan(op.SlerpToward(vector(1), FixedFraction(0.6)).protecting(subspace(2)).at(layers=[1, 3]))
    trace = lens.respond(prompts[:1], images[:1], turned, max_new_tokens=4, recorder=Recorder())[0].trace
    first, last = trace_lines(trace)
    assert first.startswith(f"block 1: {trace.lengths[0]} of {trace.lengths[0]} tokens steered, turned by ")
    assert last.startswith("block 3: ")
    assert "% of the update inside the RRS" in last
    closed = turned.replace(edit0=turned[0].when(linear_gate(1, threshold=math.inf)))
    shut = lens.respond(prompts[:1], images[:1], closed, max_new_tokens=4, recorder=Recorder())[0].trace
    assert trace_lines(shut) == []
