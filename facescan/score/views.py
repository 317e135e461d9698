"""Counts -> tallies: what was asked in one label set, seen in every set where it can be scored.

A score is always "asked in X, viewed in Y". Answers and targets go into Y by their attribute's
views, which may be partial:

- a row whose target has no place in Y is excluded from the view, and counted as such;
- an answer that has no place in Y, where the target has one, stays: it is answered and it is
  wrong. Leaving it out would let a model gain by answering outside the view.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa

from facescan.attributes import Attribute, View
from facescan.errors import DataError
from facescan.score.counts import COMBINATION
from facescan.types import Outcome


@dataclass(frozen=True, slots=True)
class Key:
    """What a score is of; `view` is the label set in which answers and targets are compared."""

    model: str
    dataset: str
    split: str
    attribute: str
    protocol: str
    answer_mode: str
    asked_label_set: str
    view: str


@dataclass(frozen=True, slots=True)
class Tally:
    """The rows of one combination in one view, each counted in exactly one of the last four.

    Attributes:
        labels: the view's labels, in the label set's order.
        scored: rows whose target is in the view: (target, outcome, label) in the view's labels;
            `label` is None for all that is not an answer, and for an answer outside the view.
        unlabelled: rows without a target: (outcome, label), `label` as in `scored`.
        excluded: rows whose target has no place in the view.
        spurious: persons that a model listed and that are not there; they have no target.
    """

    key: Key
    labels: tuple[str, ...]
    scored: Counter[tuple[str, Outcome, str | None]]
    unlabelled: Counter[tuple[Outcome, str | None]]
    excluded: int
    spurious: int


@dataclass(frozen=True, slots=True)
class _Row:
    outcome: Outcome
    label: str | None
    target: str | None
    target_label_set: str | None
    n: int


def tallies(counts: pa.Table, load: Callable[[str], Attribute]) -> Iterator[Tally]:
    """Every score that can be taken of `counts`, sorted by key, views in the attribute's order.

    A view is taken where both the asked set and a target set lead into it. Where there are no
    targets, or none that meets the answers in any view, the answers are seen in their own set.

    Args:
        counts: of `COUNTS_SCHEMA`, in any order.
        load: the attribute of a name, such as `facescan.attributes.load`.

    Raises:
        DataError: a row contradicts the outcome vocabulary or its label sets.
        UsageError: an attribute has no label set of a name that occurs in `counts`.
    """

    def combination(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(row[name] for name in COMBINATION)

    for names, group in groupby(sorted(counts.to_pylist(), key=combination), key=combination):
        combined = dict(zip(COMBINATION, names, strict=True))
        attribute = load(combined["attribute"])
        asked = combined["asked_label_set"]
        rows = [_checked(row, attribute, asked) for row in group]
        for view in _views(attribute, asked, rows):
            yield _tally(Key(**combined, view=view), attribute, rows)


def _checked(row: Mapping[str, Any], attribute: Attribute, asked: str) -> _Row:
    """The row, if its values can be what it says they are."""
    answer, target, target_set = row["label"], row["target"], row["target_label_set"]
    if row["outcome"] not in set(Outcome):
        raise DataError(f"predictions hold '{row['outcome']}', which is no outcome")
    outcome = Outcome(row["outcome"])
    if outcome is not Outcome.ANSWERED:
        answer = None
    elif answer not in attribute.label_set(asked).labels:
        raise DataError(f"predictions hold the answer '{answer}', which is not in {asked}")
    if target is not None and (
        target_set is None or target not in attribute.label_set(target_set).labels
    ):
        raise DataError(f"predictions hold the target '{target}', which is not in {target_set}")
    return _Row(outcome, answer, target, target_set, row["n"])


def _views(attribute: Attribute, asked: str, rows: Iterable[_Row]) -> list[str]:
    target_sets = {row.target_label_set for row in rows if row.target is not None}
    found = [
        label_set.name
        for label_set in attribute.label_sets
        if attribute.view(asked, label_set.name)
        and any(name and attribute.view(name, label_set.name) for name in target_sets)
    ]
    return found or [asked]


def _tally(key: Key, attribute: Attribute, rows: Iterable[_Row]) -> Tally:
    labels = attribute.label_set(key.view).labels
    answers = attribute.view(key.asked_label_set, key.view)
    scored: Counter[tuple[str, Outcome, str | None]] = Counter()
    unlabelled: Counter[tuple[Outcome, str | None]] = Counter()
    excluded = spurious = 0
    for row in rows:
        label = _seen(row.label, answers)
        if row.outcome is Outcome.SPURIOUS:
            spurious += row.n
        elif row.target is None or row.target_label_set is None:
            unlabelled[row.outcome, label] += row.n
        elif target := _seen(row.target, attribute.view(row.target_label_set, key.view)):
            scored[target, row.outcome, label] += row.n
        else:
            excluded += row.n
    return Tally(key, labels, scored, unlabelled, excluded, spurious)


def _seen(label: str | None, view: View | None) -> str | None:
    return view.merges.get(label) if view and label is not None else None
