"""Predictions of any number -> additive counts: how often each answer met each target.

Counts are all that a score reads. They add: counting the parts of a set of rows and adding gives
what counting the whole gives, however the rows are ordered or cut into files.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce

import pyarrow as pa
import pyarrow.parquet as pq

from facescan.errors import DataError
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

_FIELDS: list[tuple[str, pa.DataType]] = [(name, pa.string()) for name in COMBINATION + CELL]

COUNTS_SCHEMA = pa.schema([*_FIELDS, ("n", pa.int64())])

_KEYS = list(COMBINATION + CELL)
_THREADS = 4
_ROWS_AT_ONCE = 1 << 16


def count(folder: Storage, names: Sequence[str]) -> pa.Table:
    """Count the rows of prediction files by `COMBINATION` and `CELL`.

    The files are streamed: memory grows with the number of distinct cells, not of rows.

    Args:
        folder: where the files are.
        names: at least one Parquet file with the columns of `PREDICTION_SCHEMA`; others may
            follow and are not read.

    Returns:
        A table of `COUNTS_SCHEMA`, one row per distinct cell, sorted.

    Raises:
        DataError: a file is no Parquet, is damaged, or lacks a column.
        OSError: a file is not there, or the object store does not answer.
    """
    # Decoding and grouping leave Python's lock, and an object store is slow to answer.
    with ThreadPoolExecutor(_THREADS) as pool:
        counts = reduce(_added, pool.map(lambda name: _count(folder, name), names))
    return counts.sort_by([(name, "ascending") for name in _KEYS])


def _count(folder: Storage, name: str) -> pa.Table:
    with folder.open(name) as file:
        try:
            return _of_file(file)
        except (pa.ArrowException, OSError) as error:
            where = f"{folder.location}/{name}"
            raise DataError(f"{where}: cannot be read as predictions: {error}") from error


def _of_file(file: pa.NativeFile) -> pa.Table:
    metadata = pq.read_metadata(file)
    if lacking := sorted(set(_KEYS) - set(metadata.schema.to_arrow_schema().names)):
        raise pa.ArrowInvalid(f"no column {', '.join(lacking)}")
    # As dictionaries, which the files hold anyway, strings are grouped twice as fast.
    with pq.ParquetFile(file, metadata=metadata, read_dictionary=_KEYS) as parquet:
        counts = COUNTS_SCHEMA.empty_table()
        # One thread: the files are read side by side.
        for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=_KEYS, use_threads=False):
            rows = pa.Table.from_batches([batch])
            cells = rows.group_by(_KEYS, use_threads=False).aggregate([([], "count_all")])
            counts = _added(counts, cells.rename_columns([*_KEYS, "n"]).cast(COUNTS_SCHEMA))
        return counts


def _added(some: pa.Table, others: pa.Table) -> pa.Table:
    cells = pa.concat_tables([some, others]).group_by(_KEYS, use_threads=False)
    return cells.aggregate([("n", "sum")]).rename_columns([*_KEYS, "n"]).cast(COUNTS_SCHEMA)
