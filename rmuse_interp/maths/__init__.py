"""Geometry, independent of any model: linear algebra, the unit sphere, optimal transport, statistics."""
