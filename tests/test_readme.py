"""What README.md and docs/results.md show runs as it stands, and what they name is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)
"""The first opens the model and fits; each of the others goes on from there."""


def test_every_snippet_is_four_lines_at_most():
    _, *snippets = EXAMPLES
    assert len(snippets) == 5
    assert all(len([line for line in snippet.splitlines() if line.strip()]) <= 4 for snippet in snippets)


def test_the_examples_in_python_run(tmp_path):
    code = "\nprint('-----')\n".join(EXAMPLES)
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    first, blind, gates, bare, rival, _ = found.stdout.split("-----\n")
    assert "follow one of" in first  # the plan
    assert "cannot help" in first  # a refusal
    assert (tmp_path / "portrait.png").is_file()
    name = re.search(r"This is (\w+ \w+)\.", rival)
    assert name is not None
    assert name[1] not in blind  # who sees nothing recognises nobody
    assert re.findall(r"\b(True|False)\b", gates) == ["True", "False"]
    assert bare.strip() != rival.strip()


def test_the_readme_is_short():
    assert len(README.splitlines()) < 200


def test_every_file_that_is_named_is_there():
    text = README + RESULTS
    named = set(re.findall(r"\]\((?:\.\./)?(?!https?:)([\w./]+)\)", text))
    named |= set(re.findall(r"`python ((?:analyses|figures)/\w+\.py)", text))
    named |= {f"analyses/{name}" for name in re.findall(r"^\| `(\w+\.py)` \|", text, flags=re.M)}
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
