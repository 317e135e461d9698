"""The service over HTTP, as one replica serves it: an ASGI application around a `Service`.

Keys, the limit of a body and the last time-out are the front's (`serving.front`).
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from facescan.errors import EngineError
from serving import front, uploads
from serving.admission import Admission
from serving.refusals import Refusal
from serving.service import Service, about

REQUEST_ID = "x-request-id"

_log = logging.getLogger("facescan.service")


class Meter(Protocol):
    """Counts what goes on; in a service Ray's metrics, which Prometheus reads."""

    def request(self, status: int, seconds: float) -> None:
        """A request for attributes has been answered, with this status of HTTP."""
        ...

    def answer(self, attribute: str, outcome: str) -> None:
        """What the model said of one attribute."""
        ...

    def load(self, taken: int) -> None:
        """So many requests have a place."""
        ...


class Api:
    """The endpoints.

    Args:
        service: that answers.
        admission: in front of its engine.
        timeout_s: for a request, from its arrival here to its answer.
        meter: counts.
    """

    def __init__(
        self, service: Service, admission: Admission, timeout_s: float, meter: Meter
    ) -> None:
        self._service = service
        self._admission = admission
        self._timeout_s = timeout_s
        self._meter = meter

    def application(self) -> Starlette:
        """Of ASGI."""
        return Starlette(
            middleware=[Middleware(BehindFront)],
            routes=[
                Route("/v1/attributes", self._attributes, methods=["POST"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/health/ready", self._ready, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _http_exception},
        )

    async def _models(self, request: Request) -> Response:
        del request
        return _json({"object": "list", "data": [self._service.description()]})

    async def _ready(self, request: Request) -> Response:
        try:
            self._service.check()
        except EngineError:
            return refused(Refusal(503, "not_ready", "The engine has died."), request)
        tasks = len(asyncio.all_tasks())
        return _json({"status": "ready", "requests": self._admission.taken, "tasks": tasks})

    async def _attributes(self, request: Request) -> Response:
        started = time.monotonic()
        status = 499
        try:
            response = await _refusable(self._asked, request)
            status = response.status_code
            return response
        finally:
            self._meter.request(status, time.monotonic() - started)
            self._meter.load(self._admission.taken)

    async def _asked(self, request: Request) -> Response:
        async with self._admission.place():
            self._meter.load(self._admission.taken)
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await self._answered(request)
            except TimeoutError:
                raise Refusal(
                    504, "timeout", f"There was no answer within {self._timeout_s:g} s."
                ) from None

    async def _answered(self, request: Request) -> Response:
        upload = await uploads.read(request)
        return await _unless_left(request, self._answer(request, upload))

    async def _answer(self, request: Request, upload: uploads.Upload) -> Response:
        if upload.model not in (None, self._service.card.name):
            raise Refusal(404, "unknown_model", "GET /v1/models names the model that is here.")
        questions = self._service.catalogue.questions(upload.protocol, upload.attributes)
        image = await self._service.checked(upload.image)
        async with self._admission.turn():
            answers = await self._service.answer(image, questions)
        for answer in answers:
            self._meter.answer(answer["attribute"], answer["outcome"])
        return _json(
            {
                "id": _id(request),
                "object": "facescan.attributes",
                **about(questions),
                "image_sha256": image.sha256,
                "answers": answers,
            }
        )


class BehindFront:
    """Answers only what has passed the front, and hands on the body that it put into the scope.

    A proxy takes its front from the environment that its node was started with; one without would
    let in everybody.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and not scope.pop(front.PASSED, False):
            _log.error("refused: no front before it, which checks keys; see docs/service.md")
            await refused(_NO_FRONT, Request(scope))(scope, receive, send)
            return
        body = scope.pop(front.BODY, None)
        if body is None:
            await self._app(scope, receive, send)
            return
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def first_the_body() -> Message:
            return given.pop() if given else await receive()

        await self._app(scope, first_the_body, send)


_NO_FRONT = Refusal(503, "no_front", "The service is not set up: its front is missing.")


def refused(refusal: Refusal, request: Request) -> Response:
    """The response that says so."""
    return Response(refusal.body(_id(request)), refusal.status, refusal.headers())


async def _unless_left(request: Request, answering: Coroutine[Any, Any, Response]) -> Response:
    """Answer while the client is there.

    Ray Serve cancels what clients have left, but not always: of clients that left as soon as they
    had sent their request to a busy machine, 1 to 3 in 500 kept their places until the time-out.

    Raises:
        Refusal: it has gone (499, which nobody hears).
    """
    tasks = asyncio.ensure_future(answering), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            tasks[1].result()  # raises what receiving did
            raise Refusal(499, "client_gone", "The client has gone.")
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        # The place is given back when the engine has been told.
        await asyncio.gather(*tasks, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refusable(
    endpoint: Callable[[Request], Awaitable[Response]], request: Request
) -> Response:
    try:
        return await endpoint(request)
    except Refusal as refusal:
        if refusal.status >= 500:
            _log.error(
                "request %s: %s: %s", _id(request), refusal.kind, type(refusal.__cause__).__name__
            )
        return refused(refusal, request)


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kinds = {404: "not_found", 405: "method_not_allowed"}
    kind = kinds.get(error.status_code, "bad_request")
    return refused(Refusal(error.status_code, kind, "There is nothing here of that name."), request)


def _id(request: Request) -> str:
    return request.headers.get(REQUEST_ID, "")


def _json(content: dict[str, Any]) -> Response:
    return Response(
        json.dumps(content).encode(),
        headers={"content-type": "application/json", "cache-control": "no-store"},
    )
