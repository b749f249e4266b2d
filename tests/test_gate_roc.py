"""Operating curves: those of scikit-learn, intervals that cover and have width, chance where labels are random."""

import json
import shutil

import numpy as np
import pytest
from helpers.studies import drawn, words
from sklearn.metrics import roc_auc_score, roc_curve

from analyses import gate_roc as script
from rmuse_interp import RMuseError
from rmuse_interp.diagnostics.roc import TPR, newcombe, operating_curve
from rmuse_interp.maths.statistics import wilson
from rmuse_interp.studies import gate_roc as analysis

pytestmark = pytest.mark.slow


def scores(seed, n_hits=60, n_rest=90, apart=1.5, digits=None):
    rng = np.random.default_rng(seed)
    found = [rng.normal(apart, 1, n_hits), rng.normal(0, 1, n_rest)]
    return [(side if digits is None else side.round(digits)).tolist() for side in found]


def apart(n):
    return [float(10 + i) for i in range(n)], [float(-i) for i in range(n)]


def single(side):
    return [str(i) for i in range(len(side))]


def curve_of(hits, rest, **settings):
    return operating_curve(hits, rest, single(hits), [f"o{i}" for i in range(len(rest))], **settings)


@pytest.mark.parametrize("digits", [None, 0])  # distinct scores, and scores with ties
def test_the_curve_and_its_area_are_those_of_scikit_learn(digits):
    hits, rest = scores(0, digits=digits)
    mine = curve_of(hits, rest)
    truth, values = [1] * len(hits) + [0] * len(rest), np.concatenate([hits, rest])
    fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
    assert np.allclose(mine.fpr, fpr)
    assert np.allclose(mine.tpr, tpr)
    assert np.isclose(mine.auroc, roc_auc_score(truth, values))
    assert np.isclose(mine.fpr_at_tpr.value, fpr[tpr >= TPR].min())
    assert (mine.n, mine.people) == ((60, 90), (60, 90))


def test_perfect_scores_have_an_interval_with_width():
    mine = curve_of(*apart(20))
    assert mine.auroc == 1.0
    assert mine.auroc_interval == newcombe(1.0, 20, 20)
    assert 0.85 < mine.auroc_interval[0] < 0.95
    assert mine.fpr_at_tpr.value == 0.0
    assert mine.fpr_at_tpr.high == pytest.approx(wilson(0, 20).high)
    assert (mine.band[0] < 1).all()
    more = curve_of(*apart(200))
    assert more.auroc_interval[0] > mine.auroc_interval[0]


def test_newcombe_is_where_the_standard_error_puts_it():
    """Hanley and McNeil's variance at the bound itself, 1.96 of its roots away from the estimate."""
    for area, m, n in ((0.9, 50, 100), (0.7, 20, 35), (0.5, 30, 30)):
        low, high = newcombe(area, m, n)
        for bound in (low, high):
            half = (m + n) / 2 - 1
            inner = 1 + half * (1 - bound) / (2 - bound) + half * bound / (1 + bound)
            assert abs(bound - area) == pytest.approx(
                1.959964 * np.sqrt(bound * (1 - bound) * inner / (m * n)), rel=1e-4
            )
        assert low < area < high
    mirrored = newcombe(0.1, 100, 50)
    assert mirrored == pytest.approx(tuple(1 - x for x in reversed(newcombe(0.9, 50, 100))))
    assert newcombe(0.0, 20, 20) == pytest.approx(
        tuple(1 - x for x in reversed(newcombe(1.0, 20, 20))), abs=1e-6
    )


def test_intervals_cover_the_true_area():
    """Of normal scores 1.5 apart the area is Φ(1.5/√2)."""
    true, hits = 0.8555778, 0
    for seed in range(100):
        low, high = curve_of(*scores(seed, 40, 60), seed=seed).auroc_interval
        hits += low <= true <= high
    assert 90 <= hits <= 100


def test_people_not_questions_are_drawn_again():
    """Ten people with a level of their own each: their six questions are no six pieces of evidence."""
    rng = np.random.default_rng(0)
    level = rng.normal(1.0, 1.5, 10)
    hits = (level[:, None] + 0.1 * rng.normal(size=(10, 6))).ravel().tolist()
    rest = rng.normal(0, 1, 60).tolist()
    who = [str(i // 6) for i in range(60)]
    together = operating_curve(hits, rest, who, single(rest))
    each = operating_curve(hits, rest, single(hits), single(rest))
    assert together.auroc == each.auroc
    assert np.ptp(together.auroc_interval) > 1.5 * np.ptp(each.auroc_interval)
    assert together.people == (10, 60)


def test_scores_without_people_or_that_are_not_finite_are_refused():
    with pytest.raises(
        RMuseError, match="queries to steer with a person each were required, at least one, got 0"
    ):
        operating_curve([], [1.0], [], ["a"])
    with pytest.raises(RMuseError, match="to leave alone"):
        operating_curve([1.0], [float("nan")], ["a"], ["b"])
    with pytest.raises(RMuseError, match="got 2 scores and 1 people"):
        operating_curve([1.0, 2.0], [0.0], ["a"], ["b"])


def arguments(data, out, *more):
    return [*words(data, out, forget=10, limit=12, fit_limit=6), *more]


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    assert script.main(arguments(data, out, "--fits", str(out / "fits"))) == 0
    return out, json.loads((out / "gate_roc.json").read_text())


def test_every_gate_is_measured_on_its_kind_of_query(results):
    _, record = results
    assert record["schema"] == "rmuse-gate-roc/1"
    for modality in ("image", "text"):
        mine = [r for r in record["rows"] if r["modality"] == modality]
        assert mine[0]["gate"] == "paper"
        assert sum(r["chosen"] for r in mine) == 1
        assert len(mine) > 3
        for row in mine:
            assert sum(len(v) for v in row["margins"].values()) == sum(row["n"])
            for cell in (row["auroc"], row["shuffled"], *row["against"].values()):
                assert cell["low"] <= cell["value"] <= cell["high"]
            assert row["points"][0] == [0, 0]
            assert row["points"][-1] == [1, 1]
            hits = [m for s in ("forget", "test") for m in row["margins"].get(s, {}).values()]
            rest = [m for s in row["against"] for m in row["margins"][s].values()]
            # Margins are written to six digits: ties that rounding makes may move the area a little.
            mine_again = roc_auc_score([1] * len(hits) + [0] * len(rest), hits + rest)
            assert row["auroc"]["value"] == pytest.approx(mine_again, abs=0.01)
            assert row["operating"]["tpr"]["value"] == pytest.approx(
                100 * np.mean(np.array(hits) > 0), abs=1e-3
            )
            assert row["operating"]["fpr"]["value"] == pytest.approx(
                100 * np.mean(np.array(rest) > 0), abs=1e-3
            )


def test_dealt_at_random_the_area_is_a_half():
    """The negative control as the analysis runs it, on scores that tell the sides apart without error."""
    from rmuse_interp.data import Example

    def asked(side, n):
        return [
            Example(f"{side}/{i}/{j}", "x", "generation", "text", "?", "!", person=f"{side}{i}")
            for i in range(n)
            for j in range(3)
        ]

    hits, rest = asked("f", 10), asked("r", 14)
    margin = {e.id: float(e in hits) + 0.01 * i for i, e in enumerate([*hits, *rest])}
    found = analysis.dealt(margin, hits, rest, 0)
    assert found["deals"] == analysis.DEALS
    assert abs(found["value"] - 0.5) < 0.03
    assert found["low"] < 0.4 < 0.6 < found["high"]
    assert found == analysis.dealt(margin, hits, rest, 0)
    assert found != analysis.dealt(margin, hits, rest, 1)
    # People stay together: the spread is that of 24 people, not of 72 questions.
    apart = [Example(e.id, e.split, e.kind, e.modality, "?", "!", person=e.id) for e in (*hits, *rest)]
    loose = analysis.dealt(margin, apart[:30], apart[30:], 0)
    assert found["high"] - found["low"] > 1.3 * (loose["high"] - loose["low"])


def test_what_was_fitted_is_taken_up_and_gives_the_same_record(results, data, tmp_path):
    """With --fits twice, and without: the same rows."""
    out, record = results
    fits = tmp_path / "fits"
    shutil.copytree(out / "fits", fits)
    assert len(list(fits.iterdir())) == 1
    held = {p: p.stat().st_mtime_ns for p in fits.rglob("*") if p.is_file()}
    again, fresh, other = (tmp_path / name for name in ("again", "fresh", "other"))
    assert script.main(arguments(data, again, "--fits", str(fits))) == 0
    assert {p: p.stat().st_mtime_ns for p in fits.rglob("*") if p.is_file()} == held
    assert script.main(arguments(data, fresh)) == 0
    for folder in (again, fresh):
        assert json.loads((folder / "gate_roc.json").read_text())["rows"] == record["rows"]
    assert script.main([*arguments(data, other, "--fits", str(fits)), "--seed", "1"]) == 0
    assert len(list(fits.iterdir())) == 2  # another seed is another fit


def test_a_bundle_brings_its_own_gates(results, data, tmp_path, capsys):
    out, record = results
    (bundle,) = (out / "fits").glob("*/paper")
    assert script.main(arguments(data, tmp_path, "--bundle", str(bundle))) == 0
    rows = json.loads((tmp_path / "gate_roc.json").read_text())["rows"]
    theirs = {(r["gate"], r["modality"]): r for r in record["rows"]}
    assert {(r["gate"], r["modality"]) for r in rows} == {("paper", "image"), ("paper", "text")}
    for row in rows:
        assert row["auroc"] == theirs[row["gate"], row["modality"]]["auroc"]
    capsys.readouterr()
    assert script.main([*arguments(data, tmp_path, "--bundle", str(bundle)), "--forget", "5"]) == 2
    assert "add --forget 10" in capsys.readouterr().err


def test_the_figure_is_drawn_from_the_record_alone(results, tmp_path):
    out, record = results
    (caption,) = drawn("gate_roc", out, tmp_path, "gate_roc")
    assert f"n = image: {record['rows'][0]['n'][0]} to steer" in caption
    assert record["provenance"]["model"]["fingerprint"] in caption
