"""Neither a key nor a picture is anywhere that it was not put: canaries, looked for everywhere."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pyarrow.parquet as pq
import pytest

from bench.kills import kill
from tests.canaries import (
    KEY,
    PAGES,
    WORDS,
    canaries,
    canary_picture,
    files_below,
    hits,
    sent,
)
from tests.conftest import MakeShards
from tests.provider.running import Config, Fault, Provider, Scripted, provider_server

pytestmark = pytest.mark.slow

SECONDS = 120.0

_CLUSTER = """
from ray.cluster_utils import Cluster
# Two clusters on one machine cannot both have the usual port of the agent, and the second one's
# takes no jobs then.
given = {"num_cpus": 4, "include_dashboard": True, "dashboard_agent_listen_port": 0}
cluster = Cluster(initialize_head=True, head_node_args=given)
print("dashboard", cluster.head_node.webui_url, flush=True)
input()
cluster.shutdown()
"""


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
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                with urlopen(sent, timeout=60) as answer:
                    return str(json.loads(answer.read())["submission_id"])
            except HTTPError as error:
                # A cluster just started: its dashboard has not heard of the node's agent yet.
                said = error.read().decode()
                if "No available agent" not in said or time.monotonic() > deadline:
                    raise AssertionError(f"{error.code}: {said}") from error
            time.sleep(0.2)

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
        # Everything is to be told to whoever asks, whatever a Ray before has set in this process.
        given["RAY_AUTH_MODE"] = "disabled"
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
        *PAGES,
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
