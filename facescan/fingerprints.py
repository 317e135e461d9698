"""Pictures -> perceptual hashes, which are near for pictures that look the same.

A hash is imagehash's `phash`: 64 bits of the low frequencies of a small grey picture. Pictures that
were encoded again or resized have nearly the same bits, but cutting a few per cent off an edge
changes more than a few. So each picture has the hashes of several parts of it as well: the hash of
a copy that was cropped is near to that of the part that was left.

No identity is computed: two photographs of one person are as far apart as those of two.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 64
"""Of the pictures that are hashed, in pixels; whatever shape they had."""

_HASHED = 32
"""Side of the picture that imagehash takes the frequencies of; its own, for 64 bits."""

_CUT = 0.03
"""Share of the sides that is cut off for the parts."""

_FLATTEST = 4.0
"""Standard deviation of grey below which a picture has no structure: its bits are noise."""

PARTS = 10
"""Hashes of a picture: of the whole, then of nine parts of it."""

Hashes = npt.NDArray[np.int64]


def hashes(pixels: npt.NDArray[np.uint8]) -> Hashes | None:
    """The hashes of a picture, that of the whole first; None where it has no structure.

    Args:
        pixels: RGB, `SIDE` wide and high.
    """
    # Only here: importing it takes longer than most commands.
    import imagehash

    grey = Image.fromarray(pixels).convert("L")
    if np.asarray(grey).std() < _FLATTEST:
        return None
    bits = [
        imagehash.phash(grey.resize((_HASHED, _HASHED), Image.Resampling.LANCZOS, box)).hash
        for box in _boxes()
    ]
    return np.packbits(np.stack(bits).reshape(len(bits), -1), axis=1).view(">i8")[:, 0]


def _boxes() -> Sequence[tuple[float, float, float, float]]:
    cut = _CUT * SIDE
    places = (0.0, cut / 2, cut)
    parts = [(x, y, SIDE - cut + x, SIDE - cut + y) for x in places for y in places]
    return [(0.0, 0.0, float(SIDE), float(SIDE)), *parts]
