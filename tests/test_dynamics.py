"""Displacements: found where planted on one side, not found under shuffled labels, exactly 0 behind closed gates."""

import json
import math

import numpy as np
import pytest
import torch
from helpers.studies import drawn, refused, words
from helpers.tiny import tiny_llava
from sklearn.decomposition import PCA

from analyses import activation_dynamics as script
from rmuse_interp import RMuseError, fit, load_benchmark, load_model
from rmuse_interp.diagnostics.dynamics import (
    along,
    approach,
    displacement,
    shuffled,
    side_test,
    state_plane,
)
from rmuse_interp.studies import activation_dynamics as analysis

pytestmark = pytest.mark.slow

D = 12


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def people(n_forget=6, n_retain=10, each=4):
    """Id of a query → whom it is about; f… are to be forgotten."""
    return {
        f"{side}{i}/{j}": f"{side}{i}"
        for side, n in (("f", n_forget), ("r", n_retain))
        for i in range(n)
        for j in range(each)
    }


# The plane.


def test_the_plane_is_that_of_principal_component_analysis():
    states = noise(0, 40, D) * torch.linspace(4, 1, D)
    plane, theirs = state_plane(states), PCA(2).fit(states.numpy())
    assert np.allclose(plane.explained, theirs.explained_variance_ratio_)
    assert torch.allclose(plane.axes @ plane.axes.mT, torch.eye(2, dtype=torch.float64), atol=1e-9)
    mine, other = plane.place(states).numpy(), theirs.transform(states.numpy())
    assert np.allclose(np.abs(mine), np.abs(other))  # the signs of axes are free
    new = noise(1, 5, D)
    assert np.allclose(np.abs(plane.place(new).numpy()), np.abs(theirs.transform(new.numpy())))
    with pytest.raises(RMuseError, match="span a plane"):
        state_plane(states[:2])


# Displacements.


def test_the_length_direction_and_goal_of_a_displacement():
    h, v = noise(2, 7, D), noise(3, D)
    assert displacement(h, h.clone()) == 0.0
    assert along(h, h.clone(), v) is None
    moved = h + 0.5 * v
    assert math.isclose(displacement(h, moved), float((7 * (0.5 * v).square().sum()).sqrt() / h.norm()))
    assert math.isclose(along(h, moved, 3 * v), 1.0)
    assert math.isclose(along(h, h - v, v), -1.0)
    assert abs(along(h, h + noise(4, D), v)) < 0.9
    goals = noise(5, 3, D)
    onto = goals[[0, 1, 2, 0, 1, 2, 0]] * h.norm(dim=1, keepdim=True)
    nearest = torch.nn.functional.normalize(h, dim=1) @ torch.nn.functional.normalize(goals, dim=1).mT
    assert math.isclose(approach(h, onto, goals), float(nearest.amax(dim=1).arccos().mean()), rel_tol=1e-6)
    assert approach(onto, h, goals) < 0
    with pytest.raises(RMuseError, match="same tokens"):
        displacement(h, h[1:])


def test_a_planted_displacement_is_found_and_its_size_covered():
    who, rng = people(), np.random.default_rng(0)
    forget = {i for i in who if i.startswith("f")}
    values = {i: float(rng.normal(2.0 if i in forget else 0.0, 1.0)) for i in who}
    found = side_test(values, forget, who)
    assert found.people == (6, 10)
    assert found.p <= 0.001
    assert found.interval[0] < found.difference < found.interval[1]
    assert abs(found.difference - 2.0) < 0.6
    assert math.isclose(found.least, 1 / 2001)  # more permutations would tell more, up to 1 / comb(16, 6)
    turned = side_test(values, set(who) - forget, who)
    assert turned.p > 0.99


def test_without_a_difference_p_is_uniform_and_people_count_once():
    """Each person has a level of their own: questions about one are no independent evidence."""
    who = people(5, 8, each=10)
    forget = {i for i in who if i.startswith("f")}
    ps, naive = [], []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        level = {name: rng.normal() for name in set(who.values())}
        values = {i: level[name] + 0.1 * rng.normal() for i, name in who.items()}
        ps.append(side_test(values, forget, who, permutations=200, seed=seed).p)
        naive.append(side_test(values, forget, {i: i for i in who}, permutations=200, seed=seed).p)
    assert 0.4 < np.mean(ps) < 0.6
    assert np.mean(np.array(ps) < 0.05) < 0.12
    assert np.mean(np.array(naive) < 0.05) > 0.2  # what it would be without the clusters


def test_shuffled_labels_find_nothing():
    who, rng = people(), np.random.default_rng(1)
    forget = {i for i in who if i.startswith("f")}
    values = {i: float(rng.normal(2.0 if i in forget else 0.0, 1.0)) for i in who}
    ps = []
    for seed in range(40):
        mine = shuffled(who, forget, seed)
        assert len({who[i] for i in mine}) == 6
        assert mine == {i for i in who if who[i] in {who[j] for j in mine}}
        ps.append(side_test(values, mine, who, permutations=200).p)
    assert np.mean(ps) > 0.3
    assert np.mean(np.array(ps) < 0.05) < 0.2


def test_tied_values_are_no_evidence():
    who = people()
    found = side_test(dict.fromkeys(who, 0.0), {i for i in who if i.startswith("f")}, who, permutations=50)
    assert (found.difference, found.p) == (0.0, 1.0)


def test_too_few_people_are_counted():
    who = people(1, 4)
    forget = {i for i in who if i.startswith("f")}
    with pytest.raises(
        RMuseError, match="at least 2 people on each side and none on both were required, got 1"
    ):
        side_test(dict.fromkeys(who, 0.0), forget, who)
    both = people(3, 3)
    with pytest.raises(RMuseError, match="1 on both"):
        side_test(dict.fromkeys(both, 0.0), {"f0/0", "f1/0", "f1/1", "f1/2", "f1/3"}, both)


def arguments(data, out, *more):
    return [*words(data, out, forget=10, limit=6, fit_limit=6), *more]


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    assert script.main(arguments(data, out)) == 0
    return out, json.loads((out / "activation_dynamics.json").read_text())


def test_rows_cover_presets_kinds_and_blocks(results):
    _, record = results
    origin = record["provenance"]
    assert record["schema"] == "rmuse-activation-dynamics/1"
    assert origin["n"] == {"image": {"forget": 4, "retain": 4}, "text": {"forget": 2, "retain": 2}}
    for preset in ("paper", "calibrated"):
        for modality in ("image", "text"):
            mine = [r for r in record["rows"] if (r["preset"], r["modality"]) == (preset, modality)]
            steered = origin["layers"][preset][modality]
            assert [r["layer"] for r in mine] == list(range(min(steered), 4))
            assert [r["layer"] for r in mine if r["steered"]] == steered
            for row in mine:
                assert len(row["points"]) == sum(origin["n"][modality].values())
                assert (row["along"] is not None) is row["steered"]
                assert (row["approach"] is not None) is row["steered"]
                assert 0 < row["explained"][1] <= row["explained"][0] < 1
                assert row["test"]["people"] == [2, 2]
                assert row["test"]["p"] >= row["test"]["least"] * 0.5


def test_closed_gates_move_nothing_at_all(results):
    """The negative control: in a run with every gate closed, and where a gate stayed closed by itself."""
    _, record = results
    for row in record["rows"]:
        assert row["closed"]["control_most"] == 0.0
        assert row["closed"]["control_n"] == len(row["points"])
        assert row["closed"]["most"] in (None, 0.0)
        for point in row["points"].values():
            assert (point["displaced"] == 0) == (point["before"] == point["after"])
            if not point["fired"]:
                assert point["displaced"] == 0.0
            elif row["steered"]:
                assert point["displaced"] > 0.0
    assert any(point["fired"] for row in record["rows"] for point in row["points"].values())


def test_a_plan_whose_gate_knows_the_people_moves_them_alone(data, tmp_path):
    """The positive control: the gate set between both sides' scores by hand."""
    lens, benchmark = load_model(str(tiny_llava())), load_benchmark(data, forget=10)
    fitted = fit(lens, benchmark, "calibrated", limit=6)
    asked = analysis.asked_of(benchmark, "image", 6, 0)
    edit = next(e for e in fitted.plan if e.modality == "image")

    decision = lens.decide(fitted.plan, [q.prompt for q in asked.queries], [q.image for q in asked.queries])
    column = list(fitted.plan).index(edit)
    scores = dict(zip([q.id for q in asked.queries], decision.score[:, column].tolist(), strict=True))
    order = sorted(scores, key=lambda i: scores[i])
    cut = (scores[order[3]] + scores[order[4]]) / 2
    changed = fitted.plan.replace(**{"image.gate": edit.gate.at_threshold(cut)})
    type(fitted)(changed, fitted.subspaces, fitted.report).save(tmp_path / "bundle")
    assert script.main(arguments(data, tmp_path, "--bundle", str(tmp_path / "bundle"))) == 0
    record = json.loads((tmp_path / "activation_dynamics.json").read_text())
    rows = [r for r in record["rows"] if r["modality"] == "image"]
    assert rows
    for row in rows:
        moved = {name for name, point in row["points"].items() if point["displaced"] > 0}
        assert moved == set(order[4:])
        assert row["closed"] == {"n": 4, "most": 0.0, "control_n": 8, "control_most": 0.0}


def test_mistakes_are_one_line_and_exit_code_2(data, tmp_path, capsys):
    for change, said in (
        (["--layers", "9"], "--layers within 0..3"),
        (["--forget", "5"], "at least 2 people on each side"),
        (["--bundle", "/nowhere"], "rmuse.json"),
        (["--limit", "0"], "--limit of at least 1"),
    ):
        assert said in refused(script, arguments(data, tmp_path, *change), tmp_path, capsys)


def test_the_figure_is_drawn_from_the_record_alone(results, tmp_path):
    out, record = results
    (caption,) = drawn("activation_dynamics", out, tmp_path, "activation_dynamics")
    assert "n = image: 4 forget and 4 retain" in caption
    assert record["provenance"]["model"]["fingerprint"] in caption
