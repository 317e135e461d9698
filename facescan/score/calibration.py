"""Whether a model that gives its answers 80 % is right in 80 % of them."""

from dataclasses import dataclass

import numpy as np

from facescan.score.counts import BINS, PROBABILITY_UNIT
from facescan.score.intervals import Rate
from facescan.score.subjects import Mask, by_cell
from facescan.score.views import Tally


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers whose probability is above `low` and at most `high`.

    Attributes:
        confidence: their mean probability; None without any.
        accuracy: the share of them that is right.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: Rate


@dataclass(frozen=True, slots=True)
class Calibration:
    """Answers with a target and a probability, which is that of the answered label.

    Attributes:
        ece: expected calibration error: the mean over answers of how far accuracy and confidence
            of their bin are apart (C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On calibration
            of modern neural networks", ICML 2017, eq. 3), with `BINS` bins of equal width. It is
            above 0 for a calibrated model too, the more so the fewer answers there are.
        brier: mean squared difference between probability and being right (1 or 0), of the
            answered label alone.
    """

    n: int
    ece: float
    brier: float
    bins: tuple[Bin, ...]


def calibration(tally: Tally) -> Calibration | None:
    """None without probabilities, and in another view than the asked set.

    A label of a coarser view stands for several of those that the model chose among, of which one
    alone has its probability in the predictions.
    """
    bins = np.array([-1 if cell.bin is None else cell.bin for cell in tally.counts.cells])
    scored = tally.answered & (bins >= 0)
    if tally.key.view != tally.key.asked_label_set or not scored.any():
        return None
    right = scored & tally.correct
    accuracy = by_cell(tally.counts, np.where(scored, bins, -1), BINS).proportions(right, scored)
    n = [tally.rows(scored & (bins == each)) for each in range(BINS)]
    summed = [_sum(tally.counts.probability, scored & (bins == each)) for each in range(BINS)]
    found = tuple(
        Bin(each / BINS, (each + 1) / BINS, n[each], summed[each] / n[each], accuracy[each])
        if n[each]
        else Bin(each / BINS, (each + 1) / BINS, 0, None, accuracy[each])
        for each in range(BINS)
    )
    total, hits = sum(n), [tally.rows(right & (bins == each)) for each in range(BINS)]
    squares = _sum(tally.counts.squares, scored)
    return Calibration(
        n=total,
        ece=sum(abs(hit - each) for hit, each in zip(hits, summed, strict=True)) / total,
        brier=(squares - 2 * _sum(tally.counts.probability, right) + sum(hits)) / total,
        bins=found,
    )


def _sum(exact: tuple[int, ...], cells: Mask) -> float:
    total = sum(exact[cell] for cell in np.flatnonzero(cells).tolist())
    return float(total / PROBABILITY_UNIT)
