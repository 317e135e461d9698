"""Rows of one subject are not independent: standard errors against statsmodels, and by hand."""

import math
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm  # type: ignore[import-untyped]  # ships no types

from facescan.score import metrics
from facescan.score.counts import Counts
from facescan.score.intervals import Moments, Rate, clustered, mean, rate
from facescan.score.metrics import Score
from facescan.score.subjects import by_cell, by_group, whole
from facescan.score.views import Tally, tallies
from tests.facescan.score.hats import Row, counted, failed, load, row

LABELS = ("none", "cap", "beret", "crown")


def seen(counts: Counts) -> Tally:
    return next(tally for tally in tallies([counts], load) if tally.key.view == "hat-4")


def scored(rows: list[Row], *by: str) -> Score:
    (counts,) = counted(rows, by or ("none",))
    return metrics.of(seen(counts))


def random_rows(seed: int) -> list[Row]:
    """Answers, refusals and run failures of subjects who are alike; some have no subject."""
    rng = np.random.default_rng(seed)
    subjects = int(rng.integers(2, 40))
    chance = rng.beta(2, 1, subjects)
    rows = []
    for _ in range(int(rng.integers(10, 150))):
        who = int(rng.integers(subjects))
        others: dict[str, Any] = {
            "subject_id": None if rng.random() < 0.1 else f"s{who}",
            "group_light": rng.choice(["dim", "bright", "dark"]),
        }
        target = str(rng.choice(LABELS[: int(rng.integers(1, 5))]))
        kind = rng.random()
        if kind < 0.1:
            rows.append(failed(str(rng.choice(["refused", "pending"])), target, **others))
        else:
            label = target if rng.random() < chance[who] else str(rng.choice(LABELS))
            rows.append(row(label, target, **others))
    return rows


def standard_error(rows: list[Row]) -> float | None:
    """By statsmodels: a regression of being right on a constant, clustered by subject."""
    right = np.array([float(r["label"] is not None and r["label"] == r["target"]) for r in rows])
    names = [r["subject_id"] or f"alone {number}" for number, r in enumerate(rows)]
    if len(set(names)) < 2:
        return None
    codes = np.unique(names, return_inverse=True)[1]
    model = sm.OLS(right, np.ones(len(right)))
    fit = model.fit(cov_type="cluster", cov_kwds={"groups": codes, "use_correction": True})
    # The correction has (n-1)/(n-k) as well, which is 1 for a constant alone.
    return float(fit.bse[0])


@pytest.mark.parametrize("seed", range(200))
def test_standard_errors_equal_statsmodels(seed: int) -> None:
    """Of the whole, of every group and of every class."""
    rows = random_rows(seed)
    (counts,) = counted(rows, ("light",))
    tally = seen(counts)
    tried = [r for r in rows if r["outcome"] != "pending"]
    right = tally.correct.astype(np.float64)
    check(whole(counts).moments(right, tally.tried), [tried])
    (grouped,) = counts.grouped
    parts = [[r for r in tried if r["group_light"] == name] for (name,) in grouped.groups]
    check(by_group(counts, grouped).moments(right, tally.tried), parts)
    targets = [[r for r in tried if r["target"] == label] for label in LABELS]
    check(by_cell(counts, tally.target, len(LABELS)).moments(right, tally.tried), targets)


def check(found: tuple[Moments, ...], parts: list[list[Row]]) -> None:
    for moments, rows in zip(found, parts, strict=True):
        assert moments.n == len(rows)
        if not rows:
            continue
        variance, expected = moments.variance, standard_error(rows)
        assert (variance is None) == (expected is None)
        if variance is not None and expected is not None:
            assert math.sqrt(variance) == pytest.approx(expected, abs=1e-9)
            assert variance == pytest.approx(expected**2, abs=1e-12)


def test_subjects_whose_rows_agree_count_once() -> None:
    """Ten subjects of twenty rows each, all alike, are ten rows."""
    rows = [
        row("cap", "cap" if who < 8 else "none", subject_id=str(who))
        for who in range(10)
        for _ in range(20)
    ]
    accuracy = scored(rows).accuracy
    of_ten = clustered(Moments(10, 10, 8, 8, 8, 10))
    assert accuracy.value == of_ten.value == 0.8
    assert accuracy.low == pytest.approx(of_ten.low, abs=1e-12)
    naive = rate(160, 200)
    assert width(accuracy) > 4 * width(naive)


def test_where_all_are_right_subjects_still_count() -> None:
    rows = [row("cap", "cap", subject_id=str(who)) for who in range(10) for _ in range(20)]
    accuracy = scored(rows).accuracy
    assert accuracy.high == 1.0
    assert accuracy.low == pytest.approx(clustered(Moments(10, 10, 10, 10, 10, 10)).low, abs=1e-12)


def test_an_interval_is_never_narrower_than_of_independent_rows() -> None:
    """That each subject has one right and one wrong row is chance, and no knowledge."""
    rows = [row(label, "cap", subject_id=str(w)) for w in range(50) for label in ("cap", "none")]
    assert width(scored(rows).accuracy) >= width(rate(50, 100))


def test_one_subject_has_no_interval() -> None:
    accuracy = scored([row("cap", "cap", subject_id="a"), row("cap", "none", subject_id="a")])
    assert accuracy.accuracy == Rate(0.5, None, None)


def test_rows_without_a_subject_are_subjects_of_their_own() -> None:
    rows = [row("cap", "cap" if number % 3 else "none") for number in range(60)]
    known = [{**r, "subject_id": str(number)} for number, r in enumerate(rows)]
    half = [*rows[:30], *known[30:]]
    assert scored(half).accuracy == scored(known).accuracy
    assert (scored(half).subjects, scored(half).n_without_subject) == (30, 30)
    assert scored(rows).subjects is None


def test_order_of_the_rows_changes_nothing() -> None:
    rows = random_rows(7)
    some, other = scored(rows, "light"), scored(rows[::-1], "light")
    assert (some.accuracy, some.macro_f1, some.groups) == (
        other.accuracy,
        other.macro_f1,
        other.groups,
    )


def test_a_mean_has_the_t_interval() -> None:
    values = np.array([0.0, 1.0, 1.0, 2.0, 5.0])
    squares = float((values**2).sum())
    moments = Moments(5, 5, float(values.sum()), squares, float(values.sum()), 5.0)
    found = mean(moments)
    low, high = sm.stats.DescrStatsW(values).tconfint_mean()
    assert found.value == pytest.approx(1.8)
    assert found.low == max(low, 0.0)
    assert found.high == pytest.approx(high, abs=1e-12)


def width(found: Rate) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low
