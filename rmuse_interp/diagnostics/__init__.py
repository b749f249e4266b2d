"""Diagnostics: the fitted geometry and the effect of edits on it, computed from arrays."""

from rmuse_interp.diagnostics.orthogonality import (
    DirectionOverlap,
    Null,
    SubspaceOverlap,
    UpdateShare,
    direction_overlap,
    random_kernel,
    random_share,
    subspace_overlap,
    update_share,
)

__all__ = [
    "DirectionOverlap",
    "Null",
    "SubspaceOverlap",
    "UpdateShare",
    "direction_overlap",
    "random_kernel",
    "random_share",
    "subspace_overlap",
    "update_share",
]
