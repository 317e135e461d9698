"""Predictions of any number -> additive counts: how often each answer met each target.

Counts are all that a score reads. They add: counting the parts of a set of rows and adding gives
what counting the whole gives, however the rows are ordered or cut into files.
"""

import glob
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from facescan.errors import DataError

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

# hive_partitioning: a folder called `model=x` above the run must not overrule the column.
_QUERY = f"""
    SELECT {", ".join(COMBINATION + CELL)}, count(*) AS n
    FROM read_parquet($files, hive_partitioning = false)
    GROUP BY ALL
    ORDER BY ALL
"""


def count(files: Sequence[Path]) -> pa.Table:
    """Count the rows of prediction files by `COMBINATION` and `CELL`.

    The files are streamed: memory grows with the number of distinct cells, not of rows.

    Args:
        files: at least one Parquet file with the columns of `PREDICTION_SCHEMA`; others may
            follow and are not read.

    Returns:
        A table of `COUNTS_SCHEMA`, one row per distinct cell, sorted.

    Raises:
        DataError: a file cannot be read, or lacks a column.
    """
    # DuckDB takes every path for a pattern, and a run may well be called `try[2]`.
    paths = [glob.escape(str(file)) for file in files]
    with duckdb.connect() as connection:
        try:
            counted = connection.sql(_QUERY, params={"files": paths}).to_arrow_table()
        except duckdb.Error as error:
            raise DataError(f"predictions in {files[0].parent} cannot be read: {error}") from error
    table: pa.Table = counted
    return table.cast(COUNTS_SCHEMA)
