"""Bytes -> checked, upright RGB pixels; nothing else in facescan knows an image format.

Runs call it in child processes only (`facescan.decoding`), where a decoder can do no harm.

What every model gets to see, whatever the file holds:

- EXIF (or XMP) orientation is applied; broken metadata leaves the pixels as they are stored.
- Transparency is laid over white. CMYK, grey, palette and 1-bit become 8-bit RGB by Pillow's
  conversion, and of 16-bit samples the high byte is kept.
- Colour profiles are not applied, because the models' own processors do not apply them.
- Of an animation, and of a file with several pictures, the first picture.
"""

import hashlib
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from facescan.errors import BadImage
from facescan.types import EncodedImage

# Pillow warns of broken metadata, which real photographs often carry and which changes nothing
# here. `warnings.catch_warnings` is not safe in threads, so the filter is set once.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Reason(StrEnum):
    """Why an image cannot be used: the closed set that `BadImage.reason` takes its words from."""

    EMPTY = "empty"
    """No bytes at all, or null in the shard."""
    NOT_AN_IMAGE = "not_an_image"
    """Text, a web page, noise: the first bytes are of no image format."""
    UNSUPPORTED_FORMAT = "unsupported_format"
    """An image, but not JPEG, PNG or WebP."""
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_SMALL = "too_small"
    TRUNCATED = "truncated"
    """The file ends before the picture does."""
    CORRUPT = "corrupt"
    """The header or the data cannot be read."""
    HASH_MISMATCH = "hash_mismatch"
    """The bytes are not those that were ingested."""
    DECODER_CRASHED = "decoder_crashed"
    """The process that read it ended, twice, the second time with nothing else to do."""
    DECODER_TIMEOUT = "decoder_timeout"
    """Reading it takes longer than a run waits."""
    DECODER_MEMORY = "decoder_memory"
    """Reading it takes more memory than a decoding process may have."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What counts as an acceptable image; checked on the header, before any pixel is decoded."""

    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 40_000_000
    min_side: int = 16


# The classes are called directly, past `Image.open`: the first bytes alone choose among them, no
# other decoder can be reached, and `Limits` takes the place of Pillow's warning about size.
_FORMATS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
}

_Pixels = npt.NDArray[np.uint8]


def _as_it_is(pixels: _Pixels) -> _Pixels:
    return pixels


# By orientation, a view of the upright pixels in which they lie as they are stored.
_AS_STORED: dict[int, Callable[[_Pixels], _Pixels]] = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}
_SIDEWAYS = (5, 6, 7, 8)

_STRIP_PIXELS = 1_000_000

# A canvas can be announced larger. No encoder makes one, and libwebp would hold it twice.
_WEBP_MAX_SIDE = 16_383

# At these offsets, the first bytes of formats that people do have photographs in.
_UNSUPPORTED = (
    (0, b"GIF8"),
    (0, b"BM"),
    (0, b"II*\0"),
    (0, b"MM\0*"),
    (0, b"\0\0\1\0"),
    (0, b"8BPS"),
    (0, b"\xff\x0a"),
    (4, b"ftyp"),
    (4, b"jP  "),
    (4, b"JXL "),
)

# Two numbers in a JPEG's header: marker and length of a segment, or height and width of a frame.
_PAIR = struct.Struct(">HH")
_FRAMES = (0xFFC0, 0xFFC1, 0xFFC2)  # baseline, extended, progressive
_TABLES, _SCAN, _JFIF = 0xFFDB, 0xFFDA, 0xFFE0
_JFIF_BYTES = 16
# Huffman tables, restart interval, comment: on opening, Pillow only skips them too.
_UNREAD = (0xFFC4, 0xFFDD, 0xFFFE)

# What Pillow raises on bytes that somebody else made.
_DECODER_ERRORS = (
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    EOFError,
    OSError,
    struct.error,
    zlib.error,
)


def _format(data: bytes) -> str:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if not data:
        raise BadImage(Reason.EMPTY, "no bytes")
    if any(data.startswith(magic, offset) for offset, magic in _UNSUPPORTED):
        raise BadImage(Reason.UNSUPPORTED_FORMAT, "not JPEG, PNG or WebP")
    raise BadImage(Reason.NOT_AN_IMAGE, "the first bytes are of no image format")


def _bad(error: Exception) -> BadImage:
    # Pillow has one exception for all failures to decode; only its words tell a cut file.
    reason = Reason.TRUNCATED if "truncated" in str(error).lower() else Reason.CORRUPT
    return BadImage(reason, str(error) or type(error).__name__)


def _open(data: bytes, format_name: str) -> ImageFile:
    if format_name == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise BadImage(Reason.TRUNCATED, f"{len(data)} bytes, fewer than the header announces")
    try:
        image = _FORMATS[format_name](BytesIO(data))
    except Image.DecompressionBombError as error:
        raise BadImage(Reason.TOO_MANY_PIXELS, str(error)) from None
    except _DECODER_ERRORS as error:
        raise _bad(error) from None
    if format_name == "JPEG" and not image.tile:
        raise BadImage(Reason.TRUNCATED, "the file ends within its header")
    if format_name == "WEBP" and max(image.size) > _WEBP_MAX_SIDE:
        raise BadImage(Reason.CORRUPT, f"sides of {image.size}; WebP has up to {_WEBP_MAX_SIDE}")
    return image


def _size(data: bytes, format_name: str) -> tuple[int, int]:
    """Width and height by the header."""
    plain = _plain_jpeg_size(data) if format_name == "JPEG" else None
    return plain or _open(data, format_name).size


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """The size of a JPEG in whose header there is nothing unusual; None of every other.

    Of nearly all pictures without metadata this saves Pillow's reading of the header: 24 us, mostly
    for tables that only a decoder needs, where this takes 6. What has a size here has the same one
    there: anything that Pillow could refuse or understand otherwise is left to it.
    """
    size, at = None, 2
    while at + _PAIR.size <= len(data):
        marker, length = _PAIR.unpack_from(data, at)
        body, at = data[at + _PAIR.size : at + 2 + length], at + 2 + length
        if at > len(data):
            return None
        if marker == _SCAN:
            return size
        if marker in _FRAMES:
            size = _frame_size(body)
            plain = size is not None
        elif marker == _TABLES:
            plain = _are_whole(body)
        else:
            plain = marker in _UNREAD or (marker == _JFIF and length >= _JFIF_BYTES)
        if not plain:
            return None
    return None


def _frame_size(frame: bytes) -> tuple[int, int] | None:
    """Of a frame of 8 bits, grey, YCbCr or CMYK, with three bytes for each component."""
    if len(frame) not in (9, 15, 18) or frame[0] != 8 or len(frame) != 6 + 3 * frame[5]:
        return None
    height, width = _PAIR.unpack_from(frame, 1)
    return (width, height) if width and height else None


def _are_whole(tables: bytes) -> bool:
    """Whether quantization tables end where their segment does."""
    at = 0
    while at < len(tables):
        at += 65 if tables[at] < 16 else 129
    return at == len(tables)


def check(data: bytes, sha256: str, limits: Limits) -> EncodedImage:
    """Read the header only, and hold it to the limits and the format allow-list.

    `sha256` is the hex digest that `data` is said to have; `decode` verifies it.

    Raises:
        BadImage: with any `Reason` but `hash_mismatch` and those of `facescan.decoding`.
    """
    if len(data) > limits.max_bytes:
        raise BadImage(Reason.TOO_MANY_BYTES, f"{len(data)} bytes, limit {limits.max_bytes}")
    format_name = _format(data)
    width, height = _size(data, format_name)
    if width * height > limits.max_pixels:
        raise BadImage(Reason.TOO_MANY_PIXELS, f"{width}x{height}, limit {limits.max_pixels}")
    if min(width, height) < limits.min_side:
        raise BadImage(Reason.TOO_SMALL, f"{width}x{height}, smallest side {limits.min_side}")
    return EncodedImage(sha256, data, format_name, width, height)


def decode(image: EncodedImage, size: tuple[int, int] | None = None) -> _Pixels:
    """Upright RGB pixels, shape (height, width, 3), in memory of their own.

    `size` is (width, height) to resize to, as the models' processors do it: bicubic by Pillow, on
    the whole upright picture, its aspect not kept. None keeps the picture's own size, in which
    `width` and `height` of `image` change places where the orientation says so.

    Raises:
        BadImage: truncated or corrupt data; the bytes are not those of `image.sha256`.
    """
    if hashlib.sha256(image.data).hexdigest() != image.sha256:
        raise BadImage(Reason.HASH_MISMATCH, f"the bytes are not those of {image.sha256}")
    stored = _open(image.data, image.format)
    if stored.size != (image.width, image.height):
        raise BadImage(Reason.CORRUPT, "the size is not the one that was checked")
    try:
        stored.load()
        pixels = _upright_rgb(stored)
    except _DECODER_ERRORS as error:
        raise _bad(error) from None
    if size is None:
        return pixels
    del stored
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def encode(
    pixels: _Pixels, format_name: Literal["jpeg", "png"], quality: int, max_side: int
) -> bytes:
    """A new file of these pixels alone: no EXIF, no profile, nothing of the file they came from.

    Args:
        pixels: RGB, shape (height, width, 3).
        format_name: of the file.
        quality: of a JPEG, 1 to 95; its colours are kept at full resolution.
        max_side: a picture with a longer side is made smaller, its aspect kept.
    """
    image = Image.fromarray(pixels)
    image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    buffer = BytesIO()
    if format_name == "jpeg":
        image.save(buffer, "JPEG", quality=quality, subsampling=0)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def _upright_rgb(image: ImageFile) -> _Pixels:
    orientation = _orientation(image)
    width, height = image.size
    upright = (width, height, 3) if orientation in _SIDEWAYS else (height, width, 3)
    pixels = np.empty(upright, np.uint8)
    # In strips, since at 40 megapixels every further copy of the whole picture is 160 MB.
    as_stored = _AS_STORED.get(orientation, _as_it_is)(pixels)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = image if rows >= height else image.crop((0, top, width, bottom))
        as_stored[top:bottom] = np.asarray(_to_rgb(strip))
    return pixels


def _orientation(image: ImageFile) -> int:
    # `ImageOps.exif_transpose` would also write the metadata anew, which takes longer than the
    # pixels and fails on metadata that is only half broken.
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _DECODER_ERRORS:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        high_bytes = (np.asarray(image) >> 8).astype(np.uint8)
        return Image.fromarray(high_bytes).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    return image.convert("RGB")
