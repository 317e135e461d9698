"""The service as it runs: real Ray Serve, real HTTP, from `facescan serve` on."""

import asyncio
import base64
import re
import time
from asyncio import StreamWriter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import duckdb
import pytest
from rich.console import Console

from facescan.errors import UsageError
from jobs.config import resolve
from jobs.run import run as ask_all
from jobs.serve import OBJECT_STORE_BYTES
from serving import api_keys, app
from serving.front import FrontSettings
from tests.conftest import MakeShards, jpeg
from tests.nodes import free_ports
from tests.serving.service_calls import KEY, form
from tests.serving.serving_process import Serving, serving

pytestmark = pytest.mark.slow

FACES = [jpeg(number) for number in range(20)]

_GATED = """
import asyncio
from pathlib import Path
from serving.engines.fake import FakeEngine, cannot_ask, missing, numerics, preprocessing

def load(card, checkpoint, settings):
    return Gated(card, settings)

class Gated(FakeEngine):
    async def answer(self, requests):
        while not Path({gate!r}).exists():
            await asyncio.sleep(0.01)
        async for reply in super().answer(requests):
            yield reply
"""


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, metrics_port: int) -> Iterator[Serving]:
    """A service with a key, and all attributes; its model answers at once."""
    keys = tmp_path_factory.mktemp("service") / "keys"
    keys.write_text(f"{KEY}\n")
    with serving(
        *("--model", "fake", "--enable-sensitive", "--purpose", "a test"),
        *("--api-keys", str(keys), "--max-image-bytes", "200000"),
        *("--metrics-port", str(metrics_port)),
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


def test_prometheus_is_told_what_was_answered_and_refused(
    service: Serving, metrics_port: int
) -> None:
    assert service.ask(FACES[0], KEY, attributes="age").status == 200
    assert service.ask(FACES[0]).status == 401
    wanted = {
        "ray_facescan_request_seconds_count": 'status="200"',
        "ray_facescan_answers_total": 'attribute="age"',
        "ray_facescan_refusals_total": 'status="401"',
    }
    until = time.monotonic() + 60
    # Ray gathers them every few seconds.
    while wanted:
        assert time.monotonic() < until, wanted
        with urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=30) as page:
            lines = page.read().decode().splitlines()
        for name, tag in list(wanted.items()):
            if any(line.startswith(name) and tag in line for line in lines):
                del wanted[name]


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


def test_who_goes_away_gives_its_place_back_and_who_stays_is_answered_before_the_end(
    tmp_path: Path,
) -> None:
    gate = tmp_path / "gate"
    for name, text in (
        ("engines/gated.py", _GATED.format(gate=str(gate))),
        (
            "models/gated.yaml",
            "description: x\nengine: gated\nprotocol: neutral\nattributes: [age]\n",
        ),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    gated = ("--model", "gated", "--gpus", "0", "--include-path", str(tmp_path))
    # Places for all: that one has left is known a moment later.
    with serving(*gated, "--waiting", "100") as there, ThreadPoolExecutor(8) as threads:
        held = [threads.submit(there.ask, FACES[0])]
        _wait_for(there, 1)
        staying: list[StreamWriter] = []

        async def stay_a_while() -> None:
            staying.extend(await asyncio.gather(*(_asking(there.port) for _ in range(10))))
            await asyncio.to_thread(_wait_for, there, 11)
            for writer in staying:
                writer.close()

        asyncio.run(stay_a_while())
        _wait_for(there, 1)
        held += [threads.submit(there.ask, face) for face in FACES[1:8]]
        _wait_for(there, 8)

        async def leave_at_once() -> None:
            for writer in await asyncio.gather(*(_asking(there.port) for _ in range(50))):
                writer.close()

        asyncio.run(leave_at_once())
        _wait_for(there, 8)
        there.begin_to_end()
        gate.touch()
        there.process.communicate(timeout=60)
        assert [each.result().status for each in held] == [200] * 8
    assert there.process.returncode == 0
    assert re.search(r"http://127\.0\.0\.1:\d+/v1/attributes", there.said)
    assert there.said.count("\n") == 1


def _wait_for(there: Serving, taken: int) -> None:
    """Until so many requests have a place."""
    until = time.monotonic() + 60
    while (found := there.request("GET", "/health/ready").json.get("requests")) != taken:
        assert time.monotonic() < until, found
        time.sleep(0.01)


async def _asking(port: int) -> StreamWriter:
    """A request that has been sent whole, and whose answer nobody has read."""
    headers, body = form(FACES[0])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(
        f"POST /v1/attributes HTTP/1.1\r\nHost: localhost\r\n{head}"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    await writer.drain()
    return writer


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


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"timeout_s": 61}, "FACESCAN_SERVICE_TIMEOUT_S=61"),
        ({"max_image_bytes": 60_000_000}, "FACESCAN_SERVICE_MAX_BODY_BYTES=80065536"),
    ],
)
def test_limits_that_the_front_would_cut_short_are_told(
    args: dict[str, float], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(app.FRONT_VARIABLE, app.FRONT)
    monkeypatch.setenv(api_keys.KEYS, KEY)
    with pytest.raises(UsageError, match=says):
        app.build({"model": "fake", **args})


def test_what_the_front_lets_in_fits_ray_s_memory_without_the_disk() -> None:
    # Ray begins to write objects to disk at 80 %.
    assert FrontSettings().max_buffered_bytes < 0.8 * 2 * OBJECT_STORE_BYTES


def test_a_raw_model_is_served_only_where_race_and_emotion_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(app.FRONT_VARIABLE, app.FRONT)
    monkeypatch.setenv(api_keys.KEYS, KEY)
    with pytest.raises(UsageError, match="--enable-sensitive"):
        app.build_raw({"model": "tiny-llava", "gpus": 0})
    with pytest.raises(UsageError, match="chat"):
        app.build_raw({"model": "fake", "gpus": 0, "enable_sensitive": True, "purpose": "a test"})
