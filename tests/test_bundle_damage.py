"""Bundles that were damaged, mixed or cut: each loads as it was saved, to the bit, or is refused as an `RMuseError`."""

import json
import os
import random
import shutil
from contextlib import suppress

import pytest
import torch
from helpers.plans import linear_gate, rmuse, vector

import rmuse_interp.operators as op
from rmuse_interp import Plan, RMuse, RMuseError
from rmuse_interp.data.sealed import FILES, SEAL
from rmuse_interp.data.store import digest, digest_of_file
from rmuse_interp.parts.gates import Gate, LinearDiscriminant, Read
from rmuse_interp.parts.part import to_record

FILES_OF_A_BUNDLE = ("plan.json", "plan.safetensors", "rmuse.json", "subspaces.safetensors")
STRANGE = (
    float("nan"),
    float("inf"),
    -float("inf"),
    1e308,
    -1,
    0,
    2**70,
    True,
    None,
    "",
    "NaN",
    "é\ud800",
    [],
    {},
)
STRANGE += ([[1]], {"class": 1}, ["../../etc/passwd"], {"/etc/passwd": "0"})


def held(found: RMuse) -> str:
    return digest(to_record(found.plan), to_record(found.subspaces), found.report)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return rmuse().save(tmp_path_factory.mktemp("bundle") / "whole")


def loaded(folder) -> str | None:
    """What the bundle holds; None if it is refused."""
    with suppress(RMuseError):
        return held(RMuse.load(folder))
    return None


def cut_or_flipped(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    kind = rng.randrange(4)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + data[at + rng.randrange(1, 9) :]
    return data[:at] + rng.randbytes(rng.randrange(1, 5)) + data[at:]


def spots(value, path=()):
    """The path of every value in a JSON value."""
    yield path
    for key, one in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from spots(one, (*path, key))


def changed(record, rng: random.Random):
    """The record with one value changed to a strange one, or with one entry deleted."""
    found = json.loads(json.dumps(record))
    *way, last = rng.choice([path for path in spots(found) if path])
    place = found
    for step in way:
        place = place[step]
    if rng.random() < 0.2:
        del place[last]
    else:
        place[last] = rng.choice(STRANGE)
    return found


def test_the_bundle_comes_back_as_it_was(saved):
    assert loaded(saved) == held(rmuse())
    assert sorted(file.name for file in saved.iterdir()) == sorted(FILES_OF_A_BUNDLE)


def test_5000_damaged_bundles_load_as_the_whole_one_or_are_refused(saved, tmp_path):
    rng, whole = random.Random(0), held(rmuse())
    folder = tmp_path / "damaged"
    shutil.copytree(saved, folder)
    refused = 0
    for number in range(5000):
        file = folder / FILES_OF_A_BUNDLE[number % 4]
        before = file.read_bytes()
        if file.suffix == ".json" and number % 8 < 4:
            after = json.dumps(changed(json.loads(before), rng)).encode()
        else:
            after = cut_or_flipped(before, rng)
        file.write_bytes(after)
        found = loaded(folder)
        assert found in (whole, None), (file.name, after)
        refused += found is None
        file.write_bytes(before)
    assert refused > 4800
    assert loaded(folder) == whole


def sealed_again(folder) -> None:
    """Hashes that fit, as of one who changes a bundle on purpose."""
    for name in ("plan.json", "rmuse.json"):
        record = json.loads((folder / name).read_text())
        if not isinstance(record, dict):
            continue
        record.pop(SEAL, None)
        with suppress(UnicodeEncodeError):
            record[FILES] = {one: digest_of_file(folder / one) for one in record.get(FILES) or ()}
            (folder / name).write_text(json.dumps({**record, SEAL: digest(record)}))


def test_content_that_is_wrong_under_fitting_hashes_is_refused_as_well(saved, tmp_path):
    rng = random.Random(1)
    for _ in range(200):
        folder = tmp_path / "crafted"
        shutil.copytree(saved, folder)
        file = folder / rng.choice(("plan.json", "rmuse.json"))
        record = json.loads(file.read_text())
        part = rng.choice(["plan"] if file.name == "plan.json" else ["subspaces", "report"])
        file.write_text(json.dumps({**record, part: changed(record[part], rng)}))
        sealed_again(folder)
        with suppress(RMuseError):
            found = RMuse.load(folder)
            assert all(torch.isfinite(x).all() for x in found.plan.buffers() if x.is_floating_point())
            assert all(abs(gate.threshold) < float("inf") for gate in found.plan.gates)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", FILES_OF_A_BUNDLE)
@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"x"',
        b"1" * 5000,
        b'{"schema": NaN}',
    ],
    ids=range(10),
)
def test_files_of_another_kind_are_refused(saved, tmp_path, name, junk):
    shutil.copytree(saved, tmp_path / "bundle")
    (tmp_path / "bundle" / name).write_bytes(junk)
    assert loaded(tmp_path / "bundle") is None


@pytest.mark.parametrize("name", FILES_OF_A_BUNDLE)
def test_a_file_that_is_missing_or_of_another_saving_is_refused(saved, tmp_path, name):
    other = rmuse(seed=7).save(tmp_path / "other")
    shutil.copy(saved / name, other / name)
    with pytest.raises(RMuseError, match=r"saved together|changed since"):
        RMuse.load(other)
    (other / name).unlink()
    with pytest.raises(RMuseError, match=name):
        RMuse.load(other)
    (other / name).mkdir()
    with pytest.raises(RMuseError, match=name):
        RMuse.load(other)


@pytest.mark.parametrize("kind", [RMuse, Plan])
def test_a_crash_at_any_moment_of_saving_leaves_the_old_bundle_or_the_new_one(tmp_path, monkeypatch, kind):
    """At each call that changes a file, until one saving goes through."""

    def read(folder):
        found = kind.load(folder)
        return held(found) if isinstance(found, RMuse) else digest(to_record(found))

    def one(seed):
        return rmuse(seed) if kind is RMuse else rmuse(seed).plan

    old, new = (read(one(seed).save(tmp_path / str(seed))) for seed in (1, 7))
    seen, step, done = set(), 0, 0
    real = os.replace

    def crashing(source, target):
        nonlocal done
        done += 1
        if done > step:
            raise OSError("the power is gone")
        real(source, target)

    while True:
        folder = one(1).save(tmp_path / f"at-{step}")
        done = 0
        monkeypatch.setattr(os, "replace", crashing)
        try:
            one(7).save(folder)
            break
        except OSError:
            pass
        finally:
            monkeypatch.setattr(os, "replace", real)
        found = read(folder)
        assert found in (old, new)
        seen.add(found)
        one(7).save(folder)
        assert read(folder) == new
        step += 1
    assert seen == {old, new}
    assert step >= 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_part_is_made_of_finite_values_only(value):
    broken = vector(1, 8).index_fill(0, torch.tensor([3]), value)
    with pytest.raises(RMuseError, match="finite values"):
        op.Add(broken)
    with pytest.raises(RMuseError, match="finite values"):
        LinearDiscriminant(broken, 0.0)
    for threshold, scale in ((value, 1.0), (0.0, value)):
        with pytest.raises(RMuseError, match=r"finite (threshold|scale)|positive scale"):
            Gate(LinearDiscriminant(vector(1, 8), 0.0), Read(1), threshold, scale)
    with pytest.raises(RMuseError, match=r"finite (threshold|scale)|positive scale"):
        linear_gate().at_threshold(value)
