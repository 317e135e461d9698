"""Replies that tests of a run folder write and read."""

import asyncio
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from facescan.run import journal
from facescan.storage import Storage
from facescan.types import FinishReason, Outcome, Reply

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def reply(
    request: int | str,
    text: str | None = "White",
    minutes: int = 0,
    error_kind: Outcome = Outcome.ENGINE_ERROR,
) -> Reply:
    """An answer, or where `text` is None an error."""
    return Reply(
        request_id=f"{request:032x}" if isinstance(request, int) else request,
        raw_response=text,
        finish_reason=None if text is None else FinishReason.STOP,
        engine="fake 0",
        resolved_model="fake",
        created_at=NOON + timedelta(minutes=minutes),
        latency_s=0.25,
        label_logprobs=(("White", -0.5), ("Black", -1.5)),
        error_kind=error_kind if text is None else None,
        error="died" if text is None else None,
    )


def written(place: Storage, replies: Iterable[Reply], writer: str = "w", session: str = "s") -> str:
    """Write them as one part; its name."""
    before = set(place.names())
    journal_ = journal.Journal(place, session, writer)
    for each in replies:
        journal_.append(each)
    asyncio.run(journal_.durable())
    (name,) = set(place.names()) - before
    return name


def rows(place: Storage) -> list[dict[str, Any]]:
    """Every row of the files that count, as they stand there."""
    names = journal.files(place).names
    return journal.reader(place, names).read_all().to_pylist()


def counting(place: Storage) -> list[dict[str, Any]]:
    """The replies that count, sorted by key: what predictions are made of."""
    with (
        tempfile.TemporaryDirectory() as folder,
        journal.database(Path(folder) / "spill") as connection,
    ):
        connection.register("replies", journal.reader(place, journal.files(place).names))
        query = f"{journal.COUNTING_REPLIES} ORDER BY request_id"
        found: list[dict[str, Any]] = connection.sql(query).to_arrow_reader().read_all().to_pylist()
        return found
