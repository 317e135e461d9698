"""Whether groups have one rate, where rows of a subject are alike."""

import numpy as np
import pytest
from scipy.stats import chi2  # type: ignore[import-untyped]  # ships no types

from facescan.score.coding import Floats, Ints
from facescan.score.equal_rates import compare, correlation
from facescan.score.intervals import Moments


def moments(hits: Ints, rows: Ints) -> Moments:
    """Of subjects with so many hits of so many rows."""
    vt, tt = float((hits * rows).sum()), float((rows * rows).sum())
    return Moments(
        len(rows), int(rows.sum()), float(hits.sum()), float((hits * hits).sum()), vt, tt
    )


def test_rows_of_a_subject_that_are_always_equal_have_correlation_one() -> None:
    rows = np.array([3, 5, 2, 4, 6, 3])
    assert correlation(moments(rows * [1, 0, 1, 1, 0, 1], rows)) == 1.0


def test_the_correlation_of_rows_is_found() -> None:
    rng = np.random.default_rng(3)
    rows = np.full(20_000, 4)
    alike = rng.binomial(rows, rng.beta(0.7 * 7 / 3, 0.3 * 7 / 3, len(rows)))
    assert correlation(moments(alike, rows)) == pytest.approx(0.3, abs=0.02)
    independent = rng.binomial(rows, 0.7)
    assert correlation(moments(independent, rows)) == pytest.approx(0.0, abs=0.02)


def test_without_pairs_or_without_both_kinds_there_is_no_correlation() -> None:
    one = np.ones(5, np.int64)
    assert correlation(moments(np.array([1, 0, 1, 0, 0]), one)) == 0.0
    assert correlation(moments(one * 4, one * 4)) == 0.0


def groups_of(subjects: Ints, each: int) -> tuple[Ints, Floats]:
    """Rows by group, and what groups share, for subjects with rows in one group each."""
    rows = subjects * each
    return rows, np.diag((subjects * each**2).astype(np.float64))


def test_the_statistic_is_pearsons_by_the_design_effect() -> None:
    """Where all subjects have equally many rows, all in one group (A. Donner 1989)."""
    rows, shared = groups_of(np.array([40, 60, 50]), 4)
    hits = np.array([120.0, 170, 160])
    independent, _ = compare(hits, rows, None, 0.0, False)
    alike, _ = compare(hits, rows, shared, 0.25, False)
    assert alike.method == "clustered"
    assert alike.statistic == pytest.approx(independent.statistic / (1 + 3 * 0.25), abs=1e-10)
    assert alike.p == pytest.approx(chi2.sf(alike.statistic, 2), abs=1e-12)
    none, _ = compare(hits, rows, shared, 0.0, False)
    assert none.statistic == pytest.approx(independent.statistic, abs=1e-10)


def test_subjects_in_several_groups_make_their_difference_more_certain() -> None:
    """A model that is worse for the same people in the dark is compared with itself."""
    rows = np.array([200, 200])
    apart = np.diag([400.0, 400.0])
    paired = apart + np.array([[0, 400.0], [400.0, 0]])
    hits = np.array([150.0, 165])
    assert (
        compare(hits, rows, paired, 0.5, False)[0].p < compare(hits, rows, apart, 0.5, False)[0].p
    )


@pytest.mark.parametrize("clustered", [False, True])
def test_draws_have_the_common_rate_and_vary_as_groups_do(clustered: bool) -> None:
    rows, shared = groups_of(np.array([100, 25]), 4)
    hits = np.array([300.0, 75])
    _, drawn = compare(hits, rows, shared if clustered else None, 1.0, True)
    assert drawn.mean() == pytest.approx(0.75, abs=0.003)
    effect = 4 if clustered else 1
    expected = 0.75 * 0.25 * effect * (1 / rows - 1 / rows.sum())
    assert drawn.var(axis=0) == pytest.approx(expected, rel=0.1)
    again = compare(hits, rows, shared if clustered else None, 1.0, True)[1]
    assert np.array_equal(drawn, again)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_where_all_rows_are_of_one_kind_groups_do_not_differ(rate: float) -> None:
    rows = np.array([30, 40])
    found, drawn = compare(rows * rate, rows, None, 0.0, True)
    assert (found.statistic, found.p) == (0.0, 1.0)
    assert (drawn == rate).all()


def test_few_expected_rows_of_subjects_are_permuted_too() -> None:
    rows, shared = groups_of(np.array([25, 25]), 4)
    found, _ = compare(np.array([0.0, 4]), rows, shared, 1.0, False)
    alone, _ = compare(np.array([0.0, 4]), rows, None, 0.0, False)
    assert (found.method, alone.method) == ("permutation", "permutation")
    assert found.p > alone.p
