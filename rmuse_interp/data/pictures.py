"""The one way from a picture, however it is given, to the 8-bit RGB that a model is shown: what a viewer displays."""

import base64
import binascii
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from rmuse_interp import RMuseError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

_ORIENTATION: Final = 0x0112
_VECTOR: Final = frozenset({"EPS", "WMF"})
"""Formats that Pillow draws with other programs; a file that looks like one is refused."""
_CHANNELS: Final = ((3,), (1, 4))
"""Numbers of channels, likelier ones first."""
WANTED: Final = (
    "a picture was required (a PIL image, encoded bytes such as PNG or JPEG, a path, an open file, "
    "{'bytes': …, 'path': …}, or an array of uint8 or of floats in 0..1)"
)


def rgb(source: object, what: str = "picture") -> "Image.Image":
    """Read a picture as 8-bit RGB, the way a viewer displays it.

    The EXIF orientation is applied; of an animation, the first frame is read; transparent pixels lie on white. Deeper
    pixels are scaled to 8 bits (of 16 bits the high byte is kept, floats of 0..1 cover 0..255). Colour profiles are not
    applied, as in the training of the models.

    Args:
        source: a PIL image; encoded bytes, or a file open for reading; a path or a ``data:`` URL; a mapping with
            ``bytes`` or ``path``, as the datasets library has them; an array or tensor [height, width],
            [height, width, channel] or [channel, height, width] with 1, 3 or 4 channels (grey, RGB, RGBA) of uint8,
            uint16, other integers in 0..255, booleans, or floats in 0..1. Where both ends could be
            the channels, three of them are likelier than one or four, and they are first in a tensor, last in an array.
        what: the picture's name in errors.

    Raises:
        RMuseError: the source is none of these, or is damaged, truncated, empty, or too large to be decoded safely.
    """
    try:
        return _read(source)
    except RMuseError as error:
        raise RMuseError(f"{what}: {error}") from None
    except Exception as error:  # Pillow's decoders raise what they like on damaged files
        raise RMuseError(
            f"{what}: a picture that Pillow can read was required, got {_got(source, error)}"
        ) from error


def unreadable(source: object) -> str | None:
    """Why `rgb` cannot read a picture; None where it can."""
    try:
        rgb(source)
    except RMuseError as error:
        return str(error).removeprefix("picture: ")
    return None


def _got(source: object, error: Exception) -> str:
    said = "" if "cannot identify" in str(error) else f": {' '.join(str(error).split())[:120]}"
    named = f"{len(source)} bytes" if isinstance(source, bytes | bytearray) else f"{source!r:.120}"
    return f"{named} ({type(error).__name__}{said})"


def _read(source: object) -> "Image.Image":
    from PIL import Image

    if isinstance(source, Image.Image):
        return _plain(source)
    if isinstance(source, Mapping):
        held = source.get("bytes")
        source = source.get("path") if held is None else held
        if not isinstance(source, bytes | bytearray | memoryview | str | os.PathLike):
            raise RMuseError("a mapping with 'bytes' or 'path' was required, got neither")
    if isinstance(source, str) and "://" in source[:10] and not source.startswith("file://"):
        raise RMuseError(f"a picture at hand was required, got the address {source:.80}; download it first")
    if isinstance(source, str) and source.startswith("data:"):
        source = _inline(source)
    if isinstance(source, str | os.PathLike):
        return _decoded(_file(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return _decoded(bytes(source))
    if hasattr(source, "read"):
        if hasattr(source, "seek"):
            source.seek(0)
        held = source.read()
        if not isinstance(held, bytes):
            raise RMuseError("a file open in binary mode was required, got one open as text")
        return _decoded(held)
    if isinstance(source, Sequence) or hasattr(source, "__array__"):
        return _from_array(source)
    raise RMuseError(f"{WANTED}, got {type(source).__name__}")


def _inline(url: str) -> bytes:
    """The bytes in a ``data:`` URL, as chat clients send pictures."""
    head, _, body = url.partition(",")
    if not head.endswith(";base64"):
        raise RMuseError(f"a data: URL in base64 was required, got {head:.60}")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise RMuseError(f"a data: URL in base64 was required, got one that is damaged ({error})") from None


def _file(source: "str | os.PathLike[str]") -> bytes:
    path = Path(str(source).removeprefix("file://"))
    try:
        if path.is_file():
            return path.read_bytes()
    except (OSError, ValueError) as error:  # not readable, a name too long, a null character in it
        raise RMuseError(f"a readable file was required, got {str(path)!r:.200} ({error!s:.100})") from None
    raise RMuseError(f"a file with a picture was required, got {str(path)!r:.200}: no such file")


def _decoded(encoded: bytes) -> "Image.Image":
    from PIL import Image

    if not encoded:
        raise RMuseError("an encoded picture was required, got no bytes")
    with Image.open(io.BytesIO(encoded)) as picture:
        if picture.format in _VECTOR:
            raise RMuseError(
                f"a picture of pixels was required, got a drawing ({picture.format}); export it as PNG"
            )
        return _plain(picture)


def _plain(picture: "Image.Image") -> "Image.Image":
    """Any Pillow image as RGB, upright."""
    from PIL import ImageOps

    if not all(picture.size):
        raise RMuseError(f"a picture with pixels was required, got one of {picture.width} × {picture.height}")
    picture.load()
    flat = _flat(picture)
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata: viewers show the pixels as they are stored
        orientation = 1
    flat.info.clear()
    if orientation in range(2, 9):
        flat.getexif()[_ORIENTATION] = orientation
        flat = ImageOps.exif_transpose(flat)
        flat.info.clear()
    return flat


def _flat(picture: "Image.Image") -> "Image.Image":
    """The colours as 8-bit RGB, transparent pixels on white; always a new image."""
    import numpy as np
    from PIL import Image, ImageCms

    if picture.mode == "F" or picture.mode.startswith("I"):
        values = np.asarray(picture)
        grey = _eight_bits(values, file=picture.format)
        clear = picture.info.get("transparency")
        if not isinstance(clear, int):
            return Image.fromarray(grey).convert("RGB")
        alpha = np.where(values == clear, 0, 255).astype(np.uint8)
        picture = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    elif picture.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return cast("Image.Image", ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB"))
    if not picture.has_transparency_data:
        return picture.convert("RGB") if picture.mode != "RGB" else picture.copy()
    clear = picture.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # a 16-bit colour, of which Pillow kept the high bytes
        picture = picture.copy()
        picture.info["transparency"] = tuple(level >> 8 for level in clear)
    if picture.mode == "La":
        picture = picture.convert("LA")
    shown = picture.convert("RGBA")
    paper = Image.new("RGB", shown.size, "white")
    paper.paste(shown, mask=shown.getchannel("A"))
    return paper


def _eight_bits(values: "np.ndarray", file: str | None) -> "np.ndarray":
    """Grey values of Pillow's deep modes in 8 bits.

    Pillow keeps 16-bit greys in mode I;16 or, of some files, I. It also keeps 8-bit greys in I and F (`convert`), and
    floats of 0..1 in F: these are told apart by the largest value. Any other range has no agreed meaning.
    """
    import numpy as np

    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):  # NaN too
        raise RMuseError(
            f"grey values of 0..65535 were required, got {low:.6g} to {high:.6g}; scale them to 8 bits"
        )
    if values.dtype.kind == "f":
        if high > 255:
            raise RMuseError(
                f"floats of 0..1 or 0..255 were required, got up to {high:.6g}; scale them to 8 bits"
            )
        return np.rint(values * 255 if high <= 1 else values).astype(np.uint8)
    deep = values.dtype.itemsize == 2 or high > 255 or file in ("PNG", "PPM")
    return (values >> 8 if deep else values).astype(np.uint8)


def _from_array(source: object) -> "Image.Image":
    import numpy as np
    from PIL import Image

    tensor = hasattr(source, "detach")
    if tensor:
        held = cast("Tensor", source).detach().cpu()
        source = held.float() if held.dtype.is_floating_point else held  # bfloat16 has no numpy counterpart
    try:
        values = np.asarray(source)
    except (ValueError, TypeError, OverflowError) as error:
        raise RMuseError(f"{WANTED}, got a {type(source).__name__} ({error})") from None
    if values.dtype.kind not in "uifb" or values.ndim not in (2, 3):
        raise RMuseError(
            f"{WANTED}, got a {type(source).__name__} of {values.dtype}, shape {list(values.shape)}"
        )
    if values.ndim == 3:
        orders = [(axis, n) for n in _CHANNELS for axis in ((0, 2) if tensor else (2, 0))]
        axis = next((axis for axis, n in orders if values.shape[axis] in n), None)
        if axis is None:
            raise RMuseError(
                f"1, 3 or 4 channels, first or last, were required, got shape {list(values.shape)}"
            )
        values = np.moveaxis(values, axis, 2)
        values = values[:, :, 0] if values.shape[2] == 1 else values
    if not values.size:
        raise RMuseError(f"a picture with pixels was required, got shape {list(values.shape)}")
    low, high = values.min(), values.max()
    if values.dtype.kind == "b":
        eight: np.ndarray = values.astype(np.uint8) * 255
    elif values.dtype == np.uint16:
        eight = values >> 8
    elif values.dtype.kind == "f":
        if not (low >= 0 and high <= 1):
            raise RMuseError(
                f"floats in 0..1 were required, got {low:.6g} to {high:.6g}; undo a normalisation, or convert values of "
                "0..255 to uint8"
            )
        eight = np.rint(values.astype(np.float64) * 255)
    else:
        if low < 0 or high > 255:
            raise RMuseError(f"integers in 0..255 were required, got {low} to {high}; scale them")
        eight = values
    return _plain(Image.fromarray(np.ascontiguousarray(eight.astype(np.uint8))))
