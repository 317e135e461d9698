"""The short form of `bench.kills`: runs are killed, raced and starved of disk, and end the same."""

import json
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
        process = it.start()
        kills.wait_for_reply(it, process)
        kills.kill(it.processes[0])
        asked = len(it.calls)
        while len(it.calls) < min(asked + 3 * IN_FLIGHT, expected.calls):
            assert process.poll() is None
        process.kill()
        process.wait()
        holder = json.loads((it.folder / "lease.json").read_text())
        assert holder["pid"] == process.pid
        kills.again_after(it)
        kills.check(it, expected, 3 * IN_FLIGHT)


@pytest.mark.parametrize(
    ("step", "which"),
    [
        ("manifest written", 0),
        ("part written", 1),
        ("merged.json swapped", 4),
    ],
)
def test_a_kill_at_a_commit_step_loses_and_doubles_nothing(job: Job, step: str, which: int) -> None:
    kills.kill_at(*job, STEPS[step][which])


def test_a_disk_that_fails_ends_the_run_with_a_line_that_says_what_to_do(tmp_path: Path) -> None:
    shards = kills.make_shards(tmp_path / "shards", 12, 1)
    with kills.warm(shards) as (it, command):
        assert command.complete(NO_FAULT) == 0, it.messages
        expected = kills.found(it.folder)
        for fault in (
            Fault("write:part", "midst", error="ENOSPC", role="engine", once=False),
            Fault("rename:part", error="EIO", role="engine"),
            Fault("sync:merged", error="EIO", role="driver"),
            Fault("delete:lease", error="EROFS", role="driver", once=False),
        ):
            kills.disk_fails(it, command, expected, fault)


def test_of_two_commands_at_once_one_runs_and_the_other_is_told_which(job: Job) -> None:
    kills.race(*job)
