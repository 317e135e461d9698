"""What a run still has to ask: its requests less the replies it has; no image is read for it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from facescan.run import journal
from facescan.run.selection import Selection
from facescan.shards import Shards
from facescan.storage import Storage
from facescan.types import Outcome, Question, request_id

MAX_QUESTIONS = 32
"""Of one plan: each is a bit of `OpenRows.questions`."""

# Equal images have equal requests: the first row of the dataset that has one asks it.
_ASKED = """
    CREATE TEMP TABLE wanted AS
    SELECT request_id, min(position) AS position FROM asked GROUP BY request_id
"""
_REPLIED = """
    CREATE TEMP TABLE replied AS
    SELECT request_id,
           CASE WHEN bool_or(error_kind IS NULL) THEN '' ELSE min_by(error_kind, created_at) END
           AS kind
    FROM replies GROUP BY request_id
"""
_OPEN = """
    SELECT position FROM wanted LEFT JOIN replied USING (request_id)
    WHERE kind IS NULL OR list_contains($again::VARCHAR[], kind)
    ORDER BY position
"""
_DONE = """
    SELECT kind, count(*) FROM wanted JOIN replied USING (request_id)
    WHERE NOT list_contains($again::VARCHAR[], kind)
    GROUP BY kind
"""
_ASKED_FIELDS: list[tuple[str, pa.DataType]] = [
    ("request_id", pa.string()),
    ("position", pa.int64()),
]
_COLUMNS = ("request_id", "error_kind", "created_at")


@dataclass(frozen=True, slots=True)
class OpenRows:
    """The rows of one row group about which something is to be asked.

    Attributes:
        rows: positions in the row group, ascending; uint32.
        questions: for each row which questions are open, question 0 in the lowest bit; uint32.
    """

    rows: npt.NDArray[np.uint32]
    questions: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be asked, and what need not be.

    Attributes:
        groups: index of a row group in the shards -> its open rows; groups without any are absent.
        requests: how many are open.
        done: how many are not, by error kind; "" counts the models' answers.
    """

    groups: Mapping[int, OpenRows] = field(default_factory=dict)
    requests: int = 0
    done: Mapping[str, int] = field(default_factory=dict)


def plan(
    shards: Shards,
    selection: Selection,
    questions: Sequence[Question],
    replies: Storage,
    again: Sequence[Outcome] = (),
) -> Plan:
    """Find the requests without a reply.

    A request is a question about the bytes of an image, however many rows have them. Memory is
    bounded by DuckDB's limit and 8 bytes for each row that is open.

    Args:
        shards: the dataset.
        selection: the images of the run.
        questions: at most `MAX_QUESTIONS`.
        replies: the run's `replies/`.
        again: a reply that is an error of one of these kinds is no reply.
    """
    if len(questions) > MAX_QUESTIONS:
        raise ValueError(f"{len(questions)} questions in one plan, at most {MAX_QUESTIONS}")
    kinds = {"again": [str(kind) for kind in again]}
    with replies.scratch() as scratch, journal.database(scratch / "spill") as connection:
        names = journal.files(replies).names
        connection.register("asked", _asked(shards, selection, questions))
        connection.execute(_ASKED)
        connection.register("replies", journal.reader(replies, names, _COLUMNS))
        connection.execute(_REPLIED)
        found = connection.execute(_OPEN, kinds).fetchnumpy()
        done = connection.execute(_DONE, kinds).fetchall()
    positions = cast("npt.NDArray[np.int64]", found["position"])
    return Plan(
        groups=_by_group(shards, positions, len(questions)),
        requests=len(positions),
        done={str(kind): int(count) for kind, count in done},
    )


def _asked(
    shards: Shards, selection: Selection, questions: Sequence[Question]
) -> pa.RecordBatchReader:
    """(key, position) of every request; a position is row number x questions + question."""
    schema = pa.schema(_ASKED_FIELDS)
    return pa.RecordBatchReader.from_batches(
        schema, _asked_batches(shards, selection, questions, schema)
    )


def _asked_batches(
    shards: Shards, selection: Selection, questions: Sequence[Question], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    before = 0
    for table in shards.read(shards.row_groups, ("image_id", "image_sha256")):
        taken = selection.taken(cast("list[str]", table.column("image_id").to_pylist()))
        digests = cast("list[str]", table.column("image_sha256").to_pylist())
        numbers = [number for number, selected in enumerate(taken) if selected]
        for index, question in enumerate(questions):
            keys = [request_id(question.identity, digests[number]) for number in numbers]
            positions = [(before + number) * len(questions) + index for number in numbers]
            yield pa.RecordBatch.from_pydict({"request_id": keys, "position": positions}, schema)
        before += len(digests)


def _by_group(
    shards: Shards, positions: npt.NDArray[np.int64], questions: int
) -> dict[int, OpenRows]:
    rows, index = np.divmod(positions, questions)
    ends = np.cumsum([group.rows for group in shards.row_groups])
    cuts = np.searchsorted(rows, ends)
    groups: dict[int, OpenRows] = {}
    begin = 0
    for number, (cut, end) in enumerate(zip(cuts, ends, strict=True)):
        if cut > begin:
            here = rows[begin:cut] - (end - shards.row_groups[number].rows)
            unique, first = np.unique(here, return_index=True)
            bits = np.bitwise_or.reduceat(
                np.left_shift(np.uint32(1), index[begin:cut].astype(np.uint32)), first
            )
            groups[number] = OpenRows(unique.astype(np.uint32), bits.astype(np.uint32))
        begin = int(cut)
    return groups
