"""Address the parts of an expression by name or type: list, remove and replace them."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from rmuse_interp import RMuseError
from rmuse_interp.parts.part import Part, PartT


@dataclass(frozen=True, eq=False)
class Place:
    """Where a part stands in a list of expressions.

    Attributes:
        index: index of the expression in the list.
        path: names from the expression's root to the part, empty for the root itself.
        part: the part at that place.
        required: whether the part cannot be removed from the expression.
    """

    index: int
    path: tuple[str, ...]
    part: Part
    required: bool


def addresses(parts: Sequence[Part]) -> dict[str, Place]:
    """Every part inside a list of expressions by its full address, such as ``"pictures.operator.rrs"``.

    An expression goes by its attribute `name`, or by `edit0`, `edit1`, … if it has none.
    """
    found: dict[str, Place] = {}
    for i, part in enumerate(parts):
        label = getattr(part, "name", None) or f"edit{i}"
        found[label] = Place(i, (), part, False)
        for path, owner, child in _inside(part):
            found[".".join([label, *path])] = Place(i, path, child, not _optional(owner, path[-1]))
    return found


def without(parts: Sequence[PartT], what: str | type[Part]) -> list[PartT]:
    """Remove the part at an address, every removable match of a pattern, or every part of a type.

    Args:
        parts: the expressions, such as a plan's edits.
        what: a name (`gate`), a full address (`pictures.gate`), a pattern with ``*``, or a class. Patterns and classes
            skip required parts; a class removes operators together with their layers, and with their edit if it has
            no other operator.

    Raises:
        RMuseError: a name that is unknown or ambiguous (the message lists the names) or that of a required part; a
            pattern or class without a removable match.
    """
    if isinstance(what, str):
        return replaced(parts, {what: None})
    if not isinstance(what, type) or not issubclass(what, nn.Module):
        raise RMuseError(
            f"a name, a pattern or a class of parts was required, got {what!r}: plan.addresses lists them"
        )
    left = [_ablated(part, what) for part in parts]
    kept = [part for part in left if part is not None]
    if len(kept) == len(parts) and all(one is other for one, other in zip(kept, parts, strict=True)):
        kinds = sorted({type(place.part).__name__ for place in addresses(parts).values()})
        raise RMuseError(
            f"a {what.__name__} that can be removed was required, there is none among: {', '.join(kinds)}"
        )
    return kept


def replaced(parts: Sequence[PartT], changes: Mapping[str, object]) -> list[PartT]:
    """Replace the part at each address or pattern by the given value; None removes it (see `without`).

    Raises:
        RMuseError: see `without`; also for a value that is not valid at that place.
    """
    edited: list[PartT] = list(parts)
    for name, value in changes.items():
        places = _match(name, addresses(edited), removing=value is None)
        for i, path in sorted({(place.index, place.path) for place in places}, reverse=True):
            if path:
                edited[i] = _rebuilt(edited[i], path, value)
            elif value is None:
                del edited[i]
            elif isinstance(value, type(edited[i])):
                edited[i] = value
            else:
                raise RMuseError(
                    f"another {type(edited[i]).__name__} was required at {name!r}, got {type(value).__name__}"
                )
    return edited


def _steps(part: Part) -> list[tuple[str, Part]]:
    """The named children of a part, with lists and dicts of parts flattened; a single operator is called `operator`."""
    found: list[tuple[str, Part]] = []
    for name, child in part.named_children():
        if name.startswith("_"):
            continue  # derived from the other arguments, not part of the record
        if isinstance(child, Part):
            found.append((name, child))
        elif isinstance(child, nn.ModuleList):
            single = name.removesuffix("s")
            names = [single] if len(child) == 1 else [f"{single}{i}" for i in range(len(child))]
            found += [(key, one) for key, one in zip(names, child, strict=True) if isinstance(one, Part)]
        elif isinstance(child, nn.ModuleDict):
            found += [(f"{name}[{key}]", one) for key, one in child.items() if isinstance(one, Part)]
    return found


def _inside(part: Part) -> list[tuple[tuple[str, ...], Part, Part]]:
    """Path, owner and part of everything inside a part."""
    found: list[tuple[tuple[str, ...], Part, Part]] = []
    for name, child in _steps(part):
        found.append(((name,), part, child))
        found += [((name, *path), owner, deeper) for path, owner, deeper in _inside(child)]
    return found


def _optional(owner: Part, step: str) -> bool:
    """Whether a child may be removed from its owner: its argument defaults to None."""
    known = inspect.signature(type(owner).__init__).parameters
    return step in known and known[step].default is None


def _match(name: str, known: Mapping[str, Place], removing: bool) -> list[Place]:
    if "*" in name:
        chosen = {key: place for key, place in known.items() if fnmatchcase(key, name)}
        if removing and chosen:
            required = next(iter(chosen))
            chosen = {key: place for key, place in chosen.items() if not place.required}
            if not chosen:
                raise RMuseError(f"{required!r} is required where it stands, as is all that {name!r} matches")
    elif name in known:
        return [known[name]]
    else:
        chosen = {key: place for key, place in known.items() if key.endswith(f".{name}")}
        # An edit's own gate takes precedence over gates nested in it.
        depth = min((len(place.path) for place in chosen.values()), default=0)
        chosen = {key: place for key, place in chosen.items() if len(place.path) == depth}
    if not chosen or (len({id(place.part) for place in chosen.values()}) > 1 and "*" not in name):
        problem = "is ambiguous" if chosen else "names nothing here"
        listed = ", ".join(sorted(chosen or known))
        raise RMuseError(f"one part was to be addressed, {name!r} {problem}; choose one of: {listed}")
    return list(chosen.values())


def _rebuilt(part: PartT, path: tuple[str, ...], value: object) -> PartT:
    """A copy of `part` with `value` at `path`, built anew so that every check runs again."""
    step, rest = path[0], path[1:]
    child = dict(_steps(part))[step]
    if value is None and not rest and not _optional(part, step):
        raise RMuseError(f"{step!r} is required where it stands: replace it, or remove the whole edit")
    new = _rebuilt(child, rest, value) if rest else value
    try:
        return _swapped(part, child, new)
    except (TypeError, AttributeError) as error:
        problem = f"{type(part).__name__} cannot stand with {step!r} = {type(new).__name__}"
        raise RMuseError(f"{problem}: {error}") from error


def _swapped(part: PartT, old: Part, new: object) -> PartT:
    """The part with its child `old` replaced by `new`."""
    changes: dict[str, object] = {}
    for name, held in part.arguments().items():
        items = held.values() if isinstance(held, dict) else held if isinstance(held, list) else [held]
        if all(item is not old for item in items):
            continue
        swapped = [new if item is old else item for item in items]
        if isinstance(held, dict):
            changes[name] = dict(zip(held, swapped, strict=True))
        else:
            changes[name] = swapped if isinstance(held, list) else new
    return part.changed(**changes)


def _ablated(part: PartT, kind: type[Part]) -> PartT | None:
    """The part without children of a type; None if it is of that type itself, or nothing is left of it."""
    if isinstance(part, kind):
        return None
    left = part
    for step, child in _steps(part):
        new = _ablated(child, kind)
        if new is child:
            continue
        if new is not None:
            left = _swapped(left, child, new)
        elif _optional(part, step):
            left = left.changed(**{step: None})
        else:
            rest = left.lacking(child)
            if rest is None:
                return None
            left = rest
    return left
