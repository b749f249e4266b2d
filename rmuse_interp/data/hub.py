"""Fetch benchmarks from the Hugging Face hub, each at one revision of a data set, into the hub's own cache."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rmuse_interp import RMuseError

READ: Final = ("*.parquet", "*.jsonl", "*.json")
"""Patterns of a benchmark's files; other files of a data set are not fetched."""
_ID: Final = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w./-]+)?")


@dataclass(frozen=True)
class Fetched:
    """A data set's folder in the cache, and its name with the fetched commit."""

    folder: Path
    name: str


def is_id(text: str) -> bool:
    """Whether a text names a data set of the hub.

    >>> is_id("owner/name@main"), is_id("owner/name"), is_id("/data/bench"), is_id("a/b/c")
    (True, True, False, False)
    """
    return _ID.fullmatch(text) is not None and not text.startswith((".", "/", "~"))


def fetch(name: str, unread: tuple[str, ...] = ()) -> Fetched:
    """Fetch one revision of a data set, from the cache if it is there already.

    Args:
        name: ``owner/name@revision``, with a commit, tag or branch. A revision is required because scores on data that
            may change cannot be compared; the name returned holds the commit that a branch pointed to.
        unread: patterns of files to leave out.

    Raises:
        RMuseError: no revision is given, the data set or revision does not exist or needs a login, or the hub cannot
            be reached.
    """
    repository, _, revision = name.partition("@")
    if not revision:
        raise RMuseError(
            f"required a folder, 'organism', or a data set of the hub with its revision as owner/name@revision, got "
            f"{name!r}: no such folder; for the hub's newest write {name}@main"
        )
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                revision=revision,
                allow_patterns=list(READ),
                ignore_patterns=list(unread),
            )
        )
    except Exception as error:  # of the hub, the network or the disk: each message says what happened
        said = " ".join(str(error).split())
        raise RMuseError(
            f"{name}: required a data set of the hub that can be fetched, got {type(error).__name__}: {said:.300}; see "
            "that name and revision exist, and that the hub can be reached (`hf auth login` where it asks for a login)"
        ) from error
    return Fetched(folder, f"{repository}@{folder.name[:12]}")
