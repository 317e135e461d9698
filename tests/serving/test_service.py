"""One replica without Ray: what it answers, what it refuses, and that nothing keeps its place."""

import asyncio
import base64
import json
import logging
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from facescan.errors import EngineError, UsageError
from facescan.types import Request
from serving import front, service
from serving.admission import Admission
from serving.api import Api
from serving.service import Service, ServiceSettings
from tests.conftest import jpeg
from tests.serving.service_calls import Answer, Client, form, scope

_Result = TypeVar("_Result")

FACE = jpeg(1)


class Meter:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.taken = 0

    def request(self, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.statuses.append(status)

    def answer(self, attribute: str, outcome: str) -> None:
        assert attribute
        assert outcome

    def load(self, taken: int) -> None:
        self.taken = taken


class Replica:
    """A service with its API."""

    def __init__(self, **settings: Any) -> None:
        self.settings = ServiceSettings.model_validate({"model": "fake"} | settings)
        self.service = Service(self.settings)
        self.admission = Admission(self.settings.running, self.settings.waiting)
        self.meter = Meter()
        api = Api(self.service, self.admission, self.settings.timeout_s, self.meter)
        self.app = api.application()

    async def post(
        self, headers: dict[str, str], body: bytes, client: Client | None = None
    ) -> Answer:
        client = client or Client()
        headers = {"x-request-id": "id-1"} | headers
        passed = scope(headers=headers) | {front.PASSED: True, front.BODY: body}
        await self.app(passed, client.receive, client.send)
        return client.answer

    async def ask(self, image: bytes = FACE, **fields: str) -> Answer:
        return await self.post(*form(image, **fields))

    async def ask_json(self, **fields: Any) -> Answer:
        body = {"image": base64.b64encode(FACE).decode()} | fields
        return await self.post({"content-type": "application/json"}, json.dumps(body).encode())


@pytest.fixture
def replicas() -> Iterator[list[Replica]]:
    made: list[Replica] = []
    yield made
    for each in made:
        asyncio.run(each.service.close())


@pytest.fixture
def replica(replicas: list[Replica]) -> Replica:
    replicas.append(Replica())
    return replicas[0]


def run(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    return asyncio.run(coroutine)


def test_race_and_emotion_are_not_answered_unless_switched_on(replica: Replica) -> None:
    answer = run(replica.ask())
    assert answer.status == 200
    assert [each["attribute"] for each in answer.json["answers"]] == ["gender", "age"]
    for asked in ({"attributes": "race"}, {"attributes": "age,emotion"}):
        refused = run(replica.ask(FACE, **asked))
        assert (refused.status, refused.kind) == (403, "switched_off")
        assert "docs/responsible-use.md" in refused.json["error"]["message"]


def test_a_wording_that_asks_about_race_too_is_off(replica: Replica) -> None:
    refused = run(replica.ask(protocol="neutral-joint", attributes="gender"))
    assert (refused.status, refused.kind) == (403, "switched_off")


def test_switched_on_they_are_answered(replicas: list[Replica]) -> None:
    replicas.append(Replica(enable_sensitive=True, purpose="a test"))
    answer = run(replicas[0].ask(protocol="neutral-joint"))
    asked = [each["attribute"] for each in answer.json["answers"]]
    assert asked == ["race", "gender", "age", "emotion"]


def test_a_form_and_json_say_the_same(replica: Replica) -> None:
    by_form = run(replica.ask(protocol="neutral-score", attributes="gender,age"))
    for image in (base64.b64encode(FACE).decode(), _data_uri(FACE)):
        by_json = run(
            replica.ask_json(image=image, protocol="neutral-score", attributes=["gender", "age"])
        )
        assert by_json.json == by_form.json


def test_probabilities_come_from_scores(replica: Replica) -> None:
    (scored,) = run(replica.ask(protocol="neutral-score", attributes="gender")).json["answers"]
    assert sum(scored["probabilities"].values()) == pytest.approx(1)
    assert scored["probability"] == max(scored["probabilities"].values())
    (free,) = run(replica.ask(attributes="gender")).json["answers"]
    assert (free["probability"], free["probabilities"]) == (None, None)


@pytest.mark.parametrize(
    ("fields", "status", "kind"),
    [
        ({"protocol": "no-such"}, 400, "unknown_protocol"),
        ({"protocol": "../models/fake"}, 400, "unknown_protocol"),
        ({"attributes": "height"}, 400, "unknown_attribute"),
        ({"attributes": ","}, 400, "unknown_attribute"),
        ({"model": "other"}, 404, "unknown_model"),
        ({"extra": "1"}, 400, "bad_request"),
    ],
)
def test_what_is_not_there_is_refused(
    replica: Replica, fields: dict[str, str], status: int, kind: str
) -> None:
    by_form = run(replica.ask(FACE, **fields))
    by_json = run(replica.ask_json(**fields))
    for answer in (by_form, by_json):
        assert (answer.status, answer.kind) == (status, kind)
        assert answer.json["error"]["request_id"] == "id-1"


@pytest.mark.parametrize(
    ("image", "status", "reason"),
    [
        (b"", 422, "empty"),
        (b"<html>secret</html>", 422, "not_an_image"),
        (b"GIF89a" + bytes(40), 422, "unsupported_format"),
        (FACE[: len(FACE) // 2], 422, "truncated"),
        (jpeg(1, side=8), 422, "too_small"),
        (jpeg(1, side=1000), 413, "too_many_pixels"),
        (FACE + bytes(200_000), 413, "too_many_bytes"),
    ],
)
def test_a_picture_that_cannot_be_used_is_refused_with_a_word_and_no_echo(
    replicas: list[Replica], image: bytes, status: int, reason: str
) -> None:
    replicas.append(Replica(max_image_pixels=500_000, max_image_bytes=150_000))
    answer = run(replicas[0].ask(image))
    assert (answer.status, answer.kind) == (status, "bad_image")
    assert answer.json["error"]["reason"] == reason
    assert set(answer.json["error"]) == {"type", "message", "reason", "request_id"}
    assert b"secret" not in answer.body
    assert replicas[0].admission.taken == 0


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-type": "image/jpeg"}, FACE, 415),
        ({}, FACE, 415),
        ({"content-type": "multipart/form-data"}, b"", 415),
        ({"content-type": "multipart/form-data; boundary=B"}, b"--C\r\n", 400),
        ({"content-type": "application/json"}, b"{", 400),
        ({"content-type": "application/json"}, b"[" * 100_000, 400),
        ({"content-type": "application/json"}, b"[]", 400),
        ({"content-type": "application/json"}, b'{"image": 1}', 400),
        ({"content-type": "application/json"}, b'{"image": "http://x.example/a.jpg"}', 400),
        ({"content-type": "application/json"}, b"\xff\xfe", 400),
    ],
)
def test_a_body_of_another_form_is_refused(
    replica: Replica, headers: dict[str, str], body: bytes, status: int
) -> None:
    assert run(replica.post(headers, body)).status == status


def test_a_full_service_refuses_before_it_looks_at_the_body(replicas: list[Replica]) -> None:
    replicas.append(Replica(running=1, waiting=1, engine="fake"))
    full = replicas[0]

    async def go() -> tuple[Answer, list[Answer]]:
        engine = Slow(full)
        held = [asyncio.create_task(full.ask()) for _ in range(2)]
        await engine.asked.wait()
        refused = await full.post({"content-type": "no/such"}, b"")
        engine.go.set()
        return refused, await asyncio.gather(*held)

    refused, answers = run(go())
    assert (refused.status, refused.kind) == (429, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert [each.status for each in answers] == [200, 200]
    assert (full.admission.taken, full.meter.taken) == (0, 0)
    assert sorted(full.meter.statuses) == [200, 200, 429]


def test_a_time_out_frees_the_place_and_the_engine(replicas: list[Replica]) -> None:
    replicas.append(Replica(running=1, waiting=0, timeout_s=3))
    late = replicas[0]

    async def go() -> tuple[Answer, bool, Answer]:
        engine = Slow(late)
        timed_out = await late.ask()
        cancelled = engine.cancelled
        engine.go.set()
        return timed_out, cancelled, await late.ask()

    timed_out, cancelled, after = run(go())
    assert (timed_out.status, timed_out.kind, cancelled) == (504, "timeout", True)
    assert after.status == 200


def test_what_is_cancelled_leaves_nothing_behind(replicas: list[Replica]) -> None:
    replicas.append(Replica(running=2, waiting=20))
    left = replicas[0]

    async def go() -> tuple[int, int]:
        Slow(left)
        before = len(asyncio.all_tasks())
        asking = [asyncio.create_task(left.ask()) for _ in range(20)]
        while left.admission.taken < 20:
            await asyncio.sleep(0.01)
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        return left.admission.taken, len(asyncio.all_tasks()) - before

    assert run(go()) == (0, 0)
    assert left.meter.statuses == [499] * 20


def test_who_leaves_without_being_cancelled_frees_the_place_and_the_engine(
    replicas: list[Replica],
) -> None:
    replicas.append(Replica(running=1, waiting=0))
    left = replicas[0]

    async def go() -> tuple[bool, int, int]:
        engine = Slow(left)
        before = len(asyncio.all_tasks())
        client = Client()
        asking = asyncio.create_task(left.post(*form(FACE), client))
        await engine.asked.wait()
        client.leaves()
        async with asyncio.timeout(60):
            await asking
        return engine.cancelled, left.admission.taken, len(asyncio.all_tasks()) - before

    assert run(go()) == (True, 0, 0)
    assert left.meter.statuses == [499]


def test_a_dead_engine_is_told_and_makes_the_replica_unhealthy(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    async def dies(requests: Sequence[Request]) -> Any:
        if requests:
            raise EngineError("canary of the engine's own words")
        yield

    replica.service._engine.answer = dies  # type: ignore[method-assign]
    with caplog.at_level(logging.INFO):
        answer = run(replica.ask())
    assert (answer.status, answer.kind) == (503, "engine_died")
    assert b"canary" not in answer.body
    assert "id-1" in caplog.text
    with pytest.raises(EngineError):
        replica.service.check()


def test_a_replica_answers_nothing_that_has_not_passed_the_front(replica: Replica) -> None:
    async def go(path: str, method: str) -> Answer:
        client = Client()
        headers, body = form(FACE)
        asked = scope(path, headers, method) | {front.BODY: body}
        await replica.app(asked, client.receive, client.send)
        return client.answer

    for path, method in (
        ("/v1/attributes", "POST"),
        ("/v1/models", "GET"),
        ("/health/ready", "GET"),
    ):
        answer = run(go(path, method))
        assert (answer.status, answer.kind) == (503, "no_front")


def test_a_decoding_process_that_cannot_start_is_told_as_a_dead_engine(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise EngineError("canary: no process can be started")

    monkeypatch.setattr(replica.service._decoders, "check", fails)
    answer = run(replica.ask())
    assert (answer.status, answer.kind) == (503, "engine_died")
    assert b"canary" not in answer.body
    with pytest.raises(EngineError):
        replica.service.check()


def test_models_say_what_can_be_asked(replica: Replica) -> None:
    async def go() -> Answer:
        client = Client()
        asked = scope("/v1/models", method="GET") | {front.PASSED: True}
        await replica.app(asked, client.receive, client.send)
        return client.answer

    (model,) = run(go()).json["data"]
    assert (model["id"], model["attributes"]) == ("fake", ["gender", "age"])
    protocols = {each["id"]: each for each in model["protocols"]}
    assert protocols["neutral-score"]["answer_mode"] == "score"
    assert "neutral-joint" not in protocols


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "gpt-4o"}, "facescan run --allow-upload"),
        ({"model": "fakee"}, "Did you mean 'fake'"),
        ({"attributes": ["race"]}, "--enable-sensitive"),
        ({"attributes": ["height"]}, "height"),
        ({"enable_sensitive": True}, "--purpose"),
        ({"model": "facescan-paligemma"}, "checkpoint per attribute"),
        ({"min_replicas": 2}, "replicas"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_loaded(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        service.plan(ServiceSettings.model_validate({"model": "fake"} | settings))


def test_the_line_is_served_in_its_order() -> None:
    async def go() -> list[int]:
        admission, order = Admission(1, 10), list[int]()

        async def one(number: int) -> None:
            async with admission.place(), admission.turn():
                await asyncio.sleep(0)
                order.append(number)

        await asyncio.gather(*map(one, range(11)))
        return order

    assert run(go()) == list(range(11))


class Slow:
    """Has the engine of a replica wait until it is let go."""

    def __init__(self, replica: Replica) -> None:
        self.asked, self.go = asyncio.Event(), asyncio.Event()
        self.cancelled = False
        answer = replica.service._engine.answer

        async def slowly(requests: Sequence[Request]) -> Any:
            self.asked.set()
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
            async for reply in answer(requests):
                yield reply

        replica.service._engine.answer = slowly  # type: ignore[method-assign]


def _data_uri(image: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"


def test_files_of_ones_own_are_found(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "own-fake.yaml").write_text(
        "description: x\nengine: fake\nprotocol: neutral\nattributes: [age]\n"
    )
    settings = ServiceSettings(model="own-fake", include_path=(tmp_path,))
    assert service.plan(settings).catalogue.attributes == ("age",)
