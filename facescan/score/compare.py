"""Two models on the same rows: how far apart, how certain, and what could have been seen at all.

Answers to one picture are paired, so what counts are the rows on which one of the two is right and
the other is not. Of `n` rows let `a_only` be those on which only a is right, `b_only` the other way
round:

- the difference of the accuracies is `(a_only - b_only) / n`, its interval T. Tango's score
  interval ("Equivalence test and confidence interval for the difference in proportions for the
  paired-sample design", Statistics in Medicine 17 (1998), 891-908), which holds its level where
  few rows differ and never leaves [-1, 1];
- the test is McNemar's in its exact form: whether `a_only` of `a_only + b_only` is binomial with
  1/2. It is conservative: its true level is below 5 %;
- p-values are adjusted over all comparisons made together by S. Holm's procedure ("A simple
  sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979),
  65-70);
- the smallest difference that could have been shown is the one which McNemar's test finds with a
  power of 80 %, by the normal approximation, at a level of 5 % where as many rows differ as were
  seen to (O. S. Miettinen, "The matched pairs design in the case of all-or-none responses",
  Biometrics 24 (1968), 339-352).

All take rows as independent, as `facescan.score.intervals.rate` does.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

from facescan.attributes import Attribute, View
from facescan.errors import DataError
from facescan.score.intervals import CONFIDENCE, Rate
from facescan.score.paired import Answer, Meeting, Side, meetings
from facescan.storage import Storage
from facescan.types import RUN_OUTCOMES, Outcome

POWER = 0.8
"""With which the smallest detectable difference would be found."""

_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_Z_POWER = NormalDist().inv_cdf(POWER)
_HALVINGS = 60
"""Of an interval of length 2; what is left is below the spacing of floats."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides about one attribute of one split, in one view.

    Attributes:
        both: rows on which both are right.
        a_only: rows on which only `a` is.
        b_only: rows on which only `b` is.
        neither: rows on which none is; a row without an answer is not right.
        rows_only_a: rows that only `a` has, of the split; they are not compared.
        rows_only_b: rows that only `b` has.
        failed: rows that at least one of the two has no outcome of the model for.
        unseen: rows whose target is not in the view, or that have none.
        relabelled: rows whose targets differ between the two.
        unanswered_a: of the rows that were compared, how many came to each outcome but `answered`
            of `a`; likewise `unanswered_b`.
        difference: accuracy of `a` less that of `b`, a fraction.
        p: of the exact McNemar test, two-sided; 1 where nothing differs.
        p_holm: adjusted over `family`.
        family: how many comparisons were made together.
        smallest_detectable: a fraction; None where no difference could have been shown.
    """

    a: Side
    b: Side
    attribute: str
    dataset: str
    split: str
    view: str
    both: int
    a_only: int
    b_only: int
    neither: int
    rows_only_a: int
    rows_only_b: int
    failed: int
    unseen: int
    relabelled: int
    unanswered_a: dict[Outcome, int]
    unanswered_b: dict[Outcome, int]
    difference: Rate
    p: float
    p_holm: float
    family: int
    smallest_detectable: float | None

    @property
    def n(self) -> int:
        """Rows that were compared."""
        return self.both + self.a_only + self.b_only + self.neither

    def entry(self) -> dict[str, Any]:
        """As it stands in JSON; docs/compare.md has the keys."""
        n, difference = self.n, self.difference
        return {
            "a": asdict(self.a),
            "b": asdict(self.b),
            "attribute": self.attribute,
            "dataset": self.dataset,
            "split": self.split,
            "view": self.view,
            "n": n,
            "accuracy_a": (self.both + self.a_only) / n,
            "accuracy_b": (self.both + self.b_only) / n,
            "outcome_rates_a": {str(of): rows / n for of, rows in self.unanswered_a.items()},
            "outcome_rates_b": {str(of): rows / n for of, rows in self.unanswered_b.items()},
            "difference": {
                "value": difference.value,
                "ci_low": difference.low,
                "ci_high": difference.high,
            },
            "mcnemar": {
                "a_only": self.a_only,
                "b_only": self.b_only,
                "p": self.p,
                "p_holm": self.p_holm,
                "family": self.family,
            },
            "smallest_detectable": self.smallest_detectable,
            "not_compared": {
                "rows_only_a": self.rows_only_a,
                "rows_only_b": self.rows_only_b,
                "failed": self.failed,
                "unseen": self.unseen,
                "relabelled": self.relabelled,
            },
        }


def compare(
    runs: Sequence[tuple[str, Storage]],
    load: Callable[[str], Attribute],
    wanted: Callable[[str, str], bool] = lambda attribute, view: True,
) -> list[Comparison]:
    """Compare every two sides of these runs on the rows that both have, in every common view.

    Sorted by attribute, dataset, split and sides, views in the attribute's order. Those without a
    row to compare are left out.

    Args:
        runs: what each run is called, all differently, and its predictions.
        load: the attribute of a name, such as `facescan.attributes.load`.
        wanted: whether an attribute in a view is compared; what is not, is in no family.

    Raises:
        DataError: the predictions are not what they should be.
        UsageError: an attribute has no label set of a name that occurs in them.
        OSError: they cannot be reached.
    """
    found = [
        comparison
        for meeting in meetings(runs)
        for comparison in _in_views(meeting, load(meeting.attribute), wanted)
    ]
    return _adjusted(found)


def mcnemar(a_only: int, b_only: int) -> float:
    """The two-sided p-value of McNemar's exact test."""
    # Only here: importing it takes longer than most scores.
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # ships no types

    discordant = a_only + b_only
    return float(binomtest(a_only, discordant, 0.5).pvalue) if discordant else 1.0


def difference(a_only: int, b_only: int, n: int) -> Rate:
    """The difference of two paired proportions with Tango's score interval; `n` is at least 1."""
    estimate = (a_only - b_only) / n
    low = _edge(lambda delta: _score(a_only, b_only, n, delta) > _Z, -1.0, estimate)
    high = _edge(lambda delta: _score(a_only, b_only, n, delta) >= -_Z, estimate, 1.0)
    return Rate(estimate, low, high)


def _score(a_only: int, b_only: int, n: int, delta: float) -> float:
    """Tango's statistic for the hypothesis that the difference is `delta`; falls as that grows."""
    # The hypothesis' most likely probability of `b_only`: Tango's equation (5).
    linear = -a_only - b_only + (2 * n - a_only + b_only) * delta
    constant = -b_only * delta * (1 - delta)
    root = sqrt(max(0.0, linear**2 - 8 * n * constant))
    likeliest = (root - linear) / (4 * n)
    variance = n * (2 * likeliest + delta * (1 - delta))
    excess = a_only - b_only - n * delta
    if variance <= 0.0:
        return 0.0 if excess == 0.0 else excess * float("inf")
    return excess / sqrt(variance)


def _edge(is_below: Callable[[float], bool], low: float, high: float) -> float:
    """Where `is_below` turns from true at `low` to false at `high`."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2


def smallest_detectable(discordant: int, n: int) -> float | None:
    """The difference that McNemar's test finds with `POWER` where `discordant` of `n` rows differ.

    `POWER` is approximate; the difference is at most that of all of them in one direction. None
    where so few differ that the exact test would not find even that.
    """
    if mcnemar(discordant, 0) > 1 - CONFIDENCE:
        return None
    rate = discordant / n

    def missed(delta: float) -> bool:
        return sqrt(n) * delta < _Z * sqrt(rate) + _Z_POWER * sqrt(max(0.0, rate - delta**2))

    return _edge(missed, 0.0, rate)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted by Holm's procedure, in their order."""
    adjusted = [0.0] * len(p_values)
    before = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        before = max(before, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = before
    return adjusted


@dataclass(frozen=True, slots=True)
class _Counted:
    """One meeting in one view.

    Attributes:
        rows: by the count of `Comparison` that they belong to.
        outcomes: of `a` and of `b`, on the rows that are compared.
    """

    meeting: Meeting
    view: str
    rows: Counter[str]
    outcomes: tuple[Counter[str], Counter[str]]

    @property
    def n(self) -> int:
        return sum(self.rows[kind] for kind in _COMPARED)


_COMPARED = ("both", "a_only", "b_only", "neither")
_RIGHT = dict(
    zip(((True, True), (True, False), (False, True), (False, False)), _COMPARED, strict=True)
)


def _adjusted(found: Sequence[_Counted]) -> list[Comparison]:
    found = sorted(found, key=_place)
    p_values = [mcnemar(each.rows["a_only"], each.rows["b_only"]) for each in found]
    adjusted = holm(p_values)
    return [
        _comparison(each, p, p_holm, len(found))
        for each, p, p_holm in zip(found, p_values, adjusted, strict=True)
    ]


def _comparison(counted: _Counted, p: float, p_holm: float, family: int) -> Comparison:
    meeting, rows = counted.meeting, counted.rows
    a_only, b_only = rows["a_only"], rows["b_only"]
    return Comparison(
        a=meeting.a,
        b=meeting.b,
        attribute=meeting.attribute,
        dataset=meeting.dataset,
        split=meeting.split,
        view=counted.view,
        both=rows["both"],
        a_only=a_only,
        b_only=b_only,
        neither=rows["neither"],
        rows_only_a=meeting.only_a,
        rows_only_b=meeting.only_b,
        failed=rows["failed"],
        unseen=rows["unseen"],
        relabelled=rows["relabelled"],
        unanswered_a=_unanswered(counted.outcomes[0]),
        unanswered_b=_unanswered(counted.outcomes[1]),
        difference=difference(a_only, b_only, counted.n),
        p=p,
        p_holm=p_holm,
        family=family,
        smallest_detectable=smallest_detectable(a_only + b_only, counted.n),
    )


def _unanswered(outcomes: Counter[str]) -> dict[Outcome, int]:
    return {of: outcomes[of] for of in Outcome if outcomes[of] and of is not Outcome.ANSWERED}


def _place(counted: _Counted) -> tuple[Any, ...]:
    meeting = counted.meeting
    place = (meeting.attribute, meeting.dataset, meeting.split)
    return (*place, *astuple(meeting.a), *astuple(meeting.b))


def _in_views(
    meeting: Meeting, attribute: Attribute, wanted: Callable[[str, str], bool]
) -> Iterator[_Counted]:
    for a, b, _ in meeting.pairs:
        _check(a, attribute, meeting.a.asked_label_set)
        _check(b, attribute, meeting.b.asked_label_set)
    for label_set in attribute.label_sets:
        if not wanted(attribute.name, label_set.name):
            continue
        seen_a = attribute.view(meeting.a.asked_label_set, label_set.name)
        seen_b = attribute.view(meeting.b.asked_label_set, label_set.name)
        if seen_a is None or seen_b is None:
            continue
        counted = _Counted(meeting, label_set.name, Counter(), (Counter(), Counter()))
        for a, b, n in meeting.pairs:
            targets = (_target(answer, attribute, label_set.name) for answer in (a, b))
            kind = _kind((a, seen_a), (b, seen_b), *targets)
            counted.rows[kind] += n
            if kind in _COMPARED:
                for outcomes, answer in zip(counted.outcomes, (a, b), strict=True):
                    outcomes[answer.outcome] += n
        if counted.n:
            yield counted


def _kind(
    a: tuple[Answer, View], b: tuple[Answer, View], target: str | None, other: str | None
) -> str:
    """The count of `Comparison` that a row belongs to; `other` is the target that `b` has."""
    if target != other:
        return "relabelled"
    if target is None:
        return "unseen"
    if a[0].outcome in RUN_OUTCOMES or b[0].outcome in RUN_OUTCOMES:
        return "failed"
    return _RIGHT[_is_right(*a, target), _is_right(*b, target)]


def _is_right(answer: Answer, view: View, target: str) -> bool:
    # An answer without a place in the view is an answer, and wrong, as in a score.
    label = answer.label if answer.outcome == Outcome.ANSWERED else None
    return label is not None and view.merges.get(label) == target


def _target(answer: Answer, attribute: Attribute, view: str) -> str | None:
    if answer.target is None or answer.target_label_set is None:
        return None
    seen = attribute.view(answer.target_label_set, view)
    return seen.merges.get(answer.target) if seen else None


def _check(answer: Answer, attribute: Attribute, asked: str) -> None:
    """Whether the values of a row can be what it says they are."""
    if answer.outcome not in set(Outcome):
        raise DataError(f"predictions hold '{answer.outcome}', which is no outcome")
    if answer.outcome == Outcome.ANSWERED:
        _check_label("answer", answer.label, asked, attribute)
    if answer.target is not None:
        _check_label("target", answer.target, answer.target_label_set, attribute)


def _check_label(what: str, label: str | None, label_set: str | None, attribute: Attribute) -> None:
    if label_set is None or label not in attribute.label_set(label_set).labels:
        raise DataError(f"predictions hold the {what} '{label}', which is not in {label_set}")
