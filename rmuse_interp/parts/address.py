"""Parts of an expression, addressed by name: which there are, which a name means, an expression with one exchanged."""

import inspect
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from rmuse_interp import RMuseError
from rmuse_interp.parts.part import Part

Place = tuple[int, tuple[str, ...], Part]
"""Index of an edit, the path of one of its parts (empty: the edit itself), and the part there."""


def _steps(part: Part) -> list[tuple[str, Any]]:
    """The named children of a part, parts and lists of parts flattened; an only operator is called `operator`."""
    found: list[tuple[str, Any]] = []
    for name, child in part.named_children():
        if name.startswith("_"):
            continue  # derived from the others, not a part of the record
        if isinstance(child, Part):
            found.append((name, child))
        elif isinstance(child, nn.ModuleList):
            single = name.removesuffix("s")
            names = [single] if len(child) == 1 else [f"{single}{i}" for i in range(len(child))]
            found += list(zip(names, child, strict=True))
        elif isinstance(child, nn.ModuleDict):
            found += [(f"{name}[{key}]", grandchild) for key, grandchild in child.items()]
    return found


def inside(part: Part) -> list[tuple[tuple[str, ...], Part]]:
    found: list[tuple[tuple[str, ...], Part]] = []
    for name, child in _steps(part):
        found += [((name,), child), *(((name, *rest), deeper) for rest, deeper in inside(child))]
    return found


def match(name: str, addresses: Mapping[str, Place]) -> list[Place]:
    if "*" in name:
        chosen = {key: place for key, place in addresses.items() if fnmatchcase(key, name)}
    elif name in addresses:
        return [addresses[name]]
    else:
        chosen = {key: place for key, place in addresses.items() if key.endswith(f".{name}")}
        # A gate inside a gate stands behind the gate itself.
        depth = min((len(path) for _, path, _ in chosen.values()), default=0)
        chosen = {key: place for key, place in chosen.items() if len(place[1]) == depth}
    if not chosen or (len({id(part) for _, _, part in chosen.values()}) > 1 and "*" not in name):
        problem = "is ambiguous" if chosen else "names nothing here"
        listed = ", ".join(sorted(chosen or addresses))
        raise RMuseError(f"one part was to be addressed, {name!r} {problem}; choose one of: {listed}")
    return list(chosen.values())


def rebuilt(part: Part, path: tuple[str, ...], value: Any) -> Part:
    """A copy of `part` in which the part at `path` is `value`; built anew, so that every check runs again."""
    step, rest = path[0], path[1:]
    child = dict(_steps(part))[step]
    new = value if not rest else rebuilt(child, rest, value)
    arguments = arguments_of(part)
    for name, held in arguments.items():
        items = list(held.values()) if isinstance(held, dict) else held if isinstance(held, list) else [held]
        if all(item is not child for item in items):
            continue
        if new is None and inspect.signature(type(part).__init__).parameters[name].default is not None:
            raise RMuseError(f"{step!r} is required where it stands: replace it, or remove the whole edit")
        changed = [new if item is child else item for item in items]
        if isinstance(held, dict):
            arguments[name] = dict(zip(held, changed, strict=True))
        else:
            arguments[name] = changed if isinstance(held, list) else new
    try:
        return type(part)(**arguments)
    except (TypeError, AttributeError) as error:
        problem = f"{type(part).__name__} cannot stand with {step!r} = {type(new).__name__}"
        raise RMuseError(f"{problem}: {error}") from error


def arguments_of(part: Part) -> dict[str, Any]:
    """The keywords that build `part` again, by the convention of `rmuse_interp.parts.part`."""
    arguments: dict[str, Any] = {}
    for name in inspect.signature(type(part).__init__).parameters:
        if name == "self":
            continue
        held = getattr(part, name)
        if isinstance(held, nn.ModuleList):
            held = list(held)
        elif isinstance(held, nn.ModuleDict):
            held = {int(key) if key.isdecimal() else key: child for key, child in held.items()}
        arguments[name] = held
    return arguments
