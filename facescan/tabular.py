"""The cells of CSV and Parquet tables, row by row in bounded memory; of the named columns only."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from facescan.errors import DataError
from facescan.shards import footers
from facescan.shards.pages import rows_at_a_time

_DELIMITERS = {".csv": ",", ".tsv": "\t"}

SUFFIXES = {*_DELIMITERS, ".parquet"}
"""Of the files that can be read, in small letters."""

_BUFFER_BYTES = 1024 * 1024
"""What is read of a Parquet file at a time, for each column."""

Columns = Sequence[tuple[str, str]]
"""What each column is for, and its name."""

Cells = Iterator[tuple[str, Mapping[str, Any]]]
"""Where in the file, and column -> cell: text in CSV, Python values in Parquet."""


def read(path: Path, name: str, columns: Columns, needed: str = "image") -> Cells:
    """The rows of one file; errors call it `name`.

    Args:
        path: of the file.
        name: of it, for people.
        columns: those that are read.
        needed: what one of `columns` must be for.

    Raises:
        DataError: not such a file, damaged, or without one of the columns, which is found out
            before any row is yielded.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{name}: neither of {', '.join(sorted(SUFFIXES))}")
    reader = _parquet if suffix == ".parquet" else _csv
    return reader(path, name, columns, needed)


def image(cell: Any, where: str) -> tuple[bytes | str | None, str | None]:
    """The image in a cell, its bytes or its path, and its path where it has one.

    Raises:
        DataError: the cell holds something else.
    """
    if isinstance(cell, dict):
        path = text(cell.get("path"))
        return cell.get("bytes") or path, path
    if isinstance(cell, bytes):
        return cell, None
    if cell is None or isinstance(cell, str):
        return text(cell), text(cell)
    raise DataError(f"{where}: the image is neither a path nor bytes")


def text(cell: Any) -> str | None:
    """What a cell says, None where it is empty."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    return str(cell).strip() or None


def _check(columns: Columns, found: Sequence[str], name: str, needed: str) -> None:
    if needed not in dict(columns):
        raise DataError(
            f"{name}: say in a YAML file which column holds the {needed} (`{needed}: COLUMN`); "
            f"columns: {', '.join(found)}"
        )
    for setting, column in columns:
        if found.count(column) != 1:
            number = "no" if column not in found else "more than one"
            raise DataError(
                f"{name}: {number} column '{column}' ({setting}); columns: {', '.join(found)}"
            )


def _csv(path: Path, name: str, columns: Columns, needed: str) -> Cells:
    # Python's reader and not Arrow's: an id 007 stays what it is, and errors know their line.
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter=_DELIMITERS[path.suffix.lower()], strict=True)
        try:
            header = next(lines, [])
            _check(columns, header, name, needed)
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


def columns(path: Path, name: str) -> list[str]:
    """The names of a table's columns; errors call it `name`.

    Raises:
        DataError: not such a file, or damaged.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return schema(path, name).names
    if suffix not in SUFFIXES:
        raise DataError(f"{name}: neither of {', '.join(sorted(SUFFIXES))}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file, delimiter=_DELIMITERS[suffix], strict=True), [])
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{name}: {error}") from error


def schema(path: Path, name: str) -> pa.Schema:
    """Columns and metadata of a Parquet file; errors call it `name`.

    Raises:
        DataError: not a Parquet file, or one that is refused.
    """
    with _opened(path, name) as (_, parquet, _):
        return parquet.schema_arrow


def _parquet(path: Path, name: str, columns: Columns, needed: str) -> Cells:
    wanted = list(dict.fromkeys(column for _, column in columns))
    with _opened(path, name) as (file, parquet, groups):
        _check(columns, parquet.schema_arrow.names, name, needed)
        number = 0
        for batch in _batches(file, parquet, groups, wanted, name):
            for cells in batch.to_pylist():
                number += 1
                yield f"row {number}", cells


@contextmanager
def _opened(
    path: Path, name: str
) -> Iterator[tuple[pa.NativeFile, pq.ParquetFile, tuple[footers.Group, ...]]]:
    try:
        with pa.OSFile(str(path), "rb") as file:
            groups = footers.read(file, name)
            # Pre-buffered or unbuffered, Arrow would read a whole column of a row group at once.
            with pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as parquet:
                yield file, parquet, groups
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{name}: {error}") from error


def _batches(
    file: pa.NativeFile,
    parquet: pq.ParquetFile,
    groups: Sequence[footers.Group],
    columns: list[str],
    name: str,
) -> Iterator[pa.RecordBatch]:
    for index, group in enumerate(groups):
        where = f"{name}, row group {index}"
        rows = rows_at_a_time(file, parquet.schema, group, columns, where)
        for batch in parquet.iter_batches(rows, row_groups=[index], columns=columns):
            batch.validate(full=True)
            yield batch
