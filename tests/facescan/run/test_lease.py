"""Of several that want a run folder one gets it, and what a dead one has left is taken over."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from facescan import storage
from facescan.errors import FacescanError, RunInUse
from facescan.run import lease
from facescan.run.folder import LEASE
from facescan.run.lease import Holder, Lease
from facescan.storage import Storage

SECONDS = 60
"""That a test waits for what takes a moment."""


@pytest.fixture(params=["disk", "object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "disk":
        return storage.at(tmp_path / "run")
    return storage.at(request.getfixturevalue("object_store"))


@pytest.fixture
def on_disk(tmp_path: Path) -> Storage:
    return storage.at(tmp_path / "run")


def holder(place: Storage) -> Holder:
    return Holder.model_validate_json(place.read(LEASE))


def left_by(place: Storage, seconds_ago: float = 0, **changes: Any) -> None:
    """Put a lease there, by default of a process of this host that has another start time."""
    then = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    left = Holder(
        lease="theirs",
        host=socket.gethostname(),
        processes=lease.processes(),
        pid=os.getpid(),
        started="1",
        since=then,
        renewed=then,
    ).model_copy(update=changes)
    place.write(LEASE, left.model_dump_json().encode())


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextmanager
def another_process(code: str, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """A Python that has imported `lease` and `storage`; killed at the end."""
    start = "import sys\nfrom facescan import storage\nfrom facescan.run import lease\n"
    process = subprocess.Popen(
        [sys.executable, "-c", start + code, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_lease_is_held_and_given_back(place: Storage) -> None:
    for _ in range(2):
        with lease.hold(place) as held:
            held.check()
            mine = holder(place)
            assert (mine.pid, mine.host) == (os.getpid(), socket.gethostname())
        assert not place.exists(LEASE)


def test_it_is_given_back_where_the_work_fails(place: Storage) -> None:
    with pytest.raises(ZeroDivisionError), lease.hold(place):
        raise ZeroDivisionError
    assert not place.exists(LEASE)


def test_who_comes_second_is_told_who_holds_it(place: Storage) -> None:
    with lease.hold(place):
        before = place.read(LEASE)
        whom = f"another command .*: process {os.getpid()} on {socket.gethostname()}, since 20"
        with pytest.raises(RunInUse, match=whom), lease.hold(place):
            pass
        assert place.read(LEASE) == before


def test_the_lease_of_a_killed_process_is_taken_over_at_once(place: Storage) -> None:
    code = (
        "with lease.hold(storage.at(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with another_process(code, place.location) as process:
        assert said(process) == "held"
        with pytest.raises(RunInUse, match=f"process {process.pid} on "), lease.hold(place):
            pass
        process.send_signal(signal.SIGKILL)
        # Its parent has not asked for its end yet: it is a zombie.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with lease.hold(place):
            assert holder(place).pid == os.getpid()
        left_by(place, pid=process.pid, started="1")
        process.wait(SECONDS)
        with lease.hold(place):
            pass


def test_an_id_that_is_used_again_is_another_process(on_disk: Storage) -> None:
    left_by(on_disk, pid=os.getpid(), started="1")
    with lease.hold(on_disk) as held:
        held.check()
        assert holder(on_disk).lease != "theirs"


@pytest.mark.parametrize("where", [{"host": "elsewhere"}, {"processes": "another boot"}])
def test_what_cannot_be_looked_at_from_here_has_its_time(
    place: Storage, where: dict[str, str]
) -> None:
    left_by(place, seconds_ago=lease.LIFETIME - 20, **where)
    with pytest.raises(RunInUse, match=f"process {os.getpid()} on "), lease.hold(place):
        pass
    left_by(place, seconds_ago=lease.LIFETIME + 1, **where)
    with lease.hold(place):
        assert holder(place).lease != "theirs"


def test_renewing_says_so_and_is_another_version(place: Storage) -> None:
    with lease.hold(place) as held:
        first, version = holder(place), place.version(LEASE)
        held.renew()
        second = holder(place)
        assert second.renewed > first.renewed
        assert second.model_copy(update={"renewed": first.renewed}) == first
        assert place.version(LEASE) != version
        held.check()


def test_it_is_renewed_regularly(on_disk: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWAL", 0.01)
    with lease.hold(on_disk) as held:
        began = holder(on_disk).renewed
        wait_until(lambda: holder(on_disk).renewed > began)
        held.check()


def test_who_lost_it_notices_and_leaves_it_to_the_other(place: Storage) -> None:
    with lease.hold(place) as held:
        left_by(place, host="elsewhere", pid=7)
        held.renew()
        with pytest.raises(FacescanError, match=r"lost .*: it was taken by process 7 on elsewhere"):
            held.check()
    assert holder(place).lease == "theirs"


def test_who_was_told_nothing_yet_leaves_it_to_the_other_as_well(place: Storage) -> None:
    with lease.hold(place):
        left_by(place, host="elsewhere")
    assert holder(place).lease == "theirs"


def test_a_lease_that_somebody_deleted_is_lost(place: Storage) -> None:
    with lease.hold(place) as held:
        place.delete(LEASE)
        held.renew()
        with pytest.raises(FacescanError, match="somebody who deleted it"):
            held.check()
    assert not place.exists(LEASE)


def test_a_lease_that_cannot_be_renewed_in_its_time_is_lost(
    on_disk: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0

    def full(*_: object) -> None:
        nonlocal failures
        failures += 1
        raise OSError("No space left on device")

    monkeypatch.setattr(lease, "RENEWAL", 0.01)
    with lease.hold(on_disk) as held:
        with monkeypatch.context() as patch:
            patch.setattr(type(on_disk), "swap", full)
            wait_until(lambda: failures > 2)
            held.check()
            patch.setattr(lease, "LIFETIME", 0.05)
            wait_until(lambda: held._lost is not None)
        with pytest.raises(FacescanError, match="No space left on device"):
            held.check()


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[]"])
def test_a_damaged_lease_is_said_clearly(place: Storage, content: bytes) -> None:
    place.write(LEASE, content)
    with (
        pytest.raises(FacescanError, match=r"lease\.json: damaged: .*Delete it"),
        lease.hold(place),
    ):
        pass
    assert place.read(LEASE) == content


@pytest.mark.parametrize("begin", ["free", "stale"])
def test_of_many_threads_exactly_one_gets_it(place: Storage, begin: str) -> None:
    threads, rounds = 8, 5
    for number in range(rounds):
        folder = place.below(f"{number}")
        if begin == "stale":
            left_by(folder, seconds_ago=lease.LIFETIME + 1, host="elsewhere")
        barrier = threading.Barrier(threads)

        def attempt(
            _: int, folder: Storage = folder, barrier: threading.Barrier = barrier
        ) -> Lease | None:
            barrier.wait(SECONDS)
            try:
                return lease._taken(folder)
            except RunInUse:
                return None

        with ThreadPoolExecutor(threads) as pool:
            (winner,) = [each for each in pool.map(attempt, range(threads)) if each is not None]
        winner.check()
        assert winner._holder == holder(folder)
        winner.release()


@pytest.mark.slow
def test_of_several_processes_exactly_one_gets_it(place: Storage) -> None:
    rounds = 20
    code = (
        "from facescan.errors import RunInUse\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "won = []\n"
        f"for number in range({rounds}):\n"
        "    try:\n"
        "        lease._taken(storage.at(sys.argv[1]).below(str(number)))\n"
        "        won.append(str(number))\n"
        "    except RunInUse:\n"
        "        pass\n"
        "print(' '.join(won), flush=True)\n"
        "sys.stdin.readline()\n"  # who ended would have lost what it won
    )
    with (
        another_process(code, place.location) as one,
        another_process(code, place.location) as two,
        another_process(code, place.location) as three,
    ):
        processes = (one, two, three)
        assert [said(process) for process in processes] == ["ready"] * 3
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        won = [number for process in processes for number in said(process).split()]
    assert sorted(map(int, won)) == list(range(rounds))
