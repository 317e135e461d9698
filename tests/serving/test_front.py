"""The front: who may ask, how much may be sent, and what ends a request that takes too long."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serving.api_keys import ApiKeys
from serving.front import BODY, PASSED, Front, FrontSettings, is_loopback
from tests.serving.service_calls import KEY, Answer, Client, scope

LIMITS = FrontSettings(max_body_bytes=1000, max_buffered_bytes=1500, timeout_s=60)


class App:
    """Behind the front: reads the body, and answers 200 when it is let."""

    def __init__(self, answers: bool = True) -> None:
        self.scope: dict[str, Any] = {}
        self.body = b""
        self.disconnected = False
        self.reading = asyncio.Event()
        self._answers = answers

    async def __call__(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Any]
    ) -> None:
        self.scope = scope
        self.body = scope.get(BODY, b"")
        more = BODY not in scope
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnected = True
                return
            self.body += message["body"]
            more = message["more_body"]
        self.reading.set()
        if not self._answers:
            self.disconnected = (await receive())["type"] == "http.disconnect"
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


def ask(
    app: Any,
    keys: ApiKeys | None = None,
    body: tuple[bytes, ...] = (b"x",),
    limits: FrontSettings = LIMITS,
    **of_scope: Any,
) -> Answer:
    async def go() -> Answer:
        client = Client(body)
        front = Front(app, ApiKeys([KEY]) if keys is None else keys, limits)
        await front(scope(**of_scope), client.receive, client.send)
        return client.answer

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"authorization": f"bearer {KEY}"}, 200),
        ({"x-api-key": KEY}, 200),
        ({"authorization": f"Basic {KEY}"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": f"Bearer {KEY}x"}, 401),
        ({"x-api-key": "é" * 30}, 401),
    ],
)
def test_only_a_key_opens_the_service(headers: dict[str, str], status: int) -> None:
    assert ask(App(), headers=headers).status == status


def test_a_key_goes_no_further_than_the_front() -> None:
    app = App()
    ask(app, headers={"authorization": f"Bearer {KEY}", "content-type": "image/jpeg"})
    assert KEY not in str(app.scope)
    assert dict(app.scope["headers"])[b"content-type"] == b"image/jpeg"


@pytest.mark.parametrize("path", ["/v1/attributes", "/health/ready", "/-/healthz"])
@pytest.mark.parametrize(
    "header",
    [
        "x-request-timeout-seconds",
        "x-request-disconnect-disabled",
        # Ray Serve keeps each value that it has seen.
        "serve_multiplexed_model_id",
        "serve-multiplexed-model-id",
        "x-session-id",
    ],
)
def test_no_client_tells_ray_serve_what_to_do(path: str, header: str) -> None:
    app = App()
    assert ask(app, headers={"x-api-key": KEY, header: "1"}, path=path).status == 200
    assert header.encode() not in dict(app.scope["headers"])
    assert app.scope[PASSED]


def test_health_takes_no_body_of_whom_it_does_not_know() -> None:
    app = App()
    assert ask(app, body=(b"x" * 900,), path="/health/ready").status == 200
    assert app.body == b""


def test_a_flood_of_questions_for_health_is_one_question_to_a_replica() -> None:
    asked: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async def go() -> list[Answer]:
        front = Front(app, ApiKeys([KEY]), LIMITS)
        clients = [Client() for _ in range(100)]
        ids = [{"x-request-id": f"id-{number}"} for number in range(100)]
        await asyncio.gather(
            *(
                front(scope("/health/ready", each, "GET"), client.receive, client.send)
                for each, client in zip(ids, clients, strict=True)
            )
        )
        return [client.answer for client in clients]

    answers = asyncio.run(go())
    assert [each.status for each in answers] == [200] * 100
    assert [each.headers["x-request-id"] for each in answers] == [f"id-{n}" for n in range(100)]
    assert len(asked) == 1


def test_health_needs_no_key() -> None:
    assert ask(App(), path="/health/ready", method="GET").status == 200
    live = ask(App(answers=False), path="/health/live", method="GET")
    assert (live.status, live.json) == (200, {"status": "live"})


@pytest.mark.parametrize(
    ("host", "client", "headers", "status"),
    [
        ("localhost:8000", "127.0.0.1", {}, 200),
        ("127.0.0.1:8000", "127.0.0.1", {}, 200),
        ("[::1]:8000", "::1", {}, 200),
        ("rebound.example:8000", "127.0.0.1", {}, 403),
        ("localhost:8000", "192.0.2.1", {}, 403),
        ("localhost:8000", "127.0.0.1", {"origin": "http://page.example"}, 403),
    ],
)
def test_without_keys_only_this_machine_is_answered(
    host: str, client: str, headers: dict[str, str], status: int
) -> None:
    keyless = LIMITS.model_copy(update={"keyless": True})
    given = {"host": host} | headers
    assert ask(App(), ApiKeys([]), limits=keyless, headers=given, client=client).status == status
    assert ask(App(), ApiKeys([]), headers=given, client=client).status == 403


def test_a_body_is_refused_by_the_length_it_announces() -> None:
    app = App()
    answer = ask(app, headers={"x-api-key": KEY, "content-length": "1001"})
    assert (answer.status, answer.kind, app.body) == (413, "body_too_large", b"")


def test_a_body_without_a_length_is_refused_while_it_is_read() -> None:
    async def go(path: str) -> tuple[Answer, int, bool]:
        app = App()
        client = Client([b"x" * 300] * 100)
        front = Front(app, ApiKeys([KEY]), LIMITS)
        await front(scope(path, headers={"x-api-key": KEY}), client.receive, client.send)
        return client.answer, client.taken, app.disconnected

    for path in ("/v1/attributes", "/raw/v1/chat/completions"):
        answer, taken, reached = asyncio.run(go(path))
        assert (answer.status, taken) == (413, 1200)
        assert reached == (path != "/v1/attributes")


def test_bodies_of_all_requests_together_are_bounded_and_room_comes_back() -> None:
    async def go() -> list[int]:
        app = App(answers=False)
        front = Front(app, ApiKeys([KEY]), LIMITS)

        async def one(client: Client) -> None:
            await front(scope(headers={"x-api-key": KEY}), client.receive, client.send)

        first, second, third = Client([b"x" * 900]), Client([b"x" * 900]), Client([b"x" * 900])
        held = asyncio.create_task(one(first))
        await app.reading.wait()
        await one(second)
        first.leaves()
        await held
        third.leaves()
        await one(third)
        return [second.answer.status, third.answer.status]

    # The third goes away by itself, so it gets no answer; but it was let in.
    assert asyncio.run(go()) == [429, 0]


def test_requests_beyond_those_that_it_takes_are_refused_at_once() -> None:
    async def go() -> tuple[int, int, int]:
        app = App(answers=False)
        front = Front(app, ApiKeys([KEY]), LIMITS.model_copy(update={"max_requests": 1}))

        async def one(client: Client, path: str = "/v1/attributes") -> int:
            await front(scope(path, headers={"x-api-key": KEY}), client.receive, client.send)
            return client.answer.status

        first, third = Client(), Client()
        held = asyncio.create_task(one(first))
        await app.reading.wait()
        second = await one(Client())
        live = await one(Client(), "/health/live")
        first.leaves()
        await held
        third.leaves()
        return second, live, await one(third)

    assert asyncio.run(go()) == (429, 200, 0)


@pytest.mark.parametrize("limits", [{"max_requests": 1}, {"max_buffered_bytes": 1}])
def test_nothing_is_kept_of_what_is_refused(limits: dict[str, int]) -> None:
    async def go() -> "weakref.ref[Client]":
        app = App(answers=False)
        front = Front(app, ApiKeys([KEY]), LIMITS.model_copy(update=limits))
        held, refused = Client([b""]), Client([b"xx"])
        asked = scope(headers={"x-api-key": KEY})
        holding = asyncio.create_task(front(asked, held.receive, held.send))
        await app.reading.wait()
        await front(asked, refused.receive, refused.send)
        assert refused.answer.status == 429
        held.leaves()
        await holding
        return weakref.ref(refused)

    kept = asyncio.run(go())
    gc.collect()
    assert kept() is None


def test_a_body_travels_with_its_request() -> None:
    app = App()
    assert ask(app, body=(b"ab", b"c"), headers={"x-api-key": KEY}).status == 200
    assert (app.scope[BODY], app.body) == (b"abc", b"abc")


def test_a_request_that_takes_too_long_ends_for_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.front._GRACE_S", 0.0)
    app = App(answers=False)
    limits = LIMITS.model_copy(update={"timeout_s": 1.0})
    answer = ask(app, limits=limits, headers={"x-api-key": KEY})
    assert (answer.status, answer.kind, app.disconnected) == (504, "timeout", True)


def test_a_client_that_goes_away_is_passed_on() -> None:
    async def go() -> bool:
        app, client = App(answers=False), Client()
        front = Front(app, ApiKeys([KEY]), LIMITS)
        asking = asyncio.create_task(
            front(scope(headers={"x-api-key": KEY}), client.receive, client.send)
        )
        await app.reading.wait()
        client.leaves()
        await asking
        assert not client.answer.status
        return app.disconnected

    assert asyncio.run(go())


@pytest.mark.parametrize(
    ("status", "path", "says"),
    [(500, "/v1/x", 500), (404, "/v1/x", 503), (404, "/x", 404), (429, "/x", 429), (408, "/", 408)],
)
def test_errors_of_ray_serve_are_told_in_our_words(status: int, path: str, says: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"Traceback: secret"})

    answer = ask(app, path=path, headers={"x-api-key": KEY})
    assert (answer.status, b"secret" in answer.body) == (says, False)


def test_a_replica_that_died_is_told_as_worth_another_try() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        return

    answer = ask(app, headers={"x-api-key": KEY})
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


def test_a_request_keeps_the_id_that_it_came_with_if_that_is_one() -> None:
    def given(request_id: str) -> str:
        return ask(App(), headers={"x-request-id": request_id}).headers["x-request-id"]

    assert given("abc-1.2_3") == "abc-1.2_3"
    assert "\n" not in given("abc\ninjected")
    assert given("x" * 65) != "x" * 65


def test_websockets_are_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    asyncio.run(Front(App(), ApiKeys([]), LIMITS)({"type": "websocket"}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    ("host", "found"),
    [("localhost", True), ("127.8.0.1", True), ("::1", True), ("0.0.0.0", False), ("", False)],
)
def test_loopback_is_known(host: str, found: bool) -> None:
    assert is_loopback(host) is found
