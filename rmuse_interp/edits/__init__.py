"""Operators, edits and plans, and the code that runs them.

All operators are imported here, so that a record may name any of them.
"""

from rmuse_interp.edits import linear, patch, plane, rotation

__all__ = ["linear", "patch", "plane", "rotation"]
