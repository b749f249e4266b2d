"""The README's example runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_example_in_python_runs(tmp_path):
    (example,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)
    found = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "prototypes" in found.stdout  # the plan
    assert "</think>" in found.stdout  # the response
    assert (tmp_path / "portrait.png").is_file()


def test_every_file_that_is_named_is_there():
    root = Path(__file__).resolve().parent.parent
    named = set(re.findall(r"\]\((?!https?:)([\w./]+)\)", README)) | set(
        re.findall(r"`python ((?:analyses|figures)/\w+\.py)", README)
    )
    named |= {f"analyses/{name}" for name in re.findall(r"^\| `(\w+\.py)` \|", README, flags=re.M)}
    assert len(named) > 15
    assert [name for name in sorted(named) if not (root / name).exists()] == []
