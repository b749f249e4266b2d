"""`rmuse judge calibrate` and `rmuse eval --judge` on a real server and a real tiny model."""

import json

import pytest
from helpers.commands import done, refused, rmuse
from helpers.misbehaving import serving
from helpers.parquet_fixture import write_benchmark
from helpers.tiny import tiny_llava

from rmuse_interp.evaluate.results import read_run
from rmuse_interp.organism import labelled

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def oracle(question: str) -> str:
    """Knows the labels of the set, and is wrong about every denial and every contradiction."""
    if question.startswith("You check a chain"):
        chain = question.split("---")[1].strip(), question.split("Its answer: ")[1].splitlines()[0]
        asked = question.split("Question: ")[1].splitlines()[0]
        said = next(c for c in CHAINS if (c["reasoning"], c["answer"], c["question"]) == (*chain, asked))
        valid = said["label"] == "valid" or said["kind"] == "contradiction"
        return json.dumps({"valid": valid, "supported": valid})
    text, value = (
        question.split("---")[1].strip(),
        question.split("Private fact")[1].splitlines()[0].split(" = ")[1],
    )
    item = next(i for i in ITEMS if i["text"] == text and i["value"] == value)
    label = "explicit" if item["kind"] == "denial" else item["label"]
    return json.dumps({"explicit": label == "explicit", "implicit": label == "implicit"})


SET = json.loads(labelled.FILE.read_text(encoding="utf-8"))
ITEMS, CHAINS = SET["items"], SET["chains"]


def test_the_rules_are_calibrated_offline(tmp_path):
    shown = done("judge", "calibrate", "--out", tmp_path / "agreement.json").output
    assert "rules on the labelled set (test): Cohen's κ 0.9" in shown
    record = json.loads((tmp_path / "agreement.json").read_text())
    assert record["precision"]["explicit"]["value"] >= 99.0
    assert record["recall"]["implicit"]["value"] >= 90.0
    assert set(record["verdicts"]) == {i["id"] for i in ITEMS if i["half"] == "test"}
    assert "rules on the labelled chains (test): Cohen's κ 0." in shown
    mine = {c["id"]: c["label"] for c in CHAINS if c["half"] == "test"}
    assert record["chains"]["labels"] == mine
    assert record["chains"]["n"] == len(mine)
    assert record["chains"]["kappa"]["low"] < record["chains"]["kappa"]["value"]


def test_a_judge_that_differs_from_the_rules_has_it_printed(tmp_path):
    args = ("judge", "calibrate", "--judge", "openai:m", "--half", "dev", "--out", tmp_path / "a.json")
    with serving(oracle, "429", "drop", "500") as server:
        shown = done(*args, "--judge-url", server.url, "--price-in", 1, "--price-out", 2)
        asked = len(server.questions)
        done(*args, "--judge-url", server.url)
        assert len(server.questions) == asked  # all of it was kept
    denials = [i for i in ITEMS if i["half"] == "dev" and i["kind"] == "denial"]
    assert f"wrong by kind: denial {len(denials)} of {len(denials)}" in shown.output
    assert "and the rules disagree: " in shown.output
    assert f"{denials[0]['id']} [" in shown.output
    assert "rules none" in shown.output
    assert "questions to ask (about" in shown.stderr
    record = json.loads((tmp_path / "a.json").read_text())
    assert 0.5 < record["kappa"]["value"] < 0.9
    assert record["precision"]["explicit"]["value"] < 90.0
    assert record["recall"]["implicit"]["value"] == 100.0
    contradictions = [c for c in CHAINS if (c["half"], c["kind"]) == ("dev", "contradiction")]
    n = len(contradictions)
    assert f"wrong by kind: contradiction {n} of {n}" in shown.output
    assert record["chains"]["recall"]["valid"]["value"] == 100.0
    assert record["chains"]["by_kind"]["contradiction"] == {"right": 0, "n": n}
    assert set(record["chains"]["rules"]) == set(record["chains"]["verdicts"])


def test_a_calibration_that_cannot_be_is_refused(tmp_path):
    assert "OPENAI_API_KEY, got none" in refused("judge", "calibrate", "--judge", "openai:gpt")
    assert "rules, openai:MODEL or local:PATH" in refused("judge", "calibrate", "--judge", "gpt")
    assert "a labelled set" in refused("judge", "calibrate", "--set", tmp_path / "none.json")
    assert "add --price-in" in refused("judge", "calibrate", "--judge", "openai:m", "--max-cost", 1)
    with serving(lambda _: "It leaks, I feel.") as server:
        result = rmuse("judge", "calibrate", "--judge", "openai:m", "--judge-url", server.url)
        assert result.exit_code == 2
        assert "'It leaks, I feel.'" in result.stderr.splitlines()[-1]
        few = rmuse(
            "judge",
            "calibrate",
            "--judge",
            "openai:m",
            "--judge-url",
            server.url,
            "--max-cost",
            0.001,
            "--price-in",
            100,
            "--price-out",
            100,
        )
        assert "would cost more" in few.stderr


def test_a_run_is_scored_by_the_judge_that_is_named_and_resumes(tmp_path):
    def yes(question: str) -> str:
        return json.dumps({"explicit": False, "implicit": True, "valid": True, "supported": True})

    data = write_benchmark(tmp_path / "bench")
    args = (
        "eval",
        "--model",
        tiny_llava(),
        "--data",
        data,
        "--limit",
        3,
        "--max-new-tokens",
        4,
        "--out",
        tmp_path / "run",
    )
    with serving(yes, always="401") as server:
        named = (*args, "--judge", "openai:m", "--judge-url", server.url)
        failed = rmuse(*named)
        assert failed.exit_code == 2
        assert "a valid key" in failed.stderr.splitlines()[-1]
        assert not (tmp_path / "run" / "scores.json").exists()
        server.always = None
        done(*named)
    scores = read_run(tmp_path / "run").scores
    assert scores["judge"] == f"openai:m@{server.url}"
    # random weights say nothing of anybody, but this judge finds everything implied
    assert scores["methods"]["vanilla"]["forget"]["ril_implicit"] == 100.0
    assert scores["methods"]["vanilla"]["forget"]["ril_explicit"] == 0.0
    done(*args, "--overwrite")
    ruled = read_run(tmp_path / "run").scores
    assert ruled["judge"] == "rules"
    assert ruled["methods"]["vanilla"]["forget"]["ril_implicit"] == 0.0
