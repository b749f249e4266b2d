"""The rival inference-time methods, each as one expression over the same operators, gates and scopes.

Every rival is a function ``name(evidence, modality, layers, strength) -> Edit`` of the `Evidence` that both presets of
R-MUSE are built from: arrays, never a model. What differs between a rival and R-MUSE is the expression alone.

`RIVALS` lists them under the names of the command line, each with as many strengths to try; `choose_strength` picks one
of the trials from measurements made elsewhere (`rmuse_interp.fitting.rivals`).
"""

from rmuse_interp.steering.expressions import (
    ablation,
    alphasteer,
    angular,
    caa,
    cast,
    leace,
    linear_act,
    mllmeraser,
    spherical,
)
from rmuse_interp.steering.rivals import RIVALS, Rival, Trial, choose_strength

__all__ = [
    "RIVALS",
    "Rival",
    "Trial",
    "choose_strength",
    "ablation",
    "alphasteer",
    "angular",
    "caa",
    "cast",
    "leace",
    "linear_act",
    "mllmeraser",
    "spherical",
]
