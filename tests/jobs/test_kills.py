"""The short form of `bench.kills`: runs are killed, raced and starved of disk, and end the same."""

import json
import signal
from pathlib import Path

import pytest

from bench import kills
from bench.kills import IN_FLIGHT, NO_FAULT, STEPS, Fault, Undisturbed

pytestmark = pytest.mark.slow

Job = tuple[Path, Undisturbed]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Shards of 400 requests, and what an undisturbed run makes of them."""
    shards = kills.make_shards(tmp_path_factory.mktemp("kills") / "shards", 200)
    return shards, kills.undisturbed(shards)


def test_a_killed_engine_and_then_a_killed_driver_cost_only_the_calls_in_flight(job: Job) -> None:
    shards, expected = job
    assert expected.calls == 400
    with kills.job(shards) as it:
        process = it.start(STEPS["merged.json swapped"][4])
        kills.wait_for_reply(it, process)
        kills.kill(it.processes[0])
        assert process.wait(kills.SECONDS) == -signal.SIGKILL, it.messages
        assert it.struck
        holder = json.loads((it.folder / "lease.json").read_text())
        assert holder["pid"] == process.pid
        kills.again_after(it)
        kills.check(it, expected, 3 * IN_FLIGHT)


def test_a_disk_that_fails_ends_the_run_with_a_line_that_says_what_to_do(tmp_path: Path) -> None:
    shards = kills.make_shards(tmp_path / "shards", 12, 1)
    with kills.warm(shards) as (it, command):
        assert command.complete(NO_FAULT) == 0, it.messages
        expected = kills.found(it.folder)
        for fault in (
            Fault("write:part", "midst", error="ENOSPC", role="engine", once=False),
            Fault("sync:merged", error="EIO", role="driver"),
        ):
            kills.disk_fails(it, command, expected, fault)


def test_of_two_commands_at_once_one_runs_and_the_other_is_told_which(job: Job) -> None:
    kills.race(*job)
