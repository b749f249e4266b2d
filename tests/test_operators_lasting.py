"""Operators of a whole answer: along one refusal, in a frame, with falling strength; each by its defining property."""

import pytest
import torch
from helpers.places import refusals
from helpers.plans import subspace
from reference import naive

import rmuse_interp.operators as op
from rmuse_interp import RMuseError
from rmuse_interp.parts.angle import ACS, FixedFraction
from rmuse_interp.parts.frame import Frame
from rmuse_interp.parts.part import from_record, to_record
from rmuse_interp.parts.prototypes import Prototypes

D, STEPS = 32, 6
FOLLOW, FRAME = refusals()


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ROWS, AT = drawn(7, STEPS, D), torch.arange(STEPS).expand(7, STEPS)


def massive(n: int, seed: int = 1) -> torch.Tensor:
    """States of which two dimensions hold about 80 % of the energy, whatever they say."""
    states = drawn(n, D, seed=seed)
    states[:, :2] += 2 * D**0.5 * 0.7
    assert 0.75 < float(states[:, :2].square().sum() / states.square().sum()) < 0.85
    return states


def test_a_frame_has_mean_0_and_spread_1_and_maps_back():
    states = massive(50)
    states[:, 5] = 3.0  # constant: its spread is the floor's
    frame = Frame.of(states)
    center, spread = naive.frame_of(states.numpy())
    torch.testing.assert_close(frame.center.double(), torch.tensor(center), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(frame.scale.double(), torch.tensor(spread), atol=1e-5, rtol=1e-5)
    z = frame(states)
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(D).double(), atol=1e-4, rtol=0)
    varied = torch.arange(D) != 5
    torch.testing.assert_close(
        z.std(dim=0, correction=0)[varied], torch.ones(D - 1).double(), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(frame.restore(z), states)
    for bad in (states[:1], torch.ones(3, D)):
        with pytest.raises(RMuseError, match="required"):
            Frame.of(bad)


def test_angles_in_a_frame_see_what_massive_dimensions_hide():
    states, points = massive(400), massive(8, seed=2)
    right = torch.arange(8).repeat_interleave(20)
    near = points[right] + 0.7 * drawn(160, D, seed=3)

    def found(points: torch.Tensor, of: torch.Tensor) -> float:
        told = op.Transport(points).explain(of).prototype
        assert told is not None
        return float((told == right).double().mean())

    # Massive dimensions vary too, with anything but the meaning.
    states, points, near = (
        x * torch.cat([1 + 0.4 * drawn(len(x), 2, seed=4), torch.ones(len(x), D - 2)], dim=1)
        for x in (states, points, near)
    )
    frame = Frame.of(states)
    framed, plain = found(frame(points), frame(near)), found(points, near)
    assert framed > 0.95 > 0.75 > plain, (framed, plain)


def test_a_straight_move_is_the_same_in_any_frame_and_a_rotation_keeps_the_length_of_z():
    h = drawn(9, D)
    plain = op.Ablate(subspace(3))
    torch.testing.assert_close(
        op.Framed(op.Add(torch.ones(D) / FRAME.scale), FRAME)(h),
        op.Add(torch.ones(D))(h),
        atol=1e-5,
        rtol=1e-5,
    )
    assert not torch.allclose(op.Framed(plain, FRAME)(h), plain(h))
    turn = op.Framed(
        op.SlerpToward(drawn(D, seed=5), ACS(Prototypes.pooled(drawn(4, D), list("abcd")))), FRAME
    )
    torch.testing.assert_close(FRAME(turn(h)).norm(dim=1), FRAME(h).norm(dim=1), atol=1e-4, rtol=1e-4)
    assert turn.explain(h).fraction is not None


@pytest.mark.parametrize(
    "operator",
    [
        FOLLOW,
        op.Framed(op.SlerpToward(drawn(D, seed=5), FixedFraction(0.5)), FRAME),
        op.Fading(op.Framed(op.Transport(drawn(5, D, seed=6)), FRAME), until=2),
    ],
)
def test_what_is_protected_stays_in_the_coordinates_of_the_stream(operator):
    rrs = subspace(6)
    out = operator.keeping(rrs)(ROWS, AT)
    torch.testing.assert_close(rrs.project(out), rrs.project(ROWS), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(out, ROWS, atol=1e-2)


def test_an_answer_keeps_to_the_refusal_that_its_start_chose():
    plain = FOLLOW.changed(rrs=None)
    points = [p[:n].double().numpy() for p, n in zip(plain.points, plain.lengths.tolist(), strict=True)]
    frame = (FRAME.center.double().numpy(), FRAME.scale.double().numpy())
    expected = [
        naive.follow(
            row.numpy(), points, plain.keys.double().numpy(), plain.owner.tolist(), *frame, plain.fraction
        )
        for row in ROWS
    ]
    out = plain(ROWS, AT)
    torch.testing.assert_close(out, torch.stack([torch.tensor(x) for x in expected]), atol=1e-5, rtol=1e-5)
    kept = plain.starting(ROWS[:, 0])
    assert len(kept.unique()) > 1
    arrived = plain.changed(fraction=1.0)(ROWS, AT)
    for row, which in enumerate(kept.tolist()):
        n = int(plain.lengths[which])
        torch.testing.assert_close(arrived[row, :n], plain.points[which, :n].double())
        assert torch.equal(arrived[row, n:], ROWS[row, n:])  # its end of turn included, then left alone
        # One by one, as in decoding, the choice comes from the plan.
        for t in range(STEPS):
            one = plain.along(torch.tensor(which))(ROWS[row, t], torch.tensor(t))
            torch.testing.assert_close(one, out[row, t])
    assert torch.equal(plain.along(torch.tensor(-1))(ROWS[0, 0], torch.tensor(0)), ROWS[0, 0])
    told = plain.explain(ROWS, AT)
    assert told.prototype is not None
    assert told.fraction is not None
    assert torch.equal(told.prototype // 5 * (told.prototype >= 0), kept.unsqueeze(1) * (told.prototype >= 0))
    assert torch.equal(told.fraction > 0, plain.lengths[kept].unsqueeze(1) > AT)


def test_strength_falls_once_the_answer_has_begun():
    inner = op.Add(drawn(D, seed=7))
    fading = op.Fading(inner, until=2, decay=0.5, least=0.1)
    out = fading(ROWS, AT)
    expected = [naive.falling(row.numpy(), inner(row).numpy(), 2, 0.5, 0.1) for row in ROWS]
    torch.testing.assert_close(out, torch.stack([torch.tensor(x) for x in expected]), atol=1e-5, rtol=1e-5)
    lasting = op.Fading(FOLLOW, until=0, decay=0.0)
    assert torch.equal(lasting(ROWS, AT)[:, 1:], ROWS[:, 1:])
    torch.testing.assert_close(lasting(ROWS, AT)[:, 0], FOLLOW(ROWS, AT)[:, 0])
    told = lasting.explain(ROWS, AT).fraction
    assert told is not None
    assert bool((told[:, 0] > 0).all())
    assert not bool(told[:, 1:].any())


@pytest.mark.parametrize("operator", [FOLLOW, op.Fading(FOLLOW, until=1), op.Framed(op.Add(drawn(D)), FRAME)])
def test_they_are_pure_survive_their_record_and_keep_the_dtype(operator):
    again = from_record(*to_record(operator))
    assert again.describe() == operator.describe()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        h = ROWS.to(dtype)
        before = h.clone()
        out = operator(h, AT)
        assert torch.equal(h, before)
        assert out.dtype == dtype
        assert torch.equal(again(h, AT), out)
        assert not torch.equal(out, h)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda: FOLLOW(ROWS, AT + 1), "step 0"),
        (lambda: FOLLOW(ROWS), "step="),
        (lambda: op.Fading(FOLLOW, decay=1.0), "decay"),
        (lambda: op.Fading(FOLLOW)(ROWS), "step="),
        (lambda: FOLLOW.changed(fraction=1.2), "fraction"),
        (lambda: FOLLOW.changed(lengths=torch.tensor([6, 1, 1])), "length"),
        (lambda: FOLLOW.changed(keys=None, owner=None), "keys"),
        (lambda: FOLLOW.changed(owner=torch.full((9,), 3)), "owner"),
        (lambda: FOLLOW.keeping(subspace(2), "direction"), "direction"),
        (lambda: Frame(torch.zeros(3), torch.zeros(3)), "positive"),
    ],
)
def test_misuse_is_refused(bad, match):
    with pytest.raises(RMuseError, match=match):
        bad()
