import errno
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from obstore.store import from_url

from facescan.errors import UsageError
from facescan.storage import Storage, at

if TYPE_CHECKING:
    from tests.s3 import S3

RACERS = 8


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return at(tmp_path / "run")


@pytest.fixture
def remote(object_store: str) -> Storage:
    return at(object_store)


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest) -> Storage:
    chosen: Storage = request.getfixturevalue(request.param)
    return chosen


def test_a_file_is_read_as_it_was_written(folder: Storage) -> None:
    folder.write("a.bin", b"one")
    folder.write("a.bin", b"two")
    assert folder.read("a.bin") == b"two"
    assert folder.exists("a.bin")
    assert folder.names() == ["a.bin"]


def test_what_is_not_there(folder: Storage) -> None:
    assert folder.names() == []
    assert not folder.exists("a.bin")
    assert folder.version("a.bin") is None
    folder.delete("a.bin")
    with pytest.raises(FileNotFoundError, match=f"{folder.location}/a.bin"):
        folder.read("a.bin")
    with pytest.raises(FileNotFoundError, match=f"{folder.location}/a.bin"):
        folder.open("a.bin")


def test_names_are_sorted_and_neither_folders_nor_what_is_in_them(folder: Storage) -> None:
    for name in ("b", "a", "c"):
        folder.write(name, b"")
    folder.below("inside").write("d", b"")
    assert folder.names() == ["a", "b", "c"]
    assert folder.below("inside").names() == ["d"]
    assert not folder.exists("inside")


def test_a_deleted_file_is_gone(folder: Storage) -> None:
    folder.write("a", b"")
    folder.delete("a")
    assert folder.names() == []


def test_an_opened_file_serves_parquet(folder: Storage) -> None:
    table = pa.table({"n": range(10_000)})
    with folder.scratch() as scratch:
        pq.write_table(table, scratch / "a", row_group_size=1000)
        folder.adopt(scratch / "a", "a.parquet")
    with folder.open("a.parquet") as file, pq.ParquetFile(file) as parquet:
        assert parquet.read_row_group(7)["n"][0].as_py() == 7000
        assert parquet.read().equals(table)


def test_an_adopted_file_replaces_and_is_gone_where_it_was(folder: Storage, tmp_path: Path) -> None:
    folder.write("a", b"old")
    finished = tmp_path / "finished"
    finished.write_bytes(b"new")
    folder.adopt(finished, "a")
    assert folder.read("a") == b"new"
    assert not finished.exists()


def test_scratch_is_gone_afterwards_and_shows_nothing(folder: Storage) -> None:
    with folder.scratch() as scratch:
        (scratch / "half").write_bytes(b"x")
        assert folder.names() == []
    assert not scratch.exists()


def test_a_version_changes_with_the_content(folder: Storage) -> None:
    folder.write("a", b"one")
    first = folder.version("a")
    folder.write("a", b"two")
    assert first is not None
    assert folder.version("a") not in (first, None)


def test_swap_creates_only_what_is_not_there(folder: Storage) -> None:
    version = folder.swap("a", b"one", expected=None)
    assert version == folder.version("a")
    assert folder.swap("a", b"two", expected=None) is None
    assert folder.read("a") == b"one"


def test_swap_replaces_only_what_was_seen(folder: Storage) -> None:
    folder.write("other", b"other")
    assert folder.swap("a", b"zero", expected=folder.version("other")) is None
    first = folder.swap("a", b"one", expected=None)
    second = folder.swap("a", b"two", expected=first)
    assert second == folder.version("a")
    assert folder.swap("a", b"three", expected=first) is None
    assert folder.read("a") == b"two"


def test_one_thread_of_many_creates(folder: Storage) -> None:
    for turn in range(20):
        assert _winners(folder, f"a{turn}", None, turn) == 1


def test_one_thread_of_many_replaces(folder: Storage) -> None:
    version = folder.swap("a", b"first", None)
    for turn in range(20):
        assert _winners(folder, "a", version, turn) == 1
        version = folder.version("a")


def _winners(folder: Storage, name: str, expected: str | None, turn: int) -> int:
    ready = threading.Barrier(RACERS)

    def race(number: int) -> str | None:
        ready.wait(30)
        return folder.swap(name, f"turn {turn}, racer {number}".encode(), expected)

    with ThreadPoolExecutor(RACERS) as pool:
        return sum(version is not None for version in pool.map(race, range(RACERS)))


@pytest.mark.slow
def test_processes_that_swap_lose_no_update(folder: Storage) -> None:
    folder.swap("sum", b"0", None)
    with get_context("spawn").Pool(4) as pool:
        pool.map(_add_fifty, [folder] * 4)
    assert folder.read("sum").startswith(b"200 by ")


def _add_fifty(folder: Storage) -> None:
    for _ in range(50):
        while True:
            seen = folder.version("sum")
            total = int(folder.read("sum").split()[0]) + 1
            # Another may have swapped between the two lines above; then `seen` is outdated.
            if folder.swap("sum", f"{total} by {os.getpid()}".encode(), seen):
                break


def test_a_pickled_folder_is_the_same_folder(folder: Storage) -> None:
    folder.write("a", b"one")
    copy = pickle.loads(pickle.dumps(folder))  # noqa: S301 - made on the line itself
    assert copy == folder
    assert copy.read("a") == b"one"


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/etc"])
def test_names_stay_inside_the_folder(folder: Storage, name: str) -> None:
    for use in (folder.below, folder.read, folder.delete, folder.version):
        with pytest.raises(ValueError, match="cannot be a name"):
            use(name)


def test_a_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert at("runs/../mine").location == f"{tmp_path}/mine"
    assert at(Path("mine/")).location == f"{tmp_path}/mine"


@pytest.mark.parametrize("location", ["ftp://host/run", "s3:/bucket/run", Path("s3://bucket/run")])
def test_an_unknown_kind_of_uri_is_refused(location: str | Path) -> None:
    with pytest.raises(UsageError, match=f"^{location}: .* known kind .s3://, gs://, az://"):
        at(location)


@pytest.mark.parametrize("location", ["s3://", "s3:///run", "s3://bucket/../run", "s3://b//run"])
def test_a_uri_without_bucket_or_plain_folders_is_refused(location: str) -> None:
    with pytest.raises(UsageError, match=f"^{location}: needs a bucket"):
        at(location)


def test_a_uri_has_no_slash_at_its_end() -> None:
    assert at("s3://bucket/run/").location == "s3://bucket/run"
    assert at("s3://bucket/").location == "s3://bucket"
    assert at("gs://bucket/run").below("replies").location == "gs://bucket/run/replies"


def test_a_local_folder_needs_no_client_of_object_stores() -> None:
    looked = "import sys, facescan.storage as s; s.at('run'); sys.exit('obstore' in sys.modules)"
    subprocess.run([sys.executable, "-c", looked], check=True)


def test_locally_a_full_disk_is_named_and_changes_nothing(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.write("a", b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for call in ("write_bytes", "os.fsync", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(Path if call == "write_bytes" else os, call.removeprefix("os."), full)
            with pytest.raises(OSError, match=f"No space left on device: '{local.location}"):
                local.write("a", b"new")
    assert local.read("a") == b"old"
    assert os.listdir(local.location) == ["a"]


def test_locally_a_file_of_another_file_system_is_copied(
    local: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = tmp_path / "finished"
    finished.write_bytes(b"new")
    replace = os.replace

    def across(source: Path, target: Path) -> None:
        if Path(source) == finished:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", across)
    local.adopt(finished, "a")
    assert local.read("a") == b"new"
    assert not finished.exists()
    assert os.listdir(local.location) == ["a"]


def test_locally_a_sweep_removes_what_killed_processes_left_and_nothing_else(
    local: Storage,
) -> None:
    local.write("a", b"one")
    version = local.swap("b", b"two", None)
    place = Path(local.location)
    (place / ".a.12345678.tmp").touch()
    (place / ".scratch-abcd").mkdir()
    (place / ".scratch-abcd" / "half").touch()
    local.sweep()
    assert {path.name for path in place.iterdir()} - {".lock"} == {"a", "b"}
    assert local.version("b") == version


def test_locally_a_sweep_of_no_folder_makes_none(local: Storage) -> None:
    local.sweep()
    assert not os.path.exists(local.location)


def test_locally_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    folder = at(tmp_path / "run")
    with pytest.raises(OSError, match=str(tmp_path / "run")):
        folder.names()
    with pytest.raises(OSError, match=str(tmp_path / "run")):
        folder.write("a", b"")


def test_remotely_a_small_file_is_one_put(remote: Storage, s3_server: "S3") -> None:
    before = len(s3_server.requests)
    remote.write("part.parquet", bytes(20 << 20))
    bucket_and_folder = remote.location.removeprefix("s3://")
    assert s3_server.requests[before:] == [f"PUT /{bucket_and_folder}/part.parquet"]


def test_remotely_a_large_file_is_adopted_in_parts_and_read_in_ranges(
    remote: Storage, s3_server: "S3"
) -> None:
    table = pa.table({name: np.random.default_rng(1).random(200_000) for name in "abcdefgh"})
    with remote.scratch() as scratch:
        pq.write_table(table, scratch / "a", row_group_size=20_000)
        size = (scratch / "a").stat().st_size
        remote.adopt(scratch / "a", "a.parquet")
    assert size > 10 << 20
    before = len(s3_server.requests)
    with remote.open("a.parquet") as file, pq.ParquetFile(file) as parquet:
        assert file.size() == size
        assert parquet.read_row_group(7).equals(table.slice(140_000, 20_000))
        assert len(s3_server.requests) - before <= 1 + 2 + 8
        assert parquet.read().equals(table)


def test_remotely_a_file_that_changes_while_it_is_read_is_an_error(remote: Storage) -> None:
    remote.write("a", bytes(9 << 20))
    with remote.open("a") as file:
        file.read(10)
        remote.write("a", b"1" * (9 << 20))
        with pytest.raises(OSError, match=f"{remote.location}/a: .*412"):
            file.read(10)


def test_remotely_an_empty_file_can_be_opened(remote: Storage) -> None:
    remote.write("a", b"")
    with remote.open("a") as file:
        assert file.read() == b""


@pytest.mark.slow
def test_remotely_all_pages_of_a_long_list_are_read(remote: Storage) -> None:
    expected = [f"part-{number:04d}" for number in range(1100)]
    with ThreadPoolExecutor(RACERS) as pool:
        list(pool.map(lambda name: remote.write(name, b""), expected))
    assert remote.names() == expected


@pytest.mark.parametrize("name", ["try[2]", "a b", "a%20b", "ä", "a?b#c", "model=x", "~a*"])
def test_names_with_odd_characters_come_back_as_they_were(folder: Storage, name: str) -> None:
    inside = folder.below(name)
    inside.write(name, b"x")
    assert inside.names() == [name]
    assert inside.read(name) == b"x"
    inside.delete(name)
    assert inside.names() == []


def test_remotely_hidden_files_are_not_listed(remote: Storage) -> None:
    remote.write("a", b"")
    at(f"{remote.location}/.b").write("c", b"")
    obstore.put(from_url("s3://runs"), remote.location.removeprefix("s3://runs/") + "/.d", b"")
    assert remote.names() == ["a"]


def test_remotely_a_swap_whose_answer_is_lost_is_known_to_have_won(
    remote: Storage, s3_server: "S3"
) -> None:
    s3_server.lose_next_answer()
    first = remote.swap("a", b"one", expected=None)
    assert first == remote.version("a")
    s3_server.lose_next_answer()
    second = remote.swap("a", b"two", expected=first)
    assert second == remote.version("a")
    assert second != first


def test_remotely_a_bucket_that_is_not_there_is_named(remote: Storage) -> None:
    elsewhere = at("s3://nowhere/run")
    for use in (elsewhere.names, lambda: elsewhere.write("a", b"")):
        with pytest.raises(OSError, match=r"^s3://nowhere/run.*NoSuchBucket.*") as caught:
            use()
        assert "Debug" not in str(caught.value)


def test_remotely_no_secret_is_pickled(remote: Storage) -> None:
    remote.write("a", b"")
    assert b"secret" not in pickle.dumps(remote)
