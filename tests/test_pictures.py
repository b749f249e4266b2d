"""`data.pictures.rgb`: pictures of every mode, depth, orientation and container, and damaged ones."""

import base64
import contextlib
import io
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from rmuse_interp import RMuseError
from rmuse_interp.data.pictures import rgb, unreadable

RED, GREEN, BLUE, WHITE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128)
Colour = tuple[int, int, int]


def encoded(picture: Image.Image, format: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **settings)
    return buffer.getvalue()


def corners() -> Image.Image:
    """Wider than high; red in the upper left corner, blue in the lower right, white elsewhere."""
    picture = Image.new("RGB", (32, 16), "white")
    picture.paste(RED, (0, 0, 8, 8))
    picture.paste(BLUE, (24, 8, 32, 16))
    return picture


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def ramp(dtype: str, top: float) -> np.ndarray:
    """Black on the left, the middle grey, `top` on the right: [2, 3]."""
    return np.array([[0, top / 2, top]] * 2).astype(dtype)


def palette(transparent: bool) -> Image.Image:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, *RED])
    if transparent:
        picture.info["transparency"] = 1
    return picture


def lab() -> Image.Image:
    srgb, profile = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(Image.new("RGB", (4, 4), RED), srgb, profile, outputMode="LAB")


def held(array: np.ndarray, mode: str) -> Image.Image:
    """An image in one of Pillow's modes for deep greys."""
    picture = Image.fromarray(array)
    assert picture.mode == mode
    return picture


def raw(side: int, depth: int, pixels: bytes, clear: bytes = b"") -> bytes:
    """An RGB PNG written by hand, as no Pillow writes it: `side` is only what the header promises."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    header = chunk(b"IHDR", side.to_bytes(4) * 2 + bytes([depth, 2, 0, 0, 0]))
    data = chunk(b"IDAT", zlib.compress(b"\0" + pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + (chunk(b"tRNS", clear) if clear else b"") + data


def keyed(mode: str, colour: object, clear: object) -> bytes:
    """A PNG whose one colour is declared transparent."""
    return encoded(Image.new(mode, (4, 4), colour), "PNG", transparency=clear)


LOSSLESS = {
    "PNG": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "GIF": {},
    "JPEG2000": {},
    "PPM": {},
}
MODES: dict[str, tuple[Callable[[], object], list[Colour]]] = {
    # what is given → the colours of the first row, from left to right (all equal where only one is named)
    "RGB": (lambda: Image.new("RGB", (4, 4), RED), [RED]),
    "L": (lambda: Image.new("L", (4, 4), 128), [GREY]),
    "1-bit": (lambda: encoded(Image.new("1", (4, 4), 1), "PNG"), [WHITE]),
    "1-bit TIFF": (lambda: encoded(Image.new("1", (4, 4), 1), "TIFF", compression="group4"), [WHITE]),
    "RGBA half": (lambda: Image.new("RGBA", (4, 4), (255, 0, 0, 128)), [(255, 127, 127)]),
    "RGBA clear": (lambda: encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG"), [WHITE]),
    "RGBA WebP": (lambda: encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "WEBP", lossless=True), [WHITE]),
    "RGBa": (lambda: Image.new("RGBA", (4, 4), (255, 0, 0, 128)).convert("RGBa"), [(255, 127, 127)]),
    "LA": (lambda: Image.new("LA", (4, 4), (0, 0)), [WHITE]),
    "LA opaque": (lambda: encoded(Image.new("LA", (4, 4), (128, 255)), "PNG"), [GREY]),
    "La": (lambda: Image.new("LA", (4, 4), (0, 0)).convert("La"), [WHITE]),
    "PA": (lambda: palette(True).convert("PA"), [WHITE]),
    "P": (lambda: encoded(palette(False), "PNG"), [RED]),
    "P transparent": (lambda: encoded(palette(True), "PNG"), [WHITE]),
    "P transparent GIF": (lambda: encoded(palette(True), "GIF", transparency=1), [WHITE]),
    "L transparent": (lambda: keyed("L", 7, 7), [WHITE]),
    "RGB transparent": (lambda: keyed("RGB", RED, RED), [WHITE]),
    "I;16": (lambda: held(ramp("<u2", 65535), "I;16"), [(0, 0, 0), (127,) * 3, WHITE]),
    "I;16B": (lambda: held(ramp(">u2", 65535), "I;16B"), [(0, 0, 0), (127,) * 3, WHITE]),
    "16-bit PNG": (lambda: encoded(held(ramp("<u2", 65535), "I;16"), "PNG"), [(0, 0, 0), (127,) * 3, WHITE]),
    "16-bit PNG, dark": (
        lambda: encoded(held(ramp("<u2", 512), "I;16"), "PNG"),
        [(0,) * 3, (1,) * 3, (2,) * 3],
    ),
    "16-bit PNG transparent": (lambda: keyed("I;16", 777, 777), [WHITE]),
    "16-bit RGB PNG": (lambda: raw(1, 16, bytes([255, 255, 128, 0, 0, 0])), [(255, 128, 0)]),
    "16-bit RGB PNG transparent": (lambda: raw(1, 16, bytes(range(6)), bytes(range(6))), [WHITE]),
    "16-bit TIFF": (lambda: encoded(held(ramp("<u2", 65535), "I;16"), "TIFF"), [(0,) * 3, (127,) * 3, WHITE]),
    "16-bit PGM": (lambda: encoded(held(ramp("<u2", 65535), "I;16"), "PPM"), [(0,) * 3, (127,) * 3, WHITE]),
    "16-bit RGB PPM": (lambda: b"P6 1 1 65535\n" + bytes([255, 255, 128, 0, 0, 0]), [(255, 128, 0)]),
    "12-bit PGM": (lambda: b"P5 1 1 4095\n" + bytes([15, 255]), [WHITE]),
    "dark 16-bit PGM": (lambda: b"P5 1 1 65535\n" + bytes([0, 200]), [(0, 0, 0)]),
    "I of 16 bits": (lambda: held(ramp("int32", 65535), "I"), [(0,) * 3, (127,) * 3, WHITE]),
    "I of 8 bits": (lambda: Image.new("L", (4, 4), 128).convert("I"), [GREY]),
    "F of 0..1": (lambda: held(ramp("float32", 1), "F"), [(0,) * 3, GREY, WHITE]),
    "F of 0..255": (lambda: Image.new("L", (4, 4), 128).convert("F"), [GREY]),
    "F TIFF": (lambda: encoded(held(ramp("float32", 1), "F"), "TIFF"), [(0,) * 3, GREY, WHITE]),
    "CMYK": (lambda: Image.new("CMYK", (4, 4), (0, 255, 255, 0)), [RED]),
    "CMYK TIFF": (lambda: encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"), [RED]),
    "CMYK JPEG (Adobe, inverted)": (
        lambda: encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"),
        [RED],
    ),
    "YCbCr": (lambda: Image.new("RGB", (4, 4), GREEN).convert("YCbCr"), [GREEN]),
    "HSV": (lambda: Image.new("HSV", (4, 4), (0, 255, 255)), [RED]),
    "LAB": (lab, [(251, 5, 4)]),
    "LAB TIFF": (lambda: encoded(lab(), "TIFF"), [(251, 5, 4)]),
    "RGBX": (lambda: Image.new("RGBX", (4, 4), (*RED, 0)), [RED]),
    "animated GIF": (
        lambda: encoded(
            Image.new("P", (4, 4), 0), "GIF", save_all=True, append_images=[Image.new("RGB", (4, 4), RED)]
        ),
        [(0, 0, 0)],
    ),
    "animated WebP": (
        lambda: encoded(
            Image.new("RGB", (4, 4), RED),
            "WEBP",
            lossless=True,
            save_all=True,
            append_images=[Image.new("RGB", (4, 4), BLUE)],
        ),
        [RED],
    ),
    "ICO": (lambda: encoded(Image.new("RGBA", (16, 16), (*RED, 255)), "ICO"), [RED]),
    "uint8 HWC": (lambda: np.full((5, 4, 3), RED, dtype=np.uint8), [RED]),
    "uint8 CHW": (lambda: np.moveaxis(np.full((5, 4, 3), RED, dtype=np.uint8), 2, 0), [RED]),
    "uint8 HWC, three rows": (lambda: np.full((3, 4, 3), RED, dtype=np.uint8), [RED]),
    "uint8 HW": (lambda: np.full((5, 4), 128, dtype=np.uint8), [GREY]),
    "uint8 HW1": (lambda: np.full((5, 4, 1), 128, dtype=np.uint8), [GREY]),
    "uint8 HW4": (lambda: np.full((5, 4, 4), (*RED, 0), dtype=np.uint8), [WHITE]),
    "float HWC": (lambda: np.full((5, 4, 3), (1.0, 0.5, 0.0)), [(255, 128, 0)]),
    "bool HW": (lambda: np.ones((5, 4), dtype=bool), [WHITE]),
    "uint16 HW": (lambda: ramp("uint16", 65535), [(0,) * 3, (127,) * 3, WHITE]),
    "int64 HWC": (lambda: np.full((5, 4, 3), RED), [RED]),
    "read-only, negative strides": (lambda: np.full((5, 4, 3), RED, dtype=np.uint8)[::-1, ::-1], [RED]),
    "tensor CHW": (lambda: torch.tensor(RED, dtype=torch.uint8)[:, None, None].expand(3, 5, 4), [RED]),
    "tensor CHW, width 3": (lambda: torch.tensor(RED)[:, None, None].expand(3, 5, 3), [RED]),
    "tensor HWC": (lambda: torch.tensor(RED, dtype=torch.uint8).expand(5, 4, 3), [RED]),
    "tensor bfloat16": (lambda: torch.full((1, 5, 4), 0.5, dtype=torch.bfloat16, requires_grad=True), [GREY]),
    "nested list": (lambda: [[[255, 0, 0], [0, 0, 255]]], [RED, BLUE]),
}


def close(found: Colour, wanted: Colour) -> bool:
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= 1


@pytest.mark.parametrize("name", MODES)
def test_every_mode_and_depth_is_scaled_to_eight_bits(name):
    given, colours = MODES[name]
    shown = rgb(given())
    assert shown.mode == "RGB"
    assert not shown.info
    if len(colours) == 1:
        assert all(close(shown.getpixel((x, 0)), colours[0]) for x in range(shown.width))
    else:
        found = [shown.getpixel((x, 0)) for x in range(shown.width)]
        assert all(map(close, found, colours)), found


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_picture_is_upright_whatever_the_camera_stored(format, orientation):
    upright = corners()
    undone = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undone[orientation]) if orientation > 1 else upright
    more = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    photograph = encoded(stored, format, exif=turned(orientation), **more)
    for given in (photograph, Image.open(io.BytesIO(photograph))):
        shown = rgb(given)
        assert np.abs(np.asarray(shown).astype(int) - np.asarray(upright)).max() <= (
            8 if format == "JPEG" else 0
        )
        assert rgb(shown).tobytes() == shown.tobytes()  # turned once, not twice


@pytest.mark.parametrize("mode", ["I;16", "1", "P", "LA", "RGBA"])
def test_the_orientation_is_applied_in_every_mode(mode):
    stored = Image.new("L", (6, 2), 0).convert(mode) if mode != "I;16" else Image.new("I;16", (6, 2))
    assert rgb(encoded(stored, "PNG", exif=turned(6))).size == (2, 6)


def test_an_invalid_orientation_and_damaged_metadata_leave_the_pixels_as_stored():
    for exif in (turned(0), turned(9), b"Exif\0\0MM\0*\xff\xff\xff\xff"):
        assert rgb(encoded(corners(), "JPEG", exif=exif)).size == (32, 16)


def test_every_container_gives_the_same_picture(tmp_path):
    plain = corners()
    png = encoded(plain, "PNG")
    path = tmp_path / "a picture.png"
    path.write_bytes(png)
    forms = {
        "bytes": png,
        "bytearray": bytearray(png),
        "memoryview": memoryview(png),
        "path": path,
        "str": str(path),
        "file URL": f"file://{path}",
        "data URL": "data:image/png;base64," + base64.b64encode(png).decode(),
        "dict of bytes": {"bytes": png, "path": None},
        "dict of both": {"bytes": png, "path": "elsewhere.png"},
        "dict of path": {"bytes": None, "path": str(path)},
        "BytesIO": io.BytesIO(png),
        "array": np.asarray(plain),
        "tensor": torch.from_numpy(np.asarray(plain).copy()).permute(2, 0, 1),
        "float tensor": torch.from_numpy(np.asarray(plain).copy()).permute(2, 0, 1) / 255,
        "list": np.asarray(plain).tolist(),
    }
    for format, more in LOSSLESS.items():
        forms[format] = encoded(plain, format, **more)
    read = io.BytesIO(png)
    read.read()
    forms["a file already read"] = read
    with path.open("rb") as file:
        forms["file"] = file
        for name, form in forms.items():
            assert rgb(form).tobytes() == plain.tobytes(), name


def stuffed() -> bytes:
    """A PNG with a compressed text of 3 MB."""
    info = PngInfo()
    info.add_text("note", "a" * 3_000_000, zip=True)
    return encoded(corners(), "PNG", pnginfo=info)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no bytes": (lambda: b"", "no bytes"),
    "text": (lambda: b"<html>404</html>", "Pillow"),
    "a Git LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Pillow"),
    "truncated PNG": (lambda: encoded(corners(), "PNG")[:60], "Pillow"),
    "truncated JPEG": (lambda: encoded(corners().resize((320, 160)), "JPEG")[:-400], "truncated"),
    "truncated GIF": (lambda: encoded(corners(), "GIF")[:-20], "Pillow"),
    "bomb": (lambda: raw(60000, 8, bytes(1000)), "DecompressionBomb"),
    "stuffed": (stuffed, "Pillow"),
    "zero width": (lambda: Image.new("RGB", (0, 5)), "0 × 5"),
    "empty array": (lambda: np.zeros((0, 4, 3), dtype=np.uint8), "pixels"),
    "EPS": (lambda: encoded(corners(), "EPS"), "drawing"),
    "missing file": (lambda: "/nowhere/at/all.png", "no such file"),
    "folder": (lambda: "/", "no such file"),
    "device": (lambda: "/dev/zero", "no such file"),
    "null in a path": (lambda: "a\0b", "file"),
    "long path": (lambda: "a" * 5000, "file"),
    "address": (lambda: "https://example.org/a.png", "download"),
    "data URL without base64": (lambda: "data:image/svg+xml,<svg/>", "base64"),
    "damaged data URL": (lambda: "data:image/png;base64,%%%", "base64"),
    "dict of nothing": (lambda: {"bytes": None, "path": None}, "neither"),
    "text file": (lambda: io.StringIO("picture"), "binary mode"),
    "floats of 0..255": (lambda: np.full((4, 4, 3), 200.0), "0..1"),
    "normalised floats": (lambda: np.full((4, 4, 3), -0.5), "0..1"),
    "NaN": (lambda: np.full((4, 4, 3), np.nan), "0..1"),
    "F of NaN": (lambda: Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)), "0..65535"),
    "F beyond": (lambda: Image.fromarray(np.full((4, 4), 1000, dtype=np.float32)), "0..255"),
    "I below zero": (lambda: Image.fromarray(np.full((4, 4), -1, dtype=np.int32)), "0..65535"),
    "integers beyond": (lambda: np.full((4, 4, 3), 256), "0..255"),
    "two channels": (lambda: np.zeros((5, 5, 2), dtype=np.uint8), "channels"),
    "a batch": (lambda: np.zeros((1, 4, 4, 3), dtype=np.uint8), r"\[1, 4, 4, 3\]"),
    "a line": (lambda: np.zeros(4, dtype=np.uint8), r"\[4\]"),
    "complex": (lambda: np.zeros((4, 4), dtype=complex), "complex"),
    "list of pictures": (lambda: [corners(), corners()], "required"),
    "ragged list": (lambda: [[1, 2], [3]], "required"),
    "list of words": (lambda: ["a", "b"], "required"),
    "number": (lambda: 5, "int"),
    "object": (object, "object"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_picture_is_refused_in_one_line(name):
    given, said = REFUSED[name]
    with pytest.raises(RMuseError, match=said) as caught:
        rgb(given(), "row 3")
    assert str(caught.value).startswith("row 3: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert unreadable(given())


def test_damaged_files_are_read_or_refused():
    """Some 600 mutations: never another exception, never another mode."""
    rng = np.random.default_rng(0)
    originals = [encoded(corners(), format, **more) for format, more in (*LOSSLESS.items(), ("JPEG", {}))]
    read = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for original in originals:
            for _ in range(75):
                damaged = bytearray(original)
                for at in rng.integers(0, len(damaged), size=rng.integers(1, 6)):
                    damaged[at] = rng.integers(0, 256)
                kept = bytes(damaged[: rng.integers(len(damaged) // 2, len(damaged) + 1)])
                with contextlib.suppress(RMuseError):
                    read += rgb(kept).mode == "RGB"
    assert 0 < read < 600
