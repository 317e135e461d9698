"""A look at a Parquet footer before Arrow interprets it.

A file can name Arrow extension types, whose code other libraries in the process register; some
have unpickled what a file's metadata held, and environment variables can make Ray's do so again.
Neither shards nor tables need any, so a file that names one is refused, whatever is registered and
set. What is asked of row groups is read here too: pyarrow ends the process over some footers that
lie (`ColumnChunkMetaData`, seen with 26.0).
"""

import base64
import binascii
from dataclasses import dataclass

import pyarrow as pa

from facescan.errors import DataError
from facescan.shards import thrift

_MAGIC = b"PAR1"
_MAX_FOOTER_BYTES = 64 * 1024 * 1024
_ARROW_SCHEMA = b"ARROW:schema"
_EXTENSION = b"ARROW:extension:"

# Field numbers of parquet.thrift.
_ROW_GROUPS, _METADATA = 4, 5  # of FileMetaData
_KEY, _VALUE = 1, 2  # of KeyValue
_COLUMNS, _BYTES, _ROWS = 1, 2, 3  # of RowGroup
_COLUMN_METADATA = 3  # of ColumnChunk
_VALUES, _STORED_BYTES, _DATA_PAGE, _DICTIONARY_PAGE, _STATISTICS = 5, 7, 9, 11, 12
_MAX, _MIN = 5, 6  # of Statistics


@dataclass(frozen=True, slots=True)
class Chunk:
    """One column of one row group.

    Attributes:
        start: offset of its first page.
        end: offset behind its last page.
        values: how many, null among them.
        only_value: smallest and largest in one, where the statistics say that they are the same.
    """

    start: int
    end: int
    values: int
    only_value: bytes | None


@dataclass(frozen=True, slots=True)
class Group:
    """A row group.

    Attributes:
        bytes: of all columns, uncompressed.
        chunks: by the position of their columns in the Parquet schema.
    """

    rows: int
    bytes: int
    chunks: tuple[Chunk, ...]


def read(file: pa.NativeFile, path: str) -> tuple[Group, ...]:
    """What the footer says of the row groups.

    Raises:
        DataError: not a Parquet file, or one with extension types or a footer of unknown form.
        OSError: it cannot be read.
    """
    footer = _footer(file, path)
    try:
        fields, _ = thrift.struct(footer)
        schemas = [
            base64.b64decode(_bytes(entry, _VALUE), validate=True)
            for entry in _structs(fields, _METADATA)
            if _bytes(entry, _KEY) == _ARROW_SCHEMA
        ]
        groups = tuple(_group(each) for each in _structs(fields, _ROW_GROUPS))
    except (IndexError, ValueError, binascii.Error) as error:
        raise DataError(
            f"{path}: damaged, or its footer has a form that is not understood ({error})"
        ) from error
    if any(_EXTENSION in each for each in (footer, *schemas)):
        raise DataError(
            f"{path}: has Arrow extension types, whose code could run whatever the file says; "
            "write it again with plain columns (numbers, text, bytes)"
        )
    return groups


def _footer(file: pa.NativeFile, path: str) -> bytes:
    size = file.size()
    if size >= 12:
        file.seek(size - 8)
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] == _MAGIC and length <= size - 12:
            if length > _MAX_FOOTER_BYTES:
                raise DataError(
                    f"{path}: a footer of {length:,} bytes, limit {_MAX_FOOTER_BYTES:,}"
                )
            file.seek(size - 8 - length)
            return file.read(length)
    raise DataError(f"{path}: not a Parquet file")


def _group(fields: thrift.Struct) -> Group:
    chunks = tuple(_chunk(each) for each in _structs(fields, _COLUMNS))
    return Group(_number(fields, _ROWS), _number(fields, _BYTES), chunks)


def _chunk(fields: thrift.Struct) -> Chunk:
    about = fields.get(_COLUMN_METADATA)
    if not isinstance(about, dict):
        raise ValueError("a column chunk without metadata")
    statistics = about.get(_STATISTICS)
    smallest = statistics.get(_MIN) if isinstance(statistics, dict) else None
    largest = statistics.get(_MAX) if isinstance(statistics, dict) else None
    start = _number(about, _DATA_PAGE)
    # A dictionary at 0 is none, as some writers say it; Arrow begins at the same place.
    if dictionary := about.get(_DICTIONARY_PAGE) and _number(about, _DICTIONARY_PAGE):
        start = min(start, dictionary)
    return Chunk(
        start=start,
        end=start + _number(about, _STORED_BYTES),
        values=_number(about, _VALUES),
        only_value=smallest if isinstance(smallest, bytes) and smallest == largest else None,
    )


def _structs(fields: thrift.Struct, field: int) -> list[thrift.Struct]:
    found = fields.get(field, [])
    if not isinstance(found, list):
        raise ValueError(f"field {field} is no list")
    structs = [each for each in found if isinstance(each, dict)]
    if len(structs) != len(found):
        raise ValueError(f"field {field} is no list of structs")
    return structs


def _bytes(fields: thrift.Struct, field: int) -> bytes:
    found = fields.get(field, b"")
    if not isinstance(found, bytes):
        raise ValueError(f"field {field} is no text")
    return found


def _number(fields: thrift.Struct, field: int) -> int:
    found = fields.get(field)
    if not isinstance(found, int) or found < 0:
        raise ValueError(f"field {field} is no number, or below 0")
    return found
