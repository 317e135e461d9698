"""How the faces of the dataset `sample` are drawn.

Every label is a visual code drawn on the figure itself. **The codes are arbitrary**: a cap's
colour stands for a label as a flag stands for a letter. No code uses skin tone, hair or anything
else by which people are sorted in life; skin tone is drawn at random, independently of every
label. docs/sample.md shows the code in pictures:

| label | code |
|---|---|
| race | colour of the cap: see `CAP_COLOURS` |
| age | band of the cap, centre and sides each black, grey or white: see `BAND_TONES` |
| gender | discs (Male) or squares (Female) over the ears: see `EAR_PIECES` |
| emotion | form of the mouth, and spots on the cheeks or none: see `FACES` |

All codes are symmetric, so that mirroring a picture does not change its labels, and lie within a
detector's face box grown by 30 % of its side. Labels are uniform and independent. Everything else
(background, place, size, tilt, light, skin, garment) varies without meaning.

The pixels come from NumPy's Philox generator and from drawing in integers, so that they are the
same on every machine.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

SIDE = 224

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Point = tuple[float, float]

LABEL_SETS = {"race": "race-7", "age": "age-9", "gender": "gender-2", "emotion": "emotion-8"}

CAP_COLOURS: dict[str, Colour] = {
    "White": (40, 160, 70),
    "Black": (245, 215, 50),
    "Latino_Hispanic": (60, 200, 215),
    "East Asian": (45, 75, 205),
    "Southeast Asian": (240, 135, 25),
    "Indian": (205, 60, 190),
    "Middle Eastern": (215, 35, 45),
}
"""Race -> colour of the cap."""

AGE_YEARS: dict[str, tuple[int, int]] = {
    "0-2": (0, 2),
    "3-9": (3, 9),
    "10-19": (10, 19),
    "20-29": (20, 29),
    "30-39": (30, 39),
    "40-49": (40, 49),
    "50-59": (50, 59),
    "60-69": (60, 69),
    "more than 70": (70, 89),
}
"""Age -> first and last year of it that is drawn."""

BAND_TONES: dict[str, tuple[int, int]] = {
    age: ((45, 140, 245)[number // 3], (45, 140, 245)[number % 3])
    for number, age in enumerate(AGE_YEARS)
}
"""Age -> grey levels of the cap's band: centre, sides. A number of two digits in base three."""

EAR_PIECES: dict[str, tuple[bool, Colour]] = {
    "Male": (True, (150, 220, 60)),
    "Female": (False, (190, 120, 235)),
}
"""Gender -> whether the pieces over the ears are round (else square), and their colour."""

FACES: dict[str, tuple[str, bool]] = {
    "neutral": ("line", False),
    "happy": ("up", False),
    "sad": ("down", False),
    "surprise": ("open", False),
    "fear": ("open", True),
    "disgust": ("down", True),
    "anger": ("line", True),
    "contempt": ("up", True),
}
"""Emotion -> form of the mouth, and whether the cheeks have spots."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What a drawn face shows.

    Attributes:
        labels: attribute -> label, in the sets of `LABEL_SETS`.
        years: age in years, within the bin of `labels["age"]`; drawn nowhere.
        box: left, top, right, bottom in pixels of the upright square around head, cap and all
            codes; it may reach over the picture's edge.
    """

    labels: dict[str, str]
    years: int
    box: tuple[int, int, int, int]


class _Figure:
    """Draws in the figure's own coordinates: (0, 0) mid-face, 1 half a face's width, y down."""

    def __init__(self, pixels: Pixels, centre: Point, unit: float, tilt: float) -> None:
        self.pixels = pixels
        self.centre = centre
        self.unit = unit
        self._cos = math.cos(tilt) * unit
        self._sin = math.sin(tilt) * unit

    def at(self, point: Point) -> Point:
        """The picture's coordinates of a point of the figure."""
        x, y = point
        return (
            self.centre[0] + x * self._cos - y * self._sin,
            self.centre[1] + x * self._sin + y * self._cos,
        )

    def polygon(self, points: list[Point], colour: Colour) -> None:
        """Fill a polygon."""
        # Sixteenths of a pixel: OpenCV then works in integers, alike on every machine.
        corners = [[round(v * 16) for v in self.at(point)] for point in points]
        cv2.fillPoly(self.pixels, [np.array(corners, np.int32)], colour, cv2.LINE_AA, shift=4)

    def ellipse(self, centre: Point, axes: Point, colour: Colour) -> None:
        """Fill an ellipse of half-axes `axes`."""
        self.polygon(
            [(centre[0] + axes[0] * c, centre[1] + axes[1] * s) for c, s in _CIRCLE], colour
        )

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fill a rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)


_CIRCLE = [(math.cos(math.tau * step / 32), math.sin(math.tau * step / 32)) for step in range(32)]


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def _background(rng: np.random.Generator, side: int) -> Pixels:
    corners = rng.integers(60, 220, (2, 2, 3), dtype=np.uint8)
    pixels = cv2.resize(corners, (side, side), interpolation=cv2.INTER_LINEAR)
    for _ in range(int(rng.integers(0, 5))):
        x, y, radius = (int(v) for v in rng.integers(0, side, 3))
        red, green, blue = (int(v) for v in rng.integers(60, 220, 3))
        cv2.circle(pixels, (x, y), radius // 3 + 4, (red, green, blue), -1, cv2.LINE_AA)
    return np.asarray(pixels, np.uint8)


def _skin(rng: np.random.Generator) -> Colour:
    # From light to dark brown; as dark as the detector still finds eyes and mouth in.
    depth = float(rng.uniform(0, 1))
    light, dark = (240, 205, 180), (155, 105, 78)
    red, green, blue = (round(a + (b - a) * depth) for a, b in zip(light, dark, strict=True))
    return red, green, blue


def _head(figure: _Figure, rng: np.random.Generator, skin: Colour) -> None:
    """Garment, neck, face, eyes, brows and nose: nothing here carries a label."""
    red, green, blue = (int(v) for v in rng.integers(40, 220, 3))
    figure.polygon(
        [(-0.5, 1.5), (0.5, 1.5), (1.7, 2.1), (2.0, 5.0), (-2.0, 5.0), (-1.7, 2.1)],
        (red, green, blue),
    )
    figure.box(-0.42, 1.0, 0.42, 1.75, _shade(skin, 0.72))
    figure.ellipse((0, 0), (1.0, 1.32), _shade(skin, 0.86))
    figure.ellipse((0, 0), (0.92, 1.24), skin)
    iris = int(rng.integers(10, 60))
    gaze = float(rng.uniform(-0.04, 0.04))
    brow = float(rng.uniform(-0.03, 0.05))
    for sign in (-1, 1):
        x = 0.42 * sign
        figure.ellipse((x, -0.20), (0.34, 0.24), _shade(skin, 0.52))
        figure.ellipse((x, -0.15), (0.22, 0.10), (215, 215, 215))
        figure.ellipse((x + gaze, -0.15), (0.14, 0.12), (iris, iris, iris // 2))
        figure.box(x - 0.28, -0.48 - brow, x + 0.28, -0.35 - brow, _shade(skin, 0.3))
    figure.ellipse((0, 0.12), (0.09, 0.34), _shade(skin, 1.1))
    figure.ellipse((0, 0.40), (0.19, 0.07), _shade(skin, 0.66))


def _cap(figure: _Figure, race: str, age: str) -> None:
    """The codes of race (the cap's colour) and age (its band)."""
    dome = [(1.08 * c, -0.9 + 0.92 * s) for c, s in _CIRCLE[16:]] + [(1.08, -0.9)]
    figure.polygon(dome, CAP_COLOURS[race])
    centre, sides = BAND_TONES[age]
    top, bottom = -1.14, -0.74
    figure.box(-1.1, top, 1.1, bottom, (sides, sides, sides))
    figure.box(-0.42, top, 0.42, bottom, (centre, centre, centre))


def _ears(figure: _Figure, gender: str) -> None:
    """The code of gender."""
    is_round, colour = EAR_PIECES[gender]
    for sign in (-1, 1):
        x = 1.1 * sign
        if is_round:
            figure.ellipse((x, 0.05), (0.28, 0.28), colour)
        else:
            figure.box(x - 0.25, -0.2, x + 0.25, 0.3, colour)


def _arc(bend: float) -> list[Point]:
    """A mouth's outline: a thick line through (0, 0.78) whose ends are `bend` higher or lower."""
    steps = [(-0.46 + 0.92 * i / 12, (2 * i / 12 - 1) ** 2) for i in range(13)]
    upper = [(x, 0.70 - bend * (square - 0.5)) for x, square in steps]
    return upper + [(x, 0.84 - bend * (square - 0.5)) for x, square in reversed(steps)]


def _expression(figure: _Figure, emotion: str) -> None:
    """The code of emotion."""
    mouth, spots = FACES[emotion]
    dark = (110, 25, 35)
    if mouth == "open":
        figure.ellipse((0, 0.77), (0.32, 0.23), dark)
    else:
        figure.polygon(_arc({"line": 0.0, "up": 0.36, "down": -0.36}[mouth]), dark)
    if spots:
        for sign in (-1, 1):
            figure.ellipse((0.62 * sign, 0.38), (0.17, 0.17), (250, 95, 140))


def _light(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Brightness, a slope of light from side to side, a tint and some grain."""
    side = pixels.shape[0]
    slope = float(rng.uniform(-0.12, 0.12))
    across = np.linspace(1 - slope, 1 + slope, side, dtype=np.float32)
    tint = rng.uniform(0.95, 1.05, 3).astype(np.float32) * np.float32(rng.uniform(0.82, 1.06))
    lit = pixels * (across[None, :, None] * tint)
    grain = rng.integers(0, int(rng.integers(1, 10)), pixels.shape, dtype=np.uint8)
    return np.clip(lit + grain, 0, 255).astype(np.uint8)


def _choose(rng: np.random.Generator) -> tuple[dict[str, str], int]:
    tables: dict[str, Mapping[str, object]] = {
        "race": CAP_COLOURS,
        "age": AGE_YEARS,
        "gender": EAR_PIECES,
        "emotion": FACES,
    }
    labels = {name: list(table)[int(rng.integers(len(table)))] for name, table in tables.items()}
    first, last = AGE_YEARS[labels["age"]]
    return labels, int(rng.integers(first, last + 1))


def draw(seed: int, index: int, side: int = SIDE) -> tuple[Pixels, Truth]:
    """One face: RGB pixels of shape (side, side, 3), and what it shows."""
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    labels, years = _choose(rng)
    pixels = _background(rng, side)
    unit = float(rng.uniform(0.19, 0.26)) * side
    centre = tuple(side * float(v) for v in rng.uniform((0.42, 0.50), (0.58, 0.58)))
    figure = _Figure(pixels, (centre[0], centre[1]), unit, math.radians(rng.uniform(-7, 7)))
    _head(figure, rng, _skin(rng))
    _ears(figure, labels["gender"])
    _cap(figure, labels["race"], labels["age"])
    _expression(figure, labels["emotion"])
    middle, half = figure.at((0, -0.25)), 1.6 * unit
    box = (middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half)
    left, top, right, bottom = (round(v) for v in box)
    return _light(pixels, rng), Truth(labels, years, (left, top, right, bottom))
