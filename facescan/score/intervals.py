"""Proportions and means, and how far they can be trusted."""

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import NormalDist

from scipy.special import stdtrit  # type: ignore[import-untyped]  # ships no types

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Rate:
    """A figure with its 95 % interval; all None where it is 0 out of 0.

    A proportion is a fraction. The bounds alone are None where no interval can be given.
    """

    value: float | None
    low: float | None
    high: float | None


UNKNOWN = Rate(None, None, None)


@dataclass(frozen=True, slots=True)
class Moments:
    """What the mean of values and its standard error are computed of; sums over clusters.

    A cluster is a subject, or a row whose subject is not known. It has `t` rows, whose values
    add up to `v`.

    Attributes:
        clusters: those with rows.
        n: sum of t.
        total: sum of v.
        vv: sum of v * v; likewise `vt` and `tt`.
    """

    clusters: int
    n: int
    total: float
    vv: float
    vt: float
    tt: float

    @property
    def variance(self) -> float | None:
        """Of the mean; None with fewer than two clusters.

        The mean is a ratio of two sums over clusters, total / n, and its variance that of the
        ratio estimator, linearised: the sum of (v - mean * t)^2 over clusters, by n^2. C/(C-1)
        makes up for the mean's being taken of the same rows. So in E. Miller, "Adding error bars
        to evals", arXiv 2411.00640, section 2.2, and, with that correction, in statsmodels'
        cluster-robust covariance of a regression on a constant.
        """
        if self.clusters < 2:
            return None
        mean = self.total / self.n
        squares = self.vv - 2 * mean * self.vt + mean**2 * self.tt
        return max(squares, 0.0) / self.n**2 * self.clusters / (self.clusters - 1)


def rate(hits: int, trials: int, confidence: float = CONFIDENCE) -> Rate:
    """`hits` of `trials` with the Wilson score interval, which takes the trials as independent.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927), 209-212; recommended over the Wald interval by L. D. Brown, T. T. Cai and
    A. DasGupta, "Interval estimation for a binomial proportion", Statistical Science 16 (2001),
    101-133, eq. (4). No continuity correction.
    """
    if trials == 0:
        return UNKNOWN
    low, high = _wilson(hits / trials, trials, _z(confidence))
    # With no hits the terms cancel exactly; with nothing else, rounding could pass 1.
    return Rate(hits / trials, low, 1.0 if hits == trials else high)


def clustered(moments: Moments, confidence: float = CONFIDENCE) -> Rate:
    """A proportion of rows that come in clusters; the values are 0 and 1.

    Wilson's interval at the effective number of rows n / deff, where the design effect deff is the
    variance between clusters by that of independent rows, and with the quantile of t at C - 1
    degrees of freedom: with few clusters the variance itself is uncertain, and with many t is the
    normal distribution. In Wilson's form rather than mean +- t * se, as that leaves [0, 1], and is
    of no width where all rows are right (C. Franco, R. J. A. Little, T. A. Louis and E. V. Slud,
    "Comparative study of confidence intervals for proportions in complex sample surveys", Journal
    of Survey Statistics and Methodology 7 (2019), 334-364).

    deff is at least 1: rows of one subject are not less alike than those of several, and where
    they seem so it is by chance. Where all values are equal it cannot be estimated, and is taken
    as if those of one cluster were always equal, tt / n.
    """
    if moments.n == 0:
        return UNKNOWN
    value, variance = moments.total / moments.n, moments.variance
    if variance is None:
        return Rate(value, None, None)
    independent = value * (1 - value) / moments.n
    effect = variance / independent if independent else moments.tt / moments.n
    t = _t(moments.clusters - 1, confidence)
    low, high = _wilson(value, moments.n / max(effect, 1.0), t)
    return Rate(value, low, 1.0 if value == 1 else high)


def mean(moments: Moments, confidence: float = CONFIDENCE) -> Rate:
    """The mean of values at or above 0 that are no proportion, +- t standard errors.

    Without bounds where all values are equal: they say nothing of how far others would lie.
    """
    if moments.n == 0:
        return UNKNOWN
    value, variance = moments.total / moments.n, moments.variance
    if not variance:
        return Rate(value, None, None)
    spread = _t(moments.clusters - 1, confidence) * sqrt(variance)
    return Rate(value, max(value - spread, 0.0), value + spread)


def _wilson(value: float, trials: float, z: float) -> tuple[float, float]:
    hits = value * trials
    centre = hits + z**2 / 2
    spread = z * sqrt(hits * (1 - value) + z**2 / 4)
    scale = trials + z**2
    return (centre - spread) / scale, (centre + spread) / scale


@lru_cache
def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


@lru_cache(maxsize=1 << 12)
def _t(degrees: int, confidence: float) -> float:
    return float(stdtrit(degrees, (1 + confidence) / 2))
