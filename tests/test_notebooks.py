"""The notebooks run from top to bottom on the shipped model, each within its time, and carry outputs of such a run."""

import os
import re
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 180


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_five_are_there():
    assert [path.stem.split("_")[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_as_it_was_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = _code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), "a story without a figure"
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    # Warnings and tracebacks carry paths of the machine that ran it.
    shown = [
        str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", "")) for output in outputs
    ]
    assert not any(re.search(r"(^|[\s'\"])/(home|work|tmp|root|usr)/", text) for text in shown)
    assert "LLaVA-1.5-7B" in "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


RUN = [
    pytest.param(path, marks=pytest.mark.stress if path.stem.startswith("4") else (), id=path.stem)
    for path in NOTEBOOKS
]
"""The fourth takes minutes on a busy machine."""


@pytest.mark.parametrize("path", RUN)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    began = time.monotonic()
    client.execute()
    assert time.monotonic() - began < SECONDS
    assert [cell.execution_count for cell in _code(notebook)] == list(range(1, len(_code(notebook)) + 1))


def test_a_broken_cell_is_noticed(tmp_path):
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise ValueError('on purpose')")])
    client = NotebookClient(
        broken, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    with pytest.raises(CellExecutionError, match="on purpose"):
        client.execute()
