"""A cluster of several Ray nodes on this machine, as people start one: by `ray start`, closed.

All of it listens on loopback and asks for the token. Each node has an environment of its own, as a
machine would, and ports of its own.
"""

import itertools
import json
import os
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from bench.kills import kill

_BIN = Path(sys.executable).parent
_SECONDS = 180.0
_MARK = "FACESCAN_NODE"


@dataclass(slots=True)
class Node:
    """One node; `mark` is in the environment of all its processes, jobs' drivers among them."""

    mark: str
    process: subprocess.Popen[bytes]

    def processes(self) -> dict[int, bytes]:
        """Number -> command line."""
        found = {}
        for each in Path("/proc").iterdir():
            if each.name.isdigit():
                try:
                    if f"{_MARK}={self.mark}".encode() in (each / "environ").read_bytes():
                        found[int(each.name)] = (each / "cmdline").read_bytes()
                except OSError:
                    continue  # it ended while we looked
        return found

    def kill(self) -> None:
        """As if its plug were pulled: SIGKILL to every process of it."""
        while running := self.processes():
            for pid in running:
                kill(pid)
            self.process.wait()


@dataclass(slots=True)
class Nodes:
    """A running cluster.

    Attributes:
        dashboard: host and port of the dashboard and the job API.
        files: Ray's own folder, with all its logs.
        token: what it asks for;  lock: the file that it is in.
        client: variables of somebody who has the token and nothing else.
        head: the first node;  start: what starts another, see `add`.
        workers: the others.
    """

    dashboard: str
    files: Path
    token: str
    lock: str
    client: Mapping[str, str]
    head: Node
    start: Callable[..., Node]
    workers: list[Node] = field(default_factory=list)

    def add(self, *words: object) -> Node:
        """Start one more worker, with further words for `ray start`."""
        self.workers.append(self.start(*words))
        return self.workers[-1]

    def processes(self) -> dict[int, bytes]:
        """Of all nodes: number -> command line."""
        found = {}
        for node in (self.head, *self.workers):
            found.update(node.processes())
        return found

    def ask(self, path: str, body: object = None, token: str | None = None) -> tuple[int, bytes]:
        """Status and content of what the dashboard answers; with its own token unless given."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"http://{self.dashboard}/{path}", data, headers if token != "" else {})
        try:
            with urlopen(request, timeout=60) as answer:
                return answer.status, bytes(answer.read())
        except HTTPError as error:
            return error.code, error.read()

    def submit(
        self, folder: Path, *words: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Give `ray job submit --working-dir . -- words` in a folder; its output can be read."""
        command = [str(_BIN / "ray"), "job", "submit", "--address", f"http://{self.dashboard}"]
        return subprocess.Popen(
            [*command, "--working-dir", ".", "--", *words],
            cwd=folder,
            env=dict(self.client if environment is None else environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


@contextmanager
def nodes(count: int, environment: Mapping[str, str], cpus: int = 2) -> Iterator[Nodes]:
    """Start a head and `count - 1` workers whose processes have these variables as well."""
    outside = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "AWS_", "OPENAI_", "FACESCAN_"))
    }
    # Not pytest's folder: the paths of Ray's sockets must be short.
    with ExitStack() as stack:
        place = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
            )
        )
        lock = place / "token"
        lock.write_text(secrets.token_hex(32))
        lock.chmod(0o600)
        client = outside | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(lock),
            "RAY_USAGE_STATS_ENABLED": "0",
            "NO_PROXY": "127.0.0.1",
            # Ray looks for `ray_current_cluster` there, and for a token in the home folder.
            "RAY_TMPDIR": str(place / "client"),
            "HOME": str(place),
        }
        started = client | {
            **environment,
            "PATH": f"{_BIN}{os.pathsep}{client['PATH']}",
        }
        gcs, dashboard, client_server = free_ports(3)
        head = ["--head", "--port", gcs, "--ray-client-server-port", client_server]
        head += ["--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard]

        numbers = itertools.count()

        def start(*words: object) -> Node:
            number = next(numbers)
            # Ray takes 127.0.0.1 for a word and looks for a real address; these it takes as said.
            address = f"127.0.0.{number + 2}"
            given = ["--node-ip-address", address, "--temp-dir", place / f"node-{number}", *words]
            return stack.enter_context(
                _node(place / f"node-{number}.log", started, "--num-cpus", cpus, *given)
            )

        made = Nodes(
            dashboard=f"127.0.0.1:{dashboard}",
            files=place,
            token=lock.read_text(),
            lock=str(lock),
            client=client,
            head=start(*head),
            start=partial(start, "--address", f"127.0.0.2:{gcs}"),
        )
        _wait(lambda: _alive(made) == 1, "the head does not answer")
        for _ in range(count - 1):
            made.add()
        _wait(lambda: _alive(made) == count, "a worker is missing")
        yield made


@contextmanager
def _node(log: Path, environment: Mapping[str, str], *words: object) -> Iterator[Node]:
    mark = uuid.uuid4().hex
    http, grpc, runtime_env, metrics = free_ports(4)
    command = [_BIN / "ray", "start", "--block", "--object-store-memory", 256 << 20, *words]
    command += ["--dashboard-agent-listen-port", http, "--dashboard-agent-grpc-port", grpc]
    command += ["--runtime-env-agent-port", runtime_env, "--metrics-export-port", metrics]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            env={**environment, _MARK: mark},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    node = Node(mark, process)
    try:
        yield node
    finally:
        node.kill()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment, each another.

    Below those that the system gives to whoever asks for any, which Ray's other processes do.
    """
    with ExitStack() as stack:
        found = []
        for port in random.sample(range(20_000, 32_000), 1_000):
            listening = stack.enter_context(socket.socket())
            with suppress(OSError):
                listening.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise AssertionError(f"{count} free ports wanted, {len(found)} found")


def _alive(cluster: Nodes) -> int:
    assert cluster.head.process.poll() is None, (cluster.files / "head.log").read_text()
    try:
        status, content = cluster.ask("api/v0/nodes")
    except (URLError, ConnectionError):
        return 0
    if status != 200:
        return 0
    found = json.loads(content)["data"]["result"]["result"]
    return sum(each["state"] == "ALIVE" for each in found)


def _wait(until: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not until():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
