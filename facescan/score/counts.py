"""Predictions of any number -> additive counts: how often each answer met each target.

Counts are all that a score reads. They add: counting the parts of a set of rows and adding gives
what counting the whole gives, however the rows are ordered or cut into files. Sums of
probabilities are kept as whole numbers for that, since sums of floats depend on their order.

Where subjects are known, what each row's subject is has to be kept as well: 8 bytes a row, and 2
more for each grouping.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from facescan.attributes import Attribute
from facescan.errors import DataError
from facescan.score.coding import Coded, Floats, Ints, coded, distinct
from facescan.score.groupings import Grouping
from facescan.storage import Storage

COMBINATION = (
    "model",
    "dataset",
    "split",
    "attribute",
    "protocol",
    "answer_mode",
    "asked_label_set",
)
"""The columns that say what was asked of whom; scores are never taken across them."""

CELL = ("target_label_set", "outcome", "label", "target")
"""The columns that say what came of it."""

YEARS = "value_years"
"""The column that holds a true age in years."""

YEARS_UNIT = 100
"""Years are counted in hundredths."""

BINS = 10
"""Probabilities are counted in so many bins of equal width."""

PROBABILITY_UNIT = 1 << 40
"""In which probabilities and their squares are summed: to 5e-13 each."""

MOST_GROUPS = 1_000
"""A grouping with more groups than this is given up."""

_KEYS = (*COMBINATION, *CELL)
_OPTIONAL = ("subject_id", "probability", YEARS)
_THREADS = 4
_ROWS_AT_ONCE = 1 << 16
_ROUNDING = 1e-9
"""By which a probability may pass 1."""

Columns = Callable[[pa.RecordBatch], Mapping[str, "pa.Array[Any]"]]


class Cell(NamedTuple):
    """What came of a row: the columns of `CELL`, and what calibration and ages need.

    Attributes:
        bin: of `probability`, where there is one.
        years: the true age in hundredths, where labels are bins of years and the age is known.
    """

    target_label_set: str | None
    outcome: str
    label: str | None
    target: str | None
    bin: int | None = None
    years: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Grouped:
    """Rows of one combination by group: `n[i]` are in group `part[i]` and cell `cell[i]`.

    Attributes:
        groups: the values of each group, sorted; empty where there were more than `MOST_GROUPS`.
        probability: as in `Counts`, of these rows; likewise `squares`.
        rows: the group of each row of `Subjects`; -1 where a row is in none.
    """

    grouping: Grouping
    groups: tuple[tuple[str, ...], ...]
    part: Ints
    cell: Ints
    n: Ints
    probability: tuple[int, ...]
    squares: tuple[int, ...]
    rows: npt.NDArray[np.int16] | None
    given_up: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Subjects:
    """The rows of one combination whose subject is known, sorted by subject, then cell.

    Attributes:
        number: how many subjects there are.
        subject: of each row, from 0.
        cell: of each row.
    """

    number: int
    subject: npt.NDArray[np.int32]
    cell: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Everything that is counted of one combination.

    Attributes:
        combination: the values of `COMBINATION`.
        cells: sorted; each occurs.
        n: rows by cell.
        probability: the sum of the probabilities by cell, in `PROBABILITY_UNIT`.
        squares: the same of their squares.
        grouped: in the order of the groupings.
        subjects: None where no row has one.
    """

    combination: tuple[str, ...]
    cells: tuple[Cell, ...]
    n: Ints
    probability: tuple[int, ...]
    squares: tuple[int, ...]
    grouped: tuple[Grouped, ...] = ()
    subjects: Subjects | None = None


def columns(folder: Storage, names: Sequence[str]) -> tuple[str, ...]:
    """The names of all columns that prediction files have, in the order in which they come.

    Raises:
        DataError: a file is no Parquet or is damaged.
        OSError: a file is not there, or the object store does not answer.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _columns(folder, name), names)
        return tuple(dict.fromkeys(column for each in found for column in each))


def count(
    folder: Storage,
    names: Sequence[str],
    load: Callable[[str], Attribute],
    groupings: Sequence[Grouping] = (),
    joined: Columns | None = None,
) -> list[Counts]:
    """Count the rows of prediction files.

    The files are streamed: memory grows with the number of distinct cells, of subjects and of
    rows whose subject is known, not with that of other rows.

    Args:
        folder: where the files are.
        names: at least one Parquet file with the columns of `PREDICTION_SCHEMA`, of which
            `subject_id` and `probability` may be absent; others may follow and are read where a
            grouping names them.
        load: the attribute of a name, such as `facescan.attributes.load`.
        groupings: by which rows are counted as well.
        joined: further columns of a batch that has the columns of `ROW`.

    Returns:
        The counts of each combination, sorted.

    Raises:
        DataError: a file is no Parquet, is damaged, or lacks a column, or a probability is none.
        UnknownNameError: there is no such attribute.
        OSError: a file is not there, or the object store does not answer.
    """
    counter = Counter(load, groupings, joined)
    # Decoding and arithmetic leave Python's lock, and an object store is slow to answer.
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda name: _count(folder, name, counter), names))
    return counter.counts()


ROW = ("dataset", "split", "image_id", "person")
"""The columns that tell the rows of one combination apart."""


def _columns(folder: Storage, name: str) -> list[str]:
    with _readable(folder, name) as file:
        return list(pq.read_schema(file).names)


@contextmanager
def _readable(folder: Storage, name: str) -> Iterator[pa.NativeFile]:
    with folder.open(name) as file:
        try:
            yield file
        except (pa.ArrowException, OSError) as error:
            where = f"{folder.location}/{name}"
            raise DataError(f"{where}: cannot be read as predictions: {error}") from error


def _count(folder: Storage, name: str, counter: "Counter") -> None:
    with _readable(folder, name) as file:
        metadata = pq.read_metadata(file)
        present = metadata.schema.to_arrow_schema().names
        if lacking := sorted(set(_KEYS) - set(present)):
            raise pa.ArrowInvalid(f"no column {', '.join(lacking)}")
        wanted = [*counter.columns, *(ROW if counter.joined else ())]
        read = [each for each in dict.fromkeys((*_KEYS, *_OPTIONAL, *wanted)) if each in present]
        # As dictionaries, which the files hold anyway, strings are counted twice as fast.
        repeated = [each for each in (*_KEYS, *counter.columns) if each in present]
        with pq.ParquetFile(file, metadata=metadata, read_dictionary=repeated) as parquet:
            # One thread: the files are read side by side.
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=read, use_threads=False):
                counter.add(batch, f"{folder.location}/{name}")


@dataclass(slots=True)
class _Groups:
    """The groups of one grouping found so far, and what was counted, in pieces.

    Attributes:
        keys: numbers of cell and group together.
        sums: for each key its rows and, once there is a probability, the sums of probabilities and
            of their squares, either in two: by themselves they would pass what 64 bits hold at 8
            million rows.
        more: how many keys there are in pieces that were not yet summed.
    """

    grouping: Grouping
    ids: dict[tuple[str, ...], int] = field(default_factory=dict)
    keys: list[Ints] = field(default_factory=list)
    sums: list[Ints] = field(default_factory=list)
    more: int = 0
    given_up: bool = False

    def identify(self, groups: Sequence[tuple[str, ...]]) -> Ints | None:
        """Numbers for these groups; None once there are too many."""
        if not self.given_up:
            found = [self.ids.setdefault(group, len(self.ids)) for group in groups]
            self.given_up = len(self.ids) > MOST_GROUPS
            if not self.given_up:
                return np.array(found, np.int64)
        self.ids.clear()
        self.keys.clear()
        self.sums.clear()
        return None

    def add(self, cells: Ints, groups: Ints, sums: Sequence[Ints]) -> None:
        n, *large = sums
        halves: list[Ints] = []
        if any(each.any() for each in large):
            halves = [half for each in large for half in np.divmod(each, _HALF)]
        self.keys.append(cells * _GROUP_RADIX + groups)
        self.sums.append(np.stack([n, *halves], axis=1))
        self.more += len(groups)
        if self.more >= _KEYS_AT_ONCE + len(self.keys[0]):
            keys, together = self.summed()
            self.keys, self.sums, self.more = [keys], [together], 0

    def summed(self) -> tuple[Ints, Ints]:
        """Each key once, and its sums."""
        if not self.keys:
            return np.zeros(0, np.int64), np.zeros((0, 1), np.int64)
        width = max(each.shape[1] for each in self.sums)
        wide = [np.pad(each, ((0, 0), (0, width - each.shape[1]))) for each in self.sums]
        return _summed(np.concatenate(self.keys), np.concatenate(wide))


_GROUP_RADIX = 1 << 10
_KEYS_AT_ONCE = 1 << 18
_HALF = 1 << 32


@dataclass(slots=True)
class _Rows:
    """Rows whose subject is known, in pieces."""

    cell: list[npt.NDArray[np.int32]] = field(default_factory=list)
    subject: list[npt.NDArray[np.int32]] = field(default_factory=list)
    groups: list[list[npt.NDArray[np.int16]]] = field(default_factory=list)


class Counter:
    """Counts rows as they come; may be given batches by several threads."""

    def __init__(
        self,
        load: Callable[[str], Attribute],
        groupings: Sequence[Grouping] = (),
        joined: Columns | None = None,
    ) -> None:
        """The arguments are those of `count`."""
        self.columns = list(dict.fromkeys(name for each in groupings for name in each.columns))
        self.joined = joined
        self._load = load
        self._in_years: dict[str, bool] = {}
        self._lock = Lock()
        self._cells: dict[tuple[tuple[str, ...], Cell], int] = {}
        self._sums: list[list[int]] = []
        self._groups = [_Groups(each) for each in groupings]
        self._subjects: dict[str, int] = {}
        self._rows: dict[tuple[str, ...], _Rows] = {}

    def add(self, batch: pa.RecordBatch, where: str = "") -> None:
        """Count a batch that has the columns of `count`'s files; `where` it is from, for errors.

        Raises:
            DataError: a probability is not between 0 and 1.
            UnknownNameError: there is no attribute of a name.
        """
        if not batch.num_rows:
            return
        keys = [coded(batch.column(name)) for name in _KEYS]
        bins, probability = _probabilities(batch, where)
        parts = [*keys, bins, self._years(batch, keys[_KEYS.index("attribute")])]
        local, first = distinct(parts, batch.num_rows)
        values = list(zip(*(each.at(first) for each in parts), strict=True))
        found = [(row[: len(COMBINATION)], Cell(*row[len(COMBINATION) :])) for row in values]
        sums = [np.bincount(local)] + [
            _exact_sums(local, each, len(first)) for each in (probability, probability**2)
        ]
        subjects = _subjects(batch)
        groups = self._group_columns(batch)
        with self._lock:
            cells = self._add_cells(found, np.stack(sums, axis=1).tolist())
            rows = [
                self._add_groups(each, groups, local, cells, probability) for each in self._groups
            ]
            if subjects is not None:
                self._add_rows(subjects, [c for c, _ in found], local, cells, rows)

    def _years(self, batch: pa.RecordBatch, attributes: Coded) -> Coded:
        """True ages, of attributes whose labels are bins of years."""
        size = batch.num_rows
        if YEARS not in batch.schema.names or batch.column(YEARS).null_count == size:
            return _nothing(size)
        in_years = np.array([self._has_years(str(name)) for name in attributes.values])
        years = _numbers(batch.column(YEARS))
        known = in_years[attributes.codes] & np.isfinite(years)
        if not known.any():
            return _nothing(size)
        distinct, codes = np.unique(
            np.rint(years[known] * YEARS_UNIT).astype(np.int64), return_inverse=True
        )
        found = np.full(size, len(distinct))
        found[known] = codes
        return Coded(found, [*distinct.tolist(), None])

    def _has_years(self, name: str) -> bool:
        if name not in self._in_years:
            self._in_years[name] = any(each.bounds for each in self._load(name).label_sets)
        return self._in_years[name]

    def _group_columns(self, batch: pa.RecordBatch) -> dict[str, Coded]:
        joined = self.joined(batch) if self.joined else {}
        present = set(batch.schema.names)
        return {
            name: coded(joined[name])
            if name in joined
            else coded(batch.column(name))
            if name in present
            else _nothing(batch.num_rows)
            for name in self.columns
        }

    def _add_cells(
        self, found: Sequence[tuple[tuple[str, ...], Cell]], sums: Sequence[Sequence[int]]
    ) -> Ints:
        cells = []
        for cell, each in zip(found, sums, strict=True):
            number = self._cells.setdefault(cell, len(self._cells))
            if number == len(self._sums):
                self._sums.append([0] * len(each))
            self._sums[number] = [a + b for a, b in zip(self._sums[number], each, strict=True)]
            cells.append(number)
        return np.array(cells, np.int64)

    def _add_groups(
        self,
        groups: _Groups,
        columns: Mapping[str, Coded],
        local: Ints,
        cells: Ints,
        probability: Floats,
    ) -> npt.NDArray[np.int16]:
        """Count the rows by group and cell; returns the group of each row, -1 for none."""
        size = len(local)
        nowhere = np.full(size, -1, np.int16)
        own = [columns[name] for name in groups.grouping.columns]
        rows = np.flatnonzero(np.logical_and.reduce([each.known() for each in own]))
        if groups.given_up or not len(rows):
            return nowhere
        by_cell = Coded(local[rows], range(len(cells)))
        together, first = distinct([by_cell, *(each.take(rows) for each in own)], len(rows))
        names = list(zip(*(each.take(rows).at(first) for each in own), strict=True))
        numbers = groups.identify(names)
        if numbers is None:
            return nowhere
        sums = [np.bincount(together)] + [
            _exact_sums(together, each[rows], len(first)) for each in (probability, probability**2)
        ]
        groups.add(cells[by_cell.codes[first]], numbers, sums)
        nowhere[rows] = numbers[together]
        return nowhere

    def _add_rows(
        self,
        subjects: Coded,
        combinations: Sequence[tuple[str, ...]],
        local: Ints,
        cells: Ints,
        groups: Sequence[npt.NDArray[np.int16]],
    ) -> None:
        numbers = np.array(
            [self._subjects.setdefault(each, len(self._subjects)) for each in subjects.values[:-1]],
            np.int32,
        )
        names = sorted(set(combinations))
        combination = np.array([names.index(each) for each in combinations])[local]
        for number, name in enumerate(names):
            here = np.flatnonzero(subjects.known() & (combination == number))
            rows = self._rows.setdefault(name, _Rows())
            rows.cell.append(cells[local[here]].astype(np.int32))
            rows.subject.append(numbers[subjects.codes[here]])
            rows.groups.append([each[here] for each in groups])

    def counts(self) -> list[Counts]:
        """What was counted; ends the counting."""
        of: dict[tuple[str, ...], list[tuple[Cell, int]]] = {}
        for (combination, cell), number in self._cells.items():
            of.setdefault(combination, []).append((cell, number))
        rank = _ranks(self._subjects)
        groups = [_Settled.of(each) for each in self._groups]
        return [self._of(name, sorted(of[name], key=_order), groups, rank) for name in sorted(of)]

    def _of(
        self,
        name: tuple[str, ...],
        cells: Sequence[tuple[Cell, int]],
        groups: "Sequence[_Settled]",
        rank: npt.NDArray[np.int32],
    ) -> Counts:
        numbers = [number for _, number in cells]
        sums = [self._sums[number] for number in numbers]
        place = np.full(len(self._cells), -1)
        place[numbers] = np.arange(len(numbers))
        rows = self._rows.pop(name, None)
        subjects, order = None, np.zeros(0, np.int64)
        if rows is not None and any(len(each) for each in rows.cell):
            subjects, order = _sorted_rows(rows, rank, place)
        grouped = []
        for position, each in enumerate(groups):
            own = None
            if rows is not None and subjects is not None:
                own = np.concatenate([piece[position] for piece in rows.groups])[order]
            grouped.append(each.within(place, own))
        return Counts(
            combination=name,
            cells=tuple(cell for cell, _ in cells),
            n=np.array([each[0] for each in sums], np.int64),
            probability=tuple(each[1] for each in sums),
            squares=tuple(each[2] for each in sums),
            grouped=tuple(grouped),
            subjects=subjects,
        )


@dataclass(frozen=True, slots=True)
class _Settled:
    """The groups of one grouping, sorted, and how many rows each has of each numbered cell."""

    groups: _Groups
    names: tuple[tuple[str, ...], ...]
    place: Ints
    cell: Ints
    part: Ints
    sums: Ints

    @classmethod
    def of(cls, groups: _Groups) -> "_Settled":
        names = sorted(groups.ids)
        # One more, for the rows of no group, whose number is -1.
        place = np.full(len(names) + 1, -1)
        for new, name in enumerate(names):
            place[groups.ids[name]] = new
        keys, sums = groups.summed()
        cell, part = np.divmod(keys, _GROUP_RADIX)
        return cls(groups, tuple(names), place, cell, place[part], sums)

    def within(self, place: Ints, rows: npt.NDArray[np.int16] | None) -> Grouped:
        """The part that is about the cells of one combination; `place` has them, -1 for others."""
        here = np.flatnonzero(place[self.cell] >= 0)
        cell, part = place[self.cell[here]], self.part[here]
        order = np.lexsort((cell, part))
        used, renumbered = np.unique(part[order], return_inverse=True)
        new = np.full(len(self.names) + 1, -1)
        new[used] = np.arange(len(used))
        if rows is not None:
            rows = np.full(len(rows), -1, np.int16) if self.groups.given_up else rows
            rows = new[self.place[rows]].astype(np.int16)
        sums = self.sums[here][order]
        # As Python's numbers, which have no largest.
        probability, squares = (
            tuple(high * _HALF + low for high, low in halves.tolist())
            if halves.shape[1]
            else (0,) * len(sums)
            for halves in (sums[:, 1:3], sums[:, 3:5])
        )
        return Grouped(
            grouping=self.groups.grouping,
            groups=tuple(self.names[each] for each in used),
            part=renumbered,
            cell=cell[order],
            n=sums[:, 0],
            probability=probability,
            squares=squares,
            rows=rows,
            given_up=self.groups.given_up,
        )


def _order(cell: tuple[Cell, int]) -> list[tuple[bool, Any]]:
    return [(value is None, value) for value in cell[0]]


def _nothing(size: int) -> Coded:
    return Coded(np.zeros(size, np.int64), [None])


def _numbers(column: "pa.Array[Any]") -> Floats:
    """Null is NaN."""
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def _probabilities(batch: pa.RecordBatch, where: str) -> tuple[Coded, Floats]:
    """The bins, and the probabilities with 0 for null."""
    size = batch.num_rows
    if "probability" not in batch.schema.names or batch.column("probability").null_count == size:
        return _nothing(size), np.zeros(size)
    column = batch.column("probability")
    known = np.asarray(column.is_valid().to_numpy(zero_copy_only=False))
    values = np.where(known, _numbers(column), 0)
    if not ((values >= 0) & (values <= 1 + _ROUNDING)).all():
        wrong = values[~((values >= 0) & (values <= 1 + _ROUNDING))][0]
        raise DataError(f"{where}: holds the probability {wrong}, which is not between 0 and 1")
    values = np.minimum(values, 1)
    # A bin has its upper end, not its lower one; the first has both.
    bins = np.clip(np.ceil(values * BINS) - 1, 0, BINS - 1).astype(np.int64)
    return Coded(np.where(known, bins, BINS), [*range(BINS), None]), values


def _subjects(batch: pa.RecordBatch) -> Coded | None:
    """The subjects, None last among their values; None where no row has one."""
    if "subject_id" not in batch.schema.names:
        return None
    column = batch.column("subject_id")
    if column.null_count == len(column):
        return None
    found = coded(column)
    return found if found.values[-1] is None else Coded(found.codes, [*found.values, None])


def _exact_sums(local: Ints, values: Floats, size: int) -> Ints:
    if not values.any():
        return np.zeros(size, np.int64)
    sums = np.zeros(size, np.int64)
    np.add.at(sums, local, np.rint(values * PROBABILITY_UNIT).astype(np.int64))
    return sums


def _summed(keys: Ints, parts: Ints) -> tuple[Ints, Ints]:
    """Each key once, with the sums of its rows of `parts`."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[starts], np.add.reduceat(parts[order], starts)


def _ranks(subjects: Mapping[str, int]) -> npt.NDArray[np.int32]:
    """Their places in sorted order, which does not depend on the order of the rows."""
    ranks = np.zeros(len(subjects), np.int32)
    ranks[[subjects[name] for name in sorted(subjects)]] = np.arange(len(subjects))
    return ranks


def _sorted_rows(rows: _Rows, rank: npt.NDArray[np.int32], place: Ints) -> tuple[Subjects, Ints]:
    subject = rank[np.concatenate(rows.subject)]
    cell = place[np.concatenate(rows.cell)]
    order = np.argsort(subject.astype(np.int64) * (len(place) + 1) + cell, kind="stable")
    subject = subject[order]
    changes = np.concatenate(([0], np.cumsum(subject[1:] != subject[:-1])))
    found = Subjects(int(changes[-1]) + 1, changes.astype(np.int32), cell[order].astype(np.int32))
    return found, order
