"""Glossary of tensor axes and the jaxtyping aliases built from it.

Every annotated tensor of the package uses these words, so that a shape reads the same in every file.
A star (``*tokens``) stands for any number of leading axes, none included.
"""

from typing import Final

from jaxtyping import Bool, Float, Int
from torch import Tensor

GLOSSARY: Final[dict[str, str]] = {
    "d": "width of the residual stream",
    "tokens": "positions of one sequence, or any leading axes when starred",
    "batch": "rows that run through the model together",
    "examples": "items of a fitting or scoring set, in the order of their ids",
    "layers": "decoder blocks, 0-based, in the order of the record that lists them",
    "k": "rank of a subspace",
    "prototypes": "refusal prototypes, unit vectors",
    "vocab": "entries of the tokenizer",
    "others": "states of the queries that must not be steered",
    "r": "nonzero singular values, before the energy rule keeps k of them",
    "n": "any number of vectors where the examples have no ids",
}
"""Axis name → meaning."""

Hidden = Float[Tensor, "*tokens d"]
"""States of the residual stream, with any leading axes."""
PerToken = Float[Tensor, "*tokens"]
"""One number per state."""
PerTokenBool = Bool[Tensor, "*tokens"]
"""One truth value per state."""
Steps = Int[Tensor, "*tokens"]
"""position − prompt_end: 0 at the last prompt token, 1 at the first generated one."""
Direction = Float[Tensor, " d"]
"""One vector of the residual stream."""
States = Float[Tensor, "examples d"]
"""One (pooled) state per example, at one layer."""
LayeredStates = Float[Tensor, "examples layers d"]
"""One (pooled) state per example and layer."""
Basis = Float[Tensor, "d k"]
"""Orthonormal columns."""
Points = Float[Tensor, "prototypes d"]
"""Unit vectors, the support of the refusal measure μ."""
