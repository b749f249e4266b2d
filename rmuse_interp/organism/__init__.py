"""The model organism: a small LLaVA trained from scratch on a procedural world of people, shipped with the package."""

from pathlib import Path
from typing import Final

NAMES: Final = ("organism", "organism-gold")


def weights_path(name: str) -> Path:
    """The folder of a shipped checkpoint: `organism`, or `organism-gold` (trained without the 5 % forget set)."""
    if name not in NAMES:
        raise ValueError(f"a shipped checkpoint is one of {', '.join(NAMES)}; got {name!r}")
    return Path(__file__).parent / "weights" / name
