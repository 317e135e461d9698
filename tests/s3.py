"""A real S3 over HTTP on loopback: moto's, made atomic."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from threading import Lock, Thread
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class S3:
    """The server, and the accidents that can be had with it."""

    bucket = "runs"

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._turn = Lock()
        self._lost_answers = 0
        self.requests: list[str] = []
        """Method and path of everything asked so far."""

    def lose_next_answer(self) -> None:
        """Carry out the next PUT, and answer that the server is busy."""
        self._lost_answers = 1

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        # One at a time: moto looks whether If-Match and If-None-Match hold, and writes later.
        with self._turn:
            self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
            if environ["REQUEST_METHOD"] == "PUT" and self._lost_answers:
                self._lost_answers -= 1
                list(self._app(environ, lambda *_: None))
                start("503 Slow Down", [])
                return []
            return list(self._app(environ, start))


@contextmanager
def serving() -> Iterator[tuple[S3, dict[str, str]]]:
    """Serve an empty bucket; yields the server, and the environment of who wants to use it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    s3 = S3()
    server = make_server("127.0.0.1", 0, s3, threaded=True)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    host = f"127.0.0.1:{server.server_port}"
    connection = HTTPConnection(host, timeout=30)
    connection.request("PUT", f"/{s3.bucket}")
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()
    yield (
        s3,
        {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}",
            "AWS_ALLOW_HTTP": "true",
            "NO_PROXY": "127.0.0.1",
        },
    )
    server.shutdown()
    thread.join(30)
    server.server_close()
