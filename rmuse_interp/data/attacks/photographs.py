"""Attacks that change the photograph with Pillow: crop, blur, noise, compression; seeded per question."""

import io
import random
from collections.abc import Callable
from typing import Final

from PIL import Image, ImageChops, ImageFilter

from rmuse_interp.data import Benchmark, Example
from rmuse_interp.data.attacks.attack import Ask, Asked
from rmuse_interp.data.pictures import rgb

Severity = Callable[[Image.Image, random.Random], bytes]


def crop(share: float) -> Severity:
    """Crop to `share` (0–1) of each side, at a random place."""

    def change(picture: Image.Image, rng: random.Random) -> bytes:
        width, height = (max(1, round(share * side)) for side in picture.size)
        left, top = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
        return _png(picture.crop((left, top, left + width, top + height)))

    return change


def blur(radius: float) -> Severity:
    """Gaussian blur; the radius is a fraction of the shorter side."""
    return lambda picture, _: _png(picture.filter(ImageFilter.GaussianBlur(radius * min(picture.size))))


def noise(deviation: float) -> Severity:
    """Uniform noise on every channel of every pixel; `deviation` is its standard deviation in grey levels (0–255)."""
    # Uniform bytes have a standard deviation of 256/√12 levels.
    gain = deviation / (256 / 12**0.5)

    def change(picture: Image.Image, rng: random.Random) -> bytes:
        drawn = Image.frombytes("RGB", picture.size, rng.randbytes(3 * picture.width * picture.height))
        drawn = drawn.point([round(128 + gain * (level - 127.5)) for level in range(256)] * 3)
        return _png(ImageChops.add(picture, drawn, 1.0, -128))

    return change


def jpeg(quality: int) -> Severity:
    """JPEG compression with a quality of 1–95."""

    def change(picture: Image.Image, rng: random.Random) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        return buffer.getvalue()

    return change


SEVERITIES: Final[dict[str, dict[str, Severity]]] = {
    "crop": {"90 %": crop(0.9), "75 %": crop(0.75)},
    "blur": {"1 %": blur(0.01), "2 %": blur(0.02)},
    "noise": {"σ 10": noise(10.0), "σ 30": noise(30.0)},
    "jpeg": {"quality 50": jpeg(50), "quality 15": jpeg(15)},
}


def disturbed(image: bytes, rng: random.Random) -> bytes:
    """Change the picture twice by crop, blur, noise or compression, at most as strongly as the strongest attack.

    Each severity is the larger of two uniform draws, so that strong changes, where a gate errs, are not rare.
    """
    for _ in range(2):
        picture = rgb(image)
        hard = max(rng.random(), rng.random())
        change = rng.choice(
            (crop(1 - 0.25 * hard), blur(0.02 * hard), noise(30 * hard), jpeg(round(75 - 60 * hard)))
        )
        image = change(picture, rng)
    return image


def photographed(kind: str) -> Ask:
    """Make the attack that changes a question's picture at every severity of a kind; text questions have no variant."""

    def ask(example: Example, benchmark: Benchmark, rng: random.Random) -> tuple[Asked, ...]:
        picture = example.load_image()
        if picture is None:
            return ()
        return tuple(
            Asked.plainly(example, variant, image=change(picture, rng))
            for variant, change in SEVERITIES[kind].items()
        )

    return ask


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)  # lossless at any level, so choose speed
    return buffer.getvalue()
