"""Durable replies: small part files while a run goes on, sorted files at its end.

A part holds whole replies and is complete under its final name. Which replies count is decided
when they are read, not when they are written: of two with one key a model's answer beats an error,
then the earlier one wins. So a reply written twice does no harm, and nothing is ever rewritten in
place.
"""

import glob
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from facescan import durable
from facescan.types import REPLY_SCHEMA, Reply

FLUSH_REPLIES = 2_000
FLUSH_SECONDS = 30.0
"""At most this many replies, and none older than this, are lost with a killed process."""

MEMORY_LIMIT = "1GB"
"""Of DuckDB, while replies are merged or joined; larger work spills to disk."""

_ROWS_PER_FILE = 1_000_000
_ROWS_PER_GROUP = 100_000

COUNTING_REPLIES = """
    SELECT * EXCLUDE (_rank) FROM (
        SELECT *, row_number() OVER (
            PARTITION BY request_id ORDER BY (error_kind IS NOT NULL), created_at, attempts
        ) AS _rank
        FROM read_parquet($parts, hive_partitioning = false)
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
        folder: the run's `replies/`.
        name: starts the part names; several writers may share it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._prefix = f"part-{name}-{uuid.uuid4().hex[:8]}"
        self._parts = 0
        self._waiting: list[Reply] = []
        self._oldest = 0.0

    def append(self, reply: Reply) -> None:
        """Take a reply; when enough or old enough ones are waiting, all are written.

        Raises:
            OSError: they could not be written.
        """
        if not self._waiting:
            self._oldest = time.monotonic()
        self._waiting.append(reply)
        if len(self._waiting) >= FLUSH_REPLIES or time.monotonic() - self._oldest > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting; on disk when this returns.

        Raises:
            OSError: it could not be written; it stays waiting.
        """
        if not self._waiting:
            return
        part = self._folder / f"{self._prefix}-{self._parts:06d}.parquet"
        with durable.replacing(part) as temporary:
            pq.write_table(table(self._waiting), temporary, compression="zstd")
        self._parts += 1
        self._waiting = []


def parts(folder: Path) -> list[str]:
    """All files of replies, sorted by name; unfinished temporary files are not among them."""
    return sorted(str(path) for path in folder.glob("*.parquet") if path.name[0] != ".")


def literal(paths: Iterable[str]) -> list[str]:
    """Paths as DuckDB is to take them: it reads `runs/try[2]` as a pattern otherwise."""
    return [glob.escape(path) for path in paths]


def answered(folder: Path) -> set[bytes]:
    """The 16-byte keys of all requests that need not be asked again, failed ones included."""
    keys: set[bytes] = set()
    for part in parts(folder):
        column = pq.read_table(part, columns=["request_id"]).column("request_id")
        keys.update(bytes.fromhex(str(key)) for key in column.to_pylist())
    return keys


def compact(folder: Path, temporary: Path) -> None:
    """Merge all parts into `replies-00000.parquet` and so on: sorted by key, one row per request.

    The merged files are on disk before the parts go, and a row that stands in both is the same
    row, so an interruption at any moment loses nothing. Memory is bounded: a larger sort spills
    to `temporary`. Does nothing where all is merged already.
    """
    old = parts(folder)
    if all(Path(part).name.startswith("replies-") for part in old):
        return
    run = uuid.uuid4().hex[:8]
    merged: list[Path] = []
    with database(temporary) as connection:
        query = f"{COUNTING_REPLIES} ORDER BY request_id"
        batches = iter(
            connection.sql(query, params={"parts": old}).to_arrow_reader(_ROWS_PER_GROUP)
        )
        batch = next(batches, None)
        while batch is not None:
            final = folder / f"merged-{run}-{len(merged):05d}.parquet"
            with durable.replacing(final) as target:
                batch = _write_file(target, batch, batches)
            merged.append(final)
    for part in old:
        Path(part).unlink()
    for number, path in enumerate(merged):
        path.rename(folder / f"replies-{number:05d}.parquet")


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


@contextmanager
def database(temporary: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB within `MEMORY_LIMIT`; what does not fit goes to the folder `temporary`."""
    temporary.mkdir(parents=True, exist_ok=True)
    settings = {"memory_limit": MEMORY_LIMIT, "temp_directory": str(temporary)}
    try:
        with duckdb.connect(config=settings) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            yield connection
    finally:
        shutil.rmtree(temporary)
