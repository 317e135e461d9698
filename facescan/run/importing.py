"""Other people's predictions -> replies of a run, which every later step reads like any other.

A row of a file is of the image whose id it names, or whose file has its name where only one has.
What a row says becomes the reply to a question that was not asked here. Everything that does not
fit is counted with examples; nothing is dropped in silence.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, cast

import pyarrow as pa

from facescan.foreign import Foreign, ForeignRow, file_name
from facescan.run import journal
from facescan.run.folder import RunFolder
from facescan.run.selection import Selection
from facescan.shards import Shards
from facescan.types import AnswerMode, FinishReason, Outcome, Question, Reply, request_id

ENGINE = "imported"
"""What stands for the engine in replies and manifest."""

_ROWS_AT_ONCE = 20_000
_EXAMPLES = 3

_GIVEN_FIELDS: list[tuple[str, pa.DataType]] = [
    ("number", pa.int64()),
    ("place", pa.string()),
    ("id", pa.string()),
    ("name", pa.string()),
    ("bare", pa.string()),
    ("face", pa.int64()),
    ("texts", pa.list_(pa.string())),
    ("scores", pa.list_(pa.list_(pa.float64()))),
    ("no_face", pa.bool_()),
]
_GIVEN = pa.schema(_GIVEN_FIELDS)

_IMAGE_FIELDS: list[tuple[str, pa.DataType]] = [
    ("position", pa.int64()),
    ("image_id", pa.string()),
    ("sha256", pa.string()),
    ("file_name", pa.string()),
]
_IMAGES = pa.schema(_IMAGE_FIELDS)

_NAMES = """
    CREATE TABLE names AS
    SELECT file_name, min(position) AS position, count(*) AS images FROM images GROUP BY file_name
"""
_MATCHED = """
    CREATE TABLE matched AS
    SELECT given.*,
           CASE WHEN exact.position IS NOT NULL THEN exact.position
                WHEN whole.images = 1 THEN whole.position
                WHEN whole.images IS NULL AND bare.images = 1 THEN bare.position END AS position,
           exact.position IS NULL AND coalesce(whole.images, bare.images, 0) > 1 AS ambiguous
    FROM given
    LEFT JOIN images AS exact ON given.id = exact.image_id
    LEFT JOIN names AS whole ON {by_name} AND given.name = whole.file_name
    LEFT JOIN names AS bare ON {by_name} AND given.bare = bare.file_name
"""
_RANKED = """
    CREATE TABLE ranked AS
    SELECT *, row_number() OVER of_image AS rank, first_value(face) OVER of_image AS first_face,
           first_value(texts) OVER of_image AS first_texts
    FROM matched WHERE position IS NOT NULL
    WINDOW of_image AS (PARTITION BY position ORDER BY face, number)
"""
_ANSWERS = """
    CREATE TABLE answers AS
    SELECT sha256, image_id, texts, scores, no_face,
           row_number() OVER of_bytes AS rank, first_value(texts) OVER of_bytes AS first_texts
    FROM ranked JOIN images USING (position) WHERE rank = 1
    WINDOW of_bytes AS (PARTITION BY sha256 ORDER BY position)
"""
_REPLIES = "SELECT sha256, texts, scores, no_face FROM answers WHERE rank = 1 ORDER BY sha256"
_ABSENT = "SELECT DISTINCT sha256 FROM images ANTI JOIN answers USING (sha256) ORDER BY sha256"
_TEXTS = """
    SELECT texts[$column] AS text, count(*) FROM answers WHERE NOT no_face
    GROUP BY text ORDER BY count(*) DESC, text
"""
_FINDINGS = (
    (
        "rows of images that are not here",
        "SELECT id FROM matched WHERE position IS NULL AND NOT ambiguous",
    ),
    (
        "rows whose name several images have",
        "SELECT id FROM matched WHERE position IS NULL AND ambiguous",
    ),
    (
        "rows about an image that had one already, which say the same",
        "SELECT id FROM ranked WHERE rank > 1 AND face = first_face AND texts = first_texts",
    ),
    (
        "rows about an image that had one already, which say something else; the first counts",
        "SELECT id FROM ranked WHERE rank > 1 AND face = first_face AND texts <> first_texts",
    ),
    (
        "rows about further faces of an image",
        "SELECT id FROM ranked WHERE rank > 1 AND face <> first_face",
    ),
    (
        "images with the bytes of another one that has another answer; the first counts",
        "SELECT image_id FROM answers WHERE rank > 1 AND texts <> first_texts",
    ),
    (
        "images in which no face was found",
        "SELECT image_id FROM answers WHERE no_face",
    ),
    (
        "images without a row",
        "SELECT image_id FROM images ANTI JOIN answers USING (sha256)",
    ),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be: how often, and the first few of it."""

    what: str
    count: int
    examples: tuple[str, ...] = ()


class Joined:
    """The rows of a file with the images they are of; `joined` makes one."""

    def __init__(self, connection: Any, foreign: Foreign) -> None:
        self._connection = connection
        self._foreign = foreign
        (self.rows,) = self._one("SELECT count(*) FROM given")
        (self.images,) = self._one("SELECT count(*) FROM answers WHERE NOT no_face")

    def findings(self) -> list[Finding]:
        """What does not fit together, and what the file's format found odd."""
        found = [Finding(what, count) for what, count in sorted(self._foreign.oddities.items())]
        for what, query in _FINDINGS:
            (count,) = self._one(f"SELECT count(*) FROM ({query})")
            if count:
                first = f"SELECT * FROM ({query}) ORDER BY 1 LIMIT {_EXAMPLES}"
                examples = self._connection.execute(first).fetchall()
                found.append(Finding(what, count, tuple(str(name) for (name,) in examples)))
        return found

    def texts(self, column: int) -> list[tuple[str, int]]:
        """What images are answered with about the attribute of that number, and how many are."""
        found = self._connection.execute(_TEXTS, {"column": column + 1}).fetchall()
        return [(str(text), int(count)) for text, count in found]

    def replies(
        self, questions: Sequence[Question], absent: Outcome | None, now: datetime
    ) -> Iterator[list[Reply]]:
        """The replies to these questions, one for each attribute of the file, in batches.

        Args:
            questions: in the order of the file's attributes.
            absent: how images without a row end; None: without a reply, as `pending`.
            now: when this is.
        """
        reader = self._connection.sql(_REPLIES).to_arrow_reader(_ROWS_AT_ONCE)
        for batch in reader:
            rows = batch.to_pylist()
            yield [
                self._reply(question, column, row, now)
                for row in rows
                for column, question in enumerate(questions)
            ]
        if absent is not None:
            for batch in self._connection.sql(_ABSENT).to_arrow_reader(_ROWS_AT_ONCE):
                yield [
                    _without(question, str(sha256), absent, "the file has no row of it", now)
                    for sha256 in batch.column("sha256").to_pylist()
                    for question in questions
                ]

    def _reply(self, question: Question, column: int, row: dict[str, Any], now: datetime) -> Reply:
        if row["no_face"]:
            said = "the file says that there is no face"
            return _without(question, row["sha256"], Outcome.NO_FACE, said, now)
        scores = row["scores"][column] if question.answer_mode is AnswerMode.SCORE else None
        logprobs = [math.log(score) if score > 0 else -math.inf for score in scores or ()]
        return Reply(
            request_id=request_id(question.identity, row["sha256"]),
            raw_response=row["texts"][column],
            finish_reason=FinishReason.STOP,
            engine=ENGINE,
            resolved_model=question.model,
            created_at=now,
            latency_s=0.0,
            label_logprobs=tuple(zip(question.labels, logprobs, strict=True)) if logprobs else (),
        )

    def _one(self, query: str) -> tuple[Any, ...]:
        (row,) = self._connection.execute(query).fetchall()
        return cast("tuple[Any, ...]", row)


def _without(question: Question, sha256: str, outcome: Outcome, error: str, now: datetime) -> Reply:
    return Reply(
        request_id=request_id(question.identity, sha256),
        raw_response=None,
        finish_reason=None,
        engine=ENGINE,
        resolved_model=question.model,
        created_at=now,
        latency_s=0.0,
        error_kind=outcome,
        error=error,
    )


@contextmanager
def joined(
    folder: RunFolder, foreign: Foreign, data: Shards, selection: Selection
) -> Iterator[Joined]:
    """Find the image of each row; memory is bounded by DuckDB's limit.

    Args:
        folder: of the run; temporary files lie in it.
        foreign: its rows are used up.
        data: the dataset.
        selection: the images of the run.

    Raises:
        DataError: the file or the dataset is damaged.
        OSError: the run folder cannot be written.
    """
    with (
        folder.root.scratch() as scratch,
        journal.database(scratch / "spill") as connection,
    ):
        _load(connection, "images", _IMAGES, _images(data, selection))
        _load(connection, "given", _GIVEN, _given(foreign.rows))
        by_name = "true" if foreign.by_name else "false"
        for query in (_NAMES, _MATCHED.format(by_name=by_name), _RANKED, _ANSWERS):
            connection.execute(query)
        yield Joined(connection, foreign)


def _load(
    connection: Any, table: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> None:
    # Not as one stream, of which DuckDB would raise errors as its own.
    connection.register("batch", schema.empty_table())
    connection.execute(f"CREATE TABLE {table} AS SELECT * FROM batch")
    for batch in batches:
        connection.register("batch", pa.Table.from_batches([batch]))
        connection.execute(f"INSERT INTO {table} SELECT * FROM batch")
    connection.unregister("batch")


def _images(data: Shards, selection: Selection) -> Iterator[pa.RecordBatch]:
    position = 0
    for table in data.read(data.row_groups, ("image_id", "image_sha256")):
        ids = cast("list[str]", table.column("image_id").to_pylist())
        digests = table.column("image_sha256").to_pylist()
        rows = [
            (position + number, image_id, digest, file_name(image_id))
            for number, (image_id, digest, taken) in enumerate(
                zip(ids, digests, selection.taken(ids), strict=True)
            )
            if taken
        ]
        position += len(ids)
        yield _batch(rows, _IMAGES)


def _given(rows: Iterator[ForeignRow]) -> Iterator[pa.RecordBatch]:
    number = 0
    while taken := list(islice(rows, _ROWS_AT_ONCE)):
        yield _batch(
            [
                (
                    *(number + offset, row.where),
                    *(row.names[0], row.names[1], row.names[-1]),
                    *(row.face, row.texts, row.scores, row.no_face),
                )
                for offset, row in enumerate(taken)
            ],
            _GIVEN,
        )
        number += len(taken)


def _batch(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else ((),) * len(schema)
    arrays = [
        pa.array(list(column), field.type) for column, field in zip(columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
