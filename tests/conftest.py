"""The tiny model, its benchmark and what is fitted on them, built once per session; tests change none of them."""

from pathlib import Path

import pytest

import rmuse_interp.models  # noqa: F401  (before transformers: a broken torchvision does no harm)

# isort: split
from helpers import parquet_fixture
from helpers.commands import done
from helpers.plans import lens_of
from helpers.tiny import tiny_llava

from rmuse_interp import RMuseError, load_benchmark, load_model
from rmuse_interp.fitting import gather


@pytest.fixture(scope="session")
def model() -> Path:
    return tiny_llava()


@pytest.fixture(scope="session")
def lens(model):
    return lens_of(model)


@pytest.fixture(scope="session")
def smollm2():
    """The pretrained model in the user's cache; without it the tests on it are skipped."""
    try:
        return load_model("smollm2")
    except RMuseError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A benchmark that can be split at 5, 10 and 15 %."""
    folder = parquet_fixture.write_benchmark(tmp_path_factory.mktemp("data"))
    people = ["p0", "p1", "p2", "p3"]
    for name, chosen in (("forget_15", people[:1]), ("retain_85", people[1:])):
        parquet_fixture.write_split(folder, name, [parquet_fixture.person_row(p) for p in chosen])
    return folder


@pytest.fixture(scope="session")
def benchmark(data):
    """p0 and p1 to forget, p2 and p3 to retain."""
    return load_benchmark(data, forget=10)


@pytest.fixture(scope="session")
def evidence(lens, benchmark):
    return gather(lens, benchmark)


@pytest.fixture(scope="session")
def bundles(model, data, tmp_path_factory) -> dict[str, Path]:
    """Bundles of both presets, and one for another forget rate."""
    root = tmp_path_factory.mktemp("bundles")
    fitting = ("fit", "--model", model, "--data", data, "--limit", 8)
    done(*fitting, "--preset", "paper", "--out", root / "paper")
    done(*fitting, "--preset", "calibrated", "--layers", "2-3", "--out", root / "calibrated")
    done(*fitting, "--preset", "paper", "--forget", 10, "--out", root / "ten")
    return {path.name: path for path in root.iterdir()}
