"""Reading a benchmark needs memory for its people, not for its pictures; data sets of the Hub."""

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import parquet_fixture as fixture
from helpers.parquet_fixture import person_row, png

from rmuse_interp import RMuseError
from rmuse_interp.data import SPLITS, load_benchmark
from rmuse_interp.data import reader as reading
from rmuse_interp.data.hub import is_id
from rmuse_interp.data.stored import Stored

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


def test_pictures_beyond_the_budget_stay_on_disk(tmp_path, monkeypatch):
    folder = fixture.write_benchmark(tmp_path)
    held = {split: load_benchmark(folder).scoring(split) for split in SPLITS}
    monkeypatch.setattr(reading, "HELD_BYTES", 0)
    stored = {split: load_benchmark(folder).scoring(split) for split in SPLITS}
    pictured = [e for e in stored["test"] if e.modality == "image"]
    assert all(isinstance(e.picture, Stored) for e in pictured)
    assert {e.picture.number for e in pictured} == {0, 1}
    assert held == stored  # equality compares the pictures' bytes
    assert [e.image for e in reversed(pictured)] == [e.image for e in held["test"] if e.image][::-1]
    assert all(isinstance(e.picture, bytes) for e in held["test"] if e.image)
    benchmark = load_benchmark(folder)
    fixture.write_split(folder, "retain_95", [person_row(p) for p in ("p1", "p2", "p3", "c0")])
    assert benchmark.fit_retain[0].load_image().size == (8, 8)


def test_pictures_are_read_across_row_groups_and_from_files_written_anew(tmp_path):
    path = tmp_path / "x.parquet"

    def write(offset: int) -> None:
        rows = [{"ID": str(i), "image": fixture.picture(i + offset)} for i in range(40)]
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=9)

    write(0)
    for row in (0, 39, 17, 18, 16, 3):
        assert Stored(path, row, "image").read() == png(row)
    write(100)
    os.utime(path, ns=(1, 1))
    assert Stored(path, 17, "image").read() == png(117)


MEASURE = r"""
import re, sys
from pathlib import Path
import rmuse_interp.data.benchmark, rmuse_interp.data.check
# Not getrusage: a child's begins with the peak of the process that started it.
peak = lambda: int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
base = peak()
what, folder = sys.argv[1], Path(sys.argv[2])
if what == "check":
    n = sum(s.rows for s in rmuse_interp.data.check.check(folder).splits.values())
else:
    b = rmuse_interp.data.benchmark.load_benchmark(folder)
    if what == "scoring":
        n = len(b.scoring("retain"))
    elif what == "hold":
        held = [e.image for e in b.scoring("retain")]
        n = len(held)
    else:
        n = sum(1 for _ in b.stream("retain"))
print(n, peak() - base)
"""


N_ROWS = 20_000


MOST_MB = 300


def measured(what: str, folder: Path) -> tuple[int, float]:
    """Rows or questions read, and the peak of resident memory above the import, in MB."""
    command = [sys.executable, "-c", MEASURE, what, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    n, peak = done.stdout.split()
    return int(n), float(peak)


def bitmap(side: int = 78) -> bytes:
    """An uncompressed picture of noise: three bytes a pixel and a header."""
    stride = (3 * side + 3) // 4 * 4
    header = b"BM" + (54 + stride * side).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    header += (40).to_bytes(4, "little") + side.to_bytes(4, "little") * 2 + (1).to_bytes(2, "little")
    header += (24).to_bytes(2, "little") + bytes(4) + (stride * side).to_bytes(4, "little") + bytes(16)
    return header + os.urandom(stride * side)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Twenty thousand people with a picture of 18 kB each, in two row groups: more than may be in memory."""
    root = tmp_path_factory.mktemp("large")
    fixture.write_split(root, "forget_5", [fixture.training_row("p0")])
    (root / "retain_95").mkdir()
    path, half = root / "retain_95" / "train-00000-of-00001.parquet", N_ROWS // 2
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("ID", pa.string()), ("metadata", pa.string())])
    asked = json.dumps([{"Question": "Who is this?", "Answer": "Somebody."}])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in (0, half):
            rows = [
                {"image": {"bytes": bitmap()}, "ID": f"r{start + i}", "metadata": asked} for i in range(half)
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=half)
    assert path.stat().st_size > 1.15 * MOST_MB * 2**20
    return root


@pytest.mark.parametrize("what", ["stream", "scoring", "check"])
def test_memory_does_not_grow_with_the_pictures(large, what):
    n, peak = measured(what, large)
    assert n >= N_ROWS
    assert peak <= MOST_MB


def test_the_measurement_sees_pictures_that_are_held(large):
    n, peak = measured("hold", large)
    assert n == N_ROWS
    assert peak > MOST_MB


@pytest.mark.parametrize("what", ["stream", "check"])
def test_memory_does_not_grow_with_the_lines(tmp_path, what):
    fixture.write_lines(tmp_path / "forget05.jsonl", [fixture.rtofu_line("p0")])
    with (tmp_path / "retain95.jsonl").open("w") as file:
        for i in range(N_ROWS):
            line = fixture.rtofu_line("p1", task_id=str(i), question=f"Question {i}?", cot="I think. " * 2200)
            file.write(json.dumps(line) + "\n")
    assert (tmp_path / "retain95.jsonl").stat().st_size > 1.15 * MOST_MB * 2**20
    n, peak = measured(what, tmp_path)
    assert n >= N_ROWS
    assert peak <= MOST_MB


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's API that a snapshot is fetched by, over one folder as ``lab/people`` at one commit."""

    commit = "0123456789abcdef0123456789abcdef01234567"
    root: Path
    fetched: list[str]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = urlparse(self.path).path
        files = {p.relative_to(self.root).as_posix(): p for p in self.root.rglob("*") if p.is_file()}
        api, resolve = "/api/datasets/lab/people", f"/datasets/lab/people/resolve/{self.commit}/"
        if path == f"{api}/revision/main":
            record = {
                "id": "lab/people",
                "sha": self.commit,
                "siblings": [{"rfilename": name} for name in files],
            }
            self.send(200, json.dumps(record).encode(), "application/json")
        elif path == f"{api}/tree/{self.commit}":
            tree = [{"type": "file", "path": n, "size": p.stat().st_size, "oid": n} for n, p in files.items()]
            self.send(200, json.dumps(tree).encode(), "application/json")
        elif path.startswith(resolve) and path.removeprefix(resolve) in files:
            name = path.removeprefix(resolve)
            if self.command == "GET":
                self.fetched.append(name)
            self.send(200, files[name].read_bytes(), "application/octet-stream", ETag=f'"{name}"')
        else:
            code = "RevisionNotFound" if path.startswith(api) else "RepoNotFound"
            self.send(404, b"{}", "application/json", **{"X-Error-Code": code})

    def send(self, status: int, body: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", self.commit)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def asked_of_hub(code: str, home: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter that knows this hub alone."""
    proxies = dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), ""
    )
    env = {
        **os.environ,
        **proxies,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
    }
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env)


def test_a_data_set_of_the_hub_stands_for_a_folder(tmp_path):
    root = fixture.write_benchmark(tmp_path / "people")
    settings = json.loads((root / "benchmark.json").read_text())
    del settings["id"]
    (root / "benchmark.json").write_text(json.dumps(settings))
    (root / "weights.bin").write_bytes(b"not part of a benchmark")
    Hub.root, Hub.fetched = root, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    load = (
        "from rmuse_interp.data import load_benchmark; b = load_benchmark('lab/people@{}'); "
        "print(b.id, len(b.fit_forget), len(b.scoring('test')))"
    )
    try:
        got = asked_of_hub(load.format("main"), tmp_path / "home", endpoint)
        assert got.stdout.split() == [f"lab/people@{Hub.commit[:12]}", "6", "9"], got.stderr
        assert "forget_5/train-00000-of-00001.parquet" in Hub.fetched
        assert not any("weights" in name or "Full_Set" in name for name in Hub.fetched)
        missing = asked_of_hub(load.format("v9"), tmp_path / "home", endpoint)
        assert (
            "RMuseError: lab/people@v9: required a data set of the hub that can be fetched" in missing.stderr
        )
    finally:
        server.shutdown()
        server.server_close()
    # A commit that was fetched needs no hub again.
    again = asked_of_hub(load.format(Hub.commit), tmp_path / "home", endpoint)
    assert again.stdout == got.stdout, again.stderr
    gone = asked_of_hub(load.format("main"), tmp_path / "elsewhere", endpoint)
    assert "RMuseError: lab/people@main: required a data set of the hub that can be fetched" in gone.stderr


def test_a_hub_id_needs_its_revision():
    with pytest.raises(
        RMuseError, match=r"owner/name@revision, got 'lab/people': no such folder.*lab/people@main"
    ):
        load_benchmark("lab/people")
    assert not any(map(is_id, ("../x", "/tmp/x", "name", "a/b/c@main", "a/b@")))
