"""How far off an answer is, in labels and in years."""

from math import inf

import pytest

from facescan.attributes import LabelSet
from facescan.attributes import load as shipped
from facescan.score import metrics
from facescan.score.intervals import Rate
from facescan.score.metrics import Score
from facescan.score.ordinal import Ordinal, middles
from facescan.score.views import tallies
from tests.facescan.score.hats import Row, counted, failed, row


def aged(label: str | None, target: str, years: float | None = None, **others: str) -> Row:
    sets = {"attribute": "age", "asked_label_set": "age-9", "target_label_set": "age-9"}
    outcome = "refused" if label is None else "answered"
    return row(label, target, **{"value_years": years, "outcome": outcome, **sets, **others})


def scores(*rows: Row) -> dict[str, Score]:
    found = [metrics.of(tally) for tally in tallies(counted(rows, load=shipped), shipped)]
    return {score.key.view: score for score in found}


def ordinal(*rows: Row, view: str = "age-9") -> Ordinal:
    found = scores(*rows)[view].ordinal
    assert found is not None
    return found


def test_no_answer_is_not_near_and_has_no_distance() -> None:
    found = ordinal(aged("20-29", "30-39"), aged("0-2", "20-29"), aged(None, "20-29"))
    assert found.off_by_one.value == 1 / 3
    assert found.mae_bins.value == 2.0
    assert found.mae_years is None


def test_years_are_counted_from_the_middle_of_the_answered_bin() -> None:
    rows = (aged("20-29", "30-39", 31.0), aged("30-39", "30-39", 34.5), aged("0-2", "0-2"))
    assert nine(ordinal(*rows)) == pytest.approx((31 - 24.5) / 2)
    # 20 to 39 in five bins: 29.5.
    assert nine(ordinal(*rows, view="age-5")) == pytest.approx((1.5 + 5) / 2)


def nine(found: Ordinal) -> float:
    assert found.mae_years is not None
    assert found.mae_years.value is not None
    return found.mae_years.value


def test_without_an_answer_whose_age_is_known_years_are_unknown() -> None:
    found = ordinal(aged(None, "30-39", 31.0), aged("20-29", "20-29"))
    assert found.mae_years is not None
    assert found.mae_years.value is None


def test_labels_without_an_order_have_no_distance() -> None:
    race = {"attribute": "race", "asked_label_set": "race-7", "target_label_set": "race-7"}
    assert scores(row("White", "White", **race))["race-7"].ordinal is None


def test_years_come_in_subjects_too() -> None:
    rows = [aged("20-29", "30-39", 31.0 + who, subject_id=str(who)) for who in range(4)]
    alone, often = ordinal(*rows), ordinal(*(rows * 5))
    assert alone.mae_years == often.mae_years


def test_one_label_alone_has_no_kappa() -> None:
    assert ordinal(aged("0-2", "0-2")).quadratic_kappa.value is None


def test_kappa_has_an_interval_that_narrows_with_the_rows() -> None:
    rows = [aged("0-2", "0-2"), aged("3-9", "3-9"), aged("20-29", "10-19"), aged("0-2", "30-39")]
    few, many = (ordinal(*(rows * times)).quadratic_kappa for times in (10, 160))
    assert few.value == many.value
    assert width(few) == pytest.approx(4 * width(many), rel=0.25)


def width(rate: Rate) -> float:
    assert rate.value is not None
    assert rate.low is not None
    assert rate.high is not None
    assert rate.low < rate.value < rate.high
    return rate.high - rate.low


def test_a_bin_without_an_end_is_as_wide_as_the_one_before() -> None:
    nine_bins = shipped("age").label_set("age-9")
    assert middles(nine_bins)["0-2"] == 1
    assert middles(nine_bins)["20-29"] == 24.5
    assert middles(nine_bins)["more than 70"] == 74.5
    assert middles(shipped("age").label_set("age-5"))["More than 60"] == 69.5
    mixed = LabelSet("x", ("old", "young"), {}, bounds={"old": (10, inf), "young": (0, 9)})
    assert middles(mixed) == {"young": 4.5, "old": 14.5}


def test_failures_of_the_run_are_in_no_distance() -> None:
    failure = {**failed("pending", "0-2"), "attribute": "age"}
    failure |= {"asked_label_set": "age-9", "target_label_set": "age-9"}
    assert ordinal(aged("0-2", "3-9"), failure) == ordinal(aged("0-2", "3-9"))
