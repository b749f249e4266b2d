"""The rivals: each against its formula evaluated independently, each by its property, all in their places."""

import json
import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from helpers.plans import lens_of, questions
from helpers.tiny import D_MODEL, tiny_llava
from reference import rivals as reference

from rmuse_interp import RMuseError
from rmuse_interp.edits.plan import Edit, as_plan
from rmuse_interp.maths.sphere import unit
from rmuse_interp.method.contrasts import NULL_SHARE, RIDGE
from rmuse_interp.method.expressions import (
    ablation,
    alphasteer,
    angular,
    caa,
    cast,
    leace,
    linear_act,
    mllmeraser,
    spherical,
)
from rmuse_interp.method.rivals import RIVALS, Trial, choose_strength
from rmuse_interp.method.rmuse import Evidence
from rmuse_interp.parts.part import from_record, to_record
from rmuse_interp.parts.pooled import Pooled

D = D_MODEL
LAYERS = (0, 1, 2, 3)
AT = 2
READOUTS = ("last", "question", "draft")
MEAN = {"own": 0.0, "refusal": 1.0, "step": 2.0, "direct": 3.0, "forget": 4.0, "others": 5.0}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def states_of(n: int, who: str, seed: int) -> torch.Tensor:
    """n states at every block: a mean that belongs to `who` at that block, a common one, and noise."""
    common, own = drawn(1, len(LAYERS), D, seed=90), drawn(1, len(LAYERS), D, seed=91 + int(MEAN[who]))
    return 2 * common + own + 0.7 * drawn(n, len(LAYERS), D, seed=seed)


@cache
def evidence(others: int = 50, apart: float = 1.0) -> Evidence:
    """Random evidence: 8 forget queries, `others` further ones; x⁻ in another order than x⁺."""
    told, kept = [f"f{i}" for i in range(8)], [f"r{i}" for i in range(10)]
    asked = {f"{name}@0": "a" for name in told}, {f"o{i}@0": "b" for i in range(others)}

    def pooled(ids: list[str], who: str, seed: int, span: str) -> Pooled:
        return Pooled(states_of(len(ids), who, seed), tuple(ids), LAYERS, span)

    def both(ids: list[str], who: str, seed: int, spans=("cot", "answer")) -> dict[str, Pooled]:
        return {span: pooled(ids, who, seed + i, span) for i, span in enumerate(spans)}

    def prompts(seed: int, span: str) -> Pooled:
        named = zip(asked, ("forget", "others"), strict=True)
        sides = [states_of(len(ids), who, seed + i) for i, (ids, who) in enumerate(named)]
        sides[0] = sides[1].mean(0) + apart * (sides[0] - sides[1].mean(0))
        return Pooled(torch.cat(sides), (*asked[0], *asked[1]), LAYERS, span)

    return Evidence(
        own=both(told[::-1], "own", 1),
        refusal=both(told, "refusal", 3),
        refused_with=dict.fromkeys(told, 0),
        step=both(kept, "step", 5),
        direct=both(kept, "direct", 7, ("answer",)),
        step_prefixed=both(kept, "step", 9),
        direct_prefixed=both(kept, "direct", 11, ("answer",)),
        groups=dict.fromkeys(kept, "people"),
        tokens=drawn(5, len(LAYERS), D),
        position=torch.arange(5),
        template=torch.zeros(5, dtype=torch.int64),
        readouts={readout: prompts(20 + 3 * i, readout) for i, readout in enumerate(READOUTS)},
        prefixed=prompts(40, "last"),
        forget=asked[0],
        others=asked[1],
    )


def array(states: torch.Tensor) -> np.ndarray:
    return states.double().numpy()


def spoken(data: Evidence, layer: int = AT) -> tuple[np.ndarray, np.ndarray]:
    """x⁻ and x⁺ by row, found by id."""
    rows = [(span, name) for span in ("answer", "cot") for name in data.refusal["answer"].ids]
    return tuple(
        np.stack([array(side[span].at(layer)[side[span].ids.index(name)]) for span, name in rows])
        for side in (data.own, data.refusal)
    )


def asked(data: Evidence, readouts=READOUTS, layer: int = AT) -> tuple[np.ndarray, np.ndarray]:
    """Forget and other queries, found by id."""
    sides = []
    for wanted in (data.forget, data.others):
        rows = [(data.readouts[readout], name) for readout in readouts for name in wanted]
        sides.append(np.stack([array(pooled.at(layer)[pooled.ids.index(name)]) for pooled, name in rows]))
    return sides[0], sides[1]


def applied(edit: Edit, h: torch.Tensor) -> torch.Tensor:
    operator = edit.operator_at(AT)
    assert operator is not None
    return operator(h)


H = torch.cat([states_of(4, who, 60 + i)[:, AT] for i, who in enumerate(MEAN)]).double()
"""States of every kind, to be steered."""


def naive(name: str, strength: float, data: Evidence) -> np.ndarray:
    """The rival's formula on every state of H."""
    own, refusal = spoken(data)
    forget, others = asked(data)
    r = reference.mean(refusal) - reference.mean(own)
    if name == "leace":
        z = np.concatenate([np.zeros((len(forget), 1)), np.ones((len(others), 1))])
        x = np.concatenate([forget, others])
        sigma = reference.shrunk(x)
    if name == "angular":
        plane = reference.angular_plane([spoken(data, layer) for layer in LAYERS])
    if name == "alphasteer":
        kept = [data.step["cot"], data.step["answer"], data.direct["answer"]]
        retain = np.concatenate([others, *(array(pooled.at(AT)) for pooled in kept)])
        told = np.concatenate([forget, own])
    last = asked(data, ("last",))
    formula = {
        "caa": lambda h: reference.caa(h, own, refusal, strength),
        "ablation": lambda h: reference.ablation(h, forget, others, strength),
        "leace": lambda h: reference.leace(h, x, z, sigma, strength),
        "cast": lambda h: h + strength * reference.cast_vector(own, refusal),
        "angular": lambda h: reference.angular(h, *plane, strength),
        "spherical": lambda h: reference.spherical(h, reference.unit(r), strength),
        "alphasteer": lambda h: reference.null_steer(h, told, retain, r, strength, NULL_SHARE, RIDGE),
        "mllmeraser": lambda h: reference.null_steer(h, *last, r, strength, NULL_SHARE, RIDGE),
        "linear-act": lambda h: reference.linear_act(h, own, refusal, strength),
    }[name]
    return np.stack([formula(array(h)) for h in H])


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_is_its_formula(name):
    data, rival = evidence(), RIVALS[name]
    for strength in (rival.strengths[0], rival.strengths[3]):
        out = applied(rival.build(data, "image", [AT], strength), H)
        assert np.allclose(array(out), naive(name, strength, data), atol=2e-4, rtol=1e-4)
        assert not torch.allclose(out, H, atol=1e-2)  # it does something


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_knows_its_place_and_survives_its_record(name):
    edit = RIVALS[name].build(evidence(), "image", [1, AT], 0.5)
    assert (edit.layers, edit.modality, edit.name) == ([1, AT], "image", "image")
    expected = {"ablation": "all", "leace": "all", "mllmeraser": "prompt"}
    assert edit.tokens == expected.get(name, "generated")
    assert (edit.gate is not None) == (name == "cast")
    tree, tensors = to_record(edit)
    again = from_record(json.loads(json.dumps(tree)), tensors)
    assert isinstance(again, Edit)
    assert torch.equal(applied(again, H), applied(edit, H))
    assert str(again) == str(edit)
    with pytest.raises(RMuseError, match="block 7 was not collected"):
        # The plane of angular is one for all blocks: it needs no states of the steered one.
        RIVALS[name].build(evidence(), "image", [7], 0.5) if name != "angular" else evidence().prefixed.at(7)


@pytest.mark.parametrize("name", [name for name in RIVALS if name != "angular"])
def test_without_strength_nothing_happens(name):
    edit = RIVALS[name].build(evidence(), "text", [AT], 0.0)
    torch.testing.assert_close(applied(edit, H), H, atol=1e-6, rtol=1e-6)


def test_every_rival_runs_in_a_model():
    lens = lens_of(tiny_llava())
    prompts, images = questions()

    def logits(plan=None):
        return lens.run_with_cache(prompts, images, names="blocks.3.hook_resid_post", plan=plan)[0]

    plain = logits()
    shown = torch.tensor([image is not None for image in images])
    for name, rival in RIVALS.items():
        edit = rival.build(evidence(), "image", [AT], rival.strengths[-1])
        plan = as_plan(edit.when(None))  # a gate fitted on noise may stay closed
        steered = logits(plan)
        assert bool(torch.isfinite(steered).all()), name
        torch.testing.assert_close(steered[~shown], plain[~shown], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(steered[shown][:, -1], plain[shown][:, -1], atol=1e-3), name


def test_caa_moves_the_mean_of_what_is_told_to_the_mean_of_refusals():
    own, refusal = (torch.from_numpy(side) for side in spoken(evidence()))
    moved = applied(caa(evidence(), "image", [AT]), own)
    torch.testing.assert_close(moved.mean(0), refusal.mean(0), atol=1e-4, rtol=0)
    # linear_act does as well, and turns no coordinate's order around.
    moved = applied(linear_act(evidence(), "image", [AT]), own)
    torch.testing.assert_close(moved.mean(0), refusal.mean(0), atol=1e-4, rtol=0)
    assert torch.equal(moved.argsort(dim=0), own.argsort(dim=0))


def test_ablation_and_leace_leave_one_mean_to_forget_and_other_queries():
    forget, others = (torch.from_numpy(side) for side in asked(evidence()))
    removed = [applied(ablation(evidence(), "image", [AT]), side) for side in (forget, others)]
    gap = forget.mean(0) - others.mean(0)
    assert abs(float(unit(gap) @ (removed[0].mean(0) - removed[1].mean(0)))) < 1e-4
    assert bool(((removed[0] @ unit(gap)).abs() < 1e-4).all())
    again = applied(ablation(evidence(), "image", [AT]), removed[0])
    torch.testing.assert_close(again, removed[0], atol=1e-5, rtol=1e-5)  # idempotent
    erased = [applied(leace(evidence(), "image", [AT]), side) for side in (forget, others)]
    torch.testing.assert_close(erased[0].mean(0), erased[1].mean(0), atol=1e-4, rtol=0)
    # Erasing keeps the mean of all states and what they have along the direction beside it.
    both, kept = torch.cat([forget, others]), torch.cat(erased)
    torch.testing.assert_close(kept.mean(0), both.mean(0), atol=1e-4, rtol=0)
    assert float((kept @ unit(gap)).std()) > 0.1


@pytest.mark.parametrize("closer", [False, True])
def test_the_condition_of_cast_is_a_cosine_and_opens_for_forget_queries(closer):
    """Forget queries far out along c have the larger cosine; gathered near the others' mean, the smaller one."""
    data = evidence(apart=4.0)
    if closer:  # swap the sides: what is to be forgotten is now what lies close to the mean of all
        data = replace(data, forget=data.others, others=data.forget)
    gate = cast(data, "image", [AT]).gate
    assert gate is not None
    assert gate.readout == "question"
    rows = data.readouts["question"]
    states = rows.at(gate.layer).double()
    forget, others = asked(data, ("question",), gate.layer)
    similarity = np.array([reference.cast_similarity(array(h), forget, others) for h in states])
    score = gate.score(states).numpy()
    assert np.allclose(np.abs(score - score[0]), np.abs(similarity - similarity[0]), atol=1e-5)
    wanted = torch.tensor([name in data.forget for name in rows.ids])
    fires = gate.fires(states)
    assert float(fires[wanted].double().mean()) > 0.95
    assert float(fires[~wanted].double().mean()) < 0.05
    threshold = similarity[fires.numpy()].min() if not closer else -similarity[fires.numpy()].max()
    shut = similarity[~fires.numpy()]
    assert bool((threshold > (shut if not closer else -shut)).all())  # one threshold, one sense


def test_rotations_keep_the_norm_and_angular_keeps_what_is_outside_its_plane():
    for edit in (angular(evidence(), "image", [AT], 120.0), spherical(evidence(), "image", [AT], 0.8)):
        torch.testing.assert_close(applied(edit, H).norm(dim=-1), H.norm(dim=-1), atol=1e-4, rtol=1e-5)
    turn = angular(evidence(), "image", [AT, 1], 120.0)
    assert turn.operator_at(1) is turn.operator_at(AT)  # one plane for all blocks
    assert np.linalg.matrix_rank(array(applied(turn, H) - H), tol=1e-4) == 2
    single = replace(evidence(), prefixed=Pooled(drawn(3, 1, D), ("a", "b", "c"), (0,), "last"))
    with pytest.raises(RMuseError, match="two blocks or more, got 1"):
        angular(single, "image", [0])


def test_spherical_leaves_states_that_refuse_already():
    own, refusal = (torch.from_numpy(side) for side in spoken(evidence()))
    v = refusal.mean(0) - own.mean(0)
    edit = spherical(evidence(), "image", [AT], 1.0)
    torch.testing.assert_close(applied(edit, H + 50 * v), H + 50 * v, atol=1e-3, rtol=1e-5)
    away = H - 50 * v
    assert bool((unit(applied(edit, away)) @ unit(v) > 0.99).all())  # all doubt, the whole way


def test_null_space_methods_leave_retained_states_alone_and_add_refusal_to_forgotten_ones():
    """With fewer retained queries than half the width the null space is exact."""
    data = evidence(others=4)
    own, refusal = (torch.from_numpy(side) for side in spoken(data))
    r = refusal.mean(0) - own.mean(0)
    eraser = mllmeraser(data, "image", [AT])
    forget, others = (torch.from_numpy(side) for side in asked(data, ("last",)))
    torch.testing.assert_close(applied(eraser, others), others, atol=1e-4, rtol=0)
    mixed = drawn(7, len(others), seed=3).double() @ others
    torch.testing.assert_close(applied(eraser, mixed), mixed, atol=1e-3, rtol=0)
    change = applied(eraser, forget) - forget
    share = change @ r / (r @ r)
    torch.testing.assert_close(change, share.unsqueeze(1) * r, atol=1e-4, rtol=0)  # along r alone
    assert bool(((share > 0.6) & (share < 1.2)).all())
    # Negative control: where the retained states fill the space, they can't be spared altogether.
    full = evidence(others=200)
    others = torch.from_numpy(asked(full, ("last",))[1])
    assert (applied(mllmeraser(full, "image", [AT]), others) - others).norm(dim=-1).mean() > 1e-3
    # On average they still are, against forgotten ones.
    told = torch.from_numpy(np.concatenate([asked(full)[0], spoken(full)[0]]))
    moved, spared = (
        (applied(alphasteer(full, "image", [AT]), side) - side).norm(dim=-1).mean() for side in (told, others)
    )
    assert float(spared) < 0.5 * float(moved)


def test_null_space_methods_refuse_forget_states_inside_the_retained_span():
    data = evidence()
    inside = {}
    for readout, pooled in data.readouts.items():
        states = pooled.states.clone()
        states[..., 1:] = 0
        inside[readout] = Pooled(states, pooled.ids, LAYERS, readout)
    with pytest.raises(RMuseError, match="outside what retain states span"):
        mllmeraser(replace(data, readouts=inside), "image", [AT])


def test_bad_evidence_is_refused():
    data = evidence()
    with pytest.raises(RMuseError, match="got 0 and 150"):
        leace(replace(data, forget={}), "image", [AT])
    with pytest.raises(RMuseError, match="that differ"):
        cast(replace(data, own=data.refusal), "image", [AT])


def test_the_registry_gives_every_rival_the_same_budget():
    assert len(RIVALS) == 9
    assert {len(rival.strengths) for rival in RIVALS.values()} == {6}
    for name, rival in RIVALS.items():
        assert list(rival.strengths) == sorted(set(rival.strengths)), name
        assert f"arXiv {rival.paper}" in (rival.build.__doc__ or ""), name
        assert "Faithful:" in rival.build.__doc__, name
        assert "Ours:" in rival.build.__doc__, name


def test_the_strength_chosen_is_on_the_front():
    draw = random.Random(0)
    for _ in range(50):
        trials = [Trial(float(s), draw.randint(0, 5) / 5, draw.randint(0, 5) / 5) for s in range(6)]
        best = choose_strength(trials)
        for other in trials:
            better = other.leak <= best.leak and other.keep >= best.keep
            assert not better or (other.leak, other.keep) == (best.leak, best.keep)
        draw.shuffle(trials)
        assert choose_strength(trials) == best
    assert (
        choose_strength([Trial(2.0, 0.1, 0.4), Trial(1.0, 0.2, 0.5)]).strength == 1.0
    )  # the least of equals
    for bad in ([], [Trial(1.0, float("nan"), 0.5)], [Trial(1.0, 0.5, 50.0)]):
        with pytest.raises(RMuseError, match=r"in \[0, 1\]"):
            choose_strength(bad)
