"""Models: loading, layouts of model families, encoding, sites, generation."""
