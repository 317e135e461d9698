"""Rows -> Parquet shards, in bounded memory, nothing half-written under a final name."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from facescan import durable
from facescan.errors import DataError
from facescan.shards.contents import (
    IMAGE_COLUMN,
    MANIFEST,
    Contents,
    IngestManifest,
    RowsDigest,
    ShardEntry,
    ShardRow,
    dataset_digest,
)

ROW_GROUP_BYTES = 16 * 1024 * 1024
"""Image bytes after which a row group is written; the last image may lie above."""

ROW_GROUP_ROWS = 4_096
"""Rows after which a row group is written, however small its images."""

ROW_GROUPS_PER_SHARD = 8

BUFFER_BYTES = 96 * 1024 * 1024
"""Image bytes that all splits together hold in memory, beside the row group being written."""

MAX_SPLITS = 16
"""Each split has files of its own; a column with more values than this is not one of splits."""

_UNFINISHED = ".unfinished"
"""A file in the folder while it is written, so that a killed ingest can be told from other data."""


class _Writing:
    """One piece of work at a time in a thread, while more rows are read.

    Compressing, writing and syncing do without the interpreter, and are a fifth of what an ingest
    of files of 5 KB takes.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin when what was started before is done, whose error is raised here."""
        self.wait()
        self._last = self._thread.submit(work)

    def wait(self) -> None:
        """Until what was started is done; its error is raised here."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def end(self) -> None:
        """End the thread when what was started is done, whatever came of it."""
        self._thread.shutdown()


class _SplitWriter:
    """The shards of one split, which follow each other."""

    def __init__(self, folder: Path, split: str, contents: Contents, writing: _Writing) -> None:
        self._folder = folder
        self._split = split
        self._schema = contents.schema()
        self._writing = writing
        # By column: with a list for each row the garbage collector takes 2 us a row.
        self._columns: list[list[Any]] = [[] for _ in self._schema]
        self.buffered = 0
        # What follows is touched in the thread that writes, and read when it is done.
        self._file = ExitStack()
        self._open: tuple[Path, pq.ParquetWriter, RowsDigest] | None = None
        self._row_groups = 0
        self._rows_in_shard = 0
        self.entries: list[ShardEntry] = []

    def add(self, cells: list[Any], size: int) -> None:
        for column, cell in zip(self._columns, cells, strict=True):
            column.append(cell)
        self.buffered += size
        if self.buffered >= ROW_GROUP_BYTES or len(self._columns[0]) >= ROW_GROUP_ROWS:
            self.write_row_group()

    def write_row_group(self) -> None:
        """Begin to write the rows so far."""
        columns, self._columns = self._columns, [[] for _ in self._schema]
        self.buffered = 0
        if columns[0]:
            self._writing.start(partial(self._write, columns))

    def finish(self) -> None:
        """Begin to write what remains."""
        self.write_row_group()
        self._writing.start(self._finish_shard)

    def _write(self, columns: list[list[Any]]) -> None:
        _, writer, digest = self._open or self._start()
        for cells in zip(*columns[:IMAGE_COLUMN], *columns[IMAGE_COLUMN + 1 :], strict=True):
            digest.update(cells)
        arrays = [
            _structs(column, field.type) if place == IMAGE_COLUMN else pa.array(column, field.type)
            for place, (column, field) in enumerate(zip(columns, self._schema, strict=True))
        ]
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._rows_in_shard += len(columns[0])
        self._row_groups += 1
        if self._row_groups == ROW_GROUPS_PER_SHARD:
            self._finish_shard()

    def _start(self) -> tuple[Path, pq.ParquetWriter, RowsDigest]:
        name = f"{quote(self._split, safe='')}-{len(self.entries):05d}.parquet"
        temporary = self._file.enter_context(durable.replacing(self._folder / name))
        writer = self._file.enter_context(
            pq.ParquetWriter(
                temporary,
                self._schema,
                compression="zstd",
                # Encoded images have nothing to gain from a dictionary or a minimum.
                use_dictionary=False,
                write_statistics=[name for name in self._schema.names if name != "image"],
            )
        )
        self._open = (self._folder / name, writer, RowsDigest(self._schema))
        return self._open

    def _finish_shard(self) -> None:
        if self._open is None:
            return
        path, _, digest = self._open
        self._file.close()
        self.entries.append(
            ShardEntry(
                name=path.name,
                split=self._split,
                rows=self._rows_in_shard,
                digest=digest.hexdigest(),
            )
        )
        self._open, self._row_groups, self._rows_in_shard = None, 0, 0

    def discard(self, error: BaseException) -> None:
        # The context managers of an unfinished file delete it when they are left by an error.
        self._file.__exit__(type(error), error, error.__traceback__)


def _structs(rows: Sequence[tuple[Any, ...]], type_: pa.StructType) -> pa.StructArray:
    """Field by field: from a dict for each row Arrow takes four times as long."""
    values = zip(*rows, strict=True)
    fields = [pa.array(column, field.type) for column, field in zip(values, type_, strict=True)]
    return pa.StructArray.from_arrays(fields, fields=list(type_))


class ShardWriter:
    """Writes one dataset into a folder; a context manager.

    Left without an error it writes what remains and then the manifest. Left by an error it takes
    back everything it wrote. The same rows in the same order make the same files, byte for byte.

    Args:
        folder: made where it is missing. It must be empty, or hold what a killed ingest left.

    Raises:
        DataError: there is something else in the folder.
    """

    def __init__(self, folder: Path, contents: Contents) -> None:
        self._folder = folder
        self._contents = contents
        self._writing = _Writing()
        self._splits: dict[str, _SplitWriter] = {}
        self._labels = {name: Counter[str | None]() for name in contents.label_sets}
        self._rejected = Counter[str]()
        self._unusable = Counter[str]()
        self._manifest: IngestManifest | None = None

    @property
    def manifest(self) -> IngestManifest:
        """What was written; there once the block is left."""
        assert self._manifest is not None, "the writer is still open"
        return self._manifest

    def __enter__(self) -> Self:
        self._created = not self._folder.exists()
        self._folder.mkdir(parents=True, exist_ok=True)
        if (self._folder / _UNFINISHED).exists():
            self._clear()
        elif any(self._folder.iterdir()):
            raise DataError(f"{self._folder}: not empty; shards go into a new folder")
        (self._folder / _UNFINISHED).touch()
        return self

    def add(self, row: ShardRow) -> None:
        """Take one row; written when enough of its split are there, while the next are taken.

        Raises:
            DataError: more splits than a dataset can have.
            OSError: rows taken before could not be written.
        """
        split = self._splits.get(row.split)
        if split is None:
            if len(self._splits) == MAX_SPLITS:
                known = ", ".join(self._splits)
                raise DataError(f"more than {MAX_SPLITS} splits ('{row.split}' after {known})")
            split = _SplitWriter(self._folder, row.split, self._contents, self._writing)
            self._splits[row.split] = split
        split.add(row.cells(self._contents), len(row.data or b""))
        for attribute, counts in self._labels.items():
            counts[row.labels.get(attribute)] += 1
        if sum(each.buffered for each in self._splits.values()) >= BUFFER_BYTES:
            max(self._splits.values(), key=lambda each: each.buffered).write_row_group()

    def reject(self, reason: str) -> None:
        """Count a row of the source that does not go into the shards."""
        self._rejected[reason] += 1

    def unusable(self, reason: str) -> None:
        """Count an image that went into the shards but cannot be asked about."""
        self._unusable[reason] += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._take_back(error)
            return
        try:
            for split in self._splits.values():
                split.finish()
            self._writing.wait()
            self._manifest = self._summary()
            text = self._manifest.model_dump_json(indent=2) + "\n"
            durable.write_text(self._folder / MANIFEST, text)
        except BaseException as failed:
            self._take_back(failed)
            raise
        self._writing.end()
        (self._folder / _UNFINISHED).unlink()

    def _take_back(self, error: BaseException) -> None:
        self._writing.end()
        for split in self._splits.values():
            split.discard(error)
        self._clear()
        if self._created:
            self._folder.rmdir()

    def _clear(self) -> None:
        for pattern in ("*.parquet", ".*.tmp", MANIFEST):
            for path in self._folder.glob(pattern):
                path.unlink()
        (self._folder / _UNFINISHED).unlink()

    def _summary(self) -> IngestManifest:
        contents = self._contents
        entries = [entry for split in self._splits.values() for entry in split.entries]
        entries.sort(key=lambda entry: entry.name)
        splits = Counter[str]()
        for entry in entries:
            splits[entry.split] += entry.rows
        return IngestManifest(
            dataset=contents.dataset,
            licence=contents.licence,
            revision=contents.revision,
            digest=dataset_digest(entry.digest for entry in entries),
            rows=splits.total(),
            splits=dict(sorted(splits.items())),
            label_sets=dict(contents.label_sets),
            values=list(contents.values),
            groups=list(contents.groups),
            labels={name: _named(counts) for name, counts in self._labels.items()},
            unlabelled={name: counts[None] for name, counts in self._labels.items()},
            rejected=dict(sorted(self._rejected.items())),
            unusable=dict(sorted(self._unusable.items())),
            shards=entries,
        )


def _named(counts: Mapping[str | None, int]) -> dict[str, int]:
    return dict(sorted((label, n) for label, n in counts.items() if label is not None))
