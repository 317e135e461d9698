"""Replies are on disk under final names only, and merging loses and doubles none."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from facescan import durable
from facescan.run import journal
from facescan.types import REPLY_SCHEMA, FinishReason, Outcome, Reply

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def reply(number: int, text: str | None = "White", minutes: int = 0) -> Reply:
    return Reply(
        request_id=f"{number:032x}",
        raw_response=text,
        finish_reason=None if text is None else FinishReason.STOP,
        engine="fake 0",
        resolved_model="fake",
        created_at=NOON + timedelta(minutes=minutes),
        latency_s=0.25,
        label_logprobs=(("White", -0.5), ("Black", -1.5)),
        error_kind=Outcome.ENGINE_ERROR if text is None else None,
        error="died" if text is None else None,
    )


def rows(folder: Path) -> list[dict[str, object]]:
    return [row for part in journal.parts(folder) for row in pq.read_table(part).to_pylist()]


def test_replies_come_back_as_they_were_written(tmp_path: Path) -> None:
    writer = journal.Journal(tmp_path, "m")
    writer.append(reply(1))
    writer.flush()
    (row,) = rows(tmp_path)
    assert row["raw_response"] == "White"
    assert row["label_logprobs"] == [("White", -0.5), ("Black", -1.5)]
    assert row["created_at"] == NOON
    assert pq.read_schema(journal.parts(tmp_path)[0]).equals(REPLY_SCHEMA)


def test_a_part_is_written_when_enough_replies_wait(tmp_path: Path) -> None:
    writer = journal.Journal(tmp_path, "m")
    for number in range(journal.FLUSH_REPLIES - 1):
        writer.append(reply(number))
    assert journal.parts(tmp_path) == []
    writer.append(reply(journal.FLUSH_REPLIES))
    assert len(rows(tmp_path)) == journal.FLUSH_REPLIES


def test_a_part_is_written_when_a_reply_waits_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("facescan.run.journal.time.monotonic", lambda: now[0])
    writer = journal.Journal(tmp_path, "m")
    writer.append(reply(1))
    now[0] += journal.FLUSH_SECONDS + 1
    writer.append(reply(2))
    assert len(rows(tmp_path)) == 2


def test_a_failed_write_leaves_nothing_under_a_final_name_and_keeps_the_replies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = journal.Journal(tmp_path, "m")
    writer.append(reply(1))

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            writer.flush()
    assert list(tmp_path.iterdir()) == []
    writer.flush()
    assert len(rows(tmp_path)) == 1


def test_merging_sorts_by_key_and_counts_each_request_once(tmp_path: Path) -> None:
    for numbers in ([5, 3], [1, 3], [4]):
        writer = journal.Journal(tmp_path, "m")
        for number in numbers:
            writer.append(reply(number))
        writer.flush()
    journal.compact(tmp_path, tmp_path / "tmp")
    assert [row["request_id"] for row in rows(tmp_path)] == [f"{n:032x}" for n in (1, 3, 4, 5)]
    assert [Path(part).name for part in journal.parts(tmp_path)] == ["replies-00000.parquet"]
    assert not (tmp_path / "tmp").exists()


def test_an_answer_beats_an_error_and_the_earlier_answer_wins(tmp_path: Path) -> None:
    for each in (reply(1, None, 0), reply(1, "Black", 2), reply(1, "White", 1), reply(2, None)):
        writer = journal.Journal(tmp_path, "m")
        writer.append(each)
        writer.flush()
    journal.compact(tmp_path, tmp_path / "tmp")
    assert [row["raw_response"] for row in rows(tmp_path)] == ["White", None]


def test_merged_replies_and_later_parts_merge_again(tmp_path: Path) -> None:
    for number in (2, 1):
        writer = journal.Journal(tmp_path, "m")
        writer.append(reply(number))
        writer.flush()
        journal.compact(tmp_path, tmp_path / "tmp")
    assert [row["request_id"] for row in rows(tmp_path)] == [f"{n:032x}" for n in (1, 2)]
    assert journal.answered(tmp_path) == {(1).to_bytes(16), (2).to_bytes(16)}


@pytest.mark.parametrize("name", ["try[2]", "model=x", "engine=y"])
def test_folder_names_that_look_like_patterns_or_columns_are_only_names(
    tmp_path: Path, name: str
) -> None:
    for folder in (tmp_path / name, tmp_path / "try2"):
        for number in (1, 2):
            writer = journal.Journal(folder / "replies", "m")
            writer.append(reply(number, folder.name))
            writer.flush()
    before = [row for row in rows(tmp_path / name / "replies")]
    journal.compact(tmp_path / name / "replies", tmp_path / "tmp")
    merged = rows(tmp_path / name / "replies")
    assert merged == sorted(before, key=lambda row: str(row["request_id"]))


def test_a_block_that_raises_leaves_the_old_file(tmp_path: Path) -> None:
    final = tmp_path / "status.json"
    durable.write_text(final, "old")

    def half_written() -> None:
        with durable.replacing(final) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half_written()
    assert final.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
