"""The study of a large checkpoint, at a tiny shape."""

import json

import pytest

from analyses import large
from rmuse_interp.studies import large as study

pytestmark = pytest.mark.slow


def test_the_whole_method_runs_on_a_random_checkpoint_in_shards(data, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "SHARD", 100_000)
    argv = ["--shape", "tiny", "--data", data, "--forget", 10, "--limit", 1, "--out", tmp_path]
    assert large.main([str(one) for one in argv]) == 0
    record = json.loads((tmp_path / "large.json").read_text())
    assert list(record["stages"]) == [
        "write the checkpoint",
        "load",
        "answer, unsteered",
        "gather states",
        *(f"{what} {preset}" for preset in ("paper", "calibrated") for what in ("fit", "answer,")),
    ]
    peaks = [stage["peak_bytes"] for stage in record["stages"].values()]
    assert peaks == sorted(peaks)
    assert record["provenance"]["dtype"] == "torch.bfloat16"
    assert {name: len(said) for name, said in record["answers"].items()} == {
        "none": 1,
        "paper": 1,
        "calibrated": 1,
    }
    assert record["checkpoint_bytes"] > 400_000
    assert [path.name for path in tmp_path.iterdir()] == ["large.json"]
