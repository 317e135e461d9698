"""What a model gets to see; bad and odd files are in test_hostile_images.py."""

import hashlib
import io
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from facescan.errors import BadImage
from facescan.images import Limits, Reason, check, decode
from facescan.types import EncodedImage

LIMITS = Limits()
FORMATS = ("JPEG", "PNG", "WEBP")
Pixels = npt.NDArray[np.uint8]


def encode(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def checked(data: bytes, limits: Limits = LIMITS) -> EncodedImage:
    return check(data, hashlib.sha256(data).hexdigest(), limits)


def pixels(data: bytes) -> Pixels:
    return decode(checked(data))


def reason_of(use: Callable[[], object]) -> str:
    with pytest.raises(BadImage) as caught:
        use()
    return caught.value.reason


def scene(width: int = 48, height: int = 32) -> Image.Image:
    """A picture without any symmetry: every turn and flip of it differs."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x * y) % 256], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


# What a camera held the other way stores, so that `orientation` brings the scene back upright.
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("format_name", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_gives_the_same_pixels(orientation: int, format_name: str) -> None:
    turn = STORED_AS[orientation]
    stored = scene() if turn is None else scene().transpose(turn)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(stored, format_name, exif=exif, lossless=True)
    assert np.array_equal(pixels(data), np.asarray(scene()))


def test_a_jpeg_is_turned_upright_and_its_stored_size_is_reported() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored = scene().transpose(Image.Transpose.ROTATE_90)
    image = checked(encode(stored, "JPEG", exif=exif, quality=95))
    assert (image.width, image.height) == (32, 48)
    upright = decode(image)
    assert upright.shape == (32, 48, 3)
    assert np.abs(upright.astype(int) - np.asarray(scene())).mean() < 12


def test_an_orientation_that_means_nothing_is_ignored() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 99
    assert np.array_equal(pixels(encode(scene(), "PNG", exif=exif)), np.asarray(scene()))


def flat(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, (20, 20), value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encode(flat("L", 77), "PNG"), (77, 77, 77), id="grey"),
        pytest.param(encode(flat("1", 1), "PNG"), (255, 255, 255), id="one-bit"),
        pytest.param(
            encode(flat("RGB", (10, 20, 30)).quantize(4), "PNG"), (10, 20, 30), id="palette"
        ),
        pytest.param(encode(flat("I;16", 0x4D80), "PNG"), (0x4D, 0x4D, 0x4D), id="16-bit grey"),
        pytest.param(
            encode(flat("RGBA", (10, 20, 30, 255)), "PNG"), (10, 20, 30), id="opaque alpha"
        ),
        pytest.param(
            encode(flat("RGBA", (10, 20, 30, 0)), "PNG"), (255, 255, 255), id="clear alpha"
        ),
        pytest.param(encode(flat("RGBA", (0, 0, 0, 51)), "PNG"), (204, 204, 204), id="half alpha"),
        pytest.param(encode(flat("LA", (0, 0)), "PNG"), (255, 255, 255), id="grey, clear"),
        pytest.param(
            encode(flat("P", 0), "PNG", transparency=0), (255, 255, 255), id="clear palette"
        ),
        pytest.param(
            encode(flat("RGB", (9, 9, 9)), "PNG", transparency=(9, 9, 9)),
            (255, 255, 255),
            id="one colour is clear",
        ),
        pytest.param(
            encode(flat("RGBA", (0, 0, 0, 0)), "WEBP", lossless=True),
            (255, 255, 255),
            id="clear webp",
        ),
        pytest.param(encode(flat("CMYK", (0, 255, 255, 0)), "JPEG"), (255, 0, 0), id="cmyk"),
        pytest.param(encode(flat("L", 77), "JPEG"), (77, 77, 77), id="grey jpeg"),
    ],
)
def test_every_colour_mode_becomes_rgb(data: bytes, expected: tuple[int, int, int]) -> None:
    found = pixels(data)
    assert found.dtype == np.uint8
    assert found.shape == (20, 20, 3)
    assert np.abs(found.astype(int) - expected).max() <= 2


def sixteen_bit_png(sample: int) -> bytes:
    """A 16x16 RGB PNG with 16 bits a sample, which Pillow cannot write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)

    header = (16).to_bytes(4) + (16).to_bytes(4) + bytes([16, 2, 0, 0, 0])
    rows = (b"\0" + sample.to_bytes(2) * 48) * 16
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_of_sixteen_bit_colour_the_high_byte_is_kept() -> None:
    assert set(pixels(sixteen_bit_png(0xABFF)).ravel()) == {0xAB}


def test_of_an_animation_the_first_picture_is_seen() -> None:
    for format_name in ("WEBP", "PNG"):
        data = encode(
            scene(),
            format_name,
            save_all=True,
            append_images=[Image.new("RGB", (48, 32))],
            lossless=True,
        )
        assert np.array_equal(pixels(data), np.asarray(scene()))


def test_pixels_are_writable_and_not_shared() -> None:
    image = checked(encode(scene(), "PNG"))
    first = decode(image)
    first[:] = 0
    assert np.array_equal(decode(image), np.asarray(scene()))


def test_a_given_size_is_what_pillows_bicubic_makes_of_the_upright_picture(
    real_photo: Path,
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    with Image.open(real_photo) as photo:
        turned = encode(photo.resize((900, 600)), "JPEG", exif=exif)
    with Image.open(io.BytesIO(turned)) as stored:
        upright = stored.transpose(Image.Transpose.ROTATE_90)
    expected = np.asarray(upright.resize((448, 224), resample=Image.Resampling.BICUBIC))
    found = decode(checked(turned), size=(448, 224))
    assert found.shape == (224, 448, 3)
    assert np.array_equal(found, expected)


@pytest.fixture
def real_photo(tmp_path: Path) -> Path:
    """A photograph-like JPEG: smooth areas, edges and noise."""
    noise = np.random.default_rng(7).integers(0, 40, (1200, 1800, 3), dtype=np.uint8)
    base = np.asarray(scene().resize((1800, 1200)))
    path = tmp_path / "photo.jpg"
    Image.fromarray(base // 2 + noise).save(path, quality=90)
    return path


JPEG = encode(scene(), "JPEG")
PNG = encode(scene(), "PNG")
WEBP = encode(scene(), "WEBP")


def test_broken_data_behind_a_good_header_is_corrupt() -> None:
    middle = len(PNG) // 2
    image = checked(PNG[:middle] + bytes(16) + PNG[middle + 16 :])
    assert reason_of(lambda: decode(image)) == Reason.CORRUPT


def test_the_limits_are_inclusive() -> None:
    exact = Limits(max_bytes=len(PNG), max_pixels=48 * 32, min_side=32)
    assert checked(PNG, exact).format == "PNG"
    for limits, reason in (
        (Limits(max_bytes=len(PNG) - 1), Reason.TOO_MANY_BYTES),
        (Limits(max_pixels=48 * 32 - 1), Reason.TOO_MANY_PIXELS),
        (Limits(min_side=33), Reason.TOO_SMALL),
    ):
        assert reason_of(partial(checked, PNG, limits)) == reason


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    ihdr = (13).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)
    return b"\x89PNG\r\n\x1a\n" + ihdr + bytes(4) + b"IDAT" + bytes(4)


def test_a_picture_above_pillows_own_limit_can_be_allowed() -> None:
    image = checked(png_header(9_500, 9_500), Limits(max_pixels=100_000_000))
    assert (image.width, image.height) == (9_500, 9_500)


def test_other_bytes_than_those_ingested_are_not_decoded() -> None:
    image = check(PNG, hashlib.sha256(JPEG).hexdigest(), LIMITS)
    assert reason_of(lambda: decode(image)) == Reason.HASH_MISMATCH


def test_a_size_that_was_not_checked_is_not_decoded() -> None:
    digest = hashlib.sha256(PNG).hexdigest()
    claimed = EncodedImage(digest, PNG, "PNG", width=20, height=20)
    assert reason_of(lambda: decode(claimed)) == Reason.CORRUPT


def test_broken_metadata_neither_warns_nor_costs_the_picture() -> None:
    """In a process of its own: the test runner puts its own warning filters before all others."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "a maker's name that stands outside of the entry"
    good = exif.tobytes()
    variants = [good[: len(good) - cut] for cut in range(0, len(good) - 6, 7)]
    files = [encode(scene(), format_name, exif=v) for v in variants for format_name in FORMATS]
    # A multi-picture header that lies about its pictures: Pillow calls such a file malformed.
    files.append(JPEG[:2] + b"\xff\xe2\x00\x10MPF\0" + b"II*\0\x08\0\0\0\xff\xff" + JPEG[2:])
    script = (
        "import sys, hashlib\n"
        "from facescan.images import Limits, check, decode\n"
        "for line in sys.stdin:\n"
        "    data = bytes.fromhex(line)\n"
        "    decode(check(data, hashlib.sha256(data).hexdigest(), Limits()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        input="\n".join(data.hex() for data in files),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.filterwarnings("ignore::UserWarning")  # the runner's filters stand before ours
@given(
    data=st.sampled_from([JPEG, PNG, WEBP]),
    at=st.floats(0, 1, exclude_max=True),
    patch=st.binary(min_size=1, max_size=12),
)
def test_broken_files_are_refused_or_decoded_but_never_raise_anything_else(
    data: bytes, at: float, patch: bytes
) -> None:
    start = int(at * len(data))
    broken = data[:start] + patch + data[start + len(patch) :]
    with suppress(BadImage):
        assert decode(checked(broken, Limits(max_pixels=1_000_000))).shape[2] == 3


def test_threads_decode_what_one_thread_decodes() -> None:
    sources = [checked(encode(scene(40 + i, 30), "JPEG")) for i in range(24)]
    alone = [decode(image) for image in sources]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(decode, sources * 4))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 4, together, strict=True))
