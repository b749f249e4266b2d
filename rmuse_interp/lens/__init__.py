"""The user's interface: a loaded model that answers questions, exposes its states and runs plans."""

import rmuse_interp.models  # noqa: F401  (before transformers: a broken torchvision does no harm)
