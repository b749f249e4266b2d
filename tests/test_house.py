"""The house holds: what may import what, how large a file may be, and that one idea is built once."""

import ast
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.house import calls, circles, import_graph, modules_below, names_imported

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rmuse_interp"
SOURCES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}
(FLOORS,) = (
    [frozenset(re.split(r"\s*[|:]\s*", layer)) for layer in contract["layers"]]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    if contract["type"] == "layers"
)
"""The rooms of every floor of the import contract, highest first."""
LONGEST_FILE = 400
LONGEST_ANALYSIS = 120


def lines_of(*folders: str) -> dict[str, int]:
    """File below the repository → its number of lines."""
    files = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return {p.relative_to(ROOT).as_posix(): len(p.read_text(encoding="utf-8").splitlines()) for p in files}


def callers(*names: str) -> set[str]:
    """Files of the package in which something of one of these names is called."""
    return {file for file, tree in TREES.items() if calls(tree) & set(names)}


# Imports.


@pytest.fixture
def sample(tmp_path):
    """A package that is one circle, hidden in another way on each of its sides, and a module that stands apart."""
    files = {
        "__init__": "",
        "a": "def late():\n    from house import b\n",
        "b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.c\n",
        "c": "import importlib\nimportlib.import_module('house.room.d')\n",
        "room/__init__": "from house.room.d import x\n",
        "room/d": "import importlib\nname = 'a'\nx = importlib.import_module(f'house.{name}')\n",
        "apart": "from house import a\nsaid = 'no house.b, and nothing like house.c.'\n",
    }
    for name, text in files.items():
        path = tmp_path / "house" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "house"


def test_circles_are_found_however_they_are_hidden(sample):
    graph = import_graph(sample)
    assert graph["house.c"] == {
        "house.room",
        "house.room.d",
    }  # on the way to a module, Python opens its package
    assert graph["house.apart"] == {"house.a"}
    (circle,) = circles(graph)
    assert {"house.a", "house.b", "house.c", "house.room.d"} < set(circle)
    (sample / "c.py").write_text("")
    assert not any({"house.a", "house.b"} <= set(circle) for circle in circles(import_graph(sample)))
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == [["a", "b"]]


def test_f_strings_name_what_they_can_stand_for():
    known = dict.fromkeys(("house.room.a", "house.room.b", "house.c"))
    assert names_imported(ast.parse("f'house.room.{x}'"), known) == {"house.room.a", "house.room.b"}
    assert names_imported(ast.parse("f'{__name__}.{x}'"), known, "house.room") == {
        "house.room.a",
        "house.room.b",
    }
    assert names_imported(ast.parse("f'{x}.{y}'"), known) == set()


def test_no_module_reaches_itself():
    graph = import_graph(PACKAGE)
    assert len(graph) > 100
    assert circles(graph) == []


def test_no_import_of_ours_hides_in_a_string():
    """Front doors (`__init__.py`) open their own room's files by name, on first use; nothing else does."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and calls(ast.Expr(node)) & {"import_module", "__import__"}
                and node.args
            ):
                asked = ast.unparse(node.args[0])
                assert "rmuse_interp" not in asked, name
                assert "__name__" not in asked or name.endswith("__init__.py"), name


# Rooms.


def test_there_are_few_rooms_on_few_floors():
    rooms = [room for floor in FLOORS for room in floor]
    assert len(rooms) == len(set(rooms)) <= 16
    assert len(FLOORS) <= 10
    there = {name.split(".")[1] for name in modules_below(PACKAGE) if "." in name} - {"__main__"}
    assert set(rooms) == there


def test_the_readme_draws_the_house_as_the_contract_has_it():
    """The diagram is one chain of floors, highest first; the rooms of a floor are joined by an ampersand."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (diagram,) = re.findall(r"^```mermaid\nflowchart TB\n(.*?)^```", text, flags=re.M | re.S)
    lines = [
        [frozenset(floor.split(" & ")) for floor in line.strip().split(" --> ")]
        for line in diagram.splitlines()
    ]
    assert all(above[-1] == below[0] for above, below in pairwise(lines))
    assert [lines[0][0], *(floor for line in lines for floor in line[1:])] == FLOORS


# Sizes.


def test_every_file_can_be_held_in_mind():
    lines = lines_of("rmuse_interp", "analyses", "figures", "tests")
    assert {name: n for name, n in lines.items() if n > LONGEST_FILE} == {}


def test_an_analysis_is_its_options_and_one_call():
    assert {name: n for name, n in lines_of("analyses").items() if n > LONGEST_ANALYSIS} == {}


def test_types_are_told_and_formatting_is_left_to_the_formatter():
    """Lines with `Any`, with `type: ignore` and with `fmt: skip`: few, where a library says no more."""
    lines = [line for path in SOURCES.values() for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum(bool(re.search(r"\bAny\b", line)) for line in lines) <= 120
    assert sum("type: ignore" in line for line in lines) <= 10
    assert sum("fmt: skip" in line for line in lines) <= 40


# One idea, one place.


def test_resamples_are_drawn_in_one_place():
    """Percentiles of resamples, and with them every bootstrap interval, belong to `maths.statistics`."""
    assert callers("percentile", "nanpercentile") == {"maths/statistics.py"}


def test_a_part_is_changed_in_one_way():
    """Nothing but `Part.changed` builds an object anew from its own arguments."""
    rebuilding = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("type(self)", "self.__class__")
        and any(keyword.arg is None for keyword in node.keywords)
    }
    assert rebuilding <= {"parts/part.py"}


def test_files_are_written_whole_and_results_kept_in_one_place():
    """Drafts, renames and digests of what a result depends on belong to `data.store`; nothing else resumes by itself."""
    assert callers("fsync", "mkstemp", "mkdtemp", "NamedTemporaryFile", "save_file") == {"data/store.py"}
    replacing = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (node.attr == "rename" or ast.unparse(node) in ("os.replace", "os.rename", "shutil.move"))
    }
    assert replacing == {"data/store.py"}
    appending = {name for name, tree in TREES.items() if "'a'" in modes_of(tree)}
    assert appending <= {"data/store.py", "organism/train.py"}  # the organism's log of losses


def modes_of(tree: ast.AST) -> set[str]:
    """The modes that files are opened in, as they stand in the code."""
    found = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and "open" in ast.unparse(node.func)
    ]
    return {ast.unparse(one) for node in found for one in [*node.args, *(k.value for k in node.keywords)]}


def test_batches_of_like_length_are_formed_in_one_place():
    """Whoever asks a model many questions takes `models.batches.alike`; nothing else slices rows by a batch's size."""
    slicing = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "range"
        and len(node.args) == 3
        and ast.unparse(node.args[2]).endswith(("size", "_rows"))
    }
    # Training shuffles its rows; quadrature has nodes and no rows of questions.
    assert slicing == {"models/batches.py", "baselines/batches.py", "diagnostics/gradients.py"}
    assert len(callers("alike")) >= 5


def test_outputs_of_modules_are_read_in_one_place():
    """Where a module's outputs are read or changed, `models.site` places the hook; two files compare with plain ones."""
    plain = {"lens/check.py", "studies/families/places.py"}
    assert callers("register_forward_hook") - plain == {"models/site.py"}
