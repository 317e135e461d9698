"""What a report is made of, without its looks: the page and the Markdown show the same blocks.

A figure keeps where in `metrics.json` it stands, so that a test, or a reader, can look it up there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["percent", "points", "count", "decimal", "p", "years"]
"""percent: a fraction, shown times 100; points: a difference of two such, with its sign."""

NOTHING = "\N{EN DASH}"
"""Stands where a figure is not defined or not known."""

TIMES = " \N{MULTIPLICATION SIGN} "
"""Between the parts of an intersection of groups."""


@dataclass(frozen=True, slots=True)
class At:
    """A place in the `metrics.json` of one of the report's runs, such as `0:/scores/3/n`."""

    text: str

    def __truediv__(self, key: str | int) -> "At":
        return At(f"{self.text}/{str(key).replace('~', '~0').replace('/', '~1')}")


@dataclass(frozen=True, slots=True)
class Figure:
    """A number from `metrics.json`."""

    value: float | None
    at: At
    kind: Kind = "percent"

    @property
    def text(self) -> str:
        """As people read it: one decimal at most for shares, since no data gives more."""
        if self.value is None:
            return NOTHING
        match self.kind:
            case "percent":
                return f"{100 * self.value:.1f}"
            case "points":
                text = f"{100 * self.value:+.1f}"
                if text in ("+0.0", "-0.0"):
                    return "0.0"
                return text.replace("-", "\N{MINUS SIGN}")
            case "count":
                return f"{self.value:,.0f}"
            case "p":
                return "< 0.001" if self.value < 0.001 else f"{self.value:.3f}"
            case "years":
                return f"{self.value:.1f}"
            case "decimal":
                return f"{self.value:.2f}"


Part = str | Figure


@dataclass(frozen=True, slots=True)
class Line:
    """An interval with its value, in percent of the strip's width."""

    low: float
    high: float
    value: float
    differs: bool = False
    """From the strip's reference, beyond chance: drawn in another colour and shape."""
    hollow: bool = False
    """A figure that is not measured here."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a stacked bar, in percent of the strip's width; `tone` is a CSS class."""

    left: float
    width: float
    tone: str


@dataclass(frozen=True, slots=True)
class Strip:
    """One row of a chart: drawn in a table's cell, under an axis in the column's head."""

    lines: tuple[Line, ...] = ()
    segments: tuple[Segment, ...] = ()
    ticks: tuple[float, ...] = ()
    reference: float | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values and its ticks: (percent of the width, text)."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def place(self, value: float) -> float:
        """Where a value stands, in percent of the width; values outside stand at the end."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)

    @property
    def gridlines(self) -> tuple[float, ...]:
        """Where the ticks are."""
        return tuple(place for place, _ in self.ticks)


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: what it says, what it says smaller beside that, or a strip."""

    main: tuple[Part, ...] = ()
    small: tuple[Part, ...] = ()
    strip: Strip | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column; with an axis its cells are strips, which Markdown leaves out."""

    title: str
    numbers: bool = True
    axis: Axis | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first cell of a row says what the row is.

    Attributes:
        name: unique in the report: its anchor.
        legend: (tone of a `Segment`, what it stands for).
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class HeatRow:
    """A target with its counts, the shade of each (0 to 10) and how much of it was right."""

    target: str
    counts: tuple[tuple[Figure, int, bool], ...]
    """(count, shade, whether the column is the target)."""
    recall: Figure
    support: Figure


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A confusion matrix, shaded by the share of the row."""

    name: str
    caption: str
    columns: tuple[tuple[str, bool], ...]
    """(name, whether it is a label)."""
    rows: tuple[HeatRow, ...]
    precision: tuple[Figure | None, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle in percent of the map.

    Attributes:
        shade: 0 to 10; None where the accuracy is not shown.
        differs: from the pooled accuracy, beyond chance.
    """

    left: float
    top: float
    width: float
    height: float
    label: tuple[str, ...]
    n: Figure
    accuracy: Figure | None
    shade: int | None
    differs: bool


@dataclass(frozen=True, slots=True)
class Treemap:
    """Groups as areas.

    Attributes:
        alternative: what it shows, for those who do not see it.
        scale: accuracy in percent at which shade 0 begins, and at which shade 10 ends.
    """

    name: str
    caption: str
    alternative: str
    tiles: tuple[Tile, ...]
    scale: tuple[str, str]


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """A bin in percent of the plot: its bounds, and its point with the interval."""

    left: float
    right: float
    share: float
    """Of the answers of the fullest bin."""
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CalibrationPlot:
    """Accuracy over confidence; the figures stand in a table beside it."""

    name: str
    caption: str
    alternative: str
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: tuple[tuple[Part, ...], ...]


@dataclass(frozen=True, slots=True)
class Quote:
    """Text as it was sent to a model."""

    caption: str
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A thumbnail as a data URI; None where the image cannot be shown, `remark` says why."""

    image_id: str
    source: str | None
    remark: str


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures that were answered wrong in the same way."""

    caption: tuple[Part, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Folded:
    """Blocks that are shown when asked for."""

    summary: str
    blocks: "tuple[Block, ...]"


Block = Table | HeatMap | Treemap | CalibrationPlot | Text | Items | Quote | Gallery | Folded


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what stands under it.

    Attributes:
        name: unique in the report: its anchor.
        title: empty where the blocks say themselves what they are.
        detail: left out, and said so, where the page would become too large.
    """

    name: str
    title: str
    blocks: Sequence[Block] = ()
    sections: "Sequence[Section]" = ()
    detail: bool = False
