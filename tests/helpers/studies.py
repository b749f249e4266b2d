"""Analyses run small on the tiny model, refused on one line, and their figures drawn from what they wrote."""

import subprocess
import sys
from pathlib import Path

from helpers.tiny import tiny_llava

ROOT = Path(__file__).resolve().parents[2]
DRAW = """
import importlib, sys
sys.path.insert(0, "figures")
stem, results, out = sys.argv[1:]
code = importlib.import_module(stem).main(["--results", results, "--out", out])
print(code, "torch" in sys.modules, "rmuse_interp" in sys.modules)
"""


def words(data, out, **settings):
    """The words of a command line; ``fit_limit=6`` stands for ``--fit-limit 6``."""
    given = {"model": tiny_llava(), "data": data, "out": out, **settings}
    return [str(word) for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]


def refused(script, argv, out, capsys):
    """The one line that says what is wrong with a command line: exit code 2, and nothing is written."""
    capsys.readouterr()
    assert script.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not out.exists() or not list(out.iterdir())
    return line


def drawn(script, results, out, *stems):
    """Captions of the figures that a script draws, in a process that loads neither torch nor the package."""
    argv = [sys.executable, "-c", DRAW, script, str(results), str(out)]
    found = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.endswith("0 False False\n"), found.stderr
    assert found.stderr == ""
    for stem in stems:
        assert (out / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
        assert (out / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    return [" ".join((out / f"{stem}.txt").read_text().split()) for stem in stems]
