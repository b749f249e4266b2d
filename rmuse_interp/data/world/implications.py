"""What gives a value of the small world away without naming it: part of the benchmark's table of entailments.

General knowledge about the values, a few cues each: what such people do, what stands in such a city, where they are from.
A cue counts when all its words stand in one clause, in any order and with any endings.
"""

from typing import Final

from rmuse_interp.data.world import people as w

CUES: Final[dict[str, dict[str, list[str]]]] = w.WORDS["cues"]
"""Kind of value → value → cues."""


def tables(world: w.World) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Aliases (name → surname) and entailments (city → country, year ↔ age, cue → value), as benchmark.json has them."""
    entails: dict[str, list[str]] = {city: [country] for city, country in w.CITIES.items()}
    for person in world.everyone:
        year = person.attributes["birth_year"]
        entails[year] = [str(w.YEAR - int(year))]
        entails[str(w.YEAR - int(year))] = [year]
    for values in CUES.values():
        for value, cues in values.items():
            for cue in cues:
                entails.setdefault(cue, []).append(value)
    return {p.name: [p.name.split()[1]] for p in world.everyone}, entails
