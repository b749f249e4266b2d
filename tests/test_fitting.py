"""Subspaces, the RRS and prototypes fitted from arrays: against the naive reference, and defect D1."""

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from reference import naive

import rmuse_interp.operators as op
from rmuse_interp import RMuseError, load_benchmark, load_model
from rmuse_interp.fitting.collect import Query, pooled_states
from rmuse_interp.fitting.gathering import READOUTS, gather
from rmuse_interp.fitting.rivals import without
from rmuse_interp.maths.linalg import principal_angles
from rmuse_interp.maths.sphere import geodesic, unit
from rmuse_interp.parts.part import same
from rmuse_interp.parts.prototypes import Prototypes, thinned
from rmuse_interp.parts.retain import balance, fit_retain
from rmuse_interp.parts.subspace import Subspace
from rmuse_interp.parts.unlearning import fit_unlearning

pytestmark = pytest.mark.slow

PAPER = {"standardise": "zscore", "map_back": False, "oriented": False}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spans(n: int = 20, d: int = 12, shift: float = 3.0) -> tuple[torch.Tensor, ...]:
    """Refusals that differ from answers by a common shift and by noise of uneven size per dimension."""
    common = shift * random(d, seed=9)
    sizes = torch.linspace(0.2, 2.0, d).double()
    neg_ans, neg_cot = random(n, d, seed=1), random(n, d, seed=2)
    pos_ans = neg_ans + common + sizes * random(n, d, seed=3)
    pos_cot = neg_cot + common + sizes * random(n, d, seed=4)
    return pos_ans, neg_ans, pos_cot, neg_cot


def span_of(basis: torch.Tensor, other: torch.Tensor) -> float:
    """Largest principal angle between two spans of one rank."""
    assert basis.shape == other.shape
    return float(principal_angles(basis, other).max())


@pytest.mark.parametrize("standardise", ["zscore", "scale"])
def test_literal_coordinates_agree_with_the_reference(standardise: str):
    pos_ans, neg_ans, pos_cot, neg_cot = spans()
    fitted = fit_unlearning(
        pos_ans, neg_ans, pos_cot, neg_cot, standardise=standardise, map_back=False, oriented=False
    )
    z = naive.zscore if standardise == "zscore" else naive.scale
    delta = naive.span_hybrid((pos_ans - neg_ans).numpy(), (pos_cot - neg_cot).numpy(), z)
    expected = torch.as_tensor(naive.subspace(delta).copy())
    assert span_of(fitted.subspace.basis, expected) < 1e-5
    assert abs(float(fitted.direction.double() @ expected[:, 0])) == pytest.approx(1.0, abs=1e-6)
    assert float(fitted.direction[fitted.direction.abs().argmax()]) > 0
    shares = np.linalg.svd(delta, compute_uv=False) ** 2
    assert np.allclose(fitted.singular_values.square().numpy(), shares, rtol=1e-5, atol=1e-6)


def test_zscoring_loses_the_common_shift_and_the_repairs_find_it():
    arrays = spans()
    literal = fit_unlearning(*arrays, **PAPER)
    scaled = fit_unlearning(*arrays, standardise="scale")
    plain = fit_unlearning(*arrays, standardise="none")
    assert abs(literal.alignment) < 0.5
    assert scaled.alignment > 0.95
    assert plain.alignment > 0.95
    unmapped = fit_unlearning(*arrays, standardise="scale", map_back=False)
    assert scaled.alignment > unmapped.alignment  # the scaled coordinates are not those of the states
    ans, cot = arrays[0] - arrays[1], arrays[2] - arrays[3]
    assert torch.allclose(literal.shift.double(), (ans + cot).mean(0), atol=1e-5)


@pytest.mark.parametrize("standardise", ["zscore", "scale", "none"])
def test_directions_mapped_back_lie_among_the_raw_differences(standardise: str):
    pos_ans, neg_ans, pos_cot, neg_cot = spans(n=5, d=30)
    fitted = fit_unlearning(pos_ans, neg_ans, pos_cot, neg_cot, standardise=standardise, energy=1.0)
    raw = (pos_ans - neg_ans) + (pos_cot - neg_cot)
    inside = Subspace.span(raw.T).remove(fitted.subspace.basis.T.double())
    assert float(inside.abs().max()) < 1e-5
    literal = fit_unlearning(
        pos_ans, neg_ans, pos_cot, neg_cot, standardise="scale", energy=1.0, map_back=False
    )
    assert float(Subspace.span(raw.T).remove(literal.subspace.basis.T.double()).abs().max()) > 0.05


@pytest.mark.parametrize("standardise", ["zscore", "scale", "none"])
@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_the_sign_follows_the_raw_mean_where_oriented(standardise: str, flip: float):
    pos_ans, neg_ans, pos_cot, neg_cot = spans()
    if flip < 0:
        pos_ans, neg_ans, pos_cot, neg_cot = neg_ans, pos_ans, neg_cot, pos_cot
    fitted = fit_unlearning(pos_ans, neg_ans, pos_cot, neg_cot, standardise=standardise)
    assert float(fitted.direction @ fitted.shift) > 0
    assert torch.equal(fitted.subspace.basis[:, 0], fitted.direction)
    assert float(fitted.direction.norm()) == pytest.approx(1.0, abs=1e-6)


def test_dimensions_without_spread_are_defined():
    arrays = [a.clone() for a in spans()]
    for a in arrays:
        a[:, 3] = 0.0
    arrays[0][:, 3] = 5.0  # a constant difference: σ = 0
    for standardise in ("zscore", "scale", "none"):
        for map_back in (True, False):
            fitted = fit_unlearning(*arrays, standardise=standardise, map_back=map_back)
            assert torch.isfinite(fitted.subspace.basis).all()
            assert bool(fitted.direction[3].abs() < 1e-6) == (standardise == "zscore")


@pytest.mark.parametrize("standardise", ["zscore", "scale", "none"])
@pytest.mark.parametrize("map_back", [True, False])
def test_a_single_forget_example_gives_its_own_difference(standardise: str, map_back: bool):
    arrays = [a[:1] for a in spans()]
    fitted = fit_unlearning(*arrays, standardise=standardise, map_back=map_back)
    assert fitted.rank == 1
    assert fitted.alignment == pytest.approx(1.0, abs=1e-6)


def test_energy_and_cap_bound_the_rank():
    ranks = [fit_unlearning(*spans(), standardise="zscore", energy=e).rank for e in (0.1, 0.5, 0.8, 1.0)]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) > 2
    capped = fit_unlearning(*spans(), standardise="zscore", energy=1.0, cap=3)
    assert capped.rank == 3
    assert len(capped.singular_values) > 3  # all of them are told


def test_fitting_refuses_what_it_cannot_use():
    arrays = [a.clone() for a in spans()]
    with pytest.raises(RMuseError, match="none"):
        fit_unlearning(*[a[:0] for a in arrays], standardise="none")
    with pytest.raises(RMuseError, match="all zero"):
        fit_unlearning(arrays[0], arrays[0], arrays[2], arrays[2], standardise="zscore")
    arrays[2][4, 1] = torch.nan
    with pytest.raises(RMuseError, match=r"pos_cot has NaN.*\(person-4\)"):
        fit_unlearning(*arrays, standardise="none", ids=[f"person-{i}" for i in range(20)])
    with pytest.raises(RMuseError, match="row 4"):
        fit_retain(*arrays, standardise="none")
    with pytest.raises(RMuseError, match="energy"):
        fit_unlearning(*spans(), standardise="none", energy=0.0)


def test_rrs_agrees_with_the_reference():
    step_ans, direct_ans, step_cot, direct_any = spans()
    fitted = fit_retain(step_ans, direct_ans, step_cot, direct_any, standardise="zscore", map_back=False)
    delta = naive.span_hybrid((step_ans - direct_ans).numpy(), (step_cot - direct_any).numpy())
    assert span_of(fitted.subspace.basis, torch.as_tensor(naive.subspace(delta).copy())) < 1e-5
    assert fitted.rank == fitted.subspace.rank


def test_balanced_groups_weigh_the_same():
    arrays = spans(n=12)
    groups = ["people"] * 10 + ["reasoning"] * 2
    weights = balance(groups)
    assert float(weights[:10].sum()) == pytest.approx(float(weights[10:].sum()))
    assert float(weights.mean()) == pytest.approx(1.0)
    balanced = fit_retain(*arrays, standardise="zscore", groups=groups)
    repeated = [torch.cat([a[:10], *[a[10:]] * 5]) for a in arrays]
    expected = fit_retain(*repeated, standardise="zscore")
    assert span_of(balanced.subspace.basis, expected.subspace.basis) < 1e-5
    assert balanced.rank != fit_retain(*arrays, standardise="zscore").rank or (
        span_of(balanced.subspace.basis, fit_retain(*arrays, standardise="zscore").subspace.basis) > 1e-2
    )
    with pytest.raises(RMuseError, match="group"):
        fit_retain(*arrays, standardise="zscore", groups=groups[:3])


def test_pooled_prototypes_are_units_of_group_means():
    states = random(6, 5)
    made = Prototypes.pooled(states, ["b", "a", "b", "a", "b", "c"])
    assert len(made) == 3
    assert torch.allclose(made.points[0].double(), unit(states[[0, 2, 4]].mean(0)), atol=1e-6)
    assert torch.allclose(made.points[2].double(), unit(states[5]), atol=1e-6)
    assert made.positions is None
    assert "3 pooled" in made.describe()


def test_a_transport_keeps_the_steps_of_its_prototypes_through_the_cap():
    states = 7 * random(40, 5)
    everything = Prototypes.token_level(states, torch.arange(40) % 10, torch.arange(40) // 10)
    assert len(everything) == 40
    move = op.Transport(everything.points, everything.positions, window=2, fraction=0.5)
    capped = move.capped(12)
    assert (len(capped.points), capped.window, capped.fraction) == (12, 2, 0.5)
    for point, position in zip(capped.points, capped.positions, strict=True):
        row = (everything.points == point).all(dim=1).nonzero().item()
        assert position == everything.positions[row]
    assert torch.equal(move.capped(12).points, capped.points)
    assert same(move.capped(40), move)
    assert len(op.Transport(everything.points).capped(3).points) == 3


def test_the_cap_leaves_every_step_a_prototype():
    """Twenty runs of twelve steps, and a long tail that one run alone reaches."""
    positions = torch.cat([torch.arange(12).repeat(20), torch.arange(12, 18)])
    points = unit(random(len(positions), 8))
    for cap in (18, 40, 200):
        kept = thinned(points, positions, cap)
        assert set(positions[kept].tolist()) == set(range(18))
        assert cap - 6 <= len(kept) <= cap  # a step with one token has no second prototype
    assert len(thinned(points, positions, 5)) == 5


def test_prototypes_outside_a_subspace():
    made = Prototypes(unit(random(6, 5)), torch.arange(6))
    rrs = Subspace(torch.eye(5)[:, :2])
    seen = made.outside(rrs)
    assert float(seen.points[:, :2].abs().max()) == 0.0
    assert torch.allclose(seen.points.norm(dim=1), torch.ones(6))
    expected = unit(made.points[:, 2:])
    assert torch.allclose(seen.points[:, 2:], expected, atol=1e-6)
    half = Prototypes(torch.eye(5)[[0, 3]], torch.tensor([4, 5])).outside(rrs)
    assert half.positions.tolist() == [5]
    with pytest.raises(RMuseError, match="outside"):
        Prototypes(torch.eye(5)[:1]).outside(rrs)


def test_prototypes_refuse_what_is_no_direction():
    for points in (torch.ones(2, 3), torch.zeros(1, 3), torch.zeros(0, 3)):
        with pytest.raises(RMuseError, match="unit"):
            Prototypes(points)
    with pytest.raises((RMuseError, TypeCheckError)):
        Prototypes(torch.eye(3), torch.arange(2))
    with pytest.raises(RMuseError, match="zero"):
        Prototypes.token_level(torch.zeros(2, 3), torch.arange(2), torch.arange(2))
    assert float(geodesic(torch.eye(2)[0], torch.eye(2)[1])) > 1


@pytest.fixture(scope="module")
def gathered():
    """The organism, its benchmark, its weights before anything was read, and what is read for gates."""
    lens, benchmark = load_model("organism"), load_benchmark("organism", forget=5)
    before = {name: weight.clone() for name, weight in lens.hf.named_parameters()}
    return lens, benchmark, before, gather(lens, benchmark, limit=5)


def test_gates_are_given_the_states_of_the_very_text_and_picture(gathered):
    """A text is read once for responses and gates alike; another photograph of the same person is another text."""
    lens, benchmark, _, evidence = gathered
    found = evidence["image"]
    examples = {e.id: e for view in (benchmark.fit_forget, benchmark.fit_benign) for e in view}
    further: dict[str, list[bytes]] = {}
    for example in benchmark.fit_benign:
        if example.image is not None:
            further.setdefault(example.person, []).append(example.image)
    queries = []
    for name in (name for name in found.forget if "~" not in name):
        example, _, number = name.rpartition("@")
        e = examples[example]
        picture = [e.image, *further.get(e.person, [])][int(number)]
        response = e.response(benchmark.delimiters)
        queries.append(Query(name, e.prompt(), picture, response, e.reasoning is not None))
    assert {q.id.rpartition("@")[2] for q in queries} > {"0"}
    alone = pooled_states(lens, queries, READOUTS, delimiters=benchmark.delimiters)
    for span in READOUTS:
        read = found.readouts[span].select(alone[span].ids).states
        torch.testing.assert_close(read, alone[span].states, rtol=1e-3, atol=0.05)


def test_gates_are_shown_some_queries_disturbed(gathered):
    """As what they were: the same person and group; other states; and the model is afterwards as it was before."""
    lens, _, before, evidence = gathered
    for modality, found in evidence.items():
        read = found.readouts["question"]
        twins = [name for name in read.ids if "~" in name]
        kinds = {name.rpartition("~")[2] for name in twins}
        assert kinds == ({"rounded", "changed"} if modality == "image" else {"rounded"})
        for twin in twins:
            own = twin.rpartition("~")[0]
            for table in (found.forget, found.others, found.people):
                assert table.get(twin) == table.get(own)
            assert (twin in found.forget) != (twin in found.others)
            moved, state = (read.select([name]).states for name in (twin, own))
            assert 1e-4 < float((moved - state).norm() / state.norm()) < 1
        changed = [
            sum(name.endswith("~changed") for name in side) / sum("~" not in name for name in side)
            for side in (found.forget, found.others)
        ]
        assert changed[0] > changed[1] > 0 if modality == "image" else changed == [0, 0]
        rest = without(found, {twins[0].rpartition("@")[0]}).readouts["question"]
        assert twins[0] not in rest.ids
        assert len(rest.ids) < len(read.ids)
    after = dict(lens.hf.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
