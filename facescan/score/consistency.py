"""Whether the figures that a paper prints can all be true: asked of intervals and linear programs.

A printed figure stands for every value that rounds to it. For a table of classes that leaves two
questions: does the printed accuracy lie in the range that the printed recalls allow, and is there a
confusion matrix, whole images with the test set's classes, that gives every printed figure? Where
there is none, the smallest set of cells is found without which there is one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import (  # type: ignore[import-untyped]  # ships no types
    Bounds,
    LinearConstraint,
    milp,
)

from facescan.errors import DataError
from facescan.published import Gain, Paper, Row, Table, rounding

_SECONDS = 30.0
"""That the search for a matrix may take; those of the paper's tables take less than one."""


@dataclass(frozen=True, slots=True)
class Check:
    """A question put to a paper, and its answer.

    Attributes:
        table: key of the table in the paper.
        holds: whether what is printed can be true.
        says: the answer in a sentence or two, for the page.
        cells: the cells that cannot all be true, such as `Female f1`; empty where `holds`.
    """

    table: str
    holds: bool
    says: str
    cells: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """A printed figure as a demand on a confusion matrix: low <= weights . counts <= high.

    Attributes:
        name: such as `Female f1`.
        demands: pairs of weights over the counts (K x K, targets in rows) and the most that their
            sum may be.
    """

    name: str
    demands: tuple[tuple[npt.NDArray[np.float64], float], ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What the search for a confusion matrix came to.

    Attributes:
        counts: a matrix that gives every printed figure but those of `without`.
        without: the fewest cells that have to be left out for there to be one.
    """

    counts: tuple[tuple[int, ...], ...]
    without: tuple[str, ...]


def checks(paper: Paper) -> Iterator[Check]:
    """Every question that can be put to the paper's tables, in their order."""
    for name, table in paper.tables.items():
        if table.summary is not None:
            yield from _of_classes(name, table, paper)
        yield from _test_set(name, table, paper)
        for claim in table.claims:
            yield (
                _gain(name, table, paper, claim)
                if isinstance(claim, Gain)
                else _highest(name, table, claim.model, f"{claim.where}: {claim.says}")
            )


def accuracy_range(rows: Sequence[Row], supports: Mapping[str, int]) -> tuple[float, float]:
    """The least and the greatest accuracy, as fractions, that the printed recalls allow."""
    low = high = 0.0
    for row in rows:
        least, greatest = rounding(_printed(row.recall, row))
        low += least * supports[str(row.label)]
        high += greatest * supports[str(row.label)]
    images = sum(supports.values())
    return low / images, high / images


def cells(rows: Sequence[Row], supports: Mapping[str, int], summary: Row) -> list[Cell]:
    """Every printed figure of a table of classes, and those of its summary that are linear.

    The summary's macro precision and macro F1 are no linear functions of the counts.
    """
    classes = len(rows)
    n = np.array([supports[str(row.label)] for row in rows], float)
    found = []
    for k, row in enumerate(rows):
        hits = _only(classes, (k, k))
        answered = np.zeros((classes, classes))
        answered[:, k] = 1.0
        for metric, whole, constant in (
            ("precision", answered, 0.0),
            ("recall", np.zeros((classes, classes)), n[k]),
            # F1 is 2 hits / (support + answered).
            ("f1", answered / 2, n[k] / 2),
        ):
            low, high = rounding(_printed(getattr(row, metric), row))
            demands = (
                (hits - high * whole, high * constant),
                (low * whole - hits, -low * constant),
            )
            found.append(Cell(f"{row.label_as_printed or row.label} {metric}", demands))
    for metric, weights in (
        ("accuracy", np.eye(classes) / n.sum()),
        ("macro_recall", np.diag(1 / n) / classes),
    ):
        printed = getattr(summary, metric)
        if printed is not None:
            low, high = rounding(printed)
            found.append(Cell(f"{metric} of all", ((weights, high), (-weights, -low))))
    return found


def matrix(demanded: Sequence[Cell], supports: Sequence[int]) -> Found:
    """A confusion matrix that gives the printed figures, all but the fewest possible.

    Args:
        demanded: of a table of classes.
        supports: images of each class, in the order of the cells' weights.

    Raises:
        DataError: no answer was found in time.
    """
    whole = _solved(demanded, supports, may_leave_out=False)
    found = whole or _solved(demanded, supports, may_leave_out=True)
    if found is None:
        raise DataError(
            f"whether {len(demanded)} printed figures can all be true was not settled in "
            f"{_SECONDS:.0f} s"
        )
    return found


def _solved(
    demanded: Sequence[Cell], supports: Sequence[int], *, may_leave_out: bool
) -> Found | None:
    """None where there is no matrix, or none was found in time."""
    classes = len(supports)
    counts = classes * classes
    extra = len(demanded) if may_leave_out else 0
    rows: list[npt.NDArray[np.float64]] = []
    most: list[float] = []
    for number, cell in enumerate(demanded):
        for weights, limit in cell.demands:
            row = np.zeros(counts + extra)
            row[:counts] = weights.ravel()
            if may_leave_out:
                # The most that the sum can be: a demand that is left out can always be met.
                row[counts + number] = limit - float(weights.max(axis=1) @ np.array(supports))
            rows.append(row)
            most.append(limit)
    of_class = np.zeros((classes, counts + extra))
    for k in range(classes):
        of_class[k, k * classes : (k + 1) * classes] = 1.0
    solution = milp(
        np.array([0.0] * counts + [1.0] * extra),
        constraints=[
            LinearConstraint(np.array(rows), -np.inf, np.array(most)),
            LinearConstraint(of_class, np.array(supports), np.array(supports)),
        ],
        integrality=np.ones(counts + extra),
        bounds=Bounds(0, np.array([np.inf] * counts + [1.0] * extra)),
        options={"time_limit": _SECONDS},
    )
    if solution.status != 0:
        return None
    values: npt.NDArray[np.int64] = np.rint(solution.x).astype(np.int64)
    return Found(
        counts=tuple(
            tuple(int(n) for n in row) for row in values[:counts].reshape(classes, classes)
        ),
        without=tuple(
            cell.name for cell, left in zip(demanded, values[counts:], strict=False) if left
        ),
    )


def _of_classes(name: str, table: Table, paper: Paper) -> Iterator[Check]:
    supports = paper.test_sets[table.test_set].supports[table.view]
    assert table.summary is not None
    whole = paper.tables[table.summary]
    summary = whole.row(table.rows[0].model)
    low, high = accuracy_range(table.rows, supports)
    if summary.accuracy is not None:
        least, greatest = rounding(summary.accuracy)
        holds = low <= greatest and least <= high
        yield Check(
            name,
            holds,
            f"The printed recalls allow an accuracy of {100 * low:.2f} to {100 * high:.2f} %; "
            f"{whole.title} prints {summary.accuracy} %.",
            () if holds else ("accuracy of all",),
        )
    for metric in ("macro_precision", "macro_recall", "macro_f1"):
        yield from _mean(name, table, whole, summary, metric)
    found = matrix(
        cells(table.rows, supports, summary), [supports[str(row.label)] for row in table.rows]
    )
    if found.without:
        yield Check(
            name,
            False,
            "No confusion matrix gives every printed figure; without "
            f"{', '.join(found.without)} there is one.",
            found.without,
        )
    else:
        yield Check(name, True, "There is a confusion matrix that gives every printed figure.")
    yield from _face_value(name, table.rows)


def _mean(name: str, table: Table, whole: Table, summary: Row, metric: str) -> Iterator[Check]:
    printed = getattr(summary, metric)
    if printed is None:
        return
    of_classes = metric.removeprefix("macro_")
    ranges = [rounding(_printed(getattr(row, of_classes), row)) for row in table.rows]
    low, high = (sum(ends) / len(ranges) for ends in zip(*ranges, strict=True))
    least, greatest = rounding(printed)
    if not (low <= greatest and least <= high):
        yield Check(
            name,
            False,
            f"The printed {of_classes} of the classes allows a mean of {100 * low:.1f} to "
            f"{100 * high:.1f} %; {whole.title} prints {printed} %.",
            (f"{metric} of all",),
        )


def _face_value(name: str, rows: Iterable[Row]) -> Iterator[Check]:
    """Cells that only rounding explains."""
    for row in rows:
        precision, recall = _printed(row.precision, row), _printed(row.recall, row)
        printed = _printed(row.f1, row)
        given = 2 * precision * recall / (precision + recall)
        if given.quantize(printed, ROUND_HALF_UP) != printed:
            yield Check(
                name,
                True,
                f"{row.label_as_printed or row.label}: precision {precision} and recall {recall} "
                f"as printed give F1 {given:.2f}, printed is {printed}. Rounding of the two "
                "explains it.",
            )


def _test_set(name: str, table: Table, paper: Paper) -> Iterator[Check]:
    examined = paper.test_sets[table.test_set]
    images = sum(examined.supports.get(table.view, {}).values())
    if images and images != examined.n:
        yield Check(
            name,
            False,
            f"The classes of {table.view} have {images:,} images, the test set {examined.n:,}.",
            (f"images of {table.view}",),
        )


def _highest(name: str, table: Table, model: str, claim: str) -> Check:
    own = table.row(model)
    above = [
        f"{row.model} {row.accuracy} %"
        for row in table.rows
        if row.accuracy is not None and row.accuracy > _printed(own.accuracy, own)
    ]
    if not above:
        return Check(name, True, f'"{claim}": {table.title} agrees.')
    return Check(
        name,
        False,
        f'"{claim}": {table.title} prints {own.accuracy} % for {model}, and {", ".join(above)}.',
        (f"{model} accuracy",),
    )


def _gain(name: str, table: Table, paper: Paper, claim: Gain) -> Check:
    examined = paper.test_sets[table.test_set]
    images = sum(examined.supports.get(table.view, {}).values()) or examined.n
    rows = [table.row(model) for model in (claim.model, claim.over)]
    better, worse = (rounding(_printed(row.accuracy, row)) for row in rows)
    low, high = images * (better[0] - worse[1]), images * (better[1] - worse[0])
    holds = low <= claim.images <= high
    return Check(
        name,
        holds,
        f'"{claim.where}: {claim.says}": the printed accuracies of {claim.model} and {claim.over} '
        f"allow {low:,.0f} to {high:,.0f} of {images:,} images.",
        () if holds else (f"images that {claim.model} gains",),
    )


def _only(classes: int, place: tuple[int, int]) -> npt.NDArray[np.float64]:
    weights = np.zeros((classes, classes))
    weights[place] = 1.0
    return weights


def _printed(figure: Any, row: Row) -> Decimal:
    """A figure that the check needs.

    Raises:
        DataError: it is not printed.
    """
    if not isinstance(figure, Decimal):
        raise DataError(f"the row of {row.model} {row.label or ''} does not print what is checked")
    return figure
