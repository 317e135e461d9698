"""facescan view RUN: a page of this machine alone to look at predictions, failures and pictures.

It answers on 127.0.0.1 only, to who has the address it printed: that holds a token, and a Host
header of another name (a web page that points its own name here) is refused. It changes nothing.

The standard library's server is enough for one person: aiohttp is installed for tests only, and
FastAPI, Starlette and uvicorn come with vLLM, which who looks at a run need not have.
"""

import secrets
from contextlib import ExitStack, closing
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePath
from threading import Lock
from urllib.parse import parse_qsl, urlsplit

from rich.console import Console

from facescan.errors import UsageError
from facescan.report import browse
from facescan.report.pictures import Pictures
from facescan.run import folder
from facescan.score.output import NOTE
from jobs.browsing import Predictions
from jobs.report import pictures

HOST = "127.0.0.1"

_MAX_SIDE = 320
"""Of a picture, in pixels."""

_PICTURES_KEPT = 256

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Viewer(ThreadingHTTPServer):
    """Serves one run until it is shut down.

    Args:
        name: of the run, for people.
        predictions: of the run.
        small: its pictures.

    Attributes:
        url: where it is, with the token.
    """

    daemon_threads = True

    def __init__(self, name: str, predictions: Predictions, small: Pictures) -> None:
        super().__init__((HOST, 0), _Handler)
        self.name = name
        self.predictions = predictions
        self.root = f"/{secrets.token_urlsafe(16)}/"
        port = self.server_address[1]
        self.hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        self.url = f"http://{HOST}:{port}{self.root}"
        self._small = small
        # The pictures of a page are asked for by several threads at a time, and read together.
        self._reading = Lock()
        self._shown: tuple[str, ...] = ()
        self._kept: dict[str, bytes | str] = {}

    def page(self, chosen: dict[str, str], number: int) -> str:
        """The page; raises UsageError where nothing can be chosen so."""
        found = self.predictions.page(chosen, number)
        self._shown = tuple(row.image_id for row in found.rows)
        return browse.html(self.name, NOTE, self.predictions.choices, found)

    def picture(self, image_id: str) -> bytes | None:
        """A JPEG, or None where there is none."""
        with self._reading:
            if image_id not in self._kept:
                shown = self._shown
                wanted = shown if image_id in shown else (image_id,)
                if len(self._kept) > _PICTURES_KEPT:
                    self._kept.clear()
                self._kept |= dict(self._small.thumbnails(wanted))
            found = self._kept.get(image_id)
        return found if isinstance(found, bytes) else None


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; what it is sent is never a path of a file."""

    server: Viewer
    server_version = "facescan"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        if self.headers.get("Host") not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN, "not the address that facescan view printed")
            return
        asked = urlsplit(self.path)
        root = self.server.root
        if not secrets.compare_digest(asked.path[: len(root)].encode(), root.encode()):
            self._refuse(HTTPStatus.NOT_FOUND, "not the address that facescan view printed")
            return
        given = {name: value for name, value in parse_qsl(asked.query) if value}
        match asked.path[len(root) :]:
            case "":
                self._page(given)
            case "picture":
                self._picture(given.get("id", ""))
            case _:
                self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    do_HEAD = do_GET

    def _page(self, given: dict[str, str]) -> None:
        number = given.pop("page", "1")
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            self._refuse(HTTPStatus.BAD_REQUEST, "page: not a number")
            return
        try:
            text = self.server.page(given, int(number))
        except UsageError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        self._answer(HTTPStatus.OK, "text/html; charset=utf-8", text.encode())

    def _picture(self, image_id: str) -> None:
        data = self.server.picture(image_id)
        if data is None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such picture")
            return
        self._answer(HTTPStatus.OK, "image/jpeg", data)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._answer(status, "text/plain; charset=utf-8", f"{why}\n".encode())

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the address has the token, and rows name pictures."""


def serving(run: str, stack: ExitStack) -> Viewer:
    """A server of the run folder at the path or URI `run`; `stack` ends it and what it holds.

    Raises:
        UsageError: `run` is not a run, or has no predictions yet.
        DataError: its dataset is no longer where the run found it.
        OSError: it cannot be reached, or no port is free.
    """
    place = folder.existing(run)
    predictions = stack.enter_context(closing(Predictions(place)))
    small = stack.enter_context(closing(pictures(place, _MAX_SIDE)))
    name = PurePath(place.root.location).name
    return stack.enter_context(Viewer(name, predictions, small))


def view(run: str, console: Console) -> None:
    """Serve the run until Ctrl-C; prints one line, the address to open.

    Raises:
        FacescanError, OSError: as `serving`.
    """
    with ExitStack() as stack:
        viewer = serving(run, stack)
        console.print(
            f"{viewer.url} (Ctrl-C ends it)", markup=False, highlight=False, soft_wrap=True
        )
        try:
            viewer.serve_forever()
        except KeyboardInterrupt:
            return
