"""Predictions: a pure function of shards, replies and parser; can be rebuilt at any time.

Every selected image has one row for each attribute asked of each model, whatever became of it:
a request that was never answered is `pending`, a failed one carries its run outcome.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from facescan import parse
from facescan.run import journal
from facescan.run.folder import RunFolder
from facescan.run.selection import Selection
from facescan.shards import Shards
from facescan.storage import Storage
from facescan.types import (
    LABEL_SET_KEY,
    PREDICTION_SCHEMA,
    AnswerMode,
    Question,
    request_id,
)

_PASSED_ON = ("label_", "value_", "group_")
"""Prefixes of the shard columns that go into the predictions under their own names."""

_FOUND = f"""
    SELECT asked.*, reply.* EXCLUDE (request_id, created_at, attempts)
    FROM asked LEFT JOIN ({journal.COUNTING_REPLIES}) AS reply USING (request_id)
    ORDER BY dataset, split, image_id
"""

_ANSWER = ("raw_response", "finish_reason", "error_kind")
"""What a parser reads; all null where there is no reply."""

_OF_REPLY = ("request_id", "created_at", "attempts", *_ANSWER)

_LOGPROBS = "label_logprobs"

_ROWS_PER_BATCH = 50_000


def build(
    folder: RunFolder, shards: Shards, selection: Selection, questions: Sequence[Question]
) -> int:
    """Write one sorted file per attribute, model and protocol; returns the number of rows.

    Memory is bounded: what does not fit is joined on disk, inside the run folder.
    """
    rows = 0
    for question in questions:
        with (
            folder.predictions.scratch() as scratch,
            journal.database(scratch / "spill") as connection,
        ):
            asked = pa.RecordBatchReader.from_batches(
                _asked_schema(shards), _asked(shards, selection, question)
            )
            connection.register("asked", asked)
            names = journal.files(folder.replies).names
            columns = (*_OF_REPLY, _LOGPROBS) if _has_logprobs(question) else _OF_REPLY
            connection.register("replies", journal.reader(folder.replies, names, columns))
            found = connection.sql(_FOUND).to_arrow_reader(_ROWS_PER_BATCH)
            rows += _write(folder.predictions, scratch, question, shards, found)
    return rows


def _has_logprobs(question: Question) -> bool:
    return question.answer_mode is AnswerMode.SCORE


def _passed_on(shards: Shards) -> list["pa.Field[Any]"]:
    return [field for field in shards.schema if field.name.startswith(_PASSED_ON)]


def _asked_schema(shards: Shards) -> pa.Schema:
    key = [
        PREDICTION_SCHEMA.field(name)
        for name in ("dataset", "split", "image_id", "image_sha256", "subject_id", "request_id")
    ]
    return pa.schema([*key, *_passed_on(shards)])


def _asked(shards: Shards, selection: Selection, question: Question) -> Iterator[pa.RecordBatch]:
    schema = _asked_schema(shards)
    for batch in shards.labels():
        taken = selection.taken(cast("list[str]", batch.column("image_id").to_pylist()))
        rows = batch.filter(pa.array(taken, pa.bool_()))
        keys = [
            request_id(question.identity, str(digest))
            for digest in rows.column("image_sha256").to_pylist()
        ]
        columns = {
            field.name: pa.array(keys) if field.name == "request_id" else rows.column(field.name)
            for field in schema
        }
        yield pa.RecordBatch.from_pydict(columns, schema)


def _write(
    predictions: Storage,
    scratch: Path,
    question: Question,
    shards: Shards,
    found: pa.RecordBatchReader,
) -> int:
    """Read each answer, and write the attributes of the question side by side to their files."""
    schema = pa.schema([*PREDICTION_SCHEMA, *_passed_on(shards)]).with_metadata(
        shards.schema.metadata or {}
    )
    names = [f"{question.model}.{question.protocol}.{name}.parquet" for name in question.attributes]
    rows = 0
    with ExitStack() as files:
        writers = [
            files.enter_context(pq.ParquetWriter(scratch / name, schema, compression="zstd"))
            for name in names
        ]
        parser = parse.Parser(question)
        for batch in found:
            answers = (batch.column(name).to_pylist() for name in _ANSWER)
            readings = [parser.readings(*answer) for answer in zip(*answers, strict=True)]
            for position, writer in enumerate(writers):
                here = [reading[position] for reading in readings]
                writer.write_table(_table(question, position, batch, here, schema))
                rows += batch.num_rows
    for name in names:
        predictions.adopt(scratch / name, name)
    return rows


def _table(
    question: Question,
    position: int,
    batch: pa.RecordBatch,
    readings: Sequence[parse.Reading],
    schema: pa.Schema,
) -> pa.Table:
    attribute = question.attributes[position]
    label_set = (schema.metadata or {}).get(f"{LABEL_SET_KEY}{attribute}".encode())
    target = f"label_{attribute}"
    has_target = target in schema.names
    found = {
        "attribute": attribute,
        "person": 0,
        "model": question.model,
        "protocol": question.protocol,
        "answer_mode": question.answer_mode,
        "asked_label_set": question.label_sets[position],
        "target_label_set": label_set.decode() if label_set else None,
        "parser_version": parse.PARSER_VERSION,
        "outcome": pa.array([reading.outcome for reading in readings], pa.string()),
        "label": pa.array([reading.label for reading in readings], pa.string()),
        "probability": _probabilities(question, position, batch, readings),
        "target": batch.column(target) if has_target else None,
    }
    columns = {}
    for field in schema:
        value = found[field.name] if field.name in found else batch.column(field.name)
        columns[field.name] = value if isinstance(value, pa.Array) else _all(value, batch, field)
    return pa.table(columns, schema=schema)


def _probabilities(
    question: Question, position: int, batch: pa.RecordBatch, readings: Sequence[parse.Reading]
) -> "pa.Array[Any] | None":
    """The share of each reading's label in the probability of all that was offered."""
    if not _has_logprobs(question):
        return None
    logprobs = batch.column(_LOGPROBS).to_pylist()
    shares = [
        None
        if reading.label is None
        else parse.probabilities(question.offered[position], dict(each or ())).get(reading.label)
        for reading, each in zip(readings, logprobs, strict=True)
    ]
    return pa.array(shares, pa.float64())


def _all(value: object, batch: pa.RecordBatch, field: "pa.Field[Any]") -> Any:
    return pa.array([value] * batch.num_rows, field.type)
