"""How methods are drawn and named, the same in every figure: by kind with marker and colour, never by colour alone."""

from typing import Any, Final

import _style as style

LOOK: Final = {
    "rival": ("o", style.BLACK, 4.6),
    "trained": ("^", style.RED, 4.8),
    "reference": ("s", style.GREEN, 4.6),
    "rmuse": ("D", style.BLUE, 4.8),
}
"""Kind → marker, colour and size in points; ours last, so that they lie on top."""
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
"""Method → its name in a figure; others have their own."""


def name_of(method: str) -> str:
    """A method's name in a figure."""
    return NAMES.get(method, method)


def handles(plt: Any, kinds: list[str]) -> list[Any]:
    """Entries of a legend for kinds of method."""
    found = []
    for kind in (kind for kind in SAID if kind in kinds):
        marker, colour, size = LOOK[kind]
        found.append(
            plt.Line2D([], [], marker=marker, mec=colour, mfc="white", ls="", ms=size, label=SAID[kind])
        )
    return found


def spread(value: dict[str, Any]) -> tuple[float, list[list[float]] | None]:
    """A value and the lengths of its interval below and above."""
    middle = value["value"]
    if value["low"] is None:
        return middle, None
    return middle, [[max(0.0, middle - value["low"])], [max(0.0, value["high"] - middle)]]
