"""Durable replies: small part files while a run goes on, sorted files at its end.

    part-<session>-<writer>-<number>-<digest>.parquet     written by engine actors
    replies-<number>-<digest>.parquet                     merged, sorted by key, no key twice
    merged.json                                           which merged files count

A file's name ends in a digest of its bytes, so a part that was cut or altered is found out, and it
is on disk (or stored by one PUT) before anybody relies on it. Which replies count is decided when
they are read, not when they are written: of two with one key a model's answer beats an error, then
the earlier one wins. So a reply written twice does no harm, and nothing is rewritten in place.

Merging writes the merged files, then `merged.json`, then deletes what was merged; whoever reads in
between finds every reply, and none that counts twice.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from facescan.errors import DataError
from facescan.storage import Storage
from facescan.types import REPLY_SCHEMA, Reply

FLUSH_REPLIES = 2_000
FLUSH_SECONDS = 30.0
"""At most this many replies of a local engine, and none older than this, are lost with a killed
process."""

MEMORY_LIMIT = "512MB"
"""Of DuckDB, while replies are merged or joined; larger work spills to disk."""

MERGED = "merged.json"
"""Names the merged files that count, and the parts that are in them."""

DAMAGED = "damaged"
"""Folder beside the parts that damaged ones are moved to."""

_SMALL_PARTS = 256
"""Parts of one writer that are joined into one, as long as they hold fewer than `FLUSH_REPLIES`."""

_ROWS_PER_FILE = 1_000_000
_ROWS_PER_GROUP = 100_000
_NAME = re.compile(r"(?:part|replies)-[0-9a-z-]+-([0-9a-f]{32})\.parquet")

COUNTING_REPLIES = """
    SELECT * EXCLUDE (_rank) FROM (
        SELECT *, row_number() OVER (
            PARTITION BY request_id ORDER BY (error_kind IS NOT NULL), created_at, attempts
        ) AS _rank
        FROM replies
    ) WHERE _rank = 1
"""
"""Of two replies with one key a model's answer beats an error, then the earlier one wins."""


def table(replies: Iterable[Reply]) -> pa.Table:
    """Replies as rows of `REPLY_SCHEMA`."""
    rows = list(replies)
    columns = {name: [getattr(reply, name) for reply in rows] for name in REPLY_SCHEMA.names}
    return pa.table(columns, schema=REPLY_SCHEMA)


class Journal:
    """Writes the replies of one writer (an engine actor) to parts.

    Args:
        storage: the run's `replies/`.
        session: of the command that is running; the parts of one command can be told by it.
        writer: letters and digits, unique within the session.
    """

    def __init__(self, storage: Storage, session: str, writer: str) -> None:
        self._storage = storage
        self._prefix = f"part-{session}-{writer}"
        self._parts = 0
        self._waiting: list[Reply] = []
        self._oldest = 0.0
        self._taken = self._written = 0
        self._small: list[str] = []
        self._in_small: list[Reply] = []
        self._joins = True
        self._writing = asyncio.Lock()

    def append(self, reply: Reply) -> bool:
        """Take a reply; whether it is time for `durable`."""
        if not self._waiting:
            self._oldest = time.monotonic()
        self._waiting.append(reply)
        self._taken += 1
        waited = time.monotonic() - self._oldest
        return len(self._waiting) >= FLUSH_REPLIES or waited > FLUSH_SECONDS

    async def durable(self) -> None:
        """Return when everything taken so far is durable; who calls meanwhile shares the next part.

        Raises:
            OSError: it could not be written; it stays waiting.
        """
        taken = self._taken
        async with self._writing:
            if self._written < taken:
                await asyncio.to_thread(self._write)

    def stop_joining(self) -> None:
        """Let no part vanish any more: another command may be about to read them."""
        self._joins = False

    async def keep_durable(self) -> None:
        """Write what has waited for `FLUSH_SECONDS`, until cancelled.

        Raises:
            OSError: as `durable`.
        """
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.durable()

    def _write(self) -> None:
        replies = self._waiting[:]
        name = self._put(replies)
        del self._waiting[: len(replies)]
        self._oldest = time.monotonic()
        self._written += len(replies)
        if len(replies) < FLUSH_REPLIES:
            self._small.append(name)
            self._in_small += replies
        if len(self._small) >= _SMALL_PARTS or len(self._in_small) >= FLUSH_REPLIES:
            if len(self._small) > 1 and self._joins:
                self._put(self._in_small)
                for small in self._small:
                    self._storage.delete(small)
            self._small, self._in_small = [], []

    def _put(self, replies: Sequence[Reply]) -> str:
        name = put(self._storage, f"{self._prefix}-{self._parts:06d}", table(replies))
        self._parts += 1
        return name


def put(storage: Storage, stem: str, replies: pa.Table) -> str:
    """Write rows of `REPLY_SCHEMA` as one durable file; its name: the stem and a checksum.

    Raises:
        OSError: it could not be written.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(replies, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    name = f"{stem}-{_digest([data])}.parquet"
    storage.write(name, data)
    return name


class _Merged(BaseModel):
    """`merged.json`; without it every file counts."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = 1
    files: list[str]
    parts: list[str]
    """That were merged, and may be deleted."""


@dataclass(frozen=True, slots=True)
class Files:
    """The files of replies that count, as they stood when they were listed.

    Attributes:
        names: merged files and parts, sorted.
        missing: merged files that `merged.json` names and that are not there.
        left: files that count no more, which an interruption has left.
        unmerged: whether anything is not merged yet.
    """

    names: tuple[str, ...]
    missing: tuple[str, ...]
    left: tuple[str, ...]
    unmerged: bool


def files(storage: Storage) -> Files:
    """What is in a folder of replies, without reading it.

    Raises:
        DataError: `merged.json` is not what it should be.
    """
    merged = _merged(storage)
    present = [name for name in storage.names() if name.endswith(".parquet")]
    if merged is None:
        return Files(tuple(present), (), (), unmerged=bool(present))
    parts = [name for name in present if name.startswith("part-") and name not in merged.parts]
    counting = {*parts, *merged.files}
    return Files(
        names=tuple(name for name in present if name in counting),
        missing=tuple(sorted(set(merged.files) - set(present))),
        left=tuple(name for name in present if name not in counting and _NAME.fullmatch(name)),
        unmerged=bool(parts),
    )


def _merged(storage: Storage) -> _Merged | None:
    try:
        return _Merged.model_validate_json(storage.read(MERGED))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise DataError(
            f"{storage.location}/{MERGED}: damaged: {error.errors()[0]['msg']}. Delete it: the "
            "replies beside it are then merged again"
        ) from error


def _text(merged: _Merged) -> bytes:
    return merged.model_dump_json(indent=2).encode() + b"\n"


def damage(storage: Storage, name: str) -> str | None:
    """What is wrong with a file of replies; None for a good one.

    Raises:
        OSError: it cannot be read.
    """
    said = _NAME.fullmatch(name)
    if said is None:
        return "the name has no checksum; facescan has not written this file"
    with storage.open(name) as file:
        found = _digest(iter(lambda: file.read(1 << 20), b""))
        if found != said[1]:
            return f"checksum {found}, expected {said[1]}: it was cut or altered"
        file.seek(0)
        try:
            schema = pq.read_schema(file)
        except pa.ArrowException as error:
            return str(error)
    if not schema.equals(REPLY_SCHEMA):
        return f"other columns than a reply has: {', '.join(schema.names)}"
    return None


def set_damaged_aside(storage: Storage) -> dict[str, str]:
    """Move damaged files to `damaged/`, so that what they held is asked again; name -> damage.

    For the holder of the run's lease.

    Raises:
        DataError: see `files`.
        OSError: a file cannot be read or moved.
    """
    found = files(storage)
    wrong = {name: "it is gone" for name in found.missing}
    for name in found.names:
        reason = damage(storage, name)
        if reason is not None:
            wrong[name] = reason
            storage.below(DAMAGED).write(name, storage.read(name))
    merged = _merged(storage)
    if merged is not None and not wrong.keys().isdisjoint(merged.files):
        merged.files = [name for name in merged.files if name not in wrong]
        # Those that an interruption has left hold what is lost with the file they went into.
        merged.parts = []
        storage.write(MERGED, _text(merged))
    for name in wrong:
        storage.delete(name)
    return wrong


def reader(
    storage: Storage, names: Sequence[str], columns: Sequence[str] = REPLY_SCHEMA.names
) -> pa.RecordBatchReader:
    """Rows of these files, as a stream."""
    schema = pa.schema([REPLY_SCHEMA.field(name) for name in columns])
    return pa.RecordBatchReader.from_batches(schema, _batches(storage, names, schema))


def _batches(storage: Storage, names: Sequence[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for name in names:
        with storage.open(name) as file, pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(columns=schema.names):
                yield batch.select(schema.names).cast(schema)


def answered_in(storage: Storage, session: str) -> set[bytes]:
    """The 16-byte keys of all requests that a running command has durable replies to.

    Meanwhile its writers may join small parts; what a part that is gone held is then in a new one.
    """
    schema = pa.schema([REPLY_SCHEMA.field("request_id")])
    keys: set[bytes] = set()
    seen: set[str] = set()
    while True:
        names = {name for name in storage.names() if name.startswith(f"part-{session}-")} - seen
        gone = False
        for name in names:
            try:
                for batch in _batches(storage, [name], schema):
                    keys.update(bytes.fromhex(str(key)) for key in batch.column(0).to_pylist())
            except FileNotFoundError:
                gone = True
        if not gone:
            return keys
        seen |= names


def compact(storage: Storage) -> None:
    """Merge all parts into `replies-00000-....parquet` and so on: sorted, one row per request.

    An interruption at any moment loses nothing. Memory is bounded: a larger sort spills to disk.
    For the holder of the run's lease; where the record was written by somebody else meanwhile,
    nothing is merged and nothing deleted.

    Raises:
        OSError: it cannot be written; everything is as it was.
    """
    found = files(storage)
    for name in found.left:
        storage.delete(name)
    if not found.unmerged:
        return
    before = storage.version(MERGED)
    with storage.scratch() as scratch:
        merged = [
            _adopted(storage, path, number)
            for number, path in enumerate(_merge(storage, found.names, scratch))
        ]
    record = _Merged(files=merged, parts=[name for name in found.names if name not in merged])
    if storage.swap(MERGED, _text(record), before) is None:
        return
    for name in record.parts:
        storage.delete(name)


def _merge(storage: Storage, names: Sequence[str], scratch: Path) -> Iterator[Path]:
    with database(scratch / "spill") as connection:
        connection.register("replies", reader(storage, names))
        query = f"{COUNTING_REPLIES} ORDER BY request_id"
        batches = iter(connection.sql(query).to_arrow_reader(_ROWS_PER_GROUP))
        batch = next(batches, None)
        number = 0
        while batch is not None:
            target = scratch / f"{number}.parquet"
            batch = _write_file(target, batch, batches)
            yield target
            number += 1


def _adopted(storage: Storage, path: Path, number: int) -> str:
    with path.open("rb") as file:
        digest = _digest(iter(lambda: file.read(1 << 20), b""))
    name = f"replies-{number:05d}-{digest}.parquet"
    storage.adopt(path, name)
    return name


def _write_file(
    target: Path, batch: pa.RecordBatch | None, batches: Iterator[pa.RecordBatch]
) -> pa.RecordBatch | None:
    """Write up to `_ROWS_PER_FILE` rows; returns the first batch that no longer fits."""
    rows = 0
    with pq.ParquetWriter(target, REPLY_SCHEMA, compression="zstd") as writer:
        while batch is not None and rows < _ROWS_PER_FILE:
            writer.write_table(pa.Table.from_batches([batch]).cast(REPLY_SCHEMA))
            rows += batch.num_rows
            batch = next(batches, None)
    return batch


def _digest(chunks: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def database(spill: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB within `MEMORY_LIMIT`; what does not fit goes to the folder `spill`."""
    spill.mkdir()
    settings = {"memory_limit": MEMORY_LIMIT, "temp_directory": str(spill)}
    with duckdb.connect(config=settings) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection
