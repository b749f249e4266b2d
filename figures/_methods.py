"""Names and looks of methods, the same in every figure: marker and colour by kind, never colour alone."""

from collections.abc import Collection
from typing import Final

import _style as style
from _style import Row
from matplotlib.lines import Line2D

LOOK: Final = {
    "rival": ("o", style.BLACK, 4.6),
    "trained": ("^", style.RED, 4.8),
    "reference": ("s", style.GREEN, 4.6),
    "rmuse": ("D", style.BLUE, 4.8),
}
"""Kind → marker, colour and size in points; ours last, so that it is drawn on top."""
SAID: Final = {
    "rmuse": "R-MUSE",
    "rival": "steered at inference",
    "trained": "trained",
    "reference": "reference model",
}
NAMES: Final = {
    "rmuse/calibrated": "R-MUSE",
    "rmuse/paper": "R-MUSE, as written",
    "caa": "CAA",
    "ablation": "ablation",
    "leace": "LEACE",
    "cast": "CAST",
    "angular": "angular",
    "spherical": "spherical",
    "alphasteer": "AlphaSteer",
    "mllmeraser": "MLLMEraser",
    "linear-act": "Linear-AcT",
    "gold": "retrained",
    "vanilla": "as it is",
    "ga": "GA",
    "ga_diff": "GA Diff",
    "kl_min": "KL Min",
    "npo": "NPO",
    "po": "PO",
    "mmunlearner": "MMUnlearner",
    "manu": "MANU",
    "r2mu": "R2MU",
}
"""Method → its name in a figure, if that differs from the method's own name."""


def name_of(method: str) -> str:
    """A method's name in a figure."""
    return NAMES.get(method, method)


def handles(kinds: Collection[str]) -> list[Line2D]:
    """Legend entries for kinds of method."""
    looks = {kind: LOOK[kind] for kind in SAID if kind in kinds}
    return [
        style.entry(SAID[kind], marker=marker, mec=colour, mfc="white", ls="", ms=size)
        for kind, (marker, colour, size) in looks.items()
    ]


def spread(value: Row) -> tuple[float, list[list[float]] | None]:
    """A value and the lengths of its interval below and above."""
    return value["value"], None if value["low"] is None else style.reach([value])
