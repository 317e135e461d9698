"""A tally -> the figures taken of it. Fractions throughout; None where a figure is 0 out of 0."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from facescan.score.intervals import Rate, rate
from facescan.score.views import Key, Tally
from facescan.types import MODEL_OUTCOMES, RUN_OUTCOMES, Outcome

SCORED_OUTCOMES = MODEL_OUTCOMES - {Outcome.SPURIOUS}
"""The outcomes that accuracy divides by; persons who are not there are counted apart."""


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class against all others, over the model outcomes.

    Attributes:
        support: rows whose target is the class.
        answered: those of them that were answered, with whatever label.
        predicted: rows answered with the class.
        recall: right answers of `support`: a target without an answer is not recalled.
        precision: right answers of `predicted`.
        f1: 2 hits / (support + predicted), which is the harmonic mean of the two
            (C. J. van Rijsbergen, "Information Retrieval", 2nd ed. 1979, ch. 7).
    """

    label: str
    support: int
    answered: int
    predicted: int
    recall: Rate
    precision: Rate
    f1: float | None


@dataclass(frozen=True, slots=True)
class Score:
    """Everything that is said of one combination in one view.

    Attributes:
        n: model outcomes of rows whose target is in the view; what `accuracy` divides by.
        n_outside_view: answered rows whose answer has no place in the view; they count as wrong.
        n_run_failures: run outcomes of rows whose target is in the view; in no accuracy.
        outcomes: how `n + n_run_failures` divides into every outcome, zeros included;
            `spurious`, which has no target, is the number of such persons.
        accuracy_worst: `accuracy` if every run failure, asked again, came out wrong.
        accuracy_best: the same if every one came out right.
        macro_f1: mean F1 of the classes with support; the others are `zero_support`.
        unlabelled: how the rows without a target divide into outcomes, zeros included.
    """

    tally: Tally
    n: int
    n_answered: int
    n_correct: int
    n_outside_view: int
    n_run_failures: int
    outcomes: dict[Outcome, int]
    accuracy: Rate
    accuracy_answered: Rate
    accuracy_worst: float | None
    accuracy_best: float | None
    macro_f1: float | None
    classes: tuple[ClassScore, ...]
    unlabelled: dict[Outcome, int]

    @property
    def key(self) -> Key:
        """What the score is of."""
        return self.tally.key

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


def of(tally: Tally) -> Score:
    """Take every figure of one tally."""
    outcomes = dict.fromkeys(Outcome, 0)
    unlabelled = dict.fromkeys(Outcome, 0)
    for (_, outcome, _), n in tally.scored.items():
        outcomes[outcome] += n
    for (outcome, _), n in tally.unlabelled.items():
        unlabelled[outcome] += n
    outcomes[Outcome.SPURIOUS] = tally.spurious
    n = sum(outcomes[o] for o in SCORED_OUTCOMES)
    failed = sum(outcomes[o] for o in RUN_OUTCOMES)
    answered = outcomes[Outcome.ANSWERED]
    classes = _classes(tally)
    correct = sum(c for (target, _, label), c in tally.scored.items() if label == target)
    outside = sum(
        c for (_, o, label), c in tally.scored.items() if o is Outcome.ANSWERED and label is None
    )
    return Score(
        tally=tally,
        n=n,
        n_answered=answered,
        n_correct=correct,
        n_outside_view=outside,
        n_run_failures=failed,
        outcomes=outcomes,
        accuracy=rate(correct, n),
        accuracy_answered=rate(correct, answered),
        accuracy_worst=_fraction(correct, n + failed),
        accuracy_best=_fraction(correct + failed, n + failed),
        macro_f1=_mean(c.f1 for c in classes if c.support),
        classes=classes,
        unlabelled=unlabelled,
    )


def _classes(tally: Tally) -> tuple[ClassScore, ...]:
    support: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for (target, outcome, label), n in tally.scored.items():
        if outcome in RUN_OUTCOMES:
            continue
        support[target] += n
        if outcome is Outcome.ANSWERED:
            answered[target] += n
        if label is not None:
            predicted[label] += n
        if label == target:
            hits[target] += n
    return tuple(
        ClassScore(
            label=name,
            support=support[name],
            answered=answered[name],
            predicted=predicted[name],
            recall=rate(hits[name], support[name]),
            precision=rate(hits[name], predicted[name]),
            f1=_fraction(2 * hits[name], support[name] + predicted[name]),
        )
        for name in tally.labels
    )


def _fraction(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
