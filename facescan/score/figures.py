"""A tally -> the figures taken of it. Fractions throughout; None where a figure is 0 out of 0."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from facescan.attributes import LabelSet
from facescan.score import bootstrap, classes
from facescan.score.calibration import Calibration, calibration
from facescan.score.coding import Floats
from facescan.score.intervals import Rate
from facescan.score.ordinal import Ordinal, ordinal
from facescan.score.subjects import Division, by_cell, whole
from facescan.score.views import SCORED_OUTCOMES, Tally
from facescan.types import RUN_OUTCOMES, Outcome


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class against all others, over the model outcomes.

    Attributes:
        support: rows whose target is the class.
        answered: those of them that were answered, with whatever label.
        predicted: rows answered with the class.
        clusters: subjects that have rows of `support`; rows where they have none.
        recall: right answers of `support`: a target without an answer is not recalled.
        precision: right answers of `predicted`.
        f1: 2 hits / (support + predicted), the harmonic mean of the two.
    """

    label: str
    support: int
    answered: int
    predicted: int
    clusters: int
    recall: Rate
    precision: Rate
    f1: Rate


@dataclass(frozen=True, slots=True)
class Figures:
    """What is said of the rows of one tally, whether of a whole combination or of one group.

    Attributes:
        labels: in which answers and targets are compared.
        met: rows whose target is in the view, by (target, outcome, answer).
        n: model outcomes of rows whose target is in the view; what `accuracy` divides by.
        n_outside_view: answered rows whose answer has no place in the view; they count as wrong.
        n_run_failures: run outcomes of rows whose target is in the view; in no accuracy.
        n_excluded: rows whose target has no place in the view.
        n_spurious: persons that a model listed and that are not there; they have no target.
        subjects: how many there are among the rows of `n`; None where no row's is known.
        n_without_subject: rows of `n` whose subject is not known.
        outcomes: how `n + n_run_failures` divides into every outcome, zeros included;
            `spurious`, which has no target, is the number of such persons.
        outcome_rates: the share of `n` of each outcome of the model that occurs, `answered` apart.
        accuracy_worst: `accuracy` if every run failure, asked again, came out wrong.
        accuracy_best: the same if every one came out right.
        balanced_accuracy: mean recall of the classes with support; the others are `zero_support`.
        macro_f1: mean F1 of the same classes.
        unlabelled: how the rows without a target divide into outcomes, zeros included.
    """

    labels: LabelSet
    met: Counter[tuple[str | None, Outcome, str | None]]
    n: int
    n_answered: int
    n_correct: int
    n_outside_view: int
    n_run_failures: int
    n_excluded: int
    n_spurious: int
    subjects: int | None
    n_without_subject: int
    outcomes: dict[Outcome, int]
    accuracy: Rate
    accuracy_answered: Rate
    outcome_rates: dict[Outcome, Rate]
    accuracy_worst: float | None
    accuracy_best: float | None
    balanced_accuracy: Rate
    macro_f1: Rate
    classes: tuple[ClassScore, ...]
    ordinal: Ordinal | None
    calibration: Calibration | None
    unlabelled: dict[Outcome, int]

    @property
    def n_unlabelled(self) -> int:
        """Rows without a target, run outcomes included."""
        return sum(self.unlabelled.values())

    @property
    def complete(self) -> bool:
        """Whether the run got an outcome of the model for every row it could be scored on."""
        return self.n_run_failures == 0 and not any(self.unlabelled[o] for o in RUN_OUTCOMES)

    @property
    def zero_support(self) -> tuple[str, ...]:
        """The classes that no target names, which `macro_f1` leaves out."""
        return tuple(c.label for c in self.classes if c.support == 0)


def of(tally: Tally) -> Figures:
    """Take every figure of one tally."""
    rows = whole(tally.counts)
    outcomes = tally.by_outcome(tally.scored)
    spurious = tally.rows(tally.spurious)
    outcomes[Outcome.SPURIOUS] = spurious
    n, correct = tally.rows(tally.tried), tally.rows(tally.correct)
    failed = tally.rows(tally.failed)
    (accuracy,) = rows.proportions(tally.correct, tally.tried)
    (of_answered,) = rows.proportions(tally.correct, tally.answered)
    confusion = bootstrap.confusion(tally)
    resampled = bootstrap.resampled(tally)
    by_class = _classes(tally, confusion, resampled)
    with_subject = _with_subject(tally)
    return Figures(
        labels=tally.labels,
        met=tally.met(tally.scored),
        n=n,
        n_answered=tally.rows(tally.answered),
        n_correct=correct,
        n_outside_view=tally.rows(tally.answered & (tally.label < 0)),
        n_run_failures=failed,
        n_excluded=tally.rows(tally.excluded),
        n_spurious=spurious,
        subjects=None if with_subject is None else with_subject[0],
        n_without_subject=n if with_subject is None else n - with_subject[1],
        outcomes=outcomes,
        accuracy=accuracy,
        accuracy_answered=of_answered,
        outcome_rates=_outcome_rates(tally, rows),
        accuracy_worst=_fraction(correct, n + failed),
        accuracy_best=_fraction(correct + failed, n + failed),
        balanced_accuracy=_averaged(classes.balanced_accuracy, confusion, resampled, by_class),
        macro_f1=_averaged(classes.macro_f1, confusion, resampled, by_class),
        classes=by_class,
        ordinal=ordinal(tally, rows, confusion, resampled),
        calibration=calibration(tally),
        unlabelled=tally.by_outcome(tally.unlabelled),
    )


def _outcome_rates(tally: Tally, rows: Division) -> dict[Outcome, Rate]:
    found = {}
    for outcome in Outcome:
        cells = tally.tried & tally.of({outcome})
        if outcome in SCORED_OUTCOMES - {Outcome.ANSWERED} and tally.rows(cells):
            (found[outcome],) = rows.proportions(cells, tally.tried)
    return found


def _with_subject(tally: Tally) -> tuple[int, int] | None:
    """Subjects, and rows that have one, among those that accuracy divides by."""
    subjects = tally.counts.subjects
    if subjects is None:
        return None
    # Rows of one subject stand together.
    tried = subjects.subject[tally.tried[subjects.cell]]
    return int((np.diff(tried) != 0).sum()) + bool(len(tried)), len(tried)


def _classes(tally: Tally, confusion: Floats, resampled: Floats) -> tuple[ClassScore, ...]:
    size = len(tally.labels.labels)
    by_target = by_cell(tally.counts, np.where(tally.tried, tally.target, -1), size)
    by_label = by_cell(tally.counts, np.where(tally.tried, tally.label, -1), size)
    recall = by_target.proportions(tally.correct, tally.tried)
    precision = by_label.proportions(tally.correct, tally.tried)
    answered = by_target.totals(tally.answered).tolist()
    support, predicted = confusion.sum(axis=1).tolist(), confusion[:, :-1].sum(axis=0).tolist()
    clusters = by_target.clusters(tally.tried).tolist()
    f1, drawn = classes.f1s(confusion), classes.f1s(resampled)
    return tuple(
        ClassScore(
            label=label,
            support=int(support[place]),
            answered=int(answered[place]),
            predicted=int(predicted[place]),
            recall=recall[place],
            precision=precision[place],
            clusters=clusters[place],
            f1=bootstrap.interval(
                classes.number(f1[place]), drawn[:, place], clusters[place], [recall[place]]
            ),
        )
        for place, label in enumerate(tally.labels.labels)
    )


def _averaged(
    figure: bootstrap.Figure,
    confusion: Floats,
    resampled: Floats,
    by_class: tuple[ClassScore, ...],
) -> Rate:
    supported = [each for each in by_class if each.support]
    clusters = sum(each.clusters for each in supported) / max(len(supported), 1)
    recalls = [each.recall for each in supported]
    value = classes.number(float(figure(confusion)))
    return bootstrap.interval(value, figure(resampled), clusters, recalls)


def _fraction(part: int, whole: int) -> float | None:
    return part / whole if whole else None
