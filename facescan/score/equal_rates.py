"""Whether groups have one rate: a test, and what rates look like that are all the same.

Pearson's chi-square. Where a group expects fewer than five rows of a kind, its distribution is that
of `DRAWS` permutations of the rows among the groups, given all totals.

Where rows come in subjects, the rows of one subject are alike, and groups' totals vary more than
those of independent rows. How alike is one correlation for all groups, estimated like their one
rate from all of them together (A. Donner, "Statistical methods in ophthalmology: an adjusted
chi-square approach", Biometrics 45 (1989), 605-611): groups of few subjects would each give a poor
estimate of their own, and of 70 fair ones of 20 subjects most are then found unfair. A subject may
have rows in several groups.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc  # type: ignore[import-untyped]  # ships no types

from facescan.score.coding import Floats, Ints
from facescan.score.intervals import CONFIDENCE, Moments

DRAWS = 9_999

_EXPECTED = 5
_SEED = 20_411
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class EqualRate:
    """A test of whether all groups have one rate.

    Attributes:
        method: `chi-square`, `permutation`, or `clustered` for a chi-square between subjects.
        p_holm: adjusted over all tests of a score; until it is, the same as `p`.
    """

    method: str
    statistic: float
    df: int
    p: float
    p_holm: float

    @property
    def found(self) -> bool:
        """Whether the rates differ by more than chance."""
        return self.p_holm <= 1 - CONFIDENCE


def correlation(together: Moments) -> float:
    """Between two rows of a subject, from 0 to 1.

    The variance of a subject's hits is p (1-p) (t + (t-1) t r) for t rows with correlation r; r is
    that which makes the sum over subjects what it is.
    """
    rate = together.total / together.n
    pairs, unit = together.tt - together.n, rate * (1 - rate)
    if not pairs or not unit:
        return 0.0
    squares = together.vv - 2 * rate * together.vt + rate**2 * together.tt
    return float(np.clip((squares / unit - together.n) / pairs, 0.0, 1.0))


def compare(
    hits: Floats, rows: Ints, shared: Floats | None, alike: float, spread: bool
) -> tuple[EqualRate, Floats]:
    """Test whether groups have one rate.

    Args:
        hits: by group.
        rows: by group; at least one each.
        shared: for each two groups, the sum over subjects of the product of their rows; None where
            rows are independent.
        alike: the correlation between rows of a subject.
        spread: whether draws are needed.

    Returns:
        The test, and rates by draw and group where all groups have the rate of all together; no
        draws where neither the test nor the caller needs them.
    """
    df, rate = len(rows) - 1, float(hits.sum() / rows.sum())
    if rate in (0.0, 1.0):
        return EqualRate("chi-square", 0.0, df, 1.0, 1.0), np.full((1, len(rows)), rate)
    exact = min(rate, 1 - rate) * rows.min() < _EXPECTED
    permuted, statistic = np.zeros((0, len(rows))), float(_pearson(hits, rows, rate))
    if exact or (spread and shared is None):
        permuted = _permuted(hits, rows)
    drawn = permuted / rows
    if shared is not None:
        # As columns, whose combinations by independent normal numbers vary as the totals do.
        roots = _roots(rows, shared, alike) * np.sqrt(rate * (1 - rate))
        statistic = float(((np.linalg.pinv(roots) @ (hits - rate * rows)) ** 2).sum())
        if spread:
            normal = np.random.default_rng(_SEED).standard_normal((DRAWS, roots.shape[1]))
            drawn = np.clip(rate + normal @ roots.T / rows, 0.0, 1.0)
    if not exact:
        method = "chi-square" if shared is None else "clustered"
        p = float(chdtrc(df, statistic))
        return EqualRate(method, statistic, df, p, p), drawn
    # Not above by rounding alone.
    above = int((_pearson(permuted, rows, rate) >= statistic * (1 - _ROUNDING)).sum())
    p = (above + 1) / (DRAWS + 1)
    return EqualRate("permutation", statistic, df, p, p), drawn


def _pearson(hits: Floats, rows: Ints, rate: float) -> Floats:
    """Of matrices (..., hits by group)."""
    above = (hits - rows * rate) ** 2 / (rows * rate * (1 - rate))
    return np.asarray(above.sum(axis=-1))


def _permuted(hits: Floats, rows: Ints) -> Floats:
    """Hits by draw and group, as if all were dealt out among the rows at random."""
    rng = np.random.default_rng(_SEED)
    drawn = rng.multivariate_hypergeometric(rows, int(hits.sum()), DRAWS, method="marginals")
    return drawn.astype(np.float64)


def _roots(rows: Ints, shared: Floats, alike: float) -> Floats:
    """A root of the covariance of the groups' hits above the common rate, by rate (1 - rate)."""
    own = np.diag(rows.astype(np.float64))
    covariance = own + alike * (shared - own)
    # The common rate is of the same rows: each group has its share of what they differ together.
    share = rows / rows.sum()
    away = np.eye(len(rows)) - np.outer(share, np.ones(len(rows)))
    values, vectors = np.linalg.eigh(away @ covariance @ away.T)
    kept = values > values.max() * _ROUNDING
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))
