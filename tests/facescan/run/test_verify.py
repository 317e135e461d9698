"""Every kind of loss, doubling and alteration of a run is found, and an intact run passes."""

import asyncio
import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from facescan import shards
from facescan.run import journal, manifest, predictions, verify
from facescan.run.folder import LEASE, RunFolder, existing
from facescan.run.lease import Holder, hold
from facescan.run.ledger import Ledger, Session
from facescan.run.manifest import Combination, DatasetRecord, Manifest
from facescan.run.selection import Selection, sample
from facescan.run.verify import Check
from facescan.shards import Shards
from facescan.storage import LocalStorage
from facescan.types import FinishReason, Outcome, Reply, request_id
from tests.conftest import MakeShards, jpeg

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LABELS = {"race": ("race-7", "White"), "gender": ("gender-2", "Female")}
RACE = "fake.neutral.race.parquet"


def combination(attribute: str, protocol: str = "neutral") -> Combination:
    label_set, label = LABELS[attribute]
    return Combination(
        model="fake",
        protocol=protocol,
        attribute=attribute,
        label_set=label_set,
        answer_mode="free",
        prompt=f"{attribute}?",
        max_tokens=16,
        temperature=0.0,
        offered={label: label},
        question=f"the identity of {attribute}",
        checkpoint=None,
        preprocessing="none",
        engine="fake",
        numerics={},
    )


def reply(key: str, minutes: int = 0, failed: bool = False) -> Reply:
    return Reply(
        request_id=key,
        raw_response=None if failed else "White",
        finish_reason=None if failed else FinishReason.STOP,
        engine="fake 0",
        resolved_model="fake",
        created_at=NOON + timedelta(minutes=minutes),
        latency_s=0.25,
        error_kind=Outcome.ENGINE_ERROR if failed else None,
        error="died" if failed else None,
    )


def write_part(folder: RunFolder, session: str, replies: Iterable[Reply]) -> None:
    writer = journal.Journal(folder.replies, session, "a")
    for each in replies:
        writer.append(each)
    asyncio.run(writer.durable())


def keys(data: Shards, selection: Selection) -> list[str]:
    rows = [row for batch in data.labels() for row in batch.to_pylist()]
    return [
        request_id(combination(attribute).question, row["image_sha256"])
        for attribute in LABELS
        for row in rows
        if selection.taken([row["image_id"]])[0]
    ]


def build(folder: RunFolder) -> None:
    record = manifest.read(folder)
    data = shards.open(record.dataset.location, record.dataset.split)
    ids = (row["image_id"] for batch in data.labels() for row in batch.to_pylist())
    selection = sample(ids, record.dataset.limit, record.dataset.seed)
    predictions.build(folder, data, selection, manifest.questions(record))


@pytest.fixture
def make_run(tmp_path: Path, make_shards: MakeShards) -> Callable[..., RunFolder]:
    """Makes a run about 12 of 20 pictures, of which two are equal; some errors are among it."""

    def make(unanswered: int = 0, merge: bool = True) -> RunFolder:
        data = shards.open(str(make_shards(20, data={0: jpeg(1)})))
        folder = RunFolder(LocalStorage(str(tmp_path / "run")))
        Manifest(
            facescan="0",
            created_at=NOON,
            dataset=DatasetRecord(
                location=data.location,
                digest=data.digest,
                names=list(data.datasets),
                split=None,
                label_sets=dict(data.label_sets),
                images=data.rows,
                seed=1,
                limit=12,
                max_bytes=1,
                max_pixels=1,
                min_side=1,
            ),
            combinations=[combination(attribute) for attribute in LABELS],
            packages={},
            hardware={},
        ).write(folder)
        ids = [f"image-{number:04d}" for number in range(20)]
        asked = sorted(set(keys(data, sample(ids, 12, 1))))
        replies = [reply(key, 0, number % 5 == 0) for number, key in enumerate(asked)]
        write_part(folder, "first", replies[unanswered:])
        if merge:
            journal.compact(folder.replies)
            build(folder)
        return folder

    return make


def checked(folder: RunFolder) -> dict[str, Check]:
    return {check.name: check for check in verify.checks(folder, NOON)}


def faults(folder: RunFolder) -> dict[str, tuple[str, ...]]:
    return {name: check.faults for name, check in checked(folder).items() if check.faults}


def the_file(place: Any, prefix: str) -> Path:
    (path,) = Path(place.location).glob(f"{prefix}*.parquet")
    return path


def alter(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path, compression="zstd")


def with_cell(table: pa.Table, column: str, value: object, row: int = 0) -> pa.Table:
    cells = table.column(column).to_pylist()
    cells[row] = value
    index, field = table.schema.get_field_index(column), table.schema.field(column)
    return table.set_column(index, field, pa.array(cells, field.type))


def test_an_intact_run_passes_and_is_left_as_it_was(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run()
    root = Path(folder.root.location)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    found = checked(folder)
    assert {name: (check.faults, check.notes) for name, check in found.items()} == {
        name: ((), ())
        for name in ("lease", "replies", "keys", "manifest", "dataset", "requests", "predictions")
    }
    rows = pq.read_table(root / "predictions" / RACE)
    distinct = pc.count_distinct(rows.column("request_id")).as_py()
    assert rows.num_rows == 12
    assert found["requests"].found is not None
    assert found["requests"].found.startswith(f"asked: {2 * distinct}; ")
    assert found["predictions"].found == "rows: 24, in files: 2"
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_ledger_that_accounts_for_less_than_the_replies_cost_is_a_fault(
    make_run: Callable[..., RunFolder],
) -> None:
    folder = make_run()
    paid = replace(reply("0" * 32), cost_usd=0.5)
    write_part(folder, "second", [paid])
    book = Ledger(folder.ledger, "second")
    asyncio.run(book.reserve("0", 0.5))
    found = checked(folder)["ledger"]
    assert not found.faults
    assert "1 calls that were in flight" in found.notes[0]
    folder.ledger.write(
        "second.json", Session(settled_usd=0.25, calls=1).model_dump_json().encode()
    )
    assert (
        "have cost $0.5000, more than the ledger's $0.2500" in checked(folder)["ledger"].faults[0]
    )
    folder.ledger.write("second.json", b"{")
    assert "damaged" in checked(folder)["ledger"].faults[0]


def test_protocols_that_ask_the_same_share_their_replies(
    make_run: Callable[..., RunFolder],
) -> None:
    folder = make_run()
    record = manifest.read(folder)
    record.combinations.append(combination("race", protocol="again"))
    record.write(folder)
    build(folder)
    assert faults(folder) == {}


def damage(folder: RunFolder) -> tuple[str, ...]:
    return next(c.faults for c in verify.checks(folder, NOON) if c.name == "replies")


@pytest.mark.parametrize("merge", [True, False])
def test_a_flipped_bit_anywhere_in_a_file_of_replies_is_found(
    make_run: Callable[..., RunFolder], merge: bool
) -> None:
    folder = make_run(merge=merge)
    path = the_file(folder.replies, "replies-" if merge else "part-")
    whole = path.read_bytes()
    positions = random.Random(3)
    for _ in range(200):
        data = bytearray(whole)
        data[positions.randrange(len(data))] ^= 1 << positions.randrange(8)
        path.write_bytes(data)
        (fault,) = damage(folder)
        assert fault.startswith(f"{path.name}: checksum ")
    path.write_bytes(whole)
    assert damage(folder) == ()


def test_a_part_that_was_cut_at_any_byte_of_its_last_4_kb_is_found(
    make_run: Callable[..., RunFolder],
) -> None:
    folder = make_run(merge=False)
    part = the_file(folder.replies, "part-")
    whole = part.read_bytes()
    for kept in range(max(0, len(whole) - 4096), len(whole)):
        part.write_bytes(whole[:kept])
        (fault,) = damage(folder)
        assert fault.startswith(f"{part.name}: checksum ")


@pytest.mark.parametrize("merge", [True, False])
def test_what_damaged_replies_held_has_no_reply_until_it_is_asked_again(
    make_run: Callable[..., RunFolder], merge: bool
) -> None:
    folder = make_run(merge=merge)
    path = the_file(folder.replies, "replies-" if merge else "part-")
    whole = path.read_bytes()
    for kept in (0, len(whole) // 2):
        path.write_bytes(whole[:kept])
        found = checked(folder)
        (fault,) = found["replies"].faults
        assert fault.startswith(f"{path.name}: checksum ")
        assert "incomplete: requests without a reply yet: " in found["requests"].notes[0]
        assert found["predictions"].found is None
    path.write_bytes(whole)
    assert faults(folder) == {}


def test_a_merged_file_that_is_gone_is_found(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run()
    path = the_file(folder.replies, "replies-")
    path.unlink()
    assert faults(folder) == {"replies": (f"{path.name}: merged, and it is gone",)}


def test_a_file_that_is_no_file_of_replies_is_found(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run(merge=False)
    other = journal.put(folder.replies, "part-x-a-000000", pa.table({"cat": ["meow"]}))
    folder.replies.write("mine.parquet", b"")
    name, columns = faults(folder)["replies"]
    assert name == "mine.parquet: the name has no checksum; facescan has not written this file"
    assert columns == f"{other}: other columns than a reply has: cat"


def test_a_record_of_merging_that_is_damaged_is_found(
    make_run: Callable[..., RunFolder],
) -> None:
    folder = make_run()
    record = folder.replies.read(journal.MERGED)
    folder.replies.write(journal.MERGED, record[: len(record) // 2])
    found = checked(folder)
    assert "merged.json: damaged" in found["replies"].faults[0]
    assert [name for name, check in found.items() if check.found is None] == [
        "replies",
        "keys",
        "requests",
        "predictions",
    ]


def test_files_left_by_an_interruption_are_only_noted(
    make_run: Callable[..., RunFolder],
) -> None:
    folder = make_run()
    left = journal.put(folder.replies, "replies-00009", journal.table([reply("0" * 32)]))
    found = checked(folder)
    assert not any(check.faults for check in found.values())
    assert f"1 ({left})" in found["replies"].notes[0]


def test_two_replies_to_one_request_are_a_fault_once_all_is_merged(
    make_run: Callable[..., RunFolder],
) -> None:
    folder = make_run()
    path = the_file(folder.replies, "replies-")
    table = pq.read_table(path)
    merged = journal.put(folder.replies, "replies-00000", pa.concat_tables([table, table[:2]]))
    path.unlink()
    record = folder.replies.read(journal.MERGED).decode()
    folder.replies.write(journal.MERGED, record.replace(path.name, merged).encode())
    first, second = table.column("request_id")[:2].to_pylist()
    assert faults(folder) == {
        "keys": (f"requests with more than one reply: 2 ({first}, {second})",)
    }


def test_two_replies_to_one_request_are_noted_before_all_is_merged(
    make_run: Callable[..., RunFolder],
) -> None:
    folder = make_run(merge=False)
    (path,) = journal.files(folder.replies).names
    key = pq.read_table(folder.replies.open(path)).column("request_id")[0].as_py()
    write_part(folder, "second", [reply(key, 5)])
    found = checked(folder)
    assert not any(check.faults for check in found.values())
    assert found["keys"].notes == (
        f"requests with more than one reply: 1 ({key}); merging settles it",
    )


def test_requests_without_a_reply_make_a_run_incomplete_and_are_no_fault(
    make_run: Callable[..., RunFolder],
) -> None:
    folder = make_run(unanswered=5)
    found = checked(folder)
    assert not any(check.faults for check in found.values())
    (note,) = found["requests"].notes
    assert note.startswith("incomplete: requests without a reply yet: 5 (")
    assert note.endswith(", ...); the same `facescan run` command again continues")
    assert found["predictions"].found == "rows: 24, in files: 2"


def test_a_reply_to_what_nobody_asked_is_found(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run()
    stranger = "f" * 32
    write_part(folder, "second", [reply(stranger)])
    assert faults(folder) == {"requests": (f"replies to what nobody asked: 1 ({stranger})",)}
    journal.compact(folder.replies)
    assert faults(folder) == {"requests": (f"replies to what nobody asked: 1 ({stranger})",)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda table: table[1:], "images without a row: 1 ({first})"),
        (
            lambda table: pa.concat_tables([table, table[:1]]),
            "images with more than one row: 1 ({first})",
        ),
        (
            lambda table: pa.concat_tables([table, with_cell(table[:1], "image_id", "image-none")]),
            "rows of what nobody asked: 1 (image-none)",
        ),
        (
            lambda table: pa.concat_tables([table, with_cell(table[:1], "person", 1)]),
            "rows of what nobody asked: 1 ({first})",
        ),
        (
            lambda table: with_cell(table, "request_id", "0" * 32),
            "rows with another request_id: 1 ({first}: '" + "0" * 32 + "', expected '{key}')",
        ),
        (
            lambda table: with_cell(table, "model", "other"),
            "rows with another model: 1 ({first}: 'other', expected 'fake')",
        ),
        (
            lambda table: with_cell(table, "target", "Indian"),
            "rows with another target: 1 ({first}: 'Indian', expected '{target}')",
        ),
        (lambda table: table.drop_columns(["label"]), "other columns than predictions have: "),
    ],
)
def test_predictions_that_are_missing_doubled_or_altered_are_found(
    make_run: Callable[..., RunFolder], change: Callable[[pa.Table], pa.Table], expected: str
) -> None:
    folder = make_run()
    path = Path(folder.predictions.location, RACE)
    row = pq.read_table(path)[:1].to_pylist()[0]
    alter(path, change)
    found = faults(folder)
    assert list(found) == ["predictions"]
    expected = expected.format(first=row["image_id"], key=row["request_id"], target=row["target"])
    assert found["predictions"][0].startswith(f"{RACE}: {expected}")
    assert len(found["predictions"]) == 1


@pytest.mark.parametrize("outcome", ["pending", "engine_error", "answered"])
def test_an_outcome_that_is_not_what_became_of_the_request_is_found(
    make_run: Callable[..., RunFolder], outcome: str
) -> None:
    folder = make_run(unanswered=8)
    path = Path(folder.predictions.location, RACE)
    rows = pq.read_table(path).column("outcome").to_pylist()
    wrong = [number for number, each in enumerate(rows) if each != outcome]
    assert {"pending", "engine_error", "answered"} <= set(rows)
    for number in wrong:
        alter(path, partial(with_cell, column="outcome", value=outcome, row=number))
    (fault,) = faults(folder)["predictions"]
    assert fault.startswith(f"{RACE}: rows with another outcome: {len(wrong)} (image-")
    assert f": '{outcome}', expected '{rows[wrong[0]]}'" in fault


def test_a_label_that_the_reply_does_not_say_is_found(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run()
    path = Path(folder.predictions.location, RACE)
    answered = pq.read_table(path).column("label").to_pylist().index("White")
    alter(path, lambda table: with_cell(table, "label", "Black", answered))
    (fault,) = faults(folder)["predictions"]
    assert fault.startswith(f"{RACE}: rows with another label: 1 (")
    assert fault.endswith(": 'Black', expected 'White')")


def test_rows_of_another_parser_are_to_be_built_anew(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run()
    path = Path(folder.predictions.location, RACE)
    alter(path, lambda t: with_cell(with_cell(t, "parser_version", "0"), "outcome", "unparsed"))
    check = checked(folder)["predictions"]
    (fault,) = check.faults
    assert fault.startswith(f"{RACE}: rows with another parser_version: 1 (")
    assert "the same `facescan run` command again builds the predictions anew" in check.notes[0]


def test_files_of_predictions_that_are_gone_damaged_or_strange_are_found(
    make_run: Callable[..., RunFolder],
) -> None:
    folder = make_run()
    place = Path(folder.predictions.location)
    shutil.copy(place / RACE, place / "other.neutral.race.parquet")
    (place / RACE).write_bytes((place / RACE).read_bytes()[:-100])
    (place / "fake.neutral.gender.parquet").unlink()
    gone, damaged, strange = sorted(faults(folder)["predictions"])
    assert gone == "fake.neutral.gender.parquet: it is not there"
    assert damaged.startswith(f"{RACE}: cannot be read: ")
    assert strange == "other.neutral.race.parquet: nobody asked what is in it"


def test_an_image_that_the_builder_itself_forgets_is_found(
    make_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = predictions._asked

    def forgetful(*arguments: Any) -> Any:
        return (batch[1:] for batch in asked(*arguments))

    monkeypatch.setattr(predictions, "_asked", forgetful)
    assert f"{RACE}: rows of 11 images of 12" in faults(make_run())["predictions"]


def test_a_dataset_that_is_gone_is_said_and_what_cannot_be_checked(
    make_run: Callable[..., RunFolder],
) -> None:
    folder = make_run()
    shutil.rmtree(manifest.read(folder).dataset.location)
    found = checked(folder)
    assert list(faults(folder)) == ["dataset"]
    assert "Without the dataset nobody can say what was to be asked" in found["dataset"].faults[0]
    assert found["requests"].found is None
    assert found["predictions"].found is None
    assert found["keys"].found is not None


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_dataset_with_other_rows_is_found(
    make_run: Callable[..., RunFolder], make_shards: MakeShards, with_manifest: bool
) -> None:
    folder = make_run()
    place = Path(manifest.read(folder).dataset.location)
    other = make_shards(20, name="other", data={5: jpeg(77)})
    for path in other.iterdir():
        if with_manifest or path.name != shards.MANIFEST:
            shutil.copy(path, place / path.name)
    (fault,) = faults(folder)["dataset"]
    assert fault.startswith(f"{place}: other rows than those asked about: digest ")


def test_a_drawn_dataset_is_found_in_a_run_folder_that_was_moved(
    make_run: Callable[..., RunFolder], tmp_path: Path
) -> None:
    folder = make_run()
    record = manifest.read(folder)
    Path(folder.root.location, "shards").mkdir()
    shutil.move(record.dataset.location, Path(folder.root.location, "shards", "sample-1-12"))
    dataset = {"digest": "sample:0:1", "location": str(tmp_path / "run/shards/sample-1-12")}
    record.model_copy(update={"dataset": record.dataset.model_copy(update=dataset)}).write(folder)
    shutil.move(folder.root.location, tmp_path / "moved")
    moved = existing(str(tmp_path / "moved"))
    assert faults(moved) == {}
    assert checked(moved)["predictions"].found == "rows: 24, in files: 2"
    shutil.rmtree(tmp_path / "moved" / "shards")
    assert list(faults(moved)) == ["dataset"]


def test_a_damaged_manifest_is_found(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run()
    folder.root.write("manifest.json", folder.root.read("manifest.json")[:200])
    found = faults(folder)
    assert list(found) == ["manifest"]
    assert "manifest.json: damaged" in found["manifest"][0]


def test_who_is_at_work_is_said_and_what_it_has_not_done_is_no_fault(
    make_run: Callable[..., RunFolder],
) -> None:
    folder = make_run(unanswered=3)
    shutil.rmtree(folder.predictions.location)
    with hold(folder.root):
        found = checked(folder)
    assert not any(check.faults for check in found.values())
    assert found["lease"].found is not None
    assert found["lease"].found.startswith("a command is working on this run: process ")
    assert found["predictions"].found is None
    assert list(faults(folder)) == ["predictions"]


def test_what_a_killed_command_has_not_done_is_no_fault(
    make_run: Callable[..., RunFolder],
) -> None:
    folder = make_run(unanswered=3)
    shutil.rmtree(folder.predictions.location)
    with hold(folder.root):
        holder = Holder.model_validate_json(folder.root.read(LEASE))
    killed = holder.model_copy(update={"host": "elsewhere", "renewed": NOON - timedelta(hours=1)})
    folder.root.write(LEASE, killed.model_dump_json().encode())
    found = checked(folder)
    assert not any(check.faults for check in found.values())
    assert found["lease"].found == "nobody is working on this run"
    assert found["lease"].notes[0].startswith("the last command was killed: process ")
    assert "the same `facescan run` command again does" in found["predictions"].notes[0]


def test_a_damaged_lease_is_found(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run()
    folder.root.write(LEASE, b"{")
    assert list(faults(folder)) == ["lease"]


def test_a_run_on_an_object_store_is_verified_like_one_on_a_disk(
    make_run: Callable[..., RunFolder], object_store: str
) -> None:
    from facescan import storage

    local, remote = make_run(), RunFolder(storage.at(object_store))
    for source, target in (
        (local.root, remote.root),
        (local.replies, remote.replies),
        (local.predictions, remote.predictions),
    ):
        for name in source.names():
            target.write(name, source.read(name))
    assert checked(remote) == checked(local)
    remote.predictions.delete(RACE)
    assert faults(remote) == {"predictions": (f"{RACE}: it is not there",)}
