"""How often two askings of the same rows are read alike."""

from dataclasses import dataclass

from facescan.attributes import Attribute, View
from facescan.score.intervals import Rate, rate
from facescan.score.paired import Answer, Meeting
from facescan.types import RUN_OUTCOMES, Outcome

_OUTSIDE = "outside the view"
"""What an answer without a place in the common view is read as."""


@dataclass(frozen=True, slots=True)
class Flips:
    """Two askings on the rows that both have an outcome of the model on.

    Attributes:
        rows: those.
        flipped: of them, how many are read otherwise: another label, or another outcome.
        failed: rows left out, since one of the two has an outcome of the run.
    """

    rows: int
    flipped: int
    failed: int

    @property
    def rate(self) -> Rate:
        """`flipped` of `rows`, with its interval."""
        return rate(self.flipped, self.rows)


def flips(meeting: Meeting, attribute: Attribute) -> Flips | None:
    """Seen in the finest label set into which both askings lead; None where there is none."""
    seen = _common(attribute, meeting.a.asked_label_set, meeting.b.asked_label_set)
    if seen is None:
        return None
    rows = flipped = failed = 0
    for one, other, n in meeting.pairs:
        if {one.outcome, other.outcome} & RUN_OUTCOMES:
            failed += n
            continue
        rows += n
        if _read(one, seen[0]) != _read(other, seen[1]):
            flipped += n
    return Flips(rows, flipped, failed)


def _common(attribute: Attribute, one: str, other: str) -> tuple[View, View] | None:
    for label_set in attribute.label_sets:
        first = attribute.view(one, label_set.name)
        second = attribute.view(other, label_set.name)
        if first is not None and second is not None:
            return first, second
    return None


def _read(answer: Answer, seen: View) -> str:
    """An answer's label in a view, or what became of it in the place of one."""
    if answer.outcome != Outcome.ANSWERED or answer.label is None:
        return answer.outcome
    return seen.merges.get(answer.label, _OUTSIDE)
