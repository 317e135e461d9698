"""Geometry: where figures stand in a chart, in percent of its width and height."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import squarify  # type: ignore[import-untyped]  # ships no types

from facescan.report.blocks import (
    At,
    Axis,
    CalibrationBin,
    Figure,
    HeatMap,
    HeatRow,
    Line,
    Segment,
    Strip,
    Tile,
)
from facescan.report.scores_file import Bin, Cell, Grouping, Interval, Score
from facescan.types import RUN_OUTCOMES, Outcome

SHADES = 10
"""The darkest shade; 0 is the lightest."""

_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5)
_MAX_TICKS = 5
_LEAST_SPAN = 0.1


def axis(values: Iterable[float | None], within: tuple[float, float] = (0.0, 1.0)) -> Axis:
    """A range in round numbers around fractions, and ticks in percent.

    It does not begin at 0: what is drawn on it are points, not bars. It spans ten points at
    least, so that chance does not look large.

    Args:
        values: what has its place on it; None has none.
        within: what the range does not leave.
    """
    known = [value for value in values if value is not None] or list(within)
    low, high = min(known), max(known)
    missing = max(0.0, _LEAST_SPAN - (high - low)) / 2
    low, high = low - missing, high + missing
    step = next((s for s in _STEPS if (high - low) / s <= _MAX_TICKS - 1), _STEPS[-1])
    # Rounded: 0.3 / 0.1 is less than 3.
    first = max(math.floor(round(low / step, 6)), math.ceil(within[0] / step))
    last = min(math.ceil(round(high / step, 6)), math.floor(within[1] / step))
    if last <= first:
        first, last = last - 1, first + 1
    signed = within[0] < 0
    ticks = []
    for number in range(first, last + 1):
        text = f"{100 * number * step:{'+' if signed and number else ''}.0f}"
        place = 100 * (number - first) / (last - first)
        ticks.append((round(place, 2), text.replace("-", "\N{MINUS SIGN}")))
    return Axis(first * step, last * step, tuple(ticks))


def strip(
    on: Axis, interval: Interval, *, reference: float | None = None, differs: bool = False
) -> Strip:
    """One row of a forest plot; empty where there is no value."""
    lines: tuple[Line, ...] = ()
    if interval.value is not None:
        low = interval.value if interval.ci_low is None else interval.ci_low
        high = interval.value if interval.ci_high is None else interval.ci_high
        lines = (Line(on.place(low), on.place(high), on.place(interval.value), differs),)
    return Strip(
        lines=lines,
        ticks=on.gridlines,
        reference=None if reference is None else on.place(reference),
    )


OUTCOME_TONES = {
    Outcome.REFUSED: "refused",
    Outcome.BLOCKED: "blocked",
    Outcome.ABSTAINED: "abstained",
    Outcome.UNPARSED: "unparsed",
    Outcome.AMBIGUOUS: "ambiguous",
    Outcome.OFF_LIST: "off-list",
    Outcome.TRUNCATED: "truncated",
    Outcome.MISSED: "missed",
}
"""The outcomes of the model that are no answer, in the order of a bar -> their colours' names."""


def outcome_bar(score: Score) -> Strip:
    """How the rows of a score divide: right, wrong, each kind of no answer, failures of the run."""
    parts = [("right", score.n_correct), ("wrong", score.n_answered - score.n_correct)]
    parts += [(tone, score.outcomes.get(outcome, 0)) for outcome, tone in OUTCOME_TONES.items()]
    parts.append(("run", sum(score.outcomes.get(outcome, 0) for outcome in RUN_OUTCOMES)))
    total = sum(count for _, count in parts)
    left, segments = 0.0, []
    for tone, count in parts:
        if count:
            width = 100 * count / total
            segments.append(Segment(round(left, 3), round(width, 3), tone))
            left += width
    return Strip(segments=tuple(segments))


def heat_map(score: Score, at: At, name: str, caption: str) -> HeatMap:
    """The confusion matrix of a score; outcomes that never were have no column."""
    confusion = score.confusion
    shown = [
        number
        for number, column in enumerate(confusion.columns)
        if column.startswith("label:") or any(row[number] for row in confusion.counts)
    ]
    classes = {each.label: (number, each) for number, each in enumerate(score.classes)}
    rows = []
    for position, target in enumerate(confusion.targets):
        counts = confusion.counts[position]
        total = sum(counts)
        number, scored = classes[target]
        rows.append(
            HeatRow(
                target=target,
                counts=tuple(
                    (
                        Figure(
                            counts[column],
                            at / "confusion" / "counts" / position / column,
                            "count",
                        ),
                        _shade(counts[column], 0, total),
                        confusion.columns[column] == f"label:{target}",
                    )
                    for column in shown
                ),
                recall=Figure(scored.recall.value, at / "classes" / number / "recall" / "value"),
                support=Figure(scored.support, at / "classes" / number / "support", "count"),
            )
        )
    precision: list[Figure | None] = []
    for column in shown:
        label = confusion.columns[column].removeprefix("label:")
        if label == confusion.columns[column]:
            precision.append(None)
            continue
        number, scored = classes[label]
        place = at / "classes" / number / "precision" / "value"
        precision.append(Figure(scored.precision.value, place))
    return HeatMap(
        name=name,
        caption=caption,
        columns=tuple(
            (
                confusion.columns[c].removeprefix("label:").removeprefix("outcome:"),
                confusion.columns[c].startswith("label:"),
            )
            for c in shown
        ),
        rows=tuple(rows),
        precision=tuple(precision),
    )


def _shade(value: float, low: float, high: float) -> int:
    if high <= low:
        return 0
    return min(SHADES, max(0, math.floor((SHADES + 1) * (value - low) / (high - low))))


def differs(cell: Cell, grouping: Grouping) -> bool:
    """Whether the group differs from all groups together, beyond chance.

    First the groups must differ at all. Intervals alone, of many groups or near 100 %, leave the
    pooled rate out more often than they should.
    """
    if grouping.equal_rate is None or not grouping.equal_rate.found:
        return False
    low, high = cell.simultaneous.ci_low, cell.simultaneous.ci_high
    pooled = grouping.pooled.value
    if low is None or high is None or pooled is None:
        return False
    return not low <= pooled <= high


def tiles(grouping: Grouping, at: At) -> tuple[tuple[Tile, ...], Axis]:
    """A squarified treemap of the groups that have rows, and the range that the shades cover.

    Source: M. Bruls, K. Huizing, J. J. van Wijk, "Squarified Treemaps", Data Visualization 2000.
    """
    order = sorted(
        ((number, cell) for number, cell in enumerate(grouping.cells) if cell.n),
        key=lambda pair: -pair[1].n,
    )
    # Laid out in the shape it is looked at in, so that the tiles come out square.
    sizes = squarify.normalize_sizes([cell.n for _, cell in order], 160, 100)
    rectangles: Sequence[Any] = squarify.squarify(sizes, 0, 0, 160, 100)
    on = axis(cell.accuracy.value for _, cell in order)
    return tuple(
        _tile(cell, at / "cells" / number, rectangle, on, differs(cell, grouping))
        for (number, cell), rectangle in zip(order, rectangles, strict=True)
    ), on


def _tile(cell: Cell, at: At, rectangle: Any, on: Axis, stands_out: bool) -> Tile:
    accuracy = cell.accuracy.value
    return Tile(
        left=round(rectangle["x"] / 1.6, 3),
        top=round(rectangle["y"], 3),
        width=round(rectangle["dx"] / 1.6, 3),
        height=round(rectangle["dy"], 3),
        label=tuple(cell.group),
        n=Figure(cell.n, at / "n", "count"),
        accuracy=None if accuracy is None else Figure(accuracy, at / "accuracy" / "value"),
        shade=None if accuracy is None else _shade(accuracy, on.low, on.high),
        differs=stands_out,
    )


def calibration_bins(bins: Iterable[Bin]) -> tuple[CalibrationBin, ...]:
    """The bins that hold answers, on a square from 0 to 100 %."""
    known = [each for each in bins if each.n]
    most = max((each.n for each in known), default=1)
    drawn = []
    for each in known:
        if each.confidence is None or each.accuracy.value is None:
            continue
        value = each.accuracy.value
        low = value if each.accuracy.ci_low is None else each.accuracy.ci_low
        high = value if each.accuracy.ci_high is None else each.accuracy.ci_high
        drawn.append(
            CalibrationBin(
                left=100 * each.low,
                right=100 * each.high,
                share=each.n / most,
                x=100 * each.confidence,
                y=100 * value,
                low=100 * low,
                high=100 * high,
            )
        )
    return tuple(drawn)
