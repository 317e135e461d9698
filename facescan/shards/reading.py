"""What is in a dataset, from footers and manifest alone; then its rows, in bounded memory."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from pydantic import ValidationError

from facescan.errors import DataError
from facescan.shards import footers
from facescan.shards.contents import (
    LICENCE_KEY,
    MANIFEST,
    REVISION_KEY,
    IngestManifest,
    RowsDigest,
    dataset_digest,
)
from facescan.shards.pages import rows_at_a_time
from facescan.types import LABEL_SET_KEY, SHARD_SCHEMA

_BUFFER_BYTES = 4 * 1024 * 1024
"""What is asked of a file system at a time, for each column."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """The unit of reading: some rows of one file, all of one split.

    Attributes:
        index: within the file.
        bytes: of all columns, uncompressed.
    """

    path: str
    index: int
    rows: int
    bytes: int
    split: str


@dataclass(frozen=True)
class Shards:
    """An opened dataset, or one split of it; small, and can be sent to other processes.

    Attributes:
        location: as given to `open`, made absolute.
        schema: of all files, metadata included.
        label_sets: attribute -> name of the label set that its labels are in.
        datasets: names in the column `dataset`.
        splits: of the whole dataset, whichever was opened.
        digest: of the whole dataset, whichever split was opened.
    """

    location: str
    filesystem: fs.FileSystem
    row_groups: tuple[RowGroup, ...]
    schema: pa.Schema
    label_sets: Mapping[str, str]
    datasets: tuple[str, ...]
    splits: tuple[str, ...]
    digest: str
    licence: str
    revision: str

    @property
    def rows(self) -> int:
        """How many images."""
        return sum(group.rows for group in self.row_groups)

    def labels(self) -> Iterator[pa.RecordBatch]:
        """All columns but the image, in the order of the files."""
        names = [name for name in self.schema.names if name != "image"]
        for table in self.read(self.row_groups, names):
            yield from table.to_batches()

    def read(self, row_groups: Iterable[RowGroup], columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows of these groups, in tables of about 8 MB; never a whole column of a row group.

        Raises:
            DataError: a file is gone or damaged, is not what its footer says, or has a page too
                large to be read (`facescan.shards.pages`).
        """
        for path, groups in groupby(row_groups, key=lambda group: group.path):
            try:
                with _opened(self.filesystem, path) as opened:
                    for group in groups:
                        for batch in _batches(opened, group, columns):
                            yield pa.Table.from_batches([batch])
            except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
                raise DataError(f"{path}: {error}") from error


def open(location: str, split: str | None = None) -> Shards:
    """Open a folder of shards or one of its files, reading little more than footers.

    Of a single file the columns beside the image are read as well, for its digest.

    Args:
        location: a path, or a URI of a file system that Arrow knows (`s3://`, `gs://`, ...).
        split: None for all.

    Raises:
        DataError: there are no shards, they are not what facescan writes, or no such split.
    """
    filesystem, path = _resolve(location)
    try:
        is_folder = filesystem.get_file_info(path).type == fs.FileType.Directory
        manifest = _manifest(filesystem, path) if is_folder else None
        paths = [path] if manifest is None else [f"{path}/{e.name}" for e in manifest.shards]
        files = [_read_footer(filesystem, each) for each in paths]
        shards = _assembled(location if "://" in location else path, filesystem, files)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{location}: {error}") from error
    if manifest is None:
        shards = replace(shards, digest=_digest(shards))
    elif manifest.rows == shards.rows:
        shards = replace(shards, digest=manifest.digest)
    else:
        raise DataError(
            f"{location}: {shards.rows} images, but its {MANIFEST} says {manifest.rows}"
        )
    if split is None:
        return shards
    if split not in shards.splits:
        known = ", ".join(shards.splits)
        raise DataError(f"{location}: no split '{split}'; known: {known}")
    groups = tuple(group for group in shards.row_groups if group.split == split)
    return replace(shards, row_groups=groups)


def _resolve(location: str) -> tuple[fs.FileSystem, str]:
    if not re.match(r"[a-z][a-z0-9+.-]*://", location):
        return fs.LocalFileSystem(), os.path.abspath(location)
    try:
        filesystem, path = fs.FileSystem.from_uri(location)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{location}: {error}") from error
    return filesystem, path.rstrip("/")


def _manifest(filesystem: fs.FileSystem, folder: str) -> IngestManifest:
    path = f"{folder}/{MANIFEST}"
    if filesystem.get_file_info(path).type != fs.FileType.File:
        raise DataError(
            f"{folder}: no {MANIFEST} in it, so this is no folder of shards, or its ingest was "
            "not finished; `facescan ingest` makes one"
        )
    with filesystem.open_input_file(path) as file:
        text = file.read()
    try:
        return IngestManifest.model_validate_json(text)
    except ValidationError as error:
        raise DataError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    schema: pa.Schema
    row_groups: tuple[RowGroup, ...]
    datasets: frozenset[str]


def _read_footer(filesystem: fs.FileSystem, path: str) -> _File:
    if filesystem.get_file_info(path).type != fs.FileType.File:
        raise DataError(f"{path}: no such file")
    with _opened(filesystem, path) as opened:
        schema, columns = opened.parquet.schema_arrow, opened.parquet.schema
    _check_columns(schema, path)
    positions = {columns.column(n).path: n for n in range(len(columns))}
    groups = []
    datasets = set()
    for index, group in enumerate(opened.groups):
        if not group.rows:
            continue
        split = _only_value(group, "split", positions, path)
        datasets.add(_only_value(group, "dataset", positions, path))
        groups.append(RowGroup(path, index, group.rows, group.bytes, split))
    return _File(path, schema, tuple(groups), frozenset(datasets))


@dataclass(frozen=True, slots=True)
class _Opened:
    file: pa.NativeFile
    groups: tuple[footers.Group, ...]
    parquet: pq.ParquetFile


@contextmanager
def _opened(filesystem: fs.FileSystem, path: str) -> Iterator[_Opened]:
    """A file that names no extension types."""
    with filesystem.open_input_file(path) as file:
        groups = footers.read(file, path)
        # Pre-buffered or unbuffered, Arrow would read a whole column of a row group at once.
        with pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as parquet:
            yield _Opened(file, groups, parquet)


def _batches(opened: _Opened, group: RowGroup, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    where = f"{group.path}, row group {group.index}"
    if group.index >= len(opened.groups):
        raise DataError(f"{where}: the file was changed and has only {len(opened.groups)}")
    parquet = opened.parquet
    footer = opened.groups[group.index]
    size = rows_at_a_time(opened.file, parquet.schema, footer, columns, where)
    rows = 0
    for batch in parquet.iter_batches(size, row_groups=[group.index], columns=list(columns)):
        batch.validate(full=True)
        rows += batch.num_rows
        if "split" in columns and batch.column("split").unique().to_pylist() != [group.split]:
            raise DataError(f"{where}: rows of other splits than '{group.split}', its statistics'")
        yield batch
    if rows != group.rows:
        raise DataError(f"{where}: {rows} rows, but the footer says {group.rows}")


def _only_value(group: footers.Group, column: str, positions: Mapping[str, int], path: str) -> str:
    position = positions[column]
    if position < len(group.chunks) and (value := group.chunks[position].only_value) is not None:
        return value.decode()
    raise DataError(
        f"{path}: a row group without one single '{column}'; facescan reads shards as "
        "`facescan ingest` writes them"
    )


def _check_columns(schema: pa.Schema, path: str) -> None:
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    for field in SHARD_SCHEMA:
        if field.name not in schema.names:
            raise DataError(f"{path}: no column '{field.name}'; found {found}")
        if schema.field(field.name).type != field.type:
            raise DataError(f"{path}: column '{field.name}' is not {field.type}; found {found}")
    for name in schema.names:
        attribute = name.removeprefix("label_")
        if attribute != name and attribute not in _label_sets(schema):
            raise DataError(f"{path}: the metadata name no label set for the column '{name}'")


def _label_sets(schema: pa.Schema) -> dict[str, str]:
    metadata = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
    return {
        key.removeprefix(LABEL_SET_KEY): value
        for key, value in metadata.items()
        if key.startswith(LABEL_SET_KEY)
    }


def _assembled(location: str, filesystem: fs.FileSystem, files: Sequence[_File]) -> Shards:
    groups = tuple(group for file in files for group in file.row_groups)
    if not groups:
        raise DataError(f"{location}: holds no images")
    schema = files[0].schema
    for file in files:
        if not file.schema.equals(schema, check_metadata=True):
            raise DataError(f"{file.path}: other columns or label sets than {files[0].path}")
    metadata = schema.metadata or {}
    return Shards(
        location=location,
        filesystem=filesystem,
        row_groups=groups,
        schema=schema,
        label_sets=_label_sets(schema),
        datasets=tuple(sorted({name for file in files for name in file.datasets})),
        splits=tuple(sorted({group.split for group in groups})),
        digest="",
        licence=metadata.get(LICENCE_KEY.encode(), b"").decode(),
        revision=metadata.get(REVISION_KEY.encode(), b"").decode(),
    )


def _digest(shards: Shards) -> str:
    digest = RowsDigest(shards.schema)
    for batch in shards.labels():
        for row in batch.to_pylist():
            digest.update(list(row.values()))
    return dataset_digest([digest.hexdigest()])
