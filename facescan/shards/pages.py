"""What a Parquet file's pages cost in memory, from their headers, before Arrow reads any of them.

Arrow allocates what a page's header announces, and how many rows it makes at a time is the reader's
choice. Both must not rest on the footer: it says nothing of single pages, it can lie, and of
repeated values (a dictionary, shared prefixes) it counts only the first. So the headers themselves
are walked, about 100 bytes for every page.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from facescan.errors import DataError
from facescan.shards import thrift
from facescan.shards.footers import Chunk, Group

MAX_PAGE_BYTES = 512 * 1024 * 1024
"""A page larger than this, uncompressed, is refused; Arrow holds one of each column at a time."""

BATCH_BYTES = 8 * 1024 * 1024
"""About how much the rows that are read at a time take in memory."""

_MAX_BATCH_BYTES = 64 * 1024 * 1024
"""What they may take at worst, where no two pages take more; those are in memory anyway."""

_MAX_BATCH_ROWS = 4_096

_DATA_PAGES = (0, 3)  # PageType: DATA_PAGE, DATA_PAGE_V2; both headers begin alike
_DICTIONARY_PAGE = 2
_REPEATING = (2, 7, 8)  # Encoding: PLAIN_DICTIONARY, DELTA_BYTE_ARRAY, RLE_DICTIONARY

_MAX_PAGES = 100_000  # of one column in one row group

_HEADER_BYTES = 1024
_MAX_HEADER_BYTES = 16 * 1024 * 1024  # as Arrow has it


@dataclass(frozen=True, slots=True)
class _Page:
    """Some values of one column.

    Attributes:
        bytes: uncompressed.
        largest: what each of the values may take, where a page can mean more than it holds.
    """

    values: int
    bytes: int
    largest: int | None

    def cost(self, rows: int) -> int:
        """What `rows` of its values take at most."""
        return self.bytes if self.largest is None else self.largest * min(rows, self.values)


def rows_at_a_time(
    file: pa.NativeFile, schema: pq.ParquetSchema, group: Group, columns: Sequence[str], where: str
) -> int:
    """How many rows of a row group Arrow may read at once: at least 1, at most 4,096.

    Args:
        file: the opened file.
        schema: of the file.
        group: of the file.
        columns: those to be read, by their top-level names.
        where: file and row group, for messages.

    Raises:
        DataError: a page larger than `MAX_PAGE_BYTES`, a column of lists, or damaged headers.
    """
    chunks = [
        _pages(file, chunk, f"{where}, column '{name}'")
        for name, chunk in _chunks(schema, group, columns, where)
    ]
    size = sum(page.bytes for pages in chunks for page in pages)
    values = max((sum(page.values for page in pages) for pages in chunks), default=0)
    rows = max(1, min(_MAX_BATCH_ROWS, BATCH_BYTES * values // max(1, size)))
    largest = max((page.bytes for pages in chunks for page in pages), default=0)
    most = max(_MAX_BATCH_BYTES, 2 * largest)
    while rows > 1 and sum(_worst(pages, rows) for pages in chunks) > most:
        rows //= 2
    return rows


def _chunks(
    schema: pq.ParquetSchema, group: Group, columns: Sequence[str], where: str
) -> Iterator[tuple[str, Chunk]]:
    """The chunks that Arrow would read; by the schema, as chunks can lie about their names."""
    if len(group.chunks) != len(schema):
        raise DataError(f"{where}: {len(group.chunks)} columns, but the schema has {len(schema)}")
    for position, chunk in enumerate(group.chunks):
        column = schema.column(position)
        if not any(f"{column.path}.".startswith(f"{name}.") for name in columns):
            continue
        # One row can hold a whole row group's values, so no number of rows would be small.
        if column.max_repetition_level:
            raise DataError(f"{where}: column '{column.path}' holds lists, not single values")
        yield column.path, chunk


def _worst(pages: Sequence[_Page], rows: int) -> int:
    """What any `rows` rows that follow each other take at most: all pages they touch."""
    worst = cost = values = first = 0
    for last, page in enumerate(pages):
        cost += page.cost(rows)
        values += page.values
        # Without its first and last value the window must fit between the outer pages.
        while first < last and values - pages[first].values - page.values > rows - 2:
            cost -= pages[first].cost(rows)
            values -= pages[first].values
            first += 1
        worst = max(worst, cost)
    return worst


def _pages(file: pa.NativeFile, chunk: Chunk, where: str) -> list[_Page]:
    at, left = chunk.start, chunk.values
    pages: list[_Page] = []
    dictionary = 0
    while left > 0 and at < chunk.end:
        header, body = _header(file, at, where)
        size, stored = _number(header, 2, where), _number(header, 3, where)
        if size > MAX_PAGE_BYTES:
            raise DataError(
                f"{where}: a page of {size:,} bytes, limit {MAX_PAGE_BYTES:,}; write the file "
                "again with smaller pages (pyarrow: write_batch_size=16) or smaller row groups"
            )
        kind = _number(header, 1, where)
        if kind == _DICTIONARY_PAGE:
            dictionary = max(dictionary, size)
        elif kind in _DATA_PAGES:
            about = header.get(5 if kind == _DATA_PAGES[0] else 8)
            if not isinstance(about, dict):
                raise _malformed(where)
            values = _number(about, 1, where)
            encoding = _number(about, 2 if kind == _DATA_PAGES[0] else 4, where)
            largest = max(dictionary, size) if encoding in _REPEATING else None
            pages.append(_Page(values, size, largest))
            left -= values
            if len(pages) > _MAX_PAGES:
                raise DataError(f"{where}: more than {_MAX_PAGES:,} pages")
        at = body + stored
    return pages


def _number(header: thrift.Struct, field: int, where: str) -> int:
    value = header.get(field)
    if not isinstance(value, int) or value < 0:
        raise _malformed(where)
    return value


def _malformed(where: str) -> DataError:
    return DataError(f"{where}: damaged, or a page's header has a form that is not understood")


def _header(file: pa.NativeFile, at: int, where: str) -> tuple[thrift.Struct, int]:
    """The page header at `at`, and where the page's body begins."""
    size = _HEADER_BYTES
    while True:
        file.seek(at)
        data = file.read(size)
        try:
            header, length = thrift.struct(data)
        except IndexError:
            # Statistics in it can be as long as the column's values.
            if len(data) < size or size >= _MAX_HEADER_BYTES:
                raise _malformed(where) from None
            size *= 16
        except ValueError:
            raise _malformed(where) from None
        else:
            return header, at + length
