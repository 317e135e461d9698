"""Predictions of several models -> how often each pair of answers met on the same row.

A row is a person in an image of a split of a dataset, asked about one attribute. Rows are joined in
bounded memory, what does not fit is on disk; what comes out has a row for each distinct pair of
answers only. What repeats itself in the rows is a number there, so that little has to be moved.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facescan.errors import DataError
from facescan.score.coding import coded, distinct
from facescan.storage import Storage
from facescan.types import Outcome

_MEMORY_LIMIT = "512MB"
_ROWS_AT_ONCE = 1 << 16

_SIDE = ("model", "protocol", "answer_mode", "asked_label_set")
_PLACE = ("attribute", "dataset", "split")
_ANSWER = ("outcome", "label", "target_label_set", "target")
_REPEATED = (*_PLACE, *_SIDE, *_ANSWER)
_COLUMNS = (*_REPEATED, "image_id", "person")

_ROWS = """
    CREATE TABLE rows
    (place INTEGER, who INTEGER, answer INTEGER, image_id VARCHAR, person SMALLINT)
"""
_TOTALS = "SELECT place, who, count(*) FROM rows GROUP BY ALL"
_JOINT = """
    SELECT a.who, b.who, a.answer, b.answer, count(*)
    FROM (FROM rows WHERE place = $place) AS a
    JOIN (FROM rows WHERE place = $place) AS b USING (image_id, person)
    WHERE a.who < b.who
    GROUP BY ALL
"""


@dataclass(frozen=True, slots=True)
class Side:
    """Who answered, and how it was asked.

    Attributes:
        run: as the caller calls the run that it was in.
    """

    run: str
    model: str
    protocol: str
    answer_mode: str
    asked_label_set: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What one side has on a row; the label set of the target is None where there is none."""

    outcome: str
    label: str | None
    target_label_set: str | None
    target: str | None


@dataclass(frozen=True, slots=True)
class Meeting:
    """Two sides on the rows of one split about one attribute.

    Attributes:
        pairs: (answer of a, answer of b, rows on which they met).
        only_a: rows that only `a` has.
        only_b: rows that only `b` has.
    """

    a: Side
    b: Side
    attribute: str
    dataset: str
    split: str
    pairs: tuple[tuple[Answer, Answer, int], ...]
    only_a: int
    only_b: int


def meetings(runs: Sequence[tuple[str, Storage]]) -> Iterator[Meeting]:
    """Every two sides of these runs that have a row in common, attribute by attribute.

    Persons that a model listed and that are not there (`spurious`) are no rows.

    Args:
        runs: what each run is called, all differently, and its predictions.

    Raises:
        DataError: a file is no Parquet, is damaged, lacks a column, or has a row twice.
        OSError: a file cannot be reached, or the disk for temporary files is full.
    """
    with _database() as connection:
        met = _Met(connection, [name for name, _ in runs])
        for number, (_, folder) in enumerate(runs):
            for name in folder.names():
                if name.endswith(".parquet"):
                    met.load(number, folder, name)
        yield from met.meetings()


@dataclass(frozen=True, slots=True)
class _Met:
    """The rows, and what their numbers stand for: places, sides with their run, and answers."""

    connection: Any
    runs: Sequence[str]
    places: dict[tuple[Any, ...], int] = field(default_factory=dict)
    sides: dict[tuple[Any, ...], int] = field(default_factory=dict)
    answers: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def load(self, run: int, folder: Storage, name: str) -> None:
        with folder.open(name) as file:
            try:
                # Strings as dictionaries, which the files hold anyway, are read faster.
                with pq.ParquetFile(file, read_dictionary=list(_REPEATED)) as parquet:
                    if lacking := sorted(set(_COLUMNS) - set(parquet.schema_arrow.names)):
                        raise pa.ArrowInvalid(f"no column {', '.join(lacking)}")
                    for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=list(_COLUMNS)):
                        self._add(run, batch)
            except (pa.ArrowException, OSError) as error:
                where = f"{folder.location}/{name}"
                raise DataError(f"{where}: cannot be read as predictions: {error}") from error

    def _add(self, run: int, batch: pa.RecordBatch) -> None:
        repeated = [coded(batch.column(name)) for name in _REPEATED]
        which, first = distinct(repeated, batch.num_rows)
        found = list(zip(*(each.at(first) for each in repeated), strict=True))
        side, answer = len(_PLACE), len(_PLACE) + len(_SIDE)
        numbers = [
            (
                self.places.setdefault(row[:side], len(self.places)),
                self.sides.setdefault((*row[side:answer], run), len(self.sides)),
                self.answers.setdefault(row[answer:], len(self.answers)),
            )
            for row in found
        ]
        place, who, what = np.array(numbers, np.int32).reshape(-1, 3)[which].T
        there = np.array([row[answer] != Outcome.SPURIOUS for row in found], np.bool_)[which]
        numbered = [pa.array(each) for each in (place, who, what)]
        columns = [*numbered, batch.column("image_id"), batch.column("person")]
        names = ["place", "who", "answer", "image_id", "person"]
        rows = pa.Table.from_arrays(columns, names=names)
        self.connection.register("batch", rows.filter(pa.array(there)))
        self.connection.execute("INSERT INTO rows FROM batch")

    def meetings(self) -> Iterator[Meeting]:
        execute = self.connection.execute
        totals = {(place, who): n for place, who, n in execute(_TOTALS).fetchall()}
        for place, number in sorted(self.places.items()):
            pairs: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
            for a, b, *answers in execute(_JOINT, {"place": number}).fetchall():
                pairs.setdefault((a, b), []).append(tuple(answers))
            yield from self._in_place(place, number, pairs, totals)

    def _in_place(
        self,
        place: tuple[Any, ...],
        number: int,
        pairs: dict[tuple[int, int], list[tuple[int, int, int]]],
        totals: dict[tuple[int, int], int],
    ) -> Iterator[Meeting]:
        """In the order of the sides, the first of two as `a`."""
        described = {who: side for side, who in self.sides.items()}
        told = {answer: Answer(*each) for each, answer in self.answers.items()}
        found = []
        for (low, high), met in pairs.items():
            a, b = sorted((low, high), key=described.__getitem__)
            turned = met if a == low else [(right, left, n) for left, right, n in met]
            found.append((described[a], described[b], a, b, turned))
        for side_a, side_b, a, b, met in sorted(found, key=lambda each: each[:2]):
            n = sum(each for *_, each in met)
            one, other = self._side(side_a), self._side(side_b)
            only_a, only_b = (totals[number, who] - n for who in (a, b))
            if only_a < 0 or only_b < 0:
                self._refuse(place, one if only_a < 0 else other)
            answers = sorted(
                ((told[left], told[right], each) for left, right, each in met), key=_order
            )
            attribute, dataset, split = place
            yield Meeting(one, other, attribute, dataset, split, tuple(answers), only_a, only_b)

    def _side(self, side: tuple[Any, ...]) -> Side:
        return Side(self.runs[side[-1]], *side[:-1])

    def _refuse(self, place: tuple[Any, ...], side: Side) -> None:
        attribute, dataset, split = place
        raise DataError(
            f"predictions hold a row of {dataset}/{split} about {attribute} twice "
            f"({', '.join(filter(None, astuple(side)))}); `facescan verify` says which"
        )


def _order(pair: tuple[Answer, Answer, int]) -> list[tuple[bool, str | None]]:
    return [(value is None, value) for answer in pair[:2] for value in astuple(answer)]


@contextmanager
def _database() -> Iterator[Any]:
    """A database in memory, whose larger part is on disk."""
    with TemporaryDirectory(prefix="facescan-compare-") as place:
        settings = {"memory_limit": _MEMORY_LIMIT, "temp_directory": place}
        with duckdb.connect(":memory:", config=settings) as connection:
            connection.execute(_ROWS)
            yield connection
