"""A run on a cluster that somebody else started, and none joined by accident."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from facescan.errors import UsageError
from jobs import cluster
from jobs.config import resolve
from jobs.run import run
from tests.conftest import MakeShards

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
    subprocess.run(command, check=True, env=os.environ | environment, timeout=120)
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


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_that_the_same_command_continues(
    tmp_path: Path, make_shards: MakeShards, stop: signal.Signals
) -> None:
    mine = tmp_path / "mine"
    (mine / "engines").mkdir(parents=True)
    (mine / "engines" / "slow.py").write_text(_SLOW.format(mark=str(tmp_path / "mark")))
    (mine / "models").mkdir()
    card = "description: x\nengine: slow\nprotocol: neutral\nattributes: [race]\ngpus: 0\n"
    (mine / "models" / "slow.yaml").write_text(card)
    command = [sys.executable, "-m", "jobs.cli", "run", "--model", "slow", "--include-path"]
    command += [str(mine), "--dataset", str(make_shards(40)), "--output-dir", str(tmp_path / "run")]
    # Whoever runs the tests in the background has SIGINT ignored, which children inherit.
    attended = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=attended
    ) as process:
        try:
            while not (tmp_path / "mark").exists():
                assert process.poll() is None
            process.send_signal(stop)
            _, messages = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 3, messages
    assert "the same command again continues" in messages
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "stopped"
    (tmp_path / "mark").write_text("quick")
    subprocess.run(command, check=True, timeout=120)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "answered"


def test_native_messages_go_to_the_log_and_python_s_stay(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with cluster.native_messages_to(tmp_path / "logs" / "driver.log"):
        os.write(2, b"from compiled code\n")
        print("from Python", file=sys.stderr)
    os.write(2, b"afterwards\n")
    assert (tmp_path / "logs" / "driver.log").read_text() == "from compiled code\n"
    assert capfd.readouterr().err == "from Python\nafterwards\n"
