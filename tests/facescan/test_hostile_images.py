"""A corpus of bad and odd images, made on the spot, each with what must become of it.

Beside it, the memory that bombs may cost, and mutations of valid files (`bench.fuzz_images`; its
full length is a benchmark).
"""

import base64
import gzip
import hashlib
import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image

from bench import fuzz_images
from bench.fuzz_images import png_chunk
from facescan import images
from facescan.errors import BadImage
from facescan.images import Limits, Reason, check, decode

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def scene(width: int = 48, height: int = 32) -> Image.Image:
    """A picture without any symmetry: every turn and flip of it differs."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x + y) * 2 % 256], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


def encode(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


SCENE = scene()
JPEG = encode(SCENE, "JPEG", quality=95)
PROGRESSIVE = encode(SCENE, "JPEG", quality=95, progressive=True)
PNG = encode(SCENE, "PNG")
WEBP = encode(SCENE, "WEBP", lossless=True)
LOSSY = encode(SCENE, "WEBP")
GREY: Colour = (77, 77, 77)


def ihdr(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    body = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return png_chunk(b"IHDR", body)


def png(*chunks: bytes, end: bool = True) -> bytes:
    return PNG_MAGIC + b"".join(chunks) + (png_chunk(b"IEND", b"") if end else b"")


def rows(width: int, height: int, start: bytes = b"\0") -> bytes:
    """Grey pixels of value 77, not compressed yet; `start` is the filter of each row."""
    return (start + bytes([77]) * width) * height


def grey_png(*before: bytes, data: bytes | None = None, header: bytes | None = None) -> bytes:
    """A grey square of 20 pixels; `before` are chunks that stand before the data."""
    idat = png_chunk(b"IDAT", zlib.compress(rows(20, 20)) if data is None else data)
    return png(header or ihdr(20, 20, colour=0), *before, idat)


@cache
def zeros(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes * 1_000_000), 9)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2) + body


def jpeg_with(*segments: bytes, picture: bytes = JPEG) -> bytes:
    """Segments put behind the first marker."""
    return picture[:2] + b"".join(segments) + picture[2:]


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags.tobytes()


def raw_exif(kind: int, count: int, value: bytes, next_ifd: int = 0) -> bytes:
    """EXIF with an orientation of any type, count and value."""
    entry = struct.pack("<HHHI", 1, 0x0112, kind, count) + value
    return b"Exif\0\0II*\0\x08\0\0\0" + entry + next_ifd.to_bytes(4, "little")


def patched(data: bytes, marker: bytes, offset: int, patch: bytes) -> bytes:
    """The bytes from `offset` behind the first `marker` on are others."""
    at = data.index(marker) + offset
    return data[:at] + patch + data[at + len(patch) :]


def without(data: bytes, marker: int) -> bytes:
    """A JPEG without its first segment of this kind."""
    start = data.index(bytes([0xFF, marker]))
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


def without_huffman_tables() -> bytes:
    """As cameras that write moving JPEG leave them out; libjpeg puts in the usual ones."""
    data = JPEG
    while b"\xff\xc4" in data[: data.index(b"\xff\xda")]:
        data = without(data, 0xC4)
    return data


def riff(*chunks: tuple[bytes, bytes], size: int | None = None) -> bytes:
    body = b"WEBP"
    for name, data in chunks:
        body += name + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)
    return b"RIFF" + (len(body) if size is None else size).to_bytes(4, "little") + body


def vp8x(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", bytes([flags, 0, 0, 0]) + sides


def picture_chunk(webp: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(webp[16:20], "little")
    return webp[12:16], webp[20 : 20 + size]


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("evil.py", "raise SystemExit")
    return buffer.getvalue()


def interlaced() -> bytes:
    """Adam7, which Pillow cannot write: seven passes over a square of 16 pixels."""
    passes = [(0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2)]
    data = b"".join(
        rows(len(range(x, 16, dx)), len(range(y, 16, dy)))
        for x, dx, y, dy in [*passes, (0, 1, 1, 2)]
    )
    header = ihdr(16, 16, colour=0, interlace=1)
    return png(header, png_chunk(b"IDAT", zlib.compress(data)))


def animation(format_name: str, **options: Any) -> bytes:
    others = [Image.new("RGB", SCENE.size)] * 3
    return encode(SCENE, format_name, save_all=True, append_images=others, **options)


def text_bombs() -> list[bytes]:
    """10 KB each, 10 MB when unpacked; more in all than any memory limit."""
    return [png_chunk(b"zTXt", b"key%d\0\0" % n + zeros(10)) for n in range(80)]


@dataclass(frozen=True, slots=True)
class Near:
    """The scene, but for what lossy compression costs."""

    mean_error: float = 12.0


Expected = Reason | Colour | Image.Image | Near | tuple[int, int]
"""A reason; one colour all over; exactly this picture; about the scene; height and width only,
where libjpeg and Pillow fill what is missing without a word."""

CORPUS: dict[str, tuple[bytes | Callable[[], bytes], Expected]] = {
    # No image.
    "no bytes": (b"", Reason.EMPTY),
    "a web page": (b"<!DOCTYPE html><html>404</html>", Reason.NOT_AN_IMAGE),
    "a web page that is called a picture in it": (
        b"<img src='data:image/png;base64,iVBORw0KGgo='>",
        Reason.NOT_AN_IMAGE,
    ),
    "json": (b'{"error": "not found"}', Reason.NOT_AN_IMAGE),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", Reason.NOT_AN_IMAGE),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", Reason.NOT_AN_IMAGE),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", Reason.NOT_AN_IMAGE),
    "a pointer of git lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        Reason.NOT_AN_IMAGE,
    ),
    "noise": (bytes(range(256)), Reason.NOT_AN_IMAGE),
    "zeros": (bytes(10_000), Reason.NOT_AN_IMAGE),
    "two bytes of a jpeg": (b"\xff\xd8", Reason.NOT_AN_IMAGE),
    "seven bytes of a png": (PNG[:7], Reason.NOT_AN_IMAGE),
    "base64 of a jpeg": (base64.b64encode(JPEG), Reason.NOT_AN_IMAGE),
    "a png in gzip": (gzip.compress(PNG), Reason.NOT_AN_IMAGE),
    "a png sent as text": (PNG.replace(b"\r\n", b"\n"), Reason.NOT_AN_IMAGE),
    "a png behind a blank": (b" " + PNG, Reason.NOT_AN_IMAGE),
    "a zip file": (archive(), Reason.NOT_AN_IMAGE),
    "a sound in riff": (riff().replace(b"WEBP", b"WAVE"), Reason.NOT_AN_IMAGE),
    # Of another format.
    "gif": (encode(SCENE, "GIF"), Reason.UNSUPPORTED_FORMAT),
    "a moving gif": (animation("GIF"), Reason.UNSUPPORTED_FORMAT),
    "tiff": (encode(SCENE, "TIFF"), Reason.UNSUPPORTED_FORMAT),
    "tiff of several pages": (animation("TIFF"), Reason.UNSUPPORTED_FORMAT),
    "tiff, other byte order": (b"MM\0*\0\0\0\x08", Reason.UNSUPPORTED_FORMAT),
    "bmp": (encode(SCENE, "BMP"), Reason.UNSUPPORTED_FORMAT),
    "ico": (encode(SCENE, "ICO"), Reason.UNSUPPORTED_FORMAT),
    "psd": (b"8BPS\0\x01" + bytes(40), Reason.UNSUPPORTED_FORMAT),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(40), Reason.UNSUPPORTED_FORMAT),
    "avif": (b"\0\0\0\x18ftypavif" + bytes(40), Reason.UNSUPPORTED_FORMAT),
    "jpeg xl": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), Reason.UNSUPPORTED_FORMAT),
    "jpeg xl, bare": (b"\xff\x0a" + bytes(40), Reason.UNSUPPORTED_FORMAT),
    "jpeg 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), Reason.UNSUPPORTED_FORMAT),
    # JPEG.
    "jpeg, cut in its first marker": (JPEG[:4], Reason.CORRUPT),
    "jpeg, cut in its header": (JPEG[:200], Reason.TRUNCATED),
    "jpeg, cut before its scan": (JPEG[: JPEG.index(b"\xff\xda")], Reason.TRUNCATED),
    "jpeg, cut behind its scan's header": (JPEG[: JPEG.index(b"\xff\xda") + 14], Reason.TRUNCATED),
    "jpeg, cut at three quarters": (JPEG[: len(JPEG) * 3 // 4], Reason.TRUNCATED),
    "jpeg, cut by one byte": (JPEG[:-1], Reason.TRUNCATED),
    "jpeg without its end": (JPEG[:-2], Reason.TRUNCATED),
    "progressive jpeg, cut in half": (PROGRESSIVE[: len(PROGRESSIVE) // 2], Reason.TRUNCATED),
    "progressive jpeg, cut in its last scan": (PROGRESSIVE[:-20], Reason.TRUNCATED),
    "progressive jpeg": (PROGRESSIVE, Near()),
    "jpeg of no height": (patched(JPEG, b"\xff\xc0", 5, b"\0\0"), Reason.CORRUPT),
    "jpeg of no width": (patched(JPEG, b"\xff\xc0", 7, b"\0\0"), Reason.CORRUPT),
    "jpeg, taller than its data": (patched(JPEG, b"\xff\xc0", 5, b"\1\0"), (256, 48)),
    "jpeg with a segment of length 0": (patched(JPEG, b"\xff\xdb", 2, b"\0\0"), Reason.CORRUPT),
    "jpeg with a segment to its end": (
        patched(JPEG, b"\xff\xe0", 2, b"\xff\xff"),
        Reason.TRUNCATED,
    ),
    "jpeg without quantization": (without(without(JPEG, 0xDB), 0xDB), Reason.CORRUPT),
    "jpeg without huffman tables": (without_huffman_tables(), Near()),
    "jpeg of 12 bits": (patched(JPEG, b"\xff\xc0", 4, b"\x0c"), Reason.CORRUPT),
    "jpeg of seven components": (patched(JPEG, b"\xff\xc0", 9, b"\7"), Reason.CORRUPT),
    "jpeg, lossless": (patched(JPEG, b"\xff\xc0", 0, b"\xff\xc3"), Reason.CORRUPT),
    "jpeg and zip in one": (JPEG + archive(), Near()),
    "jpeg with a web page in a comment": (
        jpeg_with(segment(0xFE, b"<script>alert(1)</script>")),
        Near(),
    ),
    "jpeg behind a jpeg": (JPEG + encode(Image.new("RGB", (99, 99)), "JPEG"), Near()),
    "jpeg with fill bytes": (JPEG.replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1), Near()),
    "jpeg with two headers": (jpeg_with(JPEG[2 : JPEG.index(b"\xff\xda")]), Reason.CORRUPT),
    "jpeg of inverted cmyk": (
        encode(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG"),
        (255, 0, 0),
    ),
    "jpeg with a broken colour profile": (
        jpeg_with(segment(0xE2, b"ICC_PROFILE\0\x07\x02" + b"x" * 50)),
        Near(),
    ),
    "jpeg with a thumbnail that is another picture": (
        jpeg_with(segment(0xE1, exif(1) + encode(Image.new("RGB", (16, 16)), "JPEG"))),
        Near(),
    ),
    # Metadata that does not matter, or lies.
    "orientation of 0": (jpeg_with(segment(0xE1, exif(0))), Near()),
    "orientation of 9": (jpeg_with(segment(0xE1, exif(9))), Near()),
    "orientation that is text": (jpeg_with(segment(0xE1, raw_exif(2, 4, b"six\0"))), Near()),
    "orientation that is a fraction by zero": (
        jpeg_with(segment(0xE1, raw_exif(5, 1, b"\x1a\0\0\0") + bytes(8))),
        Near(),
    ),
    "orientation a billion times": (
        jpeg_with(segment(0xE1, raw_exif(3, 10**9, b"\x1a\0\0\0"))),
        Near(),
    ),
    "exif that goes in circles": (
        jpeg_with(segment(0xE1, raw_exif(3, 1, b"\1\0\0\0", next_ifd=8))),
        Near(),
    ),
    "exif of 65,535 entries": (
        jpeg_with(segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff")),
        Near(),
    ),
    "exif of nothing": (jpeg_with(segment(0xE1, b"Exif\0\0")), Near()),
    # PNG.
    "png, cut in its header": (PNG[:27], Reason.TRUNCATED),
    "png, cut at three quarters": (PNG[: len(PNG) * 3 // 4], Reason.TRUNCATED),
    "png, only its first bytes": (PNG_MAGIC, Reason.CORRUPT),
    "png, noise for a header": (PNG[:20] + b"\xff" * 40, Reason.CORRUPT),
    "png, wrong checksum of its header": (patched(PNG, b"IHDR", 17, bytes(4)), Reason.CORRUPT),
    "png, wrong checksum of its data": (PNG[:-16] + bytes(4) + PNG[-12:], SCENE),
    "png, wrong checksum of a text": (
        grey_png(png_chunk(b"tEXt", b"a\0b")[:-4] + bytes(4)),
        Reason.CORRUPT,
    ),
    "png, header of length 0": (patched(PNG, b"IHDR", -4, bytes(4)), Reason.TRUNCATED),
    "png, data of 4 GB": (patched(PNG, b"IDAT", -4, b"\xff" * 4), SCENE),
    "png, data of negative length": (patched(PNG, b"IDAT", -4, b"\x80\0\0\0"), SCENE),
    "png, data shorter than it says": (patched(PNG, b"IDAT", -4, b"\0\0\0\x10"), Reason.CORRUPT),
    "png without data": (png(ihdr(20, 20)), Reason.CORRUPT),
    "png without its end": (PNG[:-12], SCENE),
    "png with two headers": (
        PNG[:33] + ihdr(20, 20, colour=0) + PNG[33:],
        Reason.CORRUPT,
    ),
    "png with a picture behind its end": (PNG + grey_png(), SCENE),
    "png and zip in one": (PNG + archive(), SCENE),
    "png with a web page in it": (grey_png(png_chunk(b"tEXt", b"a\0<script>")), GREY),
    "png with an unknown chunk": (grey_png(png_chunk(b"abCd", b"x" * 100)), GREY),
    "png with an unknown chunk that matters": (grey_png(png_chunk(b"ABCD", b"x")), GREY),
    "png of depth 3": (grey_png(header=ihdr(20, 20, depth=3, colour=0)), Reason.CORRUPT),
    "png of colour type 5": (grey_png(header=ihdr(20, 20, colour=5)), Reason.CORRUPT),
    "png of no width": (grey_png(header=ihdr(0, 20, colour=0)), Reason.CORRUPT),
    "png of no height": (grey_png(header=ihdr(20, 0, colour=0)), Reason.CORRUPT),
    "png of unknown filters": (grey_png(data=zlib.compress(rows(20, 20, b"\x09"))), Reason.CORRUPT),
    "png of rows that are missing": (grey_png(data=zlib.compress(rows(20, 7))), (20, 20)),
    "png of rows that are too many": (grey_png(data=zlib.compress(rows(20, 70))), GREY),
    "png, data that is not compressed": (grey_png(data=rows(20, 20)), Reason.CORRUPT),
    "png, data compressed in the middle only": (
        grey_png(data=zlib.compress(rows(20, 20))[:12]),
        Reason.TRUNCATED,
    ),
    "png of a palette that is missing": (grey_png(header=ihdr(20, 20, colour=3)), Reason.CORRUPT),
    "png, interlaced": (interlaced(), GREY),
    "apng that announces a billion pictures": (
        grey_png(png_chunk(b"acTL", struct.pack(">II", 10**9, 0))),
        GREY,
    ),
    "apng": (animation("PNG"), SCENE),
    # Bombs.
    "png bomb, 30,000 x 30,000 in 110 KB": (
        lambda: png(
            ihdr(30_000, 30_000, depth=1, colour=0),
            png_chunk(b"IDAT", zlib.compress(bytes(3_751 * 30_000), 9)),
        ),
        Reason.TOO_MANY_PIXELS,
    ),
    "png of 9,500 x 9,500": (png(ihdr(9_500, 9_500)), Reason.TOO_MANY_PIXELS),
    "jpeg of 65,000 x 65,000": (
        patched(JPEG, b"\xff\xc0", 5, (65_000).to_bytes(2) * 2),
        Reason.TOO_MANY_PIXELS,
    ),
    "webp of 16,000 x 16,000": (
        riff(vp8x(16_000, 16_000), picture_chunk(LOSSY)),
        Reason.TOO_MANY_PIXELS,
    ),
    "png bomb in its data": (
        lambda: png(ihdr(20, 20, colour=0), png_chunk(b"IDAT", zeros(100))),
        (0, 0, 0),
    ),
    "png bomb in its colour profile": (
        lambda: grey_png(png_chunk(b"iCCP", b"icc\0\0" + zeros(100))),
        Reason.CORRUPT,
    ),
    "png bomb in a text": (
        lambda: grey_png(png_chunk(b"zTXt", b"a\0\0" + zeros(100))),
        Reason.CORRUPT,
    ),
    "png bomb in an international text": (
        lambda: grey_png(png_chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(100))),
        Reason.CORRUPT,
    ),
    "png bomb in many texts": (lambda: grey_png(*text_bombs()), Reason.CORRUPT),
    "png with 10 MB of zeros for exif": (lambda: grey_png(png_chunk(b"eXIf", bytes(10**7))), GREY),
    # WebP.
    "webp, cut in its header": (WEBP[:20], Reason.TRUNCATED),
    "webp, cut in its data": (WEBP[:-10], Reason.TRUNCATED),
    "webp, only its first bytes": (riff(), Reason.CORRUPT),
    "webp, noise for data": (riff((b"VP8 ", bytes(40))), Reason.CORRUPT),
    "webp of an unknown kind": (riff((b"VP9 ", bytes(40))), Reason.CORRUPT),
    "webp that says it is longer": (
        patched(WEBP, b"RIFF", 4, b"\xff\xff\xff\x7f"),
        Reason.TRUNCATED,
    ),
    "webp that says it is shorter": (riff(picture_chunk(WEBP), size=40), Reason.CORRUPT),
    "webp, data cut and its length mended": (
        riff((b"VP8L", picture_chunk(WEBP)[1][:-40])),
        Reason.CORRUPT,
    ),
    "webp with a chunk of 4 GB": (patched(WEBP, b"VP8L", 4, b"\xff" * 4), Reason.CORRUPT),
    "webp on a larger canvas": (riff(vp8x(400, 300), picture_chunk(WEBP)), Reason.CORRUPT),
    "webp on an endless canvas": (
        lambda: patched(
            animation("WEBP", lossless=True), b"VP8X", 12, (1_048_615).to_bytes(3, "little")
        ),
        Reason.CORRUPT,
    ),
    "webp and zip in one": (WEBP + archive(), SCENE),
    "webp, moving": (animation("WEBP", lossless=True), SCENE),
    # Sizes.
    "1 x 1": (encode(Image.new("RGB", (1, 1)), "JPEG"), Reason.TOO_SMALL),
    "15 x 16": (encode(Image.new("RGB", (15, 16)), "PNG"), Reason.TOO_SMALL),
    "16 x 16": (encode(Image.new("L", (16, 16), 77), "PNG"), GREY),
    "300 x 8": (encode(Image.new("RGB", (300, 8)), "PNG"), Reason.TOO_SMALL),
    "16 x 40,000": (lambda: encode(Image.new("L", (16, 40_000), 77), "JPEG"), GREY),
    "40,000 x 16": (lambda: encode(Image.new("L", (40_000, 16), 77), "PNG"), GREY),
    "40 megapixels": (
        lambda: png(
            ihdr(8_000, 5_000, depth=1, colour=0),
            png_chunk(b"IDAT", zlib.compress(bytes(1_001 * 5_000))),
        ),
        (0, 0, 0),
    ),
    "40 megapixels and a row": (png(ihdr(8_000, 5_001)), Reason.TOO_MANY_PIXELS),
    "20 MiB": (lambda: PNG + bytes(20 * 2**20 - len(PNG)), SCENE),
    "20 MiB and a byte": (lambda: PNG + bytes(20 * 2**20 - len(PNG) + 1), Reason.TOO_MANY_BYTES),
}

# What a camera held the other way stores, so that the orientation brings the scene back upright.
STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
CORPUS |= {
    f"jpeg with orientation {number}": (
        encode(SCENE.transpose(turn), "JPEG", quality=95, exif=exif(number)),
        Near(),
    )
    for number, turn in STORED_AS.items()
}


def outcome(data: bytes) -> Reason | Pixels:
    try:
        return decode(check(data, hashlib.sha256(data).hexdigest(), Limits()))
    except BadImage as error:
        return Reason(error.reason)


@pytest.mark.filterwarnings("ignore::UserWarning")  # the runner's filters stand before ours
@pytest.mark.parametrize("name", CORPUS)
def test_every_file_of_the_corpus_comes_to_its_end(name: str) -> None:
    made, expected = CORPUS[name]
    found = outcome(made if isinstance(made, bytes) else made())
    if isinstance(expected, Reason):
        assert isinstance(found, Reason), f"decoded, shape {found.shape}"
        assert found == expected
        return
    assert not isinstance(found, Reason), found
    if isinstance(expected, Near):
        assert found.shape == (32, 48, 3)
        assert np.abs(found.astype(int) - np.asarray(SCENE)).mean() < expected.mean_error
    elif isinstance(expected, Image.Image):
        assert np.array_equal(found, np.asarray(expected))
    elif len(expected) == 2:
        assert found.shape == (*expected, 3)
    else:
        colours = found.reshape(-1, 3)
        assert np.abs(np.stack([colours.min(0), colours.max(0)]) - np.asarray(expected)).max() <= 2


@pytest.mark.parametrize("number", range(1, 9))
def test_a_picture_made_strip_by_strip_is_the_whole_picture(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear = SCENE.copy()
    clear.putalpha(SCENE.convert("L"))
    turned = clear.transpose(STORED_AS[number]) if number in STORED_AS else clear
    data = encode(turned, "PNG", exif=exif(number))
    whole = outcome(encode(clear, "PNG"))
    monkeypatch.setattr(images, "_STRIP_PIXELS", 7 * turned.width)
    assert np.array_equal(outcome(data), whole)


def test_the_corpus_is_large_and_has_every_reason_that_a_file_can_have() -> None:
    assert len(CORPUS) >= 60
    reasons = {expected for _, expected in CORPUS.values() if isinstance(expected, Reason)}
    elsewhere = {Reason.HASH_MISMATCH, *(r for r in Reason if r.startswith("decoder_"))}
    assert reasons == set(Reason) - elsewhere


_GROWTH = """
import hashlib, json, sys
from pathlib import Path
from facescan.errors import BadImage
from facescan.images import Limits, check, decode

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024

def use(path):
    data = Path(path).read_bytes()
    try:
        decode(check(data, hashlib.sha256(data).hexdigest(), Limits()))
    except BadImage:
        pass

first, *bombs = sys.argv[1:]
use(first)
for path in bombs:
    before = peak()
    use(path)
    print(json.dumps([Path(path).name, peak() - before]))
"""


def test_a_bomb_costs_no_memory(tmp_path: Path) -> None:
    """In a process of its own; each unpacks to 100 MB or more, or announces a gigabyte."""
    bombs = [name for name in CORPUS if "bomb" in name or name.count(",000") == 2]
    paths = [tmp_path / "first.png"]
    paths[0].write_bytes(PNG)
    for name in bombs:
        made, _ = CORPUS[name]
        paths.append(tmp_path / name)
        paths[-1].write_bytes(made if isinstance(made, bytes) else made())
        assert paths[-1].stat().st_size < 1_000_000
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    grown = {name: mib for name, mib in map(json.loads, done.stdout.splitlines())}
    assert len(grown) == len(bombs) >= 7
    assert sum(grown.values()) < 50, grown


def test_two_thousand_mutations_do_nothing_worse_than_be_refused() -> None:
    """The same as `python -m bench.fuzz_images`, which has 50,000."""
    report = fuzz_images.fuzz(mutations=2_000, seed=1, processes=2)
    assert report.good, report
    assert report.outcomes.total() == 2_000
    assert report.outcomes["ok"] > 100
    assert {"corrupt", "truncated", "not_an_image", "too_many_pixels"} < set(report.outcomes)


def _jpegs_with_odd_headers() -> Iterator[bytes]:
    for picture in (JPEG, PROGRESSIVE, encode(SCENE.convert("L"), "JPEG", restart_marker_rows=1)):
        yield picture
        for at in range(3, picture.index(b"\xff\xda") + 16):
            yield picture[:at]
            yield picture[:at] + b"\xff" + picture[at:]
            for value in {0, 8, 0xFF, picture[at] ^ 1, picture[at] ^ 16, (picture[at] + 3) % 256}:
                yield picture[:at] + bytes([value]) + picture[at + 1 :]
    short_jfif = segment(0xE0, b"JFIF\0\1")
    no_side = patched(JPEG, b"\xff\xc0", 5, b"\0\0")
    two_frames = jpeg_with(segment(0xC0, b"\x08\0\x40\0\x40\1\1\x11\0"))
    yield from (jpeg_with(short_jfif), no_side, two_frames, without(JPEG, 0xC0))
    yield from (jpeg_with(segment(0xE1, exif(6))), jpeg_with(segment(0xE2, b"ICC_PROFILE\0")))
    for number in range(6_000):
        if number % len(fuzz_images.valid_files()) < 7:
            yield fuzz_images.mutation(number, seed=2)


def test_a_plain_header_says_what_pillow_finds_in_it() -> None:
    """The size that is read past Pillow is Pillow's, and where it refuses there is none."""
    plain = 0
    for data in _jpegs_with_odd_headers():
        size = images._plain_jpeg_size(data) if data.startswith(b"\xff\xd8\xff") else None
        if size is not None:
            plain += 1
            assert images._open(data, "JPEG").size == size, data.hex()
    assert plain > 5_000


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(JPEG, id="baseline"),
        pytest.param(PROGRESSIVE, id="progressive"),
        pytest.param(encode(SCENE.convert("L"), "JPEG"), id="grey"),
        pytest.param(jpeg_with(segment(0xFE, b"a comment")), id="comment"),
    ],
)
def test_a_plain_header_is_read_past_pillow(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(images._FORMATS, "JPEG")
    image = check(data, hashlib.sha256(data).hexdigest(), Limits())
    assert (image.width, image.height) == SCENE.size
