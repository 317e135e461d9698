"""A tally -> everything that is said of it: figures of all its rows, and of groups of them."""

from dataclasses import dataclass, fields

from facescan.score import figures, groups
from facescan.score.figures import Figures
from facescan.score.groups import MIN_CELL, Groups
from facescan.score.views import Key, Tally


@dataclass(frozen=True, slots=True)
class Score(Figures):
    """Everything that is said of one combination in one view.

    Attributes:
        groups: one for each grouping.
    """

    tally: Tally
    groups: tuple[Groups, ...]

    @property
    def key(self) -> Key:
        """What the score is of."""
        return self.tally.key


def of(tally: Tally, min_cell: int = MIN_CELL) -> Score:
    """Take every figure of one tally; groups with fewer than `min_cell` rows are suppressed."""
    found = figures.of(tally)
    compared = [
        groups.described(groups.compare(tally, each, min_cell), tally, each)
        for each in tally.counts.grouped
    ]
    return Score(
        **{each.name: getattr(found, each.name) for each in fields(found)},
        tally=tally,
        groups=groups.adjusted(compared),
    )
