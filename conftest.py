"""Set-up shared by tests and doctests: shape and type checks on every annotated function of the package.

beartype is imported before anything can import nnsight: the other order fails with
``unhashable type: 'instancemethod'``.
"""

import beartype  # noqa: F401
import jaxtyping
import torch

jaxtyping.install_import_hook("rmuse_interp", "beartype.beartype")
torch.set_num_threads(1)
