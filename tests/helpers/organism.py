"""The organism's world, whole and small."""

from rmuse_interp.data.world.people import World, make_world

WORLD = make_world(0)
SMALL = World(WORLD.people[:20], WORLD.celebrities[:4], 0)
"""Twenty people and four celebrities, so that a benchmark is written in about a second."""
