"""Whether a run folder holds what it should: nothing lost, nothing twice, nothing altered.

Replies are held to their checksums, to the manifest and to the dataset; predictions to what the
replies say, by building them anew. No image is read, and nothing is written in the run folder.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, groupby
from pathlib import Path
from typing import Any, cast

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from facescan import shards
from facescan.errors import DataError
from facescan.run import journal, ledger, manifest, predictions
from facescan.run.folder import LEASE, RunFolder
from facescan.run.lease import Holder
from facescan.run.manifest import Manifest
from facescan.run.selection import Selection, sample
from facescan.shards import Shards
from facescan.shards.contents import RowsDigest, dataset_digest
from facescan.storage import LocalStorage, Storage
from facescan.types import Question, request_id

AGAIN = "the same `facescan run` command again"

_ROUNDING_USD = 1e-6
"""Of sums of many floats."""

GENERATED = "sample:"
"""Begins the recorded digest of a dataset that was drawn into the run folder."""

_EXAMPLES = 3

_REPLIED = """
    CREATE TEMP TABLE replied AS
    SELECT request_id, count(*) AS replies, bool_or(error_kind IS NULL) AS answered
    FROM replies GROUP BY request_id
"""
_WANTED = "CREATE TEMP TABLE wanted AS SELECT DISTINCT request_id FROM asked"
_TWICE = "SELECT request_id FROM replied WHERE replies > 1"
_OPEN = "SELECT request_id FROM wanted ANTI JOIN replied USING (request_id)"
_UNASKED = "SELECT request_id FROM replied ANTI JOIN wanted USING (request_id)"
_DONE = """
    SELECT count(*), count(*) FILTER (answered) FROM wanted JOIN replied USING (request_id)
"""
_COST = "SELECT coalesce(sum(cost_usd), 0) FROM replies"
_REPLY_COLUMNS = ("request_id", "error_kind", "cost_usd")

_ROW = ("dataset", "split", "image_id", "person")
"""What tells the rows of one prediction file apart."""

_KEY = ", ".join(_ROW)
_DOUBLE_ROWS = f"SELECT image_id FROM found GROUP BY {_KEY} HAVING count(*) > 1"
_MISSING_ROWS = f"SELECT image_id FROM rebuilt ANTI JOIN found USING ({_KEY})"
_UNASKED_ROWS = f"SELECT image_id FROM found ANTI JOIN rebuilt USING ({_KEY})"
_IMAGES = "SELECT count(*) FROM (SELECT DISTINCT dataset, split, image_id FROM found)"

_READ_BY_PARSER = ("outcome", "label", "probability")


@dataclass(frozen=True, slots=True)
class Check:
    """What came of one check.

    Attributes:
        name: one word.
        found: what was looked at, for people; None where it could not be checked.
        faults: what is wrong; none in a sound run.
        notes: what may be as it is, and is worth knowing.
    """

    name: str
    found: str | None
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Replies:
    """Files of replies that can be relied on."""

    names: tuple[str, ...]
    unmerged: bool


@dataclass(frozen=True, slots=True)
class _Asked:
    """Everything that the run asks.

    Attributes:
        images: how many rows of the dataset are in the selection.
    """

    shards: Shards
    selection: Selection
    images: int
    questions: Sequence[Question]


def checks(folder: RunFolder, now: datetime) -> Iterator[Check]:
    """Check a run, one thing after the other.

    Memory is bounded by DuckDB's limit. What does not fit, and the predictions of one question at
    a time, lie where the system keeps temporary files.

    Raises:
        UsageError: the run asked about an attribute that is not known here.
        OSError: the folder cannot be read, or a file went away meanwhile.
    """
    ended, lease = _lease(folder, now)
    yield lease
    # Before the manifest: what is being asked at the moment stands there before it has a reply.
    replies, files = _replies(folder.replies)
    yield files
    asked: _Asked | None = None
    with _database() as connection:
        if replies is None:
            yield Check("keys", None)
        else:
            rows = journal.reader(folder.replies, replies.names, _REPLY_COLUMNS)
            _load(connection, "replies", rows.schema, rows)
            yield _keys(connection, replies)
            if folder.ledger.names():
                yield _ledger(folder, connection)
        record, combinations = _manifest(folder)
        yield combinations
        if record is not None:
            asked, dataset = _dataset(folder, record)
            yield dataset
        if asked is None or replies is None:
            yield Check("requests", None)
        else:
            yield _requests(connection, asked)
    if asked is None or replies is None or files.faults:
        yield Check("predictions", None)
    elif not ended or replies.unmerged:
        note = f"every command builds them when it ends, and the last has not; {AGAIN} does"
        yield Check("predictions", None, notes=(note,))
    else:
        yield _predictions(folder, asked)


def _ledger(folder: RunFolder, connection: duckdb.DuckDBPyConnection) -> Check:
    """Whether the ledger accounts for what the replies say they have cost."""
    try:
        spent = ledger.spent(folder.ledger)
    except DataError as error:
        return Check("ledger", None, (str(error),))
    found = f"${spent.settled_usd:,.4f} for {spent.calls:,} calls"
    notes: tuple[str, ...] = ()
    if spent.unknown:
        notes = (
            f"${spent.reserved_usd:,.4f} more for {spent.unknown:,} calls that were in flight when "
            "a command ended: nobody can say whether they were billed",
        )
    (cost,) = connection.execute(_COST).fetchall()[0]
    if cost > spent.total_usd + _ROUNDING_USD:
        fault = (
            f"the replies have cost ${cost:,.4f}, more than the ledger's ${spent.total_usd:,.4f}"
        )
        return Check("ledger", found, (fault,), notes)
    return Check("ledger", found, notes=notes)


def _lease(folder: RunFolder, now: datetime) -> tuple[bool, Check]:
    """Whether the last command came to its end, and who is working on the run if anybody is."""
    try:
        holder = Holder.model_validate_json(folder.root.read(LEASE))
    except FileNotFoundError:
        return True, Check("lease", "nobody is working on this run")
    except ValidationError as error:
        fault = f"{LEASE} is damaged: {error.errors()[0]['msg']}; delete it if nobody is at work"
        return True, Check("lease", None, (fault,))
    if holder.is_gone(now):
        note = f"the last command was killed: {holder}; {AGAIN} continues"
        return False, Check("lease", "nobody is working on this run", notes=(note,))
    note = "what it writes meanwhile may look like a fault; verify again when it has ended"
    return False, Check("lease", f"a command is working on this run: {holder}", notes=(note,))


def _replies(storage: Storage) -> tuple[_Replies | None, Check]:
    try:
        files = journal.files(storage)
    except DataError as error:
        return None, Check("replies", None, (str(error),))
    damage = {name: "merged, and it is gone" for name in files.missing}
    for name in files.names:
        if (reason := _damage(storage, name)) is not None:
            damage[name] = reason
    notes = []
    if files.left:
        notes.append(
            f"files that an interruption left and that do not count: {_few(files.left)}; "
            "the next `facescan run` removes them"
        )
    if files.unmerged:
        notes.append("not all are merged: a command is at work, or was cut short")
    if damage:
        notes.append(f"{AGAIN} sets damaged files aside and asks again what they held")
    faults = tuple(f"{name}: {reason}" for name, reason in sorted(damage.items()))
    sound = tuple(name for name in files.names if name not in damage)
    found = f"files with the right checksum and columns: {len(sound):,}"
    return _Replies(sound, files.unmerged), Check("replies", found, faults, tuple(notes))


def _damage(storage: Storage, name: str) -> str | None:
    try:
        return journal.damage(storage, name)
    except OSError as error:
        return f"cannot be read: {error}"


def _keys(connection: Any, replies: _Replies) -> Check:
    connection.execute(_REPLIED)
    (keys,) = _row(connection, "SELECT count(*) FROM replied")
    found = f"requests with a reply: {keys:,}"
    twice = _examples(connection, _TWICE, "requests with more than one reply")
    if replies.unmerged:
        return Check("keys", found, notes=tuple(f"{each}; merging settles it" for each in twice))
    return Check("keys", found, tuple(twice))


def _manifest(folder: RunFolder) -> tuple[Manifest | None, Check]:
    try:
        record = manifest.read(folder)
    except DataError as error:
        return None, Check("manifest", None, (str(error),))
    found = f"combinations of model, protocol and attribute: {len(record.combinations)}"
    return record, Check("manifest", found)


def _dataset(folder: RunFolder, record: Manifest) -> tuple[_Asked | None, Check]:
    """The dataset, if it is still the one that the run was made with."""
    location, expected = record.dataset.location, record.dataset.digest
    generated = expected.startswith(GENERATED)
    if generated:
        # Wherever the run folder was moved to.
        location = f"{folder.root.location}/shards/{Path(location).name}"
    try:
        everything = shards.open(location)
        if generated:
            expected = everything.digest
        for digest in (everything.digest, _digest(everything)):
            if digest != expected:
                fault = f"{location}: other rows than those asked about: digest {digest}, expected "
                return None, Check("dataset", None, (fault + expected,))
        data = shards.open(location, record.dataset.split)
        image_ids = chain.from_iterable(_image_ids(data))
        selection = sample(image_ids, record.dataset.limit, record.dataset.seed)
        images = sum(sum(selection.taken(each)) for each in _image_ids(data))
    except DataError as error:
        fault = f"{error}. Without the dataset nobody can say what was to be asked"
        return None, Check("dataset", None, (fault,))
    asked = _Asked(data, selection, images, manifest.questions(record))
    return asked, Check("dataset", f"{location}: images asked about: {images:,} of {data.rows:,}")


def _digest(data: Shards) -> str:
    """What the manifest of an ingest records, from the rows themselves."""
    digests = []
    names = [name for name in data.schema.names if name != "image"]
    for _, groups in groupby(data.row_groups, key=lambda group: group.path):
        digest = RowsDigest(data.schema)
        for table in data.read(groups, names):
            for row in table.to_pylist():
                digest.update(list(row.values()))
        digests.append(digest.hexdigest())
    return dataset_digest(digests)


def _image_ids(data: Shards) -> Iterator[list[str]]:
    for table in data.read(data.row_groups, ["image_id"]):
        yield cast("list[str]", table.column("image_id").to_pylist())


def _requests(connection: Any, asked: _Asked) -> Check:
    schema = pa.schema([pa.field("request_id", pa.string())])
    _load(connection, "asked", schema, _keys_asked(asked, schema))
    connection.execute(_WANTED)
    (requests,) = _row(connection, "SELECT count(*) FROM wanted")
    done, answered = _row(connection, _DONE)
    unasked = _examples(connection, _UNASKED, "replies to what nobody asked")
    notes = [
        f"incomplete: {each}; {AGAIN} continues"
        for each in _examples(connection, _OPEN, "requests without a reply yet")
    ]
    found = f"asked: {requests:,}; answers: {answered:,}; errors: {done - answered:,}"
    return Check("requests", found, tuple(unasked), tuple(notes))


def _keys_asked(asked: _Asked, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    # Not by `facescan.run.plan`: what it forgets to ask is to be found here. Protocols that ask
    # the same share their requests.
    identities = {question.identity for question in asked.questions}
    for table in asked.shards.read(asked.shards.row_groups, ["image_id", "image_sha256"]):
        taken = asked.selection.taken(cast("list[str]", table.column("image_id").to_pylist()))
        digests = table.filter(pa.array(taken, pa.bool_())).column("image_sha256").to_pylist()
        for identity in identities:
            keys = [request_id(identity, str(digest)) for digest in digests]
            yield pa.RecordBatch.from_pydict({"request_id": keys}, schema)


@dataclass(frozen=True, slots=True)
class _Rebuilt(RunFolder):
    """A run whose predictions are built elsewhere."""

    elsewhere: Storage

    @property
    def predictions(self) -> Storage:
        """Where they are built."""
        return self.elsewhere


def _predictions(folder: RunFolder, asked: _Asked) -> Check:
    present = {name for name in folder.predictions.names() if name.endswith(".parquet")}
    known, rows = set[str](), 0
    faults: list[str] = []
    for question in asked.questions:
        with tempfile.TemporaryDirectory(prefix="facescan-verify-") as place:
            rebuilt = LocalStorage(place)
            elsewhere = _Rebuilt(folder.root, rebuilt)
            rows += predictions.build(elsewhere, asked.shards, asked.selection, [question])
            for name in rebuilt.names():
                known.add(name)
                wrong = _compare(folder.predictions, rebuilt, name, asked.images)
                faults += [f"{name}: {each}" for each in wrong]
    faults += [f"{name}: nobody asked what is in it" for name in sorted(present - known)]
    notes = (f"{AGAIN} builds the predictions anew; files it does not replace can be deleted",)
    found = f"rows: {rows:,}, in files: {len(known):,}"
    return Check("predictions", found, tuple(faults), notes if faults else ())


def _compare(found: Storage, rebuilt: Storage, name: str, images: int) -> list[str]:
    """What is wrong with a file of predictions; in words."""
    with _database() as connection:
        with _parquet(rebuilt, name) as (schema, batches):
            _load(connection, "rebuilt", schema, batches)
        try:
            with _parquet(found, name) as (here, batches):
                if not here.equals(schema):
                    return [f"other columns than predictions have: {', '.join(here.names)}"]
                _load(connection, "found", schema, batches)
        except FileNotFoundError:
            return ["it is not there"]
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            return [f"cannot be read: {error}"]
        faults = [
            *_examples(connection, _DOUBLE_ROWS, "images with more than one row"),
            *_examples(connection, _MISSING_ROWS, "images without a row"),
            *_examples(connection, _UNASKED_ROWS, "rows of what nobody asked"),
            *_differing(connection, [each for each in schema.names if each not in _ROW]),
        ]
        (count,) = _row(connection, _IMAGES)
    # What is built anew lacks what the builder forgets.
    return faults or ([] if count == images else [f"rows of {count:,} images of {images:,}"])


@contextmanager
def _parquet(storage: Storage, name: str) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    with storage.open(name) as file, pq.ParquetFile(file) as parquet:
        yield parquet.schema_arrow, _valid(parquet.iter_batches())


def _valid(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        batch.validate(full=True)
        yield batch


def _differing(connection: Any, columns: Sequence[str]) -> Iterator[str]:
    """The columns that say something else than the replies do."""
    joined = f"FROM found JOIN rebuilt USING ({_KEY})"
    tests = [_differs(column) for column in columns]
    counts = ", ".join(f"count(*) FILTER ({test})" for test in tests)
    found = _row(connection, f"SELECT {counts} {joined}")
    for column, test, count in zip(columns, tests, found, strict=True):
        if count:
            name = _quoted(column)
            rows = connection.execute(
                f"SELECT image_id, found.{name}, rebuilt.{name} {joined} WHERE {test} "
                f"ORDER BY {_KEY} LIMIT {_EXAMPLES}"
            ).fetchall()
            few = ", ".join(f"{image}: {is_!r}, expected {due!r}" for image, is_, due in rows)
            yield f"rows with another {column}: {count:,} ({few})"


def _differs(column: str) -> str:
    name = _quoted(column)
    test = f"found.{name} IS DISTINCT FROM rebuilt.{name}"
    # Another parser may read otherwise: that it is another one says it all.
    same_parser = "found.parser_version IS NOT DISTINCT FROM rebuilt.parser_version"
    return f"{test} AND {same_parser}" if column in _READ_BY_PARSER else test


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


@contextmanager
def _database() -> Iterator[Any]:
    with (
        tempfile.TemporaryDirectory(prefix="facescan-verify-") as place,
        journal.database(Path(place, "spill")) as connection,
    ):
        yield connection


def _load(
    connection: Any, table: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> None:
    # Not as one stream, of which DuckDB would raise errors as its own.
    connection.register("batch", schema.empty_table())
    connection.execute(f"CREATE TEMP TABLE {table} AS SELECT * FROM batch")
    for batch in batches:
        connection.register("batch", pa.Table.from_batches([batch]))
        connection.execute(f"INSERT INTO {table} SELECT * FROM batch")
    connection.unregister("batch")


def _row(connection: Any, query: str) -> tuple[Any, ...]:
    # All rows, for DuckDB does nothing else before it has given out the last one.
    (row,) = connection.execute(query).fetchall()
    return cast("tuple[Any, ...]", row)


def _examples(connection: Any, query: str, what: str) -> list[str]:
    """In words how many names the query gives, and the first of them; nothing if it gives none."""
    (count,) = _row(connection, f"SELECT count(*) FROM ({query})")
    if not count:
        return []
    first = connection.execute(f"SELECT * FROM ({query}) ORDER BY 1 LIMIT {_EXAMPLES}").fetchall()
    return [f"{what}: {_few([str(name) for (name,) in first], count)}"]


def _few(names: Sequence[str], count: int | None = None) -> str:
    count = len(names) if count is None else count
    more = ", ..." if count > _EXAMPLES else ""
    return f"{count:,} ({', '.join(names[:_EXAMPLES])}{more})"
