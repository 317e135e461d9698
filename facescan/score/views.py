"""Counts -> tallies: what was asked in one label set, seen in every set where it can be scored.

A score is always "asked in X, viewed in Y". Answers and targets go into Y by their attribute's
views, which may be partial:

- a row whose target has no place in Y is excluded from the view, and counted as such;
- an answer that has no place in Y, where the target has one, stays: it is answered and it is
  wrong. Leaving it out would let a model gain by answering outside the view.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from facescan.attributes import Attribute, LabelSet, View
from facescan.errors import DataError
from facescan.score.coding import Ints
from facescan.score.counts import COMBINATION, Cell, Counts
from facescan.score.subjects import Mask
from facescan.types import MODEL_OUTCOMES, RUN_OUTCOMES, Outcome

SCORED_OUTCOMES = MODEL_OUTCOMES - {Outcome.SPURIOUS}
"""The outcomes that accuracy divides by; persons who are not there are counted apart."""


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


@dataclass(frozen=True, eq=False)
class Tally:
    """The rows of one combination in one view.

    Cells are numbered as in `counts`. A row counts in exactly one of: `scored`, `unlabelled`,
    `excluded`, `spurious`.

    Attributes:
        labels: the view's label set.
        target: by cell, the position of the target in the view's labels; -1 where there is none,
            or where it has no place in the view.
        label: by cell, the same of the answer; -1 for all that is not an answer as well.
        outcomes: by cell.
        without_target: cells whose rows have no target at all.
    """

    key: Key
    labels: LabelSet
    counts: Counts
    target: Ints
    label: Ints
    outcomes: tuple[Outcome, ...]
    without_target: Mask

    def of(self, outcomes: Iterable[Outcome]) -> Mask:
        """The cells with one of these outcomes, wherever they count."""
        among = frozenset(outcomes)
        return np.array([each in among for each in self.outcomes], np.bool_)

    @cached_property
    def scored(self) -> Mask:
        """Cells whose target is in the view, run outcomes included."""
        return np.asarray((self.target >= 0) & ~self.spurious)

    @cached_property
    def unlabelled(self) -> Mask:
        """Cells without a target, run outcomes included."""
        return self.without_target & ~self.spurious

    @cached_property
    def spurious(self) -> Mask:
        """Cells of persons that a model listed and that are not there."""
        return self.of({Outcome.SPURIOUS})

    @cached_property
    def excluded(self) -> Mask:
        """Cells whose target has no place in the view."""
        return ~(self.scored | self.unlabelled | self.spurious)

    @cached_property
    def tried(self) -> Mask:
        """Cells that accuracy divides by: scored, and with an outcome of the model."""
        return self.scored & self.of(SCORED_OUTCOMES)

    @cached_property
    def answered(self) -> Mask:
        """Those of `tried` that are answered, with whatever label."""
        return self.scored & self.of({Outcome.ANSWERED})

    @cached_property
    def correct(self) -> Mask:
        """Those of `tried` that are right."""
        return np.asarray(self.tried & (self.label == self.target))

    @cached_property
    def failed(self) -> Mask:
        """Scored cells with an outcome of the run."""
        return self.scored & self.of(RUN_OUTCOMES)

    def rows(self, cells: Mask) -> int:
        """How many rows these cells have."""
        return int(self.counts.n[cells].sum())

    def by_outcome(self, cells: Mask) -> dict[Outcome, int]:
        """How the rows of these cells divide into every outcome, zeros included."""
        found = dict.fromkeys(Outcome, 0)
        for cell in np.flatnonzero(cells).tolist():
            found[self.outcomes[cell]] += int(self.counts.n[cell])
        return found

    def met(self, cells: Mask) -> Counter[tuple[str | None, Outcome, str | None]]:
        """Rows by (target, outcome, label) in the view's labels."""
        names = (*self.labels.labels, None)
        found: Counter[tuple[str | None, Outcome, str | None]] = Counter()
        for cell in np.flatnonzero(cells).tolist():
            met = names[self.target[cell]], self.outcomes[cell], names[self.label[cell]]
            found[met] += int(self.counts.n[cell])
        return found


def tallies(counts: Iterable[Counts], load: Callable[[str], Attribute]) -> Iterator[Tally]:
    """Every score that can be taken of `counts`, views in the attribute's order.

    A view is taken where both the asked set and a target set lead into it. Where there are no
    targets, or none that meets the answers in any view, the answers are seen in their own set.

    Args:
        counts: of any number of combinations.
        load: the attribute of a name, such as `facescan.attributes.load`.

    Raises:
        DataError: a row contradicts the outcome vocabulary or its label sets.
        UsageError: an attribute has no label set of a name that occurs in `counts`.
    """
    for each in counts:
        combined = dict(zip(COMBINATION, each.combination, strict=True))
        attribute = load(combined["attribute"])
        asked = combined["asked_label_set"]
        cells = [_checked(cell, attribute, asked) for cell in each.cells]
        for view in _views(attribute, asked, cells):
            yield _tally(Key(**combined, view=view), attribute, cells, each)


def _checked(cell: Cell, attribute: Attribute, asked: str) -> Cell:
    """The cell, if its values can be what it says they are; a label is an answer's alone."""
    if cell.outcome not in set(Outcome):
        raise DataError(f"predictions hold '{cell.outcome}', which is no outcome")
    if cell.outcome != Outcome.ANSWERED:
        cell = cell._replace(label=None)
    elif cell.label not in attribute.label_set(asked).labels:
        raise DataError(f"predictions hold the answer '{cell.label}', which is not in {asked}")
    if cell.target is not None and (
        cell.target_label_set is None
        or cell.target not in attribute.label_set(cell.target_label_set).labels
    ):
        raise DataError(
            f"predictions hold the target '{cell.target}', which is not in {cell.target_label_set}"
        )
    return cell


def _views(attribute: Attribute, asked: str, cells: Iterable[Cell]) -> list[str]:
    target_sets = {cell.target_label_set for cell in cells if cell.target is not None}
    found = [
        label_set.name
        for label_set in attribute.label_sets
        if attribute.view(asked, label_set.name)
        and any(name and attribute.view(name, label_set.name) for name in target_sets)
    ]
    return found or [asked]


def _tally(key: Key, attribute: Attribute, cells: Iterable[Cell], counts: Counts) -> Tally:
    labels = attribute.label_set(key.view)
    places = {label: place for place, label in enumerate(labels.labels)}
    answers = attribute.view(key.asked_label_set, key.view)
    targets = [
        None
        if cell.target is None or cell.target_label_set is None
        else _seen(cell.target, attribute.view(cell.target_label_set, key.view))
        for cell in cells
    ]
    return Tally(
        key=key,
        labels=labels,
        counts=counts,
        target=np.array([places.get(each, -1) if each else -1 for each in targets], np.int64),
        label=np.array([places.get(_seen(cell.label, answers) or "", -1) for cell in cells]),
        outcomes=tuple(Outcome(cell.outcome) for cell in cells),
        without_target=np.array([cell.target is None for cell in cells], np.bool_),
    )


def _seen(label: str | None, view: View | None) -> str | None:
    return view.merges.get(label) if view and label is not None else None
