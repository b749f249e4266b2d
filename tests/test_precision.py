"""Parts that are given in float64 compute in float64 and are saved so."""

import pytest
import torch

from rmuse_interp import operators as op
from rmuse_interp.parts.part import from_record, to_record
from rmuse_interp.parts.subspace import Subspace

D = 12


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


BASIS = torch.linalg.qr(drawn(D, 3)).Q


def test_a_subspace_of_float64_projects_to_its_own_precision():
    h, space = drawn(5, D), Subspace(BASIS)
    assert space.basis.dtype == torch.float64
    assert (space.project(h) - h @ BASIS @ BASIS.mT).abs().max() <= 1e-15
    assert (space.remove(h) + space.project(h) - h).abs().max() <= 1e-15
    assert space.minus(Subspace(BASIS[:, :1])).basis.dtype == torch.float64
    assert Subspace.span(BASIS).basis.dtype == torch.float64
    assert space.project(h.float()).dtype == torch.float32
    assert Subspace(BASIS.float()).basis.dtype == torch.float32


@pytest.mark.parametrize(
    ("part", "exact"),
    [
        (op.Add(BASIS[:, 0], 2.0), lambda h: h + 2 * BASIS[:, 0]),
        (op.Ablate(Subspace(BASIS)), lambda h: h - h @ BASIS @ BASIS.mT),
        (op.Affine(BASIS, BASIS, BASIS[:, 0]), lambda h: h + (h - BASIS[:, 0]) @ BASIS @ BASIS.mT),
        (op.PerCoordinate(BASIS[:, 0], BASIS[:, 1]), lambda h: BASIS[:, 0] * h + BASIS[:, 1]),
    ],
)
def test_operators_of_float64_are_exact_and_saved_as_given(part, exact):
    h = drawn(5, D)
    assert (part(h) - exact(h)).abs().max() <= 1e-15
    record, tensors = to_record(part.to(torch.bfloat16))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float64}
    assert torch.equal(from_record(record, tensors)(h), part(h))


def test_fits_on_float32_states_stay_float32():
    states = drawn(40, D).float()
    labels = (torch.arange(40) % 2).unsqueeze(1).float()
    for fitted in (
        op.Affine.erasing(states, labels),
        op.PerCoordinate.transporting(states[:20], states[20:]),
    ):
        assert {tensor.dtype for tensor in fitted.buffers()} == {torch.float32}
