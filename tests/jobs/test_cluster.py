"""A run on a cluster that somebody else started, and none joined by accident."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from bench.kills import found
from facescan import storage
from facescan.errors import UsageError
from facescan.storage import objects
from jobs import cluster
from jobs.config import resolve
from jobs.run import run
from tests.canaries import KEY, PAGES, canaries, canary_picture, files_below, hits
from tests.conftest import MakeShards
from tests.nodes import Nodes, nodes
from tests.s3 import serving

pytestmark = pytest.mark.slow

_CLUSTER = """
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
cluster.add_node(num_cpus=2)
print("address", cluster.address, flush=True)
input()
cluster.shutdown()
"""


_SLOW = """
import asyncio
from pathlib import Path
from serving.engines.fake import FakeEngine, cannot_ask, missing, numerics, preprocessing

def load(card, checkpoint, settings):
    return Slow(card, settings)

class Slow(FakeEngine):
    async def answer(self, requests):
        if not Path({mark!r}).exists():
            Path({mark!r}).write_text("asked")
            await asyncio.Event().wait()
        async for reply in super().answer(requests):
            yield reply
"""


@pytest.fixture
def strangers_cluster() -> Iterator[str]:
    """A two-node cluster in a process of its own; its address."""
    with subprocess.Popen(
        [sys.executable, "-c", _CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("address "))
        yield line.split()[1]
        process.communicate("\n")


def facescan_run(shards: Path, target: Path, *words: str, **environment: str) -> dict[str, object]:
    command = [sys.executable, "-m", "jobs.cli", "run", "--dataset", str(shards), "--model", "fake"]
    command += ["--attributes", "race", "--output-dir", str(target), *words]
    subprocess.run(command, check=True, env=os.environ | environment, timeout=600)
    manifest: dict[str, object] = json.loads((target / "manifest.json").read_text())
    return manifest


def test_a_run_joins_the_cluster_it_is_given(
    tmp_path: Path, make_shards: MakeShards, strangers_cluster: str
) -> None:
    target = tmp_path / "run"
    facescan_run(make_shards(10), target, "--ray-address", strangers_cluster)
    status = json.loads((target / "status.json").read_text())
    assert (status["state"], status["answered"]) == ("answered", 10)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:gcs"])
def test_a_cluster_that_does_not_answer_is_a_usage_error(
    tmp_path: Path, make_shards: MakeShards, address: str
) -> None:
    flags = {"dataset": str(make_shards(3)), "model": ["fake"], "output_dir": tmp_path / "run"}
    with pytest.raises(UsageError, match="no Ray cluster answers"):
        run(resolve({**flags, "ray_address": address}, None), Console())
    assert not (tmp_path / "run").exists()


def test_a_signal_stops_a_run_that_the_same_command_continues(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    mine, mark = tmp_path / "mine", tmp_path / "mark"
    (mine / "engines").mkdir(parents=True)
    (mine / "engines" / "slow.py").write_text(_SLOW.format(mark=str(mark)))
    (mine / "models").mkdir()
    card = "description: x\nengine: slow\nprotocol: neutral\nattributes: [race]\ngpus: 0\n"
    (mine / "models" / "slow.yaml").write_text(card)
    command = [sys.executable, "-m", "jobs.cli", "run", "--model", "slow", "--include-path"]
    command += [str(mine), "--dataset", str(make_shards(40)), "--output-dir", str(tmp_path / "run")]
    for stop in (signal.SIGINT, signal.SIGTERM):
        mark.unlink(missing_ok=True)
        messages = stopped(command, mark, stop)
        assert "the same command again continues" in messages
        status = json.loads((tmp_path / "run" / "status.json").read_text())
        assert status["state"] == "stopped"
    # The mark is there: nothing waits any more.
    subprocess.run(command, check=True, timeout=600)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "answered"


def stopped(command: list[str], mark: Path, stop: signal.Signals) -> str:
    """Give the command, this signal once the mark is there, and return what it says."""
    # Whoever runs the tests in the background has SIGINT ignored, which children inherit.
    attended = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=attended
    ) as process:
        try:
            while not mark.exists():
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(stop)
            _, messages = process.communicate(timeout=600)
        finally:
            process.kill()
    assert process.returncode == 3, messages
    return messages


def test_native_messages_go_to_the_log_and_python_s_stay(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with cluster.native_messages_to(tmp_path / "logs" / "driver.log"):
        os.write(2, b"from compiled code\n")
        print("from Python", file=sys.stderr)
    os.write(2, b"afterwards\n")
    assert (tmp_path / "logs" / "driver.log").read_text() == "from compiled code\n"
    assert capfd.readouterr().err == "from Python\nafterwards\n"


# A submitted job


@contextmanager
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The URI of an empty folder of an S3, and the variables that give rights to it, set here."""
    with serving() as (server, environment), monkeypatch.context() as patch:
        rights = environment | {"AWS_SECRET_ACCESS_KEY": KEY}
        for name, value in rights.items():
            patch.setenv(name, value)
        # A process keeps its connections by bucket, and here the server is another.
        objects._connect.cache_clear()
        yield f"s3://{server.bucket}/cluster", rights
    objects._connect.cache_clear()


def put(local: Path, remote: str) -> None:
    for file in local.iterdir():
        storage.at(remote).write(file.name, file.read_bytes())


def fetched(remote: str, local: Path) -> Path:
    for folder in ("", "replies", "predictions"):
        place = storage.at(f"{remote}/{folder}".rstrip("/"))
        (local / folder).mkdir(exist_ok=True)
        for name in place.names():
            (local / folder / name).write_bytes(place.read(name))
    return local


def ended(process: "subprocess.Popen[bytes]") -> tuple[int, str]:
    try:
        said, _ = process.communicate(timeout=600)
    finally:
        process.kill()
    return process.returncode, said.decode()


def until(so: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 600
    while not so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)


def told(running: Nodes) -> dict[str, bytes]:
    """All that the dashboard, the job API and the state API tell somebody with the token."""
    jobs = [each["submission_id"] for each in json.loads(running.ask("api/jobs/")[1])]
    pages = [*PAGES, *(f"api/jobs/{job}{part}" for job in jobs for part in ("", "/logs"))]
    return {page: running.ask(page)[1] for page in pages}


def test_a_job_submitted_in_one_line_comes_to_the_rows_of_the_laptop(
    tmp_path: Path, make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = make_shards(60, {number: canary_picture(number) for number in range(60)})
    (tmp_path / "laptop").mkdir()
    facescan_run(shards, tmp_path / "laptop" / "run", "--replicas", "2")
    folder = tmp_path / "job"
    folder.mkdir()
    with object_store(monkeypatch) as (remote, rights):
        put(shards, f"{remote}/shards")
        (folder / "run.yaml").write_text(
            f"dataset: {remote}/shards\noutput_dir: {remote}/run\nmodel: [fake]\n"
            "attributes: [race]\nreplicas: 2\n"
        )
        with nodes(3, {**rights, "OPENAI_API_KEY": KEY}) as running:
            refusals = [
                running.ask("api/jobs/", {"entrypoint": "id"}, token) for token in ("", "x")
            ]
            assert [status for status, _ in refusals] == [401, 403]
            stranger = {n: v for n, v in running.client.items() if n != "RAY_AUTH_TOKEN_PATH"}
            code, said = ended(running.submit(folder, "id", environment=stranger))
            assert code != 0
            assert "authentication token" in said
            assert json.loads(running.ask("api/jobs/")[1]) == []
            code, said = ended(running.submit(folder, "facescan", "run", "-C", "run.yaml"))
            assert code == 0, said
            assert KEY not in running.client.values(), "the submitter had rights to the store"
            pages = told(running)
            words = {str(pid): line for pid, line in running.processes().items()}
            logs = {n: data for n, data in files_below(running.files).items() if n != running.lock}
        (tmp_path / "cluster").mkdir()
        run_folder = fetched(f"{remote}/run", tmp_path / "cluster")
    assert found(run_folder) == found(tmp_path / "laptop" / "run")
    job_log = next(text for page, text in pages.items() if page.endswith("/logs"))
    assert b"run folder: s3://" in job_log
    secrets = [
        *canaries(canary_picture(0)),
        running.token.encode(),
        base64.b64encode(running.token.encode()),
    ]
    for name, places in {
        "dashboard": pages,
        "Ray's files": logs,
        "command lines": words,
        "submitter": {"output": said.encode()},
        "run folder": files_below(run_folder),
    }.items():
        assert places, name
        assert not (leaks := hits(places, secrets)), f"{name}: {leaks[:5]}"


def wanted_nodes(running: Nodes) -> list[object]:
    """What the cluster's autoscaler has been asked to have room for."""
    report = json.loads(running.ask("api/cluster_status")[1])["data"]["clusterStatus"]
    found: list[object] = report["loadMetricsReport"]["requestDemand"]
    return found


def test_engines_wait_for_the_gpus_of_nodes_that_are_yet_to_come(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    (tmp_path / "run.yaml").write_text(
        f"dataset: {make_shards(20)}\noutput_dir: {tmp_path / 'run'}\nmodel: [fake]\n"
        "attributes: [race]\ngpus: 1\nreplicas: 2\n"
    )
    with nodes(1, {}) as running:
        process = running.submit(tmp_path, "facescan", "run", "-C", "run.yaml")
        until(lambda: wanted_nodes(running) == [[{"CPU": 1.0, "GPU": 1.0}, 2]], "nothing is asked")
        assert process.poll() is None
        running.add("--num-gpus", "2")
        code, said = ended(process)
        assert code == 0, said
        until(lambda: wanted_nodes(running) == [], "the nodes would be kept for ever")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert {worker["gpus"] for worker in manifest["workers"].values()} <= {"0", "1"}
