"""What every request passes first, in the process that listens: who asks, and how much it may send.

    client ──> front ──> Ray Serve's router ──> replica

It stands in front of all applications alike. Keys go no further than here; bodies are counted while
they are read, and reach a replica when they are complete; a request that takes too long, or sends
too much, ends like one whose client went away, which frees what it held; and what Ray Serve says of
itself never reaches a client.
"""

import asyncio
import ipaddress
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from facescan import images
from facescan.errors import UsageError
from serving import api_keys
from serving.api_keys import ApiKeys
from serving.refusals import Refusal

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]

BODY = "facescan.body"
"""Of a scope: the whole body of a request, which then cannot be received any more."""

PASSED = "facescan.passed_the_front"
"""Of the scope of every request that this module let through; no client can put it there."""

BODY_IN_SCOPE_UNDER = "/v1/"

_DISCONNECT: _Message = {"type": "http.disconnect"}

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

_HANDED_ON = frozenset({b"host", b"content-type", b"content-length", b"accept"})
"""Headers. By others a client could tell Ray Serve to wait longer, to go on without it, or which of
many models it wants, each of whose names Ray Serve 2.60 keeps for ever; and keys go no further."""

_LEAVES_A_BODY = (401, 403, 413, 504)

_LIVE, _READY = "/health/live", "/health/ready"
_OPEN = (_LIVE, _READY, "/-/healthz")
"""Answered without a key."""

_READY_S = 5.0
"""For a replica to say that it is ready."""

_READY_KEPT_S = 0.25
"""What it said: whoever asks without a key, and however often, a replica is asked 4 times a second.
"""

_GRACE_S = 5.0
"""Beyond the replica's own time-out."""


def body_bytes(image_bytes: int) -> int:
    """Of a request with a picture of so many: base64 makes four bytes of three."""
    return image_bytes * 4 // 3 + 64 * 1024


class FrontSettings(BaseSettings):
    """From the environment of the process that listens: FACESCAN_SERVICE_MAX_BODY_BYTES ..."""

    model_config = SettingsConfigDict(env_prefix="FACESCAN_SERVICE_")

    max_body_bytes: int = Field(default=body_bytes(images.Limits().max_bytes), ge=1)
    """Of one request."""
    max_buffered_bytes: int = Field(default=1 << 28, ge=1)
    """Of all requests together that are not answered yet."""
    max_requests: int = Field(default=1000, ge=1)
    """That are not answered yet. A refusal made here takes a tenth of the work of a replica's."""
    timeout_s: float = Field(default=60.0, gt=0)
    """For a request, from its headers to its answer."""
    keyless: bool = False
    """Where there are no keys, answer this machine; else nobody is answered. Only for what listens
    on loopback: behind another proxy everybody seems to be of this machine."""


def settings() -> FrontSettings:
    """From the environment.

    Raises:
        UsageError: a value cannot be.
    """
    try:
        return FrontSettings()
    except ValidationError as error:
        raise UsageError(f"FACESCAN_SERVICE_*: {error}") from error


class Front:
    """ASGI middleware; see the module's docstring.

    Args:
        app: behind it.
        keys: that are good; by default those of the environment.
        limits: by default those of the environment.
        refused: is told the status of each refusal made here.
    """

    def __init__(
        self,
        app: _App,
        keys: ApiKeys | None = None,
        limits: FrontSettings | None = None,
        refused: Callable[[int], None] = lambda status: None,
    ) -> None:
        self._app = app
        self._keys = api_keys.read() if keys is None else keys
        self._limits = settings() if limits is None else limits
        self._refused = refused
        self._buffered = 0
        self._passing = 0
        self._ready: asyncio.Task[list[_Message]] | None = None
        self._ready_until = 0.0

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send
    ) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            # No application behind it has websockets.
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        path = scope["path"]
        try:
            self._check(scope, path, headers)
        except Refusal as refusal:
            await self.refuse(refusal, request_id, send)
            return
        if path == _LIVE:
            await _respond(200, {"content-type": "application/json"}, b'{"status":"live"}', send)
            return
        handed_on = [pair for pair in scope["headers"] if pair[0] in _HANDED_ON]
        inside = dict(scope) | {
            PASSED: True,
            "headers": [*handed_on, (b"x-request-id", request_id)],
        }
        if path in _OPEN:
            for message in await self._said_of_health(inside, path, request_id):
                await send(message)
            return
        self._passing += 1
        try:
            passage = _Passage(self, path, request_id, receive, send)
            await passage.go(self._app, inside, self._limits.timeout_s + _GRACE_S)
        finally:
            self._passing -= 1

    async def _said_of_health(
        self, scope: MutableMapping[str, Any], path: str, request_id: bytes
    ) -> list[_Message]:
        """Without the body and the headers of who asks, who needs no key for it."""
        scope = dict(scope) | {"method": "GET", "headers": [(b"x-request-id", request_id)]}
        if path != _READY:
            return await self._ask_health(scope, path, request_id)
        loop = asyncio.get_running_loop()
        if self._ready is None or (self._ready.done() and loop.time() >= self._ready_until):
            self._ready = loop.create_task(self._ask_ready(scope, request_id))
        # Who goes away ends it for nobody else.
        said = await asyncio.shield(self._ready)
        return [_with_id(message, request_id) for message in said]

    async def _ask_ready(
        self, scope: MutableMapping[str, Any], request_id: bytes
    ) -> list[_Message]:
        said = await self._ask_health(scope, _READY, request_id)
        self._ready_until = asyncio.get_running_loop().time() + _READY_KEPT_S
        return said

    async def _ask_health(
        self, scope: MutableMapping[str, Any], path: str, request_id: bytes
    ) -> list[_Message]:
        said: list[_Message] = []
        empty: list[_Message] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> _Message:
            return empty.pop() if empty else await asyncio.Future[_Message]()

        async def send(message: _Message) -> None:
            said.append(message)

        await _Passage(self, path, request_id, receive, send).go(self._app, scope, _READY_S)
        return said

    def room(self, more: int, so_far: int) -> None:
        """Count bytes of a body.

        Raises:
            Refusal: they are too many, of this request (413) or of all (429).
        """
        self._buffered += more
        if so_far > self._limits.max_body_bytes:
            raise _too_large(self._limits.max_body_bytes)
        if self._buffered > self._limits.max_buffered_bytes:
            raise _overloaded()

    def release(self, counted: int) -> None:
        """A request for which so many bytes were counted has ended."""
        self._buffered -= counted

    async def refuse(self, refusal: Refusal, request_id: bytes, send: _Send) -> None:
        """Answer with this."""
        self._refused(refusal.status)
        headers = refusal.headers() | {"x-request-id": request_id.decode()}
        if refusal.status in _LEAVES_A_BODY:
            # Else what is still to come of the body would be read, to keep the connection.
            headers["connection"] = "close"
        await _respond(refusal.status, headers, refusal.body(request_id.decode()), send)

    def _check(
        self, scope: MutableMapping[str, Any], path: str, headers: dict[bytes, bytes]
    ) -> None:
        if not self._keys:
            self._check_local(scope, headers)
        elif path not in _OPEN and not self._keys.accept(_key(headers)):
            raise Refusal(
                401, "unauthorized", "Send a key: `Authorization: Bearer KEY`, or `X-API-Key: KEY`."
            )
        if path not in _OPEN and self._passing >= self._limits.max_requests:
            raise _overloaded()
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._limits.max_body_bytes:
            raise _too_large(self._limits.max_body_bytes)

    def _check_local(self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes]) -> None:
        """Without keys: a web page of another name must not reach it through a browser, either."""
        host = headers.get(b"host", b"").decode("latin-1").rpartition("]")
        name = host[0][1:] if host[1] else host[2].partition(":")[0]
        client = (scope.get("client") or ("",))[0]
        # A browser sends Origin with what a page posts.
        local = self._limits.keyless and is_loopback(name) and is_loopback(client)
        if not local or b"origin" in headers:
            raise Refusal(
                403, "forbidden", "Without keys this service answers its own machine only."
            )


class _Passage:
    """One request on its way through."""

    def __init__(
        self, front: Front, path: str, request_id: bytes, receive: _Receive, send: _Send
    ) -> None:
        self._front = front
        self._path = path
        self._id = request_id
        self._receive_outside = receive
        self._send_outside = send
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._counted = 0
        self._gone = False
        self._started = False
        self._replaced = False

    async def go(self, app: _App, scope: MutableMapping[str, Any], seconds: float) -> None:
        """Have `app` answer, within this time."""
        timer = asyncio.get_running_loop().call_later(seconds, self._time_is_up)
        refusal: Refusal | None = None
        try:
            if self._path.startswith(BODY_IN_SCOPE_UNDER):
                scope = await self._with_body(scope)
            if not (self._ended.done() or self._gone):
                await app(scope, self._receive, self._send)
        finally:
            timer.cancel()
            self._front.release(self._counted)
            if self._ended.done() and (cause := self._ended.exception()) is not None:
                assert isinstance(cause, Refusal)
                refusal = cause
        if self._started or self._gone:
            return
        await self._front.refuse(refusal or _DIED, self._id, self._send_outside)

    async def _with_body(self, scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """A replica then need not call back for it, and slow uploads take no place there."""
        body = bytearray()
        while (message := await self._receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        return dict(scope) | {BODY: bytes(body)}

    def _time_is_up(self) -> None:
        self._end(Refusal(504, "timeout", "There was no answer in time."))

    def _end(self, refusal: Refusal) -> None:
        if not self._ended.done():
            self._ended.set_exception(refusal)

    async def _receive(self) -> _Message:
        if self._ended.done():
            return _DISCONNECT
        receiving = asyncio.ensure_future(self._receive_outside())
        try:
            either: set[asyncio.Future[Any]] = {receiving, self._ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                return _DISCONNECT
        finally:
            receiving.cancel()
        message = receiving.result()
        if message["type"] == "http.disconnect":
            self._gone = True
        body = len(message.get("body", b""))
        self._counted += body
        try:
            self._front.room(body, self._counted)
        except Refusal as refusal:
            self._end(refusal)
            return _DISCONNECT
        return message

    async def _send(self, message: _Message) -> None:
        if self._replaced or (self._ended.done() and not self._started):
            return
        if message["type"] == "http.response.start" and (
            says := _of_ray_serve(message, self._path)
        ):
            self._started = self._replaced = True
            await self._front.refuse(says, self._id, self._send_outside)
            return
        self._started = True
        await self._send_outside(message)


_DIED = Refusal(
    503, "replica_died", "What worked on this request has died. Try again.", retry_after_s=1
)

_NOT_READY = Refusal(503, "not_ready", "No replica is ready. Try again later.", retry_after_s=5)


def _overloaded() -> Refusal:
    """Each time another: one that is raised again keeps what each time was on the stack."""
    return Refusal(
        429,
        "overloaded",
        "The service has as many requests as it takes. Try again later.",
        retry_after_s=1,
    )


_SAID = {
    429: _overloaded(),
    503: _NOT_READY,
}


def _of_ray_serve(message: _Message, path: str) -> Refusal | None:
    """What to say in the place of Ray Serve's own errors, which are plain text."""
    status = int(message["status"])
    kind = dict(message.get("headers", ())).get(b"content-type", b"")
    if status < 400 or not kind.startswith(b"text/plain"):
        return None
    if status == 404:
        # No application has this path: before the first is there, and when the last one ends.
        ours = path.startswith(("/v1/", "/health/"))
        return _NOT_READY if ours else Refusal(404, "not_found", "There is nothing of that name.")
    return _SAID.get(status) or Refusal(status, "failed", "The request failed.")


def is_loopback(host: str) -> bool:
    """Whether a name or an address can only be this machine's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _key(headers: dict[bytes, bytes]) -> str:
    scheme, _, bearer = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        return bearer.strip()
    return headers.get(b"x-api-key", b"").decode("latin-1")


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "body_too_large", f"A request has at most {limit} bytes.")


def _with_id(message: _Message, request_id: bytes) -> _Message:
    if message["type"] != "http.response.start":
        return message
    headers = [pair for pair in message["headers"] if pair[0].lower() != b"x-request-id"]
    return dict(message) | {"headers": [*headers, (b"x-request-id", request_id)]}


async def _respond(status: int, headers: dict[str, str], body: bytes, send: _Send) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    pairs.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
