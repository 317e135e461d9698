"""Resamples of a confusion matrix: of rows, or of subjects with all their rows."""

import numpy as np
import pytest

from facescan.score import bootstrap, classes, metrics
from facescan.score.intervals import Rate
from facescan.score.views import Tally, tallies
from tests.facescan.score.hats import Row, counted, failed, load, row


def seen(rows: list[Row]) -> Tally:
    return next(tally for tally in tallies(counted(rows), load) if tally.key.view == "hat-4")


def some(subjects: int, each: int = 4, name: str = "") -> list[Row]:
    rng = np.random.default_rng(1)
    rows: list[Row] = []
    for who in range(subjects):
        target = ("none", "cap", "beret")[who % 3]
        label = target if rng.random() < 0.7 else "crown"
        rows += [row(label, target, subject_id=f"{name}{who}" if name else None)] * each
    return rows


def test_there_are_enough_and_they_are_the_same_again() -> None:
    tally = seen(some(30))
    drawn = bootstrap.resampled(tally)
    assert drawn.shape == (bootstrap.RESAMPLES, 4, 5)
    assert bootstrap.RESAMPLES >= 2000
    np.random.default_rng(3).random(10)
    assert np.array_equal(drawn, bootstrap.resampled(seen(some(30)[::-1])))


def test_rows_are_drawn_with_replacement() -> None:
    rows = [*some(30), failed("refused", "cap"), failed("pending", "cap")]
    drawn = bootstrap.resampled(seen(rows))
    assert (drawn.sum(axis=(1, 2)) == 121).all()
    expected = bootstrap.confusion(seen(rows))
    assert drawn.mean(axis=0) == pytest.approx(expected, abs=0.5)
    assert drawn.var(axis=0) == pytest.approx(expected * (1 - expected / 121), rel=0.15, abs=0.5)


def test_subjects_are_drawn_with_all_their_rows() -> None:
    drawn = bootstrap.resampled(seen(some(60, 4, "s")))
    assert (drawn % 4 == 0).all()
    total = drawn.sum(axis=(1, 2))
    assert total.mean() == pytest.approx(240, rel=0.02)
    assert total.std() == pytest.approx(4 * np.sqrt(60), rel=0.1)


def test_rows_without_a_subject_are_drawn_alone() -> None:
    drawn = bootstrap.resampled(seen([*some(60, 4, "s"), *some(30, 1)]))
    assert drawn.sum(axis=(1, 2)).var() == pytest.approx(16 * 60 + 30, rel=0.15)


def test_many_subjects_are_drawn_in_units_that_vary_as_they_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tally = seen(some(900, 3, "s"))
    each = classes.macro_f1(bootstrap.resampled(tally)).std()
    monkeypatch.setattr(bootstrap, "UNITS", 300)
    assert classes.macro_f1(bootstrap.resampled(tally)).std() == pytest.approx(each, rel=0.15)


def test_a_figure_has_a_wider_interval_where_rows_come_in_subjects() -> None:
    alone = metrics.of(seen(some(60, 4))).macro_f1
    known = metrics.of(seen(some(60, 4, "s"))).macro_f1
    assert alone.value == known.value
    assert width(known) > 1.5 * width(alone)


def test_where_every_answer_is_right_the_interval_is_not_empty() -> None:
    score = metrics.of(seen([row("cap", "cap")] * 50 + [row("none", "none")] * 50))
    recalls = [c.recall.low for c in score.classes if c.support]
    for figure in (score.macro_f1, score.balanced_accuracy):
        assert (figure.value, figure.high) == (1.0, 1.0)
        assert figure.low == recalls[0] == recalls[1]


def test_one_row_or_one_subject_has_no_interval() -> None:
    assert metrics.of(seen([row("cap", "cap")])).macro_f1.low is None
    many = metrics.of(seen([row("cap", "cap", subject_id="a")] * 9))
    assert many.macro_f1.low is None


def width(found: Rate) -> float:
    assert found.low is not None
    assert found.high is not None
    return float(found.high - found.low)
