"""Subspaces over resamples: refits equal fits, planted ones stay where they are, noise moves as far as chance lets it."""

import math

import numpy as np
import pytest
import torch

from rmuse_interp import RMuseError
from rmuse_interp.diagnostics.stability import drawn_again, mean_angle, stability
from rmuse_interp.method.refits import Side, refit, sides_at
from rmuse_interp.method.rmuse import subspaces_at
from rmuse_interp.parts.retain import fit_retain
from rmuse_interp.parts.subspace import Subspace
from rmuse_interp.parts.unlearning import fit_unlearning

D = 24
FORMS = {
    "paper": {"standardise": "zscore", "map_back": False},
    "calibrated": {"standardise": "scale", "map_back": True},
}


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sides(seed=0, n=20, people=5, planted=0.0):
    """Forget and retain differences; with `planted`, along one and the same direction each but for noise."""
    found = []
    for place in (0, 1):
        axis = torch.nn.functional.one_hot(torch.tensor(place), D).double()
        spans = [noise(seed + 10 * place + i, n, D) + planted * axis for i in (1, 2)]
        clusters = [f"p{i % people}" for i in range(n)]
        found.append((spans, clusters))
    groups = ["people" if i < n // 4 else "reasoning" for i in range(n)]  # that they weigh the same shows
    (forget, who), (kept, whom) = found
    return Side(*forget, who), Side(*kept, whom, groups)


def fits(forget, kept, form, energy=0.8):
    zero, none = torch.zeros_like(forget.ans), torch.zeros_like(kept.ans)
    settings = {"energy": energy, "cap": 8, **FORMS[form]}
    unlearning = fit_unlearning(forget.ans, zero, forget.cot, zero, **settings)
    return unlearning, fit_retain(kept.ans, none, kept.cot, none, groups=kept.groups, **settings)


@pytest.mark.parametrize("form", FORMS)
def test_a_refit_on_the_data_as_they_are_is_the_fit(form):
    forget, kept = sides()
    unlearning, retain = fits(forget, kept, form)
    found = refit(unlearning, retain, forget, kept)
    for mine, whole in ((found.unlearning, unlearning.subspace), (found.retain, retain.subspace)):
        assert mine.shape == whole.basis.shape
        assert torch.allclose(mine @ mine.mT, (whole.basis @ whole.basis.mT).double(), atol=1e-5)
    assert torch.allclose(found.direction, unlearning.direction.double(), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_resample_is_fitted_as_if_its_examples_were_there_twice(form):
    """The naive reference: rows repeated as often as they were drawn, through the very functions that fit."""
    forget, kept = sides(3)
    unlearning, retain = fits(forget, kept, form)
    drawn = tuple(counts[0] for counts in drawn_again(forget, kept, 1, 7))
    found = refit(unlearning, retain, forget, kept, drawn)
    again = []
    for side, counts in zip((forget, kept), drawn, strict=True):
        assert float(counts.sum()) == len(side.ans)  # equal clusters: as many examples as before
        rows = torch.arange(len(side.ans)).repeat_interleave(counts.long())
        groups = None if side.groups is None else [side.groups[i] for i in rows.tolist()]
        again.append(Side(side.ans[rows], side.cot[rows], [str(i) for i in range(len(rows))], groups))
    un, rrs = fits(*again, form)
    for mine, whole in ((found.unlearning, un.subspace), (found.retain, rrs.subspace)):
        assert mine.shape == whole.basis.shape
        assert torch.allclose(mine @ mine.mT, (whole.basis @ whole.basis.mT).double(), atol=1e-5)
    assert math.isclose(abs(float(found.direction @ un.direction.double())), 1.0, abs_tol=1e-5)


def test_people_are_drawn_with_all_of_their_examples_within_their_group():
    forget, kept = sides()
    forgotten, all_kept = drawn_again(forget, kept, 50, 0)
    for counts in all_kept:
        for group in ("people", "reasoning"):
            mine = torch.tensor([g == group for g in kept.groups])
            assert float(counts[mine].sum()) == int(mine.sum())
            for who in set(kept.clusters):
                of = mine & torch.tensor([c == who for c in kept.clusters])
                assert len(set(counts[of].tolist())) == 1
    assert len({tuple(counts) for counts in forgotten.tolist()}) > 20


def test_what_is_planted_stays_and_noise_does_not():
    forget, kept = sides(planted=20.0)
    firm = stability(*fits(forget, kept, "calibrated", energy=0.5), forget, kept, resamples=30)
    assert firm.ranks.tolist() == [[1.0, 1.0]] * 30
    assert firm.direction_angle.rad2deg().max() < 10
    assert firm.retain_angle.rad2deg().max() < 10
    assert firm.kernel.max() < 0.05  # planted along different axes
    assert firm.angles.shape == (30, 1)
    assert firm.angles.rad2deg().min() > 75
    forget, kept = sides(planted=0.0)
    loose = stability(*fits(forget, kept, "calibrated", energy=0.5), forget, kept, resamples=30)
    assert loose.direction_angle.median() > 3 * firm.direction_angle.median()
    assert loose.unlearning_angle.median() > 2 * firm.unlearning_angle.median()


def test_the_measures_are_those_of_their_definitions():
    forget, kept = sides(5)
    unlearning, retain = fits(forget, kept, "calibrated")
    found = stability(unlearning, retain, forget, kept, resamples=4, seed=1)
    for row, counts in enumerate(zip(*drawn_again(forget, kept, 4, 1), strict=True)):
        mine = refit(unlearning, retain, forget, kept, counts)
        ranks = (mine.unlearning.shape[1], mine.retain.shape[1])
        angles = found.angles[row][~found.angles[row].isnan()]
        assert found.ranks[row].tolist() == list(ranks)
        assert len(angles) == min(ranks)
        assert torch.equal(angles, angles.sort().values)
        assert math.isclose(
            float(found.kernel[row]), float(angles.cos().square().sum()) / math.sqrt(ranks[0] * ranks[1])
        )
        inside = Subspace(mine.retain.float()).project(mine.direction.float()).square().sum()
        assert math.isclose(float(found.share[row]), float(inside), rel_tol=1e-4)
    a = math.acos(math.sqrt(unlearning.rank / D))
    assert math.isclose(found.chance[0], a)
    samples = [  # what chance says is what random subspaces show
        mean_angle(torch.linalg.qr(noise(i, D, 3)).Q, torch.linalg.qr(noise(900 + i, D, 5)).Q)
        for i in range(300)
    ]
    assert abs(np.cos(samples) ** 2 - 5 / D).mean() < 0.1
    assert abs((np.cos(samples) ** 2).mean() - 5 / D) < 0.02
    same = stability(unlearning, retain, forget, kept, resamples=4, seed=1)
    assert torch.equal(same.kernel, found.kernel)
    assert not torch.equal(
        stability(unlearning, retain, forget, kept, resamples=4, seed=2).kernel, found.kernel
    )


def test_too_little_to_resample_is_said():
    few = noise(1, 3, D)
    with pytest.raises(
        RMuseError, match="at least 2 clusters of examples were required to resample them, got 1"
    ):
        Side(few, few, ["a", "a", "a"])
    with pytest.raises(RMuseError, match="one cluster and one group per example"):
        Side(few, few, ["a", "b"])
    forget, kept = sides()
    with pytest.raises(RMuseError, match="at least 1 resample"):
        stability(*fits(forget, kept, "paper"), forget, kept, resamples=0)


@pytest.mark.parametrize("literal", [True, False])
def test_sides_are_what_the_presets_are_fitted_on(evidence, literal):
    for one in evidence.values():
        unlearning, retain = subspaces_at(one, 2, literal)
        forget, kept = sides_at(one, 2, literal)
        found = refit(unlearning, retain, forget, kept)
        for mine, whole in ((found.unlearning, unlearning.subspace), (found.retain, retain.subspace)):
            assert torch.allclose(mine @ mine.mT, (whole.basis @ whole.basis.mT).double(), atol=1e-4)
        assert len(set(forget.clusters)) == 2  # the people of the 10 % benchmark
        assert set(kept.groups) == {"generation", "reasoning"}
