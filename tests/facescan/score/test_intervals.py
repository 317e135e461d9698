"""The Wilson interval against published values, SciPy, and its exact coverage."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest  # type: ignore[import-untyped] # has no types

from facescan.score.intervals import Moments, Rate, mean, rate


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_values(hits: int, trials: int, low: float, high: float) -> None:
    """R. G. Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3."""
    found = rate(hits, trials)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


def test_equal_to_scipy() -> None:
    for trials in (1, 2, 7, 40, 500, 10_954, 15_000_000):
        for hits in {0, 1, trials // 3, trials // 2, trials - 1, trials}:
            expected = binomtest(hits, trials).proportion_ci(0.95, "wilson")
            found = rate(hits, trials)
            assert found.value == hits / trials
            assert found.low == pytest.approx(expected.low, abs=1e-12)
            assert found.high == pytest.approx(expected.high, abs=1e-12)


@pytest.mark.parametrize("trials", [1, 3, 10, 999, 10_954])
def test_bounds_stay_within_the_possible(trials: int) -> None:
    for hits in range(trials + 1):
        found = rate(hits, trials)
        assert found.low is not None
        assert found.high is not None
        assert 0.0 <= found.low <= hits / trials <= found.high <= 1.0
    assert rate(0, trials).low == 0.0
    assert rate(trials, trials).high == 1.0


def test_nothing_of_nothing_is_undefined() -> None:
    assert rate(0, 0) == Rate(None, None, None)


def test_a_mean_of_equal_values_has_no_bounds() -> None:
    for value in (0, 1):
        total = 30 * value
        assert mean(Moments(30, 30, total, total, total, 30)) == Rate(value, None, None)
    one_is_off = mean(Moments(30, 30, 1, 1, 1, 30))
    assert one_is_off.low == 0.0
    assert one_is_off.high is not None


@pytest.mark.parametrize(
    ("trials", "least", "most"), [(100, 0.9275, 0.9716), (500, 0.9421, 0.9590)]
)
def test_exact_coverage(trials: int, least: float, most: float) -> None:
    """How often the interval holds the truth, summed over every possible sample."""
    intervals = [rate(hits, trials) for hits in range(trials + 1)]
    low = np.array([interval.low for interval in intervals], dtype=float)
    high = np.array([interval.high for interval in intervals], dtype=float)
    coverage = [
        float(
            binom.pmf(np.arange(trials + 1), trials, truth)[(low <= truth) & (truth <= high)].sum()
        )
        for truth in np.linspace(0.05, 0.95, 181)
    ]
    assert min(coverage) == pytest.approx(least, abs=5e-5)
    assert max(coverage) == pytest.approx(most, abs=5e-5)
