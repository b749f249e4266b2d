"""Read single fields of a benchmark row, however they are nested; a fault says which field and why."""

import json
from collections.abc import Mapping
from typing import NamedTuple

from rmuse_interp.data.example import Kind, Modality
from rmuse_interp.data.rows import MISSING, Row, identifier
from rmuse_interp.data.words import folded, occurrences


class Question(NamedTuple):
    """One question of a row in the form common to all formats; each format's module converts its columns to it.

    `task` is the part of the example's id between the person and the modality, `place` is its position in the row, and
    `record` holds its fields under RMLLMU-Bench's names (``Question``, ``Ground_Truth`` or ``Options`` and
    ``Correct_Answer``, optionally ``Reasoning``, ``Forget_Attributes``, ``Direct_Question``, ``Direct_Answer``).
    """

    task: str
    kind: Kind
    place: str
    modality: Modality
    record: Row


class Fault(Exception):
    """A field that breaks the format; the reader adds file and row."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field, self.reason = field, reason


def biography(value: object) -> dict[str, str]:
    """Facts of an MLLMU-Bench biography (a JSON string whose keys vary), with nested facts flattened.

    >>> biography('{"Residence": "Tokyo", "Job": {"question": "What does she do?", "answer": "nurse"}}')
    {'Residence': 'Tokyo', 'Job': 'nurse'}
    """
    try:
        plain = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return {}  # free text has no facts to extract, and format 5 brings its own
    facts: dict[str, str] = {}

    def walk(key: str, node: object) -> None:
        if isinstance(node, Mapping):
            if "answer" in node:
                walk(key, node["answer"])
            else:
                for inner, child in node.items():
                    walk(f"{key}.{inner}" if key else str(inner), child)
        elif isinstance(node, list | tuple):
            for i, child in enumerate(node):
                walk(f"{key}.{i}", child)
        elif node is not None and str(node).strip() not in MISSING:
            facts[key] = str(node).strip()

    if isinstance(plain, Mapping):
        walk("", plain)
    return facts


def states(text: str, value: str) -> bool:
    """Whether a text contains a value as whole words, whatever its case, script or encoding of accents.

    Words are those of `data.words`.

    >>> states("She works in Rome.", "rome"), states("A romantic.", "Roma"), states("彼女は東京に住む。", "東京")
    (True, False, True)
    """
    return occurrences(folded(text), folded(value).strip()) > 0


def plain(value: object, at: str) -> object:
    """Turn numpy arrays into lists, and JSON strings that hold containers into those containers."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Fault(at, f"required JSON, got {value[:60]!r} ({error})") from None
    return value


def as_list(value: object, at: str) -> list[object]:
    """Read a list; null gives the empty list."""
    found = plain(value, at)
    if found is None:
        return []
    if not isinstance(found, list):
        raise Fault(at, f"required a list, got {type(found).__name__}")
    return found


def as_dict(value: object, at: str) -> Row:
    """Read a mapping: a struct, a parquet map (a list of pairs), or a JSON object."""
    found = plain(value, at)
    if isinstance(found, list) and all(isinstance(p, list | tuple) and len(p) == 2 for p in found):
        found = dict(found)
    if not isinstance(found, Mapping):
        raise Fault(at, f"required a mapping, got {_shown(found)}")
    return found


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:59] + "…"


def said(value: object, at: str) -> str:
    """A value in words: a string that is not empty, or the digits of a number (a table's 5.0 is 5); no NaN."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float) or isinstance(value, bool) or str(value).strip() in MISSING:
        raise Fault(at, f"required a non-empty string, got {_shown(value)}")
    return str(value)


def text(record: Row, key: str, at: str) -> str:
    """Read a field as `said` does."""
    return said(record.get(key), at + key)


def optional_text(record: Row, key: str, at: str) -> str | None:
    """Read a string as `text` does; None where the key is missing, null or empty."""
    return None if record.get(key) in (None, "") else text(record, key, at)


def identity(record: Row) -> str:
    """The row's ID in its one form."""
    found = identifier(record.get("ID"))
    if found is None:
        raise Fault("ID", f"required an ID, a string or a number, got {_shown(record.get('ID'))}")
    return found


def options(value: object, at: str) -> dict[str, str]:
    """Read options, letter → option; letters that only other rows have (null in this struct) are left out."""
    found = {str(k): said(v, f"{at}.{k}") for k, v in as_dict(value, at).items() if v is not None}
    if len(found) < 2:
        raise Fault(at, f"required at least two options, got {len(found)}")
    return found


def attributes(value: object, at: str) -> dict[str, str] | None:
    """Read attribute → value, without a struct's nulls; None where the field itself is missing."""
    if value is None or value == "":
        return None
    return {
        str(k): said(v, f"{at}.{k}")
        for k, v in as_dict(value, at).items()
        if v is not None and str(v).strip()
    }


def reasoning(value: object, at: str) -> str | None:
    """Read a chain as one string; steps given as ``{step, evidence}`` are joined by spaces."""
    try:
        found = plain(value, at)
    except Fault:
        found = value  # a chain in words may begin with a bracket
    if found is None:
        return None
    if found == [] or (isinstance(found, str) and not found.strip()):
        raise Fault(at, "required a chain of thought, or null where there is none, got an empty one")
    if isinstance(found, str | float):
        return said(found, at).strip()
    steps = []
    for i, entry in enumerate(as_list(found, at)):
        if isinstance(entry, str):
            steps.append(entry.strip())
            continue
        step = as_dict(entry, f"{at}[{i}]")
        steps += [said(step[k], f"{at}[{i}].{k}").strip() for k in ("step", "evidence") if step.get(k)]
    if not any(steps):
        raise Fault(at, f"required a string or a list of {{step, evidence}}, got {_shown(value)}")
    return " ".join(s for s in steps if s)


def picture(value: object, at: str) -> bytes | None:
    """Read a picture's encoded bytes (a struct with ``bytes``, or the bytes themselves) without decoding them."""
    if isinstance(value, Mapping):
        if value.get("bytes") is None and value.get("path") is not None:
            raise Fault(
                at, f"required the picture's bytes in the file, got only the path {_shown(value['path'])}"
            )
        value = value.get("bytes")
    if value is None:
        return None
    if not isinstance(value, bytes) or not value:
        raise Fault(at, f"required the bytes of an encoded picture, got {_shown(value)}")
    return value


def pictures(record: Row) -> list[bytes | None]:
    """All pictures of a person: `images`, or the single `image`; [None] for a person without pictures."""
    several = record.get("images")
    if several is None:
        return [picture(record.get("image"), "image")]
    found = [picture(value, f"images[{i}]") for i, value in enumerate(as_list(several, "images"))]
    return found or [None]
