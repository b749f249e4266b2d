"""Importing the package has no side effects and loads nothing heavy but torch."""

import subprocess
import sys
from pathlib import Path

import pytest

import rmuse_interp

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
HEAVY = [
    "nnsight",
    "transformers",
    "transformer_lens",
    "sklearn",
    "ot",
    "scipy",
    "matplotlib",
    "pyarrow",
    "typer",
]


def loaded(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted(m for m in {HEAVY} if m in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(result.stdout.split())


def test_import_is_light():
    assert loaded("import rmuse_interp") == set()


def test_light_names_stay_light():
    assert loaded("from rmuse_interp import Subspace, Site, RMuseError") == set()


def test_the_check_itself_can_fail():
    assert loaded("import sklearn") >= {"sklearn", "scipy"}


def test_public_names_and_version():
    assert rmuse_interp.__version__ == "0.2.0"
    assert set(rmuse_interp.__all__) <= set(dir(rmuse_interp))
    assert rmuse_interp.Subspace.__module__ == "rmuse_interp.parts.subspace"
    with pytest.raises(AttributeError, match="nothing_here"):
        rmuse_interp.nothing_here  # noqa: B018


def test_every_public_name_leads_somewhere():
    for name in rmuse_interp.__all__:
        assert getattr(rmuse_interp, name).__name__ == name
