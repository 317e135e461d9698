"""Neither a key nor a picture is anywhere that it was not put: canaries, looked for everywhere."""

import base64
import hashlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pyarrow.parquet as pq
import pytest
from PIL import Image

from bench.kills import kill
from facescan import images, models
from facescan.decoding import DecodePool
from facescan.errors import BadImage
from serving import chat_request
from serving.engines import hosted
from tests.conftest import MakeShards, jpeg
from tests.provider.running import Config, Fault, Provider, Scripted, provider_server

pytestmark = pytest.mark.slow

KEY = "sk-proj-Kanarie7Vogel3Zq9Wx2Lm5Tb8"
WORDS = "canary-in-the-exif-4711"
SECONDS = 120.0

_CLUSTER = """
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": True})
print("dashboard", cluster.head_node.webui_url, flush=True)
input()
cluster.shutdown()
"""

# What the dashboard, its job API and the state API tell.
_PAGES = (
    *("api/jobs/", "nodes?view=summary", "logical/actors", "api/v0/nodes"),
    *("api/v0/actors?detail=1", "api/v0/tasks?detail=1", "api/v0/workers?detail=1", "api/v0/jobs"),
    *("api/v0/objects?detail=1", "api/v0/runtime_envs", "api/v0/placement_groups?detail=1"),
    *("api/v0/tasks/summarize", "api/v0/actors/summarize", "api/v0/tasks/timeline"),
    *("api/cluster_status", "events", "api/data/datasets/02000000", "api/data/datasets/03000000"),
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster with its dashboard, whose processes have the key in their environment."""

    dashboard: str
    files: Path
    mark: str

    def page(self, path: str) -> bytes:
        """What the dashboard answers, an error included."""
        try:
            with urlopen(f"http://{self.dashboard}/{path}", timeout=60) as answer:
                return bytes(answer.read())
        except HTTPError as error:
            return error.read()

    def submit(self, *words: object) -> str:
        """Start `facescan` with these words as a Ray job; its id."""
        command = shlex.join([sys.executable, "-m", "jobs.cli", *map(str, words)])
        body = json.dumps({"entrypoint": command}).encode()
        sent = Request(f"http://{self.dashboard}/api/jobs/", body)
        with urlopen(sent, timeout=60) as answer:
            return str(json.loads(answer.read())["submission_id"])

    def status(self, job: str) -> str:
        """Of a submitted job."""
        return str(json.loads(self.page(f"api/jobs/{job}"))["status"])

    def processes(self) -> dict[int, bytes]:
        """Of the cluster: number -> its command line."""
        found = {}
        for each in Path("/proc").iterdir():
            if each.name.isdigit():
                try:
                    if self.mark.encode() in (each / "environ").read_bytes():
                        found[int(each.name)] = (each / "cmdline").read_bytes()
                except OSError:
                    continue
        return found

    def engines(self) -> list[int]:
        """Processes of engines that are asking."""
        return [pid for pid, words in self.processes().items() if b"EngineActor" in words]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    # Not pytest's folder: the paths of Ray's sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as place:
        mark = uuid.uuid4().hex
        given = {"RAY_TMPDIR": place, "OPENAI_API_KEY": KEY, "FACESCAN_CANARY": mark}
        with (
            (Path(place) / "cluster.log").open("wb") as log,
            subprocess.Popen(
                [sys.executable, "-c", _CLUSTER],
                env=os.environ | given,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            ) as process,
        ):
            assert process.stdout is not None
            line = next((line for line in process.stdout if line.startswith("dashboard ")), None)
            if line is None:
                pytest.skip("Ray's dashboard needs packages of ray[default] that are not here")
            made = Cluster(line.split()[1], Path(place), mark)
            try:
                yield made
            finally:
                process.communicate("\n")
                for pid in made.processes():
                    kill(pid)


def wait(until: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not until():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def canary_picture(seed: int) -> bytes:
    """A small picture with words in its EXIF."""
    exif = Image.Exif()
    exif[0x010E] = WORDS  # ImageDescription
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(seed))).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def sent(picture: bytes) -> str:
    """The data URI that a provider gets of it."""
    checked = images.check(picture, hashlib.sha256(picture).hexdigest(), images.Limits())
    decoders = DecodePool(1)
    try:
        (pixels,) = decoders.decode([checked]).result()
    finally:
        decoders.close()
    assert not isinstance(pixels, BadImage)
    return chat_request.picture(pixels, hosted.options(models.load("gpt-4o")).image)[0]


def canaries(picture: bytes) -> list[bytes]:
    """Words and bytes that must be nowhere: of the key, and of the picture in all its forms."""
    found = [KEY.encode(), KEY[8:].encode(), base64.b64encode(KEY.encode()), WORDS.encode()]
    data = base64.b64decode(sent(picture).partition(",")[2])
    for each in (picture, data):
        text = base64.b64encode(each)
        found += [text[start : start + 40] for start in range(0, len(text) - 40, 80)]
        raw = [each[start : start + 24] for start in range(300, len(each) - 24, 200)]
        found += [*raw, *(repr(part)[2:-1].encode() for part in raw)]
    return found


def hits(places: Mapping[str, bytes], canaries: list[bytes]) -> list[str]:
    return [
        f"{name}: {canary!r}"
        for name, data in places.items()
        for canary in canaries
        if canary in data
    ]


def files_below(folder: Path) -> dict[str, bytes]:
    """All files, those in Parquet also as the values in them."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            found[str(path)] = path.read_bytes()
            if path.suffix == ".parquet":
                rows = pq.read_table(path).to_pylist()
                found[f"{path} as values"] = b"\n".join(_bytes_of(rows))
    return found


def _bytes_of(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _bytes_of(each)
    elif isinstance(value, bytes):
        yield value
    else:
        yield str(value).encode()


def error(status: int, message: str) -> Scripted:
    """An answer whose words the server has made up of what it was sent."""
    body = {"error": {"message": message, "type": "invalid_request_error", "code": None}}
    return Scripted(status=status, body=json.dumps(body))


@contextmanager
def strict_provider(picture: bytes) -> Iterator[Provider]:
    """Refuses, fails, and repeats in its errors what it was sent."""
    shared = [
        error(500, f"Worker failed on header Authorization: Bearer {KEY}"),
        error(500, f"Worker failed on {sent(picture)}"),
        error(400, f"Invalid image_url: {sent(picture)}"),
        error(400, f"Cannot parse request with api_key={KEY}; image was {sent(picture)[40:]}"),
        Scripted(status=502, body=f"<html>{KEY} {WORDS}</html>"),
        Scripted(status=200, body=f"{sent(picture)} {KEY}"),
    ]
    faults = [
        Fault(kind="answer", shape="refusal", probability=0.15),
        Fault(kind="answer", shape="content_filter", probability=0.1),
        Fault(kind="error", error="content_policy", probability=0.05),
        Fault(kind="error", error="500", probability=0.1),
        Fault(kind="reset", probability=0.05),
    ]
    config = Config(keys={KEY: "account"}, latency_s=(0.1, 0.4), faults=faults, script=shared)
    with provider_server(config) as running:
        yield running


def test_a_key_and_a_picture_are_nowhere_but_with_the_provider(
    tmp_path: Path, make_shards: MakeShards, cluster: Cluster
) -> None:
    pictures = {number: canary_picture(number) for number in range(200)}
    shards = make_shards(len(pictures), pictures)
    wanted = canaries(pictures[0])
    assert len(hits(files_below(shards), wanted)) > 10, "the search finds no canaries"
    folder = tmp_path / "run"
    words: list[object] = ["run", "--dataset", shards, "--model", "gpt-4o", "--output-dir", folder]
    words += ["--allow-upload", "--replicas", 2, "--attributes", "race,gender", "--no-score"]
    with strict_provider(pictures[0]) as provider:
        words += ["--model-base-url", provider.base_url]
        first = cluster.submit(*words)
        wait(lambda: provider.stats()["calls"] >= 30, "no calls")
        os.kill(cluster.engines()[0], signal.SIGKILL)
        before = provider.stats()["calls"]
        wait(lambda: provider.stats()["calls"] > before + 20, "no calls after an engine's death")
        provider.configure(script=[error(401, f"Incorrect API key provided: {KEY}.")])
        wait(lambda: cluster.status(first) == "FAILED", "the job survives a refused key")
        second = cluster.submit(*words)
        wait(lambda: cluster.status(second) in ("SUCCEEDED", "FAILED"), "the job does not end")
        log = cluster.page(f"api/jobs/{second}/logs").decode()
        assert cluster.status(second) == "SUCCEEDED", log
        assert any(picture["calls"] for picture in provider.stats()["pictures"])
    pages = [
        *_PAGES,
        *(f"api/jobs/{job}{part}" for job in (first, second) for part in ("", "/logs")),
    ]
    told = {page: cluster.page(page) for page in pages}
    assert b"Incorrect API key provided" in told[f"api/jobs/{first}/logs"]
    commands = {f"command of {pid}": words for pid, words in cluster.processes().items()}
    replies = "".join(
        str(pq.read_table(file)["error"].to_pylist())
        for file in (folder / "replies").glob("*.parquet")
    )
    assert "Invalid image_url" in replies, "no error that repeats a picture was met"
    for name, places in {
        "run folder": files_below(folder),
        "Ray's files": files_below(cluster.files),
        "dashboard": told,
        "command lines": commands,
    }.items():
        assert places, name
        assert not (found := hits(places, wanted)), f"{name}: {found[:5]}"
