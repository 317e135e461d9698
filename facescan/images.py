"""Bytes -> checked, upright RGB pixels; nothing else in facescan decodes images."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facescan.types import EncodedImage


@dataclass(frozen=True, slots=True)
class Limits:
    """What counts as an acceptable image; checked on the header, before any pixel is decoded."""

    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 40_000_000
    min_side: int = 16


def check(data: bytes, sha256: str, limits: Limits) -> EncodedImage:
    """Read the header only, and hold it to the limits and the format allow-list.

    Raises:
        BadImage: with one of the reasons of this module.
    """
    raise NotImplementedError


def decode(image: EncodedImage, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """Upright RGB pixels, shape (height, width, 3).

    `size` is (width, height) to resize to; None keeps the image's own size.

    Raises:
        BadImage: truncated or corrupt data; the bytes are not those of `image.sha256`.
    """
    raise NotImplementedError
