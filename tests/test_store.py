"""What is kept on disk: whole or not at all, found again by what it depends on, and never taken for anything else."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass

import pyarrow.parquet as pq
import pytest
import torch
from helpers import parquet_fixture

from rmuse_interp import RMuseError
from rmuse_interp.data import load_benchmark
from rmuse_interp.data.content import content
from rmuse_interp.data.store import (
    Store,
    atomic,
    atomic_files,
    digest,
    newest,
    read_tensors,
    write_json,
    write_tensors,
    write_text,
)

FIRST = "train-00000-of-00001.parquet"


@dataclass(frozen=True)
class Setting:
    name: str
    weights: torch.Tensor


def test_results_are_found_again_by_what_they_depend_on_alone(tmp_path):
    file = tmp_path / "a" / "kept.jsonl"
    store = Store(file, "model", {"limit": 3})
    store.put(("What?", b"picture"), {"text": "Oslo", "spans": (1, 2)})
    assert store.get(("What?", b"picture")) == {"text": "Oslo", "spans": [1, 2]}
    assert Store(file, "model", {"limit": 3}).get(("What?", b"picture")) == {"text": "Oslo", "spans": [1, 2]}
    assert Store(file, "model", {"limit": 4}).get(("What?", b"picture")) is None
    assert store.get(("What?", b"another")) is None
    assert store.get("What?") is None


def test_a_later_result_takes_the_place_of_an_earlier_one(tmp_path):
    for value in (1, 2):
        Store(tmp_path / "kept.jsonl").put("key", value)
    assert Store(tmp_path / "kept.jsonl").get("key") == 2


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_line_is_passed_over_and_never_continued(tmp_path, cut):
    file = tmp_path / "kept.jsonl"
    store = Store(file)
    for key in ("one", "two"):
        store.put(key, key.upper())
    file.write_bytes(file.read_bytes()[:-cut])
    again = Store(file)
    assert (again.get("one"), again.get("two")) == ("ONE", None)
    again.put("two", "TWO")
    again.put("three", "THREE")
    last = Store(file)
    assert [last.get(key) for key in ("one", "two", "three")] == ["ONE", "TWO", "THREE"]


def test_stray_bytes_and_foreign_lines_do_no_harm(tmp_path):
    file = tmp_path / "kept.jsonl"
    Store(file).put("one", 1)
    file.write_bytes(b'\xff\xfe\n[1]\n{"key": 3}\n7\n' + file.read_bytes() + b"\xc3")
    store = Store(file)
    store.put("two", 2)
    assert (Store(file).get("one"), Store(file).get("two")) == (1, 2)


@pytest.mark.parametrize(
    "text", ["a\u2028b", "a\x85b", "a\nb\r\n", "\ud800".encode("utf-8", "replace").decode()]
)
def test_any_text_comes_back_as_it_was(tmp_path, text):
    """Line separators of Unicode among them, at which a line of the file does not end."""
    Store(tmp_path / "kept.jsonl").put(text, text)
    assert Store(tmp_path / "kept.jsonl").get(text) == text


def test_tensors_stand_beside_their_result_and_a_damaged_file_is_none(tmp_path):
    file = tmp_path / "kept.jsonl"
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(2, dtype=torch.bfloat16)}
    for path in (file, None):
        store = Store(path, "model")
        store.put("states", {"n": 2}, tensors)
        assert {k: v.tolist() for k, v in store.tensors("states").items()} == {
            k: v.tolist() for k, v in tensors.items()
        }
        assert store.tensors("others") is None
    assert Store(file, "another").tensors("states") is None
    (beside,) = tmp_path.glob("*.safetensors")
    beside.write_bytes(beside.read_bytes()[:-1])
    assert Store(file, "model").tensors("states") is None
    Store(file, "model").drop_tensors("states")
    assert not beside.exists()
    assert Store(file, "model").get("states") == {"n": 2}


def test_threads_may_share_a_store(tmp_path):
    store = Store(tmp_path / "kept.jsonl")

    def fill(part):
        for i in range(50):
            store.put((part, i), "x" * 2000)

    threads = [threading.Thread(target=fill, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = Store(tmp_path / "kept.jsonl")
    assert all(again.get((part, i)) == "x" * 2000 for part in range(4) for i in range(50))


def test_a_killed_process_loses_nothing_it_has_put(tmp_path):
    """SIGKILL at some point of a long series: all that was told to be put is there, and the rest is put behind it."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom rmuse_interp.data.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "for i in range(10**6):\n    store.put(i, 'x' * 5000)\n    print(i, flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "kept.jsonl")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        told = [process.stdout.readline() for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
        told += process.stdout.read().splitlines()
    n = len([line for line in told if line.strip()])
    assert n >= 20
    store = Store(tmp_path / "kept.jsonl")
    assert all(store.get(i) == "x" * 5000 for i in range(n - 1))
    store.put("next", 1)
    assert Store(tmp_path / "kept.jsonl").get("next") == 1


def test_digests_tell_values_apart_and_nothing_else():
    told = [
        None,
        True,
        False,
        0,
        1,
        0.0,
        1.0,
        -0.0,
        "",
        "1",
        b"",
        b"1",
        (),
        [1],
        ["1"],
        [[1]],
        {1},
        {"1"},
        {},
        {"1": 1},
        {"a": None},
        {"a": {}},
        torch.zeros(2),
        torch.zeros(2, 1),
        torch.zeros(2, dtype=torch.int32),
        torch.zeros(()),
        Setting("a", torch.zeros(1)),
        Setting("a", torch.ones(1)),
        float("nan"),
        float("inf"),
    ]
    assert len({digest(one) for one in told}) == len(told)
    assert len({digest(*some) for some in (("ab", "c"), ("a", "bc"), ("abc",), (("ab", "c"),), ())}) == 5
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"b", "a", "c"}) == digest({"c", "a", "b"})
    assert digest((1, 2)) == digest([1, 2])
    assert digest(torch.arange(6).view(2, 3).T) == digest(torch.arange(6).view(2, 3).T.contiguous())


@pytest.mark.parametrize("value", [object(), len, Store])
def test_what_cannot_be_told_apart_has_no_digest(value):
    with pytest.raises(TypeError, match="nothing is stored under"):
        digest([value])


def test_a_file_is_the_old_one_or_the_whole_new_one(tmp_path):
    file = tmp_path / "made" / "scores.json"
    write_json(file, {"value": "é"})

    def broken():
        yield "half of "
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_text(file, broken())
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, float("nan"))
    assert json.loads(file.read_text(encoding="utf-8")) == {"value": "é"}
    assert list(file.parent.iterdir()) == [file]


def test_the_first_of_two_folders_stays(tmp_path):
    folder = tmp_path / "made"
    for word in ("first", "second"):
        with atomic(folder) as draft:
            draft.mkdir()
            (draft / "file").write_text(word)
    assert (folder / "file").read_text() == "first"

    def broken():
        with atomic(tmp_path / "other") as draft:
            draft.mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("step", range(8))
def test_files_that_belong_together_are_the_old_ones_or_the_new_ones(tmp_path, monkeypatch, step):
    """A crash at every call that changes the folder: whoever asks for the newest never gets some of each."""
    (tmp_path / "mine.txt").write_text("kept")
    names = ("z-last.json", "tensors", "zz")

    def write(word):
        with atomic_files(tmp_path, "z-last.json") as draft:
            for name in names:
                (draft / name).write_text(word)

    write("old")
    done = 0

    def crashing(real):
        def call(*arguments, **options):
            nonlocal done
            done += 1
            if done > step:
                raise OSError("the power is gone")
            return real(*arguments, **options)

        return call

    for module, name in ((os, "replace"), (os, "unlink"), (shutil, "rmtree")):
        monkeypatch.setattr(module, name, crashing(getattr(module, name)))
    with suppress(OSError):
        write("new")
    monkeypatch.undo()
    held = {newest(tmp_path, name).read_text() for name in names}
    assert held == ({"old"} if step == 0 else {"new"})
    # For who does not ask: the last file is not there, or all are of one kind.
    if (tmp_path / "z-last.json").exists():
        assert len({(tmp_path / name).read_text() for name in names}) == 1
    write("newer")
    assert {p.name: p.read_text() for p in tmp_path.iterdir() if p.is_file()} == {
        "mine.txt": "kept",
        **dict.fromkeys(names, "newer"),
    }
    assert not (tmp_path / ".next").exists()


def test_files_have_the_mode_that_the_user_asks_for(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "text", ["a"])
        write_tensors(tmp_path / "tensors", {"a": torch.zeros(1)})
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o640"}


def test_tensors_come_back_with_what_was_kept_with_them(tmp_path):
    one = torch.randn(3)
    write_tensors(tmp_path / "t.safetensors", {"a": one, "b": one}, {"schema": "x/1"})
    tensors, about = read_tensors(tmp_path / "t.safetensors")
    assert about == {"schema": "x/1"}
    assert all(torch.equal(tensor, one) for tensor in tensors.values())
    (tmp_path / "t.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RMuseError, match="whole safetensors file"):
        read_tensors(tmp_path / "t.safetensors")


def test_a_benchmark_is_known_by_what_it_holds(tmp_path):
    """The same wherever it lies; another one where a picture, an answer, an alias or the forget rate differs."""
    home = parquet_fixture.write_benchmark(tmp_path / "here")
    there = tmp_path / "elsewhere"
    shutil.copytree(home, there)
    found = content(load_benchmark(home))
    assert content(load_benchmark(there)) == found
    assert content(load_benchmark(there, forget=10)) != found
    assert content(load_benchmark(there), ["test"]) != found
    said = (there / "benchmark.json").read_text()
    (there / "benchmark.json").write_text(
        json.dumps(json.loads(said) | {"aliases": {"Oslo": ["Christiania"]}})
    )
    assert content(load_benchmark(there)) != found
    (there / "benchmark.json").write_text(said)
    (row,) = pq.read_table(there / "forget_5" / FIRST).to_pylist()
    parquet_fixture.write_split(there, "forget_5", [row])
    assert content(load_benchmark(there)) == found
    row["image"] = {"bytes": parquet_fixture.png(99), "path": None}
    parquet_fixture.write_split(there, "forget_5", [row])
    assert content(load_benchmark(there)) != found
