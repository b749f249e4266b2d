"""Steering traces: the same in every place, true to the states, masked where a row has ended, and free when off."""

from contextlib import ExitStack

import pytest
import torch
from helpers import parquet_fixture
from helpers.plans import questions, subspace, vector
from helpers.tiny import picture
from helpers.traces import MORE, STEPS, assert_same, ending, natively, plans
from torch.utils._python_dispatch import TorchDispatchMode

import rmuse_interp.operators as op
from rmuse_interp.data import load_benchmark
from rmuse_interp.edits import trace as tracing
from rmuse_interp.edits.plan import as_plan
from rmuse_interp.edits.steering import steer
from rmuse_interp.edits.trace import SITE_COLUMNS, Recorder
from rmuse_interp.maths.sphere import unit
from rmuse_interp.models.site import Site
from rmuse_interp.parts.angle import FixedFraction
from rmuse_interp.runs import run as running


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """Several chunks per generation, the last of them not full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "CHUNK", 4)
        yield


NAMES = ("acs", "transport", "by kind", "per token", "in a row")


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
    rrs = getattr(operator, "rrs", None)
    if rrs is None:
        assert found["rrs_share"].isnan()
    else:
        basis = rrs.basis.double()
        close(found["rrs_share"], (basis.T @ update).square().sum() / update.square().sum())
    if isinstance(operator, op.Add):
        assert all(found[k].isnan() for k in ("theta_tar", "theta_dir", "fraction"))
        assert found["prototype"] == -1
        return
    heading = unit(before if operator.outside is None else before - basis @ (basis.T @ before))
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
    guarded = op.SlerpToward(vector(1), FixedFraction(0.6)).keeping(rrs).at(layers=[2])
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
                handle.apply(Site(2), h)
            counts.append(counted.n)
            state = handle.state
    with Counted() as needed:
        step = state.call.position - state.query.prompt_end.unsqueeze(-1)
        steer(plan[0].operator_at(2), h, state.call.real, step, state)
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


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    benchmark = load_benchmark(parquet_fixture.write_benchmark(tmp_path_factory.mktemp("data")))
    return {"forget": running.choose(benchmark, 4)["forget"]}
