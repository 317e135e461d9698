"""The service as it runs: real Ray Serve, real HTTP, from `facescan serve` on."""

import asyncio
import base64
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pytest
from rich.console import Console

from facescan.errors import UsageError
from jobs.config import resolve
from jobs.run import run as ask_all
from serving import api_keys, app
from tests.conftest import MakeShards, jpeg
from tests.serving.service_calls import KEY, form
from tests.serving.serving_process import Serving, serving

pytestmark = pytest.mark.slow

FACES = [jpeg(number) for number in range(20)]

# Eight requests are with it together, also where a loaded machine takes seconds to bring them in.
SLOW_MODEL = """
description: An engine that takes its time.
engine: fake
protocol: neutral
attributes: [gender, age]
engine_options: {latency_ms: 10000}
gpus: 0
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A service with a key, and all attributes; its model answers at once."""
    keys = tmp_path_factory.mktemp("service") / "keys"
    keys.write_text(f"{KEY}\n")
    with serving(
        *("--model", "fake", "--enable-sensitive", "--purpose", "a test"),
        *("--api-keys", str(keys), "--max-image-bytes", "200000"),
    ) as running:
        yield running


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("protocol", ["neutral", "neutral-score", "neutral-joint"])
def test_an_answer_is_the_prediction_of_a_run(
    service: Serving, protocol: str, make_shards: MakeShards, tmp_path: Path
) -> None:
    flags = {
        "dataset": str(make_shards(20)),
        "model": "fake",
        "protocol": protocol,
        "attributes": "race,gender,age,emotion",
        "output_dir": str(tmp_path / "run"),
    }
    ask_all(resolve(flags, None), Console(quiet=True))
    rows = duckdb.sql(
        f"""SELECT image_sha256, attribute, model, protocol, answer_mode, request_id, outcome,
                   label, probability, asked_label_set, parser_version
            FROM '{tmp_path}/run/predictions/*.parquet' ORDER BY ALL"""
    ).fetchall()
    answered = []
    for face in FACES:
        said = service.ask(face, KEY, protocol=protocol).json
        answered += [
            (
                *(said["image_sha256"], each["attribute"], said["model"], said["protocol"]),
                *(said["answer_mode"], each["request_id"], each["outcome"], each["label"]),
                *(each["probability"], each["label_set"], said["parser_version"]),
            )
            for each in said["answers"]
        ]
    assert len(rows) == 80
    assert sorted(answered, key=str) == sorted(rows, key=str)


def test_who_has_no_key_gets_nothing(service: Serving) -> None:
    assert service.ask(FACES[0]).status == 401
    assert service.ask(FACES[0], KEY + "x").status == 401
    for path in ("/v1/models", "/-/routes", "/raw/v1/models"):
        assert service.request("GET", path).status == 401
    for path in ("/health/live", "/health/ready"):
        assert service.request("GET", path).status == 200


def test_a_body_that_is_too_large_is_refused_while_it_is_sent(service: Serving) -> None:
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(4000):
            sent += 100_000
            yield b"x" * 100_000

    try:
        answer = service.request(
            "POST",
            "/v1/attributes",
            {"content-type": "application/json", "x-api-key": KEY},
            body(),  # type: ignore[arg-type]
        )
    except (BrokenPipeError, ConnectionResetError):
        pass  # the connection was closed while this end was still sending
    else:
        assert answer.status == 413
    assert sent < 40_000_000


def test_the_log_has_the_purpose_and_no_key_or_picture(service: Serving) -> None:
    face = jpeg(77)
    service.ask(face, KEY)
    service.ask(face[:200], KEY)
    service.ask(face, "x" + KEY)
    encoded = base64.b64encode(face)[100:160]
    found = b""
    (session,) = Path("/tmp/ray").glob(f"session_*_{service.process.pid}")
    for file in session.rglob("*"):
        if file.is_file() and file.suffix in (".log", ".out", ".err", ".json", ".txt"):
            found += file.read_bytes()
    assert b"purpose: a test" in found
    assert KEY.encode() not in found
    assert face[100:160] not in found
    assert encoded not in found


def test_what_is_being_answered_is_answered_before_the_end(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "slow.yaml").write_text(SLOW_MODEL)
    with (
        serving("--model", "slow", "--include-path", str(tmp_path)) as running,
        ThreadPoolExecutor(8) as threads,
    ):
        asked = [threads.submit(running.ask, face) for face in FACES[:8]]
        until = time.monotonic() + 60
        while running.request("GET", "/health/ready").json["requests"] < 8:
            assert time.monotonic() < until
            time.sleep(0.01)
        status, said = running.end()
        assert [each.result().status for each in asked] == [200] * 8
    assert (status, "is waited for" in said) == (0, True)
    assert re.search(r"http://127\.0\.0\.1:\d+/v1/attributes", running.said)
    assert running.said.count("\n") == 1


def test_who_goes_away_gives_its_place_back(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    model = SLOW_MODEL.replace("latency_ms: 10000", "latency_ms: 60000")
    (tmp_path / "models" / "slow.yaml").write_text(model)

    async def leave(port: int) -> None:
        headers, body = form(FACES[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(
            f"POST /v1/attributes HTTP/1.1\r\nHost: localhost\r\n{head}"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        await asyncio.sleep(0)
        writer.close()
        del reader

    slow = ("--model", "slow", "--include-path", str(tmp_path), "--timeout-s", "50")
    # At the end nobody waits for what is held.
    with serving(*slow, "--drain-s", "0.1") as there:
        held = threading.Thread(target=there.ask, args=(FACES[1],), daemon=True)
        held.start()

        def taken() -> int:
            return int(there.request("GET", "/health/ready").json["requests"])

        until = time.monotonic() + 45
        while taken() != 1:
            assert time.monotonic() < until
        for _ in range(5):

            async def many() -> None:
                await asyncio.gather(*(leave(there.port) for _ in range(10)))

            asyncio.run(many())
        while taken() != 1:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_without_its_front_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(app.FRONT_VARIABLE, raising=False)
    for build in (app.build, app.build_raw):
        with pytest.raises(UsageError, match="front"):
            build({"model": "fake"})


def test_without_keys_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(app.FRONT_VARIABLE, app.FRONT)
    for name in (api_keys.FILE, api_keys.KEYS, "FACESCAN_SERVICE_KEYLESS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="without keys"):
        app.build({"model": "fake"})


def test_a_raw_model_is_served_only_where_race_and_emotion_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(app.FRONT_VARIABLE, app.FRONT)
    monkeypatch.setenv(api_keys.KEYS, KEY)
    with pytest.raises(UsageError, match="--enable-sensitive"):
        app.build_raw({"model": "tiny-llava", "gpus": 0})
    with pytest.raises(UsageError, match="chat"):
        app.build_raw({"model": "fake", "gpus": 0, "enable_sensitive": True, "purpose": "a test"})
