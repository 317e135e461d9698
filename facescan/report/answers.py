"""Answers against targets: confusion matrices, classes, order, calibration."""

from collections.abc import Iterable, Sequence

from facescan.report import charts
from facescan.report.blocks import (
    At,
    Block,
    CalibrationPlot,
    Cell,
    Column,
    Figure,
    Folded,
    Gallery,
    Kind,
    Section,
    Table,
    Text,
)
from facescan.report.entries import Entry, Topic
from facescan.report.scores_file import Bin
from facescan.report.summary import interval, place, refusal_note, title

Galleries = dict[str, tuple[Gallery, ...]]
"""Key of an `Entry` -> pictures of its errors."""


_PICTURES = (
    "Some pictures of errors are folded under their matrix. Whether they may be passed on is for "
    "the dataset's licence to say."
)


def confusion(topics: Sequence[Topic], several_places: bool, galleries: Galleries) -> Section:
    """What each target was answered with, for every combination and view."""
    return Section(
        "confusion",
        "Answers against targets",
        [
            Text(
                (
                    "Rows are targets, columns answers; a cell is a count, shaded by its share of "
                    "the row. Recall and precision in percent.",
                )
            ),
            *refusal_note(entry for topic in topics for entry in topic.entries),
            *([Text((_PICTURES,))] if galleries else []),
        ],
        [
            Section(
                f"confusion-{place(topic)}",
                title(topic, several_places),
                (),
                [_combination(*views, galleries) for views in topic.primary],
            )
            for topic in topics
        ],
    )


def _combination(entry: Entry, others: Sequence[Entry], galleries: Galleries) -> Section:
    blocks = list(_view(entry))
    blocks += [Folded(f"{entry.who}, {other.view}", tuple(_view(other))) for other in others]
    if pictures := galleries.get(entry.key):
        blocks.append(Folded(f"Pictures of errors: {entry.who}, {entry.view}", pictures))
    name = f"confusion-{entry.key}"
    return Section(name, f"{entry.name}, {entry.view}", blocks, detail=True)


def _view(entry: Entry) -> Iterable[Block]:
    topic = f"{entry.score.attribute}: {entry.who}, {entry.view}"
    yield charts.heat_map(entry.score, entry.at, f"heat-{entry.key}", f"Confusion, {topic}")
    if entry.score.ordinal is not None:
        yield _ordinal(entry, topic)
    yield Folded(f"Precision, recall and F1 by class: {entry.view}", (_classes(entry, topic),))


def _classes(entry: Entry, topic: str) -> Table:
    found = [each.recall for each in entry.score.classes]
    on = charts.axis(v for i in found for v in (i.value, i.ci_low, i.ci_high))
    rows = []
    for number, each in enumerate(entry.score.classes):
        at = entry.at / "classes" / number
        rows.append(
            (
                Cell((each.label,)),
                Cell(strip=charts.strip(on, each.recall)),
                interval(each.recall, at / "recall"),
                interval(each.precision, at / "precision"),
                interval(each.f1, at / "f1"),
                Cell((Figure(each.support, at / "support", "count"),)),
                Cell((Figure(each.n_predicted, at / "n_predicted", "count"),)),
            )
        )
    return Table(
        f"table-classes-{entry.key}",
        f"Classes, {topic}",
        (
            Column("class", numbers=False),
            Column("recall %", axis=on),
            Column("recall %"),
            Column("precision %"),
            Column("F1 %"),
            Column("targets"),
            Column("answers"),
        ),
        tuple(rows),
    )


def measures(name: str, caption: str, rows: Iterable[tuple[str, Cell]]) -> Table:
    """A table of single figures."""
    return Table(
        name,
        caption,
        (Column("measure", numbers=False), Column("value")),
        tuple((Cell((label,)), cell) for label, cell in rows),
    )


def single(value: float | None, at: At, kind: Kind) -> Cell:
    """A figure without an interval."""
    return Cell((Figure(value, at, kind),))


def _ordinal(entry: Entry, topic: str) -> Table:
    ordinal, at = entry.score.ordinal, entry.at / "ordinal"
    assert ordinal is not None
    rows = [
        ("right or one class off, %", interval(ordinal.off_by_one, at / "off_by_one")),
        (
            "mean distance in classes",
            interval(ordinal.mae_bins, at / "mae_bins", "decimal"),
        ),
        (
            "quadratic kappa",
            interval(ordinal.quadratic_kappa, at / "quadratic_kappa", "decimal"),
        ),
    ]
    if ordinal.mae_years is not None:
        years = interval(ordinal.mae_years, at / "mae_years", "years")
        rows.append(("mean distance in years", years))
    return measures(f"table-order-{entry.key}", f"Order, {topic}", rows)


def calibration(topics: Sequence[Topic], several_places: bool) -> Section:
    """Whether the probabilities of answers are what they say."""
    found = [
        Section(
            f"calibration-{entry.key}",
            f"{title(topic, several_places)}: {entry.name}, {entry.view}",
            list(_calibration(entry)),
            detail=True,
        )
        for topic in topics
        for entry, _ in topic.primary
        if entry.score.calibration is not None
    ]
    said = (
        "Of answers given with 80 % confidence 80 % should be right. Points below the line are "
        "answers of which the model was too sure."
        if found
        else "No probabilities of answers were recorded; protocols with the answer mode score "
        "have them."
    )
    note = refusal_note(
        entry for topic in topics for entry in topic.entries if entry.score.calibration is not None
    )
    return Section("calibration", "Calibration", [Text((said,)), *note], found)


def _calibration(entry: Entry) -> Iterable[Block]:
    calibration, at = entry.score.calibration, entry.at / "calibration"
    assert calibration is not None
    topic = f"{entry.score.attribute}: {entry.who}, {entry.view}"
    error = Figure(calibration.ece, at / "ece")
    yield CalibrationPlot(
        name=f"calibration-plot-{entry.key}",
        caption=f"Accuracy over confidence, {topic}",
        alternative=f"Accuracy over confidence in {len(calibration.bins)} bins; expected "
        f"calibration error {error.text} percent. The bins are in the table that follows.",
        bins=charts.calibration_bins(calibration.bins),
    )
    yield measures(
        f"table-calibration-{entry.key}",
        f"Calibration, {topic}",
        [
            ("answers", single(calibration.n, at / "n", "count")),
            ("expected calibration error, %", Cell((error,))),
            ("Brier score", single(calibration.brier, at / "brier", "decimal")),
        ],
    )
    bins = Table(
        f"table-bins-{entry.key}",
        f"Bins of confidence, {topic}",
        (
            Column("confidence from %"),
            Column("to %"),
            Column("n"),
            Column("mean confidence %"),
            Column("accuracy %"),
        ),
        tuple(_bin(each, at / "bins" / number) for number, each in enumerate(calibration.bins)),
    )
    yield Folded(f"The bins: {entry.who}, {entry.view}", (bins,))


def _bin(each: Bin, at: At) -> tuple[Cell, ...]:
    return (
        single(each.low, at / "low", "percent"),
        single(each.high, at / "high", "percent"),
        single(each.n, at / "n", "count"),
        single(each.confidence, at / "confidence", "percent"),
        interval(each.accuracy, at / "accuracy"),
    )
