"""A real S3 over HTTP on loopback: moto's, made atomic, in a process of its own.

Of its own because vLLM's CPU platform looks at every name of every loaded module, and Flask, which
moto is built on, has some that raise RuntimeError outside of a request.
"""

import logging
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

BUCKET = "runs"

# No bucket can have this name, so no S3 path begins like this.
_REQUESTS = "/-/requests"
_LOSE_NEXT_ANSWER = "/-/lose-next-answer"


class S3:
    """The server, seen from the tests, and the accidents that can be had with it."""

    bucket = BUCKET

    def __init__(self, host: str) -> None:
        self._host = host

    @property
    def requests(self) -> list[str]:
        """Method and path of everything asked so far."""
        return self._ask("GET", _REQUESTS).splitlines()

    def lose_next_answer(self) -> None:
        """Carry out the next PUT, and answer that the server is busy."""
        self._ask("PUT", _LOSE_NEXT_ANSWER)

    def _ask(self, method: str, path: str) -> str:
        connection = HTTPConnection(self._host, timeout=30)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        assert answer.status == 200, text
        return text


@contextmanager
def serving() -> Iterator[tuple[S3, dict[str, str]]]:
    """Serve an empty bucket; yields the server, and the environment of who wants to use it."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.s3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        host = process.stdout.readline().strip()
        assert host, f"the S3 server ended with {process.wait()}"
        try:
            yield (
                S3(host),
                {
                    "AWS_ACCESS_KEY_ID": "key",
                    "AWS_SECRET_ACCESS_KEY": "secret",
                    "AWS_REGION": "us-east-1",
                    "AWS_ENDPOINT_URL": f"http://{host}",
                    "AWS_ALLOW_HTTP": "true",
                    "NO_PROXY": "127.0.0.1",
                },
            )
        finally:
            process.terminate()


class _Server:
    def __init__(self, moto: "WSGIApplication") -> None:
        self._moto = moto
        self._turn = Lock()
        self._lost_answers = 0
        self._requests: list[str] = []

    def __call__(self, environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        # One at a time: moto looks whether If-Match and If-None-Match hold, and writes later.
        with self._turn:
            if environ["PATH_INFO"] == _REQUESTS:
                start("200 OK", [])
                return ["\n".join(self._requests).encode()]
            if environ["PATH_INFO"] == _LOSE_NEXT_ANSWER:
                self._lost_answers += 1
                start("200 OK", [])
                return []
            self._requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
            if environ["REQUEST_METHOD"] == "PUT" and self._lost_answers:
                self._lost_answers -= 1
                list(self._moto(environ, lambda *_: lambda _: None))
                start("503 Slow Down", [])
                return []
            return list(self._moto(environ, start))


def _serve() -> None:
    """Serve until standard input ends, which it does with the tests."""
    from threading import Thread

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = _Server(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_port}"
    S3(host)._ask("PUT", f"/{BUCKET}")
    print(host, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve()
