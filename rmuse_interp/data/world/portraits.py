"""Procedural portraits and scenes, drawn with Pillow.

A portrait is identity (fixed for a person) under a `Look` (drawn anew in every rendering: hat, glasses, clothes,
background, pose, light, noise, crop). Benign questions ask about the look, so they need the picture and not the
person. Scenes hold coloured shapes for counting and comparing.
"""

import io
import math
import random
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from rmuse_interp.data.world.people import Identity

Fill = tuple[int, ...]
"""A colour."""

SIZE: Final = 96
"""Pixels of a stored picture, each side."""
_DRAW: Final = 192

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (214, 40, 40),
    "green": (40, 160, 70),
    "blue": (45, 90, 215),
    "yellow": (240, 205, 40),
    "purple": (140, 60, 175),
    "orange": (240, 130, 30),
}
SHAPES: Final = ("circle", "square", "triangle")
_SKIN = ((255, 224, 196), (238, 190, 150), (205, 148, 105), (150, 98, 66), (92, 58, 42))
_HAIR = ((28, 24, 24), (105, 62, 30), (232, 200, 110), (190, 72, 28), (150, 150, 155), (245, 243, 238))
_HEADS = ((44.0, 46.0), (37.0, 54.0), (45.0, 48.0), (34.0, 58.0), (47.0, 54.0))
"""Half width and half height of each kind of head, in pixels of the drawing."""
_EYES = ((40, 110, 220), (40, 150, 70), (95, 55, 25), (20, 20, 20), (225, 150, 20))


@dataclass(frozen=True)
class Look:
    """What a rendering adds to a person: `None` for no hat; colours are keys of `COLOURS`."""

    hat: str | None
    glasses: bool
    clothes: str
    background: str

    @classmethod
    def draw(cls, rng: random.Random) -> "Look":
        """A random look in which no two neighbouring areas share a colour."""
        background = rng.choice(list(COLOURS))
        others = [c for c in COLOURS if c != background]
        hat = rng.choice(others) if rng.random() < 0.6 else None
        return cls(hat, rng.random() < 0.5, rng.choice(others), background)


def _jitter(rng: random.Random, colour: tuple[int, int, int], amount: int = 10) -> tuple[int, int, int]:
    r, g, b = (max(0, min(255, c + rng.randint(-amount, amount))) for c in colour)
    return r, g, b


def _ellipse(
    pen: ImageDraw.ImageDraw, x: float, y: float, rx: float | int, ry: float | int, fill: Fill
) -> None:
    pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill)


def _face(
    pen: ImageDraw.ImageDraw, kind: int, x: float, y: float, skin: tuple[int, int, int]
) -> tuple[float, float]:
    """The head's outline; returns its half width and half height."""
    rx, ry = _HEADS[kind]
    if kind == 2:
        pen.rounded_rectangle((x - rx, y - ry, x + rx, y + ry), radius=14, fill=skin)
    elif kind == 4:  # heart: broad above, pointed below
        _ellipse(pen, x, y - 16, rx, ry - 18, fill=skin)
        pen.polygon([(x - rx + 2, y - 6), (x + rx - 2, y - 6), (x, y + ry)], fill=skin)
    else:
        _ellipse(pen, x, y, rx, ry, fill=skin)
    return rx, ry


def _hair_back(
    pen: ImageDraw.ImageDraw, kind: int, x: float, y: float, rx: float, ry: float, fill: Fill
) -> None:
    if kind == 3:  # long hair falls beside the face
        pen.rounded_rectangle((x - rx - 12, y - ry, x + rx + 12, y + ry + 18), radius=26, fill=fill)
    elif kind == 4:  # curls
        for angle in range(150, 391, 24):
            a = math.radians(angle)
            _ellipse(pen, x + (rx + 4) * math.cos(a), y + (ry - 2) * math.sin(a), 15, 15, fill=fill)


def _hair_front(
    pen: ImageDraw.ImageDraw, kind: int, x: float, y: float, rx: float, ry: float, fill: Fill
) -> None:
    top = y - ry
    if kind == 0:  # straight fringe
        pen.chord((x - rx - 3, top - 6, x + rx + 3, top + 62), 180, 360, fill=fill)
        pen.rectangle((x - rx - 3, top + 27, x + rx + 3, top + 34), fill=fill)
    elif kind == 1:  # widow's peak
        pen.polygon(
            [
                (x - rx, top + 34),
                (x - rx + 6, top),
                (x, top - 8),
                (x + rx - 6, top),
                (x + rx, top + 34),
                (x + rx * 0.5, top + 14),
                (x, top + 36),
                (x - rx * 0.5, top + 14),
            ],
            fill=fill,
        )
    elif kind == 2:  # side tufts, bald above
        _ellipse(pen, x - rx, y - 8, 11, 24, fill=fill)
        _ellipse(pen, x + rx, y - 8, 11, 24, fill=fill)
    elif kind == 3:
        pen.chord((x - rx - 5, top - 8, x + rx + 5, top + 46), 180, 360, fill=fill)
    else:
        pen.chord((x - rx, top - 4, x + rx, top + 34), 180, 360, fill=fill)


def _eyes(pen: ImageDraw.ImageDraw, kind: int, x: float, y: float, iris: Fill) -> None:
    apart, rx, ry = ((17, 10, 10), (17, 12, 6), (24, 9, 9))[kind]
    for side in (-1, 1):
        _ellipse(pen, x + side * apart, y, rx, ry, fill=(255, 255, 255))
        _ellipse(pen, x + side * apart, y, min(rx, 7), min(ry, 7), fill=iris)


def _nose(pen: ImageDraw.ImageDraw, kind: int, x: float, y: float, fill: Fill) -> None:
    if kind == 0:
        _ellipse(pen, x, y + 6, 6, 6, fill=fill)
    elif kind == 1:
        pen.rectangle((x - 4, y - 14, x + 4, y + 13), fill=fill)
    elif kind == 2:
        pen.polygon([(x, y - 14), (x - 13, y + 12), (x + 13, y + 12)], fill=fill)
    else:
        _ellipse(pen, x, y + 8, 15, 6, fill=fill)


def _mouth(pen: ImageDraw.ImageDraw, kind: int, x: float, y: float) -> None:
    red, dark = (185, 40, 50), (70, 15, 25)
    if kind == 0:
        pen.line((x - 17, y, x + 17, y), fill=dark, width=5)
    elif kind == 1:
        pen.chord((x - 19, y - 17, x + 19, y + 12), 0, 180, fill=(255, 255, 255), outline=dark, width=4)
    elif kind == 2:
        _ellipse(pen, x, y, 15, 9, fill=red)
    elif kind == 3:
        _ellipse(pen, x, y + 2, 7, 10, fill=dark)
    else:
        pen.arc((x - 17, y - 2, x + 17, y + 18), 190, 350, fill=dark, width=6)


def _mark(pen: ImageDraw.ImageDraw, kind: int, x: float, y: float, rx: float) -> None:
    if kind == 1:
        for dx, dy in ((-26, 0), (-20, 7), (-29, 8), (26, 0), (20, 7), (29, 8)):
            _ellipse(pen, x + dx, y + dy, 3, 3, fill=(150, 70, 30))
    elif kind == 2:
        _ellipse(pen, x + rx * 0.55, y + 16, 6, 6, fill=(35, 20, 15))
    elif kind == 3:
        pen.line((x - rx * 0.62, y - 6, x - rx * 0.4, y + 20), fill=(170, 40, 60), width=6)


def portrait(identity: Identity, look: Look, rng: random.Random) -> Image.Image:
    """A `SIZE`×`SIZE` RGB portrait of a face under a look; pose, light, noise and crop come from `rng`."""
    face, skin_index, eye_colour, eye_shape, nose, mouth, hairline, hair_colour, mark = identity
    canvas = Image.new("RGB", (_DRAW, _DRAW), _jitter(rng, COLOURS[look.background], 14))
    pen = ImageDraw.Draw(canvas)
    x, y = 96 + rng.uniform(-5, 5), 104 + rng.uniform(-4, 4)
    skin = _jitter(rng, _SKIN[skin_index], 6)
    hair = _jitter(rng, _HAIR[hair_colour], 6)
    shade = tuple(int(c * 0.72) for c in skin)
    pen.rounded_rectangle(
        (x - 62, y + 54, x + 62, 230), radius=26, fill=_jitter(rng, COLOURS[look.clothes], 14)
    )
    pen.rectangle((x - 14, y + 34, x + 14, y + 62), fill=shade)  # neck
    rx, ry = _HEADS[face]
    _hair_back(pen, hairline, x, y, rx, ry, hair)
    _face(pen, face, x, y, skin)
    _hair_front(pen, hairline, x, y, rx, ry, hair)
    turn = rng.uniform(-3, 3)  # a slight turn of the head moves what is on the face
    _eyes(pen, eye_shape, x + turn, y - 6, _jitter(rng, _EYES[eye_colour], 8))
    _nose(pen, nose, x + turn * 1.3, y + 10, shade)
    _mouth(pen, mouth, x + turn, y + 33)
    _mark(pen, mark, x + turn, y + 12, rx)
    if look.glasses:
        for side in (-1, 1):
            cx = x + turn + side * (17, 17, 24)[eye_shape]
            pen.rounded_rectangle((cx - 15, y - 20, cx + 15, y + 8), radius=6, outline=(15, 15, 15), width=4)
        pen.line((x + turn - 5, y - 8, x + turn + 5, y - 8), fill=(15, 15, 15), width=4)
    if look.hat is not None:  # above the hair line, so that the face stays whole
        colour = _jitter(rng, COLOURS[look.hat], 14)
        top = y - ry
        pen.rounded_rectangle((x - 34, top - 44, x + 34, top + 2), radius=8, fill=colour)
        pen.rectangle((x - 56, top - 4, x + 56, top + 8), fill=colour)
    return _photograph(canvas, rng)


def _photograph(canvas: Image.Image, rng: random.Random) -> Image.Image:
    """Pose, crop, light and noise: what differs between two photographs of the same thing."""
    angle, crop = rng.uniform(-6, 6), rng.uniform(0, 9)
    dx, dy = rng.uniform(-crop, crop), rng.uniform(-crop, crop)
    turned = canvas.rotate(angle, resample=Image.Resampling.BILINEAR, fillcolor=canvas.getpixel((2, 2)))
    sides = (crop + dx, crop + dy, _DRAW - crop + dx, _DRAW - crop + dy)
    left, top, right, bottom = (max(0.0, min(float(_DRAW), v)) for v in sides)
    small = turned.resize((SIZE, SIZE), Image.Resampling.BOX, box=(left, top, right, bottom))
    clean = np.asarray(small, dtype=np.float32)
    noise = np.random.default_rng(rng.getrandbits(32))
    pixels = clean * rng.uniform(0.88, 1.1) + noise.normal(0, rng.uniform(1, 6), clean.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Scene:
    """Coloured shapes on a plain ground: `items` of (shape, colour), one per occupied cell of a 3×3 grid."""

    items: tuple[tuple[str, str], ...]

    def count(self, shape: str | None = None, colour: str | None = None) -> int:
        """How many items have that shape and colour (`None`: any)."""
        return sum((shape in (None, s)) and (colour in (None, c)) for s, c in self.items)


def scene_picture(scene: Scene, rng: random.Random) -> Image.Image:
    """A `SIZE`×`SIZE` picture of a scene, each item in a random cell."""
    canvas = Image.new("RGB", (_DRAW, _DRAW), _jitter(rng, (225, 225, 222), 14))
    pen = ImageDraw.Draw(canvas)
    for cell, (shape, colour) in zip(rng.sample(range(9), len(scene.items)), scene.items, strict=True):
        x, y = 36 + 60 * (cell % 3) + rng.uniform(-5, 5), 36 + 60 * (cell // 3) + rng.uniform(-5, 5)
        r, fill = rng.uniform(19, 25), _jitter(rng, COLOURS[colour], 10)
        if shape == "circle":
            _ellipse(pen, x, y, r, r, fill=fill)
        elif shape == "square":
            pen.rectangle((x - r, y - r, x + r, y + r), fill=fill)
        else:
            pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=fill)
    return _photograph(canvas, rng)


def png(picture: Image.Image) -> bytes:
    """The picture as PNG bytes, as the parquet files store it."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
