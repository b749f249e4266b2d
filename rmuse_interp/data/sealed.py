"""Sealed records: a JSON file with the hashes of the files that belong with it and of itself, checked when read."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from rmuse_interp import RMuseError
from rmuse_interp.data.store import JSON, digest, digest_of_file, newest, write_json

FILES: Final = "files"
"""Entry of a sealed JSON file with the hashes of the files that belong with it."""
SEAL: Final = "seal"
"""Entry of a sealed JSON file with the digest of all its other entries."""


def write_sealed(path: Path, record: Mapping[str, object], files: Iterable[str]) -> None:
    """Write a JSON object with the hashes of other files of its folder and of itself; `read_sealed` checks them.

    Raises:
        ValueError: the record holds NaN or infinity.
    """
    hashes = {name: digest_of_file(path.parent / name) for name in sorted(files)}
    whole: JSON = json.loads(json.dumps({**record, FILES: hashes}, allow_nan=False))
    write_json(path, {**whole, SEAL: digest(whole)})


def read_sealed(folder: Path, name: str, schema: str, files: Iterable[str], again: str) -> JSON:
    """Read what `write_sealed` wrote with the same files.

    Args:
        folder: the folder.
        name: name of the JSON file.
        schema: value of its entry ``schema``.
        files: names of the other files that it describes.
        again: the call that writes such files, for messages.

    Raises:
        RMuseError: a file is missing, damaged, of another schema, or does not belong with the others.
    """
    path = newest(folder, name)
    for one in (name, *files):
        if not newest(folder, one).is_file():
            raise RMuseError(f"{folder}: a whole bundle was required, it lacks {one}; {again}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = record.pop("schema") if isinstance(record, dict) else None
        if found != schema:
            raise RMuseError(
                f"{path}: schema {schema} was required, got {found!r:.40}, of another version; {again}"
            )
        seal, hashes = record.pop(SEAL, None), record.get(FILES)
        if seal != digest({**record, "schema": schema}):
            raise RMuseError(
                f"{path}: the content that was saved was required, it was changed since; {again}"
            )
        wanted = {one: digest_of_file(newest(folder, one)) for one in files}
    except RMuseError:
        raise
    except (ValueError, KeyError, RecursionError, OSError) as error:
        raise RMuseError(
            f"{path} cannot be read ({type(error).__name__}: {error!s:.200}); {again}"
        ) from error
    changed = [one for one in wanted if not isinstance(hashes, dict) or hashes.get(one) != wanted[one]]
    if changed:
        raise RMuseError(
            f"{folder}: the files that were saved together were required, {changed[0]} is another than the one that "
            f"{name} describes; {again}"
        )
    return dict(record)
