"""Replies are on disk under final names only; damage is found; merging loses and doubles none."""

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest

from facescan import durable, storage
from facescan.errors import DataError
from facescan.run import journal
from facescan.run.journal import Journal
from facescan.storage import Storage
from facescan.types import REPLY_SCHEMA, Reply
from tests.facescan.run.replies import NOON, counting, reply, rows, written

SECONDS = 20
"""That a test waits for something that takes none."""


@pytest.fixture(params=["disk", "object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """The folder of replies of a run, in both kinds of storage."""
    if request.param == "disk":
        return storage.at(tmp_path / "replies")
    return storage.at(request.getfixturevalue("object_store")).below("replies")


@pytest.fixture
def on_disk(tmp_path: Path) -> Storage:
    return storage.at(tmp_path / "replies")


class Disturbed:
    """A storage to which something is done before each call of some methods."""

    def __init__(self, inner: Storage, methods: Sequence[str], before: Callable[[], None]) -> None:
        self._inner = inner
        self._methods = methods
        self._before = before

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._methods:
            return found

        def disturbed(*args: Any) -> Any:
            self._before()
            return found(*args)

        return disturbed


def disturbed(inner: Storage, methods: Sequence[str], before: Callable[[], None]) -> Storage:
    return cast(Storage, Disturbed(inner, methods, before))


def fails_at(call: int) -> Callable[[], None]:
    """Raises at that call, counted from 0, and only there."""
    calls = iter(range(1_000_000))

    def before() -> None:
        if next(calls) == call:
            raise OSError("No space left on device")

    return before


def keys(place: Storage) -> list[int]:
    return [int(row["request_id"], 16) for row in counting(place)]


def merged_names(place: Storage) -> list[str]:
    return [name for name in place.names() if name.startswith("replies-")]


def part_names(place: Storage) -> list[str]:
    return [name for name in place.names() if name.startswith("part-")]


def test_replies_come_back_as_they_were_written(place: Storage) -> None:
    name = written(place, [reply(1)])
    (row,) = rows(place)
    assert row["raw_response"] == "White"
    assert row["label_logprobs"] == [("White", -0.5), ("Black", -1.5)]
    assert row["created_at"] == NOON
    with place.open(name) as file:
        assert pq.read_schema(file).equals(REPLY_SCHEMA)
    assert journal.damage(place, name) is None


def test_it_is_time_when_enough_replies_wait(on_disk: Storage) -> None:
    writer = Journal(on_disk, "s", "w")
    due = [writer.append(reply(number)) for number in range(journal.FLUSH_REPLIES)]
    assert due == [False] * (journal.FLUSH_REPLIES - 1) + [True]
    assert on_disk.names() == []
    asyncio.run(writer.durable())
    assert len(rows(on_disk)) == journal.FLUSH_REPLIES
    assert not writer.append(reply(journal.FLUSH_REPLIES))


def test_it_is_time_when_a_reply_has_waited_too_long(
    on_disk: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("facescan.run.journal.time.monotonic", lambda: now[0])
    writer = Journal(on_disk, "s", "w")
    assert not writer.append(reply(1))
    now[0] += journal.FLUSH_SECONDS
    assert not writer.append(reply(2))
    now[0] += 1
    assert writer.append(reply(3))
    asyncio.run(writer.durable())
    assert not writer.append(reply(4))


def test_who_calls_while_a_part_is_written_shares_the_next(on_disk: Storage) -> None:
    entered, leave = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        assert leave.wait(SECONDS)

    writer = Journal(disturbed(on_disk, ["write"], block), "s", "w")

    async def answer(number: int) -> None:
        writer.append(reply(number))
        await writer.durable()
        assert f"{number:032x}" in {row["request_id"] for row in rows(on_disk)}

    async def answer_many() -> None:
        first = asyncio.create_task(answer(0))
        assert await asyncio.to_thread(entered.wait, SECONDS)
        others = [asyncio.create_task(answer(number)) for number in range(1, 50)]
        await asyncio.sleep(0)  # lets each of them begin
        leave.set()
        await asyncio.gather(first, *others)

    asyncio.run(answer_many())
    assert len(on_disk.names()) == 2
    assert keys(on_disk) == list(range(50))


def test_nothing_is_written_where_nothing_waits(on_disk: Storage) -> None:
    writer = Journal(on_disk, "s", "w")
    asyncio.run(writer.durable())
    assert on_disk.names() == []


def test_a_failed_write_leaves_nothing_under_a_final_name_and_keeps_the_replies(
    on_disk: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Journal(on_disk, "s", "w")
    writer.append(reply(1))

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            asyncio.run(writer.durable())
    assert list(Path(on_disk.location).iterdir()) == []
    writer.append(reply(2))
    asyncio.run(writer.durable())
    assert keys(on_disk) == [1, 2]
    assert len(on_disk.names()) == 1


def test_what_waits_is_written_regularly(place: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "FLUSH_SECONDS", 0.01)

    async def wait_for_two_parts() -> None:
        writer = Journal(place, "s", "w")
        regularly = asyncio.create_task(writer.keep_durable())
        until = time.monotonic() + SECONDS
        for number in (1, 2):
            writer.append(reply(number))
            while len(await asyncio.to_thread(place.names)) < number:
                assert not regularly.done()
                assert time.monotonic() < until
        regularly.cancel()
        await asyncio.gather(regularly, return_exceptions=True)

    asyncio.run(wait_for_two_parts())
    assert keys(place) == [1, 2]


def test_a_write_that_fails_ends_the_regular_writing_with_its_reason(
    on_disk: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "FLUSH_SECONDS", 0.01)
    writer = Journal(disturbed(on_disk, ["write"], fails_at(0)), "s", "w")
    writer.append(reply(1))
    with pytest.raises(OSError, match="No space left"):
        asyncio.run(asyncio.wait_for(writer.keep_durable(), SECONDS))
    asyncio.run(writer.durable())
    assert keys(on_disk) == [1]


def write_one_by_one(writer: Journal, numbers: range, size: int = 1) -> None:
    for number in numbers:
        for each in range(size):
            writer.append(reply(number * size + each))
        asyncio.run(writer.durable())


def test_many_small_parts_of_one_writer_become_one(
    place: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_SMALL_PARTS", 4)
    writer = Journal(place, "s", "w")
    write_one_by_one(writer, range(3))
    assert len(place.names()) == 3
    write_one_by_one(writer, range(3, 4))
    assert len(place.names()) == 1
    write_one_by_one(writer, range(4, 9))
    assert len(place.names()) == 3
    assert len(rows(place)) == 9
    assert keys(place) == list(range(9))


def test_parts_that_are_not_small_are_written_once(
    on_disk: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_SMALL_PARTS", 100)
    monkeypatch.setattr(journal, "FLUSH_REPLIES", 5)
    writes: list[None] = []
    writer = Journal(disturbed(on_disk, ["write"], lambda: writes.append(None)), "s", "w")
    write_one_by_one(writer, range(4), size=5)
    assert len(writes) == len(on_disk.names()) == 4


def test_small_parts_are_joined_before_they_hold_much(
    on_disk: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_SMALL_PARTS", 100)
    monkeypatch.setattr(journal, "FLUSH_REPLIES", 5)
    write_one_by_one(Journal(on_disk, "s", "w"), range(3), size=2)
    assert len(on_disk.names()) == 1
    assert keys(on_disk) == list(range(6))


@pytest.mark.parametrize("call", range(5))
def test_an_interrupted_joining_loses_and_doubles_nothing(
    on_disk: Storage, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    monkeypatch.setattr(journal, "_SMALL_PARTS", 3)
    writer = Journal(on_disk, "s", "w")
    write_one_by_one(writer, range(2))
    # Of the third part: its write, the joined part's write, three deletions.
    monkeypatch.setattr(writer, "_storage", disturbed(on_disk, ["write", "delete"], fails_at(call)))
    writer.append(reply(2))
    with pytest.raises(OSError, match="No space left"):
        asyncio.run(writer.durable())
    assert keys(on_disk) == ([0, 1] if call == 0 else [0, 1, 2])
    writer.append(reply(3))
    asyncio.run(writer.durable())
    assert keys(on_disk) == [0, 1, 2, 3]


def test_the_keys_of_one_command_are_told_from_those_of_others(place: Storage) -> None:
    assert journal.answered_in(place, "s") == set()
    written(place, [reply(1), reply(2, None)], session="mine", writer="a")
    written(place, [reply(3)], session="mine", writer="b")
    written(place, [reply(4)], session="other")
    expected = {number.to_bytes(16) for number in (1, 2, 3)}
    assert journal.answered_in(place, "mine") == expected


def test_keys_are_found_while_parts_are_being_joined(
    on_disk: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_SMALL_PARTS", 3)
    writer = Journal(on_disk, "s", "w")
    write_one_by_one(writer, range(2))
    more = iter([range(2, 3)])

    def join() -> None:
        for numbers in more:
            write_one_by_one(writer, numbers)

    # Between the listing of the parts and the opening of the first.
    place = disturbed(on_disk, ["open"], join)
    assert journal.answered_in(place, "s") == {number.to_bytes(16) for number in range(3)}
    assert len(on_disk.names()) == 1, "not joined"


def test_a_journal_that_is_to_stop_leaves_its_parts(
    on_disk: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_SMALL_PARTS", 3)
    writer = Journal(on_disk, "s", "w")
    write_one_by_one(writer, range(2))
    before = set(on_disk.names())
    writer.stop_joining()
    write_one_by_one(writer, range(2, 9))
    assert before < set(on_disk.names())
    assert keys(on_disk) == list(range(9))


def test_merging_sorts_by_key_and_counts_each_request_once(place: Storage) -> None:
    for writer, numbers in enumerate(([5, 3], [1, 3], [4])):
        written(place, map(reply, numbers), writer=f"w{writer}")
    assert journal.files(place).unmerged
    journal.compact(place)
    assert [int(row["request_id"], 16) for row in rows(place)] == [1, 3, 4, 5]
    (name,) = merged_names(place)
    assert place.names() == ["merged.json", name]
    assert journal.damage(place, name) is None
    found = journal.files(place)
    assert (found.names, found.missing, found.left, found.unmerged) == ((name,), (), (), False)


def test_a_merged_folder_is_left_as_it_is(place: Storage) -> None:
    journal.compact(place)
    assert place.names() == []
    written(place, [reply(1)])
    journal.compact(place)
    before = {name: place.version(name) for name in place.names()}
    journal.compact(place)
    assert {name: place.version(name) for name in place.names()} == before


def test_an_answer_beats_an_error_and_the_earlier_answer_wins(on_disk: Storage) -> None:
    for each in (reply(1, None, 0), reply(1, "Black", 2), reply(1, "White", 1), reply(2, None)):
        written(on_disk, [each])
    assert [row["raw_response"] for row in counting(on_disk)] == ["White", None]
    journal.compact(on_disk)
    assert [row["raw_response"] for row in rows(on_disk)] == ["White", None]


def test_merged_replies_and_later_parts_merge_again(place: Storage) -> None:
    for number in (2, 1):
        written(place, [reply(number)])
        journal.compact(place)
    assert [int(row["request_id"], 16) for row in rows(place)] == [1, 2]
    written(place, [reply(2, None)])
    journal.compact(place)
    assert [row["error"] for row in rows(place)] == [None, None]
    assert len(merged_names(place)) == 1
    assert part_names(place) == []


def test_large_runs_have_several_merged_files_without_gaps(
    on_disk: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_ROWS_PER_FILE", 4)
    monkeypatch.setattr(journal, "_ROWS_PER_GROUP", 2)
    numbers = list(range(10))
    random.Random(0).shuffle(numbers)
    written(on_disk, map(reply, numbers))
    journal.compact(on_disk)
    assert [name[:13] for name in merged_names(on_disk)] == [f"replies-{n:05d}" for n in range(3)]
    assert [int(row["request_id"], 16) for row in rows(on_disk)] == list(range(10))


def test_equal_replies_are_merged_into_equal_files(tmp_path: Path) -> None:
    numbers = list(range(200))
    for folder in ("one", "other"):
        place = storage.at(tmp_path / folder)
        random.Random(folder).shuffle(numbers)
        for start in range(0, 200, 50 if folder == "one" else 23):
            written(place, map(reply, numbers[start : start + 50]))
        journal.compact(place)
    one, other = (storage.at(tmp_path / folder) for folder in ("one", "other"))
    assert merged_names(one) == merged_names(other)
    (name,) = merged_names(one)
    assert one.read(name) == other.read(name)


def several_files_to_merge(place: Storage) -> None:
    """Merged files, parts that are not in them, and keys that stand in both."""
    written(place, map(reply, range(5)))
    journal.compact(place)
    written(place, map(reply, range(4, 8)), writer="a")
    written(place, [reply(2, None), reply(8), reply(9)], writer="b")


@pytest.mark.slow
@pytest.mark.parametrize("begin", ["new", "merged before"])
def test_an_interruption_at_any_step_of_merging_loses_and_doubles_nothing(
    place: Storage, monkeypatch: pytest.MonkeyPatch, begin: str
) -> None:
    monkeypatch.setattr(journal, "_ROWS_PER_FILE", 4)
    monkeypatch.setattr(journal, "_ROWS_PER_GROUP", 2)
    states = set[str]()
    interrupted = True
    for step in range(100):
        folder = place.below(f"{step}")
        if begin == "new":
            written(folder, map(reply, range(6)), writer="a")
            written(folder, map(reply, range(3, 10)), writer="b")
        else:
            several_files_to_merge(folder)
        expected = counting(folder)
        assert [int(row["request_id"], 16) for row in expected] == list(range(10))
        dying = disturbed(folder, ["adopt", "swap", "write", "delete"], fails_at(step))
        try:
            journal.compact(dying)
            interrupted = False
        except OSError:
            pass  # the next command goes on from here
        found = journal.files(folder)
        states.add(f"{len(merged_names(folder))} {len(part_names(folder))} {found.unmerged}")
        assert counting(folder) == expected
        journal.compact(folder)
        assert rows(folder) == expected
        assert len(merged_names(folder)) == 3
        assert part_names(folder) == []
        assert journal.files(folder).left == ()
        if not interrupted:
            break
    # Nothing done, each merged file, merged.json, each deletion, all done.
    assert not interrupted
    assert step == (6 if begin == "new" else 7)
    assert len(states) >= 6


def test_where_somebody_else_has_merged_meanwhile_nothing_is_deleted(place: Storage) -> None:
    several_files_to_merge(place)
    expected = counting(place)
    other = iter([True])

    def other_driver_is_faster() -> None:
        if next(other, False):
            place.swap(
                journal.MERGED,
                place.read(journal.MERGED).replace(b'"files"', b' "files"'),
                place.version(journal.MERGED),
            )

    parts = part_names(place)
    journal.compact(disturbed(place, ["swap"], other_driver_is_faster))
    assert part_names(place) == parts
    assert counting(place) == expected
    journal.compact(place)
    assert rows(place) == expected


@pytest.mark.parametrize("name", ["try[2]", "model=x", "engine=y", "50%", "a b"])
def test_folder_names_that_look_like_patterns_or_columns_are_only_names(
    tmp_path: Path, name: str
) -> None:
    for folder in (tmp_path / name, tmp_path / "try2"):
        for number in (2, 1):
            written(storage.at(folder / "replies"), [reply(number, folder.name)])
    place = storage.at(tmp_path / name / "replies")
    expected = counting(place)
    journal.compact(place)
    assert rows(place) == expected
    assert {row["raw_response"] for row in expected} == {name}


def varied(number: int) -> Reply:
    """Unlike any other, so that a part of many is not small."""
    return reply(random.Random(number).getrandbits(128), f"answer {number}", number)


def test_a_part_that_was_cut_anywhere_in_its_last_4_kb_is_found_out(on_disk: Storage) -> None:
    written(on_disk, map(varied, range(50)), writer="a")
    newest = written(on_disk, map(varied, range(50, 400)), writer="b")
    path = Path(on_disk.location, newest)
    whole = path.read_bytes()
    assert len(whole) > 2 * 4096
    found = 0
    for size in reversed(range(len(whole) - 4096, len(whole))):
        os.truncate(path, size)
        found += journal.damage(on_disk, newest) is not None
    assert found == 4096
    path.write_bytes(whole)
    assert journal.damage(on_disk, newest) is None


def test_a_part_with_one_bit_flipped_at_any_byte_is_found_out(on_disk: Storage) -> None:
    name = written(on_disk, map(varied, range(3)))
    path = Path(on_disk.location, name)
    whole = path.read_bytes()
    draw = random.Random(0)
    found = 0
    with path.open("r+b", buffering=0) as file:
        for position, byte in enumerate(whole):
            os.pwrite(file.fileno(), bytes([byte ^ 1 << draw.randrange(8)]), position)
            found += journal.damage(on_disk, name) is not None
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert found == len(whole) > 1000
    assert journal.damage(on_disk, name) is None


def test_a_damaged_part_is_set_aside_and_its_keys_are_open_again(place: Storage) -> None:
    written(place, map(reply, range(5)), writer="good")
    name = written(place, map(reply, range(4, 9)), writer="bad")
    cut = place.read(name)[:-100]
    place.write(name, cut)
    ((found, reason),) = journal.set_damaged_aside(place).items()
    assert found == name
    assert "it was cut or altered" in reason
    assert keys(place) == [0, 1, 2, 3, 4]
    assert place.below(journal.DAMAGED).read(name) == cut
    assert journal.set_damaged_aside(place) == {}
    written(place, map(reply, range(5, 9)), writer="again")
    journal.compact(place)
    assert keys(place) == list(range(9))


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_merged_file_that_is_damaged_or_gone_counts_no_more_and_the_others_do(
    place: Storage, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    monkeypatch.setattr(journal, "_ROWS_PER_FILE", 2)
    monkeypatch.setattr(journal, "_ROWS_PER_GROUP", 2)
    written(place, map(reply, range(6)))
    journal.compact(place)
    name = merged_names(place)[1]
    if harm == "cut":
        place.write(name, place.read(name)[:-1])
    else:
        place.delete(name)
        assert journal.files(place).missing == (name,)
    assert list(journal.set_damaged_aside(place)) == [name]
    assert journal.files(place).missing == ()
    assert keys(place) == [0, 1, 4, 5]
    written(place, [reply(2), reply(3)])
    journal.compact(place)
    assert keys(place) == list(range(6))
    assert part_names(place) == []


def test_parts_still_there_count_again_where_the_file_they_went_into_is_damaged(
    on_disk: Storage,
) -> None:
    written(on_disk, map(reply, range(5)), writer="a")
    written(on_disk, map(reply, range(5, 9)), writer="b")
    with pytest.raises(OSError, match="No space left"):
        journal.compact(disturbed(on_disk, ["delete"], fails_at(0)))
    (name,) = merged_names(on_disk)
    on_disk.write(name, b"")
    assert list(journal.set_damaged_aside(on_disk)) == [name]
    assert keys(on_disk) == list(range(9))
    journal.compact(on_disk)
    assert keys(on_disk) == list(range(9))
    assert part_names(on_disk) == []


def test_a_file_that_facescan_has_not_written_is_damage(on_disk: Storage) -> None:
    name = written(on_disk, [reply(1)])
    for strange in ("mine.parquet", "part-s-w-000001.parquet"):
        on_disk.write(strange, on_disk.read(name))
        assert "the name has no checksum" in str(journal.damage(on_disk, strange))
    sink = Path(on_disk.location, "other.parquet")
    pq.write_table(journal.table([reply(1)]).select(["request_id"]), sink)
    with sink.open("rb") as file:
        digest = journal._digest([file.read()])
    other = f"part-s-w-000000-{digest}.parquet"
    sink.rename(sink.parent / other)
    assert "other columns than a reply has: request_id" in str(journal.damage(on_disk, other))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"files": 3, "parts": []}'])
def test_a_damaged_record_of_merging_is_said_clearly_and_deleting_it_loses_nothing(
    place: Storage, content: bytes
) -> None:
    several_files_to_merge(place)
    expected = counting(place)
    place.write(journal.MERGED, content)
    for reads in (journal.files, journal.set_damaged_aside, journal.compact):
        with pytest.raises(DataError, match=r"merged\.json: damaged: .*Delete it"):
            reads(place)
    place.delete(journal.MERGED)
    assert counting(place) == expected
    journal.compact(place)
    assert rows(place) == expected


def test_a_block_that_raises_leaves_the_old_file(tmp_path: Path) -> None:
    final = tmp_path / "status.json"
    final.write_text("old")

    def half_written() -> None:
        with durable.replacing(final) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half_written()
    assert final.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_file_that_somebody_else_put_there_is_not_deleted(tmp_path: Path) -> None:
    place = storage.at(tmp_path)
    several_files_to_merge(place)
    journal.compact(place)
    (tmp_path / "notes.parquet").write_bytes(b"mine")
    journal.compact(place)
    assert (tmp_path / "notes.parquet").read_bytes() == b"mine"
    assert journal.files(place).left == ()
