"""Calibration against scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from facescan.score import metrics
from facescan.score.calibration import Calibration
from facescan.score.views import tallies
from tests.facescan.score.hats import Row, counted, failed, load, row


def calibrated(rows: list[Row], view: str = "hat-4") -> Calibration | None:
    found = [metrics.of(tally) for tally in tallies(counted(rows), load)]
    return next(score.calibration for score in found if score.key.view == view)


@pytest.mark.parametrize("seed", range(200))
def test_equal_to_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 200))
    probability = rng.beta(2, 1, n)
    if seed % 2:
        # On the edges of bins, and at both ends.
        probability = np.round(probability, 1)
    right = rng.random(n) < probability
    rows = [
        row("cap" if hit else "none", "cap", probability=float(p))
        for hit, p in zip(right, probability, strict=True)
    ]
    # What has no target, no probability or no answer is not in it.
    rows += [row("cap", None, probability=0.9), row("cap", "cap"), failed("refused", "cap")]
    found = calibrated(rows)
    assert found is not None
    assert found.n == n
    assert found.brier == pytest.approx(
        brier_score_loss(right, probability, labels=[False, True]), abs=1e-12
    )
    share, confidence = calibration_curve(right, probability, n_bins=10)
    filled = [each for each in found.bins if each.n]
    assert [each.accuracy.value for each in filled] == pytest.approx(share, abs=1e-12)
    assert [each.confidence for each in filled] == pytest.approx(confidence, abs=1e-12)
    ece = sum(each.n / n * abs(s - c) for each, s, c in zip(filled, share, confidence, strict=True))
    assert found.ece == pytest.approx(ece, abs=1e-12)
    assert sum(each.n for each in found.bins) == n


def test_a_bin_holds_its_upper_end() -> None:
    found = calibrated([row("cap", "cap", probability=p) for p in (0.0, 0.1, 0.3, 1.0)])
    assert found is not None
    assert [each.n for each in found.bins] == [2, 0, 1, 0, 0, 0, 0, 0, 0, 1]


def test_a_merged_label_has_no_probability_of_its_own() -> None:
    rows = [row("cap", "cap", probability=0.4)]
    assert calibrated(rows) is not None
    assert calibrated(rows, "hat-3") is None


def test_without_probabilities_there_is_no_calibration() -> None:
    assert calibrated([row("cap", "cap")]) is None
    assert calibrated([row("cap", None, probability=0.4)]) is None


def test_bins_are_clustered_by_subject() -> None:
    rows = [
        row("cap" if who % 3 else "none", "cap", probability=0.7, subject_id=str(who))
        for who in range(12)
    ]
    once, often = calibrated(rows), calibrated(rows * 20)
    assert once is not None
    assert often is not None
    assert often.bins[6].accuracy.low == pytest.approx(once.bins[6].accuracy.low, abs=1e-12)
