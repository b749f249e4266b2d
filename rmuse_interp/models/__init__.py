"""Models: loading, layouts of model families, encoding, sites, generation."""

from rmuse_interp.models.pixels import mend_torchvision

mend_torchvision()  # before any file of this room, or of one above it, imports transformers
