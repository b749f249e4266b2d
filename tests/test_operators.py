"""Operators keep what they promise: norms, angles, the RRS part, dtypes, and the states they were handed."""

import pytest
import torch

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.maths.sphere import geodesic, slerp, unit
from rmuse_interp.parts.angle import ACS, FixedFraction
from rmuse_interp.parts.part import from_record, to_record
from rmuse_interp.parts.prototypes import Prototypes
from rmuse_interp.parts.subspace import Subspace

D = 24


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rrs_of(k: int, seed: int = 7) -> Subspace:
    return Subspace.span(drawn(D, k, seed=seed, dtype=torch.float32))


def prototypes(n: int = 6) -> Prototypes:
    return Prototypes(unit(drawn(n, D, seed=3, dtype=torch.float32)))


V = drawn(D, seed=1, dtype=torch.float32)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_slerp_keeps_the_norm_and_turns_by_the_share(share):
    h, goal = drawn(5, D), unit(V.double())
    out = op.SlerpToward(V, FixedFraction(share))(h)
    torch.testing.assert_close(out.norm(dim=-1), h.norm(dim=-1))
    left = (1 - share) * geodesic(unit(h), goal.expand_as(h))
    torch.testing.assert_close(geodesic(unit(out), goal.expand_as(h)), left, atol=1e-6, rtol=0)
    # Negative control: adding the vector instead does not keep the norm.
    assert not torch.allclose(op.Add(V)(h).norm(dim=-1), h.norm(dim=-1))


def test_slerp_equals_the_normalised_sum_of_the_other_note():
    h, share = drawn(5, D), 0.4
    r, goal = h.norm(dim=-1, keepdim=True), unit(V.double())
    theta = geodesic(unit(h), goal.expand_as(h)).unsqueeze(-1)
    alpha = r * (share * theta).sin() / ((1 - share) * theta).sin()
    other = r * unit(h + alpha * goal)
    torch.testing.assert_close(op.SlerpToward(V, FixedFraction(share))(h), other, atol=1e-6, rtol=1e-6)


def test_the_rotation_angle_of_acs_is_the_smaller_of_both():
    h, acs = drawn(9, D), ACS(prototypes())
    out = op.SlerpToward(V, acs)(h)
    angles = acs.angles(unit(h), unit(V.double()))
    turned = geodesic(unit(out), unit(h))
    torch.testing.assert_close(turned, torch.minimum(angles.theta_tar, angles.theta_dir), atol=1e-6, rtol=0)


def test_signed_takes_the_nearer_end_and_oriented_does_not():
    h = torch.cat([drawn(4, D), -drawn(4, D)])
    goal = unit(V.double())
    signed = op.SlerpToward(V, FixedFraction(1.0), signed=True)(h)
    torch.testing.assert_close(unit(signed), (h @ goal).sign().unsqueeze(-1) * goal, atol=1e-6, rtol=0)
    oriented = op.SlerpToward(V, FixedFraction(1.0))(h)
    torch.testing.assert_close(unit(oriented), goal.expand_as(h), atol=1e-6, rtol=0)


def test_the_sign_is_read_on_the_raw_direction():
    rrs = rrs_of(10)
    h = drawn(64, D)
    raw, cleared = h @ V.double(), h @ rrs.remove(V).double()
    differs = raw.sign() != cleared.sign()
    assert bool(differs.any())
    out = op.SlerpToward(V, FixedFraction(1.0), signed=True).keeping(rrs, "direction")(h)
    goal = unit(rrs.remove(V).double())
    torch.testing.assert_close(unit(out), raw.sign().unsqueeze(-1) * goal, atol=1e-6, rtol=0)


def test_the_direction_may_be_cleared_of_the_rrs_while_the_state_is_rotated_whole():
    rrs, h = rrs_of(6), drawn(5, D, dtype=torch.float32)
    shielded = op.SlerpToward(V, FixedFraction(0.5)).keeping(rrs, "direction")
    assert rrs.project(shielded.toward).norm() < 1e-6
    kept = rrs.project(h)
    assert (rrs.project(shielded(h)) - kept).norm() > 0.05 * kept.norm()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(
    "make",
    [
        lambda rrs: op.SlerpToward(V, ACS(prototypes())).keeping(rrs),
        lambda rrs: op.SlerpToward(V, FixedFraction(0.8), signed=True).keeping(rrs),
        lambda rrs: op.Transport(prototypes().points).keeping(rrs),
        lambda rrs: op.Transport(prototypes().points, fraction=0.3).keeping(rrs),
    ],
)
def test_a_rotation_that_keeps_the_rrs_keeps_its_part_and_the_complements_norm(make, scale):
    rrs, h = rrs_of(8), drawn(50, D, dtype=torch.float32) * scale
    out = make(rrs)(h)
    before, after = rrs.project(h.double()), rrs.project(out.double())
    assert ((after - before).norm(dim=-1) / before.norm(dim=-1)).max() < 1e-6
    rest, new = rrs.remove(h.double()), rrs.remove(out.double())
    torch.testing.assert_close(new.norm(dim=-1), rest.norm(dim=-1), rtol=2e-6, atol=0)
    assert ((new - rest).norm(dim=-1) / rest.norm(dim=-1)).min() > 0.05  # it does turn


def test_protected_slerp_is_slerp_on_the_complements_sphere():
    rrs, h = rrs_of(8), drawn(5, D)
    out = op.SlerpToward(V, FixedFraction(0.5)).keeping(rrs)(h)
    rest, goal = rrs.remove(h), unit(rrs.remove(V.double()))
    expected = rrs.project(h) + rest.norm(dim=-1, keepdim=True) * slerp(unit(rest), goal.expand_as(rest), 0.5)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


def test_states_without_a_complement_stay_as_they_are():
    rrs = rrs_of(8)
    inside = rrs.project(drawn(5, D, dtype=torch.float32))
    everything = Subspace(torch.eye(D))
    for rotation in (op.SlerpToward(V, FixedFraction(1.0)), op.Transport(prototypes().points)):
        assert torch.equal(rotation.keeping(rrs)(inside), inside)
        assert torch.equal(rotation(torch.zeros(2, D)), torch.zeros(2, D))
    h = drawn(5, D, dtype=torch.float32)
    assert torch.equal(op.Transport(prototypes().points).keeping(everything)(h), h)
    with pytest.raises(RMuseError, match="inside it"):
        op.SlerpToward(V, FixedFraction(1.0)).keeping(everything)


def test_transport_arrives_at_the_nearest_prototype():
    h, points = drawn(20, D), prototypes().points.double()
    out = op.Transport(prototypes().points)(h)
    nearest = points[(unit(h) @ points.T).argmax(dim=-1)]
    torch.testing.assert_close(unit(out), unit(nearest), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.norm(dim=-1), h.norm(dim=-1), atol=1e-6, rtol=1e-6)
    half = op.Transport(prototypes().points, fraction=0.5)(h)
    both = geodesic(unit(h), unit(half)), geodesic(unit(half), unit(nearest))
    torch.testing.assert_close(*both, atol=1e-6, rtol=0)


def test_transport_by_position_sees_its_own_step():
    points = torch.eye(D)[:4]
    h = torch.ones(6, D) + 0.1 * torch.eye(D)[:6]
    steps = torch.tensor([0, 1, 2, 3, 5, 9])
    positions = torch.tensor([0, 1, 2, 5])

    def goals(**settings):
        out = op.Transport(points, positions, **settings)(h, steps)
        return [
            i if torch.allclose(row, row[i] * torch.eye(D)[i], atol=1e-5) else None
            for row in out
            for i in [row.argmax().item()]
        ]

    assert goals() == [0, 1, 2, 2, 3, None]  # step 3 has no prototype: the closest in position; 9 lies beyond
    assert torch.equal(op.Transport(points, positions)(h, steps)[5], h[5])
    assert goals(beyond="nearest")[5] is not None
    # A window lets the state choose among its neighbours: here the prototype it leans to.
    assert op.Transport(points, positions, window=1)(h[1:2], torch.tensor([0])).argmax().item() == 1
    assert op.Transport(points, positions)(h[1:2], torch.tensor([0])).argmax().item() == 0
    with pytest.raises(RMuseError, match="step"):
        op.Transport(points, positions)(h)


def test_rivals_are_operators_too():
    h, away = drawn(5, D), rrs_of(3)
    torch.testing.assert_close(op.Add(V, scale=2.0)(h), h + 2 * V.double())
    removed = op.Ablate(away)(h)
    assert away.project(removed).norm() < 1e-5
    torch.testing.assert_close(op.Ablate(away)(removed), removed, atol=1e-5, rtol=0)
    rrs = rrs_of(5, seed=9)
    for protected in (op.Add(V).keeping(rrs), op.Ablate(away).keeping(rrs)):
        torch.testing.assert_close(rrs.project(protected(h)), rrs.project(h), atol=1e-5, rtol=0)


OPERATORS = [
    op.SlerpToward(V, ACS(prototypes()), signed=True).keeping(rrs_of(3), "direction"),
    op.SlerpToward(V, ACS(prototypes(), target="frechet")).keeping(rrs_of(3)),
    op.Transport(prototypes().points, torch.arange(6), window=2, fraction=0.5).keeping(rrs_of(3)),
    op.Add(V, scale=0.5),
    op.Ablate(rrs_of(3)),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)
def test_operators_are_pure_and_keep_dtype_and_shape(operator):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        h, step = drawn(2, 3, D).to(dtype), torch.arange(6).reshape(2, 3)
        before = h.clone()
        out = operator(h, step)
        assert torch.equal(h, before)
        assert (out.dtype, out.shape) == (h.dtype, h.shape)
        assert not torch.equal(out, h)
        one_by_one = torch.stack([operator(row, at) for row, at in zip(h, step, strict=True)])
        torch.testing.assert_close(out, one_by_one, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    assert operator(h[:0], step[:0]).shape == (0, 3, D)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)
def test_operators_survive_their_record_and_a_cast_of_the_host(operator):
    h, step = drawn(4, D, dtype=torch.float32), torch.arange(4)
    again = from_record(*to_record(operator))
    assert torch.equal(again(h, step), operator(h, step))
    assert again.describe() == operator.describe()
    assert torch.equal(again.to(torch.bfloat16)(h, step), operator(h, step))


def test_bad_settings_are_refused():
    with pytest.raises(RMuseError, match="none"):
        op.Transport(torch.zeros(0, D))
    with pytest.raises(RMuseError, match=r"fraction in \[0, 1\]"):
        op.Transport(prototypes().points, fraction=1.5)
    with pytest.raises(RMuseError, match="required"):
        op.SlerpToward(torch.zeros(D), FixedFraction(1.0))
