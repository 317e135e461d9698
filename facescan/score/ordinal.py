"""Labels whose order means something, such as age groups: how far off an answer is."""

from dataclasses import dataclass
from math import inf

import numpy as np

from facescan.attributes import LabelSet
from facescan.score import bootstrap
from facescan.score.coding import Floats
from facescan.score.counts import YEARS_UNIT
from facescan.score.intervals import UNKNOWN, Rate
from facescan.score.subjects import Division
from facescan.score.views import Tally


@dataclass(frozen=True, slots=True)
class Ordinal:
    """How far answers are from targets.

    Attributes:
        off_by_one: the share of rows whose answer is the target or a label next to it; no answer
            is not near, as it is not right.
        mae_bins: mean distance in labels of the answers that are in the view.
        quadratic_kappa: J. Cohen's weighted kappa of the same answers, with squared distances as
            weights ("Weighted kappa", Psychological Bulletin 70 (1968), 213-220).
        mae_years: mean distance between the middle of the answered bin and the true age, of the
            answers whose age is known; None where no age is.
    """

    off_by_one: Rate
    mae_bins: Rate
    quadratic_kappa: Rate
    mae_years: Rate | None


def ordinal(tally: Tally, rows: Division, confusion: Floats, resampled: Floats) -> Ordinal | None:
    """None where the labels have no order.

    Args:
        tally: what is scored.
        rows: all of its rows, in one part.
        confusion: targets by labels; a last column, for no label, is not looked at.
        resampled: many such matrices, by chance in the choice of rows.
    """
    if not tally.labels.ordinal:
        return None
    placed = tally.tried & (tally.label >= 0)
    distance = np.where(placed, np.abs(tally.label - tally.target), 0)
    (near,) = rows.proportions(placed & (distance <= 1), tally.tried)
    (bins,) = rows.means(distance.astype(np.float64), placed)
    kappa = float(quadratic_kappas(confusion))
    (clusters,) = rows.clusters(placed).tolist()
    found = bootstrap.interval(
        kappa if np.isfinite(kappa) else None, quadratic_kappas(resampled), clusters, ()
    )
    return Ordinal(near, bins, found, _years(tally, rows))


def quadratic_kappas(confusions: Floats) -> Floats:
    """Of matrices (..., targets, labels); NaN where all targets and answers are one label."""
    size = confusions.shape[-2]
    answered = confusions[..., :size]
    weights = np.subtract.outer(np.arange(size), np.arange(size)).astype(np.float64) ** 2
    total = answered.sum(axis=(-2, -1))
    by_target, by_label = answered.sum(axis=-1), answered.sum(axis=-2)
    seen = (answered * weights).sum(axis=(-2, -1))
    chance = np.einsum("...i,ij,...j->...", by_target, weights, by_label)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - seen * total / chance)


def middles(labels: LabelSet) -> dict[str, float]:
    """The middle of each bin of whole years, from its first to its last; 10 to 19 has 14.5.

    A bin without an end is taken to be as wide as the one before it: "more than 70" after 60 to 69
    has 74.5.
    """
    found: dict[str, float] = {}
    width = 0.0
    for first, last in sorted(labels.bounds.values()):
        (label,) = (name for name, bounds in labels.bounds.items() if bounds == (first, last))
        width = width if last == inf else last - first
        found[label] = first + width / 2
    return found


def _years(tally: Tally, rows: Division) -> Rate | None:
    years = [cell.years for cell in tally.counts.cells]
    if not tally.labels.bounds or all(each is None for each in years):
        return None
    middle = middles(tally.labels)
    # The last place is that of no label, whose rows do not count.
    by_label = np.array([*(middle[label] for label in tally.labels.labels), 0.0])
    known = np.array([each is not None for each in years], np.bool_)
    true = np.array([0 if each is None else each for each in years]) / YEARS_UNIT
    aged = tally.answered & (tally.label >= 0) & known
    if not aged.any():
        return UNKNOWN
    (found,) = rows.means(np.abs(by_label[tally.label] - true), aged)
    return found
