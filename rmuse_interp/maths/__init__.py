"""Geometry that knows no model: linear algebra, the unit sphere, transport to prototypes."""
