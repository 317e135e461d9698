"""Rows that come in subjects: what a figure's interval needs of them, for many parts at once.

A person seen in ten pictures is not ten persons: what a model sees in one of the pictures, it
tends to see in the others. So where subjects are known, a standard error is taken between them.
Rows whose subject is not known are taken as subjects of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array  # type: ignore[import-untyped]  # ships no types

from facescan.score.coding import Floats, Ints
from facescan.score.counts import Counts, Grouped, Subjects
from facescan.score.intervals import CONFIDENCE, Moments, Rate, clustered, mean, rate

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Division:
    """The rows of one combination, divided into parts: groups, or classes, or one for the whole.

    Values are given by cell: what a row of that cell counts as.

    Attributes:
        parts: how many there are.
        part: with `cell` and `n`: `n[i]` rows are in part `part[i]` and cell `cell[i]`.
        alone: how many of these have no subject.
        pairs: the rows that have one; None where none has.
    """

    parts: int
    part: Ints
    cell: Ints
    n: Ints
    alone: Ints
    pairs: "_Pairs | None" = None

    def totals(self, values: Floats | Mask) -> Floats:
        """By part, the sum of `values` over rows; exact as long as they are whole numbers."""
        return _summed(self.part, self.n * values[self.cell], self.parts)

    def proportions(self, hits: Mask, trials: Mask) -> tuple[Rate, ...]:
        """By part, the share of `hits` in `trials`, which are cells; every hit is a trial."""
        return self.at_confidences(hits, trials, [CONFIDENCE])[0]

    def at_confidences(
        self, hits: Mask, trials: Mask, confidences: Sequence[float]
    ) -> list[tuple[Rate, ...]]:
        """The same with intervals at each of these levels."""
        if self.pairs is not None:
            found = self.moments(hits.astype(np.float64), trials)
            return [tuple(clustered(each, level) for each in found) for level in confidences]
        pairs = list(zip(self.totals(hits).tolist(), self.totals(trials).tolist(), strict=True))
        return [tuple(rate(int(hit), int(n), level) for hit, n in pairs) for level in confidences]

    def means(self, values: Floats, trials: Mask) -> tuple[Rate, ...]:
        """By part, the mean of `values` over the rows of the cells `trials`."""
        return tuple(mean(each) for each in self.moments(values, trials))

    def moments(self, values: Floats, trials: Mask) -> tuple[Moments, ...]:
        """By part; rows of other cells than `trials` are left out."""
        values, tried = np.where(trials, values, 0.0), trials.astype(np.float64)
        own, alone = values[self.cell], self.alone * tried[self.cell]
        sums = [_summed(self.part, alone * each, self.parts) for each in (1.0, own * own, own, 1.0)]
        if self.pairs is not None:
            known = self.pairs.sums(values, tried)
            sums = [some + more for some, more in zip(sums, known, strict=True)]
        columns = [sums[0], self.totals(tried), self.totals(values), *sums[1:]]
        return tuple(
            Moments(int(clusters), int(rows), total, vv, vt, tt)
            for clusters, rows, total, vv, vt, tt in zip(
                *(each.tolist() for each in columns), strict=True
            )
        )

    def clusters(self, trials: Mask) -> Ints:
        """By part, how many subjects have rows of these cells; rows without one are one each."""
        found = np.bincount(self.part, self.alone * trials[self.cell], self.parts)
        if self.pairs is not None:
            some = (self.pairs.of(trials.astype(np.float64)) > 0).astype(np.float64)
            found = found + np.bincount(self.pairs.part, some, self.parts)
        return found.astype(np.int64)

    def shared(self, trials: Mask, among: Ints) -> Floats:
        """For each two parts, the sum over clusters of the product of their rows of these cells.

        `among` are the parts, in the order of the result's rows and columns.
        """
        alone = _summed(self.part, self.alone * trials[self.cell], self.parts)
        diagonal = np.asarray(np.diag(alone[among]), np.float64)
        if self.pairs is None:
            return diagonal
        place = np.full(self.parts, -1)
        place[among] = np.arange(len(among))
        place = place[self.pairs.part]
        kept = place >= 0
        sizes = np.bincount(self.pairs.subject[kept], minlength=self.pairs.subjects)
        rows = self.pairs.of(trials.astype(np.float64))[kept]
        bounds = np.append(0, np.cumsum(sizes))
        matrix = csr_array((rows, place[kept], bounds), shape=(self.pairs.subjects, len(among)))
        return np.asarray((matrix.T @ matrix).toarray() + diagonal)

    def merged(self, part: Ints) -> "Division":
        """The same rows in one part, without those of parts for which `part` is -1."""
        inside = part[self.part] >= 0
        counts = self.cell[inside], self.n[inside], self.alone[inside]
        pairs = self.pairs and self.pairs.merged(part)
        return Division(1, np.zeros(int(inside.sum()), np.int64), *counts, pairs)


class _Pairs:
    """The rows that have a subject, by pair of subject and part.

    Attributes:
        subjects: how many there are, with pairs or not.
        subject: of each pair that occurs, sorted; likewise its `part`.
    """

    def __init__(self, subjects: Subjects, rows: Ints, parts: int) -> None:
        """`rows` has the part of each row, -1 for none."""
        inside = rows >= 0
        pair = subjects.subject[inside].astype(np.int64) * parts + rows[inside]
        self._cell = subjects.cell[inside]
        if parts > 1:
            # Rows of one subject stand together already: little is left to sort.
            order = np.argsort(pair, kind="stable")
            pair, self._cell = pair[order], self._cell[order]
        starts = np.ones(len(pair), np.bool_)
        starts[1:] = pair[1:] != pair[:-1]
        self._starts = np.flatnonzero(starts)
        self._parts = parts
        self._kept: dict[bytes, Floats] = {}
        self.subjects = subjects.number
        self.subject, self.part = np.divmod(pair[self._starts], parts)

    def of(self, values: Floats) -> Floats:
        """By pair, the sum of values of cells; kept, as several figures are taken of the same."""
        key = values.tobytes()
        if key not in self._kept:
            found = np.zeros(0)
            if len(self._starts):
                found = np.add.reduceat(values[self._cell], self._starts)
            self._kept[key] = found
        return self._kept[key]

    def sums(self, values: Floats, trials: Floats) -> list[Floats]:
        """By part: pairs with trials, and the sums of v * v, v * t and t * t over them."""
        v, t = self.of(values), self.of(trials)
        return [_summed(self.part, each, self._parts) for each in (t > 0, v * v, v * t, t * t)]

    def merged(self, part: Ints) -> "_Pairs":
        """All rows whose part is not -1 in `part`, in one part."""
        sizes = np.diff(np.append(self._starts, len(self._cell)))
        subject = np.repeat(self.subject, sizes).astype(np.int32)
        rows = np.repeat(np.where(part[self.part] >= 0, 0, -1), sizes)
        return _Pairs(Subjects(self.subjects, subject, self._cell), rows, 1)


def _summed(part: Ints, values: Floats | Ints | Mask, parts: int) -> Floats:
    return np.bincount(part, values, parts).astype(np.float64)


def by_cell(counts: Counts, part: Ints, parts: int) -> Division:
    """Divide rows by their cell: `part` has a part for each, -1 where its rows are left out."""
    inside = np.flatnonzero(part >= 0)
    n, subjects = counts.n[inside], counts.subjects
    if subjects is None:
        return Division(parts, part[inside], inside, n, n)
    known = np.bincount(subjects.cell, minlength=len(counts.n))[inside]
    pairs = _Pairs(subjects, part[subjects.cell], parts)
    return Division(parts, part[inside], inside, n, n - known, pairs)


def whole(counts: Counts) -> Division:
    """All rows in one part."""
    return by_cell(counts, np.zeros(len(counts.n), np.int64), 1)


def by_group(counts: Counts, grouped: Grouped) -> Division:
    """Divide rows by group."""
    parts, subjects = len(grouped.groups), counts.subjects
    if subjects is None or grouped.rows is None:
        return Division(parts, grouped.part, grouped.cell, grouped.n, grouped.n)
    rows = grouped.rows.astype(np.int64)
    width, inside = len(counts.n), rows >= 0
    known = np.bincount(rows[inside] * width + subjects.cell[inside], minlength=parts * width)
    alone = grouped.n - known[grouped.part * width + grouped.cell]
    pairs = _Pairs(subjects, rows, parts)
    return Division(parts, grouped.part, grouped.cell, grouped.n, alone, pairs)
