import errno
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facescan.errors import UsageError
from facescan.storage import LocalStorage, Storage, at

RACERS = 8


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return at(tmp_path / "run")


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
    assert folder.swap("a", b"zero", expected="no such version") is None
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
    assert folder.read("sum") == b"200"


def _add_fifty(folder: Storage) -> None:
    for _ in range(50):
        while True:
            seen = folder.version("sum")
            total = int(folder.read("sum")) + 1
            # Another may have swapped between the two lines above; then `seen` is outdated.
            if folder.swap("sum", str(total).encode(), seen):
                break


def test_a_pickled_folder_is_the_same_folder(folder: Storage) -> None:
    folder.write("a", b"one")
    copy = pickle.loads(pickle.dumps(folder))  # noqa: S301
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


def test_an_unknown_kind_of_uri_is_refused() -> None:
    with pytest.raises(UsageError, match=r"ftp://host/run: 'ftp://' is not known"):
        at("ftp://host/run")


def test_locally_a_full_disk_is_named_and_changes_nothing(
    folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("a", b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for call in ("write_bytes", "os.fsync", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(Path if call == "write_bytes" else os, call.removeprefix("os."), full)
            with pytest.raises(OSError, match=f"No space left on device: '{folder.location}"):
                folder.write("a", b"new")
    assert folder.read("a") == b"old"
    assert os.listdir(folder.location) == ["a"]


def test_locally_a_file_of_another_file_system_is_copied(
    folder: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = tmp_path / "finished"
    finished.write_bytes(b"new")
    replace = os.replace

    def across(source: Path, target: Path) -> None:
        if Path(source) == finished:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", across)
    folder.adopt(finished, "a")
    assert folder.read("a") == b"new"
    assert not finished.exists()
    assert os.listdir(folder.location) == ["a"]


def test_locally_a_sweep_removes_what_killed_processes_left_and_nothing_else(
    folder: Storage,
) -> None:
    folder.write("a", b"one")
    version = folder.swap("b", b"two", None)
    place = Path(folder.location)
    (place / ".a.12345678.tmp").touch()
    (place / ".scratch-abcd").mkdir()
    (place / ".scratch-abcd" / "half").touch()
    folder.sweep()
    assert {path.name for path in place.iterdir()} - {".lock"} == {"a", "b"}
    assert folder.version("b") == version


def test_locally_a_sweep_of_no_folder_makes_none(folder: Storage) -> None:
    folder.sweep()
    assert not os.path.exists(folder.location)


def test_locally_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    folder = LocalStorage(str(tmp_path / "run"))
    with pytest.raises(OSError, match=str(tmp_path / "run")):
        folder.names()
    with pytest.raises(OSError, match=str(tmp_path / "run")):
        folder.write("a", b"")
