"""Affine operators and rotations in a plane: erasure, transport by coordinate, angles; each by its own property."""

import json

import numpy as np
import pytest
import torch
from reference import rivals as reference

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.maths.sphere import geodesic, unit
from rmuse_interp.parts.angle import FixedFraction
from rmuse_interp.parts.part import from_record, to_record
from rmuse_interp.parts.subspace import Subspace

D = 12


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(n: int = 60, kinds: int = 3, d: int = D) -> tuple[torch.Tensor, torch.Tensor]:
    """States of several classes with means of their own and a covariance far from the identity; their indicators."""
    labels = torch.arange(n) % kinds
    states = drawn(n, d) @ drawn(d, d, seed=1) + 2 * drawn(kinds, d, seed=2)[labels] + 3.0
    return states, torch.nn.functional.one_hot(labels, kinds).double()


OPERATORS = [
    op.Ablate(Subspace.span(drawn(D, 2)), share=0.5),
    op.Affine(drawn(D, 2), drawn(D, 2, seed=1), drawn(D, seed=2), scale=0.5),
    op.Affine(drawn(D, 1), drawn(D, 1, seed=1)),
    op.Affine.erasing(*classes()),
    op.PerCoordinate(drawn(D), drawn(D, seed=1), share=0.3),
    op.RotateInPlane(drawn(D), drawn(D, seed=1), 130.0, adaptive=False),
    op.SlerpToward(drawn(D), op.Confidence(0.7, -0.1, 5.0)),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)
def test_they_are_pure_rowwise_and_survive_their_record(operator):
    tree, tensors = to_record(operator)
    again = from_record(json.loads(json.dumps(tree)), tensors)
    assert again.describe() == operator.describe()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        h = drawn(2, 3, D, seed=5).to(dtype)
        before = h.clone()
        out = operator(h)
        assert torch.equal(h, before)
        assert (out.dtype, out.shape) == (dtype, h.shape)
        assert not torch.equal(out, h)
        assert torch.equal(again(h), out)
        assert torch.equal(again.to(torch.bfloat16)(h), out)  # the geometry stays in float32
        rows = torch.stack([operator(row) for row in h.reshape(-1, D)]).reshape(h.shape)
        torch.testing.assert_close(out, rows, atol=1e-5, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5)
    assert operator(h[:0]).shape == (0, 3, D)


@pytest.mark.parametrize("operator", OPERATORS[:4], ids=lambda o: type(o).__name__)
def test_protected_forms_keep_the_rrs_part(operator):
    rrs, h = Subspace.span(drawn(D, 4, seed=9)), drawn(5, D, seed=5)
    protected = operator.keeping(rrs)
    torch.testing.assert_close(rrs.project(protected(h)), rrs.project(h), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(rrs.project(operator(h)), rrs.project(h), atol=1e-3)


def test_ablation_in_part():
    space, h = Subspace.span(drawn(D, 2)), drawn(5, D, seed=5)
    torch.testing.assert_close(op.Ablate(space, 0.5)(h), h - space.project(h) / 2)
    mirrored = op.Ablate(space, 2.0)(h)
    torch.testing.assert_close(mirrored.norm(dim=-1), h.norm(dim=-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(op.Ablate(space, 2.0)(mirrored), h, atol=1e-5, rtol=1e-5)


def test_an_affine_map_is_its_full_matrix():
    reading, writing, center, h = drawn(D, 2), drawn(D, 2, seed=1), drawn(D, seed=2), drawn(7, D, seed=5)
    matrix = torch.eye(D, dtype=torch.float64) + 0.5 * writing @ reading.T
    out = op.Affine(reading, writing, center, 0.5)(h)
    torch.testing.assert_close(out, center + (h - center) @ matrix.T, atol=1e-5, rtol=1e-5)
    unread = h - (h - center) @ reading @ torch.linalg.pinv(reading)
    torch.testing.assert_close(op.Affine(reading, writing, center)(unread), unread, atol=1e-5, rtol=1e-5)
    with pytest.raises(RMuseError, match=r"got shapes \(12, 2\) and \(12, 1\)"):
        op.Affine(reading, writing[:, :1])


@pytest.mark.parametrize("shrinkage", [None, 0.0, 0.3])
@pytest.mark.parametrize(("n", "d"), [(60, D), (10, 30)])
def test_erasure_leaves_one_mean_to_all_classes(n, d, shrinkage):
    states, concept = classes(n, d=d)
    eraser = op.Affine.erasing(states, concept, shrinkage=shrinkage)
    clean = eraser(states)
    for column in concept.T:
        torch.testing.assert_close(clean[column > 0].mean(0), states.mean(0), atol=1e-4, rtol=0)
    assert (states[concept[:, 0] > 0].mean(0) - states.mean(0)).norm() > 1.0  # before, they differed
    assert eraser.reading.shape == (d, 2)  # three classes: two directions
    torch.testing.assert_close(eraser(clean), clean, atol=1e-4, rtol=1e-4)  # idempotent
    # Negative control: half an erasure leaves half of the difference.
    half = op.Affine.erasing(states, concept, shrinkage=shrinkage, scale=0.5)(states)
    first = concept[:, 0] > 0
    left = half[first].mean(0) - half.mean(0)
    torch.testing.assert_close(left, (states[first].mean(0) - states.mean(0)) / 2, atol=1e-4, rtol=1e-4)


def test_erasure_is_the_closed_form_and_moves_the_states_least():
    states, concept = classes()
    h, x, z = drawn(4, D, seed=5), states.numpy(), concept.numpy()
    for shrinkage, sigma in ((0.0, reference.covariance(x, x)), (None, reference.shrunk(x))):
        expected = [reference.leace(row, x, z, sigma, 0.8) for row in h.numpy()]
        out = op.Affine.erasing(states, concept, shrinkage=shrinkage, scale=0.8)(h)
        assert np.allclose(out.numpy(), expected, atol=1e-4)
    moved = (op.Affine.erasing(states, concept, shrinkage=0.0)(states) - states).square().sum()
    means = torch.stack([states[column > 0].mean(0) - states.mean(0) for column in concept.T])
    orthogonal = op.Ablate(Subspace.span(means.T))
    assert moved < 0.999 * orthogonal(states - states.mean(0)).sub(states - states.mean(0)).square().sum()


def test_no_line_tells_erased_classes_apart():
    states, concept = classes(kinds=2)
    target = concept[:, :1] - concept[:, :1].mean()

    def explained(x):
        fitted = (x - x.mean(0)) @ torch.linalg.lstsq(x - x.mean(0), target, driver="gelsd", rcond=1e-5)[0]
        return float(fitted.square().sum() / target.square().sum())

    assert explained(states) > 0.2
    assert explained(op.Affine.erasing(states, concept)(states)) < 1e-6


def test_erasure_refuses_what_it_cannot_erase():
    states, concept = classes()
    with pytest.raises(RMuseError, match="got 59 for 60"):
        op.Affine.erasing(states, concept[:-1])
    with pytest.raises(RMuseError, match="varies"):
        op.Affine.erasing(states, torch.ones(60, 1))
    same = op.Affine.erasing(torch.ones(60, D), concept)  # nothing is readable: nothing is erased
    assert torch.equal(same(states), states)


def test_transport_by_coordinate_matches_mean_and_variance():
    source = drawn(40, D).exp()
    factor, offset = drawn(D, seed=1).abs() + 0.2, drawn(D, seed=2)
    target = (factor * source + offset)[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    moved = op.PerCoordinate.transporting(source, target)(source)
    torch.testing.assert_close(moved.mean(0), target.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved.var(0), target.var(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved, factor * source + offset, atol=1e-5, rtol=1e-5)
    # Of two unlike shapes the means agree, the variance falls short by what no affine map explains.
    other = drawn(40, D, seed=3)
    moved = op.PerCoordinate.transporting(source, other)(source)
    torch.testing.assert_close(moved.mean(0), other.mean(0), atol=1e-5, rtol=1e-5)
    assert bool((moved.var(0) < other.var(0)).all())
    half = op.PerCoordinate.transporting(source, other, 0.5)(source)
    torch.testing.assert_close(half, (source + moved) / 2, atol=1e-5, rtol=1e-5)


def test_transport_by_coordinate_of_constants_is_a_shift():
    source, target = torch.full((5, D), 2.0), drawn(5, D)
    out = op.PerCoordinate.transporting(source, target)(source.double())
    torch.testing.assert_close(out, target.mean(0).expand(5, D), atol=1e-5, rtol=1e-5)
    with pytest.raises(RMuseError, match="equally many"):
        op.PerCoordinate.transporting(source, target[:3])


@pytest.mark.parametrize("degrees", [0.0, 50.0, 180.0, 290.0])
def test_rotation_in_a_plane(degrees):
    first, second, h = drawn(D), drawn(D, seed=1), drawn(20, D, seed=5)
    turn = op.RotateInPlane(first, second, degrees, adaptive=False)
    plane, out = Subspace.span(torch.stack([first, second], dim=1)), turn(h)
    torch.testing.assert_close(out.norm(dim=-1), h.norm(dim=-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plane.remove(out), plane.remove(h), atol=1e-5, rtol=1e-5)
    stands = geodesic(unit(plane.project(out)), unit(first).expand_as(out))
    wanted = np.radians(min(degrees, 360 - degrees))
    torch.testing.assert_close(stands, torch.full_like(stands, wanted), atol=1e-5, rtol=0)
    torch.testing.assert_close(turn(out), out, atol=1e-5, rtol=1e-5)  # an angle to stand at, not to add
    expected = [reference.angular(x, *turn.axes.double().numpy(), degrees, adaptive=False) for x in h.numpy()]
    assert np.allclose(out.numpy(), expected, atol=1e-5)


def test_adaptive_rotation_leaves_states_that_lean_away():
    first, h = drawn(D), drawn(20, D, seed=5)
    out = op.RotateInPlane(first, drawn(D, seed=1), 180.0)(h)
    leans = h @ first > 0
    assert torch.equal(out[~leans], h[~leans])
    assert bool((out[leans] @ first < 0).all())
    assert 0 < int(leans.sum()) < 20
    assert torch.equal(op.RotateInPlane(first, drawn(D, seed=1), 180.0)(torch.zeros(2, D)), torch.zeros(2, D))
    with pytest.raises(RMuseError, match="parallel"):
        op.RotateInPlane(first, -3 * first, 90.0)


def test_confidence_grows_with_doubt_and_the_rotation_keeps_the_norm():
    toward, h = unit(drawn(D)), drawn(40, D, seed=5)
    angle = op.Confidence(0.5, 0.2, 3.0)
    share, cosine = angle.fraction(h, toward), unit(h) @ toward
    order = cosine.argsort()
    assert bool((share[order].diff() <= 1e-12).all())  # the nearer to v̂, the less
    assert bool((share[cosine > 0] == 0).all())
    assert 0 < float(share.max()) <= 0.5
    assert float(angle.fraction(-toward, toward)) == pytest.approx(0.5 * (np.tanh(3) - 0.2) / 0.8)
    out = op.SlerpToward(toward, angle)(h)
    torch.testing.assert_close(out.norm(dim=-1), h.norm(dim=-1), atol=1e-5, rtol=1e-5)
    assert torch.allclose(out[cosine > 0], h[cosine > 0], atol=1e-6)
    expected = [reference.spherical(x, toward.numpy(), 0.5, 0.2, 3.0) for x in h.numpy()]
    assert np.allclose(out.numpy(), expected, atol=1e-5)
    # Negative control: a fixed share turns the sure ones as well.
    fixed = op.SlerpToward(toward, FixedFraction(0.5))(h)
    assert not torch.allclose(fixed[cosine > 0], h[cosine > 0], atol=1e-2)
    for bad in (
        {"strength": -1.0},
        {"strength": 1.0, "margin": 1.0},
        {"strength": 1.0, "concentration": 0.0},
    ):
        with pytest.raises(RMuseError, match="strength ≥ 0"):
            op.Confidence(**bad)


def test_confidence_works_inside_the_complement_too():
    rrs, toward, h = Subspace.span(drawn(D, 4, seed=9)), drawn(D), drawn(20, D, seed=5)
    out = op.SlerpToward(toward, op.Confidence(1.0)).keeping(rrs)(h)
    torch.testing.assert_close(rrs.project(out), rrs.project(h), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(out, h, atol=1e-2)
