"""Shape and type checks on every annotated function of the package, for the whole test run."""

import beartype  # noqa: F401  (before nnsight, whose import hooks beartype would otherwise meet half-way)
import jaxtyping
import torch

jaxtyping.install_import_hook("rmuse_interp", "beartype.beartype")
torch.set_num_threads(1)
