"""What chance in the choice of rows, or of subjects, makes of a confusion matrix.

A resample draws as many rows as there are, with replacement. All rows of a cell are alike, so it
is a multinomial draw of the counts. Where subjects are known, they are drawn, with all their rows:
each is taken a Poisson(1) number of times, which is as often as drawing with replacement takes it
when there are many (J. A. Hanley and B. MacGibbon, "Creating non-parametric bootstrap samples using
Poisson frequencies", Computer Methods and Programs in Biomedicine 83 (2006), 57-62).

More than `UNITS` subjects are put together at random into as many units, which are drawn in their
place: sums over random groups vary as the subjects do (K. M. Wolter, "Introduction to Variance
Estimation", 2nd ed. 2007, ch. 2). So the work does not grow with the subjects. Of 1,024 units a
standard error is known to 1/sqrt(2 * 1024), 2 %, which is less than 2,000 resamples leave open.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import sqrt
from statistics import NormalDist

import numpy as np

from facescan.score.coding import Floats, Ints
from facescan.score.intervals import CONFIDENCE, Rate
from facescan.score.views import Tally

RESAMPLES = 2_000
UNITS = 1_024
_SEED = 20_410
_ROUNDING = 1e-12
_NORMAL = NormalDist()

Figure = Callable[[Floats], Floats]
"""Confusion matrices (..., targets, labels + 1) -> figures (...); the last column is no label."""


def confusion(tally: Tally) -> Floats:
    """Rows of the model by target and label, the last column for those without a label."""
    counted = np.bincount(_cells(tally), tally.counts.n * tally.tried, _size(tally))
    return counted.astype(np.float64).reshape(_shape(tally))


def resampled(tally: Tally) -> Floats:
    """`RESAMPLES` confusion matrices; the same for the same counts, whatever was done before."""
    rng = np.random.default_rng(_SEED)
    found = confusion(tally).ravel()
    subjects = tally.counts.subjects
    if subjects is None:
        total, used = int(found.sum()), np.flatnonzero(found)
        drawn = np.zeros((RESAMPLES, len(found)))
        if total:
            drawn[:, used] = rng.multinomial(total, found[used] / total, RESAMPLES)
        return drawn.reshape(RESAMPLES, *_shape(tally))
    cells = _cells(tally)[subjects.cell]
    tried = tally.tried[subjects.cell]
    units = min(subjects.number, UNITS)
    unit = _units(subjects.number, units)[subjects.subject[tried]]
    size = _size(tally)
    by_unit = np.bincount(unit * size + cells[tried], minlength=units * size).reshape(units, size)
    alone = found - by_unit.sum(axis=0)
    drawn = rng.poisson(alone, (RESAMPLES, size)).astype(np.float64)
    # Of a group few cells may have rows.
    used = np.flatnonzero(by_unit.any(axis=0))
    drawn[:, used] += _times(units) @ by_unit[:, used].astype(np.float64)
    return drawn.reshape(RESAMPLES, *_shape(tally))


def interval(
    value: float | None, figures: Floats, clusters: float, recalls: Sequence[Rate]
) -> Rate:
    """The bias-corrected percentiles of a figure's resamples, a little apart.

    Bias-corrected (B. Efron, "Nonparametric standard errors and confidence intervals", Canadian
    Journal of Statistics 9 (1981), 139-158), as the F1 of a resample is on average smaller than
    that of what it was drawn from. Apart by the root of m/(m-1), where a class has m clusters:
    resamples vary less than samples do by that much. Resamples in which the figure is 0 out of 0
    do not count.

    Where all resamples are alike, as where every answer is right, they say nothing about rows that
    were not seen. The bounds are then the mean bounds of `recalls`, those of the classes that the
    figure is of, which is wider than need be.

    Args:
        value: the figure.
        figures: the same of each resample.
        clusters: subjects, or rows where they have none, per class; no bounds below two.
        recalls: with their intervals, of the classes that the figure is of.
    """
    defined = figures[np.isfinite(figures)]
    if value is None or not len(defined) or clusters < 2:
        return Rate(value, None, None)
    if np.ptp(defined) < _ROUNDING:
        lows = [each.low for each in recalls if each.low is not None]
        highs = [each.high for each in recalls if each.high is not None]
        if not lows or not highs:
            return Rate(value, None, None)
        return Rate(value, min(value, sum(lows) / len(lows)), max(value, sum(highs) / len(highs)))
    below = np.mean(defined < value - _ROUNDING) + np.mean(defined < value + _ROUNDING)
    bias = _NORMAL.inv_cdf(float(np.clip(below / 2, 1 / len(defined), 1 - 1 / len(defined))))
    apart = _NORMAL.inv_cdf((1 + CONFIDENCE) / 2) * sqrt(clusters / (clusters - 1))
    levels = [_NORMAL.cdf(2 * bias - apart), _NORMAL.cdf(2 * bias + apart)]
    low, high = np.quantile(defined, levels).tolist()
    return Rate(value, min(value, low), max(value, high))


def _cells(tally: Tally) -> Ints:
    width = len(tally.labels.labels) + 1
    label = np.where(tally.label < 0, width - 1, tally.label)
    return np.where(tally.tried, tally.target * width + label, 0)


def _shape(tally: Tally) -> tuple[int, int]:
    return len(tally.labels.labels), len(tally.labels.labels) + 1


def _size(tally: Tally) -> int:
    targets, labels = _shape(tally)
    return targets * labels


@lru_cache(maxsize=4)
def _units(subjects: int, units: int) -> Ints:
    """The unit of each subject: units of equal size, put together at random."""
    return np.random.default_rng(_SEED).permutation(subjects) % units


@lru_cache(maxsize=2)
def _times(units: int) -> Floats:
    """How often each resample takes each unit."""
    rng = np.random.default_rng(_SEED + 1)
    return rng.poisson(1.0, (RESAMPLES, units)).astype(np.float64)
