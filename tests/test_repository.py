"""What holds for the repository as a whole: sizes, imports, the command, what the wheel carries."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rmuse_interp"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = {"nnsight", "transformers", "transformer_lens", "matplotlib", "sklearn", "pandas", "ot"}


def imported_modules(path: Path, *, at_import: bool = False) -> set[str]:
    """Modules named by the imports of a file; with `at_import`, only those that run when it is imported."""
    modules: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
    return modules


def top(modules: set[str]) -> set[str]:
    """The distributions' import names: the part before the first dot."""
    return {name.partition(".")[0] for name in modules}


def relative(path: Path) -> str:
    """A path as shown in a failing test's name."""
    return path.relative_to(ROOT).as_posix()


def test_imports_are_read_as_they_run(tmp_path: Path) -> None:
    """The reader below tells imports at load time from those inside functions and type-checking blocks."""
    source = tmp_path / "sample.py"
    source.write_text(
        "from typing import TYPE_CHECKING\n"
        "import torch.nn as nn\n"
        "if TYPE_CHECKING:\n    import nnsight\n"
        "try:\n    from ot import emd\nexcept ImportError:\n    emd = None\n"
        "def late():\n    import transformers\n"
    )
    assert top(imported_modules(source)) == {"typing", "torch", "nnsight", "ot", "transformers"}
    assert top(imported_modules(source, at_import=True)) == {"typing", "torch", "ot"}


def test_only_one_file_knows_nnsight() -> None:
    """nnsight is imported in lens/lens.py and nowhere else, not even inside a function."""
    knowing = {relative(path) for path in SOURCES if "nnsight" in top(imported_modules(path))}
    assert knowing <= {"rmuse_interp/lens/lens.py"}


def test_annotated_files_keep_their_annotations() -> None:
    """No `from __future__ import annotations`: jaxtyping reads annotations as objects."""
    postponed = [relative(path) for path in SOURCES if "__future__.annotations" in imported_modules(path)]
    assert postponed == []


@pytest.mark.parametrize("room", ["maths", "data", "evaluate"])
def test_rooms_that_see_no_model_load_no_model_library(room: str) -> None:
    """Maths, data and evaluation never import transformers, nnsight or transformer_lens."""
    for path in sorted((PACKAGE / room).rglob("*.py")):
        libraries = top(imported_modules(path)) & {"transformers", "nnsight", "transformer_lens"}
        assert libraries == set(), relative(path)


def test_figures_read_results_only() -> None:
    """A figure needs neither torch nor the package's models: it draws what results/ holds."""
    for path in sorted((ROOT / "figures").glob("*.py")):
        assert top(imported_modules(path)) & {"torch", "transformers", "nnsight"} == set(), relative(path)


def fresh_interpreter(code: str) -> str:
    """What `code` prints in a new Python process, started in the repository."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_transformers_is_loaded_by_rooms_that_need_a_model_only() -> None:
    """Elsewhere the import stands inside the function that needs it, so that commands start fast."""
    loading = {
        relative(path) for path in SOURCES if "transformers" in top(imported_modules(path, at_import=True))
    }
    assert {path.split("/")[1] for path in loading} <= {"models", "lens", "organism"}


def test_the_command_line_starts_light() -> None:
    """`rmuse --help` waits for none of the heavy libraries (the package's own import: tests/test_import.py)."""
    loaded = fresh_interpreter(
        "import sys, rmuse_interp.cli; print(*{m.partition('.')[0] for m in sys.modules})"
    )
    assert "typer" in loaded.split()
    assert set(loaded.split()) & HEAVY == set()


def test_importing_the_package_is_quick() -> None:
    """`import rmuse_interp` takes at most 1.35 times the processor time of `import torch`."""
    code = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"
    seconds = {
        name: min(float(fresh_interpreter(code.format(name))) for _ in range(2))
        for name in ("rmuse_interp", "torch")
    }
    assert seconds["rmuse_interp"] <= 1.35 * seconds["torch"]


def test_public_names_are_to_be_had() -> None:
    """Every name in `rmuse_interp.__all__` resolves (they load on first use)."""
    import rmuse_interp

    assert rmuse_interp.__all__
    for name in rmuse_interp.__all__:
        assert getattr(rmuse_interp, name) is not None


def test_the_console_command_is_importable() -> None:
    """The entry point declared for `rmuse` names something callable."""
    target = PROJECT["project"]["scripts"]["rmuse"]
    entry = importlib.metadata.EntryPoint("rmuse", target, "console_scripts")
    assert callable(entry.load())


def test_one_version_everywhere() -> None:
    """pyproject.toml, CITATION.cff and `rmuse_interp.__version__` agree."""
    import rmuse_interp

    version = PROJECT["project"]["version"]
    assert rmuse_interp.__version__ == version
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)


def test_every_dependency_is_pinned_in_constraints() -> None:
    """constraints.txt holds an exact version of every direct dependency, and no path or local build."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines), lines
    pinned = {normalised(line.partition("==")[0]) for line in lines}
    extras = PROJECT["project"]["optional-dependencies"]
    names = declared(
        *PROJECT["project"]["dependencies"], *(entry for extra in extras.values() for entry in extra)
    )
    assert names - pinned == {"rmuse-interp"}  # the extra of developers names the others


def test_what_is_imported_is_declared() -> None:
    """What loads with a file is a dependency; what a function imports when it is called may belong to an extra."""
    base, extras = PROJECT["project"]["dependencies"], PROJECT["project"]["optional-dependencies"]
    optional = [entry for name, extra in extras.items() if name != "dev" for entry in extra]
    for at_import, allowed in ((True, declared(*base)), (False, declared(*base, *optional))):
        imported = set().union(*(top(imported_modules(path, at_import=at_import)) for path in SOURCES))
        third_party = imported - set(sys.stdlib_module_names) - {"rmuse_interp"}
        assert {normalised(IMPORT_NAMES.get(name, name)) for name in third_party} - allowed == set()


NOT_IMPORTED = {
    "accelerate": "transformers spreads models over devices, memory and disk with it",
    "ipykernel": "nbclient runs the notebooks in its kernel",
    "gguf": "transformers reads GGUF files with it",
    "num2words": "transformers' processor of SmolVLM spells numbers with it",
}
"""Declared distributions that no file of ours imports → the library that needs them, and why."""


def test_what_is_declared_is_imported() -> None:
    """A dependency is used, or stands in `NOT_IMPORTED` with the library that needs it."""
    extras = PROJECT["project"]["optional-dependencies"]
    optional = [entry for name, extra in extras.items() if name != "dev" for entry in extra]
    package, everywhere = (
        {normalised(IMPORT_NAMES.get(name, name)) for path in paths for name in top(imported_modules(path))}
        for paths in (SOURCES, [*SOURCES, *(ROOT / "tests").rglob("*.py")])
    )
    unused = declared(*PROJECT["project"]["dependencies"]) - package
    assert unused | (declared(*optional) - everywhere) == set(NOT_IMPORTED)


IMPORT_NAMES = {"ot": "pot", "PIL": "pillow", "sklearn": "scikit-learn"}


def declared(*entries: str) -> set[str]:
    """The distributions that requirements name."""
    return {normalised(re.match(r"[A-Za-z0-9._-]+", entry)[0]) for entry in entries}


def normalised(name: str) -> str:
    """A distribution's name in one spelling (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_one_bootstrap_draws_for_every_interval() -> None:
    """Nobody else draws with replacement, nor reads 2.5 % and 97.5 % off its own draws."""
    by_hand = re.compile(r"\.integers\(|\.multinomial\([^)]*size|percentile\(|bincount\(rng")
    found = {relative(path) for path in SOURCES if by_hand.search(path.read_text())}
    assert found == {"rmuse_interp/maths/statistics.py"}


def test_git_keeps_what_the_wheel_must_carry() -> None:
    """Weights, seeds and templates of the organism are not ignored; results and checkpoints are."""
    kept = [
        f"rmuse_interp/organism/weights/{name}" for name in ("model.safetensors", "config.json", "chat.jinja")
    ]
    ignored = [".mypy_cache/x", "results/demo/scores.json", ".organism/last/model.safetensors"]
    answer = subprocess.run(
        ["git", "check-ignore", "--no-index", *kept, *ignored], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.stdout.split() == ignored
