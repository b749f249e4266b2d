"""Names beside the points of a figure, placed to cover nothing, with a thin line to the point if it is not obvious.

Each name has candidate places on rings around its point. A candidate's cost is what it covers, and a pair of candidates
costs what they cover of each other. Names are moved in turn, each to its cheapest place among the others, until none
moves. This is repeated in several orders of the names, and the cheapest result is drawn.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

Point = tuple[float, float]
RINGS: Final = tuple((r, a) for r in (6, 9, 13, 18, 24, 32, 42, 54, 68, 84, 104) for a in range(0, 360, 15))
"""Distance (points) and angle (degrees) of each candidate: from the point to the name's nearest edge."""
CLOSE: Final = 14.0
"""Distance below which neighbouring points need lines to their names."""
KEPT: Final = 48
"""Number of candidates per name that are compared with those of other names."""
ORDERS: Final = 24


@dataclass(frozen=True)
class Place:
    """A candidate place of a name: its box, the end of the line to it (None for no line), and its own cost."""

    box: Bbox
    foot: Point | None
    shift: Point
    cost: float


def label(
    axis: Axes,
    places: Mapping[str, Point],
    words: Mapping[str, str],
    colours: Mapping[str, str],
    bars: Sequence[tuple[Point, Point]],
) -> None:
    """Write each point's name.

    Args:
        axis: complete except for the names; its layout is frozen.
        places: method → its point, in data units.
        words: method → its name; points that coincide share a text, in the colour of the first of them.
        colours: method → colour of its name.
        bars: intervals that names must not cover, each as two points in data units.
    """
    figure = axis.figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    figure.set_layout_engine("none")  # keeps everything where it was measured
    scale = figure.dpi / 72
    points: dict[str, Point] = {n: tuple(axis.transData.transform(at)) for n, at in places.items()}
    said: dict[str, list[str]] = {}
    for name, point in points.items():
        twin = next((n for n in said if math.dist(points[n], point) < 3 * scale), name)
        said.setdefault(twin, []).append(words[name])
    points = {name: points[name] for name in said}
    lines = {n: ",\n".join(", ".join(w[i : i + 2]) for i in range(0, len(w), 2)) for n, w in said.items()}
    dots = {
        n: Bbox.from_extents(*(v - 3.5 * scale for v in p), *(v + 3.5 * scale for v in p))
        for n, p in points.items()
    }
    spans = []
    for start, end in bars:
        (x0, y0), (x1, y1) = axis.transData.transform([start, end])
        spans.append(Bbox.from_extents(x0 - scale / 2, y0 - scale / 2, x1 + scale / 2, y1 + scale / 2))
    frame = axis.get_window_extent(renderer)
    found = {}
    for name, text in lines.items():
        drawn = axis.annotate(text, places[name], (0, 0), textcoords="offset points", fontsize=6)
        size = drawn.get_window_extent(renderer)
        drawn.remove()
        found[name] = candidates(points, name, (size.width, size.height), dots, spans, frame, scale)
    for name, place in arranged(points, found).items():
        if place.foot is not None:
            # An arrow of the annotation would point at the middle of the name, not at its nearest edge.
            (x0, y0), (x1, y1) = places[name], axis.transData.inverted().transform(place.foot)
            axis.plot([x0, x1], [y0, y1], color=colours[name], lw=0.4, scalex=False, scaley=False, zorder=2)
        axis.annotate(
            lines[name],
            places[name],
            place.shift,
            textcoords="offset points",
            fontsize=6,
            color=colours[name],
            ha="center",
            va="center",
        )


def candidates(
    points: Mapping[str, Point],
    name: str,
    size: Point,
    dots: Mapping[str, Bbox],
    spans: Sequence[Bbox],
    frame: Bbox,
    scale: float,
) -> list[Place]:
    """The cheapest places of one name, regardless of other names, in pixels."""
    at, (width, height) = points[name], size
    crowded = any(math.dist(at, p) < CLOSE * scale for n, p in points.items() if n != name)
    distant = [dot for n, dot in dots.items() if math.dist(points[n], at) > CLOSE * scale]
    found = []
    for radius, angle in RINGS:
        along, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        dx, dy = along * (radius * scale + width / 2), up * (radius * scale + height / 2)
        box = Bbox.from_bounds(at[0] + dx - width / 2, at[1] + dy - height / 2, width, height)
        if box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1:
            continue
        foot = None
        if radius > 9 or crowded:  # the line ends at the name's nearest edge
            foot = (min(max(at[0], box.x0), box.x1), min(max(at[1], box.y0), box.y1))
        cost = radius + 300 * sum(box.overlaps(dot) for dot in dots.values())
        cost += 25 * sum(box.overlaps(span) for span in spans)
        if foot is not None:
            cost += 120 * sum(crosses(at, foot, dot) for dot in distant)
        found.append(Place(box, foot, (dx / scale, dy / scale), cost))
    return sorted(found, key=lambda place: place.cost)[:KEPT]


def arranged(points: Mapping[str, Point], found: Mapping[str, Sequence[Place]]) -> dict[str, Place]:
    """One place per name, at the lowest cost found by moving the names in turn."""
    names = [name for name in points if found[name]]  # a name too long for the frame has no place
    memory: dict[Any, float] = {}

    def between(one: str, i: int, other: str, j: int) -> float:
        key = (one, i, other, j) if one < other else (other, j, one, i)
        if key not in memory:
            memory[key] = conflict(points[one], found[one][i], points[other], found[other][j])
        return memory[key]

    def total(chosen: Mapping[str, int]) -> float:
        pairs = sum(between(a, chosen[a], b, chosen[b]) for a in names for b in names if a < b)
        return pairs + sum(found[n][chosen[n]].cost for n in names)

    best: dict[str, int] = {}
    rng = random.Random(0)
    for order in [names, *(rng.sample(names, len(names)) for _ in range(ORDERS - 1))]:
        chosen = dict.fromkeys(names, 0)
        for _ in range(8):
            before = dict(chosen)
            for name in order:
                chosen[name] = min(
                    range(len(found[name])),
                    key=lambda i, n=name: (
                        found[n][i].cost + sum(between(n, i, m, chosen[m]) for m in names if m != n)
                    ),
                )
            if chosen == before:
                break
        if not best or total(chosen) < total(best):
            best = chosen
    return {name: found[name][i] for name, i in best.items()}


def conflict(at: Point, one: Place, there: Point, other: Place) -> float:
    """Cost of the overlap of two names: boxes, lines over boxes, lines over lines."""
    cost = 1000.0 * one.box.overlaps(other.box)
    for start, line, box in ((at, one.foot, other.box), (there, other.foot, one.box)):
        cost += 0.0 if line is None else 400.0 * crosses(start, line, box)
    if one.foot is not None and other.foot is not None:
        cost += 80.0 * meet(at, one.foot, there, other.foot)
    return cost


def crosses(start: Point, end: Point, box: Bbox) -> bool:
    """Whether a line runs through a box, tested at twenty points of the line."""
    return any(
        box.contains(start[0] + (end[0] - start[0]) * i / 20, start[1] + (end[1] - start[1]) * i / 20)
        for i in range(20)
    )


def meet(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Whether the line from a to b crosses that from c to d; ends that touch do not count."""

    def side(p: Point, q: Point, r: Point) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
