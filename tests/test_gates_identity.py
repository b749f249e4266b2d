"""The identity likelihood ratio: parity with full Gaussians, strangers, single photographs, people come and gone."""

import numpy as np
import pytest
import torch
from helpers.gates import people, random
from reference import gates as naive

from rmuse_interp import RMuseError
from rmuse_interp.maths.statistics import auroc
from rmuse_interp.parts.gates import (
    GateStates,
    IdentityRatio,
    fit_clusters,
    fit_identity_ratio,
    held_out_scores,
    select_gate,
)
from rmuse_interp.parts.part import from_record, to_record


def fitted(data: GateStates) -> IdentityRatio:
    sides = (data.forget, data.forget_people, data.others, data.other_people)
    return fit_identity_ratio(*sides, layer=2, readout="question").scorer


@pytest.mark.parametrize("d", [6, 24])
def test_the_score_is_a_difference_of_full_log_densities(d: int):
    data, h = people(d, known=12, renderings=3), random(10, d, seed=5) + 5.0
    # One person has a single state: they are known vaguely.
    data = GateStates(
        data.forget[2:],
        data.others,
        data.forget_groups[2:],
        data.other_groups,
        data.forget_people[2:],
        data.other_people,
    )
    gate = fitted(data)
    sides = (data.forget.numpy(), data.forget_people, data.others.numpy(), data.other_people)
    seen = torch.cat([h, data.forget[:4] + 0.3])
    expected = [naive.identity_ratio(x, *sides) for x in seen.numpy()]
    assert np.allclose(gate.score(seen).numpy(), expected, rtol=1e-3, atol=2e-2)
    assert gate.score(h.reshape(2, 5, d)).shape == (2, 5)
    assert gate.score(h.bfloat16()).dtype == torch.float32
    assert "6 to forget of 18 known" in gate.describe()
    assert gate.transform.shape[1] < d or d == 6  # directions that tell nobody apart are left out
    again = from_record(*to_record(gate))
    assert torch.equal(again.score(seen), gate.score(seen))


def test_people_never_met_are_nobody_to_forget():
    """Whoever is nearest: plain clusters send every other stranger to the forgotten, for want of a third answer."""
    data = people(forgotten=20, known=20, noise=0.3)
    strangers = random(300, 24, seed=31) + 0.3 * random(300, 24, seed=32) + 5.0
    fresh = people(forgotten=20, known=20, noise=0.31).forget
    gate = fitted(data)
    sides = (data.forget, data.forget_people, data.others, data.other_people)
    clusters = fit_clusters(*sides, layer=2, readout="question", kind="mahalanobis")
    assert float((gate.score(fresh) > 0).double().mean()) > 0.99
    assert float((gate.score(strangers) > 0).double().mean()) < 0.01
    assert float((clusters.score(strangers) > 0).double().mean()) > 0.3
    assert auroc(gate.score(fresh), gate.score(strangers)) > 0.999


def test_whoever_was_seen_once_is_known_vaguely():
    data = people(noise=0.6)
    person = data.forget[:5]
    once, often = (fitted(data).without_cluster("p0").with_cluster("p0", person[:n]) for n in (1, 5))
    centre = random(36, 24)[0] + 5.0
    assert float(often.score(centre)) > float(once.score(centre))
    assert once.counts[-1] == 1
    assert often.counts[-1] == 5


def test_one_person_more_or_less_changes_nothing_else():
    data, stranger = people(), random(24, seed=9) * 1.5 + 5.0
    before = fitted(data)
    after = before.with_cluster("stranger", stranger + 0.3 * random(4, 24, seed=10))
    fresh = stranger + 0.3 * random(20, 24, seed=11)
    assert not bool((before.score(fresh) > 0).any())
    assert bool((after.score(fresh) > 0).all())
    everyone = torch.cat([data.forget, data.others])
    assert bool((after.score(everyone) >= before.score(everyone) - 1e-4).all())
    restored = after.without_cluster("stranger")
    assert to_record(restored)[0] == to_record(before)[0]
    for name, tensor in to_record(before)[1].items():
        assert torch.equal(to_record(restored)[1][name], tensor), name
    mine = torch.tensor([name == "p2" for name in data.forget_people])
    spared = before.without_cluster("p2").with_cluster("p2", data.forget[mine], side="other")
    assert not bool((spared.score(data.forget[mine]) > 0).any())
    again = spared.without_cluster("p2", side="other").with_cluster("p2", data.forget[mine])
    assert torch.allclose(again.forget[-1], before.forget[2], atol=1e-4)


def test_selection_offers_it_where_people_are_named():
    data = people(noise=0.3)
    chosen = select_gate({(3, "last"): data}, kinds=["identity", "contrast"])
    assert {row.kind for row in chosen.table} == {"identity", "contrast"}
    forget, others, held_out = held_out_scores(data, "identity", 3, "last")
    assert held_out
    assert auroc(forget, others) > 0.99
    unnamed = GateStates(data.forget, data.others, data.forget_groups, data.other_groups)
    with pytest.raises(RMuseError, match="people's labels"):
        select_gate({(3, "last"): unnamed}, kinds=["identity"])


def test_what_cannot_be_told_apart_is_defined_and_what_is_wrong_refused():
    point = torch.ones(4, 5)
    same = fit_identity_ratio(point, ["a"] * 4, point, ["b"] * 4, layer=0, readout="last")
    assert bool(torch.isfinite(same.score(point)).all())
    data = people()
    with pytest.raises(RMuseError, match="one person per state"):
        fit_identity_ratio(data.forget, ["a"], data.others, data.other_people, layer=0, readout="last")
    with pytest.raises(RMuseError, match="forget and of other"):
        fit_identity_ratio(data.forget[:0], [], data.others, data.other_people, layer=0, readout="last")
    gate = fitted(data)
    with pytest.raises(RMuseError, match="'p0', a forget cluster already"):
        gate.with_cluster("p0", data.forget)
    with pytest.raises(RMuseError, match="NaN"):
        gate.with_cluster("new", data.forget * torch.nan)
