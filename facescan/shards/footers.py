"""A look at a Parquet footer before Arrow interprets it.

A file can name Arrow extension types, whose code other libraries in the process register; some
have unpickled what a file's metadata held. Shards have none, so a file that names any is refused
on its raw bytes.
"""

import base64
import binascii
from collections.abc import Iterator

import pyarrow as pa

from facescan.errors import DataError

_MAGIC = b"PAR1"
_ARROW_SCHEMA = b"ARROW:schema"
_EXTENSION = b"ARROW:extension:"
_STRING_FIELD = 0x18  # in Thrift's compact protocol: the next field, a string


def refuse_extension_types(file: pa.NativeFile, path: str) -> None:
    """Read the footer's bytes and search the schema in it.

    Raises:
        DataError: not a Parquet file, or one with extension types or a footer of unknown form.
        OSError: it cannot be read.
    """
    footer = _footer(file, path)
    for schema in _arrow_schemas(footer, path):
        if _EXTENSION in schema:
            raise DataError(f"{path}: has Arrow extension types, which shards never have")


def _footer(file: pa.NativeFile, path: str) -> bytes:
    size = file.size()
    if size >= 12:
        file.seek(size - 8)
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] == _MAGIC and length <= size - 12:
            file.seek(size - 8 - length)
            return file.read(length)
    raise DataError(f"{path}: not a Parquet file")


def _arrow_schemas(footer: bytes, path: str) -> Iterator[bytes]:
    """The values of all metadata entries under which Arrow keeps its schema."""
    at = footer.find(_ARROW_SCHEMA)
    while at >= 0:
        try:
            start, end = _next_string(footer, at + len(_ARROW_SCHEMA))
            yield base64.b64decode(footer[start:end], validate=True)
        except (IndexError, binascii.Error) as error:
            raise DataError(f"{path}: its footer has a form that is not understood") from error
        at = footer.find(_ARROW_SCHEMA, end)


def _next_string(footer: bytes, at: int) -> tuple[int, int]:
    """Start and end of the string that follows as the next field: its length is a varint."""
    if footer[at] != _STRING_FIELD:
        raise IndexError
    length = shift = 0
    while True:
        at += 1
        length |= (footer[at] & 0x7F) << shift
        shift += 7
        if footer[at] < 0x80:
            return at + 1, at + 1 + length
