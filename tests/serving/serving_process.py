"""`facescan serve` as a process of its own, for tests and benchmarks."""

import http.client
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

from tests.nodes import free_ports
from tests.serving.service_calls import Answer, form

_START_SECONDS = 180.0
_END_SECONDS = 60.0


@dataclass
class Serving:
    """A running service."""

    process: "subprocess.Popen[str]"
    port: int
    said: str

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        seconds: float = 60,
    ) -> Answer:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)) as there:
            there.request(method, path, body, dict(headers or {}))
            response = there.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())

    def ask(self, image: bytes, key: str | None = None, **fields: str) -> Answer:
        headers, body = form(image, **fields)
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        return self.request("POST", "/v1/attributes", headers, body)

    def begin_to_end(self) -> None:
        """Send SIGINT, and return when it says that it waits for what is being answered."""
        self.process.send_signal(signal.SIGINT)
        _said_until("is waited for", self.process)

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Send a signal; its exit status, and what it has said since it started."""
        self.process.send_signal(number)
        said, _ = self.process.communicate(timeout=_END_SECONDS)
        return self.process.returncode, said


@contextmanager
def serving(*arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Serving]:
    """A service on a free port, once it says that it answers; killed if it is there at the end."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "serve", "--port", str(port), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        | dict(environment or {}),
        # Ctrl-C of a terminal is for the tests.
        start_new_session=True,
        # Where the tests themselves ignore Ctrl-C, a child would.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield Serving(process, port, _said_until("Ctrl-C", process))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def _said_until(words: str, process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    said, until = "", time.monotonic() + _START_SECONDS
    os.set_blocking(process.stdout.fileno(), False)
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        while words not in said:
            if not waiting.select(max(0.0, until - time.monotonic())):
                raise AssertionError(f"not {words!r} in {_START_SECONDS:g} s, but: {said}")
            part = os.read(process.stdout.fileno(), 65536).decode()
            if not part:
                raise AssertionError(f"facescan serve ended with {process.wait()}: {said}")
            said += part
    os.set_blocking(process.stdout.fileno(), True)
    return said
