"""Whether printed figures can all be true; every matrix that is found is checked by hand."""

from decimal import Decimal

import numpy as np
import pytest

from facescan import published
from facescan.published import Paper, Row, Table, rounding
from facescan.score import consistency

PAPER = published.load("arxiv-2410.24148")
OF_CLASSES = ("table15", "table16", "table17", "table18")


def supports(table: Table) -> dict[str, int]:
    return PAPER.test_sets[table.test_set].supports[table.view]


def summary(table: Table) -> Row:
    assert table.summary is not None
    return PAPER.tables[table.summary].row("FaceScanPaliGemma")


def found(name: str, changed: dict[tuple[str, str], int] | None = None) -> consistency.Found:
    """The search on a table of the paper, with some cells printed otherwise."""
    table = PAPER.tables[name]
    rows = [
        row.model_copy(
            update={
                metric: Decimal(value)
                for (label, metric), value in (changed or {}).items()
                if label == row.label
            }
        )
        for row in table.rows
    ]
    images = [supports(table)[str(row.label)] for row in rows]
    return consistency.matrix(consistency.cells(rows, supports(table), summary(table)), images)


def said(name: str, *, holds: bool) -> list[consistency.Check]:
    return [c for c in consistency.checks(PAPER) if c.table == name and c.holds is holds]


def within(value: float, printed: Decimal | None, units: float = 0.5) -> bool:
    assert printed is not None
    low, high = rounding(printed)
    slack = (high - low) * (units - 0.5)
    return low - slack - 1e-9 <= value <= high + slack + 1e-9


@pytest.mark.parametrize("name", OF_CLASSES)
def test_the_printed_accuracy_is_in_the_range_that_the_printed_recalls_allow(name: str) -> None:
    table = PAPER.tables[name]
    low, high = consistency.accuracy_range(table.rows, supports(table))
    accuracy = summary(table).accuracy
    assert accuracy is not None
    assert low <= float(accuracy) / 100 <= high
    assert high - low == pytest.approx(0.01)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_a_matrix_of_whole_images_gives_every_printed_figure(name: str) -> None:
    table = PAPER.tables[name]
    search = found(name)
    assert search.without == ()
    counts = np.array(search.counts)
    assert counts.min() >= 0
    assert counts.sum(axis=1).tolist() == [supports(table)[str(row.label)] for row in table.rows]
    hits, answered, images = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
    for k, row in enumerate(table.rows):
        assert within(hits[k] / answered[k], row.precision)
        assert within(hits[k] / images[k], row.recall)
        assert within(2 * hits[k] / (answered[k] + images[k]), row.f1), "within half a unit"
    assert within(hits.sum() / images.sum(), summary(table).accuracy)
    assert within((hits / images).mean(), summary(table).macro_recall)


@pytest.mark.parametrize(
    ("name", "label", "metric", "value"),
    [
        ("table16", "East Asian", "f1", 83),
        ("table16", "White", "precision", 60),
        ("table15", "anger", "recall", 70),
        ("table18", "20-39", "f1", 89),
    ],
)
def test_a_cell_that_cannot_be_is_found(name: str, label: str, metric: str, value: int) -> None:
    assert found(name, {(label, metric): value}).without == (f"{label} {metric}",)


def test_two_cells_that_cannot_be_are_found() -> None:
    changed = {("East Asian", "f1"): 83, ("White", "precision"): 60}
    assert found("table16", changed).without == ("East Asian f1", "White precision")


def test_what_only_rounding_explains_is_said_of_the_cell() -> None:
    cells = {
        name: [c.says.partition(":")[0] for c in said(name, holds=True) if "Rounding" in c.says]
        for name in OF_CLASSES
    }
    assert cells == {
        "table15": ["neutral", "happy", "fear", "disgust"],
        "table16": ["Indian"],
        "table17": ["Female"],
        "table18": ["More than 60"],
    }
    assert all(not said(name, holds=False) for name in OF_CLASSES)


def test_where_the_paper_contradicts_itself_the_cells_are_named() -> None:
    wrong = {(c.table, cell) for c in consistency.checks(PAPER) for cell in c.cells}
    assert wrong == {
        ("table11", "FaceScanPaliGemma accuracy"),
        ("table13", "FaceScanPaliGemma accuracy"),
        ("utkface-gender", "images of gender-2"),
        ("utkface-gender", "images that FaceScanPaliGemma gains"),
    }
    assert all(bool(c.cells) is not c.holds for c in consistency.checks(PAPER))


def with_row(paper: Paper, table: str, number: int, **figures: int) -> Paper:
    """The paper with other figures in one row."""
    rows = list(paper.tables[table].rows)
    rows[number] = rows[number].model_copy(
        update={metric: Decimal(value) for metric, value in figures.items()}
    )
    changed = paper.tables[table].model_copy(update={"rows": tuple(rows)})
    return paper.model_copy(update={"tables": paper.tables | {table: changed}})


@pytest.mark.parametrize(
    ("figures", "cell"),
    [
        ({"accuracy": 97}, "accuracy of all"),
        ({"macro_f1": 94}, "macro_f1 of all"),
        ({"macro_precision": 98}, "macro_precision of all"),
    ],
)
def test_a_summary_that_its_classes_do_not_allow_is_named(
    figures: dict[str, int], cell: str
) -> None:
    paper = with_row(PAPER, "table11", -1, **figures)
    assert (("table17", cell)) in {
        (check.table, name) for check in consistency.checks(paper) for name in check.cells
    }
