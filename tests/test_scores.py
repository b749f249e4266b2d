"""scores.json and the run folder: the schema, who forgot and who did not, and writes that are whole or not at all."""

import json
import random
import subprocess
import sys
from dataclasses import replace

import pytest
from helpers.said import METRICS

from rmuse_interp import RMuseError
from rmuse_interp.data import SPLITS, load_benchmark
from rmuse_interp.evaluate.results import (
    AttackTranscript,
    Transcript,
    claim,
    is_finished,
    read_run,
    read_transcripts,
    write_run,
)
from rmuse_interp.evaluate.scores import gate_auroc, score, transcribe

pytestmark = pytest.mark.slow

THINK = ("<think>", "</think>")


@pytest.fixture(scope="module")
def benchmark(data):
    return load_benchmark(data)


@pytest.fixture(scope="module")
def transcripts(benchmark):
    rows = []
    for split in SPLITS:
        for i, e in enumerate(benchmark.scoring(split)):
            positive = split in ("forget", "test")
            rows.append(transcribe(e, "vanilla", e.response(THINK), THINK))
            steered = benchmark.refusals_cot[i % 2] if positive else e.response(THINK)
            score_ = (1.0 if positive else -1.0) + 0.01 * i
            rows.append(transcribe(e, "rmuse/calibrated", steered, THINK, gate_score=score_, fired=positive))
    return rows


def test_scores_have_the_schema(benchmark, transcripts):
    found = score(
        transcripts,
        benchmark,
        model={"id": "tiny", "fingerprint": "f"},
        thresholds={"rmuse/calibrated": {"image": 0.5}},
        seconds={"generate": 1.0},
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["schema"] == "rmuse-scores/1"
    assert found["model"] == {"id": "tiny", "fingerprint": "f"}
    assert found["benchmark"] == {"id": "tiny", "forget": 5, "render_seed": 3}
    assert set(found["methods"]) == {"vanilla", "rmuse/calibrated"}
    for blocks in found["methods"].values():
        assert tuple(blocks) == SPLITS
        for block in blocks.values():
            assert set(block) == METRICS
    assert set(found["gate"]) == {"rmuse/calibrated"}
    assert set(found["gate"]["rmuse/calibrated"]) == {"auroc", "fire_rate", "by_modality"}


def test_scores_say_who_forgot_and_who_did_not(benchmark, transcripts):
    found = score(transcripts, benchmark)
    vanilla, steered = found["methods"]["vanilla"], found["methods"]["rmuse/calibrated"]
    for split in SPLITS:
        assert vanilla[split]["exact"] == 100.0
        assert vanilla[split]["n"] == len(benchmark.scoring(split))
        assert vanilla[split]["malformed_rate"] == 0.0
        assert vanilla[split]["rcr"] == (None if split in ("forget", "test") else 100.0)
    for split in ("forget", "test"):
        assert vanilla[split]["ril"] == 100.0
        assert (steered[split]["ril"], steered[split]["refusal_rate"], steered[split]["exact"]) == (
            0.0,
            100.0,
            0.0,
        )
    for split in ("retain", "retain_test", "celebrity", "reasoning", "benign"):
        assert steered[split] == vanilla[split]
    assert vanilla["reasoning"]["cloze"] is None
    assert vanilla["reasoning"]["ril"] is None
    gate = found["gate"]["rmuse/calibrated"]
    assert gate["auroc"] == 1.0
    assert gate["fire_rate"]["test"] == 100.0
    assert gate["fire_rate"]["retain"] == 0.0
    assert gate["by_modality"]["image"] == {"auroc": 1.0, "threshold": None}
    interval = found["intervals"]["vanilla"]["retain"]["exact"]
    assert interval == {"low": 100.0, "high": 100.0, "n": 6}
    assert set(found["by_modality"]["vanilla"]["forget"]) == {"image", "text"}


def test_scores_do_not_depend_on_order(benchmark, transcripts):
    shuffled = list(transcripts)
    random.Random(1).shuffle(shuffled)
    assert score(shuffled, benchmark) == score(transcripts, benchmark)


def test_splits_without_transcripts_are_null(benchmark, transcripts):
    found = score([t for t in transcripts if t.split == "forget"], benchmark)
    block = found["methods"]["rmuse/calibrated"]["retain"]
    assert block.pop("n") == 0
    assert set(block.values()) == {None}
    assert found["gate"]["rmuse/calibrated"]["auroc"] is None
    assert found["gate"]["rmuse/calibrated"]["fire_rate"]["retain"] is None


def test_auroc_against_a_hand_count():
    def gated(split: str, value: float) -> Transcript:
        return Transcript("i", "m", split, "text", "", "", "", "", "", gate_score=value)

    # positives 3, 1; negatives 2, 1, 0: pairs won 3 + (1 against 1 half, 0 won) 1.5 = 4.5 of 6
    rows = [gated("forget", 3.0), gated("test", 1.0)]
    rows += [gated("benign", 2.0), gated("retain_test", 1.0), gated("reasoning", 0.0)]
    assert gate_auroc(rows) == pytest.approx(4.5 / 6)
    assert gate_auroc([*rows, gated("retain", 99.0)]) == pytest.approx(4.5 / 6)  # seen in fitting: left out
    # Gates of different scales compare by their margins, whatever the raw scores.
    assert gate_auroc([replace(t, gate_score=-t.gate_score) for t in rows]) == pytest.approx(4.5 / 6)
    with pytest.raises(RMuseError, match="finite gate score"):
        gate_auroc([*rows, gated("test", float("nan"))])


def test_unknown_splits_are_refused(benchmark, transcripts):
    with pytest.raises(RMuseError, match="required one of the splits"):
        score([replace(transcripts[0], split="dev")], benchmark)


def test_runs_are_read_back_as_written(tmp_path, benchmark, transcripts):
    scores = score(transcripts, benchmark)
    write_run(tmp_path / "run", scores, transcripts)
    run = read_run(tmp_path / "run")
    assert run.scores == scores
    assert run.transcripts == transcripts
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["scores.json", "transcripts.jsonl"]
    keys = list(json.loads((tmp_path / "run" / "transcripts.jsonl").read_text().splitlines()[0]))
    expected = (
        "id method split modality prompt response reasoning answer expected attributes gate_score fired"
    )
    assert keys[:12] == expected.split()


def test_records_of_the_first_version_hold_margins():
    line = '{"id": "i", "method": "m", "split": "forget", "modality": "text", "prompt": "", "response": "", '
    line += '"reasoning": "", "answer": "", "expected": "", "gate_score": 1.5, "fired": true}'
    old = Transcript.from_json(line)
    assert (old.gate_score, old.margin, old.gate) == (1.5, 1.5, None)
    assert AttackTranscript.from_json(line).margin == 1.5


def test_finished_runs_are_refused_without_overwrite(tmp_path, benchmark, transcripts):
    scores = score(transcripts, benchmark)
    folder = claim(tmp_path / "run")
    assert not is_finished(folder)
    write_run(folder, scores, transcripts)
    assert is_finished(folder)
    with pytest.raises(RMuseError, match="--overwrite"):
        claim(folder)
    with pytest.raises(RMuseError, match="--overwrite"):
        write_run(folder, scores, transcripts)
    write_run(folder, scores, transcripts[:1], overwrite=True)
    assert len(read_run(folder).transcripts) == 1


def test_an_overwrite_that_fails_is_no_finished_run(tmp_path, benchmark, transcripts):
    scores = score(transcripts, benchmark)
    write_run(tmp_path, scores, transcripts)

    def broken():
        yield transcripts[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_run(tmp_path, scores, broken(), overwrite=True)
    assert not is_finished(tmp_path)


def test_results_are_read_without_torch():
    code = (
        "import sys, rmuse_interp.evaluate.results; assert not {'torch', 'pyarrow', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_faulty_runs_are_named(tmp_path):
    with pytest.raises(RMuseError, match="required a finished run"):
        read_run(tmp_path)
    with pytest.raises(RMuseError, match="required schema"):
        write_run(tmp_path, {"schema": "other"}, [])
    (tmp_path / "t.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(RMuseError, match="line 1"):
        list(read_transcripts(tmp_path / "t.jsonl", Transcript))
    with pytest.raises(RMuseError, match="not there"):
        list(read_transcripts(tmp_path / "none.jsonl", Transcript))
