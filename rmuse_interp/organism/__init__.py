"""The model organism: a small LLaVA trained from scratch on a procedural world of people, shipped with the package."""

from typing import Final

MODEL: Final = "organism"
GOLD: Final = "organism-gold"
"""The same model, trained without the people to forget at `GOLD_RATE`."""
GOLD_RATE: Final = 5
