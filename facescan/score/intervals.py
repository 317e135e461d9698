"""Proportions and how far they can be trusted."""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True, slots=True)
class Rate:
    """A proportion as a fraction, with its 95 % interval; all None where it is 0 out of 0."""

    value: float | None
    low: float | None
    high: float | None


def rate(hits: int, trials: int) -> Rate:
    """`hits` of `trials` with the Wilson score interval, which takes the trials as independent.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927), 209-212; recommended over the Wald interval by L. D. Brown, T. T. Cai and
    A. DasGupta, "Interval estimation for a binomial proportion", Statistical Science 16 (2001),
    101-133, eq. (4). No continuity correction.
    """
    if trials == 0:
        return Rate(None, None, None)
    centre = hits + _Z**2 / 2
    spread = _Z * sqrt(hits * (trials - hits) / trials + _Z**2 / 4)
    scale = trials + _Z**2
    # With no hits the terms cancel exactly; with nothing else, rounding could pass 1.
    low = (centre - spread) / scale
    high = 1.0 if hits == trials else (centre + spread) / scale
    return Rate(hits / trials, low, high)
