"""One tally -> those of its groups: all that can be said of rows can be said of some of them."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np

from facescan.score.counts import Counts, Grouped, Subjects
from facescan.score.views import Tally


def parts(tally: Tally, grouped: Grouped, among: Iterable[int]) -> Iterator[Tally]:
    """The tally of each of these groups, which are places in `grouped.groups`.

    A group has those cells of `tally` that it has rows of. Subjects keep their numbers, and so how
    many there are in all.
    """
    counts = tally.counts
    subjects, rows = counts.subjects, grouped.rows
    by_part = None
    if subjects is not None and rows is not None:
        # Stable, as rows of one subject have to stay together.
        order = np.argsort(rows, kind="stable")
        starts = np.searchsorted(rows[order], np.arange(len(grouped.groups) + 1))
        by_part = [order[a:b] for a, b in pairwise(starts.tolist())]
    for part in among:
        begin, end = np.searchsorted(grouped.part, [part, part + 1]).tolist()
        cells = grouped.cell[begin:end]
        own = None
        if subjects is not None and by_part is not None:
            place = np.full(len(counts.n), -1, np.int32)
            place[cells] = np.arange(len(cells), dtype=np.int32)
            here = by_part[part]
            own = Subjects(subjects.number, subjects.subject[here], place[subjects.cell[here]])
        within = Counts(
            combination=counts.combination,
            cells=tuple(counts.cells[cell] for cell in cells.tolist()),
            n=grouped.n[begin:end],
            probability=grouped.probability[begin:end],
            squares=grouped.squares[begin:end],
            subjects=own,
        )
        yield replace(
            tally,
            counts=within,
            target=tally.target[cells],
            label=tally.label[cells],
            outcomes=tuple(tally.outcomes[cell] for cell in cells.tolist()),
            without_target=tally.without_target[cells],
        )
