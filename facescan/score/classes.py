"""Figures of classes, for one confusion matrix or for many at once.

A matrix has a row for each target and a column for each label; a last column holds the rows
without a label. Figures that are 0 out of 0 are NaN.
"""

import numpy as np

from facescan.score.coding import Floats


def recalls(confusions: Floats) -> Floats:
    """By class: right answers of its rows."""
    return _ratio(_hits(confusions), confusions.sum(axis=-1))


def f1s(confusions: Floats) -> Floats:
    """By class: 2 hits / (support + predicted), the harmonic mean of precision and recall.

    C. J. van Rijsbergen, "Information Retrieval", 2nd ed. 1979, ch. 7.
    """
    predicted = confusions[..., :-1].sum(axis=-2)
    return _ratio(2 * _hits(confusions), confusions.sum(axis=-1) + predicted)


def balanced_accuracy(confusions: Floats) -> Floats:
    """The mean recall of the classes with support."""
    return _mean_of_supported(recalls(confusions), confusions)


def macro_f1(confusions: Floats) -> Floats:
    """The mean F1 of the classes with support."""
    return _mean_of_supported(f1s(confusions), confusions)


def number(figure: float) -> float | None:
    """The figure; None for NaN."""
    return None if np.isnan(figure) else float(figure)


def _hits(confusions: Floats) -> Floats:
    return np.asarray(np.diagonal(confusions, axis1=-2, axis2=-1))


def _mean_of_supported(figures: Floats, confusions: Floats) -> Floats:
    supported = confusions.sum(axis=-1) > 0
    return _ratio(np.where(supported, figures, 0).sum(axis=-1), supported.sum(axis=-1))


def _ratio(parts: Floats, wholes: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.asarray(parts / wholes, np.float64)
