"""The cells of CSV and Parquet tables, row by row in bounded memory; of the named columns only."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from facescan.errors import DataError
from facescan.shards.footers import refuse_extension_types

_DELIMITERS = {".csv": ",", ".tsv": "\t"}

SUFFIXES = {*_DELIMITERS, ".parquet"}
"""Of the files that can be read, in small letters."""

_BATCH_BYTES = 8 * 1024 * 1024
"""About how much of a Parquet table is in memory at a time."""

Columns = Sequence[tuple[str, str]]
"""What each column is for, and its name."""

Cells = Iterator[tuple[str, Mapping[str, Any]]]
"""Where in the file, and column -> cell: text in CSV, Python values in Parquet."""


def read(path: Path, name: str, columns: Columns) -> Cells:
    """The rows of one file; errors call it `name`.

    Raises:
        DataError: not such a file, damaged, or without one of the columns, which is found out
            before any row is yielded.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{name}: neither of {', '.join(sorted(SUFFIXES))}")
    return _parquet(path, name, columns) if suffix == ".parquet" else _csv(path, name, columns)


def _check(columns: Columns, found: Sequence[str], name: str) -> None:
    if "image" not in dict(columns):
        raise DataError(
            f"{name}: say in a YAML file which column holds the image (`image: COLUMN`); "
            f"columns: {', '.join(found)}"
        )
    for setting, column in columns:
        if found.count(column) != 1:
            number = "no" if column not in found else "more than one"
            raise DataError(
                f"{name}: {number} column '{column}' ({setting}); columns: {', '.join(found)}"
            )


def _csv(path: Path, name: str, columns: Columns) -> Cells:
    # Python's reader and not Arrow's: an id 007 stays what it is, and errors know their line.
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter=_DELIMITERS[path.suffix.lower()], strict=True)
        try:
            header = next(lines, [])
            _check(columns, header, name)
            positions = {column: header.index(column) for _, column in columns}
            for cells in lines:
                if not cells:
                    continue
                place = f"line {lines.line_num}"
                if len(cells) != len(header):
                    raise DataError(
                        f"{name}, {place}: {len(cells)} cells, but the header has {len(header)}"
                    )
                yield place, {column: cells[at] for column, at in positions.items()}
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{name}, after line {lines.line_num}: {error}") from error


def _parquet(path: Path, name: str, columns: Columns) -> Cells:
    wanted = list(dict.fromkeys(column for _, column in columns))
    try:
        with pa.OSFile(str(path), "rb") as file:
            refuse_extension_types(file, name)
        # Unbuffered, Arrow would read a whole column of a row group at once.
        with pq.ParquetFile(path, buffer_size=1024 * 1024) as parquet:
            _check(columns, parquet.schema_arrow.names, name)
            number = 0
            for batch in parquet.iter_batches(_rows_per_batch(parquet.metadata), columns=wanted):
                for cells in batch.to_pylist():
                    number += 1
                    yield f"row {number}", cells
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{name}: {error}") from error


def _rows_per_batch(metadata: pq.FileMetaData) -> int:
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    per_row = sum(group.total_byte_size for group in groups) // max(1, metadata.num_rows)
    return max(1, min(4_096, _BATCH_BYTES // max(1, per_row)))
