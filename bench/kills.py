"""Whether a run survives: kills at random moments and at each commit step, disks that fail, races.

    python -m bench.kills [--part driver --part workers ...] [--times 20] [--seed 0]

Parts: `driver`, `workers`, `steps`, `disk`, `races`, `nodes`; default: all, about an hour on two
cores. The job is 1,000 pictures asked two questions each, by two fake engines of 20 ms a request
with 8 calls in flight, journalled as paid ones; an engine file of our own counts the calls. After
each disturbance the same command is given again at once, until it ends; then its replies and
predictions must be those of an undisturbed run, in every column that is not about time, and no
request may be lost, be in two files, or be asked again that was not in flight.

Faults are injected from outside (tests/jobs/faults/sitecustomize.py): the product has no hook for
them. The exit code is 1 if anything was otherwise than it must be.
"""

import errno
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import typer
from PIL import Image

from facescan.shards import Contents, ShardRow, ShardWriter, writing

FAULTS = Path(__file__).parents[1] / "tests" / "jobs" / "faults"

IN_FLIGHT = 8
"""Calls of one engine, by its card."""

ENGINES = 2
MOST_AGAIN = 0.01
"""Share of calls that may be made again, over all kills of a kind."""

SECONDS = 180.0
"""After which a command counts as one that hangs."""

RUN_TIME = ("created_at", "latency_s", "attempts", "provider_request_id", "cost_usd")
"""Columns that are not the same in two undisturbed runs."""

_MARK = "FACESCAN_KILLS"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at a step of tests/jobs/faults/sitecustomize.py.

    Attributes:
        step: a regular expression for `operation:file`.
        at: `before` the operation, in its `midst` (of a write), or `after` it.
        number: the how manieth such step of the run it is.
        error: name of the error that the operation ends with; None: its process is killed.
        role: `driver` or `engine`: whose step; None: anybody's.
        once: whether later such steps succeed.
    """

    step: str
    at: str = "before"
    number: int = 1
    error: str | None = None
    role: str | None = None
    once: bool = True

    def __str__(self) -> str:
        what = self.error or "SIGKILL"
        return f"{what} {self.at} {self.role or 'any'} {self.step} #{self.number}"


@dataclass(slots=True)
class Job:
    """One run folder, and the command that fills it."""

    place: Path
    shards: Path
    model: str = "paid"
    engines: int = ENGINES
    address: str | None = None
    _mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.place.mkdir()

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.place / "run"

    @property
    def calls(self) -> list[tuple[str, int]]:
        """Requests that engines were asked, each with the process that was."""
        with suppress(FileNotFoundError):
            lines = (self.place / "calls").read_text().splitlines()
            return [(line.split()[0], int(line.split()[1])) for line in lines]
        return []

    @property
    def steps(self) -> list[str]:
        """`role operation:file` as they came; only where a fault was given."""
        return (self.place / "steps").read_text().splitlines()

    @property
    def struck(self) -> str | None:
        """The step that the fault met, if any."""
        return next((line for line in self.steps if line.startswith("STRUCK")), None)

    @property
    def processes(self) -> list[int]:
        """Those of engines that live."""
        return [pid for pid in {pid for _, pid in self.calls} if Path(f"/proc/{pid}").exists()]

    @property
    def command(self) -> list[str]:
        """Words after `facescan`."""
        words = ["run", "--dataset", self.shards, "--model", self.model, "--no-score"]
        words += ["--attributes", "race,gender", "--include-path", FAULTS / "mine"]
        words += ["--replicas", self.engines, "--output-dir", self.folder]
        words += [] if self.address is None else ["--ray-address", self.address]
        return [str(word) for word in words]

    @property
    def marked(self) -> dict[str, str]:
        """Variables of all processes of this job, by which `end` finds them."""
        return {"FACESCAN_CALLS": str(self.place / "calls"), _MARK: self._mark}

    @property
    def tasks(self) -> list[int]:
        """Processes of Ray that work on a task at this moment, engines among them."""
        return [
            int(process.name)
            for process in Path("/proc").iterdir()
            if process.name.isdigit() and self._is_ours(process) and self._has_task(process)
        ]

    @staticmethod
    def _has_task(process: Path) -> bool:
        with suppress(OSError):
            return (process / "cmdline").read_bytes().startswith(b"ray::MapBatches(read)")
        return False

    def environment(self, fault: Fault | None) -> dict[str, str]:
        """With which the command, and the Ray that it starts, runs."""
        variables = os.environ | self.marked
        variables.pop("RAY_ADDRESS", None)
        if fault is not None:
            self.arm(fault)
            variables |= {"FACESCAN_FAULT": str(self.place / "fault"), "PYTHONPATH": str(FAULTS)}
        return variables

    def arm(self, fault: Fault) -> None:
        """Write the fault to where all processes look."""
        plan = asdict(fault) | {"root": str(self.place), "log": str(self.place / "steps")}
        plan["errno"] = plan.pop("error")
        (self.place / "steps").write_text("")
        temporary = self.place / "fault.new"
        temporary.write_text(json.dumps(plan))
        temporary.rename(self.place / "fault")

    def start(
        self, fault: Fault | None = None, messages: str = "stderr"
    ) -> subprocess.Popen[bytes]:
        """Give the command; what it says goes to a file of the job's place."""
        with (self.place / messages).open("wb") as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", "jobs.cli", *self.command],
                env=self.environment(fault),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )

    def complete(self) -> int:
        """Give the command and wait for its end; its exit code."""
        return self.start().wait(SECONDS)

    @property
    def messages(self) -> str:
        """What the last command said on stderr."""
        return (self.place / "stderr").read_text()

    def end(self) -> None:
        """Kill whatever is left of this job's processes."""
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and self._is_ours(process):
                kill(int(process.name))

    def _is_ours(self, process: Path) -> bool:
        try:
            return f"{_MARK}={self._mark}".encode() in (process / "environ").read_bytes()
        except OSError:
            return False


@contextmanager
def job(
    shards: Path, model: str = "paid", engines: int = ENGINES, address: str | None = None
) -> Iterator[Job]:
    """A job in a fresh folder, which is gone afterwards with all its processes."""
    with tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as place:
        made = Job(Path(place) / "job", shards, model, engines, address)
        try:
            yield made
        finally:
            made.end()


def make_shards(folder: Path, images: int, row_groups: int = 8) -> Path:
    """Small different pictures, in so many row groups that all engines have work."""
    before = writing.ROW_GROUP_ROWS
    writing.ROW_GROUP_ROWS = -(-images // row_groups)
    try:
        with ShardWriter(folder, Contents("kills", {"race": "race-7"})) as writer:
            for number in range(images):
                noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(noise).resize((48, 48)).save(buffer, "JPEG")
                data = buffer.getvalue()
                writer.add(
                    ShardRow(
                        image_id=f"image-{number:05d}",
                        image_sha256=hashlib.sha256(data).hexdigest(),
                        data=data,
                        path=None,
                        split="test",
                        labels={"race": ("White", "Black", "Indian")[number % 3]},
                    )
                )
    finally:
        writing.ROW_GROUP_ROWS = before
    return folder


def found(folder: Path) -> dict[str, str]:
    """What a run that has ended holds: file -> hash over its rows by key, without run-time columns.

    Raises:
        AssertionError: something is there twice, is unfinished, or is named and absent.
    """
    merged = json.loads((folder / "replies" / "merged.json").read_text())
    files = sorted((folder / "replies").glob("*.parquet"))
    assert [file.name for file in files] == sorted(merged["files"]), "other files than merged.json"
    # A killed engine leaves its unfinished part, hidden, until the next command sweeps.
    left = [path for path in folder.rglob(".*") if path.name != ".lock"]
    left = [path for path in left if not (path.name.startswith(".part-") and path.suffix == ".tmp")]
    assert not left, f"unfinished: {left}"
    assert not (folder / "lease.json").exists(), "the lease was not given back"
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    keys = Counter(row["request_id"] for row in rows)
    assert max(keys.values()) == 1, "a reply is there twice"
    hashes = {"replies": _hash(rows, ("request_id",))}
    for file in sorted((folder / "predictions").glob("*.parquet")):
        hashes[file.name] = _hash(pq.read_table(file).to_pylist(), ("dataset", "split", "image_id"))
    return hashes | {"rows": str(len(rows))}


def _hash(rows: list[dict[str, Any]], key: tuple[str, ...]) -> str:
    kept = [{k: v for k, v in row.items() if k not in RUN_TIME} for row in rows]
    kept.sort(key=lambda row: [row[name] for name in key])
    return hashlib.blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """A run as it should be.

    Attributes:
        rows: from `found`.
        calls: of engines.
        seconds: from the first reply to the end.
    """

    rows: dict[str, str]
    calls: int
    seconds: float


def undisturbed(shards: Path) -> Undisturbed:
    """Run a job to its end."""
    with job(shards) as it:
        process = it.start()
        wait_for_reply(it, process)
        began = time.monotonic()
        assert process.wait(SECONDS) == 0, it.messages
        return Undisturbed(found(it.folder), len(it.calls), time.monotonic() - began)


def wait_for_reply(it: Job, process: subprocess.Popen[bytes]) -> None:
    """Return when the first reply is on disk."""
    until = time.monotonic() + SECONDS
    while not list((it.folder / "replies").glob("*.parquet")):
        assert process.poll() is None, f"ended with {process.returncode}: {it.messages}"
        assert time.monotonic() < until, "no reply"
        time.sleep(0.005)


def check(it: Job, expected: Undisturbed, again: int) -> int:
    """Hold a run that has ended to an undisturbed one; returns the calls made again.

    Args:
        it: the job.
        expected: what it should have come to.
        again: calls that may have been made twice.
    """
    rows = found(it.folder)
    assert rows == expected.rows, f"other rows: {rows}, expected {expected.rows}"
    asked = Counter(key for key, _ in it.calls)
    assert len(asked) == expected.calls, f"{len(asked)} asked, expected {expected.calls}"
    twice = asked.total() - len(asked)
    assert twice <= again, f"{twice} calls made again, {again} were in flight"
    return twice


def kill(process: int) -> None:
    """As `kill -9`; no error where it has ended already."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def kill_driver(shards: Path, expected: Undisturbed, after: float) -> int | None:
    """Kill the driver, give the command again; calls made again, None: it had ended before."""
    with job(shards) as it:
        process = it.start()
        wait_for_reply(it, process)
        time.sleep(after)
        process.kill()
        if process.wait() == 0:
            return None
        again_after(it)
        return check(it, expected, ENGINES * IN_FLIGHT)


def again_after(it: Job) -> None:
    """Give the command again at once after the driver's death, which must have ended the asking."""
    asked, orphans = len(it.calls), set(it.processes)
    assert (code := it.complete()) == 0, f"exit {code}: {it.messages}"
    since = sum(process in orphans for _, process in it.calls[asked:])
    # Each may begin some before it hears of the death.
    assert since <= ENGINES * IN_FLIGHT, f"{since} calls by engines whose driver was dead"


def kill_worker(shards: Path, expected: Undisturbed, after: float) -> int | None:
    """Kill an engine's process; calls made again, None: all had ended before."""
    with job(shards) as it:
        process = it.start()
        wait_for_reply(it, process)
        time.sleep(after)
        engines = it.processes
        if not engines or process.poll() is not None:
            return None
        kill(engines[0])
        assert (code := process.wait(SECONDS)) == 0, f"exit {code}: {it.messages}"
        return check(it, expected, IN_FLIGHT)


def _part(file: str, role: str) -> list[Fault]:
    """The steps of writing a file durably."""
    return [
        Fault(f"write:{file}", "before", role=role),
        Fault(f"write:{file}", "midst", role=role),
        Fault(f"write:{file}", "after", role=role),
        Fault(f"sync:{file}", "after", role=role),
        Fault(f"rename:{file}", "after", role=role),
        Fault(f"sync-folder:{file}", "after", role=role),
    ]


STEPS: dict[str, list[Fault]] = {
    "part written": [Fault(**(asdict(each) | {"number": 5})) for each in _part("part", "engine")],
    "small parts joined": [
        Fault("delete:part", "before", role="engine"),
        Fault("delete:part", "after", role="engine"),
        Fault("delete:part", "after", 4, role="engine"),
    ],
    "merged file adopted": [
        Fault("write:scratch", "midst", role="driver"),
        Fault("rename:replies", "before", role="driver"),
        Fault("rename:replies", "after", role="driver"),
        Fault("sync-folder:replies", "after", role="driver"),
    ],
    "merged.json swapped": _part("merged", "driver"),
    "merged parts deleted": [
        Fault("delete:part", "before", role="driver"),
        Fault("delete:part", "after", role="driver"),
        Fault("delete:part", "after", 7, role="driver"),
    ],
    "manifest written": _part("manifest", "driver"),
    "engine recorded in the manifest": [
        Fault("rename:manifest", "before", 2, role="driver"),
        Fault("rename:manifest", "after", 2, role="driver"),
    ],
    "status written": _part("status", "driver"),
    "lease taken": _part("lease", "driver"),
    "lease renewed": [
        Fault("write:lease", "midst", 2, role="driver"),
        Fault("rename:lease", "before", 2, role="driver"),
        Fault("rename:lease", "after", 2, role="driver"),
    ],
    "lease released": [
        Fault("delete:lease", "before", role="driver"),
        Fault("delete:lease", "after", role="driver"),
    ],
    "predictions adopted": [
        Fault("rename:predictions", "before", role="driver"),
        Fault("rename:predictions", "after", role="driver"),
        Fault("rename:predictions", "after", 2, role="driver"),
    ],
    "configuration written": _part("config", "driver"),
    "scratch made": [Fault("mkdir:scratch", "after", role="driver")],
}
"""Named commit steps, and where each is cut."""


def kill_at(shards: Path, expected: Undisturbed, fault: Fault) -> int:
    """Kill a process at a step, give the command again where it was the driver."""
    with job(shards) as it:
        code = it.start(fault).wait(SECONDS)
        assert it.struck, f"the step did not come: {Counter(it.steps)}"
        if fault.role == "driver":
            assert code == -signal.SIGKILL, f"exit {code}: {it.messages}"
            code = it.complete()
        assert code == 0, f"exit {code}: {it.messages}"
        return check(it, expected, IN_FLIGHT * (ENGINES if fault.role == "driver" else 1))


_WARM = """
import json, os, sys, traceback
from jobs.cli import main
out = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
for line in sys.stdin:
    words, messages = json.loads(line)
    sys.argv = ["facescan", *words]
    said = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 2)
    os.close(said)
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    print(json.dumps(code), file=out, flush=True)
"""


class Warm:
    """The command in a process that stays, with its Ray: a second for each, not six."""

    def __init__(self, it: Job) -> None:
        self._job = it
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WARM],
            env=it.environment(NO_FAULT),
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def complete(self, fault: Fault) -> int:
        """Give the command with this fault; its exit code."""
        self._job.arm(fault)
        lease = self._job.folder / "lease.json"
        if lease.exists():
            # The command's process would have ended by now, and this one has not.
            lease.write_text(json.dumps(json.loads(lease.read_text()) | {"started": "0"}))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        words = [self._job.command, str(self._job.place / "stderr")]
        print(json.dumps(words), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "the command's process ended"
        return int(json.loads(line) or 0)


NO_FAULT = Fault("none")


@contextmanager
def warm(shards: Path) -> Iterator[tuple[Job, Warm]]:
    """A job, and its command in a process that stays."""
    with job(shards, engines=1) as it:
        yield it, Warm(it)


def _emptied(it: Job) -> None:
    shutil.rmtree(it.folder, ignore_errors=True)
    (it.place / "calls").unlink(missing_ok=True)


_WHAT_TO_DO = "the same command again continues"

DISKS: dict[str, tuple[str, bool]] = {
    "ENOSPC": (r"(open|write|sync|rename|mkdir|sync-folder):.*", False),
    "EROFS": (r".*", False),
    "EIO": (r".*", True),
}
"""Error -> the steps that end with it, and whether only one does."""


def disk_fails(it: Job, command: Warm, expected: dict[str, str], fault: Fault) -> str:
    """Have the disk fail at a step, then give the command again.

    Returns:
        What stderr said.

    Raises:
        AssertionError: the step did not come, or the message, the exit code, what was left or the
            second run is wrong.
    """
    _emptied(it)
    code = command.complete(fault)
    messages, struck = it.messages, it.struck
    if struck is None:
        raise AssertionError(f"the step did not come; exit {code}: {messages}")
    assert fault.error is not None
    where = f"{struck}, exit {code}: {messages}"
    assert code == 1, where
    assert "Traceback" not in messages, where
    assert len(messages.strip().splitlines()) == 1, where
    for part in (os.strerror(getattr(errno, fault.error)), str(it.folder), _WHAT_TO_DO):
        assert part in messages, where
    _whole(it.folder)
    code = command.complete(NO_FAULT)
    assert code == 0, f"{struck}, again: exit {code}: {it.messages}"
    rows = found(it.folder)
    assert rows == expected, f"{struck}: other rows"
    calls = [key for key, _ in it.calls]
    again = len(calls) - len(set(calls))
    # A disk that fails once takes what was in flight a moment later.
    assert again <= (0 if fault.once else IN_FLIGHT), f"{struck}: {again} calls made again"
    return messages


def _whole(folder: Path) -> None:
    """Whether every file under a final name can be read."""
    for path in folder.rglob("*"):
        if path.is_dir() or any(part.startswith(".") for part in path.parts):
            continue
        if path.suffix == ".parquet":
            pq.read_table(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())


def race(shards: Path, expected: Undisturbed) -> None:
    """Two commands at once on one folder."""
    with job(shards) as it:
        processes = [it.start(messages=name) for name in "ab"]
        codes = [process.wait(SECONDS) for process in processes]
        said = {name: (it.place / name).read_text() for name in "ab"}
        assert sorted(codes) == [0, 2], f"exits {codes}: {said}"
        winner, loser = codes.index(0), "ab"[codes.index(2)]
        holder = f"process {processes[winner].pid} on {socket.gethostname()}"
        assert holder in said[loser], said
        check(it, expected, 0)


def lease_of(host: str, renewed: float) -> dict[str, Any]:
    """A lease as another host's process would leave it, renewed so many seconds ago."""
    then = (datetime.now(UTC) - timedelta(seconds=renewed)).isoformat()
    return {
        "schema_version": 1,
        "lease": uuid.uuid4().hex,
        "host": host,
        "processes": "another boot",
        "pid": 1,
        "started": "1",
        "since": then,
        "renewed": then,
    }


def lease_left(shards: Path, expected: Undisturbed, lease: dict[str, Any]) -> int:
    """Begin a run, kill its driver, put this lease there, give the command; its exit code."""
    with job(shards) as it:
        process = it.start()
        wait_for_reply(it, process)
        process.kill()
        process.wait()
        (it.folder / "lease.json").write_text(json.dumps(lease))
        code = it.complete()
        if code == 0:
            check(it, expected, ENGINES * IN_FLIGHT)
        else:
            assert f"process {lease['pid']} on {lease['host']}" in it.messages, it.messages
        return code


_NODE = {"num_cpus": 2, "object_store_memory": 256 << 20}


@contextmanager
def cluster(nodes: int, environment: dict[str, str]) -> Iterator[Any]:
    """A cluster of so many nodes on this machine; no driver is connected to it."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ.update(environment)
    made = Cluster(initialize_head=True, head_node_args=_NODE | {"include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            made.add_node(**_NODE)
        yield made
    finally:
        made.shutdown()
        os.environ.clear()
        os.environ.update(before)


def kill_on_cluster(
    shards: Path, workers: int, nodes: int, seed: int, say: Callable[[str], None]
) -> tuple[dict[str, str], int]:
    """One job on three nodes, while processes and whole nodes are killed at seeded moments.

    Each node killed is replaced by a new one. Two of three processes killed are engines, the
    others whatever else works for the job at that moment, such as a task that reads.

    Returns:
        `found` of the run, and the calls made again.
    """
    draw = random.Random(seed)
    deaths = ["worker"] * workers + ["node"] * nodes
    draw.shuffle(deaths)
    with job(shards, "paid-slow", engines=3) as it, cluster(3, it.marked) as ray_cluster:
        it.address = ray_cluster.address
        process = it.start()
        wait_for_reply(it, process)
        for number, death in enumerate(deaths):
            time.sleep(draw.uniform(0.5, 3.0))
            assert process.poll() is None, f"ended before death {number}: {it.messages}"
            asked = len(it.calls)
            if death == "node":
                node = draw.choice(
                    sorted(ray_cluster.worker_nodes, key=lambda each: each.unique_id)
                )
                ray_cluster.remove_node(node, allow_graceful=False)
                ray_cluster.add_node(**_NODE)
                say(f"{death} killed after {asked} calls")
            else:
                victims = it.processes if number % 3 else it.tasks
                until = time.monotonic() + SECONDS
                while not victims and time.monotonic() < until:
                    victims = it.processes
                    time.sleep(0.05)
                kill(draw.choice(victims))
                say(f"{death} killed after {asked} calls")
        assert (code := process.wait(2 * SECONDS)) == 0, f"exit {code}: {it.messages}"
        calls = [key for key, _ in it.calls]
        return found(it.folder), len(calls) - len(set(calls))


Case = tuple[str, Callable[[], Any]]

_DRAWS = 5
"""Moments tried for one kill that has to meet a run."""


def _driver(shards: Path, expected: Undisturbed, times: int, seed: int) -> Iterator[Case]:
    yield from _at_moments("driver", kill_driver, shards, expected, times, seed)


def _workers(shards: Path, expected: Undisturbed, times: int, seed: int) -> Iterator[Case]:
    yield from _at_moments("worker", kill_worker, shards, expected, times, seed)


def _at_moments(
    whose: str,
    case: Callable[[Path, Undisturbed, float], int | None],
    shards: Path,
    expected: Undisturbed,
    times: int,
    seed: int,
) -> Iterator[Case]:
    draw = random.Random(f"{seed} {whose}")

    def met() -> int:
        for _ in range(_DRAWS):
            # Within an undisturbed run's time, so that most meet it on a machine of any speed.
            again = case(shards, expected, draw.uniform(0, 0.9 * expected.seconds))
            if again is not None:
                return again
        raise AssertionError(f"{_DRAWS} moments in a row came after the end")

    for number in range(times):
        yield f"{whose} killed, {number}", met


def _steps(shards: Path, expected: Undisturbed, times: int, seed: int) -> Iterator[Case]:
    del times, seed
    for name, faults in STEPS.items():
        for fault in faults:
            yield f"{name}: {fault}", partial(kill_at, shards, expected, fault)


def _races(shards: Path, expected: Undisturbed, times: int, seed: int) -> Iterator[Case]:
    del seed
    for number in range(times):
        yield f"race {number}", partial(race, shards, expected)
    for host, age, code in (("elsewhere", 61, 0), ("elsewhere", 5, 2)):

        def case(host: str = host, age: int = age, code: int = code) -> int:
            got = lease_left(shards, expected, lease_of(host, age))
            assert got == code, f"exit {got}"
            return got

        yield f"lease of host {host}, renewed {age} s ago: exit {code}", case


def _disk(shards: Path, expected: Undisturbed, times: int, seed: int) -> Iterator[Case]:
    """Each kind of step at its first time, with each error; `times` does not count."""
    del shards, expected, times, seed
    with tempfile.TemporaryDirectory() as place:
        small = make_shards(Path(place) / "shards", 12, 1)
        with warm(small) as (it, command):
            assert command.complete(NO_FAULT) == 0, it.messages
            rows = found(it.folder)
            for step in dict.fromkeys(it.steps):
                role, name = step.split()
                for error, (steps, once) in DISKS.items():
                    if re.fullmatch(steps, name):
                        at = "midst" if name.startswith("write:") else "before"
                        # A disk that is full or read-only stays so for all that comes after.
                        fault = Fault(name, at, 1, error, role, once)
                        yield str(fault), partial(disk_fails, it, command, rows, fault)


def _nodes(shards: Path, expected: Undisturbed, times: int, seed: int) -> Iterator[Case]:
    del shards, expected, times

    def case() -> int:
        with tempfile.TemporaryDirectory() as place:
            many = make_shards(Path(place) / "shards", 2_500, 25)
            with job(many, "paid-slow", engines=3) as it:
                assert it.complete() == 0, it.messages
                rows = found(it.folder)
            got, again = kill_on_cluster(many, 10, 3, seed, print)
            assert got == rows, f"{got}, expected {rows}"
            return again

    yield "10 workers and 3 nodes killed", case


PARTS: dict[str, Callable[[Path, Undisturbed, int, int], Iterator[Case]]] = {
    "driver": _driver,
    "workers": _workers,
    "steps": _steps,
    "disk": _disk,
    "races": _races,
    "nodes": _nodes,
}


def main(
    part: Annotated[list[str] | None, typer.Option(help="Repeatable; default: all.")] = None,
    times: Annotated[int, typer.Option(help="Kills of each kind, and races.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Print a line for each case, and what went wrong in all."""
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        shards = make_shards(Path(place) / "shards", 1_000)
        expected = undisturbed(shards)
        print(f"undisturbed: {expected}", flush=True)
        for name in part or PARTS:
            again: list[int] = []
            cases = misses = 0
            for case, do in PARTS[name](shards, expected, times, seed):
                began = time.monotonic()
                cases += 1
                try:
                    result = do()
                    again += [result] if isinstance(result, int) else []
                except (AssertionError, subprocess.TimeoutExpired) as error:
                    misses += 1
                    result = f"WRONG: {error}"
                seconds = time.monotonic() - began
                print(f"{name}: {case}: {str(result).strip()} ({seconds:.0f} s)", flush=True)
            print(f"{name}: {cases} cases, {misses} wrong", flush=True)
            if name in ("driver", "workers") and again:
                share = sum(again) / (len(again) * expected.calls)
                print(f"{name}: calls made again {share:.2%}, at most {max(again)}", flush=True)
                wrong += share > MOST_AGAIN
            wrong += misses
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
