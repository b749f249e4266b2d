"""What Python files import, as their text says it: statements, strings and f-strings alike."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path


def modules_below(root: Path) -> dict[str, Path]:
    """Dotted names of the modules of a package folder, and their files."""
    named = {
        path: ".".join(path.relative_to(root.parent).with_suffix("").parts) for path in root.rglob("*.py")
    }
    return {name.removesuffix(".__init__"): path for path, name in sorted(named.items())}


def names_imported(tree: ast.AST, known: Mapping[str, object], own: str = "") -> set[str]:
    """Known modules that a file names, wherever it does: in functions, under TYPE_CHECKING, in strings, in f-strings.

    Args:
        tree: of the file.
        known: modules to look for, by dotted name.
        own: the file's own module, which `__name__` stands for in its f-strings; any other placeholder may be anything.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            longer = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= longer & known.keys() or {node.module}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            named = [own if "'__name__'" in ast.dump(p) else getattr(p, "value", None) for p in node.values]
            parts = (re.escape(p) if isinstance(p, str) else r"[\w.]+" for p in named)
            pattern = re.compile("".join(parts))
            found |= {name for name in known if isinstance(named[0], str) and pattern.fullmatch(name)}
    return found & known.keys()


def import_graph(root: Path) -> dict[str, set[str]]:
    """Module → the modules it names, with the packages that Python opens on the way to them.

    A module's own packages are left out, and so is the root, which names everything and opens nothing.
    """
    known = modules_below(root)
    graph = {}
    for name, path in known.items():
        reached: set[str] = set()
        for other in names_imported(ast.parse(path.read_text(encoding="utf-8")), known, name):
            parts = other.split(".")
            reached |= {".".join(parts[: i + 1]) for i in range(len(parts))}
        graph[name] = {o for o in reached if o != name and not f"{name}.".startswith(f"{o}.")} - {root.name}
    return graph | {root.name: set()}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach one another: the strongly connected components of more than one node."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        pending = list(graph[start])
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                pending += graph[node]
        return seen

    reach = {node: reached(node) for node in graph}
    groups = {frozenset(o for o in reach[n] if n in reach[o]) for n in graph if n in reach[n]}
    return sorted(sorted(group) for group in groups)


def calls(tree: ast.AST) -> set[str]:
    """Last names of everything a file calls: `np.percentile(x)` and `percentile(x)` are both `percentile`."""
    called = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {
        f.attr if isinstance(f, ast.Attribute) else f.id
        for f in called
        if isinstance(f, ast.Attribute | ast.Name)
    }
