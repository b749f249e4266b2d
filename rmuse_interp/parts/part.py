"""`Part`: a frozen, tensor-holding piece of an expression, and its generic record.

A plan is a tree of parts (edits hold operators, operators hold subspaces, gates and angles). Each part obeys
one convention, so that saving and loading need no code of their own: every keyword of ``__init__`` is one of

* a tensor, kept as a buffer of the same name (`Part.hold`); optional ones may be ``None``;
* a `Part`, kept as a child of the same name;
* a list, tuple or dict of parts, kept under the same name (`Part.hold_parts`);
* a plain JSON value, kept as an attribute of the same name; or a dataclass of such values, which ``__init__`` takes
  as a mapping too.
"""

import importlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from itertools import zip_longest
from typing import Any, ClassVar, Final, TypeVar

import torch
from torch import Tensor, nn

from rmuse_interp import RMuseError

PartT = TypeVar("PartT", bound="Part")

Record = dict[str, Any]
"""A part as plain JSON: ``{"class", "settings", "parts"}``."""

_OURS: Final[dict[str, type["Part"]]] = {}
"""Record name → part class of this package; record names are public and independent of files."""


class Part(nn.Module):
    """A frozen piece of an expression: buffers in float32 (or float64), plain settings, child parts; no parameters.

    Buffers keep their precision: `.to(torch.bfloat16)` or `.half()` of a host model moves them to its device
    and leaves them in float32 or float64, for the geometry is done there and only results are cast to the state's dtype.
    """

    _public: ClassVar[str] = "parts"
    """The public module used in record names, below `rmuse_interp`."""
    _phrase: ClassVar[str] = ""

    def __init_subclass__(cls, **settings: object) -> None:
        super().__init_subclass__(**settings)
        if _ours(cls.__module__) and not cls.__name__.startswith("_"):
            twin = _OURS.setdefault(record_name(cls), cls)
            if (twin.__module__, twin.__qualname__) != (cls.__module__, cls.__qualname__):
                raise TypeError(f"{twin} and {cls} would both be {record_name(cls)} in records")
            _OURS[record_name(cls)] = cls

    def hold(self, *, as_given: bool = False, **tensors: Tensor | None) -> None:
        """Store each tensor as a buffer of that name: a detached copy in float32, or int64 for integers.

        Args:
            as_given: keep float64 as float64, for tensors that are the caller's own and not a fit's.
            tensors: name → tensor, or None.

        Raises:
            RMuseError: a value is NaN or infinite: states would be steered to nowhere, or not at all.
        """
        for name, tensor in tensors.items():
            if tensor is None:
                self.register_buffer(name, None)
                continue
            if not bool(torch.isfinite(tensor).all()):
                raise RMuseError(
                    f"finite values were required of {type(self).__name__}'s {name}, got NaN or infinity: make it from "
                    "finite states"
                )
            kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
            kind = tensor.dtype if as_given and tensor.dtype == torch.float64 else kind
            kind = torch.int64 if kind in (torch.int8, torch.int16, torch.int32, torch.uint8) else kind
            self.register_buffer(name, tensor.detach().to(kind, copy=True).contiguous())

    def hold_parts(
        self, name: str, parts: Mapping[str, "Part"] | Mapping[int, "Part"] | Sequence["Part"]
    ) -> None:
        """Keep a list of parts as `nn.ModuleList`, a dict as `nn.ModuleDict` with keys as strings.

        Annotate the attribute by what it is used as, ``Sequence[Kind]`` or ``Mapping[str, Kind]``.
        """
        if isinstance(parts, Mapping):
            setattr(self, name, nn.ModuleDict({str(key): part for key, part in parts.items()}))
        else:
            setattr(self, name, nn.ModuleList(parts))

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that rebuild this part, by the convention of this module.

        Raises:
            TypeError: a part that breaks the convention (a fault of its class, not of the caller).
        """
        found: dict[str, Any] = {}
        for name in _keywords(type(self)):
            if not hasattr(self, name):
                raise TypeError(f"{type(self).__name__} does not keep its argument {name!r} under that name")
            held = getattr(self, name)
            if isinstance(held, nn.ModuleList):
                held = list(held)
            elif isinstance(held, nn.ModuleDict):
                held = {int(key) if key.isdecimal() else key: child for key, child in held.items()}
            found[name] = held
        return found

    def changed(self: PartT, **settings: object) -> PartT:
        """The same part with some arguments replaced; built anew, so that every check runs again.

        Raises:
            RMuseError: a name that is not one of its arguments, or a value that the part refuses.
        """
        own = self.arguments()
        unknown = sorted(set(settings) - set(own))
        if unknown:
            raise RMuseError(
                f"{type(self).__name__} has no {', '.join(unknown)} to change, only {', '.join(own)}"
            )
        return type(self)(**own | settings)

    def lacking(self: PartT, child: "Part") -> PartT | None:
        """The same part without a required child: itself if that is impossible, None if nothing would be left.

        Parts that hold several children of a kind override this to remove what belongs to the child.
        """
        return self

    def require_storable(self) -> None:
        """Raise unless the part can be saved; only parts that hold a plain function cannot.

        Raises:
            RMuseError: the part cannot be saved; the message says why.
        """

    def describe(self) -> str:
        """The phrase shown for this part by ``print(plan)``."""
        return self._phrase or type(self).__name__

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Parameter):
            raise TypeError(
                f"{type(self).__name__}.{name}: a part is frozen and holds buffers, not parameters"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise RMuseError(f"a finite {name} was required of {type(self).__name__}, got {value}")
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Part":
        for child in self.children() if recurse else ():
            child._apply(fn)
        for name, buffer in self._buffers.items():
            if buffer is None:
                continue
            moved = fn(buffer)
            keeps_kind = moved.dtype == buffer.dtype or not buffer.is_floating_point()
            self._buffers[name] = moved if keeps_kind else buffer.to(moved.device)
        return self


def to_record(part: Part) -> tuple[Record, dict[str, Tensor]]:
    """The part as a JSON tree ``{"class", "settings", "parts"}`` and its tensors, keyed by dotted path.

    Returns:
        The tree, which `json.dumps` accepts, and contiguous CPU tensors, which safetensors accepts.

    Raises:
        TypeError: a part that breaks the convention of this module (a fault of ours, not of the caller).
    """
    tensors: dict[str, Tensor] = {}
    return _tree(part, "", tensors), tensors


def _tree(part: Part, path: str, tensors: dict[str, Tensor]) -> Record:
    settings: Record = {}
    parts: Record = {}
    part.require_storable()
    for name in part.arguments():
        value = getattr(part, name)
        if isinstance(value, Tensor):
            tensors[path + name] = value.detach().cpu().contiguous()
        elif isinstance(value, Part):
            parts[name] = _tree(value, f"{path}{name}.", tensors)
        elif isinstance(value, nn.ModuleList):
            parts[name] = [
                _tree(_part(child), f"{path}{name}.{i}.", tensors) for i, child in enumerate(value)
            ]
        elif isinstance(value, nn.ModuleDict):
            children = {
                key: _tree(_part(child), f"{path}{name}.{key}.", tensors) for key, child in value.items()
            }
            parts[name] = {"by_key": children}
        elif name in part._buffers:
            continue  # an optional tensor that is absent
        else:
            value = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
            json.dumps(value)  # a TypeError here names the value that is not plain JSON
            settings[name] = value
    return {"class": record_name(type(part)), "settings": settings, "parts": parts}


def _part(module: nn.Module) -> Part:
    if not isinstance(module, Part):
        raise TypeError(f"a part holds parts only, got {type(module).__name__}")
    return module


def from_record(tree: object, tensors: Mapping[str, Tensor], allow: str | Sequence[str] = ()) -> Part:
    """The part that `to_record` wrote.

    Dict keys that are decimal numbers come back as `int`. Tensors without a place in the tree are ignored.

    Args:
        tree: the JSON tree.
        tensors: its tensors.
        allow: modules, by their exact names, whose parts may be loaded beside those of this package. They get
            imported: name only modules that you trust.

    Raises:
        RMuseError: a tree of another shape, a class that is unknown or not allowed, or arguments that class
            does not take.
    """
    try:
        return _rebuild(tree, "", tensors, (allow,) if isinstance(allow, str) else tuple(allow))
    except RMuseError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        said = " ".join(f"{error}".split())
        raise RMuseError(
            f"the record of a part was required, got one that gives {type(error).__name__} ({said:.160}): save it again"
        ) from error


def _rebuild(tree: object, path: str, tensors: Mapping[str, Tensor], allow: tuple[str, ...]) -> Part:
    if not isinstance(tree, Mapping) or not {"class", "settings", "parts"} <= set(tree):
        where = path.rstrip(".") or "the root"
        raise RMuseError(f"a part's record needs 'class', 'settings' and 'parts', not so at {where}")
    kind = _find(str(tree["class"]), allow)
    if not isinstance(tree["settings"], Mapping) or not isinstance(tree["parts"], Mapping):
        raise RMuseError(
            f"settings and parts by name were required of {kind.__name__}, its record has others"
        )
    arguments: dict[str, Any] = dict(tree["settings"])
    for name, child in tree["parts"].items():
        here = f"{path}{name}."
        if isinstance(child, dict) and "by_key" in child:
            arguments[name] = {
                int(key) if key.isdecimal() else key: _rebuild(value, f"{here}{key}.", tensors, allow)
                for key, value in child["by_key"].items()
            }
        elif isinstance(child, dict):
            arguments[name] = _rebuild(child, here, tensors, allow)
        else:
            arguments[name] = [
                _rebuild(value, f"{here}{i}.", tensors, allow) for i, value in enumerate(child)
            ]
    own = _keywords(kind)
    for key, tensor in tensors.items():
        name = key.removeprefix(path)
        if key.startswith(path) and name in own:
            arguments[name] = tensor
    unknown = sorted(set(arguments) - set(own))
    missing = sorted({name for name, required in own.items() if required} - set(arguments))
    if unknown or missing:
        raise RMuseError(
            f"{kind.__name__} takes {', '.join(own)}; the record adds {unknown} and lacks {missing}: "
            "save the bundle again with this version"
        )
    return kind(**arguments)


def _keywords(kind: type[Part]) -> dict[str, bool]:
    """Name of each argument of ``__init__`` → whether it is required."""
    if kind.__init__ is nn.Module.__init__:
        return {}
    return {
        name: parameter.default is inspect.Parameter.empty
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def record_name(kind: type[Part]) -> str:
    """The name of a part class in records: ``"module:Class"``, with the public module for parts of this package.

    Files may move behind such a name: it does not change with them.
    """
    if _ours(kind.__module__):
        return f"rmuse_interp.{kind._public}:{kind.__name__}"
    return f"{kind.__module__}:{kind.__qualname__}"


def _ours(module: str) -> bool:
    return module.partition(".")[0] == "rmuse_interp"


def _find(name: str, allow: tuple[str, ...]) -> type[Part]:
    if name in _OURS:
        return _OURS[name]
    module, _, path = name.partition(":")
    if _ours(module) or not path:
        raise RMuseError(
            f"a part out of {', '.join(sorted(_OURS))} was required, the record names {name!r}: "
            "load it with the version that wrote it"
        )
    if module not in allow:
        raise RMuseError(
            f"only parts of rmuse_interp are loaded unasked, the record names {name!r}: if you trust that module, "
            f"allow it by name, as in Plan.load(folder, model, allow=({module!r},))"
        )
    try:
        found: object = importlib.import_module(module)
        for step in path.split("."):
            found = getattr(found, step)
    except (ImportError, AttributeError) as error:
        raise RMuseError(f"the record names {name!r}, which cannot be imported ({error})") from error
    if not (isinstance(found, type) and issubclass(found, Part) and record_name(found) == name):
        raise RMuseError(f"a part that {module} itself defines was required, the record names {name!r}")
    return found


def same(one: object, other: object) -> bool:
    """Whether two parts, or two of their arguments, are the same expression with the same tensors."""
    if one is other:
        return True
    if isinstance(one, Part) and isinstance(other, Part):
        return type(one) is type(other) and same(one.arguments(), other.arguments())
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return not isinstance(one, Part | Tensor) and not isinstance(other, Part | Tensor) and bool(one == other)


def all_same(these: Iterable[object], those: Iterable[object]) -> bool:
    """Whether two sequences of parts are alike, part by part."""
    pairs = list(zip_longest(these, those))
    return all(one is not None and other is not None and same(one, other) for one, other in pairs)
